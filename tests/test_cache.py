"""The artifact cache: what it saves, whom it believes, and what it never does."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import asyncwasm as aw
from asyncwasm._ffi import compiling
from asyncwasm._runtime import cache as caches
from asyncwasm._runtime import engine as engines
from asyncwasm._runtime.place import Place, Rejected, user_directory
from asyncwasm._runtime.source import FileReader, Identity

from .support import ADD, ROOT, run_script, wasm
from .test_tiers import large

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners and modes")
needs_baseline = pytest.mark.skipif(
    not compiling.has_baseline(), reason="no baseline compiler here"
)
ANSWER = """(module (func (export "f") (result i32) (i32.const 41)))"""


class Events(logging.Handler):
    """What was logged, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, Any]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append((record.getMessage().removeprefix("asyncwasm."), vars(record)))

    def names(self) -> list[str]:
        """Return the names of the cache's events, and forget them."""
        names = [name for name, _ in self.all if name.startswith("cache_")]
        self.all.clear()
        return names

    def reasons(self) -> list[str]:
        return [str(facts.get("reason")) for name, facts in self.all if "reason" in facts]


@pytest.fixture
def events() -> Iterator[Events]:
    for engine in list(engines._engines):  # what earlier tests have left in the background
        while engine.optimizer.waiting or engine.optimizer._running:
            engine.optimizer.settle(1.0)
    logger = logging.getLogger("asyncwasm")
    handler = Events()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def _users_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(caches, "_evicted", {})
    aw.configure_sync_guard(action="ignore")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for a cache, which is not there yet."""
    return tmp_path / "cache"


@pytest.fixture
def open_place(place: Path) -> Path:
    """A directory that everybody can write."""
    place.mkdir()
    place.chmod(0o777)
    return place


def compiled(directory: Path | str, source: Any = None, **options: Any) -> aw.Module:
    """Compile in an engine of its own, as another process would."""
    engine = aw.Engine(aw.EngineConfig(cache=directory, **options))
    module = aw.Module(wasm(ANSWER) if source is None else source, engine=engine)
    aw.Instance(module)
    return module


def only(directory: Path, ending: str) -> Path:
    (found,) = directory.glob(f"*.{ending}")
    return found


def answer(module: aw.Module) -> int:
    value: int = aw.Instance(module).exports.f()
    return value


# what it saves


def test_second_engine_compiles_nothing(place: Path, events: Events) -> None:
    first = compiled(place)
    stored = events.names()
    second = compiled(place)

    assert stored == ["cache_stored"]
    assert events.names() == ["cache_hit"]
    assert (first._artifact.cached, second._artifact.cached) == (False, True)
    assert answer(second) == 41
    assert second.exports() == first.exports()
    assert second.digest == first.digest


def test_engine_has_no_cache_unless_asked(events: Events) -> None:
    aw.Module(wasm(ANSWER), engine=aw.Engine())

    assert events.names() == []


async def test_cached_code_is_used_at_once_by_auto(place: Path, events: Events) -> None:
    binary = large(ANSWER)
    module = await aw.compile(binary, engine=aw.Engine(aw.EngineConfig(cache=place)))
    await module.optimized()
    assert answer(module) == 41
    events.names()

    again = await aw.compile(binary, engine=aw.Engine(aw.EngineConfig(cache=place)))

    assert again.tier == "optimized"
    assert events.names() == ["cache_hit"]
    assert answer(again) == 41


@needs_baseline
async def test_baseline_code_is_kept_until_the_module_has_been_optimized(
    place: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends before it has optimized leaves something to the next one."""
    config = aw.EngineConfig(cache=place)
    stopped = aw.Engine(config)
    reached, released = threading.Event(), threading.Event()
    make = stopped._core._new_native

    def wait(*arguments: Any, **options: Any) -> Any:
        if not options.get("parallel", True):
            reached.set()
            released.wait()
        return make(*arguments, **options)

    monkeypatch.setattr(stopped._core, "_new_native", wait)
    first = await aw.compile(large(ANSWER), engine=stopped)
    assert reached.wait(30)
    assert events.names() == ["cache_stored"]

    second = await aw.compile(large(ANSWER), engine=aw.Engine(config))
    names = events.names()
    assert answer(second) == 41
    await second.optimized()
    released.set()
    await first.optimized()

    assert names[:1] == ["cache_hit"]
    assert (first.tier, second.tier) == ("optimized", "optimized")
    assert only(place, "entry")
    assert (await aw.compile(large(ANSWER), engine=aw.Engine(config))).tier == "optimized"


@needs_baseline
def test_code_of_a_baseline_engine_is_not_kept(place: Path, events: Events) -> None:
    compiled(place)
    events.names()

    assert compiled(place, tier="baseline").tier == "baseline"
    assert events.names() == []


@pytest.mark.parametrize(
    "options",
    [{"max_wasm_stack_bytes": 256 << 10}, {"simd": False}, {"wide_arithmetic": True}],
    ids=["stack", "feature", "more features"],
)
def test_other_configuration_is_another_entry(
    place: Path, events: Events, options: dict[str, Any]
) -> None:
    compiled(place)
    events.names()
    compiled(place, **options)

    assert events.names() == ["cache_stored"]


def test_code_that_counts_fuel_is_another_entry(place: Path, events: Events) -> None:
    limits = aw.Limits(fuel=1000)
    aw.Instance(compiled(place), limits=limits)
    assert events.names() == ["cache_stored", "cache_stored"]

    instance = aw.Instance(compiled(place), limits=limits)
    instance.exports.f()

    assert events.names() == ["cache_hit", "cache_hit"]
    assert instance.store.fuel is not None
    assert instance.store.fuel < 1000


def test_module_that_imports_a_name_twice_is_kept_as_it_is_linked(
    place: Path, events: Events
) -> None:
    text = """(module (import "e" "f" (func (result i32))) (import "e" "f" (func (result i64)))
      (func (export "g") (result i32) (call 0)))"""
    for _ in range(2):
        engine = aw.Engine(aw.EngineConfig(cache=place))
        module = aw.Module(wasm(text), engine=engine)
        assert aw.Instance(module, {"e": {"f": lambda: 5}}).exports.g() == 5

    assert events.names() == ["cache_stored", "cache_hit"]


def test_guests_with_references_are_known_as_such(place: Path) -> None:
    text = '(module (func (export "f") (param externref) (result externref) (local.get 0)))'
    found = [compiled(place, wasm(text))._artifact.holds_references for _ in range(2)]

    assert found == [True, True]


# files


def settled(path: Path, binary: bytes) -> Path:
    path.write_bytes(binary)
    return path


@pytest.fixture
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "_SETTLED_NS", 0)


@pytest.mark.usefixtures("_no_settling")
def test_unchanged_file_is_not_hashed_again(place: Path, tmp_path: Path, events: Events) -> None:
    source = settled(tmp_path / "a.wasm", wasm(ANSWER))
    compiled(place, source)
    events.names()
    module = compiled(place, source)

    assert events.names() == ["cache_file_unchanged", "cache_hit"]
    assert module.digest == aw.Module(wasm(ANSWER)).digest


@pytest.mark.usefixtures("_no_settling")
async def test_unchanged_file_is_not_hashed_by_compile(
    place: Path, tmp_path: Path, events: Events
) -> None:
    source = settled(tmp_path / "a.wasm", wasm(ANSWER))
    for _ in range(2):
        await aw.compile(source, engine=aw.Engine(aw.EngineConfig(cache=place)))

    assert events.names() == ["cache_stored", "cache_file_unchanged", "cache_hit"]


@pytest.mark.usefixtures("_no_settling")
def test_file_with_its_times_put_back_is_hashed(place: Path, tmp_path: Path) -> None:
    """The time of change cannot be set."""
    source = settled(tmp_path / "a.wasm", wasm(ANSWER))
    before = source.stat()
    assert answer(compiled(place, source)) == 41
    source.write_bytes(wasm(ANSWER.replace("41", "42")))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert source.stat().st_mtime_ns == before.st_mtime_ns
    assert answer(compiled(place, source)) == 42


@pytest.mark.usefixtures("_no_settling")
def test_code_never_meets_a_binary_of_another_shape(
    place: Path, tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even on a file system that says a file has not changed when it has."""
    source = settled(tmp_path / "a.wasm", wasm(ANSWER))
    compiled(place, source)
    same = Identity.of(source.stat())
    source.write_bytes(wasm(ANSWER.replace("i32", "i64")))
    monkeypatch.setattr(
        "asyncwasm._runtime.source.Identity", SimpleNamespace(of=lambda found: same)
    )
    events.names()
    module = compiled(place, source)

    assert events.names() == ["cache_stored"]
    assert module.exports()[0].type == aw.FunctionType([], ["i64"])
    assert answer(module) == 41


@pytest.mark.usefixtures("_no_settling")
def test_file_of_very_many_sections_is_hashed_each_time(
    place: Path, tmp_path: Path, events: Events
) -> None:
    """Where they are would not fit into a header."""
    note = b"\x00" + b"\x82\x40" + b"\x01n" + bytes(8192)
    source = settled(tmp_path / "a.wasm", wasm(ANSWER) + 1001 * note)
    compiled(place, source)
    module = compiled(place, source)

    assert answer(module) == 41
    assert "cache_file_unchanged" not in events.names()
    assert list(place.glob("*.file")) == []


@pytest.mark.usefixtures("_no_settling")
def test_unchanged_file_is_not_read_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The binary that its module answers from is the cache's copy."""
    text = ANSWER.replace("(module", '(module (@custom "note" "mine")')
    source = settled(tmp_path / "a.wasm", wasm(text))
    first = compiled(place, source)

    def unreadable(reader: FileReader) -> bytes:
        raise AssertionError("the file is read")

    monkeypatch.setattr(FileReader, "__call__", unreadable)
    module = compiled(place, source)

    assert answer(module) == 41
    assert module.digest == first.digest
    assert module.byte_length == len(source.read_bytes())
    assert module.exports() == first.exports()
    assert module.custom_sections("note") == [b"mine"]
    assert pickle.loads(pickle.dumps(module)).digest == first.digest


@pytest.mark.usefixtures("_no_settling")
def test_module_of_a_known_file_keeps_its_binary(place: Path, tmp_path: Path) -> None:
    """Whatever happens to the file and to the cache."""
    source = settled(tmp_path / "a.wasm", wasm(ANSWER))
    compiled(place, source)
    module = compiled(place, source)
    source.write_bytes(b"")
    for path in place.iterdir():
        path.unlink()

    assert answer(pickle.loads(pickle.dumps(module))) == 41
    limited = aw.Instance(module, limits=aw.Limits(fuel=100))  # compiled now
    assert limited.exports.f() == 41


@pytest.mark.usefixtures("_no_settling")
def test_known_file_without_code_is_compiled_from_the_copy(
    place: Path, tmp_path: Path, events: Events
) -> None:
    source = settled(tmp_path / "a.wasm", wasm(ANSWER))
    compiled(place, source)
    only(place, "entry").unlink()
    events.names()
    module = compiled(place, source)

    assert events.names() == ["cache_file_unchanged", "cache_stored"]
    assert answer(module) == 41


def padded(binary: bytes, mark: bytes = b"") -> bytes:
    """Return *binary* with a custom section that makes it one of those not hashed again."""
    content = b"\x03pad" + bytes(600_000) + mark.ljust(8) + bytes(600_000)
    size = len(content)
    return binary + bytes([0, size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + content


def test_known_bytes_are_not_hashed_again(
    place: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = padded(wasm(ANSWER))
    first = compiled(place, binary, tier="optimized")
    events.names()

    def sha256(binary: bytes) -> str:
        raise AssertionError("the bytes are hashed")

    monkeypatch.setattr("asyncwasm._runtime.engine.sha256", sha256)
    module = compiled(place, bytearray(binary), tier="optimized")

    assert events.names() == ["cache_bytes_known", "cache_hit"]
    assert module.digest == first.digest
    assert module.exports() == first.exports()
    assert module.byte_length == len(binary)
    assert answer(pickle.loads(pickle.dumps(module))) == 41


async def test_known_bytes_are_not_hashed_by_compile(place: Path, events: Events) -> None:
    for _ in range(2):
        engine = aw.Engine(aw.EngineConfig(cache=place, tier="optimized"))
        await aw.compile(padded(wasm(ANSWER)), engine=engine)

    assert events.names() == ["cache_stored", "cache_bytes_known", "cache_hit"]


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(change=st.integers(8, 1_200_000), bit=st.integers(0, 7))
def test_similar_bytes_are_told_apart(place: Path, change: int, bit: int) -> None:
    """Invariant: whatever byte differs, no module gets the binary of another."""
    binary = padded(wasm(ANSWER))
    compiled(place, binary, tier="optimized")
    other = bytearray(binary)
    other[change] ^= 1 << bit
    try:
        module = compiled(place, other, tier="optimized")
    except aw.WasmError:  # what has been changed is not the padding
        assert change < len(wasm(ANSWER)) + 8
    else:
        assert pickle.loads(pickle.dumps(module))._artifact.binary == other


def test_similar_bytes_do_not_displace_each_other(place: Path, events: Events) -> None:
    first, second = (padded(wasm(ANSWER), mark) for mark in (b"first", b"second"))
    for binary in (first, second):
        compiled(place, binary, tier="optimized")
    events.names()
    modules = [compiled(place, binary, tier="optimized") for binary in (first, second, first)]

    assert events.names() == [
        *("cache_bytes_known", "cache_hit"),
        "cache_hit",  # it was hashed
        *("cache_bytes_known", "cache_hit"),
    ]
    assert [module._artifact.binary for module in modules] == [first, second, first]


def test_known_bytes_without_code_are_compiled_from_the_copy(place: Path, events: Events) -> None:
    compiled(place, padded(wasm(ANSWER)), tier="optimized")
    only(place, "entry").unlink()
    events.names()
    module = compiled(place, padded(wasm(ANSWER)), tier="optimized")

    assert events.names() == ["cache_bytes_known", "cache_stored"]
    assert answer(module) == 41


def test_shared_directory_knows_no_bytes(open_place: Path) -> None:
    compiled(open_place, padded(wasm(ANSWER)), tier="optimized")

    assert {path.suffix for path in open_place.iterdir()} == {".entry", ".code"}


def test_small_bytes_are_hashed(place: Path) -> None:
    compiled(place)

    assert not list(place.glob("*.bytes"))


INVALID = wasm("(module (func (result i32) (i64.const 1)))")


def refusal(place: Path, source: Any = None, **options: Any) -> aw.CompileError:
    """Return what an engine of its own says of *source*."""
    with pytest.raises(aw.CompileError) as caught:
        compiled(place, padded(INVALID) if source is None else source, **options)
    return caught.value


def test_large_module_that_is_not_valid_is_validated_once(
    place: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = refusal(place)
    events.names()

    def validate(*arguments: object) -> None:
        raise AssertionError("it is validated")

    monkeypatch.setattr(compiling, "is_valid", validate)
    second = refusal(place)

    assert events.names() == ["cache_bytes_known", "cache_refused"]
    assert str(second) == str(first)
    assert second.offset == first.offset is not None


@pytest.mark.usefixtures("_no_settling")
def test_file_that_is_not_valid_is_not_read_again(
    place: Path, tmp_path: Path, events: Events
) -> None:
    source = settled(tmp_path / "a.wasm", padded(INVALID))
    first = refusal(place, source)
    events.names()
    second = refusal(place, source)

    assert events.names() == ["cache_file_unchanged", "cache_refused"]
    assert str(second) == str(first)


def test_refusal_is_that_of_one_configuration(place: Path, events: Events) -> None:
    binary = padded(wasm("(module (memory i64 1))"))
    refusal(place, binary, memory64=False)
    compiled(place, binary, tier="optimized")
    events.names()
    refusal(place, binary, memory64=False)

    assert events.names() == ["cache_bytes_known", "cache_refused"]


def test_small_module_that_is_not_valid_is_not_kept(place: Path) -> None:
    refusal(place, INVALID)

    assert not list(place.glob("*.refusal"))


def test_what_is_no_module_at_all_is_refused_again(place: Path, tmp_path: Path) -> None:
    source = settled(tmp_path / "a.wasm", bytes(2 << 20))

    messages = {str(refusal(place, each)) for each in (source, source, bytes(2 << 20))}

    assert len(messages) == 1


def test_shared_directory_keeps_refusals(open_place: Path, events: Events) -> None:
    refusal(open_place)
    events.names()
    refusal(open_place)

    assert events.names() == ["cache_refused"]


def test_tampered_refusal_is_deleted(place: Path, events: Events) -> None:
    first = refusal(place)
    _flip(only(place, "refusal"), 60)
    events.names()
    second = refusal(place)

    assert events.names() == ["cache_bytes_known", "cache_rejected"]
    assert str(second) == str(first)
    refusal(place)
    assert events.names() == ["cache_bytes_known", "cache_refused"]


@pytest.mark.usefixtures("_no_settling")
def test_shared_directory_knows_no_files(open_place: Path, tmp_path: Path) -> None:
    """What a file contains is believed because the copy held still: there, anybody can change it."""
    compiled(open_place, settled(tmp_path / "a.wasm", wasm(ANSWER)))

    assert {path.suffix for path in open_place.iterdir()} == {".entry", ".code"}


@pytest.mark.usefixtures("_no_settling")
def test_copy_larger_than_the_cache_is_not_kept(place: Path, tmp_path: Path) -> None:
    source = settled(tmp_path / "a.wasm", wasm(ANSWER))
    compiled(place, source, cache_bytes=10)

    assert not list(place.glob("*.file"))


def test_file_that_has_just_changed_is_not_remembered(place: Path, tmp_path: Path) -> None:
    compiled(place, settled(tmp_path / "a.wasm", wasm(ANSWER)))

    assert not list(place.glob("*.file"))


# whom it believes: the directory


@pytest.mark.usefixtures("_no_settling")
def test_everything_is_readable_for_us_only(place: Path, tmp_path: Path) -> None:
    source = settled(tmp_path / "a.wasm", wasm(ANSWER))
    old = os.umask(0)
    try:
        compiled(place / "deep" / "er", source)
    finally:
        os.umask(old)
    paths = [place, *place.rglob("*")]

    assert len(paths) == 8
    assert {stat.S_IMODE(each.stat().st_mode) for each in paths if each.is_dir()} == {0o700}
    assert {stat.S_IMODE(each.stat().st_mode) for each in paths if each.is_file()} == {0o600}


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o500, 0o1700])
def test_directory_with_a_wrong_mode_is_not_used(place: Path, events: Events, mode: int) -> None:
    place.mkdir(0o700)
    place.chmod(mode)
    module = compiled(place)

    assert answer(module) == 41
    assert events.reasons() == [f"{place} has mode {mode:04o}, expected 0700"]
    assert events.names() == ["cache_unusable"]
    assert list(place.iterdir()) == []
    assert stat.S_IMODE(place.stat().st_mode) == mode


def test_symbolic_link_is_not_used(place: Path, tmp_path: Path, events: Events) -> None:
    target = tmp_path / "target"
    target.mkdir(0o700)
    place.symlink_to(target)
    compiled(place)

    assert "symbolic link" in events.reasons()[0]
    assert events.names() == ["cache_unusable"]
    assert list(target.iterdir()) == []


def test_plain_file_is_not_used(place: Path, events: Events) -> None:
    place.write_bytes(b"")
    compiled(place)

    assert "not a directory" in events.reasons()[0]


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_directory_of_somebody_else_is_not_used(place: Path, events: Events) -> None:
    place.mkdir(0o700)
    os.chown(place, 12345, -1)
    compiled(place)

    assert "belongs to user 12345" in events.reasons()[0]
    assert list(place.iterdir()) == []


def test_default_directory_that_others_can_write_is_not_used(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only who names a directory can mean one that is shared."""
    monkeypatch.delenv("ASYNCWASM_CACHE_DIR")
    shared = tmp_path / "user" / "asyncwasm"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    compiled("default")

    assert events.names() == ["cache_unusable"]


# whom it believes: the directory that stays open


def _modules(place: Path) -> Iterator[aw.Module]:
    """Yield modules that one engine compiles, or finds."""
    engine = aw.Engine(aw.EngineConfig(cache=place))
    while True:
        module = aw.Module(wasm(ANSWER), engine=engine)
        yield module
        del module  # so that the cache is asked again


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda place: place.chmod(0o755), "mode 0755"),
        (lambda place: _linked(place), "symbolic link"),
        (lambda place: _moved(place).joinpath("x").mkdir(0o750), None),
        (lambda place: (place / "key").chmod(0o644), "the key has mode 0644"),
    ],
    ids=["mode", "link", "another", "key"],
)
def test_directory_is_checked_each_time_it_is_used(
    place: Path, events: Events, change: Callable[[Path], object], reason: str | None
) -> None:
    modules = _modules(place)
    next(modules)
    change(place)
    events.names()
    assert answer(next(modules)) == 41
    reasons, names = events.reasons(), events.names()

    if reason is None:
        assert names == ["cache_stored"]
        assert sorted(each.suffix for each in place.iterdir()) == ["", "", ".code", ".entry"]
    else:
        assert reason in reasons[0]
        assert names == ["cache_unusable"]


def _moved(path: Path) -> Path:
    """Move *path* away, and put an empty directory there."""
    path.rename(path.with_name("moved"))
    path.mkdir(0o700)
    return path


def test_directory_that_was_exchanged_is_not_read(place: Path, events: Events) -> None:
    """What its name meant before is still open."""
    modules = _modules(place)
    next(modules)
    assert answer(next(modules)) == 41
    _moved(place)
    assert answer(next(modules)) == 41
    assert answer(next(modules)) == 41

    assert events.names() == ["cache_stored", "cache_hit", "cache_stored", "cache_hit"]


def test_directory_that_was_removed_is_made_again(place: Path, events: Events) -> None:
    modules = _modules(place)
    next(modules)
    shutil.rmtree(place)
    next(modules)

    assert events.names() == ["cache_stored", "cache_stored"]
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_key_that_was_exchanged_is_read_again(place: Path, events: Events) -> None:
    modules = _modules(place)
    next(modules)
    (place / "key").unlink()
    next(modules)
    compiled(place)

    assert events.names() == ["cache_stored", "cache_stored", "cache_hit"]


def test_directory_that_becomes_shared_is_used_like_one(place: Path, events: Events) -> None:
    modules = _modules(place)
    next(modules)
    place.chmod(0o777)
    next(modules)
    next(modules)

    assert events.names() == ["cache_stored", "cache_stored", "cache_hit"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are not listed here")
def test_directory_stays_open_as_long_as_the_engine(place: Path) -> None:
    def opened() -> int:
        links = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]
        return sum(os.path.lexists(each) and os.readlink(each) == str(place) for each in links)

    with aw.Engine(aw.EngineConfig(cache=place)) as engine:
        for text in (ANSWER, ADD):
            aw.Module(wasm(text), engine=engine)
        inside = opened()
    after = opened()
    dropped = aw.Engine(aw.EngineConfig(cache=place))
    aw.Module(wasm(ANSWER), engine=dropped)
    del dropped
    gc.collect()

    assert (inside, after, opened()) == (1, 0, 0)


# whom it believes: the key


def _replaced(path: Path, make: Callable[[], object]) -> None:
    path.unlink()
    make()


def _linked(path: Path) -> None:
    """Move *path* away, and leave a symbolic link."""
    moved = path.with_name("moved")
    path.rename(moved)
    path.symlink_to(moved)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda key: key.chmod(0o644), "mode 0644"),
        (lambda key: key.write_bytes(b"short"), "5 bytes"),
        (lambda key: _replaced(key, lambda: key.symlink_to("/dev/zero")), "symbolic link"),
        (lambda key: _replaced(key, key.mkdir), "plain file"),
        (lambda key: _replaced(key, lambda: os.mkfifo(key, 0o600)), "plain file"),
    ],
    ids=["mode", "size", "link", "directory", "fifo"],
)
def test_key_that_does_not_check_out_is_not_used(
    place: Path, events: Events, damage: Callable[[Path], object], reason: str
) -> None:
    compiled(place)
    damage(place / "key")
    events.names()
    events.all.clear()
    module = compiled(place)

    assert answer(module) == 41
    assert reason in events.reasons()[0]
    assert events.names() == ["cache_unusable"]


def test_entry_made_with_another_key_is_not_even_looked_for(place: Path, events: Events) -> None:
    compiled(place)
    (place / "key").unlink()
    events.names()
    compiled(place)

    assert events.names() == ["cache_stored"]


# whom it believes: entries


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _times_kept(path: Path, change: Callable[[Path], object]) -> None:
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _swapped(path: Path) -> None:
    """Put a copy in the place of *path*."""
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    os.replace(copy, path)


def _edited(place: Path) -> None:
    entry = only(place, "entry")
    header = entry.read_bytes()
    edited = header.replace(b"holds_references=False", b"holds_references=True")
    assert edited != header
    entry.write_bytes(edited)


TAMPERING: dict[str, Callable[[Path], object]] = {
    "header": lambda place: _flip(only(place, "entry"), 100),
    "mac": lambda place: _flip(only(place, "entry"), 0),
    "header edited": _edited,
    "empty header": lambda place: only(place, "entry").write_bytes(b""),
    "huge header": lambda place: only(place, "entry").write_bytes(bytes(1 << 17)),
    "header is a link": lambda place: _linked(only(place, "entry")),
    "code": lambda place: _flip(only(place, "code"), 5000),
    "code, times put back": lambda place: _times_kept(
        only(place, "code"), lambda path: _flip(path, 5000)
    ),
    "truncated code": lambda place: os.truncate(only(place, "code"), 1000),
    "longer code": lambda place: _append(only(place, "code")),
    "missing code": lambda place: only(place, "code").unlink(),
    "code is a link": lambda place: _linked(only(place, "code")),
}


@pytest.mark.parametrize("tamper", TAMPERING.values(), ids=TAMPERING.keys())
def test_tampered_entry_is_deleted_and_compiled_again(
    place: Path, events: Events, tamper: Callable[[Path], object]
) -> None:
    compiled(place)
    tamper(place)
    events.names()
    module = compiled(place)

    assert answer(module) == 41
    assert events.names() == ["cache_rejected", "cache_stored"]
    compiled(place)
    assert events.names() == ["cache_hit"]


def test_copied_code_is_not_believed_in_a_directory_of_our_own(place: Path, events: Events) -> None:
    """There, only the very file that was written is."""
    compiled(place)
    _swapped(only(place, "code"))
    events.names()
    compiled(place)

    assert events.names() == ["cache_rejected", "cache_stored"]


@pytest.mark.parametrize("tamper", TAMPERING.values(), ids=TAMPERING.keys())
def test_tampered_entry_in_a_shared_directory_is_deleted_and_compiled_again(
    open_place: Path, events: Events, tamper: Callable[[Path], object]
) -> None:
    compiled(open_place)
    tamper(open_place)
    events.names()
    module = compiled(open_place)

    assert answer(module) == 41
    assert events.names() == ["cache_rejected", "cache_stored"]


def test_shared_directory_believes_content_and_not_files(open_place: Path, events: Events) -> None:
    compiled(open_place)
    _swapped(only(open_place, "code"))
    events.names()
    module = compiled(open_place)

    assert events.names() == ["cache_hit"]
    assert answer(module) == 41


def test_key_of_a_shared_directory_is_elsewhere(open_place: Path, tmp_path: Path) -> None:
    compiled(open_place)
    key = tmp_path / "user" / "asyncwasm" / "key"

    assert not (open_place / "key").exists()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.stat().st_size == 32


def test_shared_directory_is_not_used_without_a_private_one(
    open_place: Path, tmp_path: Path, events: Events
) -> None:
    private = tmp_path / "user" / "asyncwasm"
    private.mkdir(parents=True)
    private.chmod(0o755)
    compiled(open_place)

    assert events.names() == ["cache_unusable"]
    assert list(open_place.iterdir()) == []


def test_entry_cannot_be_passed_off_as_another(place: Path, events: Events) -> None:
    compiled(place)
    first = only(place, "entry")
    content = first.read_bytes()
    compiled(place, wasm(ADD))
    (second,) = set(place.glob("*.entry")) - {first}
    second.write_bytes(content)
    events.names()
    compiled(place, wasm(ADD))

    assert events.names() == ["cache_rejected", "cache_stored"]


@pytest.mark.usefixtures("_no_settling")
def test_tampered_file_index_is_deleted(place: Path, tmp_path: Path, events: Events) -> None:
    source = settled(tmp_path / "a.wasm", wasm(ANSWER))
    compiled(place, source)
    _flip(only(place, "file"), 60)
    events.names()
    compiled(place, source)

    assert events.names() == ["cache_rejected", "cache_hit"]


TAMPERING_WITH_THE_COPY: dict[str, Callable[[Path], object]] = {
    "copy": lambda path: _flip(path, 20),
    "copy, times put back": lambda path: _times_kept(path, lambda path: _flip(path, 20)),
    "truncated copy": lambda path: os.truncate(path, 20),
    "longer copy": _append,
    "missing copy": lambda path: path.unlink(),
    "copy is a link": _linked,
    "copy of the copy": _swapped,
}


@pytest.mark.usefixtures("_no_settling")
@pytest.mark.parametrize(
    "tamper", TAMPERING_WITH_THE_COPY.values(), ids=TAMPERING_WITH_THE_COPY.keys()
)
def test_tampered_copy_is_deleted_and_made_again(
    place: Path, tmp_path: Path, events: Events, tamper: Callable[[Path], object]
) -> None:
    source = settled(tmp_path / "a.wasm", wasm(ANSWER))
    compiled(place, source)
    tamper(only(place, "wasm"))
    events.names()
    module = compiled(place, source)

    assert events.names() == ["cache_rejected", "cache_hit"]
    assert answer(module) == 41
    compiled(place, source)
    assert events.names() == ["cache_file_unchanged", "cache_hit"]


@pytest.mark.parametrize(
    "tamper", TAMPERING_WITH_THE_COPY.values(), ids=TAMPERING_WITH_THE_COPY.keys()
)
def test_tampered_copy_of_bytes_is_deleted_and_made_again(
    place: Path, events: Events, tamper: Callable[[Path], object]
) -> None:
    binary = padded(wasm(ANSWER))
    compiled(place, binary, tier="optimized")
    tamper(only(place, "wasm"))
    events.names()
    module = compiled(place, binary, tier="optimized")

    assert events.names() == ["cache_rejected", "cache_hit"]
    assert answer(module) == 41
    compiled(place, binary, tier="optimized")
    assert events.names() == ["cache_bytes_known", "cache_hit"]


def test_header_of_an_older_format_is_not_believed(place: Path, monkeypatch: Any) -> None:
    compiled(place)
    entry = only(place, "entry").name
    monkeypatch.setattr("asyncwasm._runtime.place.FORMAT", 1)
    opened = caches.Cache(place, 1 << 30, chosen=True).opened()
    with pytest.raises(Rejected, match="another format"):
        opened.read(entry, "entry")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), kind=st.sampled_from(["entry", "file"]))
@pytest.mark.usefixtures("_no_settling")
def test_no_bytes_but_ours_are_believed(
    tmp_path: Path, events: Events, data: st.DataObject, kind: str
) -> None:
    """Invariant: a header that was changed in any way is deleted, and its module is compiled."""
    place = tmp_path / "fuzzed"
    shutil.rmtree(place, ignore_errors=True)
    source = settled(tmp_path / "a.wasm", wasm(ANSWER))
    compiled(place, source)
    header = only(place, kind)
    genuine = header.read_bytes()
    flipped = st.integers(0, 8 * len(genuine) - 1).map(
        lambda bit: bytes(
            byte ^ (1 << bit % 8) * (index == bit // 8) for index, byte in enumerate(genuine)
        )
    )
    cut = st.integers(0, len(genuine) - 1).map(lambda size: genuine[:size])
    longer = st.binary(min_size=1, max_size=64).map(lambda tail: genuine + tail)
    same_mac = st.binary(max_size=200).map(lambda tail: genuine[:32] + tail)
    forged = st.one_of(flipped, cut, longer, same_mac, st.binary(max_size=300))
    header.write_bytes(data.draw(forged.filter(lambda content: content != genuine)))
    events.names()
    module = compiled(place, source)
    names = events.names()

    assert names == (
        ["cache_file_unchanged", "cache_rejected", "cache_stored"]
        if kind == "entry"
        else ["cache_rejected", "cache_hit"]
    )
    assert answer(module) == 41
    compiled(place, source)
    assert events.names() == ["cache_file_unchanged", "cache_hit"]


def test_code_the_engine_refuses_is_deleted(
    place: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of a machine with other instructions, in a home directory on a network."""
    monkeypatch.setattr(compiling, "serialize", lambda module: b"\x7fELF, but not ours")
    compiled(place)
    monkeypatch.undo()
    events.names()
    module = compiled(place)

    assert answer(module) == 41
    assert events.names() == ["cache_rejected", "cache_stored"]


# size


def test_what_was_not_used_for_longest_is_forgotten(place: Path, events: Events) -> None:
    sources = [wasm(ANSWER.replace("41", str(value))) for value in range(4)]
    for age, source in enumerate(sources):
        compiled(place, source)
        newest = max(place.glob("*.entry"), key=lambda path: path.stat().st_ctime_ns)
        os.utime(newest, (time.time() - 1000 + age, time.time() - 1000 + age))
    compiled(place, sources[0])  # used again
    size = sum(each.stat().st_size for each in place.glob("*.code"))
    cache = caches.Cache(place, size * 5 // 8, chosen=True)
    cache.evict()
    events.names()
    for source in (sources[0], sources[3], sources[1]):
        compiled(place, source)

    assert events.names() == ["cache_hit", "cache_hit", "cache_stored"]


def test_eviction_happens_once_a_minute(place: Path, events: Events) -> None:
    compiled(place, wasm(ANSWER.replace("41", "1")))
    limit = only(place, "code").stat().st_size * 3 // 2
    for value in range(2, 5):
        compiled(place, wasm(ANSWER.replace("41", str(value))), cache_bytes=limit)

    assert events.names().count("cache_evicted") == 0
    caches._evicted.clear()
    compiled(place, wasm(ANSWER), cache_bytes=limit)
    assert events.names() == ["cache_stored", "cache_evicted"]
    assert len(list(place.glob("*.entry"))) == 1


def test_code_larger_than_the_cache_is_not_kept(place: Path, events: Events) -> None:
    compiled(place, cache_bytes=1000)

    assert events.names() == []


def test_leftovers_are_removed_and_foreign_files_are_not(place: Path) -> None:
    compiled(place)
    code = only(place, "code")
    name = code.name.split(".")[0]
    old = time.time() - 7200
    leftovers = [place / f"tmp-{'0' * 16}", place / f"{'1' * 64}.{'2' * 16}.code"]
    leftovers += [place / f"{name}.{'3' * 16}.code"]
    fresh = place / f"tmp-{'4' * 16}"
    foreign = place / "notes.txt"
    for path in (*leftovers, fresh, foreign):
        path.write_bytes(b"x")
    for path in (*leftovers, foreign):
        os.utime(path, (old, old))
    caches.Cache(place, 1 << 30, chosen=True).evict()

    assert [path for path in leftovers if path.exists()] == []
    assert fresh.exists()
    assert foreign.exists()
    assert code.exists()
    assert (place / "key").exists()


# errors are nobody's


def test_full_disk_is_no_error_of_the_caller(
    place: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Place, "write", full)

    assert answer(compiled(place)) == 41
    assert events.names() == ["cache_failed"]


def test_no_directory_can_be_made(tmp_path: Path, events: Events) -> None:
    (tmp_path / "file").write_bytes(b"")

    assert answer(compiled(tmp_path / "file" / "cache")) == 41
    assert "cache_failed" in events.names()


@pytest.mark.parametrize("cache", [b"bytes", 1, True])
def test_cache_must_be_a_path(cache: Any) -> None:
    with pytest.raises(TypeError, match="expected a directory for cache"):
        aw.EngineConfig(cache=cache)


# processes


PROCESS = """
    import logging, pathlib, sys
    logging.basicConfig(level="DEBUG", stream=sys.stdout, format="%(message)s")
    import asyncwasm as aw
    for value in range(8):
        module = aw.Module(aw.wat2wasm(
            f'(module (func (export "f") (result i32) (i32.const {value})))'))
        assert aw.Instance(module).exports.f() == value
"""


def _script(environment: dict[str, str | None]) -> list[str]:
    variables = {name: value for name, value in environment.items() if value is not None}
    if "ASYNCWASM_CACHE_DIR" not in variables:
        variables["ASYNCWASM_CACHE_DIR"] = ""
    done = run_script(PROCESS, environment=variables)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.split() if "cache_" in line]


def test_default_engine_keeps_code_in_the_users_directory(tmp_path: Path) -> None:
    user = {"XDG_CACHE_HOME": str(tmp_path / "user")}

    assert _script({**user}) == ["asyncwasm.cache_stored"] * 8
    assert _script({**user}) == ["asyncwasm.cache_hit"] * 8
    assert (tmp_path / "user" / "asyncwasm" / "key").exists()


@pytest.mark.parametrize("named", ["", "/somewhere/else"])
def test_users_directory_is_the_one_that_platformdirs_names(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Linux it is found without importing platformdirs, which takes long."""
    platformdirs = pytest.importorskip("platformdirs")
    monkeypatch.setenv("XDG_CACHE_HOME", named)

    assert user_directory() == platformdirs.user_cache_dir("asyncwasm")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere platformdirs decides")
def test_no_home_no_cache(monkeypatch: pytest.MonkeyPatch, events: Events) -> None:
    monkeypatch.delenv("ASYNCWASM_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")

    assert caches.open_cache(aw.EngineConfig(cache="default")) is None
    assert events.names() == ["cache_unusable"]


def test_variable_switches_the_cache_off(tmp_path: Path) -> None:
    user = {"XDG_CACHE_HOME": str(tmp_path / "user"), "ASYNCWASM_CACHE_DIR": "off"}

    assert _script({**user}) == []
    assert not (tmp_path / "user").exists()


def test_variable_names_another_directory(tmp_path: Path, place: Path) -> None:
    chosen = {"XDG_CACHE_HOME": str(tmp_path / "user"), "ASYNCWASM_CACHE_DIR": str(place)}

    assert _script({**chosen}) == ["asyncwasm.cache_stored"] * 8
    assert _script({**chosen}) == ["asyncwasm.cache_hit"] * 8
    assert not (tmp_path / "user").exists()


def test_processes_share_a_directory(place: Path) -> None:
    """They make the key, store the same entries and evict at the same time."""
    source = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + "\n".join(
        line[4:] for line in PROCESS.splitlines()
    )
    variables = {**os.environ, "ASYNCWASM_CACHE_DIR": str(place)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", source],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [each.communicate(timeout=60)[0] for each in running]

    assert [each.returncode for each in running] == [0, 0, 0], outputs
    assert not any("rejected" in each or "unusable" in each or "failed" in each for each in outputs)
    assert len(list(place.glob("*.entry"))) == 8
    assert not list(place.glob("tmp-*"))

"""Loading many modules: names, completion order, failures that stay apart, and leaving early."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncwasm as aw
from asyncwasm import batch as batch_module
from asyncwasm._runtime import cache as caches
from asyncwasm._runtime.threads import Threads

from .support import ADD, module, run_script, wasm

BACKENDS = ["asyncio", "trio"]
STARTER = '(module (import "host" "f" (func $f)) (start $f))'
TRAPPING = "(module (func $f unreachable) (start $f))"
OTHER = '(module (func (export "other")))'
BAD = b"\0asm\1\0\0\0\xff"


def on_every_backend(function: Callable[[], Awaitable[None]]) -> Callable[[str], None]:
    """Make a test of *function* that runs it on asyncio and on trio."""

    @pytest.mark.parametrize("backend", BACKENDS)
    def test(backend: str) -> None:
        pytest.importorskip(backend)
        anyio.run(function, backend=backend)

    test.__doc__ = function.__doc__
    return test


async def load(sources: Any, *arguments: Any, **options: Any) -> dict[str, aw.Loaded]:
    """Load everything, and return it by name."""
    items = [item async for item in aw.load_many(sources, *arguments, **options)]
    found = {item.name: item for item in items}
    assert len(found) == len(items)
    return found


class Gate:
    """An async import that waits until it is opened, and tells how it ended."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self.open = anyio.Event()
        self.ended: list[str] = []

    async def __call__(self) -> None:
        self.reached.set()
        try:
            await self.open.wait()
        except BaseException:
            self.ended.append("cancelled")
            raise
        self.ended.append("answered")

    @property
    def imports(self) -> dict[str, Any]:
        return {"host": {"f": self}}


# what is a batch


@pytest.mark.parametrize(
    ("sources", "hint"),
    [
        ("plugins", r"pathlib\.Path"),
        (b"\0asm", r"\[source\]"),
        (bytearray(b"\0asm"), r"\[source\]"),
        (memoryview(b"\0asm"), r"\[source\]"),
        (None, "got NoneType$"),
        (7, "got int$"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_wrong_sources_are_refused_at_the_call(sources: Any, hint: str) -> None:
    with pytest.raises(TypeError, match=hint):
        aw.load_many(sources)


def test_module_is_no_batch() -> None:
    with pytest.raises(TypeError, match=r"got Module; for a single source use \[source\]"):
        aw.load_many(module(ADD))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"concurrency": 0}, ValueError),
        ({"concurrency": "2"}, TypeError),
        ({"concurrency": True}, TypeError),
        ({"engine": 1}, TypeError),
    ],
    ids=str,
)
def test_wrong_option_is_refused_at_the_call(
    options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        aw.load_many([], **options)


def test_batch_is_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="load_many"):
        batch_module.Batch()


@on_every_backend
async def test_empty_batch_ends_at_once() -> None:
    batch = aw.load_many([])

    assert [item async for item in batch] == []
    assert [item async for item in batch] == []


@on_every_backend
async def test_iterable_is_named_by_position() -> None:
    found = await load([wasm(ADD), module(ADD), bytearray(wasm(OTHER))])

    assert sorted(found) == ["0", "1", "2"]
    assert all(item.error is None for item in found.values())
    assert found["1"].module is module(ADD)
    instance = found["0"].instance
    assert instance is not None
    assert instance.exports.add(1, 2) == 3


@on_every_backend
async def test_mapping_is_named_by_its_keys() -> None:
    found = await load({"a": wasm(ADD), "b": wasm(OTHER)})

    assert [list(item.instance.exports) for item in found.values() if item.instance] == [
        ["add"] if name == "a" else ["other"] for name in found
    ]
    assert set(found) == {"a", "b"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_directory_is_searched_and_named_by_the_paths_from_there(
    backend: str, tmp_path: Path
) -> None:
    for name in ("b.wasm", "a.wasm", "below/c.wasm", "below/further/d.wasm", "e.wat", "wasm"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(wasm(ADD))
    (tmp_path / "bad.wasm").write_bytes(BAD)
    pytest.importorskip(backend)

    async def main() -> list[aw.Loaded]:
        return [item async for item in aw.load_many(tmp_path, concurrency=1)]

    items = anyio.run(main, backend=backend)
    assert [item.name for item in items] == [
        "a.wasm",
        "b.wasm",
        "bad.wasm",
        "below/c.wasm",
        "below/further/d.wasm",
    ]
    assert [item.name for item in items if item.error] == ["bad.wasm"]


async def test_path_of_a_file_is_a_batch_of_one(tmp_path: Path) -> None:
    (tmp_path / "a.wasm").write_bytes(wasm(ADD))

    assert list(await load(tmp_path / "a.wasm")) == ["a.wasm"]


async def test_iterable_of_paths_is_named_by_them(tmp_path: Path) -> None:
    (tmp_path / "a.wasm").write_bytes(wasm(ADD))
    found = await load([tmp_path / "a.wasm", tmp_path / "none.wasm", wasm(ADD)])

    assert set(found) == {str(tmp_path / "a.wasm"), str(tmp_path / "none.wasm"), "2"}
    assert isinstance(found[str(tmp_path / "none.wasm")].error, FileNotFoundError)


@on_every_backend
async def test_missing_directory_is_an_error_of_the_batch() -> None:
    batch = aw.load_many(Path("/no/such/directory"))

    with pytest.raises(FileNotFoundError):
        await anext(batch)
    with pytest.raises(StopAsyncIteration):
        await anext(batch)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is unreadable to root")
async def test_unreadable_directory_is_an_error_of_the_batch(
    tmp_path: Path,
) -> None:  # pragma: no cover  # not as root
    (tmp_path / "secret").mkdir(mode=0)

    with pytest.raises(PermissionError):
        await load(tmp_path)


async def test_directory_that_cannot_be_listed_is_an_error_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk(root: Path, *, onerror: Callable[[OSError], None]) -> Iterator[Any]:
        onerror(PermissionError("secret"))
        yield  # pragma: no cover

    monkeypatch.setattr(os, "walk", walk)

    with pytest.raises(PermissionError, match="secret"):
        await load(tmp_path)


async def test_sequences_and_mappings_are_read_at_the_call() -> None:
    listed, mapped = [wasm(ADD)], {"a": wasm(ADD)}
    batches = aw.load_many(listed), aw.load_many(mapped)
    listed.append(wasm(OTHER))
    mapped["b"] = wasm(OTHER)

    assert [[item.name async for item in batch] for batch in batches] == [["0"], ["a"]]


@on_every_backend
async def test_other_iterables_are_gone_through_as_needed() -> None:
    taken: list[int] = []

    def sources() -> Iterator[bytes]:
        for index in range(10):
            taken.append(index)
            yield wasm(ADD)

    async with aclosing(aw.load_many(sources(), concurrency=2)) as batch:
        assert taken == []
        await anext(batch)
        await anyio.wait_all_tasks_blocked()

        assert len(taken) <= 5


@on_every_backend
async def test_what_the_iterable_raises_ends_the_batch() -> None:
    def sources() -> Iterator[bytes]:
        yield wasm(ADD)
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await load(sources())


# items


@on_every_backend
async def test_failed_item_has_its_error_and_nothing_else() -> None:
    def refuse() -> None:
        raise ValueError("no")

    sources = {
        "bad": BAD,
        "text": "(module)",
        "number": 7,
        "needs": wasm('(module (import "m" "f" (func)))'),
        "traps": wasm(TRAPPING),
        "raises": wasm(STARTER),
        "good": wasm(ADD),
    }
    found = await load(sources, {"host": {"f": refuse}, "m": {}})

    assert {name: type(item.error) for name, item in found.items()} == {
        "bad": aw.CompileError,
        "text": TypeError,
        "number": TypeError,
        "needs": aw.LinkError,
        "traps": aw.Trap,
        "raises": ValueError,
        "good": type(None),
    }
    for name, item in found.items():
        assert (item.module is None) == (item.instance is None) == (name != "good")
        assert item.seconds >= 0
        assert item.cached is False


@on_every_backend
async def test_without_instantiation_there_are_modules_only() -> None:
    found = await load({"a": wasm(STARTER), "b": BAD}, instantiate=False)

    assert found["a"].error is None
    assert isinstance(found["a"].module, aw.Module)
    assert found["a"].instance is None
    assert isinstance(found["b"].error, aw.CompileError)


@on_every_backend
async def test_modules_are_compiled_for_the_engine() -> None:
    with aw.Engine() as engine:
        found = await load([wasm(ADD)], engine=engine)

        assert found["0"].module is not None
        assert found["0"].module.engine is engine


async def test_closed_engine_fails_each_item() -> None:
    engine = aw.Engine()
    engine.close()
    found = await load([wasm(ADD), wasm(OTHER)], engine=engine)

    assert [type(item.error) for item in found.values()] == [anyio.ClosedResourceError] * 2


@on_every_backend
async def test_imports_that_live_in_a_store_bring_the_instances_together() -> None:
    text = '(module (import "m" "memory" (memory 1)))'
    found = await load([wasm(text)] * 3, {"m": {"memory": aw.Memory(1)}})

    assert len({item.instance and item.instance.store for item in found.values()}) == 1


# files that the cache knows


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, aw.EngineConfig]:
    """A directory with modules that another engine has compiled, and what finds them."""
    monkeypatch.setattr(caches, "_SETTLED_NS", 0)
    config = aw.EngineConfig(cache=tmp_path / "cache", compile_threads=1)
    directory = tmp_path / "modules"
    directory.mkdir()
    with aw.Engine(config) as engine:
        for name, text in (("add", ADD), ("other", OTHER), ("starter", STARTER)):
            (directory / f"{name}.wasm").write_bytes(wasm(text))
            aw.Module(directory / f"{name}.wasm", engine=engine)
    return directory, config


async def test_known_files_are_not_compiled(known: tuple[Path, aw.EngineConfig]) -> None:
    directory, config = known
    with aw.Engine(config) as engine:
        found = await load(directory, instantiate=False, engine=engine)

    assert [item.cached for item in found.values()] == [True] * 3
    modules = [item.module for item in found.values() if item.module is not None]
    assert [len(each.exports()) for each in modules] == [1, 1, 0]


async def test_known_files_are_instantiated(known: tuple[Path, aw.EngineConfig]) -> None:
    directory, config = known
    reached: list[str] = []
    with aw.Engine(config) as engine:
        found = await load(directory, {"host": {"f": lambda: reached.append("f")}}, engine=engine)

    assert {item.instance is not None and item.cached for item in found.values()} == {True}
    assert reached == ["f"]


@contextmanager
def busy(threads: Threads) -> Iterator[None]:
    """Keep the only one of *threads* from doing anything else."""
    begun, release = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        release.wait()

    threads.submit(hold)
    assert begun.wait(10)
    try:
        yield
    finally:
        release.set()


async def test_closed_engine_fails_each_file(known: tuple[Path, aw.EngineConfig]) -> None:
    directory, config = known
    engine = aw.Engine(config)
    engine.close()
    found = await load(directory, engine=engine)

    assert [type(item.error) for item in found.values()] == [anyio.ClosedResourceError] * 3


async def test_known_files_wait_for_no_compilation(known: tuple[Path, aw.EngineConfig]) -> None:
    directory, config = known
    with aw.Engine(config) as engine, busy(engine._core.compilers):
        found = await load(directory, instantiate=False, engine=engine)

    assert len(found) == 3


async def test_files_that_are_not_known_are_compiled_beside_the_others(
    known: tuple[Path, aw.EngineConfig],
) -> None:
    directory, config = known
    (directory / "bad.wasm").write_bytes(BAD)
    (directory / "new.wasm").write_bytes(wasm(TRAPPING))
    paths = [*sorted(directory.iterdir()), directory / "missing.wasm"]
    sources = {each.stem: each for each in paths} | {"bytes": wasm(ADD), "number": 5}
    with aw.Engine(config) as engine:
        found = await load(sources, instantiate=False, engine=engine, concurrency=20)

    assert {name for name, item in found.items() if item.cached} == {
        "add",
        "other",
        "starter",
        "bytes",
    }
    assert found["new"].error is None
    assert isinstance(found["bad"].error, aw.CompileError)
    assert isinstance(found["missing"].error, FileNotFoundError)
    assert isinstance(found["number"].error, TypeError)


async def test_known_files_of_the_same_bytes_are_one_module(
    known: tuple[Path, aw.EngineConfig],
) -> None:
    directory, config = known
    with aw.Engine(config) as engine:
        file = directory / "add.wasm"
        found = await load({"a": file, "b": file, "c": wasm(ADD)}, engine=engine)

    assert len({item.module._artifact for item in found.values() if item.module}) == 1


async def test_leaving_while_files_are_looked_for_drops_the_request(
    known: tuple[Path, aw.EngineConfig],
) -> None:
    directory, config = known
    with aw.Engine(config) as engine, busy(engine._core.finder):
        batch = aw.load_many(list(directory.iterdir()), engine=engine)
        taking = asyncio.create_task(batch.__anext__())
        await anyio.wait_all_tasks_blocked()
        before = engine._core.finder.waiting
        taking.cancel()
        await asyncio.wait([taking])

        assert (before, engine._core.finder.waiting, taking.cancelled()) == (1, 0, True)


# order, concurrency


@on_every_backend
async def test_items_come_as_they_finish() -> None:
    """A module whose start function waits does not hold up the others."""
    gate = Gate()
    order: list[str] = []
    async for item in aw.load_many(
        {"slow": wasm(STARTER), "a": wasm(ADD), "b": wasm(ADD)}, gate.imports
    ):
        order.append(item.name)
        if len(order) == 2:
            gate.open.set()

    assert sorted(order[:2]) == ["a", "b"]
    assert order[2] == "slow"


@on_every_backend
async def test_guest_that_spins_does_not_hold_up_the_others() -> None:
    spin = "(module (func $f (loop (br 0))) (start $f))"
    async with aclosing(aw.load_many([wasm(spin), wasm(ADD)])) as batch:
        assert (await anext(batch)).name == "1"


@on_every_backend
async def test_no_more_than_so_many_are_loaded_at_a_time() -> None:
    loading = most = 0

    async def wait() -> None:
        nonlocal loading, most
        loading += 1
        most = max(most, loading)
        for _ in range(1000):  # until as many as may have met
            if most >= 3:
                break
            await anyio.sleep(0.001)
        loading -= 1

    found = await load([wasm(STARTER)] * 12, {"host": {"f": wait}}, concurrency=3)

    assert len(found) == 12
    assert most == 3


@on_every_backend
async def test_loading_does_not_run_far_ahead() -> None:
    """Whoever takes items slowly must not find all of them in memory."""
    started = 0

    def count() -> None:
        nonlocal started
        started += 1

    batch = aw.load_many([wasm(STARTER)] * 20, {"host": {"f": count}}, concurrency=2)
    async with aclosing(batch):
        await anext(batch)
        for _ in range(20):
            await anyio.wait_all_tasks_blocked()

        assert started <= 5


@on_every_backend
async def test_several_tasks_can_take_from_one_batch() -> None:
    names: list[str] = []
    batch = aw.load_many([wasm(ADD)] * 20)

    async def take() -> None:
        async for item in batch:
            names.append(item.name)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(take)

    assert sorted(names, key=int) == [str(index) for index in range(20)]


# the consumer's own business


@on_every_backend
async def test_consumer_can_open_and_close_scopes_between_items() -> None:
    """They do not nest with anything of the batch's."""
    batch = aw.load_many([wasm(ADD)] * 4)
    with anyio.CancelScope():
        await anext(batch)  # begins
    async with anyio.create_task_group() as group:
        await anext(batch)
        group.cancel_scope.cancel()
    with anyio.fail_after(60):
        await anext(batch)
    await anext(batch)

    with pytest.raises(StopAsyncIteration):
        await anext(batch)


@on_every_backend
async def test_imports_run_in_the_context_of_the_first_request() -> None:
    seen: list[str] = []
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("set")
    await load([wasm(STARTER)], {"host": {"f": lambda: seen.append(variable.get())}})

    assert seen == ["set"]


@on_every_backend
async def test_batch_can_be_taken_from_in_different_tasks() -> None:
    batch = aw.load_many([wasm(ADD)] * 3)
    await anext(batch)
    async with anyio.create_task_group() as group:
        group.start_soon(anext, batch)
    await batch.aclose()


# leaving early


@on_every_backend
async def test_leaving_with_aclosing_has_stopped_the_rest() -> None:
    gate = Gate()
    async with aclosing(
        aw.load_many({"slow": wasm(STARTER), "fast": wasm(ADD)}, gate.imports)
    ) as batch:
        async for item in batch:
            assert item.name == "fast"
            await gate.reached.wait()
            break

    assert gate.ended == ["cancelled"]
    with pytest.raises(StopAsyncIteration):
        await anext(batch)


@on_every_backend
async def test_leaving_the_loop_stops_the_rest() -> None:
    """Without anything else: the iterator is dropped."""
    gate = Gate()
    ended = anyio.Event()

    async def wait() -> None:
        try:
            await gate()
        finally:
            ended.set()

    async for item in aw.load_many([wasm(STARTER), wasm(ADD)], {"host": {"f": wait}}):
        assert item.name == "1"
        await gate.reached.wait()
        break
    await ended.wait()

    assert gate.ended == ["cancelled"]


@on_every_backend
async def test_error_in_the_loop_stops_the_rest() -> None:
    gate = Gate()
    batch = aw.load_many([wasm(STARTER), wasm(ADD)], gate.imports)
    with pytest.raises(KeyError):  # noqa: PT012
        async with aclosing(batch):
            async for _ in batch:
                await gate.reached.wait()
                raise KeyError

    assert gate.ended == ["cancelled"]


@on_every_backend
async def test_cancellation_while_waiting_for_an_item_has_stopped_the_rest() -> None:
    gate = Gate()
    batch = aw.load_many([wasm(STARTER)], gate.imports)
    async with anyio.create_task_group() as group:
        group.start_soon(anext, batch)
        await gate.reached.wait()
        group.cancel_scope.cancel()

    assert gate.ended == ["cancelled"]
    with pytest.raises(StopAsyncIteration):
        await anext(batch)


@on_every_backend
async def test_cancellation_on_entry_begins_nothing() -> None:
    taken: list[int] = []

    def sources() -> Iterator[bytes]:
        taken.append(1)
        yield wasm(ADD)

    batch = aw.load_many(sources())
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anext(batch)

    assert scope.cancelled_caught
    assert taken == []


@on_every_backend
async def test_instances_that_nobody_took_are_closed() -> None:
    stores: list[weakref.ref[Any]] = []
    imports = {"host": {"f": lambda: stores.append(weakref.ref(_current_store()))}}
    async with aclosing(aw.load_many([wasm(STARTER)] * 8, imports, concurrency=4)) as batch:
        kept = (await anext(batch)).instance
        await anyio.wait_all_tasks_blocked()
    assert kept is not None
    gc.collect()

    alive = [store() for store in stores if store() is not None]
    assert alive == [kept._store]
    assert not kept.store.closed


def _current_store() -> object:
    from asyncwasm._runtime.hostcall import current

    call = current.get()
    assert call is not None
    return call.operation.store


@on_every_backend
async def test_batch_leaves_no_store() -> None:
    found = await load([wasm(ADD), wasm(TRAPPING), BAD])
    stores = [
        weakref.ref(item.instance._store) for item in found.values() if item.instance is not None
    ]
    found.clear()
    gc.collect()

    assert [store() for store in stores] == [None]


@on_every_backend
async def test_batch_that_was_never_asked_needs_no_closing() -> None:
    batch = aw.load_many([wasm(ADD)])
    await batch.aclose()

    assert [item async for item in batch] == []
    aw.load_many([wasm(ADD)])


@on_every_backend
async def test_closing_twice_is_fine() -> None:
    batch = aw.load_many([wasm(ADD)] * 3, instantiate=False)
    await anext(batch)
    await batch.aclose()
    await batch.aclose()


def test_closing_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import can go on after it was cancelled, as long as it likes."""
    monkeypatch.setattr(batch_module, "_CLOSING_SECONDS", 0.01)

    async def main() -> None:
        reached, released = anyio.Event(), anyio.Event()

        async def stubborn() -> None:
            reached.set()
            with anyio.CancelScope(shield=True):
                await released.wait()

        batch = aw.load_many([wasm(STARTER), wasm(ADD)], {"host": {"f": stubborn}})
        await anext(batch)
        await reached.wait()
        await batch.aclose()
        released.set()
        await anyio.wait_all_tasks_blocked()

    anyio.run(main)


# what is no ordinary error


class Fatal(BaseException):
    """What no guest catches."""


@on_every_backend
async def test_base_exception_of_an_import_reaches_the_consumer() -> None:
    fatal = Fatal()

    def fail() -> None:
        raise fatal

    with pytest.raises(Fatal) as caught:
        await load([wasm(STARTER), wasm(ADD)], {"host": {"f": fail}})

    assert caught.value is fatal


async def test_cancellation_from_elsewhere_is_an_error_of_the_item() -> None:
    """In asyncio an import can await a future that somebody cancels."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel()
    imports = {"host": {"f": aw.Suspending(lambda: future)}}
    found = await load([wasm(STARTER), wasm(ADD)], imports)

    assert isinstance(found["0"].error, asyncio.CancelledError)
    assert found["1"].error is None


async def test_cancellation_from_the_iterable_ends_the_batch() -> None:
    def sources() -> Iterator[bytes]:
        yield wasm(ADD)
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await load(sources())


def test_loop_that_ends_takes_the_batch_with_it() -> None:
    """The rest is cancelled; dropping the iterator later has nothing left to do."""
    done = run_script("""
        import asyncio, gc
        import anyio
        import asyncwasm as aw

        STARTER = aw.wat2wasm('(module (import "host" "f" (func $f)) (start $f))')
        ended = []

        async def wait():
            reached.set()
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(True)

        async def main():
            global reached
            reached = anyio.Event()
            batch = aw.load_many([STARTER, aw.wat2wasm("(module)")], {"host": {"f": wait}})
            await anext(batch)
            await reached.wait()
            return batch

        for backend in ("asyncio", "trio"):
            batch = anyio.run(main, backend=backend)
            del batch
            gc.collect()
        print(ended)
    """)

    assert (done.stdout, done.stderr) == ("[True, True]\n", "")


@pytest.mark.every_loop
async def test_batch_works_on_every_loop() -> None:
    gate = Gate()
    async with aclosing(aw.load_many([wasm(STARTER), wasm(ADD), BAD], gate.imports)) as batch:
        assert {(await anext(batch)).name, (await anext(batch)).name} == {"1", "2"}
        await gate.reached.wait()

    assert gate.ended == ["cancelled"]


def test_mapping_protocol_is_enough() -> None:
    class Sources(Mapping[str, bytes]):
        def __getitem__(self, name: str) -> bytes:
            return wasm(ADD)

        def __iter__(self) -> Iterator[str]:
            return iter(["x"])

        def __len__(self) -> int:
            return 1

    assert list(anyio.run(load, Sources())) == ["x"]

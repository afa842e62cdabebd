"""The guard on synchronous work: when it acts, how, and where it points."""

from __future__ import annotations

import asyncio
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

import asyncwasm as aw

from .jsapi.helpers import section
from .support import run_script, wasm

EMPTY = wasm("(module)")
LIMIT = 65_536

# Traps at once if it is ever instantiated.
EXPLODES = wasm("(module (func $start unreachable) (start $start))")


def padded(size: int, binary: bytes = EMPTY) -> bytes:
    """Return *binary* with a custom section that makes it *size* bytes long."""
    for content in range(size - len(binary) - 8, size - len(binary)):
        whole = binary + section(0, b"\x01x" + bytes(max(content - 2, 0)))
        if len(whole) == size:
            return whole
    raise AssertionError(f"no section makes it {size} bytes")


def here() -> int:
    """Return the line of the caller."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


@pytest.fixture
def large() -> aw.Module:
    """A module above the limit."""
    aw.configure_sync_guard(action="ignore")
    module = aw.Module(padded(LIMIT + 1))
    aw.configure_sync_guard()
    return module


@pytest.fixture
def slow_call(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """An exported function whose calls all count as slow."""
    monkeypatch.setattr("asyncwasm._objects.guard.BLOCKING_SECONDS", -1.0)
    exports = aw.Instance(aw.Module(wasm('(module (func (export "f")))'))).exports
    call: Callable[[], Any] = exports.f
    return call


# large modules


def test_module_of_the_limit_is_accepted() -> None:
    aw.Instance(aw.Module(padded(LIMIT)))


def test_module_above_the_limit_warns() -> None:
    with pytest.warns(aw.LargeModuleWarning) as caught:
        aw.Module(padded(LIMIT + 1))

    assert len(caught) == 1
    text = str(caught[0].message)
    assert "65,537" in text
    assert "65,536" in text
    assert "await asyncwasm.compile(" in text


def test_instance_of_a_module_above_the_limit_warns(large: aw.Module) -> None:
    with pytest.warns(aw.LargeModuleWarning) as caught:
        aw.Instance(large)

    assert len(caught) == 1
    assert "await asyncwasm.instantiate(" in str(caught[0].message)


def test_warning_is_a_user_warning() -> None:
    assert issubclass(aw.LargeModuleWarning, UserWarning)
    assert issubclass(aw.BlockingCallWarning, UserWarning)


def test_warning_points_at_the_line_of_module() -> None:
    with pytest.warns(aw.LargeModuleWarning) as caught:
        line, _ = here(), aw.Module(padded(LIMIT + 1))

    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


def test_warning_points_at_the_line_of_instance(large: aw.Module) -> None:
    with pytest.warns(aw.LargeModuleWarning) as caught:
        line, _ = here(), aw.Instance(large)

    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


class Subclass(aw.Instance):
    """An instance with something of its own."""


class SubclassWithConstructor(aw.Instance):
    """An instance with a constructor of its own, one frame further from its user."""

    def __init__(self, module: aw.Module) -> None:
        super().__init__(module)


def test_subclass_warns_at_the_line_that_makes_it(large: aw.Module) -> None:
    with pytest.warns(aw.LargeModuleWarning) as caught:
        line, _ = here(), Subclass(large)

    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


def test_subclass_warns_where_it_calls_the_constructor(large: aw.Module) -> None:
    lines, first = inspect.getsourcelines(SubclassWithConstructor)
    calling = first + next(i for i, line in enumerate(lines) if "super()" in line)

    with pytest.warns(aw.LargeModuleWarning) as caught:
        SubclassWithConstructor(large)

    assert (caught[0].filename, caught[0].lineno) == (__file__, calling)


class SubclassOfModule(aw.Module):
    """A module with something of its own."""


def test_subclass_of_module_warns() -> None:
    with pytest.warns(aw.LargeModuleWarning) as caught:
        line, module = here(), SubclassOfModule(padded(LIMIT + 1))

    assert (caught[0].filename, caught[0].lineno) == (__file__, line)
    assert isinstance(module, SubclassOfModule)


async def test_awaitable_functions_never_warn(large: aw.Module) -> None:
    source = padded(LIMIT + 1)

    await aw.compile(source)
    await aw.instantiate(source)
    await aw.instantiate(large)


def test_validate_never_warns() -> None:
    assert aw.validate(padded(LIMIT + 1))


def test_unpickled_module_does_not_warn(large: aw.Module) -> None:
    """Whoever unpickles has no choice of another constructor."""
    cls, arguments = large.__reduce__()[:2]

    assert cls(*arguments).byte_length == LIMIT + 1


# the limit and the action


def test_limit_can_be_set() -> None:
    aw.configure_sync_guard(limit_bytes=len(EMPTY) + 100)

    aw.Module(padded(len(EMPTY) + 100))
    with pytest.warns(aw.LargeModuleWarning, match="109 bytes.*108 bytes"):
        aw.Module(padded(len(EMPTY) + 101))


def test_limit_of_zero_warns_of_every_module() -> None:
    aw.configure_sync_guard(limit_bytes=0)

    with pytest.warns(aw.LargeModuleWarning):
        aw.Module(EMPTY)


def test_configuring_without_arguments_restores_the_defaults() -> None:
    aw.configure_sync_guard(limit_bytes=0, action="error")
    aw.configure_sync_guard()

    aw.Module(padded(LIMIT))
    with pytest.warns(aw.LargeModuleWarning):
        aw.Module(padded(LIMIT + 1))


def test_ignore_does_nothing() -> None:
    aw.configure_sync_guard(limit_bytes=0, action="ignore")

    aw.Instance(aw.Module(padded(LIMIT + 1)))


def test_error_is_raised_before_the_bytes_are_looked_at() -> None:
    aw.configure_sync_guard(limit_bytes=10, action="error")

    with pytest.raises(aw.LargeModuleError) as caught:
        aw.Module(b"no module at all")

    assert "16 bytes" in str(caught.value)
    assert isinstance(caught.value, aw.WasmError)


def test_error_is_raised_before_the_imports_are_read() -> None:
    module = aw.Module(wasm('(module (import "m" "f" (func)))'))
    aw.configure_sync_guard(limit_bytes=0, action="error")

    class Watched:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError("an import was read")

    with pytest.raises(aw.LargeModuleError):
        aw.Instance(module, Watched())


def test_error_is_raised_before_the_start_function_runs() -> None:
    module = aw.Module(EXPLODES)
    aw.configure_sync_guard(limit_bytes=0, action="error")

    with pytest.raises(aw.LargeModuleError):
        aw.Instance(module)


def test_error_leaves_a_given_store_untouched() -> None:
    module = aw.Module(EMPTY)
    aw.configure_sync_guard(limit_bytes=0, action="error")

    with aw.Store(limits=aw.Limits(instances=1)) as store:
        with pytest.raises(aw.LargeModuleError):
            aw.Instance(module, store=store)
        aw.configure_sync_guard()

        assert aw.Instance(module, store=store).store is store


def test_warning_turned_into_an_exception_stops_the_constructor() -> None:
    """Warnings are errors in this suite."""
    with pytest.raises(aw.LargeModuleWarning):
        aw.Module(padded(LIMIT + 1))


@pytest.mark.parametrize("limit", [1.5, "1", None, True])
def test_limit_must_be_an_int(limit: Any) -> None:
    with pytest.raises(TypeError, match="limit_bytes"):
        aw.configure_sync_guard(limit_bytes=limit)


@pytest.mark.parametrize(
    ("options", "text"), [({"limit_bytes": -1}, "-1"), ({"action": "loud"}, "'loud'")]
)
def test_value_out_of_range_is_a_value_error(options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        aw.configure_sync_guard(**options)


def test_bad_configuration_changes_nothing() -> None:
    bad: Any = "loud"

    with pytest.raises(ValueError, match="loud"):
        aw.configure_sync_guard(limit_bytes=0, action=bad)

    aw.Module(padded(LIMIT))


# the log


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """What goes to the package's logger from the level of warnings on."""
    handler = _Kept()
    logger = logging.getLogger("asyncwasm")
    logger.addHandler(handler)
    yield handler.records
    logger.removeHandler(handler)


def test_large_module_is_logged_once_for_each_place(logged: list[logging.LogRecord]) -> None:
    """The log is for whoever runs the program: the second line says nothing new."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            aw.Module(padded(LIMIT + 1))
        aw.Module(padded(LIMIT + 2))

    assert len(caught) == 4
    assert [record.msg for record in logged] == ["asyncwasm.large_module"] * 2
    assert [vars(record)["bytes"] for record in logged] == [LIMIT + 1, LIMIT + 2]


def test_each_constructor_on_a_line_is_logged(logged: list[logging.LogRecord]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        aw.Instance(aw.Module(padded(LIMIT + 1)))

    assert [vars(record)["what"] for record in logged] == ["Module()", "Instance()"]


def test_event_is_logged_where_warnings_are_silenced(logged: list[logging.LogRecord]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        line, _ = here(), aw.Module(padded(LIMIT + 1))

    facts = vars(logged[0])
    assert facts["where"] == f"{__file__}:{line}"
    assert (facts["what"], facts["limit_bytes"]) == ("Module()", LIMIT)


# slow calls


async def test_slow_call_in_a_running_loop_warns(slow_call: Callable[[], Any]) -> None:
    with pytest.warns(aw.BlockingCallWarning, match=r"function '0'.*call_async"):
        slow_call()


async def test_blocking_call_warning_points_at_the_call(slow_call: Callable[[], Any]) -> None:
    with pytest.warns(aw.BlockingCallWarning) as caught:
        line, _ = here(), slow_call()

    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


async def test_slow_call_through_an_import_points_at_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asyncwasm._objects.guard.BLOCKING_SECONDS", -1.0)
    text = '(module (import "m" "f" (func $f)) (func (export "g") (call $f)))'
    instance = aw.Instance(aw.Module(wasm(text)), {"m": {"f": lambda: None}})

    with pytest.warns(aw.BlockingCallWarning) as caught:
        line, _ = here(), instance.exports.g()

    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_slow_call_warns_in_every_kind_of_loop(backend: str, slow_call: Callable[[], Any]) -> None:
    if backend == "trio":
        pytest.importorskip("trio")

    async def main() -> None:
        with pytest.warns(aw.BlockingCallWarning):
            slow_call()

    anyio.run(main, backend=backend)


def test_slow_call_without_a_running_loop_does_not_warn(slow_call: Callable[[], Any]) -> None:
    slow_call()


async def test_slow_call_on_another_thread_does_not_warn(slow_call: Callable[[], Any]) -> None:
    """It holds that thread, and no event loop."""
    await asyncio.to_thread(slow_call)


async def test_short_call_does_not_warn() -> None:
    exports = aw.Instance(aw.Module(wasm('(module (func (export "f")))'))).exports

    exports.f()


async def test_awaited_call_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncwasm._objects.guard.BLOCKING_SECONDS", -1.0)
    exports = aw.Instance(aw.Module(wasm('(module (func (export "f")))'))).exports

    await exports.f.call_async()


async def test_ignore_silences_slow_calls_too(slow_call: Callable[[], Any]) -> None:
    aw.configure_sync_guard(action="ignore")

    slow_call()


async def test_error_never_raises_after_the_work(slow_call: Callable[[], Any]) -> None:
    """The result is there; LargeModuleError is for what has not begun."""
    aw.configure_sync_guard(action="error")

    with pytest.warns(aw.BlockingCallWarning):
        slow_call()


async def test_slow_call_is_logged_once_for_each_place(
    slow_call: Callable[[], Any], logged: list[logging.LogRecord]
) -> None:
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        for _ in range(3):
            slow_call()

    assert [record.msg for record in logged] == ["asyncwasm.blocking_call"]
    assert vars(logged[0])["function"] == "0"


@pytest.mark.slow
async def test_call_of_a_tenth_of_a_second_warns() -> None:
    """The real clock: the guest works until the limit is surely reached."""
    text = """(module (func (export "work") (param $n i64)
      (loop (br_if 0 (i64.ne (local.tee $n (i64.sub (local.get $n) (i64.const 1)))
                             (i64.const 0))))))"""
    work = aw.Instance(aw.Module(wasm(text))).exports.work

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exponent = 26
        while not caught and exponent < 40:
            work(1 << exponent)
            exponent += 1

    assert [each.category for each in caught] == [aw.BlockingCallWarning]


# the environment

_REPORT = f"""
    import warnings
    import asyncwasm as aw
    EMPTY = {EMPTY!r}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            aw.Module(EMPTY)
        except aw.LargeModuleError:
            print("error")
    print(*(each.category.__name__ for each in caught))
"""


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("warn:7", "LargeModuleWarning"),
        ("warn:8", ""),
        ("error:7", "error"),
        ("ignore:7", ""),
        ("ignore", ""),
        ("warn", ""),
        ("warn:65_536", ""),
    ],
)
def test_environment_configures_the_guard(setting: str, expected: str) -> None:
    done = run_script(_REPORT, environment={"ASYNCWASM_SYNC_GUARD": setting})

    assert done.stdout.strip() == expected, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("setting", ["loud:1", "warn:many", "warn:-1", ":", "warn:1:2"])
def test_bad_environment_is_a_warning_and_changes_nothing(setting: str) -> None:
    done = run_script(
        f"""
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import asyncwasm as aw
        print(len(caught), caught[0].category.__name__, {setting!r} in str(caught[0].message))
        aw.Module({EMPTY!r})
        """,
        environment={"ASYNCWASM_SYNC_GUARD": setting},
    )

    assert done.stdout == "1 UserWarning True\n", done.stderr


def test_code_wins_over_the_environment() -> None:
    done = run_script(
        f"""
        import asyncwasm as aw
        aw.configure_sync_guard()
        aw.Module({EMPTY!r})
        """,
        environment={"ASYNCWASM_SYNC_GUARD": "error:0"},
    )

    assert done.returncode == 0, done.stderr

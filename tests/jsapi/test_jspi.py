"""JavaScript Promise Integration, that is: awaited calls and imports that are awaited."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Generator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import asyncwasm as aw

from .helpers import Way, exports_of, in_every_way, instance_of, readable

# `g` passes its argument to the import and returns what that answers, plus one.
THROUGH = """(module (import "m" "f" (func $f (param i32) (result i32)))
  (func (export "g") (param i32) (result i32)
    (i32.add (call $f (local.get 0)) (i32.const 1)))
  (func (export "plain") (result i32) (i32.const 5)))"""
CATCH = """(module (import "m" "f" (func $f)) (import "m" "tag" (tag $tag (param externref)))
  (func (export "catch") (result externref)
    (block $caught (result externref)
      (try_table (catch $tag $caught) (call $f)) (return (ref.null extern))))
  (func (export "catch_all") (result i32)
    (block $caught (try_table (catch_all $caught) (call $f)) (return (i32.const 0)))
    (i32.const 1)))"""
# The import tells that the guest runs; then it spins until it is stopped.
SPIN = """(module (import "m" "f" (func $f)) (global $runs (export "runs") (mut i32) (i32.const 0))
  (func (export "spin") (call $f) (loop $l (br $l)))
  (func (export "plain") (result i32) (i32.const 5)))"""


class Gate:
    """An async import that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, value: int) -> int:
        self.reached.set()
        await self.opened.wait()
        return value


async def _double(value: int) -> int:
    await anyio.lowlevel.checkpoint()
    return value * 2


@pytest.mark.parametrize("value", [None, 1, "f", {}, object()], ids=readable)
def test_suspending_wants_a_callable(value: Any) -> None:
    """JP1."""
    with pytest.raises(TypeError):
        aw.Suspending(value)


@pytest.mark.parametrize("value", [None, 1, {}, len, lambda: None, _double], ids=readable)
def test_promising_wants_an_exported_function(value: Any) -> None:
    """JP2."""
    with pytest.raises(TypeError):
        aw.promising(value)


async def test_promising_gives_an_async_callable() -> None:
    """JP2."""
    exports = exports_of(THROUGH, {"m": {"f": _double}})

    answer = aw.promising(exports.g)

    assert callable(answer)
    assert await answer(20) == 41


async def test_promising_and_call_async_are_the_same_thing() -> None:
    """JP2."""
    exports = exports_of(THROUGH, {"m": {"f": _double}})

    assert await aw.promising(exports.g)(3) == await exports.g.call_async(3) == 7


async def test_function_without_results_can_be_promising() -> None:
    """JP2, JP6."""
    exports = exports_of('(module (func (export "f")))')

    assert await aw.promising(exports.f)() is None


class _Callable:
    async def __call__(self, value: int) -> int:
        return await _double(value)

    async def method(self, value: int) -> int:
        return await _double(value)


SUSPENDING: dict[str, Callable[[], Any]] = {
    "async-def": lambda: _double,
    "async-method": lambda: _Callable().method,
    "Suspending-async-def": lambda: aw.Suspending(_double),
    "Suspending-function": lambda: aw.Suspending(lambda value: _double(value)),
    "Suspending-callable": lambda: aw.Suspending(_Callable()),
    "Function-async": lambda: aw.Function(aw.FunctionType(["i32"], ["i32"]), _double),
}


@in_every_way
@pytest.mark.parametrize("make", SUSPENDING.values(), ids=SUSPENDING.keys())
async def test_result_of_a_suspending_import_is_awaited(way: Way, make: Callable[[], Any]) -> None:
    """JP1, RI5."""
    instance = await way(aw.wat2wasm(THROUGH), {"m": {"f": make()}})

    assert await instance.exports.g.call_async(20) == 41


async def test_suspending_import_suspends_in_a_loop() -> None:
    """JP6."""
    values = iter(range(1, 6))

    async def following() -> int:
        await anyio.lowlevel.checkpoint()
        return next(values)

    exports = exports_of(
        """(module (import "m" "f" (func $f (result i32)))
          (func (export "sum") (param $n i32) (result i32) (local $sum i32)
            (loop $l
              (local.set $sum (i32.add (local.get $sum) (call $f)))
              (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
            (local.get $sum)))""",
        {"m": {"f": following}},
    )

    assert await exports.sum.call_async(5) == 15


class _Awaitable:
    def __await__(self) -> Generator[Any, Any, int]:
        yield from anyio.lowlevel.checkpoint().__await__()
        return 9


async def test_any_awaitable_is_awaited() -> None:
    """JP3."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(9)

    for result in (future, _Awaitable(), asyncio.ensure_future(_double(4))):
        exports = exports_of(THROUGH, {"m": {"f": aw.Suspending(lambda value, r=result: r)}})
        assert await exports.g.call_async(0) in (9, 10)


async def test_plain_result_of_a_suspending_import_is_its_value() -> None:
    """JP3."""
    exports = exports_of(THROUGH, {"m": {"f": aw.Suspending(lambda value: value)}})

    assert await exports.g.call_async(1) == 2


async def test_other_tasks_run_while_an_import_waits() -> None:
    """JP3, JP6."""
    order: list[str] = []

    async def wait(value: int) -> int:
        order.append("import")
        await anyio.lowlevel.checkpoint()
        return value

    exports = exports_of(THROUGH, {"m": {"f": wait}})
    task = asyncio.create_task(exports.g.call_async(1))
    await anyio.lowlevel.checkpoint()
    order.append("task")
    await task
    order.append("end")

    assert order == ["import", "task", "end"]


@pytest.mark.parametrize(
    "import_", [_double, aw.Suspending(lambda value: value)], ids=["async-def", "plain-result"]
)
async def test_suspending_import_in_a_synchronous_call_is_a_suspend_error(import_: Any) -> None:
    """JP4."""
    exports = exports_of(THROUGH, {"m": {"f": import_}})

    with pytest.raises(aw.SuspendError):
        exports.g(1)

    assert await exports.g.call_async(1) in (2, 3)


def test_suspend_error_needs_no_running_loop() -> None:
    """JP4."""
    exports = exports_of(THROUGH, {"m": {"f": _double}})

    with pytest.raises(aw.SuspendError):
        exports.g(1)

    assert exports.plain() == 5


def test_suspend_error_is_catchable_by_the_guest() -> None:
    """JP4."""

    async def wait() -> None: ...

    exports = exports_of(CATCH, {"m": {"f": wait, "tag": aw.PYTHON_TAG}})

    assert type(exports.catch()) is aw.SuspendError
    assert exports.catch_all() == 1


async def test_synchronous_python_frame_between_is_a_suspend_error() -> None:
    """JP5: awaited export, synchronous import, synchronous export, suspending import."""
    exports: Any = None
    text = """(module (import "m" "outer" (func $outer (result i32)))
      (import "m" "inner" (func $inner (param i32) (result i32)))
      (func (export "first") (result i32) (call $outer))
      (func (export "second") (result i32) (call $inner (i32.const 4))))"""
    imports = {"m": {"outer": lambda: exports.second(), "inner": _double}}
    exports = exports_of(text, imports)

    with pytest.raises(aw.SuspendError):
        await exports.first.call_async()

    assert await exports.second.call_async() == 8


async def test_asynchronous_python_frame_between_suspends_both() -> None:
    """JP5, JP6."""
    exports: Any = None

    async def outer() -> int:
        return int(await exports.second.call_async()) + 1

    exports = exports_of(
        """(module (import "m" "outer" (func $outer (result i32)))
          (import "m" "inner" (func $inner (param i32) (result i32)))
          (func (export "first") (result i32) (call $outer))
          (func (export "second") (result i32) (call $inner (i32.const 4))))""",
        {"m": {"outer": outer, "inner": _double}},
    )

    assert await exports.first.call_async() == 9


async def test_many_results_of_an_awaited_import() -> None:
    """JP6, HF3."""

    async def pair() -> list[float]:
        return [2, 7.5]

    exports = exports_of(
        """(module (import "m" "f" (func $f (result i32 f64)))
          (func (export "g") (result i32 f64) (call $f)))""",
        {"m": {"f": pair}},
    )

    assert await exports.g.call_async() == (2, 7.5)


async def test_trap_after_a_suspension_is_raised() -> None:
    """JP6."""

    async def wait() -> None:
        await anyio.lowlevel.checkpoint()

    exports = exports_of(
        '(module (import "m" "f" (func $f)) (func (export "g") (call $f) unreachable))',
        {"m": {"f": wait}},
    )

    with pytest.raises(aw.Trap) as caught:
        await exports.g.call_async()

    assert caught.value.code is aw.TrapCode.UNREACHABLE


async def test_wasm_exception_after_a_suspension_is_raised() -> None:
    """JP6."""
    tag = aw.Tag(["i32"])
    exports = exports_of(
        """(module (import "m" "f" (func $f (param i32) (result i32)))
          (import "m" "tag" (tag $tag (param i32)))
          (func (export "g") (throw $tag (call $f (i32.const 21)))))""",
        {"m": {"f": _double, "tag": tag}},
    )

    with pytest.raises(aw.WasmException) as caught:
        await exports.g.call_async()

    assert caught.value.get_arg(tag, 0) == 42


async def test_error_of_an_awaited_import_is_raised_unchanged() -> None:
    """JP6."""
    error = KeyError("mine")

    async def fail(value: int) -> int:
        await anyio.lowlevel.checkpoint()
        raise error

    exports = exports_of(THROUGH, {"m": {"f": fail}})

    with pytest.raises(KeyError) as caught:
        await exports.g.call_async(1)

    assert caught.value is error
    assert error.__notes__


async def test_error_of_an_awaited_import_is_catchable_by_the_guest() -> None:
    """JP6, HF5."""
    error = KeyError("mine")

    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    exports = exports_of(CATCH, {"m": {"f": fail, "tag": aw.PYTHON_TAG}})

    assert await exports.catch.call_async() is error
    assert await exports.catch_all.call_async() == 1


@pytest.mark.parametrize(
    ("value", "error"), [("2", TypeError), (2**32, OverflowError), (None, TypeError)], ids=readable
)
async def test_bad_result_of_an_awaited_import_is_raised(
    value: Any, error: type[Exception]
) -> None:
    """JP6, HF2."""

    async def answer(argument: int) -> Any:
        return value

    exports = exports_of(THROUGH, {"m": {"f": answer}})

    with pytest.raises(error):
        await exports.g.call_async(1)


async def test_awaited_call_starts_when_it_is_awaited() -> None:
    """JP7, where Python differs: coroutines are lazy."""
    called: list[int] = []

    async def record(value: int) -> int:
        called.append(value)
        return value

    exports = exports_of(THROUGH, {"m": {"f": record}})

    coroutine = exports.g.call_async(1)
    before = list(called)
    await coroutine

    assert before == []
    assert called == [1]


async def test_awaited_calls_into_one_store_queue_in_order() -> None:
    """JP8, where Python differs: one activation at a time."""
    order: list[str] = []
    opened = asyncio.Event()

    async def wait(value: int) -> int:
        order.append(f"enter {value}")
        await opened.wait()
        order.append(f"leave {value}")
        return value

    exports = exports_of(THROUGH, {"m": {"f": wait}})
    tasks = [asyncio.create_task(exports.g.call_async(value)) for value in range(3)]
    await anyio.wait_all_tasks_blocked()
    before = list(order)
    opened.set()

    assert await asyncio.gather(*tasks) == [1, 2, 3]
    assert before == ["enter 0"]
    assert order == [f"{step} {value}" for value in range(3) for step in ("enter", "leave")]


async def test_calls_into_different_stores_do_not_wait_for_each_other() -> None:
    """JP8."""
    gate, free = Gate(), Gate()
    free.opened.set()
    held = exports_of(THROUGH, {"m": {"f": gate}})
    other = exports_of(THROUGH, {"m": {"f": free}})

    task = asyncio.create_task(held.g.call_async(1))
    await gate.reached.wait()

    assert await other.g.call_async(2) == 3
    gate.opened.set()
    assert await task == 2


async def test_interleaving_store_resumes_suspended_calls_in_any_order() -> None:
    """JP8."""
    gates = [Gate(), Gate(), Gate()]

    async def wait(value: int) -> int:
        return await gates[value](value)

    with aw.Store(interleave=True):
        exports = exports_of(THROUGH, {"m": {"f": wait}})
        tasks = [asyncio.create_task(exports.g.call_async(value)) for value in range(3)]
        for gate in gates:
            await gate.reached.wait()

        results = []
        for value in (1, 2, 0):
            gates[value].opened.set()
            results.append(await tasks[value])

    assert results == [2, 3, 1]


async def test_synchronous_call_beside_a_suspended_one_is_busy() -> None:
    """JP8."""
    gate = Gate()
    exports = exports_of(THROUGH, {"m": {"f": gate}})
    task = asyncio.create_task(exports.g.call_async(1))
    await gate.reached.wait()

    with pytest.raises(anyio.BusyResourceError):
        exports.plain()

    gate.opened.set()
    assert await task == 2
    assert exports.plain() == 5


async def test_synchronous_call_beside_a_suspended_one_runs_in_an_interleaving_store() -> None:
    """JP8."""
    gate = Gate()
    with aw.Store(interleave=True):
        exports = exports_of(THROUGH, {"m": {"f": gate}})
        task = asyncio.create_task(exports.g.call_async(1))
        await gate.reached.wait()

        assert exports.plain() == 5
        gate.opened.set()
        assert await task == 2


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "awaited"])
async def test_call_made_by_an_import_nests_and_never_waits(asynchronous: bool) -> None:
    """JP8: an import may call the guest's allocator."""
    exports: Any = None

    async def allocate(value: int) -> int:
        await anyio.lowlevel.checkpoint()
        if asynchronous:
            return int(await exports.plain.call_async())
        return int(exports.plain())

    exports = exports_of(THROUGH, {"m": {"f": allocate}})

    assert await exports.g.call_async(1) == 6


@pytest.mark.parametrize(
    "arguments", [("1",), (2**32,), (), (1, 2)], ids=["text", "large", "none", "two"]
)
async def test_bad_argument_of_an_awaited_call_is_raised(arguments: tuple[Any, ...]) -> None:
    """JP9."""
    called: list[int] = []
    exports = exports_of(THROUGH, {"m": {"f": called.append}})

    with pytest.raises((TypeError, OverflowError)):
        await exports.g.call_async(*arguments)

    assert called == []


async def test_two_modules_chained_suspend_together() -> None:
    """JP10."""
    inner = exports_of(THROUGH, {"m": {"f": _double}})
    outer = exports_of(THROUGH, {"m": {"f": inner.g}})

    assert await outer.g.call_async(20) == 42


START = '(module (import "m" "f" (func $f)) (func $start (call $f)) (start $start))'


@pytest.mark.parametrize("source", [aw.wat2wasm, lambda text: aw.Module(aw.wat2wasm(text))])
async def test_start_function_is_awaited_by_instantiate(source: Any) -> None:
    """JP11, where Python differs."""
    done: list[None] = []

    async def wait() -> None:
        await anyio.lowlevel.checkpoint()
        done.append(None)

    await aw.instantiate(source(START), {"m": {"f": wait}})

    assert done == [None]


async def test_start_function_that_suspends_under_the_constructor_is_a_suspend_error() -> None:
    """JP11."""

    async def wait() -> None: ...

    with pytest.raises(aw.SuspendError):
        instance_of(START, {"m": {"f": wait}})


async def test_error_in_an_awaited_start_function_is_raised_unchanged() -> None:
    """JP11, IC3."""
    error = KeyError("mine")

    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    with pytest.raises(KeyError) as caught:
        await aw.instantiate(aw.wat2wasm(START), {"m": {"f": fail}})

    assert caught.value is error


async def test_coroutine_of_a_plain_import_is_a_type_error_and_is_closed() -> None:
    """JP12."""
    made: list[Any] = []

    def plain(value: int) -> Any:
        made.append(_double(value))
        return made[-1]

    exports = exports_of(THROUGH, {"m": {"f": plain}})

    with pytest.raises(TypeError):
        await exports.g.call_async(1)

    assert inspect.getcoroutinestate(made[0]) == inspect.CORO_CLOSED


@pytest.mark.parametrize("indirect", [False, True], ids=["import", "table"])
async def test_function_of_an_async_callable_suspends(indirect: bool) -> None:
    """JP1, TA8."""
    function = aw.Function(aw.FunctionType(["i32"], ["i32"]), _double)
    exports = exports_of(
        """(module (type $t (func (param i32) (result i32)))
          (import "m" "f" (func $f (type $t)))
          (table $t (export "t") 1 funcref)
          (func (export "import") (param i32) (result i32) (call $f (local.get 0)))
          (func (export "table") (param i32) (result i32)
            (call_indirect (type $t) (local.get 0) (i32.const 0))))""",
        {"m": {"f": function}},
    )
    exports.t[0] = function
    export = exports["table" if indirect else "import"]

    assert await export.call_async(4) == 8
    with pytest.raises(aw.SuspendError):
        export(4)


async def test_imports_run_on_the_loops_thread_in_the_callers_task_and_context() -> None:
    """JP6."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen: list[tuple[int, object, str]] = []

    def look(value: int) -> int:
        seen.append((threading.get_ident(), asyncio.current_task(), variable.get()))
        variable.set("changed")
        return value

    async def look_later(value: int) -> int:
        await anyio.lowlevel.checkpoint()
        return look(value)

    variable.set("mine")
    await exports_of(THROUGH, {"m": {"f": look}}).g.call_async(1)
    await exports_of(THROUGH, {"m": {"f": look_later}}).g.call_async(1)

    here = (threading.get_ident(), asyncio.current_task())
    assert seen == [(*here, "mine"), (*here, "changed")]
    assert variable.get() == "changed"


async def test_cancelling_stops_a_call_that_waits_in_an_import() -> None:
    """CO4, contract 7."""
    gate = Gate()
    exports = exports_of(THROUGH, {"m": {"f": gate}})
    task = asyncio.create_task(exports.g.call_async(1))
    await gate.reached.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert exports.plain() == 5


async def test_cancelling_stops_a_call_that_spins() -> None:
    """Contract 7."""
    running = asyncio.Event()
    exports = exports_of(SPIN, {"m": {"f": running.set}})
    task = asyncio.create_task(exports.spin.call_async())
    await running.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert exports.plain() == 5


async def test_other_tasks_run_while_the_guest_spins() -> None:
    """Contract 7."""
    running = asyncio.Event()
    exports = exports_of(SPIN, {"m": {"f": running.set}})

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(exports.spin.call_async)
            await running.wait()
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            scope.cancel()

    assert scope.cancelled_caught


async def test_guest_cannot_catch_cancellation() -> None:
    """Contract 6, HF5."""
    reached = asyncio.Event()

    async def wait() -> None:
        reached.set()
        await asyncio.Event().wait()

    exports = exports_of(CATCH, {"m": {"f": wait, "tag": aw.PYTHON_TAG}})
    task = asyncio.create_task(exports.catch_all.call_async())
    await reached.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert task.cancelled()


async def test_cancelled_call_lets_the_next_in_the_queue_run() -> None:
    """Contract 4, 7."""
    gate = Gate()
    exports = exports_of(THROUGH, {"m": {"f": gate}})
    first = asyncio.create_task(exports.g.call_async(1))
    await gate.reached.wait()
    second = asyncio.create_task(exports.g.call_async(2))
    await anyio.lowlevel.checkpoint()

    first.cancel()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await first

    assert await second == 3


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_awaited_imports_work_under_both_event_loops(backend: str) -> None:
    """JP6."""

    async def main() -> Any:
        _, instance = await aw.instantiate(aw.wat2wasm(THROUGH), {"m": {"f": _double}})
        return await instance.exports.g.call_async(20)

    assert anyio.run(main, backend=backend) == 41

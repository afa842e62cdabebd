"""
Short calls whose host functions start nothing, and those whose do: both mean the same.

The first call of a store goes the long way; these come after it, both called and awaited.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import asyncwasm as aw

from .guests import not_measured
from .support import as_many, instance, module

GUEST = """(module
  (import "host" "f" (func $f (param i32) (result i32)))
  (import "host" "g" (func $g (param i32) (result i32)))
  (memory (export "memory") 1 4)
  (global $returned (export "returned") (mut i32) (i32.const 0))
  (func (export "plain") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1)))
  (func (export "call") (param i32) (result i32) (local $result i32)
    (local.set $result (call $f (local.get 0)))
    (global.set $returned (i32.add (global.get $returned) (i32.const 1)))
    (local.get $result))
  (func (export "both") (param i32) (result i32) (call $g (call $f (local.get 0))))
  (func (export "trap") (param i32) (drop (call $f (local.get 0))) unreachable)
  (func (export "sum") (param $n i32) (result i32) (local $sum i32)
    (loop $more
      (local.set $sum (i32.add (local.get $sum) (call $f (local.get $n))))
      (br_if $more (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (local.get $sum)))"""

Call = Callable[..., Any]


async def called(function: aw.ExportedFunction, *arguments: Any) -> Any:
    return function(*arguments)


async def awaited(function: aw.ExportedFunction, *arguments: Any) -> Any:
    return await function.call_async(*arguments)


both_ways = pytest.mark.parametrize("call", [called, awaited])
every_loop = pytest.mark.every_loop


async def hosted(f: Any, g: Any = abs, **options: Any) -> aw.Instance:
    made = instance(GUEST, {"host": {"f": f, "g": g}}, **options)
    await made.exports.plain.call_async(1)
    assert made.exports.plain(1) == 2
    return made


def is_idle(made: aw.Instance) -> bool:
    return not (made._store.handle.futures or made._store._alive() or made._store.root.current)


@every_loop
@both_ways
async def test_host_is_given_its_arguments_and_the_guest_its_result(call: Call) -> None:
    seen: list[int] = []

    def f(value: int) -> int:
        seen.append(value)
        return value * 2

    made = await hosted(f, lambda value: value - 1)

    assert await call(made.exports.call, -3) == -6
    assert await call(made.exports.call, 2**32 - 1) == -2
    assert await call(made.exports.both, 5) == 9
    assert await call(made.exports.sum, 100) == 10_100
    assert seen == [-3, -1, 5, *range(100, 0, -1)]
    assert is_idle(made)


@both_ways
async def test_exception_of_a_host_comes_out_as_the_same_object(call: Call) -> None:
    raised = ValueError("from the host")

    def f(value: int) -> int:
        if value:
            raise raised
        return 0

    made = await hosted(f)

    for _ in range(3):
        with pytest.raises(ValueError, match="from the host") as caught:
            await call(made.exports.call, 1)
        assert caught.value is raised
    assert "wasm backtrace" in raised.__notes__[0]
    assert await call(made.exports.call, 0) == 0
    assert made.exports.returned.value == 1
    assert is_idle(made)


@both_ways
async def test_exception_that_is_no_exception_of_the_guests_ends_the_call(call: Call) -> None:
    class Stop(BaseException):
        pass

    def f(value: int) -> int:
        raise Stop

    made = await hosted(f)

    with pytest.raises(Stop):
        await call(made.exports.call, 1)
    assert is_idle(made)
    assert await call(made.exports.plain, 1) == 2


@both_ways
@pytest.mark.parametrize("value", ["1", None, (1,), 1.5])
async def test_result_of_the_wrong_type_is_an_error_in_the_guest(call: Call, value: object) -> None:
    made = await hosted(lambda _: value)

    with pytest.raises(TypeError):
        await call(made.exports.call, 1)
    assert made.exports.returned.value == 0
    assert is_idle(made)


@both_ways
async def test_result_that_has_to_be_converted_is(call: Call) -> None:
    class Index:
        def __index__(self) -> int:
            return 7

    made = await hosted(lambda _: Index())

    assert await call(made.exports.call, 1) == 7
    assert await call(made.exports.sum, 3) == 21


@both_ways
async def test_plain_function_that_returns_a_coroutine_is_an_error(call: Call) -> None:
    async def answer() -> int:
        return 1

    made = await hosted(lambda _: answer())

    with pytest.raises(TypeError, match="Suspending"):
        await call(made.exports.call, 1)
    assert is_idle(made)


@both_ways
async def test_guest_can_trap_after_its_host_has_answered(call: Call) -> None:
    made = await hosted(lambda value: value)

    for _ in range(3):
        with pytest.raises(aw.Trap) as caught:
            await call(made.exports.trap, 1)
        assert caught.value.code is aw.TrapCode.UNREACHABLE
    assert is_idle(made)
    assert await call(made.exports.call, 4) == 4


# what a host may do


@both_ways
async def test_host_can_call_its_own_guest(call: Call) -> None:
    def factorial(value: int) -> int:
        return value * made.exports.call(value - 1) if value > 1 else 1

    made = await hosted(factorial)

    assert await call(made.exports.call, 10) == 3_628_800
    assert await call(made.exports.sum, 3) == 9
    assert made.exports.returned.value == 10 + 3
    assert is_idle(made)
    assert await call(made.exports.plain, 1) == 2


@both_ways
async def test_exception_passes_through_calls_within_calls(call: Call) -> None:
    def f(value: int) -> int:
        if value == 0:
            raise LookupError("at the bottom")
        return int(made.exports.call(value - 1))

    made = await hosted(f)

    with pytest.raises(LookupError, match="at the bottom"):
        await call(made.exports.call, 5)
    assert made.exports.returned.value == 0
    assert is_idle(made)


@both_ways
async def test_two_stores_can_call_each_other_in_turn(call: Call) -> None:
    def ping(value: int) -> int:
        return int(other.exports.call(value - 1)) + 1 if value > 0 else 0

    def pong(value: int) -> int:
        return int(made.exports.call(value - 1)) + 1 if value > 0 else 0

    made, other = await hosted(ping), await hosted(pong)

    assert await call(made.exports.call, 9) == 9
    assert is_idle(made)
    assert is_idle(other)


@both_ways
async def test_host_can_look_at_its_guest(call: Call) -> None:
    def f(value: int) -> int:
        memory = made.exports.memory
        memory.write(value, b"\x05")
        memory.grow(1)
        made.exports.returned.value = 10
        return int(memory.read(value, 1)[0] + memory.byte_length // 65_536)

    made = await hosted(f)

    assert await call(made.exports.call, 100) == 7
    assert made.exports.returned.value == 11
    assert is_idle(made)


@both_ways
async def test_host_can_instantiate_in_the_same_store(call: Call) -> None:
    more = module('(module (func (export "seven") (result i32) (i32.const 7)))')

    def f(value: int) -> int:
        return int(aw.Instance(more, store=made.store).exports.seven())

    made = await hosted(f)

    assert await call(made.exports.call, 1) == 7
    assert await call(made.exports.call, 1) == 7
    assert is_idle(made)


@both_ways
async def test_host_can_close_the_store(call: Call) -> None:
    def f(value: int) -> int:
        made.close()
        return value

    made = await hosted(f)

    with pytest.raises(aw.Interrupted) as caught:
        await call(made.exports.call, 1)
    assert caught.value.reason == "closed"
    with pytest.raises(anyio.ClosedResourceError):
        await call(made.exports.call, 1)
    assert made._store.handle.pointer == 0


@both_ways
async def test_store_may_be_closed_by_another_thread_while_a_host_runs(call: Call) -> None:
    def f(value: int) -> int:
        thread = threading.Thread(target=made.close)
        thread.start()
        thread.join()
        return value

    made = await hosted(f)

    with pytest.raises(aw.Interrupted):
        await call(made.exports.call, 1)
    assert made._store.handle.pointer == 0


@both_ways
async def test_other_threads_can_look_but_not_call_while_a_host_waits_for_them(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncwasm._runtime.store.HANDED_SECONDS", 0.005)
    found: list[object] = []

    def intrude() -> None:
        found.append(made.exports.memory.read(0, 1))
        for function in (made.exports.plain, made.exports.call):
            try:
                function(1)
            except anyio.BusyResourceError:
                found.append("busy")

    def f(value: int) -> int:
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        return value

    made = await hosted(f)

    assert await call(made.exports.call, 3) == 3
    assert found == [b"\0", "busy", "busy"]
    assert is_idle(made)
    assert await call(made.exports.plain, 1) == 2


@both_ways
async def test_context_is_that_of_the_caller(call: Call) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    def f(value: int) -> int:
        seen.append(variable.get())
        variable.set(f"by the host {value}")
        return value

    made = await hosted(f)
    variable.set("by the caller")

    await call(made.exports.both, 1)
    await call(made.exports.call, 2)

    assert seen == ["by the caller", "by the host 1"]
    assert variable.get() == "by the host 2"


@both_ways
async def test_task_that_a_host_has_started_calls_for_itself_later(call: Call) -> None:
    tasks: list[asyncio.Task[Any]] = []

    def f(value: int) -> int:
        tasks.append(asyncio.ensure_future(made.exports.plain.call_async(value)))
        return value

    made = await hosted(f)

    assert await call(made.exports.call, 5) == 5
    assert await tasks[0] == 6
    assert is_idle(made)


async def test_import_after_a_plain_one_can_be_awaited() -> None:
    async def g(value: int) -> int:
        await asyncio.sleep(0)
        return value + 1

    made = await hosted(lambda value: value * 2, g)

    assert [await made.exports.both.call_async(each) for each in range(3)] == [1, 3, 5]
    with pytest.raises(aw.SuspendError):
        made.exports.both(1)
    assert is_idle(made)
    assert await made.exports.both.call_async(1) == 3


@every_loop
async def test_call_with_many_short_imports_lets_the_loop_run() -> None:
    made = await hosted(lambda value: 1)
    done = anyio.Event()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        assert await made.exports.sum.call_async(as_many(100_000)) == as_many(100_000)
        done.set()

    assert turns > 3
    assert is_idle(made)


@every_loop
async def test_call_with_many_short_imports_can_be_cancelled() -> None:
    made = await hosted(lambda value: 1)

    with anyio.move_on_after(0.01) as scope:
        await made.exports.sum.call_async(0)  # for ever, or nearly

    assert scope.cancelled_caught
    assert is_idle(made)
    assert await made.exports.call.call_async(1) == 1


@both_ways
async def test_fuel_is_the_same_as_of_a_first_call(call: Call) -> None:
    spent = []
    for warm in (False, True):
        made = instance(GUEST, {"host": {"f": abs, "g": abs}}, limits=aw.Limits(fuel=1_000_000))
        if warm:
            await made.exports.plain.call_async(1)
        made.store.fuel = 1_000_000
        await call(made.exports.sum, 10)
        assert made.store.fuel is not None
        spent.append(1_000_000 - made.store.fuel)

    assert spent[0] == spent[1] > 0


@both_ways
async def test_deadline_of_an_outer_call_holds_for_what_its_host_calls(call: Call) -> None:
    inner = await hosted(lambda value: value)
    outer = instance(
        GUEST,
        {"host": {"f": lambda value: inner.exports.sum(0), "g": abs}},
        store=aw.Store(sync_deadline_seconds=0.02),
    )

    with pytest.raises(aw.Interrupted) as caught:
        outer.exports.call(1)
    assert caught.value.reason == "deadline"
    assert await call(inner.exports.call, 1) == 1


async def test_host_that_drops_its_instance_still_answers() -> None:
    kept: list[aw.Instance] = []

    def f(value: int) -> int:
        kept.clear()
        gc.collect(0)
        return value

    kept.append(await hosted(f))
    assert kept[0].exports.call(3) == 3


@both_ways
async def test_instance_that_its_hosts_refer_to_is_collected(call: Call) -> None:
    def make() -> tuple[aw.Instance, weakref.ref[aw.Instance]]:
        def f(value: int) -> int:
            return int(made.exports.plain(value))

        made = instance(GUEST, {"host": {"f": f, "g": abs}})
        view = made.exports.memory.buffer  # keeps the native store, and that only
        views.append(view)
        return made, weakref.ref(made)

    views: list[memoryview] = []
    made, alive = make()
    await call(made.exports.plain, 1)
    assert await call(made.exports.call, 1) == 2
    del made
    gc.collect()

    assert alive() is None
    assert views[0][0] == 0


@both_ways
@not_measured
@pytest.mark.slow
async def test_looking_from_another_thread_is_in_nobodys_way(call: Call) -> None:
    stop = threading.Event()
    looked: list[int] = []

    def look() -> None:
        count = 0
        while not stop.is_set():
            assert made.exports.returned.value >= 0
            count += 1
        looked.append(count)

    def f(value: int) -> int:
        if value % 10 == 0:
            raise LookupError
        return value if value % 3 else int(made.exports.plain(value))

    made = await hosted(f)
    thread = threading.Thread(target=look)
    thread.start()
    try:
        for value in range(500):
            try:
                assert await call(made.exports.call, value) in (value, value + 1)
            except LookupError:
                assert value % 10 == 0
    finally:
        stop.set()
        thread.join()

    assert looked[0] > 0
    assert is_idle(made)

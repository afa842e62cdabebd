"""
Short calls of guests whose imports are coroutines, which may have their answers at hand or wait.

The first call of a store goes the long way; these come after it.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import signal
import threading
import weakref
from collections.abc import Callable, Generator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import asyncwasm as aw

from .support import run_script
from .test_host_calls import hosted, is_idle

every_loop = pytest.mark.every_loop


@every_loop
@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_coroutine_gives_the_guest_its_result(turns: int) -> None:
    seen: list[int] = []

    async def f(value: int) -> int:
        seen.append(value)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        return value * 2

    made = await hosted(f, lambda value: value - 1)

    assert await made.exports.call.call_async(-3) == -6
    assert await made.exports.both.call_async(5) == 9
    assert await made.exports.sum.call_async(20) == 420
    assert seen == [-3, 5, *range(20, 0, -1)]
    assert is_idle(made)
    assert made.exports.plain(1) == 2


@every_loop
async def test_coroutines_wait_in_turn_with_plain_functions() -> None:
    order: list[str] = []

    async def f(value: int) -> int:
        order.append(f"f{value}")
        if value % 3 == 0:
            await anyio.lowlevel.checkpoint()
            order.append("waited")
        return value

    def g(value: int) -> int:
        order.append(f"g{value}")
        return value

    made = await hosted(f, g)

    for value in range(4):
        assert await made.exports.both.call_async(value) == value
    assert order == ["f0", "waited", "g0", "f1", "g1", "f2", "g2", "f3", "waited", "g3"]
    assert is_idle(made)


@every_loop
@pytest.mark.parametrize("turns", [0, 1])
async def test_exception_of_a_coroutine_comes_out_as_the_same_object(turns: int) -> None:
    raised = ValueError("from the host")

    async def f(value: int) -> int:
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        if value:
            raise raised
        return 0

    made = await hosted(f)

    for _ in range(3):
        with pytest.raises(ValueError, match="from the host") as caught:
            await made.exports.call.call_async(1)
        assert caught.value is raised
    assert await made.exports.call.call_async(0) == 0
    assert is_idle(made)


@pytest.mark.parametrize("turns", [0, 1])
async def test_exception_that_is_no_exception_of_the_guests_ends_the_call(turns: int) -> None:
    class Stop(BaseException):
        pass

    async def f(value: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        raise Stop

    made = await hosted(f)

    with pytest.raises(Stop):
        await made.exports.call.call_async(1)
    assert is_idle(made)
    assert await made.exports.plain.call_async(1) == 2


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("value", ["1", None, (1,), 1.5])
async def test_result_of_the_wrong_type_is_an_error_in_the_guest(turns: int, value: object) -> None:
    async def f(_: int) -> object:
        for _ in range(turns):
            await asyncio.sleep(0)
        return value

    made = await hosted(f)

    with pytest.raises(TypeError):
        await made.exports.call.call_async(1)
    assert is_idle(made)


async def test_coroutine_as_a_result_is_an_error_in_the_guest() -> None:
    inner: list[Any] = []

    async def f(_: int) -> object:
        inner.append(asyncio.sleep(0))
        return inner[-1]

    made = await hosted(f)

    with pytest.raises(TypeError):
        await made.exports.call.call_async(1)
    for each in inner:
        each.close()
    assert is_idle(made)


async def test_result_that_has_to_be_converted_is() -> None:
    class Three:
        def __index__(self) -> int:
            return 3

    async def f(_: int) -> object:
        return Three()

    made = await hosted(f)

    assert await made.exports.call.call_async(1) == 3
    assert await made.exports.sum.call_async(4) == 12


async def test_any_awaitable_is_awaited() -> None:
    class Later:
        def __init__(self, value: int) -> None:
            self.value = value

        def __await__(self) -> Generator[Any, Any, int]:
            yield from asyncio.sleep(0).__await__()
            return self.value

    made = await hosted(aw.Suspending(Later))
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 7)
    other = await hosted(aw.Suspending(lambda _: future))

    assert await made.exports.call.call_async(5) == 5
    assert await other.exports.call.call_async(5) == 7
    assert is_idle(made)
    assert is_idle(other)


async def test_coroutine_that_somebody_else_has_begun_is_an_error() -> None:
    async def wait() -> int:
        await asyncio.sleep(0)
        return 1

    begun = wait()
    begun.send(None)
    made = await hosted(aw.Suspending(lambda _: begun))

    with pytest.raises(RuntimeError, match="awaited already"):
        await made.exports.call.call_async(1)
    with pytest.raises(StopIteration):
        begun.send(None)
    assert is_idle(made)


async def test_suspending_function_that_returns_a_number_has_returned_it() -> None:
    made = await hosted(aw.Suspending(abs))

    assert await made.exports.call.call_async(-5) == 5
    assert is_idle(made)


@every_loop
async def test_cancellation_reaches_the_coroutine_where_it_waits() -> None:
    ended: list[str] = []
    waiting = anyio.Event()

    async def f(value: int) -> int:
        waiting.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            ended.append("cancelled")
            raise
        return value

    made = await hosted(f)

    for _ in range(3):
        waiting = anyio.Event()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(made.exports.call.call_async, 1)
                await waiting.wait()
                scope.cancel()
    assert ended == ["cancelled"] * 3
    assert is_idle(made)
    assert made.exports.returned.value == 0
    assert await made.exports.plain.call_async(1) == 2


@every_loop
async def test_coroutine_can_go_on_after_it_was_cancelled() -> None:
    async def f(value: int) -> int:
        with anyio.move_on_after(0):
            await anyio.sleep_forever()
        return value

    made = await hosted(f)

    assert await made.exports.call.call_async(1) == 1
    assert await made.exports.sum.call_async(3) == 6


async def test_timeout_within_the_coroutine_is_its_own() -> None:
    async def f(value: int) -> int:
        try:
            async with asyncio.timeout(0):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            return value + 1
        return 0

    made = await hosted(f)

    assert await made.exports.call.call_async(1) == 2


async def test_coroutine_runs_in_the_task_and_context_of_the_caller() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[object] = []

    async def f(value: int) -> int:
        for _ in range(2):
            seen.extend((asyncio.current_task(), variable.get()))
            await asyncio.sleep(0)
        variable.set(f"by the host {value}")
        return value

    made = await hosted(f)
    variable.set("by the caller")

    await made.exports.call.call_async(1)

    assert seen == [asyncio.current_task(), "by the caller"] * 2
    assert variable.get() == "by the host 1"


@every_loop
@pytest.mark.parametrize("turns", [0, 1])
async def test_coroutine_can_call_its_own_guest(turns: int) -> None:
    async def f(value: int) -> int:
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        inner: int = made.exports.plain(value)
        if value:
            inner += await made.exports.call.call_async(value - 1)
        return inner

    made = await hosted(f)

    assert await made.exports.call.call_async(3) == 10
    assert is_idle(made)
    assert await made.exports.plain.call_async(1) == 2


@pytest.mark.parametrize("first", [0, 1])
async def test_task_that_a_coroutine_has_started_calls_for_itself(first: int) -> None:
    """It has to wait until the guest is done, whoever that waits for."""
    tasks: list[asyncio.Task[int]] = []
    order: list[str] = []

    async def later() -> int:
        result: int = await made.exports.plain.call_async(1)
        order.append("task")
        return result

    async def f(value: int) -> int:
        tasks.append(asyncio.create_task(later()))
        for _ in range(first):
            await asyncio.sleep(0)
        return value

    async def g(value: int) -> int:
        for _ in range(3):
            await asyncio.sleep(0)
        order.append("g")
        return value

    made = await hosted(f, g)
    await made.exports.both.call_async(1)
    order.append("call")

    assert await asyncio.gather(*tasks) == [2]
    assert order == (["g", "call", "task"] if not first else order)
    assert is_idle(made)


@pytest.mark.parametrize("turns", [0, 1])
async def test_coroutine_can_close_the_store_and_goes_on_to_its_end(turns: int) -> None:
    ended: list[int] = []

    async def f(value: int) -> int:
        made.store.close()
        for _ in range(turns):
            await asyncio.sleep(0)
        ended.append(value)
        return value

    made = await hosted(f)

    with pytest.raises(aw.Interrupted):
        await made.exports.call.call_async(1)
    assert ended == [1]
    assert made._store.handle.pointer == 0


async def test_coroutine_that_closes_the_store_can_fail() -> None:
    async def f(value: int) -> int:
        made.store.close()
        await asyncio.sleep(0)
        raise ValueError

    made = await hosted(f)

    with pytest.raises(aw.Interrupted):
        await made.exports.call.call_async(1)
    assert made._store.handle.pointer == 0


def test_loop_that_is_closed_meanwhile_leaves_nothing() -> None:
    ended: list[str] = []

    async def f(value: int) -> int:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("closed")
        return value

    async def begin() -> aw.Instance:
        made = await hosted(f)
        keep.append(asyncio.ensure_future(made.exports.call.call_async(1)))
        await asyncio.sleep(0)
        return made

    def drop() -> None:
        keep.clear()
        gc.collect()

    keep: list[Any] = []
    loop = asyncio.new_event_loop()
    made = loop.run_until_complete(begin())
    loop.close()
    with pytest.warns(ResourceWarning, match="the event loop was closed"):
        drop()

    assert ended == ["closed"]
    assert made.exports.plain(1) == 2
    assert is_idle(made)


async def test_thread_that_the_coroutine_waits_for_can_call_the_guest() -> None:
    async def f(value: int) -> int:
        result: int = await asyncio.to_thread(made.exports.plain, value)
        return result

    made = await hosted(f)

    for value in range(20):
        assert await made.exports.call.call_async(value) == value + 1
    assert is_idle(made)


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_other_loop_that_calls_meanwhile_is_not_refused(kind: str) -> None:
    results: list[object] = []
    threads: list[threading.Thread] = []

    def call() -> None:
        try:
            results.append(asyncio.run(made.exports.plain.call_async(1)))
        except BaseException as exc:
            results.append(exc)

    def plain(value: int) -> int:
        threads.append(threading.Thread(target=call))
        threads[-1].start()
        return value

    async def suspending(value: int) -> int:
        return plain(value)

    made = await hosted(plain if kind == "plain" else suspending)
    for value in range(20):
        assert await made.exports.call.call_async(value) == value
        for thread in threads:
            await asyncio.to_thread(thread.join)

    assert results == [2] * 20
    assert is_idle(made)


async def test_call_whose_coroutines_never_wait_lets_the_loop_run() -> None:
    turns = 0
    over = False

    async def count() -> None:
        nonlocal turns
        while not over:
            turns += 1
            await asyncio.sleep(0)

    async def f(value: int) -> int:
        return value

    made = await hosted(f)
    counting = asyncio.create_task(count())
    await made.exports.sum.call_async(60_000)
    over = True
    await counting

    assert turns > 3


async def test_call_whose_coroutines_never_wait_can_be_cancelled() -> None:
    async def f(value: int) -> int:
        return 1

    made = await hosted(f)
    with anyio.move_on_after(0.02) as scope:
        await made.exports.sum.call_async(-1)

    assert scope.cancelled_caught
    assert is_idle(made)
    assert await made.exports.plain.call_async(1) == 2


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_signal_handler_that_raises_ends_a_call_whose_coroutines_never_wait() -> None:
    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    async def f(value: int) -> int:
        if value == 1000:
            signal.raise_signal(signal.SIGUSR1)
        return 1

    async def main() -> None:
        made = await hosted(f)
        with pytest.raises(Alarm):
            await made.exports.sum.call_async(2000)
        assert is_idle(made)
        assert await made.exports.plain.call_async(1) == 2

    previous = signal.signal(signal.SIGUSR1, ring)
    try:
        asyncio.run(main())
    finally:
        signal.signal(signal.SIGUSR1, previous)


async def test_import_is_refused_where_nobody_awaits_the_call() -> None:
    async def f(value: int) -> int:
        return value

    made = await hosted(f)
    with pytest.raises(aw.SuspendError):
        made.exports.call(1)

    assert is_idle(made)
    assert await made.exports.call.call_async(1) == 1


async def test_instance_that_its_coroutines_refer_to_is_collected() -> None:
    class Owner:
        instance: aw.Instance

        async def f(self, value: int) -> int:
            if value > 1:
                await asyncio.sleep(0)
            return int(self.instance.exports.plain(value))

    async def use() -> weakref.ref[Owner]:
        owner = Owner()
        owner.instance = await hosted(owner.f)
        for value in (1, 2):
            assert await owner.instance.exports.call.call_async(value) == value + 1
        return weakref.ref(owner)

    owner = await use()
    gc.collect()

    assert owner() is None


async def test_calls_of_many_instances_wait_side_by_side() -> None:
    everybody = asyncio.Barrier(11)

    async def f(value: int) -> int:
        await everybody.wait()
        return value

    many = [await hosted(f) for _ in range(10)]
    calls = [asyncio.create_task(each.exports.call.call_async(n)) for n, each in enumerate(many)]
    await everybody.wait()

    assert await asyncio.gather(*calls) == list(range(10))
    assert all(is_idle(each) for each in many)


@pytest.mark.parametrize("factory", [None, getattr(asyncio, "eager_task_factory", None)])
async def test_eager_tasks_call_too(factory: Callable[..., Any] | None) -> None:
    async def f(value: int) -> int:
        await asyncio.sleep(0)
        return value

    made = await hosted(f)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        assert await loop.create_task(made.exports.call.call_async(3)) == 3
    finally:
        loop.set_task_factory(None)


RECURSION = """
import asyncio, sys
import asyncwasm as aw
module = aw.Module(aw.wat2wasm('''(module
  (import "host" "f" (func $f (param i32) (result i32)))
  (func (export "plain") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1)))
  (func (export "call") (param i32) (result i32) (call $f (local.get 0))))'''))

async def try_it(waits, catches):
    async def f(value):
        if value % 3 < waits:
            await asyncio.sleep(0)
        try:
            return await instance.exports.call.call_async(value + 1)
        except RecursionError:
            if not catches:
                raise
            await asyncio.sleep(0)
            return value

    instance = aw.Instance(module, {"host": {"f": f}})
    assert await instance.exports.plain.call_async(1) == 2
    try:
        async with asyncio.timeout(10):
            deepest = await instance.exports.call.call_async(0)
    except RecursionError:
        assert not catches or limit < 120
    else:
        assert catches and deepest > 3
    return instance

usual = sys.getrecursionlimit()
for limit in (*range(90, 120, 3), *range(120, 160)):  # anywhere in some levels of the recursion
    for waits in (0, 1, 3):
        for catches in (False, True):
            sys.setrecursionlimit(limit)
            try:
                instance = asyncio.run(try_it(waits, catches))
            finally:
                sys.setrecursionlimit(usual)
            assert instance.exports.plain(1) == 2
            assert not instance._store._alive()
print("done")
"""


def test_recursion_through_coroutines_ends_wherever_it_meets_the_limit() -> None:
    done = run_script(RECURSION)

    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr

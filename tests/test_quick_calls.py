"""
Awaited calls in a store that has been awaited before: most are over within their first slice.

Whatever does not fit into it goes on as the first call of a store does, and means the same.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

import asyncwasm as aw

from .support import CALLER, SPIN, as_many, instance, module, run_script

every_loop = pytest.mark.every_loop

VALUES = """(module
  (func (export "none"))
  (func (export "i32") (param i32) (result i32) (local.get 0))
  (func (export "i64") (param i64) (result i64) (local.get 0))
  (func (export "f32") (param f32) (result f32) (local.get 0))
  (func (export "f64") (param f64) (result f64) (local.get 0))
  (func (export "v128") (param v128) (result v128) (local.get 0))
  (func (export "extern") (param externref) (result externref) (local.get 0))
  (func (export "several") (param i32 i64 f32 f64 v128) (result v128 f64 f32 i64 i32)
    (local.get 4) (local.get 3) (local.get 2) (local.get 1) (local.get 0))
  (func (export "many") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32
                               i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    (i32.add (local.get 0) (local.get 19)))
  (func (export "divide") (param i32 i32) (result i32) (i32.div_s (local.get 0) (local.get 1))))"""


async def warm(made: aw.Instance, name: str, *arguments: object) -> aw.Instance:
    """Await a call, so that the next one finds its store prepared."""
    await made.exports[name].call_async(*arguments)
    return made


async def repeated(function: aw.ExportedFunction, *arguments: object) -> object:
    results = [await function.call_async(*arguments) for _ in range(3)]
    assert results[1:] == results[:2]
    return results[-1]


# values


async def test_values_of_every_type_come_back() -> None:
    made = await warm(instance(VALUES), "none")
    vector = bytes(range(16))
    something = object()

    assert await repeated(made.exports.none) is None
    assert await repeated(made.exports.i32, -5) == -5
    assert await repeated(made.exports.i32, 0xFFFF_FFFF) == -1
    assert await repeated(made.exports.i64, -(2**63)) == -(2**63)
    assert await repeated(made.exports.i64, 2**64 - 1) == -1
    assert await repeated(made.exports.f32, 0.1) == pytest.approx(0.1, abs=1e-7)
    assert await repeated(made.exports.f64, 0.1) == 0.1
    assert await repeated(made.exports.v128, vector) == vector
    assert await repeated(made.exports.extern, something) is something
    assert await repeated(made.exports.several, 1, 2, 3, 4, vector) == (vector, 4.0, 3.0, 2, 1)
    assert await repeated(made.exports.many, *range(20)) == 19


class Index:
    def __index__(self) -> int:
        return 7


async def test_arguments_that_need_conversion_are_converted_once() -> None:
    converted: list[int] = []

    class Counted:
        def __index__(self) -> int:
            converted.append(1)
            return 7

    made = await warm(instance(VALUES), "none")

    assert await made.exports.i32.call_async(Counted()) == 7
    assert converted == [1]
    assert await made.exports.f32.call_async(10**30) == pytest.approx(1e30, rel=1e-6)
    assert await made.exports.f32.call_async(1e300) == float("inf")


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("i32", (), TypeError),
        ("i32", (1, 2), TypeError),
        ("i32", (1.5,), TypeError),
        ("i32", ("1",), TypeError),
        ("i32", (2**32,), OverflowError),
        ("i64", (2**64,), OverflowError),
        ("v128", (b"short",), TypeError),
        ("f64", (None,), TypeError),
    ],
)
async def test_bad_argument_is_the_same_error_as_in_a_first_call(
    name: str, arguments: tuple[object, ...], error: type[Exception]
) -> None:
    fresh = instance(VALUES)
    with pytest.raises(error) as first:
        await fresh.exports[name].call_async(*arguments)

    made = await warm(instance(VALUES), "none")
    with pytest.raises(error) as later:
        await made.exports[name].call_async(*arguments)

    assert str(later.value) == str(first.value)
    assert await made.exports.i32.call_async(1) == 1


@given(st.integers(-(2**31), 2**32 - 1), st.integers(-(2**63), 2**64 - 1), st.floats())
def test_later_calls_return_what_the_first_one_does(small: int, large: int, real: float) -> None:
    made = instance(VALUES)

    async def main() -> None:
        for name, value in (("i32", small), ("i64", large), ("f64", real), ("f32", real)):
            first = await instance(VALUES).exports[name].call_async(value)
            await warm(made, "none")
            later = await made.exports[name].call_async(value)
            assert repr(later) == repr(first)

    asyncio.run(main())


# errors


@every_loop
async def test_trap_ends_one_call_and_no_other() -> None:
    made = await warm(instance(VALUES), "none")

    with pytest.raises(aw.Trap) as caught:
        await made.exports.divide.call_async(1, 0)

    assert caught.value.code is aw.TrapCode.INTEGER_DIVISION_BY_ZERO
    assert caught.value.frames
    assert await made.exports.divide.call_async(6, 3) == 2


@every_loop
async def test_closed_store_refuses() -> None:
    made = await warm(instance(VALUES), "none")
    made.close()

    with pytest.raises(anyio.ClosedResourceError):
        await made.exports.none.call_async()


async def test_pool_does_not_hand_out_an_instance_whose_later_call_trapped() -> None:
    async with aw.InstancePool(module(VALUES), max_instances=1, max_uses=10) as pool:
        async with pool.acquire() as made:
            await warm(made, "none")
            with pytest.raises(aw.Trap):
                await made.exports.divide.call_async(1, 0)
        async with pool.acquire() as other:
            assert other is not made
            await warm(other, "none")
        async with pool.acquire() as again:
            assert again is other


# calls that are not over within a slice


@every_loop
async def test_call_that_takes_long_lets_the_loop_run_and_returns() -> None:
    made = await warm(instance(SPIN), "one")
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await checkpoint()
            beats += 1

    async with anyio.create_task_group() as group:
        group.start_soon(beat)
        await checkpoint()
        before = beats
        assert await made.exports.work.call_async(30_000_000) is None
        assert beats > before
        group.cancel_scope.cancel()

    assert await made.exports.one.call_async() == 1


@every_loop
async def test_call_that_takes_long_can_be_cancelled() -> None:
    made = await warm(instance(SPIN), "one")

    with anyio.move_on_after(0.01) as scope:
        await made.exports.spin.call_async()

    assert scope.cancelled_caught
    assert await made.exports.one.call_async() == 1
    assert made.exports.one() == 1


async def test_others_wait_in_line_behind_a_call_that_takes_long() -> None:
    made = await warm(instance(CALLER, {"host": {"f": lambda x: x}}), "plain", 1)
    ended: list[str] = []

    async def call(name: str, *arguments: int) -> None:
        await made.exports[name].call_async(*arguments)
        ended.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(call("sum", as_many(200_000)))
        group.create_task(call("plain", 1))

    assert ended == ["sum", "plain"]


@every_loop
async def test_asynchronous_import_is_awaited_and_answered() -> None:
    async def answer(value: int) -> int:
        await checkpoint()
        return value + 1

    made = await warm(instance(CALLER, {"host": {"f": answer}}), "plain", 1)

    assert await made.exports.call.call_async(1) == 2
    assert await made.exports.sum.call_async(3) == 2 + 3 + 4
    with pytest.raises(aw.SuspendError):
        made.exports.call(1)
    assert await made.exports.call.call_async(5) == 6


async def test_import_may_call_other_stores_and_its_own() -> None:
    inner = await warm(instance(VALUES), "none")

    async def answer(value: int) -> int:
        here = await made.exports.plain.call_async(value)
        there = await inner.exports.i32.call_async(value)
        return int(here) + int(there)

    made = await warm(instance(CALLER, {"host": {"f": answer}}), "plain", 1)

    assert await made.exports.call.call_async(10) == 21
    assert await made.exports.call.call_async(20) == 41


async def test_call_and_awaited_call_can_alternate() -> None:
    made = await warm(instance(VALUES), "none")

    for value in range(200):
        assert made.exports.i32(value) == value
        assert await made.exports.i32.call_async(value) == value


async def test_synchronous_call_is_not_cut_off_after_an_awaited_one() -> None:
    """The clock that makes awaited calls yield must not end those that cannot."""
    aw.configure_sync_guard(action="ignore")
    made = await warm(instance(SPIN), "one")
    await made.exports.one.call_async()

    made.exports.work(30_000_000)

    assert await made.exports.one.call_async() == 1


# the loop


@every_loop
async def test_short_calls_in_a_row_let_the_loop_run() -> None:
    made = await warm(instance(VALUES), "none")
    others = 0
    done = False

    async def other() -> None:
        nonlocal others
        while not done:
            await checkpoint()
            others += 1

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        while others < 5:  # for ever, if they held the loop
            await made.exports.i32.call_async(1)
        done = True


@every_loop
async def test_call_of_a_cancelled_scope_does_not_start() -> None:
    called: list[int] = []
    made = await warm(instance(CALLER, {"host": {"f": called.append}}), "plain", 1)

    with anyio.CancelScope() as scope:
        scope.cancel()
        await made.exports.sum.call_async(1)

    assert scope.cancelled_caught
    assert called == []


async def test_cancelled_task_does_not_come_back_from_a_row_of_short_calls() -> None:
    made = await warm(instance(VALUES), "none")

    async def forever() -> None:
        while True:
            await made.exports.i32.call_async(1)

    task = asyncio.create_task(forever())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await made.exports.i32.call_async(1) == 1


def test_later_calls_work_on_trio() -> None:
    async def main() -> None:
        made = await warm(instance(VALUES), "none")
        assert await repeated(made.exports.i32, 4) == 4
        with anyio.CancelScope() as scope:
            scope.cancel()
            await made.exports.none.call_async()
        assert scope.cancelled_caught

    anyio.run(main, backend="trio")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here")
def test_signal_handler_that_raises_leaves_the_store_working() -> None:
    done = run_script("""
        import asyncio, signal, threading, warnings
        import asyncwasm as aw
        # What it says is so: a handler may raise where it tears a call apart, and ends its loop.
        warnings.filterwarnings("ignore", "the event loop was closed", ResourceWarning)
        TEXT = '''(module
          (func (export "one") (result i32) (i32.const 1))
          (func (export "work") (param $n i32)
            (loop (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))'''
        made = aw.Instance(aw.Module(aw.wat2wasm(TEXT)))
        calling = False

        def alarm(number, frame):
            global calling
            # Between two tasks asyncio itself loses what it is about to call, and waits for ever;
            # and where Thread.start waits, another exception comes out of it.
            while calling and frame is not None and frame.f_code.co_filename != threading.__file__:
                if frame.f_code is main.__code__ or aw.__path__[0] in frame.f_code.co_filename:
                    calling = False  # it may come where exceptions are ignored, as in a finalizer
                    raise KeyboardInterrupt  # asyncio would go on after any other
                frame = frame.f_back

        async def main():
            while calling:
                await made.exports.one.call_async()
                await made.exports.work.call_async(100_000)

        async def check():
            assert await made.exports.one.call_async() == 1
            assert made.exports.one() == 1

        signal.signal(signal.SIGALRM, alarm)
        for turn in range(200):
            try:
                calling = True
                signal.setitimer(signal.ITIMER_REAL, 0.001 + turn * 0.00002, 0.002)
                asyncio.run(main())
            except KeyboardInterrupt:
                pass
            calling = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        asyncio.run(check())
        print("fine")
    """)

    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr[-3000:]


# threads


def at_once(*jobs: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if failures:
        raise failures[0]


@pytest.mark.slow
def test_loops_on_several_threads_get_results_or_busy() -> None:
    made = instance(CALLER, {"host": {"f": lambda x: x}})
    plain = instance(SPIN)
    functions = (
        (made.exports.plain, 1, 2),
        (made.exports.sum, 3, 6),
        (plain.exports.work, 4000, None),
    )
    done: list[str] = []

    def job() -> None:
        async def main() -> None:
            for turn in range(1, 1501):
                for function, argument, wanted in functions:
                    try:
                        if wanted is None:
                            argument *= turn % 50 + 1
                        assert await function.call_async(argument) == wanted
                        done.append("done")
                    except anyio.BusyResourceError:
                        done.append("busy")

        asyncio.run(main())

    at_once(job, job, job)

    assert len(done) == 3 * 1500 * 3
    assert done.count("done") > 1500
    assert made.exports.sum(4) == 10
    assert plain.exports.one() == 1
    assert not made._store.handle.futures
    assert not plain._store.handle.futures


@pytest.mark.slow
async def test_call_that_has_begun_is_interrupted_when_another_thread_closes_its_store() -> None:
    text = """(module (memory (export "memory") 1) (func (export "plain"))
      (func (export "run") (i32.store8 (i32.const 0) (i32.const 1)) (loop (br 0))))"""

    def close(store: aw.Store, begun: memoryview) -> None:
        while not begun[0]:
            pass
        store.close()

    for _ in range(50):
        made = instance(text)
        await made.exports.plain.call_async()
        thread = threading.Thread(target=close, args=(made.store, made.exports.memory.buffer))
        thread.start()
        with pytest.raises(aw.Interrupted, match="closed"):
            await made.exports.run.call_async()
        thread.join()


def test_store_may_be_closed_by_another_thread_at_any_moment() -> None:
    for turn in range(60):
        made = instance(SPIN)
        started = threading.Event()
        seen: list[type[BaseException]] = []

        async def main(
            made: aw.Instance = made,
            started: threading.Event = started,
            seen: list[type[BaseException]] = seen,
        ) -> None:
            await warm(made, "one")
            one, work = made.exports.one, made.exports.work
            started.set()
            try:
                while True:
                    await one.call_async()
                    await work.call_async(500_000)
            except (aw.Interrupted, anyio.ClosedResourceError) as exc:
                seen.append(type(exc))

        def run(main: Callable[[], object] = main) -> None:
            asyncio.run(main())  # type: ignore[arg-type]

        def close(
            made: aw.Instance = made, started: threading.Event = started, turn: int = turn
        ) -> None:
            started.wait()
            for _ in range(turn * 20):
                pass
            made.close()

        at_once(run, close)

        assert len(seen) == 1
        assert made._store.handle.pointer == 0


async def test_dropped_call_leaves_nothing_in_its_store() -> None:
    ended: list[bool] = []

    async def wait(value: int) -> int:
        try:
            await asyncio.sleep(0)
        finally:
            ended.append(True)
        return value

    made = await warm(instance(CALLER, {"host": {"f": wait}}), "plain", 1)
    call = made.exports.call.call_async(1)
    assert call.send(None) is None
    call.close()

    assert ended == [True]
    assert not made._store.handle.futures
    assert await made.exports.call.call_async(1) == 1

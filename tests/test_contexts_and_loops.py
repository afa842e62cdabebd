"""Loops that end with calls in flight, loops on other threads, and one loop after another."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import anyio
import pytest

import asyncwasm as aw

from .guests import (
    GUEST,
    STARTER,
    Gate,
    check_stopped,
    guest,
    not_measured,
    setting,
    until,
    watching_offload,
)
from .support import module, wasm

loop_closed = pytest.mark.filterwarnings("ignore:the event loop was closed:ResourceWarning")
pytestmark = not_measured


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Let asyncio complain about tasks that never ended; nothing else may."""
    yield
    gc.collect()
    complaints = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert {each.getMessage().partition("\n")[0] for each in complaints} <= {
        "Task was destroyed but it is pending!"
    }


def loops() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    made: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    try:
        import uvloop
    except ImportError:
        pass
    else:
        made["uvloop"] = uvloop.new_event_loop
    return made


on_every_loop = pytest.mark.parametrize("new_loop", loops().values(), ids=loops().keys())
NewLoop = Callable[[], asyncio.AbstractEventLoop]


def abandon(
    loop: asyncio.AbstractEventLoop,
    start: Callable[[], Coroutine[Any, Any, Any]],
    reached: Callable[[], Coroutine[Any, Any, Any]],
) -> asyncio.Task[Any]:
    """Start a call, close the loop in the middle of it, and return its task."""

    async def main() -> asyncio.Task[Any]:
        task = asyncio.ensure_future(start())
        await reached()
        return task

    task = loop.run_until_complete(main())
    loop.close()
    return task


def check_usable(made: aw.Instance) -> None:
    """Check that the next call puts out what is left of one whose loop is gone."""
    assert made.exports.plain(1) == 2
    asyncio.run(check_stopped(made))


# a loop that ends with calls in flight


class Case(NamedTuple):
    """A call, how to tell that it has come far enough, and an instance of its store."""

    start: Callable[[], Coroutine[Any, Any, Any]]
    reached: Callable[[], Coroutine[Any, Any, Any]]
    instance: aw.Instance


@contextmanager
def waiting_in_an_import() -> Iterator[Case]:
    gate = Gate()
    made = guest(gate)
    yield Case(lambda: made.exports.call.call_async(1), gate.reached.wait, made)


@contextmanager
def queued() -> Iterator[Case]:
    made = guest(Gate())

    async def start() -> None:
        await asyncio.gather(*(made.exports.call.call_async(each) for each in range(3)))

    async def reached() -> None:
        await until(lambda: len(made._store.root.waiting) == 2)

    yield Case(start, reached, made)


@contextmanager
def nested() -> Iterator[Case]:
    gate = Gate()

    async def again(value: int) -> int:
        if value:
            return int(await made.exports.call.call_async(value - 1))
        return await gate(value)

    made = guest(again)
    yield Case(lambda: made.exports.call.call_async(2), gate.reached.wait, made)


@contextmanager
def nested_beside_its_import() -> Iterator[Case]:
    """In a task of its own, which may be collected in any order."""
    gate = Gate()

    async def start(value: int) -> int:
        if value:
            return int(await asyncio.ensure_future(made.exports.call.call_async(value - 1)))
        return await gate(value)

    made = guest(start)
    yield Case(lambda: made.exports.call.call_async(2), gate.reached.wait, made)


@contextmanager
def spinning_inline() -> Iterator[Case]:
    called = anyio.Event()
    made = guest(setting(called))
    yield Case(lambda: made.exports.call_and_spin.call_async(1), called.wait, made)


@contextmanager
def spinning_on_a_thread() -> Iterator[Case]:
    made = guest()
    runners = made.store.engine._core.runners
    with watching_offload(made.store.engine) as offload:
        yield Case(made.exports.spin.call_async, offload.happened, made)
        # The thread notices that nobody waits any more.
        asyncio.run(until(lambda: not runners._running and not runners.waiting))


@contextmanager
def in_a_start_function() -> Iterator[Case]:
    gate = Gate()
    store = aw.Store()
    yield Case(
        lambda: aw.instantiate(module(STARTER), {"host": {"f": gate}}, store=store),
        gate.reached.wait,
        guest(store=store),
    )


CASES = [
    waiting_in_an_import,
    queued,
    nested,
    nested_beside_its_import,
    spinning_inline,
    spinning_on_a_thread,
    in_a_start_function,
]


@loop_closed
@on_every_loop
@pytest.mark.parametrize("kept", [False, True], ids=["collected", "kept"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_store_works_after_its_loop_was_closed_in_the_middle_of_a_call(
    case: Callable[[], AbstractContextManager[Case]], new_loop: NewLoop, kept: bool
) -> None:
    with case() as (start, reached, made):
        tasks = [abandon(new_loop(), start, reached)]
        if not kept:
            tasks.clear()
            gc.collect()

    check_usable(made)
    assert all(not task.done() for task in tasks)
    made.store.close()


@on_every_loop
def test_collected_call_is_unwound_by_that_alone(new_loop: NewLoop) -> None:
    reached = anyio.Event()

    async def wait(value: int) -> int:
        reached.set()
        await asyncio.Event().wait()
        return value

    made = guest(wait)
    abandon(new_loop(), lambda: made.exports.call.call_async(1), reached.wait)
    with pytest.warns(ResourceWarning, match="closed while function '.' was suspended"):
        gc.collect()

    assert not made._store.handle.futures
    check_usable(made)


@on_every_loop
def test_call_whose_loop_was_closed_is_put_out_with_a_warning(new_loop: NewLoop) -> None:
    gate = Gate()
    made = guest(gate)
    task = abandon(new_loop(), lambda: made.exports.call.call_async(1), gate.reached.wait)

    with pytest.warns(ResourceWarning, match="closed while function '.' was suspended"):
        assert made.exports.plain(1) == 2
    assert not task.done()
    del task
    gc.collect()  # which does not warn again


@on_every_loop
def test_loop_closed_while_a_module_compiles(new_loop: NewLoop) -> None:
    started, released = threading.Event(), threading.Event()
    engine = aw.Engine(aw.EngineConfig(compile_threads=1))

    def hold() -> None:
        started.set()
        released.wait()

    engine._core.compilers.submit(hold)
    assert started.wait(30)
    source = wasm('(module (func (export "f") (result i32) (i32.const 9)))')
    abandon(new_loop(), lambda: aw.compile(source, engine=engine), lambda: asyncio.sleep(0))
    released.set()

    compiled = asyncio.run(aw.compile(source, engine=engine))
    assert aw.Instance(compiled).exports.f() == 9
    engine.close()


@loop_closed
@on_every_loop
@pytest.mark.parametrize("spins", [False, True], ids=["waiting", "spinning"])
def test_store_can_be_closed_after_its_loop(new_loop: NewLoop, spins: bool) -> None:
    gate = Gate()
    made = guest(gate)
    loop = new_loop()

    async def main() -> asyncio.Task[Any]:
        with watching_offload(made.store.engine) as offload:
            if spins:
                task = asyncio.create_task(made.exports.spin.call_async())
                await offload.happened()
            else:
                task = asyncio.create_task(made.exports.call.call_async(1))
                await gate.reached.wait()
        return task

    task = loop.run_until_complete(main())
    loop.close()
    made.close()

    with pytest.raises(anyio.ClosedResourceError):
        made.exports.plain(1)
    assert not task.done()
    del task


@loop_closed
@pytest.mark.parametrize("kept", [False, True], ids=["collected", "kept"])
def test_call_of_another_loop_gets_the_turn_when_the_first_loop_is_gone(kept: bool) -> None:
    """Those before it in the line are not there any more, or have nobody who wakes them."""
    made = guest(Gate())
    first = asyncio.new_event_loop()

    async def main() -> list[asyncio.Task[Any]]:
        tasks = [asyncio.ensure_future(made.exports.call.call_async(each)) for each in range(3)]
        await until(lambda: len(made._store.root.waiting) == 2)
        return tasks

    tasks = first.run_until_complete(main())
    first.close()
    if not kept:
        tasks.clear()
        gc.collect()

    async def other() -> list[Any]:
        return await asyncio.gather(*(made.exports.plain.call_async(each) for each in range(2)))

    assert asyncio.run(asyncio.wait_for(other(), 30)) == [1, 2]
    assert all(not task.done() for task in tasks)
    check_usable(made)


def test_run_cancels_what_is_left_and_the_store_works() -> None:
    made = guest(Gate())
    left: list[asyncio.Future[Any]] = []

    async def main() -> None:
        left.append(asyncio.ensure_future(made.exports.spin.call_async()))
        left.append(asyncio.ensure_future(made.exports.call.call_async(1)))
        await asyncio.sleep(0)

    asyncio.run(main())

    assert [task.cancelled() for task in left] == [True, True]
    check_usable(made)


def test_coroutine_thrown_away_before_its_first_step_leaves_nothing() -> None:
    made = guest()

    coroutine = made.exports.plain.call_async(1)
    coroutine.close()

    check_usable(made)


def test_coroutine_closed_by_hand_in_another_context_is_unwound() -> None:
    """As the collector does: in whatever context it happens to run."""
    gate = Gate()
    made = guest(gate)

    async def main() -> None:
        coroutine = made.exports.call.call_async(1)
        contextvars.copy_context().run(coroutine.send, None)
        assert made._store.handle.futures
        contextvars.copy_context().run(coroutine.close)
        await check_stopped(made)

    asyncio.run(main())


# one loop after another, and on other threads


@on_every_loop
def test_store_can_be_used_from_one_loop_after_another(new_loop: NewLoop) -> None:
    async def double(value: int) -> int:
        await asyncio.sleep(0)
        return value * 2

    made = guest(double)

    for value in range(3):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            assert runner.run(made.exports.call.call_async(value)) == 2 * value
            assert runner.run(made.exports.call_twice.call_async(value)) == 4 * value

    check_usable(made)


def test_instance_made_in_one_loop_is_used_in_a_loop_on_a_thread() -> None:
    seen: list[int] = []

    async def look(value: int) -> int:
        await asyncio.sleep(0)
        seen.append(threading.get_ident())
        return value

    async def make() -> aw.Instance:
        return (await aw.instantiate(wasm(GUEST), {"host": {"f": look}})).instance

    made = asyncio.run(make())
    results: list[int] = []

    def work() -> None:
        seen.append(threading.get_ident())
        results.append(asyncio.run(made.exports.call.call_async(5)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert results == [5]
    assert seen[0] == seen[1] != threading.get_ident()


def test_loops_on_two_threads_spin_and_wait_independently() -> None:
    """Signals of one loop never wake the other."""
    barrier = threading.Barrier(2)
    results: list[int] = []

    async def main(made: aw.Instance, view: memoryview) -> int:
        with watching_offload(made.store.engine) as offload:
            task = asyncio.ensure_future(made.exports.until.call_async())
            await offload.happened()
            view[0] = 1
            return int(await task)

    def work() -> None:
        with aw.Engine() as engine:
            made = guest(engine=engine)
            barrier.wait()
            results.append(asyncio.run(main(made, made.exports.memory.buffer)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [1, 1]


def test_import_on_another_thread_can_nest_a_sync_call() -> None:
    """A context that was copied to the thread says on whose behalf it runs."""

    async def work(value: int) -> int:
        return await asyncio.to_thread(made.exports.malloc, value)

    made = guest(work)

    assert asyncio.run(made.exports.call_twice.call_async(16)) == 1024 + 16
    check_usable(made)


def test_call_of_an_import_that_starts_with_an_empty_context_waits_its_turn() -> None:
    """Nothing tells then that it is made on behalf of a call, which must not wait for it."""
    tasks: list[asyncio.Task[Any]] = []

    async def work(value: int) -> int:
        loop = asyncio.get_running_loop()
        tasks.append(
            loop.create_task(made.exports.plain.call_async(value), context=contextvars.Context())
        )
        await until(lambda: made._store.root.waiting)
        return value

    made = guest(work)

    async def main() -> tuple[int, int]:
        outer = await made.exports.call.call_async(1)
        return outer, await tasks[0]

    assert asyncio.run(main()) == (1, 2)
    check_usable(made)


def test_host_call_marker_is_gone_after_the_import() -> None:
    """What an import leaves in the context is the user's only."""
    before = set(contextvars.copy_context())

    async def main() -> set[object]:
        async def work(value: int) -> int:
            await asyncio.sleep(0)
            return value

        made = guest(work)
        await made.exports.call.call_async(1)
        return {
            variable
            for variable, value in contextvars.copy_context().items()
            if value is not None and variable not in before
        }

    assert asyncio.run(main()) == set()

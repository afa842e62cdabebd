"""
Cancelling an awaited call: at each point where it awaits, in each way that a loop has.

Afterwards nothing is left of the call, nobody polls it, and its store works.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import asyncwasm as aw

from .guests import (
    STARTER,
    Gate,
    check_stopped,
    guest,
    not_measured,
    setting,
    until,
    watching_offload,
)
from .support import instance, module, wasm

pytestmark = not_measured
every_loop = pytest.mark.every_loop


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Let coroutines that were never awaited, or never ended, say so in the test they are of."""
    yield
    gc.collect(1)


@dataclass
class Point:
    """A call, when it has come to where it is to be cancelled, and an instance of its store."""

    call: Callable[[], Coroutine[Any, Any, object]]
    reached: Callable[[], Awaitable[object]]
    instance: aw.Instance


Place = Callable[[], AbstractAsyncContextManager[Point]]


# where a call can be when it is cancelled


@asynccontextmanager
async def spinning_inline() -> AsyncIterator[Point]:
    called = anyio.Event()
    made = guest(setting(called))
    yield Point(lambda: made.exports.call_and_spin.call_async(1), called.wait, made)


@asynccontextmanager
async def spinning_on_a_thread() -> AsyncIterator[Point]:
    made = guest()
    with watching_offload(made.store.engine) as offload:
        yield Point(made.exports.spin.call_async, offload.happened, made)


@asynccontextmanager
async def waiting_for_a_thread() -> AsyncIterator[Point]:
    """All threads are taken by others."""
    engine = aw.Engine()
    busy, released = threading.Semaphore(0), threading.Event()
    blockers = engine._core.runners._limit

    def block() -> None:
        busy.release()
        released.wait()

    for _ in range(blockers):
        engine._core.runners.submit(block)
    for _ in range(blockers):
        busy.acquire()
    made = guest(engine=engine)

    async def reached() -> None:
        await until(lambda: engine._core.runners.waiting)

    try:
        yield Point(made.exports.spin.call_async, reached, made)
    finally:
        released.set()
        engine.close()


@asynccontextmanager
async def inside_of_an_import() -> AsyncIterator[Point]:
    gate = Gate()
    made = guest(gate)
    yield Point(lambda: made.exports.call.call_async(1), gate.reached.wait, made)


@asynccontextmanager
async def queued_behind_another_call() -> AsyncIterator[Point]:
    gate = Gate()
    made = guest(gate)

    async def reached() -> None:
        await until(lambda: made._store.root.waiting)

    async with anyio.create_task_group() as group:
        group.start_soon(made.exports.call.call_async, 1)
        await gate.reached.wait()
        yield Point(lambda: made.exports.plain.call_async(1), reached, made)
        assert not made._store.root.waiting
        gate.opened.set()


@asynccontextmanager
async def in_the_start_function() -> AsyncIterator[Point]:
    gate = Gate()
    store = aw.Store()
    yield Point(
        lambda: aw.instantiate(module(STARTER), {"host": {"f": gate}}, store=store),
        gate.reached.wait,
        guest(store=store),
    )


@asynccontextmanager
async def in_a_spinning_start_function() -> AsyncIterator[Point]:
    store = aw.Store()
    made = guest(store=store)
    imports = {"host": {"f": lambda value: 1}}
    with watching_offload(store.engine) as offload:
        yield Point(
            lambda: aw.instantiate(module(STARTER), imports, store=store), offload.happened, made
        )


@asynccontextmanager
async def nested_three_deep() -> AsyncIterator[Point]:
    gate = Gate()

    async def again(value: int) -> int:
        if value:
            return int(await made.exports.call.call_async(value - 1))
        return await gate(value)

    made = guest(again)
    yield Point(lambda: made.exports.call.call_async(2), gate.reached.wait, made)


@asynccontextmanager
async def spinning_three_deep() -> AsyncIterator[Point]:
    async def again(value: int) -> int:
        if value:
            return int(await made.exports.call.call_async(value - 1))
        return int(await made.exports.spin.call_async())

    made = guest(again)
    with watching_offload(made.store.engine) as offload:
        yield Point(lambda: made.exports.call.call_async(1), offload.happened, made)


@asynccontextmanager
async def in_another_store() -> AsyncIterator[Point]:
    gate = Gate()
    inner = guest(gate)

    async def call(value: int) -> int:
        return int(await inner.exports.call.call_async(value))

    made = guest(call)
    yield Point(lambda: made.exports.call.call_async(1), gate.reached.wait, made)
    await check_stopped(inner)


@asynccontextmanager
async def waiting_for_what_its_import_started() -> AsyncIterator[Point]:
    gate = Gate()

    async def start(value: int) -> int:
        if value == 0:
            return await gate(value)
        group.start_soon(made.exports.call.call_async, 0)
        await gate.reached.wait()
        returned.set()
        return value

    async def reached() -> None:
        await returned.wait()
        for _ in range(3):
            await checkpoint()

    made = guest(start)
    returned = anyio.Event()
    async with anyio.create_task_group() as group:
        yield Point(lambda: made.exports.call.call_async(1), reached, made)
        assert made._store.root.current is not None
        gate.opened.set()


@asynccontextmanager
async def interleaving() -> AsyncIterator[Point]:
    gate = Gate()
    made = guest(gate, store=aw.Store(interleave=True))

    async def reached() -> None:
        await until(lambda: len(gate.seen) == 2)

    async with anyio.create_task_group() as group:
        group.start_soon(made.exports.call.call_async, 1)
        yield Point(lambda: made.exports.call.call_async(2), reached, made)
        gate.opened.set()


PLACES: list[Place] = [
    spinning_inline,
    spinning_on_a_thread,
    waiting_for_a_thread,
    inside_of_an_import,
    queued_behind_another_call,
    in_the_start_function,
    in_a_spinning_start_function,
    nested_three_deep,
    spinning_three_deep,
    in_another_store,
    waiting_for_what_its_import_started,
    interleaving,
]
at_every_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)


# ways of cancelling it


async def by_cancel(point: Point) -> None:
    task = asyncio.ensure_future(point.call())
    await point.reached()
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert task.cancelling() == 1


async def by_cancelling_twice(point: Point) -> None:
    task = asyncio.ensure_future(point.call())
    await point.reached()
    task.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelling() == 2


async def by_cancelling_again_while_it_stops(point: Point) -> None:
    task = asyncio.ensure_future(point.call())
    await point.reached()
    passes = 0
    while not task.done():
        task.cancel()
        passes += 1
        await asyncio.sleep(0)
    assert task.cancelled()
    assert task.cancelling() == passes


async def by_asyncio_timeout(point: Point) -> None:
    async def expire(scope: asyncio.Timeout) -> None:
        await point.reached()
        scope.reschedule(0)

    async def call() -> None:
        async with asyncio.timeout(None) as scope, asyncio.TaskGroup() as group:
            group.create_task(expire(scope))
            await point.call()

    with pytest.raises(TimeoutError):
        await call()
    assert _cancelling() == 0


async def by_two_asyncio_timeouts(point: Point) -> None:
    """Each has to find its own cancellation, even the one that comes while the call stops."""

    async def expire(*scopes: asyncio.Timeout) -> None:
        await point.reached()
        for scope in scopes:
            scope.reschedule(0)

    async def call() -> None:
        async with (
            asyncio.timeout(None) as outer,
            asyncio.timeout(None) as inner,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(expire(inner, outer))
            await point.call()

    with pytest.raises(TimeoutError):
        await call()
    assert _cancelling() == 0


def _cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def by_task_group(point: Point) -> None:
    async def fail() -> None:
        await point.reached()
        raise LookupError

    tasks: list[asyncio.Task[object]] = []

    async def call() -> None:
        async with asyncio.TaskGroup() as group:
            tasks.append(group.create_task(point.call()))
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as caught:
        await call()
    assert [type(each) for each in caught.value.exceptions] == [LookupError]
    assert tasks[0].cancelled()


async def by_cancel_scope(point: Point) -> None:
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(_cancel, point, scope)
            await point.call()
    assert scope.cancelled_caught


async def by_move_on_after(point: Point) -> None:
    async with anyio.create_task_group() as group:
        with anyio.move_on_after(1000) as scope:
            group.start_soon(_expire, point, scope)
            await point.call()
    assert scope.cancelled_caught


async def by_fail_after(point: Point) -> None:
    async with anyio.create_task_group() as group:

        async def call() -> None:
            with anyio.fail_after(1000) as scope:
                group.start_soon(_expire, point, scope)
                await point.call()

        with pytest.raises(TimeoutError):
            await call()


async def by_anyio_task_group(point: Point) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(point.call)
        await point.reached()
        group.cancel_scope.cancel()


async def _cancel(point: Point, scope: anyio.CancelScope) -> None:
    await point.reached()
    scope.cancel()


async def _expire(point: Point, scope: anyio.CancelScope) -> None:
    await point.reached()
    scope.deadline = anyio.current_time()


Way = Callable[[Point], Awaitable[None]]
ANYIO_WAYS: list[Way] = [by_cancel_scope, by_move_on_after, by_fail_after, by_anyio_task_group]
ASYNCIO_WAYS: list[Way] = [
    by_cancel,
    by_cancelling_twice,
    by_cancelling_again_while_it_stops,
    by_asyncio_timeout,
    by_two_asyncio_timeouts,
    by_task_group,
]


async def _cancelled(place: Place, way: Way) -> None:
    async with place() as point:
        with anyio.fail_after(30):
            await way(point)
    await check_stopped(point.instance)


@every_loop
@at_every_place
@pytest.mark.parametrize("way", [*ASYNCIO_WAYS, *ANYIO_WAYS], ids=lambda way: way.__name__)
async def test_cancelled_call_leaves_nothing_behind(place: Place, way: Way) -> None:
    await _cancelled(place, way)


@at_every_place
@pytest.mark.parametrize("way", ANYIO_WAYS, ids=lambda way: way.__name__)
def test_cancelled_call_leaves_nothing_behind_on_trio(place: Place, way: Way) -> None:
    anyio.run(_cancelled, place, way, backend="trio")


# what else there is to it


@every_loop
async def test_call_of_a_cancelled_scope_does_not_start() -> None:
    """Cancellation is checked on entry."""
    called: list[int] = []
    made = guest(called.append)

    with anyio.CancelScope() as scope:
        scope.cancel()
        await made.exports.call.call_async(1)

    assert scope.cancelled_caught
    assert called == []
    await check_stopped(made)


@every_loop
async def test_import_that_swallows_the_cancellation_lets_the_guest_go_on() -> None:
    """As a coroutine that is awaited directly would."""
    gate = Gate()

    async def swallow(value: int) -> int:
        try:
            return await gate(value)
        except asyncio.CancelledError:
            return -1

    made = guest(swallow)
    task = asyncio.ensure_future(made.exports.call.call_async(1))
    await gate.reached.wait()
    task.cancel()

    assert await task == -1
    await check_stopped(made)


@every_loop
async def test_import_that_turns_the_cancellation_into_an_error_raises_it() -> None:
    gate = Gate()
    error = LookupError("mine")

    async def convert(value: int) -> int:
        try:
            return await gate(value)
        except asyncio.CancelledError:
            raise error from None

    made = guest(convert)
    task = asyncio.ensure_future(made.exports.call.call_async(1))
    await gate.reached.wait()
    task.cancel()

    with pytest.raises(LookupError) as caught:
        await task
    assert caught.value is error
    await check_stopped(made)


@every_loop
async def test_import_can_clean_up_with_a_nested_call_when_cancelled() -> None:
    """The guest's `free`, say."""
    gate = Gate()
    freed: list[int] = []

    async def clean_up(value: int) -> int:
        try:
            return await gate(value)
        finally:
            freed.append(made.exports.malloc(8))
            with anyio.CancelScope(shield=True):
                freed.append(await made.exports.malloc.call_async(8))

    made = guest(clean_up)
    task = asyncio.ensure_future(made.exports.call.call_async(1))
    await gate.reached.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert freed == [1024, 1032]
    await check_stopped(made)


async def test_timeout_inside_of_an_import_can_be_caught_by_the_guest() -> None:
    """It is an ordinary exception by the time it leaves the import."""

    async def fail(value: int) -> int:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
        return value

    made = guest(fail)

    with pytest.raises(TimeoutError):
        await made.exports.call.call_async(1)
    await check_stopped(made)


@every_loop
async def test_calls_queued_behind_a_cancelled_one_run_in_order() -> None:
    gate = Gate()
    order: list[int] = []

    async def record(value: int) -> int:
        order.append(value)
        return await gate(value) if value == 0 else value

    made = guest(record)
    tasks = [asyncio.ensure_future(made.exports.call.call_async(each)) for each in range(5)]
    await gate.reached.wait()
    await until(lambda: len(made._store.root.waiting) == 4)
    tasks[2].cancel()
    tasks[0].cancel()

    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in results[::2]] == [asyncio.CancelledError] * 2 + [int]
    assert order == [0, 1, 3, 4]
    await check_stopped(made)


@every_loop
async def test_call_cancelled_when_it_has_just_been_given_its_turn_hands_it_on() -> None:
    gate = Gate()
    made = guest(gate)
    first, second, third = [
        asyncio.ensure_future(made.exports.call.call_async(each)) for each in range(3)
    ]
    await gate.reached.wait()
    await until(lambda: len(made._store.root.waiting) == 2)
    gate.opened.set()
    await until(lambda: len(made._store.root.waiting) == 1)
    second.cancel()

    assert (await first, await third) == (0, 2)
    with pytest.raises(asyncio.CancelledError):
        await second
    assert gate.seen == [0, 2]
    await check_stopped(made)


async def test_exception_of_a_call_cancelled_before_it_was_told_is_not_the_next_ones() -> None:
    made = instance("""(module
      (memory (export "memory") 1)
      (tag $e (param i32))
      (func (export "late")
        (loop (br_if 0 (i32.eqz (i32.load8_u (i32.const 0)))))
        (throw $e (i32.const 1)))
      (func (export "trap") unreachable))""")
    view = made.exports.memory.buffer
    runners = made.store.engine._core.runners
    with watching_offload(made.store.engine) as offload:
        task = asyncio.ensure_future(made.exports.late.call_async())
        await offload.happened()
        view[0] = 1
        while runners._running:  # the loop does not get to run, so that the task is not told
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for _ in range(2):
        with pytest.raises(aw.Trap) as caught:
            await made.exports.trap.call_async()
        assert caught.value.code is aw.TrapCode.UNREACHABLE


async def test_cancelling_a_gather_of_nested_calls_leaves_the_queue_intact() -> None:
    """The import is told before the last of them has stopped."""

    async def both(value: int) -> int:
        await asyncio.gather(*(made.exports.spin.call_async() for _ in range(2)))
        return value

    made = guest(both)
    with watching_offload(made.store.engine) as offload:
        task = asyncio.ensure_future(made.exports.call.call_async(1))
        await offload.happened()
        queued = asyncio.ensure_future(made.exports.plain.call_async(1))
        await until(lambda: made._store.root.waiting)
        task.cancel()

        assert await queued == 2
    with pytest.raises(asyncio.CancelledError):
        await task
    await check_stopped(made)


@every_loop
async def test_cancelled_call_that_left_another_behind_keeps_the_room_for_it() -> None:
    """Else the next call would find the store busy, or share the guest's stack pointer."""
    tasks: list[asyncio.Task[Any]] = []

    async def leave(value: int) -> int:
        tasks.append(asyncio.ensure_future(made.exports.until.call_async()))
        await asyncio.Event().wait()
        return value

    made = guest(leave)
    view = made.exports.memory.buffer
    with watching_offload(made.store.engine) as offload:
        task = asyncio.ensure_future(made.exports.call.call_async(1))
        await offload.happened()  # of either
        await until(lambda: getattr(made._store.root.current, "occupied", False))
        queued = asyncio.ensure_future(made.exports.plain.call_async(1))
        await until(lambda: made._store.root.waiting)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(5):
            await checkpoint()
        assert not queued.done()
        view[0] = 1

        assert await tasks[0] == 1
        assert await queued == 2
    await check_stopped(made)


async def test_many_spinning_calls_can_be_cancelled_at_once() -> None:
    """A call that waits for a thread need not wait for it to be cancelled."""
    made = [guest() for _ in range(12)]
    with watching_offload(made[0].store.engine) as offload:
        tasks = [asyncio.ensure_future(each.exports.spin.call_async()) for each in made]
        await offload.happened()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    assert all(task.cancelled() for task in tasks)
    for each in made:
        await check_stopped(each)


# compiling


@asynccontextmanager
async def _compiler_held(engine: aw.Engine) -> AsyncIterator[threading.Event]:
    """Keep the only compile thread of *engine* busy until the event is set."""
    started, released = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        released.wait()

    engine._core.compilers.submit(hold)
    assert started.wait(30)
    try:
        yield released
    finally:
        released.set()


def _compilations(caplog: pytest.LogCaptureFixture) -> int:
    return sum("module_compiled" in each for each in caplog.messages)


def _one_compiler() -> aw.Engine:
    return aw.Engine(aw.EngineConfig(compile_threads=1))


UNIQUE = '(module (func (export "f") (result i32) (i32.const 77)) (@custom "cancel" "1"))'


async def _cancel_compiling(native: bool) -> None:
    engine = _one_compiler()
    source = wasm(UNIQUE)
    modules: list[aw.Module] = []

    async def compile() -> None:
        modules.append(await aw.compile(source, engine=engine))

    async with _compiler_held(engine) as released, anyio.create_task_group() as group:
        group.start_soon(compile)
        if native:
            task = asyncio.ensure_future(aw.compile(source, engine=engine))
            await checkpoint()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with anyio.create_task_group() as other:
                other.start_soon(lambda: aw.compile(source, engine=engine))
                await anyio.wait_all_tasks_blocked()
                other.cancel_scope.cancel()
        assert not released.is_set()  # the waiter was back before the compiler
        assert modules == []
        released.set()
    assert modules[0].byte_length == len(source)
    engine.close()


@every_loop
async def test_cancelled_wait_ends_at_once_and_the_compilation_serves_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "asyncwasm"):
        await _cancel_compiling(native=True)

    assert _compilations(caplog) == 1


def test_cancelled_wait_ends_at_once_and_the_compilation_serves_others_on_trio(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "asyncwasm"):
        anyio.run(_cancel_compiling, False, backend="trio")

    assert _compilations(caplog) == 1


async def test_compilation_that_everybody_left_is_kept_for_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "asyncwasm")
    engine = _one_compiler()
    async with _compiler_held(engine) as released:
        task = asyncio.ensure_future(aw.compile(wasm(UNIQUE), engine=engine))
        await checkpoint()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        later = asyncio.ensure_future(aw.compile(wasm(UNIQUE), engine=engine))
        await checkpoint()
        released.set()

        assert isinstance(await later, aw.Module)
    assert _compilations(caplog) == 1
    engine.close()


async def test_instantiation_cancelled_while_compiling_reads_no_imports() -> None:
    class Imports(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            raise AssertionError("imports are read after compiling")

    engine = _one_compiler()
    async with _compiler_held(engine):
        task = asyncio.ensure_future(aw.instantiate(wasm(STARTER), Imports(), engine=engine))
        await checkpoint()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    engine.close()


async def test_instantiation_cancelled_while_another_variant_compiles_closes_its_store() -> None:
    """Fuel needs other code than the module was compiled to."""
    engine = _one_compiler()
    made = aw.Module(wasm(UNIQUE), engine=engine)
    async with _compiler_held(engine) as released:
        task = asyncio.ensure_future(aw.instantiate(made, limits=aw.Limits(fuel=1000)))
        await checkpoint()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        released.set()

    again = await aw.instantiate(made, limits=aw.Limits(fuel=1000))
    assert await again.exports.f.call_async() == 77
    engine.close()


@every_loop
async def test_guest_that_fills_memory_again_and_again_is_stopped() -> None:
    """Between two instructions: one of them cannot be interrupted, but is over soon."""
    made = instance("""(module (memory 256)
      (func (export "fill") (loop
        (memory.fill (i32.const 0) (i32.const 1) (i32.const 0x1000000)) (br 0)))
      (func (export "plain") (result i32) (i32.const 2)))""")

    with anyio.move_on_after(0.02) as scope:
        await made.exports.fill.call_async()

    assert scope.cancelled_caught
    assert made.exports.plain() == 2
    assert await made.exports.plain.call_async() == 2

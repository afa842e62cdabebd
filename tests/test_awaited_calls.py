"""Awaited calls: where they run, what they see, in which order, and what comes back."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import asyncwasm as aw

from .guests import (
    GUEST,
    STARTER,
    Gate,
    check_stopped,
    guest,
    not_measured,
    until,
    watching_offload,
)
from .support import as_many, instance, module

pytestmark = not_measured
every_loop = pytest.mark.every_loop
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def suspending(function: Callable[[int], int]) -> Callable[[int], Coroutine[Any, Any, int]]:
    """Return *function* as an async import that lets the loop run first."""

    async def call(value: int) -> int:
        await checkpoint()
        return function(value)

    return call


def colours(function: Callable[[int], int]) -> dict[str, Any]:
    """Return *function* as each kind of import."""

    async def immediate(value: int) -> int:
        return function(value)

    return {"sync": function, "immediate": immediate, "suspending": suspending(function)}


in_every_colour = pytest.mark.parametrize("colour", ["sync", "immediate", "suspending"])


# what a call gives


@every_loop
async def test_short_call_finishes_before_anything_else_runs() -> None:
    """Letting the loop run would cost more than the call. Nothing is short on a busy machine."""
    ran: list[int] = []
    exports = guest().exports
    for attempt in range(100):
        asyncio.get_running_loop().call_soon(ran.append, attempt)

        assert await exports.plain.call_async(1) == 2
        if attempt not in ran:
            break
        await asyncio.sleep(0)

    assert attempt not in ran


@pytest.mark.parametrize(
    ("results", "body", "expected"),
    [
        ("", "", None),
        ("i32", "(i32.const -1)", -1),
        ("i32 f64 i64", "(i32.const 1) (f64.const 0.5) (i64.const -3)", (1, 0.5, -3)),
        ("v128", "(v128.const i64x2 1 0)", b"\1" + bytes(15)),
        ("externref", "(ref.null extern)", None),
    ],
    ids=["none", "one", "three", "vector", "null"],
)
async def test_results_of_an_awaited_call(results: str, body: str, expected: object) -> None:
    made = instance(f'(module (func (export "f") (result {results}) {body}))')

    assert await made.exports.f.call_async() == expected


@pytest.mark.parametrize("arguments", [(), (1, 2)], ids=["none", "two"])
async def test_wrong_number_of_arguments_is_raised_at_the_await(arguments: tuple[int]) -> None:
    coroutine = guest().exports.plain.call_async(*arguments)

    with pytest.raises(TypeError, match="1"):
        await coroutine


@pytest.mark.parametrize(
    ("argument", "error"),
    [("1", TypeError), (1.0, TypeError), (None, TypeError), (2**32, OverflowError)],
    ids=["str", "float", "None", "large"],
)
async def test_bad_argument_is_raised_at_the_await(argument: Any, error: type[Exception]) -> None:
    exports = guest().exports
    coroutine = exports.plain.call_async(argument)

    with pytest.raises(error):
        await coroutine

    assert await exports.plain.call_async(1) == 2


async def test_call_that_is_never_awaited_does_nothing() -> None:
    called: list[int] = []
    made = guest(called.append)

    made.exports.call.call_async(1).close()

    assert called == []
    await check_stopped(made)


async def test_trap_is_raised_with_its_frames() -> None:
    with pytest.raises(aw.Trap) as caught:
        await guest().exports["trap"].call_async()

    assert caught.value.code is aw.TrapCode.UNREACHABLE
    assert [frame.function for frame in caught.value.frames] == ["10"]


# where imports run


@every_loop
@in_every_colour
async def test_import_runs_in_the_callers_task_on_the_loops_thread(colour: str) -> None:
    seen: list[tuple[int, object]] = []

    def look(value: int) -> int:
        seen.append((threading.get_ident(), asyncio.current_task()))
        return value

    await guest(colours(look)[colour]).exports.call.call_async(1)

    assert seen == [(threading.get_ident(), asyncio.current_task())]


@every_loop
@in_every_colour
async def test_import_sees_and_changes_the_callers_context(colour: str) -> None:
    seen: list[str] = []

    def look(value: int) -> int:
        seen.append(variable.get())
        variable.set("import")
        return value

    variable.set("caller")
    await guest(colours(look)[colour]).exports.call.call_async(1)

    assert seen == ["caller"]
    assert variable.get() == "import"


@every_loop
async def test_import_is_inside_of_the_callers_cancel_scope() -> None:
    deadlines: list[float] = []

    async def cancel(value: int) -> int:
        deadlines.append(anyio.current_effective_deadline())
        scope.cancel()
        await anyio.sleep_forever()
        return value

    made = guest(cancel)
    with anyio.CancelScope(deadline=anyio.current_time() + 1000) as scope:
        await made.exports.call.call_async(1)

    assert scope.cancelled_caught
    assert deadlines == [scope.deadline]
    await check_stopped(made)


@every_loop
@in_every_colour
async def test_imports_run_on_the_loops_thread_after_the_guest_has_moved(colour: str) -> None:
    """The guest goes on on a worker thread; what it calls does not."""
    seen: list[tuple[int, object]] = []

    def look(value: int) -> int:
        seen.append((threading.get_ident(), asyncio.current_task()))
        return value

    made = guest(colours(look)[colour])
    view = made.exports.memory.buffer
    with watching_offload(made.store.engine) as offload:

        async def release() -> None:
            await offload.happened()
            view[0] = 1

        async with asyncio.TaskGroup() as group:
            group.create_task(release())
            assert await made.exports.call_until_call.call_async() == 2

    assert seen == [(threading.get_ident(), asyncio.current_task())] * 2
    assert threading.get_ident() not in offload.threads


# what imports raise


@every_loop
@in_every_colour
async def test_exception_of_an_import_arrives_as_the_same_object_with_the_frames(
    colour: str,
) -> None:
    error = LookupError("mine")

    def fail(value: int) -> int:
        raise error

    made = guest(colours(fail)[colour])
    with pytest.raises(LookupError) as caught:
        await made.exports.call.call_async(1)

    assert caught.value is error
    assert ["wasm backtrace" in note for note in error.__notes__] == [True]
    await check_stopped(made)


@every_loop
@in_every_colour
async def test_exception_group_passes_through(colour: str) -> None:
    group = ExceptionGroup("both", [ValueError(1), OSError(2)])

    def fail(value: int) -> int:
        raise group

    caught: list[ExceptionGroup[Any]] = []
    try:
        await guest(colours(fail)[colour]).exports.call.call_async(1)
    except* ValueError as part:
        caught.append(part)
    except* OSError as part:
        caught.append(part)

    assert [len(part.exceptions) for part in caught] == [1, 1]


async def test_group_with_a_base_exception_cannot_be_caught_by_the_guest() -> None:
    class Stop(BaseException):
        pass

    group = BaseExceptionGroup("both", [ValueError(1), Stop()])

    async def fail() -> None:
        raise group

    exports = instance(
        """(module (import "host" "f" (func $f)) (func (export "f")
          (block $caught (try_table (catch_all $caught) (call $f)))))""",
        {"host": {"f": fail}},
    ).exports
    with pytest.raises(BaseExceptionGroup) as caught:
        await exports.f.call_async()

    assert caught.value is group


async def test_stop_iteration_becomes_a_runtime_error_as_in_any_coroutine() -> None:
    """Python itself lets none out of a coroutine."""
    error = StopIteration(1)

    def fail(value: int) -> int:
        raise error

    with pytest.raises(RuntimeError) as caught:
        await guest(fail).exports.call.call_async(1)

    assert caught.value.__cause__ is error


async def test_exception_passes_through_three_nested_calls_unchanged() -> None:
    error = LookupError("mine")

    async def again(value: int) -> int:
        if value == 0:
            raise error
        return int(await exports.call.call_async(value - 1))

    made = guest(again)
    exports = made.exports
    with pytest.raises(LookupError) as caught:
        await exports.call.call_async(2)

    assert caught.value is error
    assert len(error.__notes__) == 3
    await check_stopped(made)


@pytest.mark.parametrize("value", ["1", None, 2**40], ids=["str", "None", "large"])
@in_every_colour
async def test_bad_result_of_an_import_is_raised(colour: str, value: Any) -> None:
    made = guest(colours(lambda _: value)[colour])

    with pytest.raises((TypeError, OverflowError)):
        await made.exports.call.call_async(1)

    await check_stopped(made)


# nested calls


@every_loop
@in_every_colour
async def test_import_can_call_the_guests_allocator(colour: str) -> None:
    def allocate(size: int) -> int:
        return int(made.exports.malloc(size))

    made = guest(colours(allocate)[colour])

    assert await made.exports.call_twice.call_async(16) == 1024 + 16
    await check_stopped(made)


@every_loop
async def test_import_can_await_the_guests_allocator() -> None:
    async def allocate(size: int) -> int:
        return int(await made.exports.malloc.call_async(size))

    made = guest(allocate)

    assert await made.exports.call_twice.call_async(16) == 1024 + 16
    await check_stopped(made)


@every_loop
async def test_nested_calls_return_in_order_however_deep() -> None:
    depths: list[int] = []

    async def again(value: int) -> int:
        depths.append(len(made._store.handle.futures))
        await checkpoint()
        return value + (int(await made.exports.call.call_async(value - 1)) if value else 0)

    made = guest(again)

    assert await made.exports.call.call_async(2) == 3
    assert depths == [1, 2, 3]
    await check_stopped(made)


@every_loop
async def test_call_into_another_store_and_back_does_not_deadlock() -> None:
    """A calls B, which calls A on behalf of the same running call."""

    async def to_b(value: int) -> int:
        return int(await b.exports.call.call_async(value))

    async def to_a(value: int) -> int:
        return int(await a.exports.plain.call_async(value)) + int(a.exports.plain(value))

    a, b = guest(to_b), guest(to_a)
    assert a.store is not b.store
    with anyio.fail_after(30):
        assert await a.exports.call.call_async(1) == 4

    await check_stopped(a)
    await check_stopped(b)


@every_loop
async def test_nested_call_jumps_the_queue() -> None:
    order: list[str] = []
    gate = Gate()

    async def allocate(value: int) -> int:
        await gate(value)
        order.append(f"nested {await made.exports.malloc.call_async(8)}")
        return value

    async def later(size: int) -> None:
        order.append(f"queued {await made.exports.malloc.call_async(size)}")

    made = guest(allocate)
    async with asyncio.TaskGroup() as group:
        group.create_task(made.exports.call.call_async(1))
        await gate.reached.wait()
        group.create_task(later(8))
        await until(lambda: made._store.root.waiting)
        gate.opened.set()

    assert order == ["nested 1024", "queued 1032"]


@every_loop
async def test_calls_gathered_inside_of_one_import_take_turns() -> None:
    running: list[int] = []

    async def work(value: int) -> int:
        if value == 0:
            return sum(
                await asyncio.gather(*(made.exports.call.call_async(each) for each in (1, 2, 3)))
            )
        running.append(value)
        await checkpoint()
        assert running == [value]
        running.remove(value)
        return value

    made = guest(work)

    assert await made.exports.call.call_async(0) == 6
    await check_stopped(made)


async def test_call_goes_on_only_when_what_its_import_started_is_over() -> None:
    """The other way round, two calls would share the guest's stack pointer."""
    order: list[str] = []
    tasks: list[asyncio.Task[Any]] = []
    inner = Gate()

    async def work(value: int) -> int:
        if value == 1:
            await inner(value)
            order.append("inner")
            return value
        tasks.append(asyncio.create_task(made.exports.call.call_async(1)))
        await inner.reached.wait()
        asyncio.get_running_loop().call_soon(inner.opened.set)
        return value

    made = guest(work)
    await made.exports.call.call_async(0)
    order.append("outer")

    assert order == ["inner", "outer"]
    assert await tasks[0] == 1
    await check_stopped(made)


async def test_task_that_an_import_started_waits_its_turn_after_the_call() -> None:
    tasks: list[asyncio.Task[Any]] = []
    started = asyncio.Event()

    async def later() -> Any:
        await started.wait()
        return await made.exports.plain.call_async(1)

    def spawn(value: int) -> int:
        tasks.append(asyncio.create_task(later()))
        return value

    made = guest(spawn)
    await made.exports.call.call_async(1)
    started.set()

    assert await tasks[0] == 2
    await check_stopped(made)


async def test_sync_call_whose_import_leaves_a_call_suspended_is_busy() -> None:
    """As an eager task does. Going on would put one guest on top of the other."""
    left: list[Coroutine[Any, Any, Any]] = []
    gate = Gate()
    caught_by_guest: list[int] = []

    def leave() -> None:
        left.append(exports.inner.call_async())
        left[0].send(None)

    async def wait() -> None:
        await gate(1)

    exports = instance(
        """(module (import "host" "leave" (func $leave)) (import "host" "wait" (func $wait))
          (import "host" "caught" (func $caught (param i32)))
          (func (export "inner") (call $wait))
          (func (export "outer")
            (block $all (try_table (catch_all $all) (call $leave)) (return))
            (call $caught (i32.const 1)))
          (func (export "one") (result i32) (i32.const 1)))""",
        {"host": {"leave": leave, "wait": wait, "caught": caught_by_guest.append}},
    ).exports

    with pytest.raises(anyio.BusyResourceError):
        exports.outer()
    with pytest.raises(anyio.BusyResourceError):
        exports.one()
    left[0].close()

    assert exports.one() == 1
    assert caught_by_guest == []


# turns


@every_loop
async def test_calls_into_one_store_queue_first_come_first_served() -> None:
    running: list[int] = []

    async def alone(value: int) -> int:
        running.append(value)
        await checkpoint()
        await checkpoint()
        assert running[-1] == value
        return value

    made = guest(alone)
    results = await asyncio.gather(*(made.exports.call.call_async(each) for each in range(20)))

    assert results == running == list(range(20))
    await check_stopped(made)


@every_loop
async def test_sync_call_while_another_tasks_call_is_suspended_is_busy() -> None:
    gate = Gate()
    made = guest(gate)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(made.exports.call.call_async(5))
        await gate.reached.wait()

        with pytest.raises(anyio.BusyResourceError):
            made.exports.plain(1)
        gate.opened.set()

    assert task.result() == 5
    await check_stopped(made)


async def test_sync_call_while_another_tasks_call_spins_is_busy() -> None:
    made = guest()
    view = made.exports.memory.buffer
    with watching_offload(made.store.engine) as offload:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(made.exports.until.call_async())
            await offload.happened()

            with pytest.raises(anyio.BusyResourceError):
                made.exports.plain(1)
            view[0] = 1

    assert task.result() == 1
    await check_stopped(made)


async def test_call_queues_behind_one_that_spins_on_a_thread() -> None:
    made = guest()
    view = made.exports.memory.buffer
    with watching_offload(made.store.engine) as offload:
        async with asyncio.TaskGroup() as group:
            spinning = group.create_task(made.exports.until.call_async())
            await offload.happened()
            queued = group.create_task(made.exports.plain.call_async(1))
            await until(lambda: made._store.root.waiting)
            view[0] = 1

    assert (spinning.result(), queued.result()) == (1, 2)
    await check_stopped(made)


@every_loop
async def test_export_can_be_looked_up_while_a_call_spins_on_a_thread() -> None:
    """Whoever wants to queue a call behind it has to get at the function first."""
    made = instance(GUEST, {"host": {"f": abs}})
    view = made.exports.memory.buffer
    with watching_offload(made.store.engine) as offload:
        async with asyncio.TaskGroup() as group:
            group.create_task(made.exports.until.call_async())
            await offload.happened()
            names = []
            for name in ("plain", "malloc", "call", "sum", "spin", "trap"):
                await checkpoint()
                names.append(made.exports[name].name)
            view[0] = 1

    assert all(names)


@every_loop
async def test_interleaving_calls_overlap() -> None:
    gates = [Gate(), Gate(), Gate()]
    finished: list[int] = []

    async def wait(value: int) -> int:
        return await gates[value](value)

    async def call(value: int) -> None:
        finished.append(await made.exports.call.call_async(value))

    made = guest(wait, store=aw.Store(interleave=True))
    async with asyncio.TaskGroup() as group:
        for value in range(3):
            group.create_task(call(value))
        for gate in gates:
            await gate.reached.wait()
        assert made.exports.plain(1) == 2
        for value in (1, 2, 0):
            gates[value].opened.set()
            await until(lambda: value in finished)

    assert finished == [1, 2, 0]
    await check_stopped(made)


@every_loop
async def test_interleaving_calls_that_spin_all_finish() -> None:
    """None finds the store busy because another one runs on a thread."""

    def allocate(size: int) -> int:
        return int(made.exports.malloc(size))

    made = guest(allocate, store=aw.Store(interleave=True))
    view = made.exports.memory.buffer
    beats = 0
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(made.exports.until.call_async()) for _ in range(3)]
        for _ in range(20):
            await checkpoint()
            assert await made.exports.call.call_async(8) == 1024 + 8 * beats
            beats += 1
        view[0] = 1

    assert [task.result() for task in tasks] == [1, 1, 1]
    await check_stopped(made)


# many


@pytest.mark.slow
async def test_thousand_instances_wait_in_imports_at_once_on_one_thread() -> None:
    opened = asyncio.Event()
    waiting = 0

    async def wait(value: int) -> int:
        nonlocal waiting
        waiting += 1
        await opened.wait()
        return value

    threads = threading.active_count()
    made = [
        instance(
            """(module (import "host" "f" (func $f (param i32) (result i32)))
              (func (export "call") (param i32) (result i32) (call $f (local.get 0))))""",
            {"host": {"f": wait}},
        )
        for _ in range(1000)
    ]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(each.exports.call.call_async(index))
            for index, each in enumerate(made)
        ]
        await until(lambda: waiting == 1000)
        assert threading.active_count() <= threads + 1  # the ticker
        opened.set()

    assert [task.result() for task in tasks] == list(range(1000))


@pytest.mark.slow
@every_loop
@pytest.mark.parametrize("colour", ["sync", "immediate"])
async def test_others_run_during_a_call_that_makes_many_imports(colour: str) -> None:
    """Neither kind lets the loop run by itself."""
    imports = 0

    def count(value: int) -> int:
        nonlocal imports
        imports += 1
        if imports == 20_000_000:
            raise AssertionError("nobody else gets to run")
        return 1

    exports = guest(colours(count)[colour]).exports
    turns = 0
    async with asyncio.TaskGroup() as group:
        calling = group.create_task(exports.sum.call_async(2**31))
        while imports < as_many(100_000) or turns < 30:
            await checkpoint()
            turns += 1
        calling.cancel()

    assert calling.cancelled()


# instantiation


@every_loop
async def test_start_function_can_await_an_import() -> None:
    gate = Gate()
    gate.opened.set()

    made = await aw.instantiate(module(STARTER), {"host": {"f": gate}})

    assert gate.seen == [0]
    assert isinstance(made, aw.Instance)


async def test_start_function_runs_its_import_in_the_callers_task() -> None:
    seen: list[object] = []

    def look(value: int) -> int:
        seen.append((threading.get_ident(), asyncio.current_task()))
        return value

    await aw.instantiate(module(STARTER), {"host": {"f": look}})

    assert seen == [(threading.get_ident(), asyncio.current_task())]


async def test_start_function_that_suspends_under_the_constructor_raises_suspend_error() -> None:
    with aw.Store() as store:
        made = guest()

        with pytest.raises(aw.SuspendError, match="instantiate"):
            aw.Instance(module(STARTER), {"host": {"f": suspending(abs)}}, store=store)

        await check_stopped(made)


async def test_instantiation_queues_behind_a_suspended_call_of_its_store() -> None:
    gate = Gate()
    with aw.Store() as store:
        made = guest(gate)
        async with asyncio.TaskGroup() as group:
            group.create_task(made.exports.call.call_async(1))
            await gate.reached.wait()
            task = group.create_task(aw.instantiate(module(STARTER), {"host": {"f": abs}}))
            await until(lambda: store._core.root.waiting)
            gate.opened.set()

        assert task.result().store is store


# closing


@every_loop
async def test_closing_the_store_ends_a_call_that_spins_on_a_thread() -> None:
    made = guest()
    with watching_offload(made.store.engine) as offload:
        task = asyncio.create_task(made.exports.spin.call_async())
        await offload.happened()
        made.close()

        with pytest.raises(aw.Interrupted) as caught:
            await task

    assert caught.value.reason == "closed"
    with pytest.raises(anyio.ClosedResourceError):
        await made.exports.plain.call_async(1)


async def test_closing_the_store_ends_a_suspended_call_and_those_behind_it() -> None:
    gate = Gate()
    made = guest(gate)
    tasks = [asyncio.create_task(made.exports.call.call_async(each)) for each in range(3)]
    await gate.reached.wait()
    await until(lambda: len(made._store.root.waiting) == 2)
    made.close()
    gate.opened.set()

    for task in tasks:
        with pytest.raises(aw.Interrupted):
            await task
    assert gate.seen == [0]


@in_every_colour
async def test_import_that_closes_the_store_ends_the_call(colour: str) -> None:
    """The guest that waits for the answer is gone, and its memory with it."""

    def close(value: int) -> int:
        made.close()
        return value

    made = guest(colours(close)[colour])
    with pytest.raises(aw.Interrupted) as caught:
        await made.exports.call.call_async(1)

    assert caught.value.reason == "closed"


@in_every_colour
async def test_result_that_closes_the_store_while_it_is_converted_ends_the_call(
    colour: str,
) -> None:
    class Closing:
        def __index__(self) -> int:
            made.close()
            return 1

    made = guest(colours(lambda _: Closing())[colour])  # type: ignore[arg-type,return-value]
    with pytest.raises(aw.Interrupted):
        await made.exports.call.call_async(1)


async def test_argument_that_closes_the_store_while_it_is_converted_is_refused() -> None:
    class Closing:
        def __index__(self) -> int:
            made.close()
            return 1

    made = guest()
    with pytest.raises(anyio.ClosedResourceError):
        await made.exports.plain.call_async(Closing())


async def test_closing_the_engine_lets_calls_on_threads_finish() -> None:
    """`Engine.close` says that existing stores go on to work."""
    engine = aw.Engine()
    made = aw.Module(aw.wat2wasm(GUEST), engine=engine)
    instances = [aw.Instance(made, {"host": {"f": abs}}) for _ in range(4)]
    views = [each.exports.memory.buffer for each in instances]
    jobs: list[object] = []
    submit = engine._core.runners.submit

    def closing(job: Callable[[], None]) -> None:
        jobs.append(job)
        if len(jobs) > len(instances):  # a worker lets the next have its thread
            engine.close()
        submit(job)

    engine._core.runners.submit = closing  # type: ignore[method-assign]
    tasks = [asyncio.create_task(each.exports.until.call_async()) for each in instances]
    await until(lambda: engine.closed)
    for view in views:
        view[0] = 1

    assert await asyncio.gather(*tasks) == [1, 1, 1, 1]


# references

KEEPER = """(module
  (import "host" "f" (func $f (param externref i32) (result externref)))
  (func (export "keep") (param externref i32) (result externref externref)
    (local.get 0) (call $f (local.get 0) (local.get 1)))
  (func (export "pass") (param externref) (result externref) (local.get 0)))"""


class Thing:
    """Something that a guest holds on its stack only."""


@every_loop
async def test_references_of_suspended_calls_survive_collections() -> None:
    """The collector must see the stack of every call that is alive."""

    async def work(thing: object, depth: int) -> object:
        await checkpoint()
        churn()
        if depth:
            mine = Thing()
            first, second = await exports.keep.call_async(mine, depth - 1)
            assert (first, second) == (mine, mine)
            churn()
        return thing

    def churn() -> None:
        for _ in range(100):
            getattr(exports, "pass")(Thing())
        gc.collect()

    exports = instance(KEEPER, {"host": {"f": work}}).exports
    thing = Thing()

    assert await exports.keep.call_async(thing, 2) == (thing, thing)


@every_loop
async def test_call_left_behind_by_a_cancelled_one_keeps_the_room() -> None:
    """Else the next would run, and collect, beside a stack that nobody looks at."""
    inner = Gate()
    tasks: list[asyncio.Task[Any]] = []
    order: list[int] = []

    async def work(thing: object, depth: int) -> object:
        if depth == 2:
            tasks.append(asyncio.create_task(exports.keep.call_async(Thing(), 1)))
            await asyncio.Event().wait()
        if depth == 1:
            await inner(1)
        for _ in range(100):
            getattr(exports, "pass")(Thing())
        gc.collect()
        order.append(depth)
        return thing

    made = instance(KEEPER, {"host": {"f": work}})
    exports = made.exports
    outer = asyncio.create_task(exports.keep.call_async(Thing(), 2))
    await inner.reached.wait()
    queued = asyncio.create_task(exports.keep.call_async(Thing(), 0))
    await until(lambda: made._store.root.waiting)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    inner.opened.set()

    for task in (*tasks, queued):
        first, second = await task
        assert isinstance(first, Thing)
        assert first is second
    assert order == [1, 0]
    assert made._store.root.current is None


if sys.version_info >= (3, 12):

    async def test_eager_task_that_finishes_at_once_never_meets_the_loop() -> None:
        exports = guest().exports
        loop = asyncio.get_running_loop()

        task = asyncio.Task(exports.plain.call_async(1), loop=loop, eager_start=True)

        assert task.done()
        assert task.result() == 2
        assert inspect.iscoroutinefunction(exports.plain.call_async) is False

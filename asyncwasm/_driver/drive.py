"""
Driving operations: polls inline, lets the loop run, moves long work to threads, awaits imports.

Guarantees:
- An operation is driven in the task that awaits it; no task is created.
- Imports, sync or async, run in that task, on the event loop's thread.
- However the drive ends, the operation has been left: its guest is unwound, its room in the
  store is free, and no thread polls it any more.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from time import perf_counter, sleep
from typing import Any

import anyio

from .._errors import Trap
from .._ffi.fiber import ANSWERED, DONE, IMPORT, YIELDED, Fiber, State
from .._objects.function import ExportedFunction, Function, Shape
from .._runtime.hostcall import HostCall, current
from .._runtime.operation import Operation
from .._runtime.threads import take
from .checkpoints import at_ease, checkpoint, checkpoint_if_cancelled
from .signal import AsyncioSignal, TrioSignal, closable_loop, new_signal
from .turns import spent, wait_for_turn

SLICE_SECONDS = 0.001  # inline, before the loop gets to run
INLINE_SLICES = 2  # before the work moves to a thread
QUANTUM_SECONDS = 0.01  # on a thread, while others wait for one
PAUSE_SECONDS = 0.0002  # outside, for those who wait to look at something in the store
_UNFINISHED = frozenset((type(NotImplemented), Fiber, HostCall))  # what a quick call may bring back
LENGTHY = 3  # calls in a row that were over soon, until a function does not count as lengthy


async def call(function: ExportedFunction, arguments: tuple[Any, ...]) -> Any:
    """Call *function* on a fiber, and return its result."""
    if not at_ease():
        await checkpoint_if_cancelled()
    shape = function._shape
    if shape.lengthy:
        outcome = NotImplemented
    else:
        outcome = (function._quick or function._quick_way())(function, arguments)
        if outcome.__class__ not in _UNFINISHED:
            return outcome
    if outcome is NotImplemented:
        operation = function._operation(arguments)
        await wait_for_turn(operation.store.engine.ticker.clock)
    elif outcome.__class__ is Fiber:
        operation = function._operation(arguments, outcome)
        del outcome
    else:
        try:
            operation = outcome.begin()
        except BaseException:
            await _finish(outcome)
            raise
        try:
            return await _drive(operation, shape, outcome.take_outcome())
        finally:
            if operation.fiber is not None:  # there was not even room for that call
                _leave(outcome)
                operation.leave()
    return await _drive(operation, shape)


async def call_host(function: Function, arguments: tuple[Any, ...]) -> Any:
    """Call the callable of *function*, with the conversions but without any wasm."""
    value = function._begin(arguments)
    host = function._host
    if not host.suspending:
        value = host.checked(value)
    elif inspect.isawaitable(value):
        value = await value
    return function._finish(value)


async def drive(operation: Operation) -> Any:
    """Run *operation* to its end, and return its result."""
    await checkpoint_if_cancelled()
    await wait_for_turn(operation.store.engine.ticker.clock)
    return await _drive(operation)


async def _finish(call: HostCall) -> None:
    """Let a host function that waits go on to its end, for a guest that will not go on."""
    begun, call.outcome = call.outcome, None
    if begun is None or begun[-1] is not call:
        return
    try:
        with suppress(Exception):  # nobody is there to whom it could be raised
            if inspect.isawaitable(begun[0]):
                await begun[0]
    finally:
        _leave(call)


async def _drive(
    operation: Operation, shape: Shape | None = None, outcome: tuple[Any, ...] | None = None
) -> Any:
    """Go on until the end; *outcome* is that of a host function, if the operation has the room."""
    ticker = operation.store.engine.ticker
    now, clock = ticker.now, ticker.clock
    state: State | tuple[Any, ...] | None = outcome
    del outcome
    # First of all: whatever tears the drive apart, the next one can tell that nobody goes on.
    operation.loop = closable_loop()
    try:
        if state is None and not operation.enter():
            await _wait_for_turn(operation)
        started = now()
        slices = 0
        if state is None:
            if _sleeps(operation):
                operation.begin()
                state = await _poll_on_thread(operation)
            elif shape is not None and shape.lengthy and not clock.manual and _may_move(operation):
                operation.begin()
                state = await _poll_on_thread(operation)
                # What was over within a slice was lengthy once, and may not be any more.
                habit = shape.lengthy + (1 if now() - started > SLICE_SECONDS else -1)
                # Others may have counted meanwhile: below zero it would never come back.
                shape.lengthy = max(0, min(habit, LENGTHY))
                started = now()
            else:
                state = operation.advance(SLICE_SECONDS)
        while state is not DONE:
            if state is IMPORT or state is ANSWERED or isinstance(state, tuple):
                if state is IMPORT:
                    await _call_host(operation)
                elif isinstance(state, tuple) and state[-1].__class__ is HostCall:
                    await _call_host(operation, state)
                elif isinstance(state, tuple):
                    if operation.occupied:
                        await _wait_for_children(operation)
                    operation.settle(state)
                # Also after an import that was awaited: whether the loop has run meanwhile
                # cannot be told, and an import that has its answer at hand does not let it.
                if now() - started >= SLICE_SECONDS:
                    await checkpoint()
                    started = now()
                slices = 0
            elif now() - started >= SLICE_SECONDS:
                slices += 1
                if (slices > INLINE_SLICES or spent(clock)) and _may_move(operation):
                    if shape is not None and not shape.lengthy:
                        shape.lengthy = 1
                    state = await _poll_on_thread(operation)
                    started = now()
                    slices = 0
                    continue
                await checkpoint()
                started = now()
            if _sleeps(operation):
                state = await _poll_on_thread(operation)
            else:
                state = operation.advance(SLICE_SECONDS)
        return operation.result()
    except GeneratorExit:
        operation.mourn()
        raise
    finally:
        if isinstance(state, tuple) and state[-1].__class__ is HostCall:
            _leave(state[-1])  # there may have been no room to await it
        state = None  # it may hold an exception, whose traceback holds this frame
        operation.leave()


def _may_move(operation: Operation) -> bool:
    """Return whether the operation's work can go to a thread."""
    # In an interleaving store others are polled meanwhile, and imports call into it: on this
    # thread. They would find the store busy.
    return operation.lane is not None and not operation.store.engine.closed


def _sleeps(operation: Operation) -> bool:
    """Return whether it has to run on a thread, because its guest may sleep there."""
    return operation.store.sleeps and _may_move(operation)


async def _wait_for_turn(operation: Operation) -> None:
    """Wait in line; on return the operation has the room."""
    lane = operation.lane
    assert lane is not None
    signal = new_signal()
    if lane.take(operation, signal):
        return
    try:
        await signal.wait()
    except BaseException:
        lane.give_up(operation)  # if it has the room already, `leave` hands it on
        raise
    if lane.current is not operation:  # it was woken because the store has been closed
        raise operation.store.unavailable(operation)


async def _call_host(operation: Operation, begun: tuple[Any, ...] | None = None) -> None:
    """Answer the guest's request; *begun* is what a suspending host has returned, and its call."""
    call: HostCall = HostCall(operation) if begun is None else begun[1]
    if begun is None:
        current.set(call)
    try:
        if begun is None:
            host = operation.host
            value = host.callable(*operation.arguments())
            if not host.suspending:
                value = host.checked(value)
            elif inspect.isawaitable(value):
                value = await value
        else:
            value = begun[0]
            if inspect.isawaitable(value):
                value = await value
        call.active = False
        if operation.occupied:
            await _wait_for_children(operation)
        operation.answer(value)
    except Trap:
        raise
    except Exception as exc:
        if operation.occupied:
            call.active = False
            await _wait_for_children(operation)
        operation.throw(exc)
    finally:
        _leave(call)


def _leave(call: HostCall) -> None:
    """Note that the host function is over; idempotent."""
    call.active = False
    if current.get() is call:  # else the loop is gone, and this is another context
        current.set(call.outer)


async def _wait_for_children(operation: Operation) -> None:
    """Wait until nothing that the import has started runs on top of *operation*."""
    lane = operation.children
    signal = new_signal()
    try:
        if not lane.take(operation, signal):
            await signal.wait()
    finally:
        lane.give_up(operation)
        if lane.current is operation:
            lane.leave()


async def _poll_on_thread(operation: Operation) -> State:
    """Poll on a worker thread until the guest is done or asks for something."""
    engine, handle = operation.store.engine, operation.store.handle
    threads = engine.sleepers if operation.store.sleeps else engine.runners
    signal: AsyncioSignal | TrioSignal = new_signal()
    stop = False
    failure: BaseException | None = None
    state: State = YIELDED
    # One while the work waits for a thread, or has not been submitted: whoever takes it decides.
    tickets: list[None] = [None]

    def work() -> None:
        nonlocal state, failure
        if not take(tickets):
            return
        started = perf_counter()
        try:
            while not (stop or engine.leaving or signal.lost):
                state = operation.poll()
                if state is not YIELDED:
                    break
                if handle.awaited:
                    handle.awaited = False
                    sleep(PAUSE_SECONDS)
                if perf_counter() - started > QUANTUM_SECONDS and threads.waiting:
                    tickets.append(None)
                    try:
                        threads.submit(work)
                    except anyio.ClosedResourceError:
                        if take(tickets):
                            break  # the rest runs inline
                    return
        except BaseException as exc:
            failure = exc
        signal.wake()

    try:
        threads.submit(work)
        await signal.wait()
    except anyio.ClosedResourceError:  # nothing has been submitted
        return YIELDED
    except GeneratorExit:  # the loop is gone, nothing can be awaited
        stop = True
        operation.interrupt("closed")
        raise
    except BaseException:
        stop = True
        if not take(tickets):
            await signal.wait_regardless()
        raise
    if failure is not None:
        raise failure
    return state


ExportedFunction._drive = staticmethod(call)
Function._drive = staticmethod(call_host)

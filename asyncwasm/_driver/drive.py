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
from time import perf_counter
from typing import Any

from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from .._errors import Trap
from .._objects.function import ExportedFunction
from .._runtime.operation import DONE, IMPORT, YIELDED, HostCall, Operation, State, current
from .signal import AsyncioSignal, TrioSignal, new_signal

SLICE_SECONDS = 0.001  # inline, before the loop gets to run
INLINE_SLICES = 2  # before the work moves to a thread
QUANTUM_SECONDS = 0.01  # on a thread, while others wait for one


async def call(function: ExportedFunction, arguments: tuple[Any, ...]) -> Any:
    """Call *function* on a fiber, and return its result."""
    return await drive(function._operation(arguments))


async def drive(operation: Operation) -> Any:
    """Run *operation* to its end, and return its result."""
    await checkpoint_if_cancelled()
    try:
        if not operation.enter():
            await _wait_for_turn(operation)
        started = perf_counter()
        slices = 0
        state = operation.poll()
        while state is not DONE:
            if state is IMPORT:
                if await _call_host(operation):
                    started = perf_counter()  # the loop has run meanwhile
                elif perf_counter() - started >= SLICE_SECONDS:
                    await checkpoint()
                    started = perf_counter()
                slices = 0
            elif perf_counter() - started >= SLICE_SECONDS:
                slices += 1
                if slices > INLINE_SLICES and not operation.store.engine.closed:
                    state = await _poll_on_thread(operation)
                    started = perf_counter()
                    slices = 0
                    continue
                await checkpoint()
                started = perf_counter()
            state = operation.poll()
        return operation.result()
    finally:
        operation.leave()


async def _wait_for_turn(operation: Operation) -> None:
    """Wait in line; on return the operation has the room."""
    lane = operation.lane
    assert lane is not None
    signal = new_signal()
    entry = (operation, signal)
    lane.waiting.append(entry)
    try:
        await signal.wait()
    except BaseException:
        if lane.current is not operation:  # else `leave` hands it on
            lane.waiting.remove(entry)
        raise


async def _call_host(operation: Operation) -> bool:
    """Answer the guest's request; return whether the task was suspended meanwhile."""
    host = operation.host
    call = HostCall(operation)
    token = current.set(call)
    suspended = False
    try:
        value = host.callable(*operation.arguments())
        if not host.suspending:
            value = host.checked(value)
        elif inspect.isawaitable(value):
            value = await value
            suspended = True
        call.active = False
        if operation.children.current is not None:
            await _wait_for_children(operation)
            suspended = True
        operation.answer(value)
    except Trap:
        raise
    except Exception as exc:
        if operation.children.current is not None:
            call.active = False
            await _wait_for_children(operation)
        operation.throw(exc)
    finally:
        call.active = False
        current.reset(token)
    return suspended


async def _wait_for_children(operation: Operation) -> None:
    """Wait until nothing that the import has started runs on top of *operation*."""
    lane = operation.children
    signal = new_signal()
    entry = (operation, signal)
    lane.waiting.append(entry)
    try:
        await signal.wait()
    except BaseException:
        if lane.current is operation:
            lane.leave()
        else:
            lane.waiting.remove(entry)
        raise
    lane.leave()


async def _poll_on_thread(operation: Operation) -> State:
    """Poll on a worker thread until the guest is done or asks for something."""
    engine = operation.store.engine
    signal: AsyncioSignal | TrioSignal = new_signal()
    stop = False
    failure: BaseException | None = None
    state: State = YIELDED

    def work() -> None:
        nonlocal state, failure
        started = perf_counter()
        try:
            while not stop:
                state = operation.poll()
                if state is not YIELDED:
                    break
                if engine.runners.waiting and perf_counter() - started > QUANTUM_SECONDS:
                    engine.runners.submit(work)
                    return
        except BaseException as exc:
            failure = exc
        signal.wake()

    engine.runners.submit(work)
    try:
        await signal.wait()
    except GeneratorExit:  # the loop is gone, nothing can be awaited
        stop = True
        operation.interrupt("closed")
        raise
    except BaseException:
        stop = True
        await signal.wait_regardless()
        raise
    if failure is not None:
        raise failure
    return state


ExportedFunction._drive = staticmethod(call)  # type: ignore[assignment]  # bound by name

"""Running an operation to its end without an event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._errors import Trap
from .._ffi.fiber import DONE, IMPORT, State
from .exceptions import overdue
from .hostcall import HostCall, current
from .operation import Operation

STRETCH_SECONDS = 0.02  # between looks at the deadline; the clock has to be asked for as well


def run(operation: Operation, outcome: tuple[Any, ...] | None = None) -> Any:
    """
    Run *operation* on this thread, and return its result.

    Between polls, signal handlers run and can end it; the guest is then unwound. So is it when
    the store's deadline for synchronous calls, or that of the call which made this one, is over.
    *outcome* is what its host function has returned or raised, if it has the room already.
    """
    now = operation.store.engine.ticker.now
    ends = operation.ends = _end(operation, now)
    state: State | tuple[Any, ...] | None = outcome
    del outcome
    try:
        if state is None:
            operation.enter_now()
            state = operation.advance(STRETCH_SECONDS, awaits=False)
        while state is not DONE:
            if state is IMPORT or isinstance(state, tuple):
                if isinstance(state, tuple):
                    operation.settle(state)
                else:
                    _call_host(operation)
                if operation.occupied:
                    # The import has left a call suspended (an eager task does), on top of
                    # which the guest must not go on, not even to catch an exception.
                    raise operation.store.busy()
            if ends is not None and now() >= ends:
                raise overdue(operation.describe())
            state = operation.advance(STRETCH_SECONDS, awaits=False)
        return operation.result()
    finally:
        state = None  # it may hold an exception, whose traceback holds this frame
        operation.leave()


def _end(operation: Operation, now: Callable[[], float]) -> float | None:
    """Return the time at which *operation* is to be stopped."""
    seconds = operation.store.sync_deadline_seconds
    limit = None if operation.outer is None else operation.outer.ends
    if seconds is None:
        return limit
    end = now() + seconds
    return end if limit is None else min(end, limit)


def _call_host(operation: Operation) -> None:
    host = operation.host
    call = HostCall(operation)
    token = current.set(call)
    try:
        if host.suspending:
            raise host.reached()
        value = host.checked(host.callable(*operation.arguments()))
        call.active = False
        operation.answer(value)
    except Trap:
        raise
    except Exception as exc:
        operation.throw(exc)
    finally:
        call.active = False
        current.reset(token)

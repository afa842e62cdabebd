"""
Answering the requests of a guest's fiber, one after the other, as the accelerator does in C.

Rule 1: host functions run outside of the store, on this thread's ordinary stack.
Rule 2: numbers only, and what is plainly right; all else is handed back, to be done with care.
"""

from __future__ import annotations

import struct
import sys
import threading
from time import perf_counter
from types import CoroutineType
from typing import Any

from .._ffi.codec import EXACT, Row
from .._ffi.fiber import (
    ANSWERED,
    DONE,
    IMPORT,
    IMPORT_FRAMES,
    YIELDED,
    Fiber,
    State,
    make_sure_of_room,
    on_main_thread,
    raise_deferred,
)
from .host import HostFunction
from .hostcall import HostCall, current, resumed
from .operation import Operation

# Coroutines that run within each other. Should the innermost wait, each of them is awaited by more
# frames than it runs in now, of which the recursion limit has to allow as many.
_MOST_STEPS = 4
_STEP_FRAMES = 56


class _Here(threading.local):
    """How many run on this thread."""

    steps = 0


_here = _Here()


def advance(operation: Operation, seconds: float, awaits: bool) -> State | tuple[Any, ...]:
    """Do what `Operation.advance` says, in pure Python."""
    store = operation.store
    handle = store.ready(operation)
    if handle.guarded:
        return operation.poll()
    on_main = on_main_thread()
    limit = 0  # of recursion, under which there is room for the callback
    call: HostCall | None = None
    token: Any = None
    fiber: Fiber | None = None
    host: HostFunction | None = None
    value: Any = None
    at = 0  # where the guest takes it
    end = perf_counter() + seconds
    try:
        while True:
            if limit != sys.getrecursionlimit():
                make_sure_of_room(IMPORT_FRAMES)
                limit = sys.getrecursionlimit()
            try:
                with handle.lock:
                    if fiber is None:
                        fiber = operation._prepared(handle)
                    elif not handle.open or handle.closing or not handle.ours:
                        return YIELDED  # whoever goes on is told why
                    elif host is not None and not _answered(host.results, at, value):
                        return (value,)
                    else:
                        fiber.resume()
                    done = fiber.poll(on_main)
                    asked = fiber.asked
                    if asked is not None:
                        host = store.hosts[asked[0]]
                        if host.numeric and (awaits or not host.suspending):
                            row = host.parameters
                            arguments = row.unpack(row.val_memory(asked[1])) if row.types else ()
                            at = asked[2]
                        else:
                            host = None
            finally:
                if handle.pending:
                    handle.close()
                raise_deferred()  # outside, for their handlers may look in
            if handle.dropped:
                store.sweep()
            if done:
                return DONE
            if asked is None or handle.closing:
                return YIELDED
            if host is None:
                return IMPORT
            if call is None:
                call = HostCall(operation)
                token = current.set(call)
            waits = False
            try:
                value = host.callable(*arguments)
                if host.suspending:
                    waits, value = _begun(value)
            except BaseException as exc:
                return None, exc
            if waits:
                left, call = call, None  # to whoever awaits it
                return value, left
            if host.suspending:  # tasks that it has left behind are on their own
                call.active = False
                current.reset(token)
                call = token = None
            if operation.occupied or isinstance(value, CoroutineType):
                return (value,)
            if perf_counter() >= end:
                operation.answer(value)
                return ANSWERED
    finally:
        if call is not None:
            call.active = False
            if token is not None:  # a signal handler may have come in between
                current.reset(token)


def _begun(value: Any) -> tuple[bool, Any]:
    """
    Run what a suspending host function has returned until it waits for something.

    Returns:
        Whether it has to be awaited, and that; or what it has returned.
    """
    if value.__class__ is not CoroutineType or value.cr_running or value.cr_suspended:
        return True, value
    if _here.steps == _MOST_STEPS:
        return True, value
    try:
        make_sure_of_room(_STEP_FRAMES)
    except RecursionError:
        return True, value
    _here.steps += 1
    try:
        waits_for = value.send(None)
    except StopIteration as stop:
        return False, stop.value
    finally:
        _here.steps -= 1
    return True, resumed(value, waits_for)


def _answered(row: Row, at: int, value: Any) -> bool:
    """Write *value* for the guest; return False if it has to be looked at with care."""
    if not row.types:
        return True
    values = (value,) if len(row.types) == 1 else value
    if (
        row.checked
        or values.__class__ is not tuple
        or len(values) != len(row.types)
        or not EXACT.issuperset(map(type, values))
    ):
        return False
    try:
        row.pack_exact(row.val_memory(at), 0, values)
    except (struct.error, OverflowError):
        return False
    return True

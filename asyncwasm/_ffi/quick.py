"""
The quick way into an awaited call: its first slice, before anything is set up around it.

Most calls are over within it. Those that are not go on as an operation, with their fiber.

Rule 1: only functions whose values are numbers and vectors, in a store where nothing is alive,
so that nobody else has to know about the call yet.
Rule 2: a fiber that has been handed over is alone in its store: `StoreHandle.handed` refers to
it until its operation has the room, or it is dropped.
Rule 3: in pure Python only in stores without host functions, because of rule 2 in fiber.py.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any

from .accelerator import speedups
from .clock import PureClock, turn
from .codec import EXACT, VAL_BYTES, Row
from .direct import plain
from .fiber import ARGUMENTS, ERROR, TRAP, Fiber
from .handles import NEAR, StoreHandle
from .library import lib
from .references import References, unroot

Quick = Callable[..., Any]


def not_quick(function: object, arguments: tuple[Any, ...], awaited: bool = True) -> Any:
    """Stand in for a function that cannot be called the quick way."""
    return NotImplemented


def quick_call(
    handle: StoreHandle,
    function: tuple[int, int],
    parameters: Row,
    results: Row,
    clock: PureClock,
    failed: Callable[[int, int], BaseException],
    hosts: list[Any],
) -> Quick:
    """
    Return a callable that runs the first slice of a call of *function*.

    It takes the exported function, a tuple of arguments and whether the call is awaited, and returns
    the call's result; NotImplemented if the call has to be made the long way, and nothing has
    happened; or, if it is not over, a Fiber, or a HostCall with the outcome of a host function.
    *failed* makes the exception of an error and a trap pointer; *hosts* are the store's, as
    `plain_host` makes them.
    """
    if speedups is not None:
        if not (plain(parameters) and plain(results)):
            return not_quick
        quick: Quick = speedups.Quick(
            handle,
            function,
            parameters.letters,
            results.letters,
            clock,
            failed,
            hosts,
            Fiber,
        )
        return quick
    if parameters.checked:
        return not_quick
    return _pure_quick_call(handle, function, parameters, results, clock, failed)


def _pure_quick_call(
    handle: StoreHandle,
    function: tuple[int, int],
    parameters: Row,
    results: Row,
    clock: PureClock,
    failed: Callable[[int, int], BaseException],
) -> Quick:
    call = lib.undeclared("wasmtime_func_call_async")
    poll = lib.undeclared("wasmtime_call_future_poll")
    delete = lib.undeclared("wasmtime_call_future_delete")
    pointer = ctypes.c_void_p
    raw = (ctypes.c_uint64 * 2)(*function)
    context, callee = pointer(handle.context), pointer(ctypes.addressof(raw))
    given, wanted = len(parameters.types), len(results.types)
    taken, returned = ctypes.c_size_t(given), ctypes.c_size_t(wanted)
    payload = VAL_BYTES * (given + wanted)
    results_at = ARGUMENTS + VAL_BYTES * given
    pack, unpack = parameters.pack_exact, results.unpack if wanted else None
    single = wanted == 1
    lock = handle.lock
    exact = EXACT.issuperset
    head = struct.Struct("<QQ").unpack_from
    free: list[tuple[Any, ...]] = []

    def lend() -> tuple[Any, ...]:
        fiber = Fiber(handle, payload)
        at = fiber.address
        return (
            fiber,
            fiber.memory,
            pointer(at + ARGUMENTS),
            pointer(at + results_at),
            pointer(at + TRAP),
            pointer(at + ERROR),
        )

    set_at = -1  # at what tick the deadline was set

    def quick(called: object, arguments: tuple[Any, ...], awaited: bool = True) -> Any:
        nonlocal set_at
        if (
            not handle.quick
            or lock.locked()
            or clock.parked
            or clock.manual
            or len(arguments) != given
            or not exact(map(type, arguments))
            or (awaited and clock.streak())
        ):
            return NotImplemented
        try:
            lent = free.pop()
        except IndexError:
            lent = lend()
        fiber, memory, arguments_at, values_at, trap_at, error_at = lent
        if given:
            try:
                pack(memory, ARGUMENTS, arguments)
            except (struct.error, OverflowError):
                free.append(lent)
                return NotImplemented
        try:
            with lock:
                if not handle.quick or not handle.open:
                    return NotImplemented
                handle.begin_yielding()
                if not handle.near or clock.ticks != set_at:
                    set_at = clock.ticks
                    handle.set_deadline(NEAR)
                clock.needed = True
                handle.roomless = True
                future = call(
                    context, callee, arguments_at, taken, values_at, returned, trap_at, error_at
                )
                future_at = pointer(future)
                try:
                    done = poll(future_at)
                except BaseException:
                    fiber.own(future)
                    raise
                if awaited:
                    turn.last = clock.ticks
                if done:
                    delete(future_at)
                else:
                    fiber.own(future)
                    handle.hand_over(fiber)
        finally:
            handle.roomless = False
            if handle.pending:
                handle.close()
        if not done:
            return fiber
        trap, error = head(memory)
        if trap or error:
            raise failed(error, trap)
        values = unpack(memory, results_at) if unpack is not None else ()
        free.append(lent)
        return values[0] if single else values or None

    quick.keepalive = raw  # type: ignore[attr-defined]
    return quick


def quick_reference_call(
    handle: StoreHandle,
    function: tuple[int, int],
    parameters: Row,
    results: Row,
    concrete: Sequence[int],
    clock: PureClock,
    failed: Callable[[int, int], BaseException],
    references: References,
) -> Quick:
    """Return what `quick_call` does, for a function with references among its values."""
    given, wanted = len(parameters.types), len(results.types)
    payload = VAL_BYTES * (given + wanted)
    results_at = ARGUMENTS + VAL_BYTES * given
    lock = handle.lock

    def quick(called: object, arguments: tuple[Any, ...], awaited: bool = True) -> Any:
        if (
            not handle.quick
            or lock.locked()
            or clock.parked
            or clock.manual
            or len(arguments) != given
            or (awaited and clock.streak())
        ):
            return NotImplemented
        prepared = references.prepare_row(parameters, arguments, concrete)
        fiber = Fiber(handle, payload)
        at = fiber.address
        values: tuple[Any, ...] = ()
        trap = error = 0
        try:
            with lock:
                if not handle.quick or not handle.open:
                    return NotImplemented
                try:
                    references.write_row(parameters, at + ARGUMENTS, prepared, concrete)
                except BaseException:
                    unroot(at + ARGUMENTS, given)
                    raise
                handle.begin_yielding()
                handle.set_deadline(NEAR)
                clock.needed = True
                handle.roomless = True
                fiber.start_call(function, given, wanted)
                done = fiber.poll(speedups is not None)
                if done:
                    trap, error = fiber.outcome()
                    if not (trap or error):
                        values = references.read_row(wanted, at + results_at)
                    fiber.delete()
                    unroot(at + ARGUMENTS, given + wanted)
                else:
                    handle.hand_over(fiber)
        finally:
            handle.roomless = False
            if handle.pending:
                handle.close()
        if awaited:
            clock.streak(True)
        if not done:
            return fiber
        if trap or error:
            raise failed(error, trap)
        return values[0] if wanted == 1 else values or None

    return quick

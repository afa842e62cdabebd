"""
The direct way into wasm: one unchecked call on the calling thread's own stack.

Rule 1: only functions whose values are numbers and vectors, so that nothing has to be rooted.
Rule 2: no host function can be reached there but plain ones, or the library aborts the process.
Rule 3: nothing is looked up per call that can be prepared: this is the path users measure.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable
from functools import cache
from time import perf_counter
from typing import Any

from .accelerator import speedups
from .codec import EXACT, RAW_BYTES, Row
from .externs import Extern
from .handles import FAR, StoreHandle
from .library import lib

_HEADER = 16  # the trap, padded
_Words = ctypes.c_uint64 * 2


class _PureDirect:
    """
    A function that is called on this thread's own stack.

    Where an argument or the store needs more care, or if it was not made for one, its `_detour` is
    called with the arguments instead. `_failed` makes the exception of an error and a trap pointer;
    `_held` is told about calls longer than it was made with.
    """

    __slots__ = ("_call", "_extern", "_name", "_quick", "_shape", "_store")

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        self = super().__new__(cls)
        self._call = cls._detour
        return self

    @classmethod
    def _new(
        cls,
        handle: StoreHandle,
        function: tuple[int, int],
        parameters: Row,
        results: Row,
        hold_seconds: float,
        store: Any,
        shape: Any,
        name: str,
    ) -> Any:
        """Return one for a function of a store, with these attributes."""
        self = cls.__new__(cls)
        self._call = _caller(handle, function, parameters, results, hold_seconds)
        self._extern = Extern.function(function)
        self._store, self._shape, self._name = store, shape, name
        self._quick = None
        return self

    def __call__(self, *arguments: Any) -> Any:
        return self._call(self, arguments)

    _call: Callable[[Any, tuple[Any, ...]], Any]

    # What the one in C has besides, for stores with plain host functions: `_through` calls with
    # converted values and looks only whether somebody is in the way, then it returns NotImplemented.
    # `_settle` answers the guest, `_gone` makes the exception of a store that was closed meanwhile,
    # `_stopped` is told that a host has ended the call.
    _hosts: list[Any] | None

    def _through(self, values: tuple[Any, ...]) -> Any:
        raise NotImplementedError

    def _detour(self, arguments: tuple[Any, ...]) -> Any:
        raise NotImplementedError

    def _failed(self, error: int, trap: int) -> BaseException:
        raise NotImplementedError

    def _held(self, seconds: float) -> None:
        raise NotImplementedError


Direct: type[_PureDirect] = _PureDirect if speedups is None else speedups.Direct


def opening(parameters: Row, results: Row) -> tuple[Any, Any] | None:
    """Return what `_new` takes for numeric types of a function, None if it cannot be called so."""
    if speedups is None:
        return parameters, results
    if plain(parameters) and plain(results):
        return parameters.letters, results.letters
    return None


def _caller(
    handle: StoreHandle,
    function: tuple[int, int],
    parameters: Row,
    results: Row,
    hold_seconds: float,
) -> Callable[[Any, tuple[Any, ...]], Any]:
    """Return what calls *function* for a `Direct`; it does not hold that, or both were a cycle."""
    native = _unchecked()
    count = max(len(parameters.types), len(results.types))
    raw = _Words(*function)
    context = ctypes.c_void_p(handle.context)
    callee = ctypes.c_void_p(ctypes.addressof(raw))
    length = ctypes.c_size_t(count)
    width = _HEADER + RAW_BYTES * count
    pack, unpack = parameters.raw_pack, results.outcome
    lock, mine = handle.lock, handle.lock._is_owned
    single = len(results.types) == 1
    checked = parameters.checked
    exact = EXACT.issuperset
    free: list[tuple[Any, Any, Any]] = []

    def buffer() -> tuple[Any, Any, Any]:
        memory = (ctypes.c_ubyte * width)()
        address = ctypes.addressof(memory)
        return memory, ctypes.c_void_p(address + _HEADER), ctypes.c_void_p(address)

    def call(self: _PureDirect, arguments: tuple[Any, ...]) -> Any:
        # Whoever only looks at something is waited for.
        if handle.detour or handle.roomless or checked or mine() or not exact(map(type, arguments)):
            return self._detour(arguments)
        try:
            lent = free.pop()
        except IndexError:
            lent = buffer()
        memory, values, trap = lent
        try:
            pack(memory, _HEADER, *arguments)
        except (struct.error, OverflowError):
            free.append(lent)
            return self._detour(arguments)
        started = perf_counter()
        with lock:
            if not handle.open:
                return self._detour(arguments)
            if handle.near:
                handle.set_deadline(FAR)
            handle.roomless = True
            error = native(context, callee, values, length, trap)
            handle.roomless = False
        if handle.pending:
            handle.close()
        seconds = perf_counter() - started
        outcome = unpack(memory)
        if error or outcome[0]:
            raise self._failed(error or 0, outcome[0])
        free.append(lent)
        if seconds > hold_seconds:
            self._held(seconds)
        return outcome[1] if single else outcome[1:] or None

    call.keepalive = raw  # type: ignore[attr-defined]
    return call


def has_stack(handle: StoreHandle) -> bool:
    """Return whether a guest fits on what is left of this thread's stack, as far as can be told."""
    return speedups is None or bool(speedups.has_stack(handle))


def greenlets_switch() -> bool:
    """
    Return whether host functions may come back on another stack than they were called on.

    Greenlets share a stack by moving pieces of it, and the library, whose records lie there, aborts
    the process when they are not where they were, or end in another order. Loading their module is
    no sign of them, for structlog does: who uses them has a main one in some thread.
    """
    greenlet = sys.modules.get("greenlet")
    if greenlet is None:
        return False
    count = getattr(getattr(greenlet, "_greenlet", None), "get_total_main_greenlets", None)
    return count is None or count() > 0


@cache
def _unchecked() -> Any:
    return lib.undeclared("wasmtime_func_call_unchecked")


def plain(row: Row) -> bool:
    """Return whether the accelerator can convert the values."""
    return len(row.types) <= speedups.MOST_VALUES and not row.checked


def plain_host(
    callable: Callable[..., Any], parameters: Row, results: Row, suspending: bool
) -> Any:
    """Return the accelerator's form of a host function, None if it has to go the slow way."""
    if speedups is None or not (parameters.numeric and results.numeric):
        return None
    if max(len(parameters.types), len(results.types)) > speedups.MOST_VALUES:
        return None
    return speedups.Host(callable, parameters.letters, results.letters, suspending)


def call_prepared(
    handle: StoreHandle,
    function: tuple[int, int],
    parameters: Row,
    results: Row,
    values: list[Any],
) -> tuple[int, int, tuple[Any, ...]]:
    """Call *function* with converted *values* and return (error, trap, results). In the store."""
    count = max(len(parameters.types), len(results.types))
    memory = (ctypes.c_ubyte * (_HEADER + RAW_BYTES * count))()
    address = ctypes.addressof(memory)
    struct.pack_into("<" + parameters.raw_letters, memory, _HEADER, *values)
    raw = (ctypes.c_uint64 * 2)(*function)
    error = lib.wasmtime_func_call_unchecked(
        handle.context, ctypes.addressof(raw), address + _HEADER, count, address
    )
    trap, *decoded = struct.unpack_from("<Q8x" + results.raw_letters, memory)
    return error or 0, trap, tuple(decoded)

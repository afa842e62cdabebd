"""
Wasm on a stack of its own, polled until it has finished or waits for an import.

Rule 1: no user code runs on a fiber. Its stack is small and not the thread's, and on Python
3.14 deep recursion there aborts the process. The callback below only writes down what the
guest asked for; the function runs after `poll` has returned, on the ordinary stack.
Rule 2: the callback must always set a continuation, or the library aborts the process. So no
exception may be raised on the way in: while Python code can run on the fiber of the main
thread, signal handlers are held back (`_poll_deferring_signals`) until whoever has polled says
`raise_deferred`, and before each poll there is a look whether the recursion limit leaves room
(`make_sure_of_room`).
Rule 3: what was handed to the library stays alive and untouched until the future is deleted;
the store's handle keeps it.
Rule 4: a future is polled by one thread at a time (the store's lock), and never again after
it has finished.
Rule 5: the native collector sees the stacks that are being polled, and no other: a collection
while a fiber is suspended frees what only that fiber's stack refers to. So in a guarded store
(one whose guests can hold references) whatever may allocate while fibers are suspended runs
inside of their polls: a nested fiber is polled by the continuation of the outer one, and host
values are made there too (`action`). That is our own code, and shallow; rule 1 stands.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` is made of
import ctypes
import enum
import struct
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from .accelerator import speedups
from .codec import Row
from .handles import StoreHandle
from .library import lib

TRAP, ERROR, FLAG, FUNCTION = 0, 8, 16, 24
ARGUMENTS = 40 if speedups is None else speedups.HEAD_BYTES
_HEADER = struct.Struct("<QQ")


class State(enum.Enum):
    """Why a guest does not run any more."""

    DONE = enum.auto()
    IMPORT = enum.auto()  # it waits for the answer to a request
    YIELDED = enum.auto()  # the clock has ticked
    ANSWERED = enum.auto()  # the time is over, and its request has been answered


DONE, IMPORT, YIELDED, ANSWERED = State


class Request(NamedTuple):
    """What a guest asked for: addresses that stay valid until it is answered."""

    host: int
    arguments: int
    results: int
    trap: int

    def unpack(self, row: Row) -> tuple[Any, ...]:
        """Return the arguments, all numbers."""
        return row.unpack(row.val_memory(self.arguments))

    def unpack_raw(self, row: Row) -> tuple[Any, ...]:
        """Return the arguments of a plain host function."""
        memory = (ctypes.c_ubyte * row.raw_bytes).from_address(self.arguments)
        return row.raw_unpack(memory)

    def write(self, results: bytes | bytearray) -> None:
        """Write the results, packed already: converting runs code that may close the store."""
        ctypes.memmove(self.results, bytes(results), len(results))

    def fail(self, trap: int) -> None:
        """Hand over the trap that ends the request."""
        ctypes.c_uint64.from_address(self.trap).value = trap


class _Slot(threading.local):
    """The fiber that this thread polls."""

    fiber: Fiber | None = None


_slot = _Slot()


def _on_import(
    host: int,
    caller: int,
    arguments: int,
    count: int,
    results: int,
    result_count: int,
    trap: int,
    continuation: int,
) -> None:
    # On the fiber's stack: see the rules above.
    fiber = _slot.fiber
    assert fiber is not None
    fiber.memory[FLAG] = 0
    fiber.dispatching = fiber.handle.guarded
    _continuation_at(continuation).raw = _DISPATCH if fiber.dispatching else fiber.continuation
    fiber.asked = (host, arguments, results, trap)


_continuation_at = (ctypes.c_char * 24).from_address
_IMPORT_CALLBACK = ctypes.CFUNCTYPE(None, *[ctypes.c_size_t] * 8)(_on_import)


class Callbacks(NamedTuple):
    """Addresses of what the library calls for guests; 0 where the accelerator would be."""

    importing: int  # for a host function, and suspends the fiber
    plain: int  # for a plain one; see the rules of the accelerator
    waiting: int  # for the function by which a plain one suspends its fiber


@cache
def callbacks() -> Callbacks:
    """Return the addresses."""
    if speedups is not None:
        return Callbacks(*speedups.callbacks())
    return Callbacks(ctypes.cast(_IMPORT_CALLBACK, ctypes.c_void_p).value or 0, 0, 0)


def _ready_callback() -> int:
    # The continuation asks "is the answer there?" at each poll. `strlen` of the flag says it
    # without calling into Python: "" is 0, false; "\1" is 1, true.
    runtime: Any = ctypes.CDLL(None) if hasattr(_signal, "pthread_sigmask") else ctypes.cdll.msvcrt
    return ctypes.cast(runtime.strlen, ctypes.c_void_p).value or 0


_READY = _ready_callback()


def _on_poll(_: int) -> bool:
    # On the fiber's stack: see the rules above.
    fiber = _slot.fiber
    assert fiber is not None
    try:
        return fiber.step()
    except BaseException as exc:
        fiber.failure = exc
        return False


_POLL_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_size_t)(_on_poll)
_DISPATCH = struct.pack("<QQQ", ctypes.cast(_POLL_CALLBACK, ctypes.c_void_p).value or 0, 0, 0)


class Fiber:
    """One activation on a stack of its own."""

    __slots__ = (
        "__weakref__",
        "action",
        "address",
        "asked",
        "child",
        "continuation",
        "dispatching",
        "failure",
        "finished",
        "future",
        "handle",
        "memory",
    )

    def __init__(self, handle: StoreHandle, payload_bytes: int) -> None:
        self.handle = handle
        self.memory = (ctypes.c_ubyte * (ARGUMENTS + payload_bytes))()
        self.address = ctypes.addressof(self.memory)
        self.continuation = struct.pack("<QQQ", _READY, self.address + FLAG, 0)
        self.asked: tuple[int, int, int, int] | None = None  # what a request is made of
        self.future = 0
        self.finished = False
        self.dispatching = False  # whether it is suspended so that `step` is asked
        self.child: Fiber | None = None  # polled by `step`
        self.action: Callable[[], None] | None = None  # run by `step`
        self.failure: BaseException | None = None  # what the action raised

    def start_call(self, function: tuple[int, int], arguments: int, results: int) -> None:
        """Make the future of a call of *function*, whose arguments are in the memory."""
        struct.pack_into("<QQ", self.memory, FUNCTION, *function)
        at = self.address + ARGUMENTS
        self.own(
            lib.wasmtime_func_call_async(
                self.handle.context,
                self.address + FUNCTION,
                at,
                arguments,
                at + 32 * arguments,
                results,
                self.address + TRAP,
                self.address + ERROR,
            ),
        )

    def start_instantiation(self, linker: int, module: int, kept: object) -> None:
        """Make the future of an instantiation; the instance is written to the payload."""
        self.own(
            lib.wasmtime_linker_instantiate_async(
                linker,
                self.handle.context,
                module,
                self.address + ARGUMENTS,
                self.address + TRAP,
                self.address + ERROR,
            ),
            kept,
        )

    def start_linked_instantiation(self, linked: int, kept: object) -> None:
        """Make the future of an instantiation of a module that has been linked before."""
        self.own(
            lib.wasmtime_instance_pre_instantiate_async(
                linked,
                self.handle.context,
                self.address + ARGUMENTS,
                self.address + TRAP,
                self.address + ERROR,
            ),
            kept,
        )

    def own(self, future: int, kept: object = None) -> None:
        """Take over *future*, and keep what must outlive it."""
        self.future = future
        self.handle.futures[future] = (self.memory, kept)

    def poll(self, defers: bool) -> bool:
        """
        Run the guest on this thread until it suspends; return whether it has finished.

        The caller holds the store's lock. *defers* says whether Python code may run on the fiber
        of the main thread, because the store has host functions: then signals are held back.
        """
        previous, _slot.fiber = _slot.fiber, self
        try:
            if defers:
                done: bool = _poll_deferring_signals(self.future)
            else:
                done = lib.wasmtime_call_future_poll(self.future)
        finally:
            _slot.fiber = previous
        if done:
            self.finished = True
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        return done

    def step(self) -> bool:
        """On the fiber's stack, suspended: do what is to be done, return whether to go on."""
        child = self.child
        if child is not None:
            _slot.fiber = child
            try:
                child.finished = lib.wasmtime_call_future_poll(child.future)
            finally:
                _slot.fiber = self
            return False
        action, self.action = self.action, None
        if action is not None:
            action()
        return self.memory[FLAG] == 1

    def outcome(self) -> tuple[int, int]:
        """Return the trap and the error of a finished fiber (0 for none), once."""
        trap, error = _HEADER.unpack_from(self.memory)
        _HEADER.pack_into(self.memory, 0, 0, 0)
        return trap, error

    @property
    def request(self) -> Request | None:
        """What the guest waits for, if it does."""
        return None if self.asked is None else Request(*self.asked)

    def resume(self) -> None:
        """Say that the request has been answered."""
        self.asked = None
        self.memory[FLAG] = 1

    def delete(self) -> None:
        """Unwind the guest's frames, if any are left. The caller holds the store's lock."""
        future, self.future = self.future, 0
        if future:
            self.handle.delete_future(future)

    def payload(self, length: int) -> bytes:
        """Return the first *length* bytes behind the head."""
        return ctypes.string_at(self.address + ARGUMENTS, length)

    def __del__(self) -> None:
        abandon(self)


def abandon(fiber: Fiber) -> None:
    """Delete what is left of a fiber whose drive was torn apart by a signal handler."""
    if getattr(fiber, "future", 0) and fiber.handle.open and not fiber.handle.lock.locked():
        with fiber.handle.lock:
            fiber.delete()


PureFiber = Fiber

if speedups is not None:

    class FastFiber(speedups.Fiber):  # type: ignore[misc]  # no stubs: the class above says it all
        """The same, with memory, polling and callbacks in C."""

        if not TYPE_CHECKING:
            __slots__ = ()

        @property
        def memory(self) -> Any:
            return self

        @property
        def request(self) -> Request | None:
            request = self._request
            return None if request is None else Request(*request)

        def start_call(self, function: tuple[int, int], arguments: int, results: int) -> None:
            future = self.begin_call(self.handle.context, function, arguments, results)
            self.handle.futures[future] = (self.kept, None)

        def own(self, future: int, kept: object = None) -> None:
            self.future = future
            self.handle.futures[future] = (self.kept, kept)

        start_instantiation = PureFiber.start_instantiation
        start_linked_instantiation = PureFiber.start_linked_instantiation
        delete = PureFiber.delete
        payload = PureFiber.payload

        def outcome(self) -> tuple[int, int]:
            trap, error = _HEADER.unpack_from(self)
            _HEADER.pack_into(self, 0, 0, 0)
            return trap, error

    Fiber = FastFiber  # type: ignore[misc]


# Python frames that `_on_import`, and `_on_poll` with what it calls, take at most.
IMPORT_FRAMES = 9
LEAVE_FRAMES = 20  # and those that letting go takes, which must not fail half-way
STEP_FRAMES = 24


def make_sure_of_room(frames: int) -> None:
    """Raise RecursionError here rather than on the fiber, or inside of ctypes."""
    if speedups is not None and speedups.has_room(frames):
        return
    if frames:
        make_sure_of_room(frames - 1)


def on_main_thread() -> bool:
    """Return whether this is the thread on which signal handlers run."""
    return threading.current_thread() is threading.main_thread()


# The C functions below the module's own, which spend most of their time on enumerations.
_get_handler: Callable[[int], Any] = _signal.getsignal
_set_handler: Callable[[int, Any], Any] = _signal.signal
_DEFERRED = tuple(
    int(getattr(_signal, name))
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(_signal, name)
)
_caught: list[int] = []


def _catch(number: int, frame: object) -> None:
    _caught.append(number)


def _poll_deferring_signals(future: int) -> bool:
    handlers = _handlers_in_python()
    try:
        for number, _ in handlers:
            _set_handler(number, _catch)
        done: bool = lib.wasmtime_call_future_poll(future)
    finally:
        for number, handler in handlers:
            _set_handler(number, handler)
    return done


def _handlers_in_python() -> list[tuple[int, Any]]:
    global _seen, _in_python
    handlers = tuple(map(_get_handler, _DEFERRED))
    seen = tuple(map(id, handlers))
    if seen != _seen:
        # 0 and 1 are no Python functions. The no-op that asyncio installs is left in place:
        # taking it out would also undo its `signal.siginterrupt`.
        _in_python = [
            (number, handler)
            for number, handler in zip(_DEFERRED, handlers, strict=True)
            if callable(handler) and getattr(handler, "__name__", "") != "_sighandler_noop"
        ]
        _seen = seen
    return _in_python


_seen: tuple[int, ...] = ()  # what handlers there were last
_in_python: list[tuple[int, Any]] = []  # those of them, kept, so that no other gets their place


def raise_deferred() -> None:
    """Raise the signals that have been held back, if any; best where nobody is in a store."""
    while _caught:
        _signal.raise_signal(_caught.pop(0))

"""
Owned native pointers.

Rule 1: every native pointer lives in exactly one handle, and is deleted once.
Rule 2: a process that was forked never deletes what its parent made: the parent's threads,
which may hold the library's locks, do not exist there.
Rule 3: a store is deleted when nobody is inside it and no view of its memory is alive; its
futures are deleted before it, newest first, or the library aborts the process.
"""

from __future__ import annotations

import os
import threading
import weakref
from _thread import RLock as _RLock
from functools import cache
from typing import TYPE_CHECKING, Any

from .accelerator import speedups
from .library import lib


class Process:
    """Counts forks, so that a handle knows whether it was made in this process."""

    generation = 0

    @classmethod
    def forked(cls) -> None:
        cls.generation += 1


def was_forked() -> bool:
    """Return whether this process was forked from one that had loaded the package."""
    return bool(Process.generation)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=Process.forked)


class Handle:
    """One native pointer and the name of the function that deletes it."""

    __slots__ = ("__weakref__", "_delete", "_generation", "pointer")

    def __init__(self, pointer: int, delete: str) -> None:
        self.pointer = pointer
        self._delete = getattr(lib, delete)
        self._generation = Process.generation

    @property
    def ours(self) -> bool:
        """Whether this process made the handle."""
        return self._generation == Process.generation

    def close(self) -> None:
        """Delete what the pointer points to; idempotent."""
        pointer, self.pointer = self.pointer, 0
        if pointer and self.ours:
            self._delete(pointer)

    def __del__(self) -> None:
        self.close()


FAR = 1 << 60  # ticks: 36 million years
NEAR = 1


# Of all stores: it is held for a moment, and views are few. Taken again by who collects in there.
_views_lock = threading.RLock()


class _Lock(_RLock):  # type: ignore[misc]  # which is not final, whatever its stubs say
    """
    Who is inside of a store. Reentrant only because that kind knows its owner.

    Nobody comes in twice: a finalizer or signal handler that runs inside finds it locked.
    """

    def locked(self) -> bool:
        # In one step: a handler that raises could come between taking it, to try, and letting go.
        return repr(self).startswith("<locked")


class _PureGate:
    """A native store, its futures, and who is inside of it."""

    __slots__ = (
        "_generation",
        "answering",
        "awaited",
        "clock",
        "closing",
        "context",
        "detour",
        "dropped",
        "engine",
        "futures",
        "guarded",
        "handed",
        "handed_by",
        "hosted",
        "lingers",
        "lock",
        "near",
        "open",
        "pending",
        "pointer",
        "quick",
        "roomless",
        "soon",
        "standing",
        "views",
        "waitable",
        "waits",
        "yields",
    )

    def __init__(
        self,
        engine: Handle,
        ticks: int,
        limits: tuple[int, int, int, int, int],
        stack_bytes: int,
    ) -> None:
        """
        Make a store with an epoch deadline, and with the limits of `wasmtime_store_limiter`.

        Calls on a thread's own stack are made only where *stack_bytes* of it are left; in pure
        Python nobody can tell.
        """
        self.lock: Any = _Lock()
        self.answering = None  # what runs a host before anybody knows of the call: in C only
        self.clock: Any = None  # which has to run while guests do that hold the GIL: in C only
        self.awaited = False  # somebody waits until the guest that runs on a thread is outside
        self.closing = False  # the store is to be deleted by whoever leaves it last
        self.detour = False  # a direct call must look closer before it enters
        self.guarded = False  # guests of the store can hold references
        self.hosted = False  # guests of the store can call host functions
        self.standing = 0  # calls on the stack of `handed_by` that run their hosts: in C only
        self.waitable = False  # a plain host function can be waited for: in C only
        self.lingers = False  # an instruction of its guests can take long
        self.near = False  # the guest yields at the next tick
        self.open = True
        self.pending = False  # whoever is inside has to finish the closing
        self.quick = False  # an awaited call may begin before anybody knows about it
        self.roomless = False  # a guest is inside whose call has no operation, with the room
        self.soon = False  # the deadline comes at the next tick, or has passed
        self.views = 0  # of its memory; the native store lives on for them
        self.waits = False  # guests may wait inside, for each other
        self.yields = False  # the native store is set to yield, and insists on fibers
        self.handed: weakref.ref[Any] | None = None  # a fiber that waits for its operation
        self.handed_by = 0  # the thread that goes on with it
        self.engine = engine  # keeps the engine alive
        self.futures: dict[int, Any] = {}  # pointer -> what must outlive it
        self.dropped: list[Any] = []  # fibers, with what they own, to be freed by who is inside
        self._generation = Process.generation
        self.pointer: int = lib.wasmtime_store_new(engine.pointer, None, None)
        self.context: int = lib.wasmtime_store_context(self.pointer)
        lib.wasmtime_context_set_epoch_deadline(self.context, ticks)
        lib.wasmtime_store_limiter(self.pointer, *limits)

    @property
    def ours(self) -> bool:
        """Whether this process made the store."""
        return self._generation == Process.generation

    def mine(self) -> bool:
        """Whether this thread is known to be inside."""
        return bool(self.lock._is_owned())

    def begin_yielding(self) -> None:
        """Have guests yield when their deadline has come, from now on. The caller is inside."""
        if not self.yields:
            self.yields = True
            try:
                lib.wasmtime_context_epoch_deadline_async_yield_and_update(self.context, NEAR)
            except BaseException:  # of a signal handler; what was noted has to be so
                lib.wasmtime_context_epoch_deadline_async_yield_and_update(self.context, NEAR)
                raise

    @property
    def stride(self) -> int:
        """For how many ticks a guest runs on after it has yielded."""
        raise NotImplementedError  # only ever set

    @stride.setter
    def stride(self, ticks: int) -> None:
        lib.wasmtime_context_epoch_deadline_async_yield_and_update(self.context, ticks)

    def set_waiter(self, function: tuple[int, int]) -> None:
        """Note the function that suspends its fiber, for plain hosts: in C only."""
        raise NotImplementedError

    def close(self) -> None:
        """Delete the store, now or when the guest that runs on another thread has stopped."""
        self.closing = self.pending = True
        # If somebody is inside: whoever that is comes back here when it leaves.
        while self.pending and not self.mine() and self.lock.acquire(False):
            self.pending = False
            try:
                self._finish()
            finally:
                self.lock.release()

    def _finish(self) -> None:
        self.open = False
        while self.futures:
            future, kept = self.futures.popitem()
            if self.ours:
                lib.wasmtime_call_future_delete(future)
            del kept
        with _views_lock:
            if self.views:
                return
            pointer, self.pointer = self.pointer, 0
        if pointer and self.ours:
            lib.wasmtime_store_delete(pointer)

    def __del__(self) -> None:
        if getattr(self, "pointer", 0):
            self.close()


if TYPE_CHECKING:
    Gate = _PureGate
else:  # the one in C is its own lock
    Gate = _PureGate if speedups is None else speedups.Gate


class StoreHandle(Gate):
    """
    A native store, its context, its futures, and the lock of whoever is inside it.

    Whoever finds the lock taken is on another thread than the guest that runs, and is refused.
    It is taken with ``with``, never with ``acquire``: only so can a signal handler that raises
    not come between taking and releasing it. After taking it, look at `open`; after leaving,
    look at `pending`.
    """

    __slots__ = ("__weakref__",)

    def set_deadline(self, ticks: int) -> None:
        """Have the guest yield, or end, after *ticks*. The caller is inside."""
        self.near = self.soon = ticks == NEAR
        try:
            _deadline_setter()(self.context, ticks)
        except BaseException:  # likewise
            _deadline_setter()(self.context, ticks)
            raise

    def hand_over(self, fiber: object) -> None:
        """Note that *fiber* waits for its operation, on this thread. The caller is inside."""
        self.handed, self.handed_by = weakref.ref(fiber), threading.get_ident()
        self.quick = False  # until the operation is over

    def delete_future(self, future: int) -> None:
        """Delete *future*, if it is still there. The caller holds the lock."""
        if self.futures.pop(future, None) is not None and self.ours:
            lib.wasmtime_call_future_delete(future)

    def add_view(self, view: object) -> None:
        """Keep the native store until *view* has been collected."""
        with _views_lock:
            self.views += 1
        weakref.finalize(view, self._drop_view).atexit = False

    def _drop_view(self) -> None:
        with _views_lock:
            self.views -= 1
            last = not self.views
        if last and self.closing:
            self.close()


@cache
def _deadline_setter() -> Any:
    # Without letting go of the GIL: getting it back could take longer than the deadline is away.
    return lib.brief("wasmtime_context_set_epoch_deadline")

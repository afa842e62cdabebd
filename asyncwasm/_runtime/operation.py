"""
Operations: work in a store that can be polled, and the order in which it may run.

Rule 1: no event loop here. Whoever drives an operation polls it until it is DONE, answers
the guest's requests, and lets it go (`leave`) on every path.
Rule 2: one activation at a time in a store, except on behalf of the one that runs: a lane
holds one operation; each operation has a lane for those that its imports start.
Rule 3: user code runs between polls only, so nobody is inside the native store while it runs.
"""

from __future__ import annotations

import itertools
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .._errors import Interrupted, InterruptReason, Trap
from .._ffi.accelerator import speedups
from .._ffi.codec import Row
from .._ffi.fiber import (
    ARGUMENTS,
    DONE,
    IMPORT,
    IMPORT_FRAMES,
    LEAVE_FRAMES,
    STEP_FRAMES,
    YIELDED,
    Fiber,
    State,
    make_sure_of_room,
    on_main_thread,
    raise_deferred,
)
from .._ffi.handles import StoreHandle
from . import exceptions
from .hostcall import innermost

if TYPE_CHECKING:
    from .host import HostFunction
    from .store import StoreCore


class Waiter(Protocol):
    """Somebody who waits for a turn."""

    def wake(self) -> bool:
        """Say that it has come; return whether anybody is there to hear it."""
        ...


class Loop(Protocol):
    """An event loop that may be closed while something still waits in it."""

    def is_closed(self) -> bool: ...


class Lane:
    """
    Room for one operation, and those who wait for it, first come first served.

    The room is held weakly: a signal handler that raises can end a drive anywhere, and an
    operation that nobody drives any more must not block the store for ever.

    Loops on several threads may line up, so each change of hands is made under a lock: of two
    that both believe to have the room, one would run where the collector does not see the
    other's stack. It is reentrant, because an operation may be collected anywhere.
    """

    __slots__ = ("_current", "_leaving", "_owner", "lock", "waiting")

    def __init__(self, owner: Operation | None = None) -> None:
        # Weakly, because the owner holds the lane: forsaken, it has to go at once, not when the
        # cycles are collected.
        self._owner = None if owner is None else weakref.ref(owner)
        self.lock: Any = threading.RLock() if owner is None else owner.store.root.lock
        self._current: weakref.ref[Operation] | None = None
        self._leaving: Operation | None = None  # the owner, once it waits for those here to end
        self.waiting: Sequence[tuple[Operation, Waiter]] = ()  # a deque as soon as somebody does

    @property
    def owner(self) -> Operation | None:
        """The operation on whose behalf whatever is here runs; None: it is the store's own lane."""
        return None if self._owner is None else self._owner()

    @property
    def current(self) -> Operation | None:
        """The operation that has the room."""
        return None if self._current is None else self._current()

    def take(self, operation: Operation, waiter: Waiter | None = None) -> bool:
        """Give *operation* the room if it is free; else let *waiter* stand in line for it."""
        self.clear()
        with self.lock:
            if self.current is None:
                self._current = weakref.ref(operation, self._forsaken)
                return True
            if waiter is not None:
                if not isinstance(self.waiting, deque):
                    self.waiting = deque()
                self.waiting.append((operation, waiter))
            return False

    def clear(self) -> Operation | None:
        """Put out whoever is here if nobody can drive it any more, and return who is here then."""
        while True:
            operation = self.current
            if operation is None or not operation.lost or not operation.put_out():
                return operation
            with self.lock:
                if self.current is operation:  # a signal handler has torn its leaving apart
                    self.leave()

    def give_up(self, operation: Operation) -> None:
        """Take *operation* out of the line."""
        with self.lock:
            for entry in self.waiting:
                if entry[0] is operation and isinstance(self.waiting, deque):
                    self.waiting.remove(entry)
                    return

    def leave(self) -> None:
        """Hand the room to the next in line."""
        while True:
            with self.lock:
                if not (self.waiting and isinstance(self.waiting, deque)):
                    self._current = None
                    leaving, self._leaving = self._leaving, None
                    break
                # Handed over before the waiter wakes, so that nobody can slip in between.
                operation, waiter = self.waiting.popleft()
                self._current = weakref.ref(operation, self._forsaken)
            if waiter.wake():
                return
            operation.lane = None  # nobody is there: the room is not its to hand on
            operation.end()
        if leaving is not None:
            leaving.end()

    def dismiss(self) -> None:
        """Wake those who wait, none of whom gets the room: the store has been closed."""
        with self.lock:
            waiting, self.waiting = self.waiting, ()
        for _, waiter in waiting:
            waiter.wake()

    def lets_owner_end(self) -> bool:
        """Return whether the owner can end; if not, the last one here ends it."""
        with self.lock:
            self._leaving = None if self._current is None else self.owner
            return self._leaving is None

    def _forsaken(self, operation: weakref.ref[Operation]) -> None:
        if self._current is operation:
            self.leave()


class Operation:
    """One activation of a store: a call or an instantiation."""

    __slots__ = (
        "__weakref__",
        "_children",
        "begun",
        "ends",
        "fiber",
        "interrupted",
        "lane",
        "loop",
        "outer",
        "store",
    )

    def __init__(self, store: StoreCore) -> None:
        self.store = store
        self.outer = innermost()  # who has started it
        self._children: Lane | None = None
        self.lane: Lane | None = None
        self.fiber: Fiber | None = None
        self.begun = False  # whether the fiber has something to unwind or to free
        self.loop: Loop | None = None  # that it cannot go on without
        self.ends: float | None = None  # when it must have finished, if it is synchronous
        self.interrupted: InterruptReason | None = None

    stands = False  # whether it is that of a call on its thread's own stack

    @property
    def children(self) -> Lane:
        """The room for what the operation's imports start."""
        if self._children is None:
            with self.store.root.lock:
                if self._children is None:
                    self._children = Lane(self)
        return self._children

    @property
    def occupied(self) -> bool:
        """Whether something that an import has started is on top of the operation."""
        return self._children is not None and self._children.current is not None

    def enter(self) -> bool:
        """Take the room in the store, and return whether it was free."""
        make_sure_of_room(LEAVE_FRAMES)
        self.store.entering(self)
        lane = self.lane = self.store.lane(self.outer)
        if lane is None:
            self.store.settled(self)
            return True
        if lane.current is None and self.store.bound and not self.begun:
            # Nobody has the room, but somebody may be inside: a quick call on another thread,
            # which takes the room when it is not over soon.
            self.store.ready(self)
        taken = lane.take(self)
        self.store.settled(self)  # not before: until then those on other threads wait
        return taken

    @property
    def lost(self) -> bool:
        """Whether the loop that it needs has been closed."""
        return self.loop is not None and self.loop.is_closed()

    def dismiss(self) -> None:
        """Wake those who wait to run on top of the operation, because the store has been closed."""
        if self._children is not None:
            self._children.dismiss()

    def put_out(self) -> bool:
        """End the operation, and those that run on top of it; return whether none is in the way."""
        if self._children is not None and self._children.clear() is not None:
            return False
        if self.lane is None:  # it has ended meanwhile, on another thread, and its loop after it
            return True
        self.interrupt("closed")
        try:
            self.mourn()
        finally:
            self.end()
        return True

    def mourn(self) -> None:
        """Warn, once, that the loop was closed under the operation, if it was."""
        if self.lost:
            self.loop = None
            warnings.warn(
                f"the event loop was closed while {self.describe()} was suspended, which has been "
                "unwound; await or cancel its task before closing the loop",
                ResourceWarning,
                stacklevel=2,
            )

    @property
    def goes_on(self) -> bool:
        """Whether the operation has the room, and has been inside of the store."""
        return self.begun and self.lane is not None

    def enter_now(self) -> None:
        """Take the room in the store, or raise BusyResourceError."""
        if not self.enter():
            raise self.store.busy()

    def start(self) -> Fiber:
        """Give the fiber something to do. The caller is in the store."""
        raise NotImplementedError

    def poll(self) -> State:
        """Run the guest on this thread until it is done, asks for something, or yields."""
        handle = self.store.ready(self)
        if speedups is None:
            make_sure_of_room(
                STEP_FRAMES * (1 + len(self._outer_fibers())) if handle.guarded else IMPORT_FRAMES
            )
        try:
            with handle.lock:
                fiber = self._prepared(handle)
                self._poll(fiber)
        finally:
            if handle.pending:
                handle.close()
            raise_deferred()  # outside, for their handlers may look in
        if handle.dropped:
            self.store.sweep()
        if fiber.finished:
            return DONE
        return YIELDED if fiber.request is None else IMPORT

    def begin(self) -> None:
        """Make the fiber ready, so that from now on the operation waits for whoever looks in."""
        handle = self.store.ready(self)
        try:
            with handle.lock:
                self._prepared(handle)
        finally:
            if handle.pending:
                handle.close()

    def _prepared(self, handle: StoreHandle) -> Fiber:
        """Return the fiber, started and ready to be polled. The caller is in the store."""
        # Looked at in here, so that whoever interrupts and then enters finds nobody inside.
        if self.interrupted is not None:
            raise Interrupted(self.interrupted)
        # Those of another thread may have begun since this one has come to have the room.
        if not handle.open or self.store.stopped(self):
            raise self.store.unavailable(self)
        self.store.prepare_fiber()
        fiber = self.fiber
        if fiber is None or not fiber.future:
            if self.begun:  # a signal handler has called into the store in between
                raise Interrupted("closed")
            self.begun = True
            fiber = self.start()
        return fiber

    def advance(self, seconds: float, awaits: bool = True) -> State | tuple[Any, ...]:
        """
        Poll, and answer requests for plain host functions, for about *seconds*.

        Returns a state as `poll` does, ANSWERED when the time is over, or what a host function
        has returned, ``(value,)``, or raised, ``(None, exception)``, for `settle`. If the caller
        *awaits* those that suspend, ``(awaitable, call)`` is what one has returned.
        """
        store = self.store
        if not store.hosts:
            return self.poll()
        if speedups is None:
            from .answering import advance

            return advance(self, seconds, awaits)
        handle = store.ready(self)
        if handle.guarded and self._outer_fibers():
            return self.poll()
        fiber: Any = self.fiber
        if not self.begun or self.interrupted is not None or not store.goes_on_ticking():
            with handle.lock:
                fiber = self._prepared(handle)
        return fiber.advance(  # type: ignore[no-any-return]
            handle, store.plain_hosts, self, seconds, awaits
        )

    def settle(self, outcome: tuple[Any, ...]) -> None:
        """Answer the guest's request with what `advance` has brought back."""
        if len(outcome) == 2:
            exc = outcome[1]
            try:
                if isinstance(exc, Trap) or not isinstance(exc, Exception):
                    raise exc
                self.throw(exc)
            finally:
                del exc, outcome  # its traceback holds this frame
            return
        try:
            host, value = self.host, outcome[0]
            self.answer(value if host.suspending else host.checked(value))
        except Trap:
            raise
        except Exception as exc:
            self.throw(exc)

    def _poll(self, fiber: Fiber) -> None:
        """Poll *fiber*, from inside of the suspended fibers that it is nested in."""
        defers = speedups is None and bool(self.store.hosts) and on_main_thread()
        outer = self._outer_fibers()
        if not outer:
            fiber.poll(defers)
            return
        chain = [*outer, fiber]
        for above, below in itertools.pairwise(chain):
            above.child = below
        try:
            outer[0].poll(defers)
        finally:
            for above in outer:
                above.child = None
        failure, fiber.failure = fiber.failure, None
        if failure is not None:
            raise failure

    def _outer_fibers(self) -> list[Fiber]:
        """Return the suspended fibers whose stacks the collector has to see, outermost first."""
        fibers: list[Fiber] = []
        lane = self.lane
        while lane is not None and (owner := lane.owner) is not None:
            fiber = owner.fiber
            if fiber is not None and fiber.dispatching:
                fibers.append(fiber)
            lane = owner.lane
        return fibers[::-1]

    def inject(self, action: Callable[[], None]) -> None:
        """Run *action* inside of the fiber, which waits for an import. The caller is in the store."""
        fiber = self.fiber
        assert fiber is not None
        fiber.action = action
        try:
            self._poll(fiber)
        finally:
            raise_deferred()

    @property
    def host(self) -> HostFunction:
        """The host function that the guest has called."""
        assert self.fiber is not None and self.fiber.request is not None
        return self.store.hosts[self.fiber.request.host]

    def arguments(self) -> Sequence[Any]:
        """Return the arguments of the guest's request."""
        assert self.fiber is not None and self.fiber.request is not None
        host = self.host
        if host.refused:
            raise TypeError(f"{host.name} has exception references, which cannot cross to Python")
        row = host.parameters
        if not row.types:
            return ()
        # The request is on the guest's stack, which goes away when the store is closed.
        with self.store.entered(self):
            self.store.opened(self)
            if host.plain is not None:
                return self.fiber.request.unpack_raw(row)
            if row.numeric:
                return self.fiber.request.unpack(row)
            return self.store.references.read_row(len(row.types), self.fiber.request.arguments)

    def answer(self, value: Any) -> None:
        """Give the guest the result of its request, or raise what is wrong with *value*."""
        assert self.fiber is not None
        if speedups is not None:
            fiber: Any = self.fiber
            if fiber.answer(self.store.handle, self.store.plain_hosts, value):
                return
        assert self.fiber.request is not None
        host = self.host
        row = host.results
        if row.types:
            values = host.result_values(value)
            if row.numeric:
                if host.plain is not None:
                    packed = row.packed_raw(values)
                else:
                    packed = bytearray(row.val_bytes)
                    row.pack(packed, 0, values)
                with self.store.entered(self):
                    self.store.opened(self)
                    self.fiber.request.write(packed)
            else:
                store = self.store
                address = self.fiber.request.results
                prepared = store.references.prepare_row(row, values, host.concrete_results)
                concrete = host.concrete_results
                self._on_resuming(
                    lambda: store.references.write_row(row, address, prepared, concrete)
                )
        self.fiber.resume()

    def _on_resuming(self, action: Callable[[], None]) -> None:
        """Run *action*, which may allocate, where the collector sees the fiber's stack."""
        assert self.fiber is not None
        if self.fiber.dispatching:
            self.fiber.action = action
            return
        with self.store.entered(self):
            self.store.opened(self)
            action()

    def throw(self, exc: Exception) -> None:
        """Raise *exc* in the guest, as the answer to its request; here, if that cannot be done."""
        assert self.fiber is not None and self.fiber.request is not None
        request = self.fiber.request
        exceptions.meet(self.store, exc)

        def throw() -> None:
            request.fail(exceptions.throw(self.store, exc))

        self._on_resuming(throw)
        self.fiber.resume()

    def result(self) -> Any:
        """Return what the finished operation has made, or raise what ended it."""
        raise NotImplementedError

    def outcome(self) -> None:
        """Raise what ended the finished fiber, if it failed."""
        assert self.fiber is not None
        trap, error = self.fiber.outcome()
        if trap or error:
            raise exceptions.failure(self.store, error, trap, self.describe())

    def describe(self) -> str:
        """Say what the operation does, for notes and logs."""
        raise NotImplementedError

    def interrupt(self, reason: InterruptReason) -> None:
        """Stop the guest at its next poll."""
        self.interrupted = reason

    def leave(self) -> None:
        """
        Unwind the guest if it has not finished, and give the room to the next.

        Put off while a call that an import has started, and left behind, is on top.
        """
        if self._children is None or self._children.lets_owner_end():
            self.end()

    def end(self) -> None:
        """Leave now; idempotent."""
        with self.store.root.lock:
            lane, self.lane = self.lane, None
            fiber, self.fiber = self.fiber, None
        if fiber is not None and self.begun:  # else there is nothing to enter the store for
            if not fiber.finished:
                self.store.disturb()
            self.store.drop_fiber(fiber, self.release_values(fiber))
        if lane is not None and lane.current is self:
            lane.leave()
        self.store.left(self)

    def release_values(self, fiber: Fiber) -> tuple[int, int] | None:
        """Return address and count of the roots to free, if any."""
        return None


class Call(Operation):
    """A call of a function on a fiber."""

    __slots__ = ("_arguments", "_concrete", "_name", "_parameters", "_raw", "_results")

    def __init__(
        self,
        store: StoreCore,
        raw: tuple[int, int],
        name: str,
        parameters: Row,
        results: Row,
        arguments: Sequence[Any],
        concrete: Sequence[int],
        fiber: Fiber | None = None,  # that runs already
    ) -> None:
        super().__init__(store)
        self._raw = raw
        self._name = name
        self._parameters = parameters
        self._results = results
        self._arguments = arguments
        self._concrete = concrete
        if fiber is not None:
            self.fiber = fiber
            self.begun = True
            return
        self.fiber = Fiber(store.handle, parameters.val_bytes + results.val_bytes)
        if parameters.numeric:  # converted here, because that runs the user's code
            parameters.pack(self.fiber.memory, ARGUMENTS, arguments)

    def start(self) -> Fiber:
        fiber, parameters = self.fiber, self._parameters
        assert fiber is not None
        if not parameters.numeric:
            at, values, concrete = fiber.address + ARGUMENTS, self._arguments, self._concrete
            self.store.allocate_inside(
                lambda: self.store.references.write_row(parameters, at, values, concrete), self
            )
        fiber.start_call(self._raw, len(parameters.types), len(self._results.types))
        return fiber

    def result(self) -> Any:
        self.outcome()
        fiber, results = self.fiber, self._results
        assert fiber is not None
        if not results.types:
            return None
        offset = ARGUMENTS + self._parameters.val_bytes
        values: Sequence[Any]
        if results.numeric:
            values = results.unpack(fiber.memory, offset)
        else:
            with self.store.entered(self):
                self.store.opened(self)
                values = self.store.references.read_row(len(results.types), fiber.address + offset)
        return values[0] if len(values) == 1 else tuple(values)

    def release_values(self, fiber: Fiber) -> tuple[int, int] | None:
        if self._parameters.numeric and self._results.numeric:
            return None
        count = len(self._parameters.types) + len(self._results.types)
        return fiber.address + ARGUMENTS, count

    def describe(self) -> str:
        return f"function {self._name!r}"


class Standing(Operation):
    """
    What a call on its thread's own stack becomes once an import of it has started something.

    It has the room, so that whatever that is runs on top of it; there is nothing to poll.
    """

    __slots__ = ("_name",)

    stands = True

    def __init__(self, store: StoreCore, name: str) -> None:
        super().__init__(store)
        self._name = name
        self.begun = True

    def describe(self) -> str:
        return f"function {self._name!r}"

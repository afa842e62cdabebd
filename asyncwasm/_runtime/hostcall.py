"""For whom host functions run, and where that is known."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextvars import ContextVar
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any

from .._ffi.accelerator import speedups
from .._ffi.fiber import Fiber

if TYPE_CHECKING:
    from .operation import Operation


class HostCall:
    """
    A run of host functions on behalf of an operation; what they start inherits it.

    Most hosts start nothing, so that a call which is over soon has no operation: only who asks for
    that here has it made, from the exported function, its arguments, and the fiber.
    """

    __slots__ = (
        "_fiber",
        "_function",
        "_given",
        "_operation",
        "active",
        "outcome",
        "outer",
        "store",
    )

    def __init__(
        self,
        operation: Operation | None,
        function: Any = None,
        given: tuple[Any, ...] = (),
        fiber: Fiber | None = None,
    ) -> None:
        self.active = True
        self._operation = operation
        self.outer: HostCall | None
        self.outcome: tuple[Any, ...] | None = None  # what the last of them has returned or raised
        if operation is not None:
            self.store, self.outer = operation.store, operation.outer
            return
        self.store, self.outer = function._store, innermost()
        self._function, self._given, self._fiber = function, given, fiber

    @property
    def begun(self) -> bool:
        """Whether there is an operation."""
        return self._operation is not None

    @property
    def operation(self) -> Operation:
        """The operation, which has the room in its store."""
        return self._operation or self.begin()

    def begin(self) -> Operation:
        """
        Return the operation, made now if there is none.

        Raises:
            Interrupted: If the store has been closed meanwhile.
            BusyResourceError: If the thread whose call it is does not get on with it.
        """
        if self._operation is None and self.store.handle.handed_by != threading.get_ident():
            # Another thread makes it, now or never.
            if not self.store.outwait() or self._operation is None:
                raise self.store.unavailable(None)
        operation = self._operation
        if operation is None:
            operation = self._new_operation()
            operation.outer = self.outer
            if self.store.closed or not self.store.handle.ours:
                raise self.store.unavailable(operation)
            operation.enter_now()
            self._operation = operation
            self._fiber = None
        return operation

    def _new_operation(self) -> Operation:
        operation: Operation = self._function._operation(self._given, self._fiber)
        return operation

    @property
    def ends(self) -> float | None:
        """When what runs on its behalf has to be over, too."""
        if not self.active:
            return None
        if self._operation is not None:
            return self._operation.ends
        return None if self.outer is None else self.outer.ends

    def take_outcome(self) -> tuple[Any, ...]:
        """Return the outcome, which may hold an exception, whose traceback holds the call."""
        outcome, self.outcome = self.outcome, None
        assert outcome is not None
        return outcome


class StackCall(HostCall):
    """
    The same for a call on its thread's own stack, inside of *outer*, if that is not None.

    It is never put into the context: what runs on the thread meanwhile runs on its behalf, which
    `innermost` tells.
    """

    __slots__ = ()

    def __init__(self, function: Any, outer: HostCall | None) -> None:
        self.active = True
        self._operation = None
        self._function, self._given, self._fiber = function, (), None
        self.store, self.outer = function._store, outer
        self.outcome = None

    def _new_operation(self) -> Operation:
        from .operation import Standing

        return Standing(self.store, self._function._name)

    def check(self) -> None:
        """Raise BusyResourceError if a host function has left something behind on top of it."""
        if self._operation is not None and self._operation.occupied:
            raise self.store.busy()

    def over(self) -> None:
        """Note that the call is over."""
        self.active = False
        if self._operation is not None:
            self._operation.leave()


def innermost() -> HostCall | None:
    """Return the call on whose behalf runs what runs now, if there is one."""
    call = current.get()
    if speedups is None:
        return call
    found: HostCall | None = speedups.innermost(call)
    return found


@coroutine
def resumed(started: CoroutineType[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    """Go on with a coroutine that has yielded what it *waits_for*, as `await` would."""
    try:
        while True:
            try:
                sent = yield waits_for
            except GeneratorExit:
                started.close()
                raise
            except BaseException as exc:
                waits_for = started.throw(exc)
            else:
                if sent is None:  # what delegating begins with, which is faster
                    return (yield from started.__await__())
                waits_for = started.send(sent)
    except StopIteration as stop:
        return stop.value


current: ContextVar[HostCall | None] = ContextVar("asyncwasm_host_call", default=None)
if speedups is not None:
    speedups.bind_calls(current, HostCall, StackCall, resumed)

"""Running an operation to its end without an event loop."""

from __future__ import annotations

from typing import Any

from .._errors import SuspendError, Trap
from .operation import DONE, IMPORT, HostCall, Operation, current


def run(operation: Operation) -> Any:
    """
    Run *operation* on this thread, and return its result.

    Between polls, signal handlers run and can end it; the guest is then unwound.
    """
    try:
        operation.enter_now()
        while True:
            state = operation.poll()
            if state is DONE:
                return operation.result()
            if state is IMPORT:
                _call_host(operation)
                if operation.children.current is not None:
                    # The import has left a call suspended (an eager task does), on top of
                    # which the guest must not go on, not even to catch an exception.
                    raise operation.store.busy()
    finally:
        operation.leave()


def _call_host(operation: Operation) -> None:
    host = operation.host
    call = HostCall(operation)
    token = current.set(call)
    try:
        if host.suspending:
            raise SuspendError(
                f"{host.name} suspends, and was reached from a synchronous call; "
                "await the export with call_async, or use `await asyncwasm.instantiate(...)` "
                "if it was the start function"
            )
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

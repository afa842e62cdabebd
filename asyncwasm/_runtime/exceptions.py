"""
Exceptions between the guests of a store and Python.

Rule 1: a Python exception is thrown in a guest as a wasm exception of the store's own tag; if the
guest lets it out, the very same object is raised. Traps are never thrown: they end guests.
Rule 2: an exception that a guest has let out is pending in the native store until it is taken; left
there, the next failure would be taken for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import _log
from .._errors import Interrupted, RangeError, StackOverflow, Trap, WasmError
from .._ffi import errors, externs
from .._ffi.externs import Extern, Root
from .._ffi.references import drain, pending_drops
from .._ffi.scope import new_scope_function, root_scope
from .._types import TagType

if TYPE_CHECKING:
    from .store import StoreCore

_PYTHON_TAG_TYPE = TagType(["externref"])


def python_tag(store: StoreCore) -> Extern:
    """Return the store's own tag for Python exceptions. The caller is inside."""
    if store.python_tag is None:
        store.python_tag = externs.new_tag(store.handle, _PYTHON_TAG_TYPE)
    return store.python_tag


def meet(store: StoreCore, exc: Exception) -> None:
    """Let *exc*, which is about to be thrown in the store, bind what it holds. Not from inside."""
    meet = getattr(exc, "_meet", None)
    if meet is not None:
        meet(store)


def throw(store: StoreCore, exc: Exception) -> int:
    """
    Make *exc*, which has met the store, pending there, and return the trap. The caller is inside.

    If there is no room for it, it is raised here: the caller gets it past the guest.
    """
    try:
        return _throw(store, exc)
    except Exception:
        raise exc from None


def throw_on_stack(store: StoreCore, exc: Exception) -> int:
    """Do all of that for a guest that waits on this thread's own stack. Not from inside."""
    meet(store, exc)
    with store.entered():
        store.opened()
        return throw(store, exc)


def _throw(store: StoreCore, exc: Exception) -> int:
    thrower = getattr(exc, "_throw_in", None)
    if thrower is not None:
        tagged: int | None = thrower(store)
        if tagged is not None:
            return tagged
    _, trap = externs.throw(
        store.handle, store.references, python_tag(store), _PYTHON_TAG_TYPE, [exc]
    )
    return trap


def failure(
    store: StoreCore,
    error: int,
    trap: int,
    what: str,
    kind: Callable[[str], WasmError] | None = None,
) -> BaseException:
    """Return the exception for what a fiber or a call has failed with. Not from inside."""
    store.disturb()
    # A thrown exception arrives as an error from a fiber, as a trap from a direct call.
    with store.entered():
        store.opened()
        thrown = _take_pending(store)
    if thrown is not None:
        frames = errors.take_trap(trap).frames if trap else errors.take_error(error).frames
        if frames:
            thrown.add_note("wasm backtrace:\n" + "\n".join(f"  {each}" for each in frames))
        return thrown
    if trap:
        return _noticed(errors.take_trap(trap), what)
    text = errors.take_error(error)
    if text.is_deadline:
        return _noticed(Interrupted("deadline", frames=text.frames), what)
    if kind is not None:
        return kind(text.message)
    if text.is_empty_pool:
        return RangeError(text.message)
    if "type mismatch" in text.message or "argument" in text.message:
        return TypeError(f"{what}: {text.message}")
    return _noticed(Trap(text.message, None, text.frames), what)


def failure_on_stack(store: StoreCore, error: int, trap: int, what: str) -> BaseException:
    """Return the exception for what a call on a thread's own stack has failed with."""
    exc = failure(store, error, trap, what)
    if store.raised:
        with store.entered():
            store.opened()
            let_go(store)
        if pending_drops():
            drain()
    return exc


def overdue(what: str) -> BaseException:
    """Return the error for an operation that has run past its deadline."""
    return _noticed(Interrupted("deadline"), what)


def forget(store: StoreCore, trap: int, error: int) -> None:
    """Let go of what a fiber has ended with, if nobody has asked for it. The caller is inside."""
    if trap:
        errors.take_trap(trap)
    if error:
        errors.take_error(error)
    if trap or error:
        _take_pending(store)


def let_go(store: StoreCore) -> None:
    """Let go of exceptions that have come out of guests. The caller is inside."""
    if store.raised and not store.handle.futures:
        # Else its traceback would keep frames and locals until the collector runs.
        store.raised = False
        store.references.collect()


def _take_pending(store: StoreCore) -> BaseException | None:
    handle = store.handle
    if not externs.has_exception(handle):
        return None
    if store.scope is None:
        store.scope = new_scope_function(handle)
    with root_scope(handle, store.scope):
        return _thrown(store, *externs.take_exception(handle, store.references))


def _thrown(store: StoreCore, tag: Extern, fields: list[Any], root: Root) -> BaseException:
    if (
        store.python_tag is not None
        and tag.key == store.python_tag.key
        and isinstance(fields[0], BaseException)
    ):
        store.raised = True
        return fields[0]
    return store.exception_maker(store, tag, fields, root)


def _noticed(exc: Trap, what: str) -> Trap:
    _log.event(
        "guest_trapped",
        what=what,
        code=None if exc.code is None else exc.code.name,
        stack_overflow=isinstance(exc, StackOverflow),
    )
    return exc

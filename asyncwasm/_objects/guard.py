"""
The guard on synchronous work: it warns where an event loop would be held up.

Rule 1: a warning points at the caller's line, not at ours.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any, Literal, TypeAlias

from .. import _log
from .._errors import BlockingCallWarning, LargeModuleError, LargeModuleWarning

Action: TypeAlias = Literal["warn", "error", "ignore"]

DEFAULT_LIMIT_BYTES = 65_536
BLOCKING_SECONDS = 0.1
_ACTIONS = ("warn", "error", "ignore")
_VARIABLE = "ASYNCWASM_SYNC_GUARD"
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class _Guard:
    limit_bytes = DEFAULT_LIMIT_BYTES
    action: Action = "warn"
    reported: set[tuple[Any, ...]] = set()  # what has been logged, for each place


def configure_sync_guard(limit_bytes: int = DEFAULT_LIMIT_BYTES, action: Action = "warn") -> None:
    """
    Say what the synchronous constructors and calls do when they take long.

    The environment variable ``ASYNCWASM_SYNC_GUARD`` (``warn:65536``) sets the same at start.

    Args:
        limit_bytes: Size of a module, in bytes, above which the guard acts.
        action: ``"warn"`` issues `LargeModuleWarning` and `BlockingCallWarning`, ``"error"``
            raises `LargeModuleError` before any work, ``"ignore"`` does neither.
    Raises:
        TypeError: If *limit_bytes* is no int.
        ValueError: If *limit_bytes* is negative, or *action* has another value.
    """
    if not isinstance(limit_bytes, int) or isinstance(limit_bytes, bool):
        raise TypeError(f"expected an int for limit_bytes, got {type(limit_bytes).__name__}")
    if limit_bytes < 0:
        raise ValueError(f"expected limit_bytes of at least 0, got {limit_bytes}")
    if action not in _ACTIONS:
        raise ValueError(f"expected an action of {', '.join(_ACTIONS)}, got {action!r}")
    _Guard.limit_bytes = limit_bytes
    _Guard.action = action
    _Guard.reported = set()


def _from_environment(text: str) -> None:
    action, _, limit = text.partition(":")
    try:
        configure_sync_guard(
            int(limit.replace("_", "")) if limit else DEFAULT_LIMIT_BYTES,
            action,  # type: ignore[arg-type]  # checked there
        )
    except ValueError:
        warnings.warn(
            f"{_VARIABLE}={text!r} is ignored: expected warn, error or ignore, "
            "and a number of bytes after a colon",
            stacklevel=2,
        )


def check_module(byte_length: int, what: str, instead: str) -> None:
    """Act if a module of *byte_length* is too large for the constructor *what*."""
    if byte_length <= _Guard.limit_bytes or _Guard.action == "ignore":
        return
    text = (
        f"{what} of a module of {byte_length:,} bytes works synchronously and can hold this "
        f"thread for long (the limit is {_Guard.limit_bytes:,} bytes); use {instead}, or "
        "asyncwasm.configure_sync_guard(...)"
    )
    if _Guard.action == "error":
        raise LargeModuleError(text)
    _warn(
        LargeModuleWarning(text),
        "large_module",
        what=what,
        bytes=byte_length,
        limit_bytes=_Guard.limit_bytes,
    )


def blocking_call(seconds: float, name: str) -> None:
    """Act if a synchronous call of *seconds* held a running event loop."""
    if _Guard.action == "ignore" or not _loop_is_running():
        return
    _warn(
        BlockingCallWarning(
            f"a synchronous call of wasm function {name!r} held the event loop for "
            f"{seconds:.3f} s; use `await function.call_async(...)`"
        ),
        "blocking_call",
        function=name,
        seconds=round(seconds, 6),
    )


def _loop_is_running() -> bool:
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return True
    trio: Any = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())


def _warn(warning: Warning, event: str, **facts: Any) -> None:
    level, where = _caller()
    said = event, facts.get("what"), where
    if said not in _Guard.reported:
        _Guard.reported.add(said)
        _log.event(event, _log.WARNING, where=where, **facts)
    warnings.warn(warning, stacklevel=level + 1)


def _caller() -> tuple[int, str]:
    """Return the stack level of the first frame outside of the package, seen from `_warn`."""
    frame = sys._getframe(1)
    level = 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
        level += 1
    return level - 1, f"{frame.f_code.co_filename}:{frame.f_lineno}"


if _VARIABLE in os.environ:
    _from_environment(os.environ[_VARIABLE])

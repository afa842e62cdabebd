"""
Checkpoints: where an awaiting task can be cancelled, and lets the others run.

anyio's own cost more than a short call of wasm, and the first one loads its asyncio backend,
which takes longer than mapping a compiled module. In a task of asyncio with no cancel scope of
anyio around it there is nothing to ask anyio for. Whether there is one is looked up where it
keeps its records; wherever that cannot be told, anyio is asked.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any, cast

_BACKEND = "anyio._backends._asyncio"


def at_ease() -> bool:
    """Return whether the caller is a task of asyncio, with no cancel scope of anyio around it."""
    try:
        task = _current_task()
        if task is None:
            return False
        records = _find_records() if _records is None else _records
        record = records.get(weakref.ref(task)) if records else None
        return record is None or record.cancel_scope is None
    except (RuntimeError, AttributeError):  # no loop of asyncio runs, or anyio has changed
        return False
    except TypeError:
        if _current_task is not None or not _find_asyncio():
            return False
        return at_ease()


def loop_at_ease() -> Any:
    """Return the loop in which the caller is `at_ease`, None if it is not."""
    return _running_loop() if at_ease() else None


def _find_asyncio() -> bool:
    global _current_task, _running_loop, _sleep
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return False
    _current_task, _sleep = asyncio.current_task, asyncio.sleep
    _running_loop = asyncio._get_running_loop
    return True


def _find_records() -> dict[weakref.ref[Any], Any] | None:
    """Return None while the backend has not been loaded: then there is no cancel scope either."""
    global _records
    backend = sys.modules.get(_BACKEND)
    if backend is not None:
        _records = cast(Any, backend)._task_states.data
    return _records


_current_task: Any = None
_running_loop: Any = None
_sleep: Any = None
_records: dict[weakref.ref[Any], Any] | None = None  # of anyio's, by task


async def checkpoint() -> None:
    """Let the loop run, and be cancelled if that is due."""
    await (_sleep(0) if at_ease() else _lowlevel().checkpoint())


async def checkpoint_if_cancelled() -> None:
    """Be cancelled if that is due."""
    if not at_ease():
        await _lowlevel().checkpoint_if_cancelled()


def _lowlevel() -> Any:
    """Load what most programs of asyncio never need."""
    from anyio import lowlevel

    return lowlevel

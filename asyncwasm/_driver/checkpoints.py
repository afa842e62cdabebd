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
from types import BuiltinFunctionType
from typing import Any, cast

from .._ffi.accelerator import speedups

_BACKEND = "anyio._backends._asyncio"


def at_ease() -> bool:
    """Return whether the caller is a task of asyncio, with no cancel scope of anyio around it."""
    return loop_at_ease() is not None


def loop_at_ease() -> Any:
    """Return the loop in which the caller is `at_ease`, None if it is not."""
    found = _find_asyncio()
    if found is None:
        return None
    running_loop, current_task, tasks = found
    loop = running_loop()
    if loop is None:
        return None
    task = tasks.get(loop) if current_task is None else current_task()
    if task is None:
        return None
    try:
        records = _find_records()
        record = records.get(weakref.ref(task)) if records else None
        return loop if record is None or record.cancel_scope is None else None
    except (AttributeError, TypeError):  # anyio has changed
        return None


def _find_asyncio() -> tuple[Any, Any, Any] | None:
    """Return what tells the running loop, and the task in it: a function, or all by their loops."""
    asyncio: Any = sys.modules.get("asyncio")
    running_loop = getattr(asyncio, "_get_running_loop", None)  # None while it is being loaded
    if running_loop is None or running_loop() is None:
        return None
    if isinstance(asyncio.current_task, BuiltinFunctionType):
        return running_loop, asyncio.current_task, None
    return running_loop, None, asyncio.tasks._current_tasks  # what Python 3.11 makes it of


def _find_records() -> dict[weakref.ref[Any], Any] | None:
    """Return None while the backend has not been loaded: then there is no cancel scope either."""
    states = getattr(sys.modules.get(_BACKEND), "_task_states", None)
    return None if states is None else cast(dict[weakref.ref[Any], Any], states.data)


if speedups is not None:
    speedups.bind_tasks(_find_asyncio, _find_records, _BACKEND)
    at_ease, loop_at_ease = speedups.at_ease, speedups.loop_at_ease


async def checkpoint() -> None:
    """Let the loop run, and be cancelled if that is due."""
    await (sys.modules["asyncio"].sleep(0) if at_ease() else _lowlevel().checkpoint())


async def checkpoint_if_cancelled() -> None:
    """Be cancelled if that is due."""
    if not at_ease():
        await _lowlevel().checkpoint_if_cancelled()


def _lowlevel() -> Any:
    """Load what most programs of asyncio never need."""
    from anyio import lowlevel

    return lowlevel

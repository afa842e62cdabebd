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

from anyio import lowlevel

_BACKEND = "anyio._backends._asyncio"

_current_task: Any = None
_sleep: Any = None
_records: Any = None  # looks the record of a task up by a weak reference to it


def at_ease() -> bool:
    """Return whether the caller is a task of asyncio, with no cancel scope of anyio around it."""
    try:
        task = _current_task()
        if task is None:
            return False
        record = _records(weakref.ref(task))
        return record is None or record.cancel_scope is None
    except (RuntimeError, AttributeError):  # no loop of asyncio runs, or anyio has changed
        return False
    except TypeError:
        return _look_up()


def _look_up() -> bool:
    global _current_task, _records, _sleep
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return False
    _sleep = asyncio.sleep
    backend = sys.modules.get(_BACKEND)
    if backend is None:  # then there is no cancel scope either
        return asyncio.current_task() is not None
    states: Any = getattr(backend, "_task_states", None)
    if isinstance(states, weakref.WeakKeyDictionary):
        _records = cast(Any, states).data.get
        _current_task = asyncio.current_task
        return at_ease()
    return False


async def checkpoint() -> None:
    """Let the loop run, and be cancelled if that is due."""
    await (_sleep(0) if at_ease() else lowlevel.checkpoint())


async def checkpoint_if_cancelled() -> None:
    """Be cancelled if that is due."""
    if not at_ease():
        await lowlevel.checkpoint_if_cancelled()

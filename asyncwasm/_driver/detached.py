"""Tasks that belong to an object rather than to a block."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, TypeAlias

from .signal import in_trio

Post: TypeAlias = Callable[[Callable[[], object]], object]

_tasks: set[Any] = set()  # asyncio itself holds its tasks weakly


def start(function: Callable[[], Coroutine[Any, Any, None]]) -> Post:
    """
    Run *function*, which must not raise, in a task of its own and in the current context.

    For what a block of the caller's cannot hold: the tasks of an iterator. A task group's
    cancel scope would be entered in one call of ``__anext__`` and left in another, and would
    cover what the consumer does in between. Whoever starts a task sees to it that it ends.

    Returns:
        A function that has a callback run in the event loop. It may be called on any thread,
        and raises RuntimeError when the loop has gone.
    """
    if in_trio():
        trio: Any = sys.modules["trio"]
        trio.lowlevel.spawn_system_task(function, context=copy_context())
        post: Post = trio.lowlevel.current_trio_token().run_sync_soon
        return post
    import asyncio

    loop = asyncio.get_running_loop()
    task = loop.create_task(function())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return loop.call_soon_threadsafe


def is_being_cancelled() -> bool:
    """
    Return whether a cancellation that the current task sees is its own.

    In asyncio it can also come out of a future that somebody else has cancelled.
    """
    if in_trio():
        return True
    import asyncio

    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

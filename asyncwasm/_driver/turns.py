"""
Turns of the loop: guests may hold it for a slice or two in each, all calls together.

Otherwise many calls that are each short enough to run inline would add up. Nobody tells when the
loop runs: once guests have been called in a row for a tick, a callback is put into its queue,
and if that has not run after another one, it is the same turn still.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from .._ffi.clock import OLD, OVER, PureClock
from .checkpoints import checkpoint
from .signal import closable_loop, in_trio, running_loop


class _Here(threading.local):
    """What is known of the loop of this thread."""

    watched: Any = None  # the loop that has the callback in its queue
    line: Any = None  # a semaphore, and a reference to the loop that it belongs to
    loop: Callable[[], object] = staticmethod(lambda: None)


_here = _Here()
_PATIENCE = 1000  # turns; not for ever, should a signal handler have torn the watch
_LOOKING = 64  # that look in each turn whether there is time: others stand in line for that


async def wait_for_turn(clock: PureClock) -> None:
    """Let the loop run until it comes to a turn in which there is time left for guests."""
    if _has_time(clock):
        return
    async with _line():
        for _ in range(_PATIENCE):
            if _has_time(clock):
                return
            await checkpoint()
    clock.new_turn()


def _has_time(clock: PureClock) -> bool:
    streak = clock.streak()
    if streak:
        watch(clock)
    return streak != OVER


def _line() -> AbstractAsyncContextManager[Any]:
    """Return what those in this loop stand in line at, who would all look in each turn otherwise."""
    loop = running_loop()
    if _here.loop() is not loop:
        # Not anyio's, which loads its backend first: that takes ten turns.
        _here.line = sys.modules["trio" if in_trio() else "asyncio"].Semaphore(_LOOKING)
        _here.loop = (lambda: loop) if in_trio() else weakref.ref(loop)
    line: AbstractAsyncContextManager[Any] = _here.line
    return line


def spent(clock: PureClock) -> bool:
    """Return whether guests have had their time in this turn; one has just run."""
    streak = clock.streak(True)
    if streak == OLD:
        watch(clock)
    return streak == OVER


def watch(clock: PureClock) -> None:
    """Find out when the loop has run."""
    clock.watched()
    if in_trio():
        trio: Any = sys.modules["trio"]
        loop = trio.lowlevel.current_trio_token()
        if _here.watched is not loop:
            loop.run_sync_soon(_begin, clock)
            _here.watched = loop  # last: a signal handler that raises may come in between
        return
    loop = closable_loop()
    if loop is None:
        clock.new_turn()
    elif _here.watched is not loop:
        loop.call_soon(_begin, clock)
        _here.watched = loop


def _begin(clock: PureClock) -> None:
    _here.watched = None
    clock.new_turn()

"""
Turns of the loop: guests may hold it for a slice or two in each, all calls together.

Otherwise many calls that are each short enough to run inline would add up. Nobody tells when the
loop runs: once guests have been called in a row for a tick, a callback is put into its queue,
and if that has not run after another one, it is the same turn still.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import anyio
from anyio.lowlevel import RunVar

from .._ffi.clock import OLD, OVER, PureClock
from .checkpoints import checkpoint
from .signal import closable_loop, in_trio


class _Watching(threading.local):
    """The loop of this thread that has the callback in its queue."""

    loop: Any = None


_watching = _Watching()


_PATIENCE = 1000  # turns; not for ever, should a signal handler have torn the watch
_LOOKING = 64  # that look in each turn whether there is time: others stand in line for that
_looking: RunVar[anyio.Semaphore] = RunVar("asyncwasm_looking")


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


def _line() -> anyio.Semaphore:
    """Return what those in this loop stand in line at, who would all look in each turn otherwise."""
    try:
        return _looking.get()
    except LookupError:
        line = anyio.Semaphore(_LOOKING, fast_acquire=True)
        _looking.set(line)
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
        if _watching.loop is not loop:
            loop.run_sync_soon(_begin, clock)
            _watching.loop = loop  # last: a signal handler that raises may come in between
        return
    loop = closable_loop()
    if loop is None:
        clock.new_turn()
    elif _watching.loop is not loop:
        loop.call_soon(_begin, clock)
        _watching.loop = loop


def _begin(clock: PureClock) -> None:
    _watching.loop = None
    clock.new_turn()

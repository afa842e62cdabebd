"""
Turns of the loop: guests may hold it for a slice or two in each, all calls together.

Otherwise many calls that are each short enough to run inline would add up.
"""

from __future__ import annotations

import threading
from typing import Any

from .._ffi.quick import PureClock
from .checkpoints import checkpoint
from .signal import closable_loop, in_trio


class _Waking(threading.local):
    """The loop of this thread that will begin a new turn."""

    loop: Any = None


_waking = _Waking()


async def wait_for_turn(clock: PureClock) -> None:
    """Let the loop run until it comes to a turn in which there is time left for guests."""
    while clock.streak():
        loop = None if in_trio() else closable_loop()
        if loop is None:
            await checkpoint()
            clock.new_turn()
        else:
            if _waking.loop is not loop:
                _waking.loop = loop
                loop.call_soon(_begin, clock)
            await checkpoint()


def _begin(clock: PureClock) -> None:
    _waking.loop = None
    clock.new_turn()

"""
The clock of an engine: who needs it, deadlines on it, and ticks that are made by hand.

Rule 1: whoever is about to run wasm that must not hold its thread says `need()`, which costs an
attribute while the clock runs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from time import perf_counter

from .._ffi.clock import TICK_SECONDS, Clock
from .._ffi.handles import Handle

_MANUAL_SECONDS = 1 / 128  # of a tick made by hand: exact, and longer than any slice


class Ticker:
    """A clock, and those who depend on it or have taken it over."""

    def __init__(self) -> None:
        # A collection while it is held may finalize the very engine that it ticks for.
        self._lock = threading.RLock()
        self.clock = Clock()
        self._holders: set[object] = set()
        self._armed = 0  # ticks made by hand that no guest has seen yet
        self.stride = 1  # ticks that a guest runs on for after it has yielded
        self._elapsed = 0.0  # by hand
        self.now: Callable[[], float] = perf_counter  # seconds, for slices and deadlines

    def add(self, engine: Handle) -> None:
        """Advance *engine* too."""
        with self._lock:
            self.clock.add(engine)

    def need(self) -> None:
        """Keep ticking for a while."""
        clock = self.clock
        clock.needed = True
        clock.wake()
        if clock.manual:
            self._pass_one()

    def wake(self) -> None:
        """
        Start ticking. Not from inside of a store, where `need` is to find the clock awake.

        Whoever starts a thread waits for it, and it may have to run a finalizer that wants in.
        """
        self.clock.wake()

    def hold(self, owner: object) -> None:
        """Tick until *owner* says `release`, for a call that cannot say `need` again."""
        with self._lock:
            self._holders.add(owner)
            self.clock.holders = len(self._holders)
        self.need()

    def release(self, owner: object) -> None:
        """Undo the `hold` of *owner*; idempotent, so that it may run without one."""
        with self._lock:
            self._holders.discard(owner)
            self.clock.holders = len(self._holders)

    @property
    def held(self) -> bool:
        """Whether a call depends on the clock."""
        return bool(self._holders)

    def ticks(self, seconds: float) -> int:
        """Return after how many ticks *seconds* from now will have passed; the clock is held."""
        if self.clock.manual:
            return math.ceil(seconds / _MANUAL_SECONDS)
        return math.ceil((seconds + self.clock.late()) / TICK_SECONDS) + 1

    def close(self) -> None:
        """End the clock's thread, and touch no engine again."""
        self.clock.stop()

    @property
    def running(self) -> bool:
        """Whether the clock is ticking."""
        return not self.clock.parked

    # by hand, for tests

    def take_over(self) -> None:
        """Tick, and let time pass, only by `tick`."""
        with self._lock:
            self.clock.manual += 1
            self.now = self._manual_now

    def give_back(self) -> None:
        """Undo one `take_over`."""
        with self._lock:
            self.clock.manual -= 1
            if not self.clock.manual:
                self._armed = 0
                self.clock.unseen = False
                self.stride = 1
                self.now = perf_counter

    def tick(self) -> None:
        """Tick once by hand: for the guest that runs, or for the next that does."""
        with self._lock:
            self._armed += 1
            self.clock.advance()  # a guest that runs now comes back, and says `need`

    def _pass_one(self) -> None:
        """Let the guest that is about to be polled see one tick, if there is one."""
        with self._lock:
            # If there is, the thread ticks until the guest yields: it may still have to see it.
            self.clock.unseen = self._armed > 0
            if self.clock.unseen:
                self._armed -= 1
                self._elapsed += _MANUAL_SECONDS
                # Seen at once, unless the guest has yielded: its deadline is set anew when it
                # goes on. If the tick was given before it yielded, it does so with stride 0;
                # if not, the thread ticks until it yields again.
                self.clock.advance()
            self.stride = 0 if self._armed else 1

    def _manual_now(self) -> float:
        return self._elapsed

"""
What advances the epoch of an engine, and what those it watches tell it.

Rule 1: no thread runs while nothing needs one. Whoever is about to run wasm that must not hold
its thread says `needed`, an attribute, and then `wake` if the clock is `parked`.
Rule 2: ticks that came late, because the thread had to wait, are made up for: a deadline in ticks
means time. Whoever sets one adds those that are late already (`late`).
"""

from __future__ import annotations

import threading
import time
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any

from .accelerator import speedups
from .handles import Handle
from .library import lib

TICK_SECONDS = 0.001
_IDLE_TICKS = 100  # in a row in which nobody needed one, after which the clock is parked
_REST_SECONDS = 5.0  # after which the thread of a parked clock ends
_LATE_TICKS = 1000  # from which on the process must have been stopped, and its guests too

OLD, OVER = 1, 2  # what a streak of calls can be: lasting for a tick, and longer than a turn


class _Turn(threading.local):
    """How long guests have held the loop of this thread, in ticks."""

    last = 0  # when a guest was called last
    since = 0  # since when guests have been called in a row
    watched = False  # whether somebody tells when the loop has run


turn = _Turn()


class PureClock:
    """A thread that increments the epoch of engines every TICK_SECONDS; in C it needs no GIL."""

    __slots__ = (
        "_engines",
        "_lock",
        "_thread",
        "_ticked",
        "_wake",
        "holders",
        "manual",
        "needed",
        "parked",
        "ticks",
        "unseen",
    )

    def __init__(self) -> None:
        self.holders = 0  # how many calls depend on it, for as long as they do
        self.needed = False  # said before each poll; taken back by the thread
        self.parked = True  # nobody ticks
        self.manual = 0  # how many have taken the clock into their hands: it only counts
        self.unseen = False  # whether it ticks for a guest all the same
        self.ticks = 0  # how often it has ticked
        # A collection on the clock's own thread may finalize the very engine that it ticks for.
        self._lock = threading.RLock()
        self._engines: list[Handle] = []
        self._thread: threading.Thread | None = None
        self._ticked = 0.0  # when the last tick was due
        self._wake: SimpleQueue[None] = SimpleQueue()  # in C: no signal handler can tear it

    def add(self, engine: Handle) -> None:
        """Advance *engine* too, until `stop`."""
        with self._lock:
            self._engines.append(engine)

    def advance(self) -> None:
        """Advance the engines by a tick that is made by hand."""
        with self._lock:
            for engine in self._engines:
                lib.wasmtime_engine_increment_epoch(engine.pointer)

    def wake(self) -> None:
        """Tick, from when the thread has woken up; without engines it stays parked."""
        if not self.parked:
            return
        with self._lock:
            if not self._engines:
                return
            if self.parked:
                self._ticked = perf_counter()
            # In this order: a signal handler that raises may come anywhere in between, and what
            # is not parked must tick.
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="asyncwasm ticker", daemon=True)
                thread.start()
                self._thread = thread
            self._wake.put(None)
            self.parked = False

    def stop(self) -> None:
        """End the thread, and touch no engine again; idempotent."""
        with self._lock:
            self._engines.clear()
            thread, self._thread = self._thread, None
            self.parked = True
            self._wake.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(1)  # a tick

    def late(self) -> float:
        """Return how many seconds the next tick is late, or will come after the last one."""
        late = perf_counter() - self._ticked
        return late if 0 <= late < _LATE_TICKS * TICK_SECONDS else 0.0

    def _rest(self, own: threading.Thread) -> bool:
        """Wait until somebody wakes the thread; False if it has to end."""
        while True:
            woken = True
            try:
                self._wake.get(timeout=_REST_SECONDS)
            except Empty:
                woken = False
            with self._lock:
                if self._thread is not own:
                    return False
                if not self.parked:
                    return True
                if not woken:  # else by somebody who has been torn from it since
                    self._thread = None
                    return False

    def _run(self) -> None:
        own = threading.current_thread()
        # Without releasing the GIL: a thread that has to get it back does not tick on time, and
        # at interpreter exit would never let go of the lock.
        increment: Any = lib.brief("wasmtime_engine_increment_epoch")
        idle = 0
        while True:
            if self.parked and not self._rest(own):
                return
            time.sleep(TICK_SECONDS)
            with self._lock:
                if self._thread is not own:
                    return
                self._tick(increment)
                if self.needed or self.holders:
                    self.needed = False
                    idle = 0
                    continue
                idle += 1
                if idle < _IDLE_TICKS:
                    continue
                idle = 0
                self.parked = True
                if self.needed:  # said after the look above, before it was parked
                    self.parked = False

    def _tick(self, increment: Any) -> None:
        """Tick once, and as often as it should have happened before."""
        now = perf_counter()
        due = int((now - self._ticked) / TICK_SECONDS)
        if 0 <= due <= _LATE_TICKS:
            self._ticked += due * TICK_SECONDS
        else:
            due, self._ticked = 1, now
        self.ticks += due
        if not self.manual or self.unseen:
            for engine in self._engines:
                for _ in range(due):
                    increment(engine.pointer)

    # how long guests have held the loop of a thread

    def streak(self, ran: bool = False) -> int:
        """
        Return how long guests have held the loop of this thread; note one more call.

        *ran* says that one has held it since the last note. 0 is not long, OLD a tick or more, if
        the loop has not run meanwhile, which has to be `watched`, and OVER too long.
        """
        if self.manual:
            return 0
        now = self.ticks
        if not ran and not 0 <= now - turn.last <= 1:  # a pause, or another clock
            turn.since = now
            turn.watched = False
        turn.last = now
        if not turn.watched:
            return OLD if now > turn.since else 0
        return OVER if now - turn.since >= OVER else 0

    def watched(self) -> None:
        """Note that `new_turn` will be called when the loop has run."""
        turn.watched = True

    def new_turn(self) -> None:
        """Note that the loop of this thread has run."""
        turn.last = turn.since = self.ticks
        turn.watched = False


Clock: type[PureClock] = PureClock if speedups is None else speedups.Clock

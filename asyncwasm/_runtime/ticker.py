"""
The clock of an engine: it advances the epoch while something needs it.

Rule 1: no thread runs while nothing does. Whoever is about to run wasm that must not hold
its thread says `need()`, which costs an attribute while the clock runs.
Rule 2: while nothing needs each tick the thread rests, and advances the epoch now and then for
guests that only look for signals (`watch`): a thread that takes the GIL a thousand times a second
costs those who let go of it more than their calls do.
Rule 3: ticks that came late, because the thread had to wait for the GIL, are made up for: a
deadline in ticks means time. Whoever sets one adds those that are late already (`ticks`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any

from .._ffi.handles import Handle
from .._ffi.library import lib
from .._ffi.quick import Clock

TICK_SECONDS = 0.001
_IDLE_TICKS = 100
_REST_SECONDS = 0.05
_RESTS = 100  # in a row in which nobody wanted one, after which the thread ends
_LATE_TICKS = 1000  # from which on the process must have been stopped, and its guests too
_MANUAL_SECONDS = 1 / 128  # of a tick made by hand: exact, and longer than any slice


class Ticker:
    """A thread that increments the epoch of *engines* every TICK_SECONDS."""

    def __init__(self) -> None:
        # A collection on the clock's own thread may finalize the very engine that it ticks for.
        self._lock = threading.RLock()
        self._engines: list[Handle] = []
        self._thread: threading.Thread | None = None
        self._wake: SimpleQueue[None] = SimpleQueue()  # in C: no signal handler can tear it
        self.clock = Clock()
        self._holders: set[object] = set()
        self._ticked = 0.0  # when the last tick was due
        self._armed = 0  # ticks made by hand that no guest has seen yet
        self._unseen = False  # whether a guest that has been polled since may still have to
        self.stride = 1  # ticks that a guest runs on for after it has yielded
        self._elapsed = 0.0  # by hand
        self.now: Callable[[], float] = perf_counter  # seconds, for slices and deadlines

    def add(self, engine: Handle) -> None:
        """Advance *engine* too."""
        with self._lock:
            self._engines.append(engine)

    def need(self) -> None:
        """Keep ticking for a while."""
        clock = self.clock
        clock.needed = True
        self.wake()
        if clock.manual:
            self._pass_one()

    def wake(self) -> None:
        """
        Start ticking. Not from inside of a store, where `need` is to find the clock awake.

        Whoever starts a thread waits for it, and it may have to run a finalizer that wants in.
        """
        if self.clock.parked:
            self._start()

    def watch(self) -> None:
        """Advance the epoch now and then for a while, unless somebody does by hand."""
        clock = self.clock
        clock.wanted = True
        if not (clock.alert or clock.manual):
            with self._lock:
                self._start_thread()

    def hold(self, owner: object) -> None:
        """Tick until *owner* says `release`, for a call that cannot say `need` again."""
        with self._lock:
            self._holders.add(owner)
        self.need()

    def release(self, owner: object) -> None:
        """Undo the `hold` of *owner*; idempotent, so that it may run without one."""
        with self._lock:
            self._holders.discard(owner)

    @property
    def held(self) -> bool:
        """Whether a call depends on the clock."""
        return bool(self._holders)

    def ticks(self, seconds: float) -> int:
        """Return after how many ticks *seconds* from now will have passed; the clock is held."""
        if self.clock.manual:
            return math.ceil(seconds / _MANUAL_SECONDS)
        late = perf_counter() - self._ticked
        if not 0 <= late < _LATE_TICKS * TICK_SECONDS:
            late = 0.0
        return math.ceil((seconds + late) / TICK_SECONDS) + 1

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
                self._unseen = False
                self.stride = 1
                self.now = perf_counter

    def tick(self) -> None:
        """Tick once by hand: for the guest that runs, or for the next that does."""
        with self._lock:
            self._armed += 1
            self._increment()  # a guest that runs now comes back, and says `need`

    def _pass_one(self) -> None:
        """Let the guest that is about to be polled see one tick, if there is one."""
        with self._lock:
            self._unseen = self._armed > 0
            if self._unseen:
                self._armed -= 1
                self._elapsed += _MANUAL_SECONDS
                # Seen at once, unless the guest has yielded: its deadline is set anew when it
                # goes on. If the tick was given before it yielded, it does so with stride 0;
                # if not, the thread ticks until it yields again.
                self._increment()
            self.stride = 0 if self._armed else 1

    def _manual_now(self) -> float:
        return self._elapsed

    def _increment(self) -> None:
        for engine in self._engines:
            lib.wasmtime_engine_increment_epoch(engine.pointer)

    def close(self) -> None:
        """End the thread, and touch no engine again."""
        with self._lock:
            self._engines.clear()
            thread, self._thread = self._thread, None
            self.clock.parked = True
            self.clock.alert = False
            self._wake.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(1)  # a tick

    @property
    def running(self) -> bool:
        """Whether the clock is ticking."""
        return not self.clock.parked

    def _start(self) -> None:
        with self._lock:
            if self.clock.parked:
                self._ticked = perf_counter()
            # In this order: a signal handler that raises may come anywhere in between, and what
            # is not parked must tick.
            self._start_thread()
            self._wake.put(None)
            self.clock.parked = False

    def _start_thread(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="asyncwasm ticker", daemon=True)
            thread.start()
            self._thread = thread
        self.clock.alert = True

    def _rest(self, own: threading.Thread, increment: Any) -> bool:
        """Wait until somebody wakes the thread; False if it has to end."""
        clock = self.clock
        rests = 0
        while True:
            woken = True
            try:
                self._wake.get(timeout=_REST_SECONDS)
            except Empty:
                woken = False
                rests += 1
            with self._lock:
                if self._thread is not own:
                    return False
                if not clock.parked:
                    return True
                if woken:  # by somebody who has been torn from it since
                    continue
                if clock.wanted:
                    clock.wanted = False
                    rests = 0
                    self._advance(increment, math.ceil(_REST_SECONDS / TICK_SECONDS))
                elif rests >= _RESTS:
                    self._thread = None
                    clock.alert = False
                    return False

    def _advance(self, increment: Any, ticks: int) -> None:
        self.clock.ticks += ticks
        if not self.clock.manual or self._unseen:
            for engine in self._engines:
                for _ in range(ticks):
                    increment(engine.pointer)

    def _run(self) -> None:
        own = threading.current_thread()
        # Without releasing the GIL: a thread that has to get it back does not tick on time, and
        # at interpreter exit would never let go of the lock.
        increment: Any = lib.brief("wasmtime_engine_increment_epoch")
        idle = 0
        while True:
            if self.clock.parked and not self._rest(own, increment):
                return
            time.sleep(TICK_SECONDS)
            with self._lock:
                if self._thread is not own:
                    return
                now = perf_counter()
                due = int((now - self._ticked) / TICK_SECONDS)
                if 0 <= due <= _LATE_TICKS:
                    self._ticked += due * TICK_SECONDS
                else:
                    due, self._ticked = 1, now
                self._advance(increment, due)
                if self.clock.needed or self._holders:
                    self.clock.needed = False
                    idle = 0
                    continue
                idle += 1
                if idle < _IDLE_TICKS:
                    continue
                idle = 0
                self.clock.parked = True
                if self.clock.needed:  # said after the look above, before we were parked
                    self.clock.parked = False

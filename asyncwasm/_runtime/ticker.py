"""
The clock of an engine: it advances the epoch while something needs it.

Rule 1: no thread runs while nothing does. Whoever is about to run wasm that must not hold
its thread says `need()`, which costs an attribute while the clock runs.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from .._ffi.handles import Handle
from .._ffi.library import lib

TICK_SECONDS = 0.001
_IDLE_TICKS = 100
_PARKED_SECONDS = 5.0


class Ticker:
    """A thread that increments the epoch of *engines* every TICK_SECONDS."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: list[Handle] = []
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._parked = True
        self._needed = False
        self._holds = 0

    def add(self, engine: Handle) -> None:
        """Advance *engine* too."""
        with self._lock:
            self._engines.append(engine)

    def need(self) -> None:
        """Keep ticking for a while."""
        self._needed = True
        if self._parked:
            self._start()

    def hold(self) -> None:
        """Tick until `release`, for a call that cannot say `need` again."""
        with self._lock:
            self._holds += 1
        self.need()

    def release(self) -> None:
        """Undo one `hold`."""
        with self._lock:
            self._holds -= 1

    def close(self) -> None:
        """End the thread, and touch no engine again."""
        with self._lock:
            self._engines.clear()
            thread, self._thread = self._thread, None
            self._parked = True
            self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(1)  # a tick

    @property
    def running(self) -> bool:
        """Whether the clock is ticking."""
        return not self._parked

    def _start(self) -> None:
        with self._lock:
            self._parked = False
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="asyncwasm ticker", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        own = threading.current_thread()
        # Without releasing the GIL: a thread that has to get it back does not tick on time, and
        # at interpreter exit would never let go of the lock.
        increment: Any = lib.brief("wasmtime_engine_increment_epoch")
        idle = 0
        while True:
            time.sleep(TICK_SECONDS)
            with self._lock:
                if self._thread is not own:
                    return
                for engine in self._engines:
                    increment(engine.pointer)
                if self._needed or self._holds:
                    self._needed = False
                    idle = 0
                    continue
                idle += 1
                if idle < _IDLE_TICKS:
                    continue
                self._parked = True
                if self._needed:  # said after the look above, before we were parked
                    self._parked = False
                    continue
                self._wake.clear()
            idle = 0
            if not self._wake.wait(_PARKED_SECONDS):
                with self._lock:
                    if self._parked and self._thread is own:
                        self._thread = None
                        return

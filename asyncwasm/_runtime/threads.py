"""
Threads of our own: daemons that end when nothing has been done for a while.

Why not concurrent.futures: its threads are joined at interpreter exit, so that a program
could not end before a compilation of ten seconds does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

import anyio

_IDLE_SECONDS = 10.0


class Threads:
    """At most *limit* threads that run jobs in the order they were submitted."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = 0
        self._unclaimed = 0  # idle threads less waiting jobs
        self._closed = False
        self._running = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Run *job*, which must not raise, on one of the threads."""
        with self._lock:
            if self._closed:
                raise anyio.ClosedResourceError("the engine has been closed")
            self._unclaimed -= 1
            if self._unclaimed < 0 and self._threads < self._limit:
                self._threads += 1
                self._unclaimed += 1
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            self._jobs.put(job)

    def close(self) -> None:
        """Take no more jobs, and end each thread after what it is doing."""
        with self._lock:
            self._closed = True
            for _ in range(self._threads):
                self._jobs.put(None)

    def settle(self, seconds: float) -> None:
        """Wait until no job runs, at most *seconds*."""
        end = time.monotonic() + seconds
        while self._running and time.monotonic() < end:
            time.sleep(0.001)

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return self._jobs.qsize()

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if self._unclaimed > 0 and self._jobs.empty():
                        self._unclaimed -= 1
                        self._threads -= 1
                        return
                continue
            if job is None:
                return
            with self._lock:
                self._running += 1
            job()
            del job
            with self._lock:
                self._running -= 1
                self._unclaimed += 1

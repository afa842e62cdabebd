"""
Threads of our own: daemons that end when nothing has been done for a while.

Why not concurrent.futures: its threads are joined at interpreter exit, so that a program
could not end before a compilation of ten seconds does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

import anyio

from .._errors import RangeError

_IDLE_SECONDS = 10.0
_NICENESS = 15


class Threads:
    """
    At most *limit* threads that run jobs in the order they were submitted.

    A signal handler that raises may come anywhere into `submit`, so lock and queue are those in C,
    which it cannot tear. The lock can be taken again by its owner: a collection in here may run the
    finalizer of the engine that these threads belong to.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        *,
        max_waiting: int | None = None,
        low_priority: bool = False,
    ) -> None:
        self._name = name
        self._limit = limit
        self._max_waiting = max_waiting
        self._low_priority = low_priority
        self._lock = threading.RLock()
        self._jobs: deque[Callable[[], None]] = deque()
        self._wake: SimpleQueue[None] = SimpleQueue()  # at least one for each job that waits
        self._threads = 0
        self._idle = 0  # threads that will look for a job, those that are starting included
        self._running = 0
        self._closed = False

    def submit(self, job: Callable[[], None]) -> None:
        """Run *job*, which must not raise, on one of the threads."""
        with self._lock:
            if self._closed:
                raise anyio.ClosedResourceError("the engine has been closed")
            free = self._idle + self._limit - self._threads
            if self._max_waiting is not None and len(self._jobs) - free >= self._max_waiting:
                raise RangeError(
                    f"{len(self._jobs) - free:,} compilations are waiting, the engine lets at "
                    f"most {self._max_waiting:,} wait; ask for fewer at a time, or raise "
                    "EngineConfig.max_queued_compilations"
                )
            if len(self._jobs) >= self._idle and self._threads < self._limit:
                self._start()
            self._wake.put(None)
            self._jobs.append(job)

    def _start(self) -> None:
        claim: list[None] = [None]  # whoever takes it decides whether the thread counts
        thread = _Thread(target=self._run, args=(claim,), name=self._name, daemon=True)
        self._threads += 1
        self._idle += 1
        try:
            thread.start()
        except BaseException:
            if take(claim):
                self._threads -= 1
                self._idle -= 1
            raise

    def withdraw(self, job: Callable[[], None]) -> None:
        """Take *job* out of the line, if no thread has taken it yet."""
        with self._lock:
            if job in self._jobs:
                self._jobs.remove(job)

    def close(self) -> None:
        """Take no more jobs, and end each thread when those that wait have been done."""
        with self._lock:
            self._closed = True
            for _ in range(self._threads):
                self._wake.put(None)

    def settle(self, seconds: float) -> None:
        """Wait until no job runs, at most *seconds*."""
        end = time.monotonic() + seconds
        while self._running and time.monotonic() < end:
            time.sleep(0.001)

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return len(self._jobs)

    def _run(self, claim: list[None]) -> None:
        if not take(claim):
            return
        if self._low_priority:
            _lower_priority()
        while True:
            job = self._next()
            if job is None:
                return
            job()
            del job
            with self._lock:
                self._running -= 1
                self._idle += 1

    def _next(self) -> Callable[[], None] | None:
        """Wait for a job; None if this thread is to end."""
        bored = False
        while True:
            try:
                self._wake.get(timeout=_IDLE_SECONDS)
            except Empty:
                bored = True
            with self._lock:
                if self._jobs:
                    self._idle -= 1
                    self._running += 1
                    return self._jobs.popleft()
                if self._closed or bored:
                    self._idle -= 1
                    self._threads -= 1
                    return None


class _Thread(threading.Thread):
    """One whose `start` does not wait until it runs, which would take longer than many a job."""

    def start(self) -> None:
        started = self.__dict__.get("_started")
        if isinstance(started, threading.Event):  # a private name: without it, `start` waits
            started.wait = lambda timeout=None: True  # type: ignore[method-assign]
        super().start()


def take(claim: list[None]) -> bool:
    """Take what only one of several threads can have, and return whether it was there."""
    try:
        claim.pop()
    except IndexError:
        return False
    return True


def _lower_priority() -> None:
    """Let this thread run when nobody else wants to, where threads have priorities of their own."""
    try:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        elif hasattr(os, "PRIO_DARWIN_THREAD"):
            os.setpriority(os.PRIO_DARWIN_THREAD, 0, os.PRIO_DARWIN_BG)
    except OSError:
        pass  # it will be in the way of others, but work

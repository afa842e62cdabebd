"""
Jobs on compile threads: shared by all who ask for the same, dropped when nobody waits.

Rule 1: a job that has begun is never given up: its result is kept for whoever asks next.
Rule 2: what fails because the thread it ran on was interrupted (`KeyboardInterrupt`) is done
again for those who only waited for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from .threads import Threads

T = TypeVar("T")


class Job(Future[T]):
    """
    What several callers wait for.

    Each caller that got it from `Jobs.submit` calls `abandon` if it stops waiting early.
    """

    def __init__(self, jobs: Jobs, key: object, make: Callable[[], T | Future[T]]) -> None:
        super().__init__()
        self.waiters = 0
        self._jobs = jobs
        self._key = key
        self._make: Callable[[], T | Future[T]] | None = make

    def run(self) -> None:
        """Do it, on the thread that calls."""
        if self.set_running_or_notify_cancel():
            self._try()
        del self  # an error's traceback would hold what holds it

    def _try(self) -> None:
        assert self._make is not None
        try:
            made = self._make()
        except BaseException as exc:
            self._finish(exc, None)
        else:
            if isinstance(made, Future):  # somebody else is at it; this thread is free
                made.add_done_callback(self._take)
            else:
                self._finish(None, made)
        finally:
            del self  # as above

    def _take(self, other: Future[T]) -> None:
        exc = other.exception()
        if exc is None:
            self._finish(None, other.result())
        elif isinstance(exc, Exception):
            self._finish(exc, None)
        else:
            try:
                self._jobs.threads.submit(self._try)
            except Exception as refused:
                self._finish(refused, None)

    def _finish(self, exc: BaseException | None, value: Any) -> None:
        self._make = None
        self._jobs.forget(self._key, self)
        if exc is None:
            self.set_result(value)
        else:
            self.set_exception(exc)

    def abandon(self) -> None:
        """Stop waiting; the job is dropped if nobody else waits and it has not begun."""
        with self._jobs.lock:
            self.waiters -= 1
            if self.waiters or not self.cancel():
                return
            self._jobs.forget(self._key, self)
        self._jobs.threads.withdraw(self.run)
        self._make = None


class Jobs:
    """The jobs of an engine, by what they are about."""

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self.lock = threading.RLock()
        self._jobs: dict[object, Job[Any]] = {}

    def submit(self, key: object, make: Callable[[], T | Future[T]]) -> Job[T]:
        """Return the job for *key*: the one there is, or a new one that calls *make*."""
        with self.lock:
            job: Job[T] | None = self._jobs.get(key)
            if job is None:
                job = Job(self, key, make)
                self.threads.submit(job.run)
                self._jobs[key] = job
            job.waiters += 1
            return job

    def forget(self, key: object, job: Job[Any]) -> None:
        """Let the next who asks for *key* begin anew."""
        with self.lock:
            if self._jobs.get(key) is job:
                del self._jobs[key]


class Flights(Generic[T]):
    """Work that is done once for all threads that ask for the same at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[object, Future[T]] = {}

    def join(self, key: object, make: Callable[[], T]) -> T | Future[T]:
        """Return what *make* makes, or the future of whoever is making it already."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight
            flight = self._flights[key] = Future()
        try:
            made = make()
        except BaseException as exc:
            self._land(key)
            flight.set_exception(exc)
            del flight  # an error's traceback would hold what holds it
            raise
        self._land(key)
        flight.set_result(made)
        return made

    def _land(self, key: object) -> None:
        with self._lock:
            del self._flights[key]

    def run(self, key: object, make: Callable[[], T]) -> T:
        """Return what *make* makes, waiting for whoever is making it already."""
        return waited_for(lambda: self.join(key, make))


def waited_for(join: Callable[[], T | Future[T]]) -> T:
    """Return what *join* returns, on this thread, or what the future it returns has."""
    while True:
        made = join()
        if not isinstance(made, Future):
            return made
        exc = made.exception()
        if exc is None:
            return made.result()
        if isinstance(exc, Exception):
            try:
                raise exc
            finally:
                del exc, made  # as above

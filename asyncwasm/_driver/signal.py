"""
Signals: one-shot, awaited in an event loop, set from any thread.

asyncio and trio each have a way to be woken from a thread; anyio has none that does not
block the waking thread.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    import asyncio
else:

    class _Lazy:
        """asyncio, imported when a loop of its is there anyway."""

        def __getattr__(self, name: str) -> Any:
            import asyncio

            return getattr(asyncio, name)

    asyncio = _Lazy()


class AsyncioSignal:
    """A signal in the running asyncio loop."""

    __slots__ = ("_event", "_loop", "_woken")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._woken = False

    @property
    def lost(self) -> bool:
        """Whether the loop has been closed, so that nobody waits any more."""
        return self._loop.is_closed()

    def wake(self) -> bool:
        """
        Set the signal; may be called on any thread, and more than once.

        Returns:
            Whether the loop is still there.
        """
        self._woken = True
        if asyncio._get_running_loop() is self._loop:
            self._event.set()
            return True
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            return False
        return True

    async def wait(self) -> None:
        """Wait until the signal is set."""
        await self._event.wait()

    async def wait_regardless(self) -> None:
        """Wait until the signal is set, even while being cancelled."""
        # A signal handler that raises may have lost the callback that was to set the event.
        while not (self._woken or self._event.is_set()):
            try:
                with anyio.CancelScope(shield=True):
                    await self._event.wait()
            except asyncio.CancelledError:
                continue  # the cancellation that brought us here is raised again


class TrioSignal:
    """A signal in the running trio loop."""

    __slots__ = ("_event", "_token")

    def __init__(self) -> None:
        trio: Any = sys.modules["trio"]
        self._token = trio.lowlevel.current_trio_token()
        self._event = trio.Event()

    @property
    def lost(self) -> bool:
        """Whether nobody waits any more: trio does not end before its tasks."""
        return False

    def wake(self) -> bool:
        """
        Set the signal; may be called on any thread, and more than once.

        Returns:
            Whether the loop is still there.
        """
        trio: Any = sys.modules["trio"]
        try:
            self._token.run_sync_soon(self._event.set, idempotent=True)
        except trio.RunFinishedError:
            return False
        return True

    async def wait(self) -> None:
        """Wait until the signal is set."""
        await self._event.wait()

    async def wait_regardless(self) -> None:
        """Wait until the signal is set, even while being cancelled."""
        with anyio.CancelScope(shield=True):
            await self._event.wait()


def in_trio() -> bool:
    """Return whether the caller is a task of trio."""
    trio: Any = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_run() and trio.lowlevel.in_trio_task()


def new_signal() -> AsyncioSignal | TrioSignal:
    """Return a signal of the running loop."""
    return TrioSignal() if in_trio() else AsyncioSignal()


def running_loop() -> object:
    """Return an object that stands for the running loop."""
    if in_trio():
        return sys.modules["trio"].lowlevel.current_trio_token()
    loop = closable_loop()
    if loop is None:
        raise RuntimeError("no running event loop")
    return loop


def closable_loop() -> asyncio.AbstractEventLoop | None:
    """Return the running loop of asyncio; trio's ends after its tasks, and does not count."""
    loaded: Any = sys.modules.get("asyncio")
    loop: asyncio.AbstractEventLoop | None = loaded and loaded._get_running_loop()
    return loop

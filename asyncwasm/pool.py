"""
A pool of instances: one for each use, and never more than so many at a time.

Rule 1: whatever changes the pool's state holds its lock, but for counting what was made, which only
its one loop does; nothing is awaited, instantiated or freed under it.
Rule 2: room is handed over. Whoever leaves gives its place, and its instance if that is good
for another use, to the first in line, before anybody else can take it.
Rule 3: an instance is used again only if everything that its guest was asked for has returned.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from time import monotonic
from typing import Any

import anyio

from . import _log
from ._driver.checkpoints import at_ease, checkpoint_if_cancelled, loop_at_ease
from ._driver.compiling import instantiate_prepared
from ._driver.signal import AsyncioSignal, TrioSignal, new_signal, running_loop
from ._errors import Interrupted, LinkError, RangeError
from ._objects.instance import Instance, Preparation
from ._objects.module import Module
from ._objects.plan import Plan
from ._objects.storeobject import SAME_STORE
from ._runtime.blueprint import Blueprint
from ._runtime.config import Limits
from ._runtime.store import StoreCore

__all__ = ("InstancePool", "PoolStatistics")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """
    Say what a pool has done, and what it is doing.

    `max_instances` is the cap. `created` counts the instances that were made, `reused` the
    uses of one that was there, `discarded` the instances that were closed, for whatever reason.
    `in_use` is the number of places that are taken, also by an instance that is being made;
    `idle` that of instances that wait for their next use, `waiting` that of tasks in line.
    """

    max_instances: int
    created: int
    reused: int
    discarded: int
    in_use: int
    idle: int
    waiting: int


class _Entry:
    """An instance of the pool."""

    __slots__ = ("idle_since", "instance", "plan", "uses")

    def __init__(self, instance: Instance, plan: Plan) -> None:
        self.instance = instance
        self.plan = plan
        self.uses = 0
        self.idle_since = 0.0


_NONE: list[_Entry] = []  # stays empty


class _Waiter:
    """A task in line."""

    __slots__ = ("entry", "refused", "served", "signal")

    def __init__(self) -> None:
        self.signal: AsyncioSignal | TrioSignal = new_signal()
        self.entry: _Entry | None = None  # what it gets to use, if it need not make one
        self.served = False  # whether it has a place
        self.refused = False


class _Acquisition:
    """One use of an instance, for ``async with``."""

    __slots__ = ("_begun", "_entry", "_pool")

    def __init__(self, pool: InstancePool) -> None:
        self._pool = pool
        self._begun = False
        self._entry: _Entry | None = None

    async def __aenter__(self) -> Instance:
        if self._begun:
            raise RuntimeError("this acquisition has been used; call acquire() again")
        self._begun = True
        pool, loop = self._pool, loop_at_ease()
        entry = None if loop is None else pool._take_new(loop)
        self._entry = entry = entry or await pool._take()
        return entry.instance

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: object
    ) -> None:
        entry, self._entry = self._entry, None
        assert entry is not None
        self._pool._give_back(entry, exc_type is None)


class InstancePool:
    """
    Lend instances of a module, each to one user at a time, and never more than so many.

    By default every use gets an instance of its own, which is closed afterwards: nothing that
    one guest call leaves behind is seen by the next. With *max_uses* above 1 an instance is
    used again, unless the block that used it was left by an exception (cancellation included),
    a call trapped or raised in it, was stopped, or is still under way, or it was closed.

    Every instance has a store of its own, also inside of ``with Store()``, whose memory comes
    from a pool of the engine while there is room (`EngineConfig.pooling`); nothing of what an
    instance leaves there is seen by the next. New instances run the best code that the module
    has by then.

    Args:
        module: What to instantiate.
        imports: A mapping (or object) of mappings (or objects), read once and given to every
            instance; or a callable without parameters that returns one, called for each
            instance (once more for one that the engine's pool has no room for): for imports
            that keep something, and for a `Memory` or another object that lives in a store,
            which it makes anew. A callable that is no mapping is always taken for the latter.
        max_instances: How many instances there may be at a time.
        max_waiting: How many tasks may wait for one; any number if omitted.
        max_uses: How many times an instance is used before it is closed.
        limits: What each instance may take. Fuel is per use.
        idle_seconds: How long an instance is kept that nobody uses, for ever if None. It is
            closed when the pool is next used.
    Raises:
        TypeError: If an argument has the wrong type, or *imports* the wrong shape.
        LinkError: If an import is missing, has the wrong type, or lives in one store.
        ValueError: If a number is too small.
    Example:
        async with asyncwasm.InstancePool(module, imports, max_instances=16) as pool:
            async with pool.acquire() as instance:
                answer = await instance.exports.handle.call_async(request)
    """

    __module__ = "asyncwasm"

    def __init__(
        self,
        module: Module,
        imports: Any = None,
        *,
        max_instances: int,
        max_waiting: int | None = None,
        max_uses: int = 1,
        limits: Limits | None = None,
        idle_seconds: float | None = 60.0,
    ) -> None:
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f"expected Limits, got {type(limits).__name__}")
        self._max_instances = _number("max_instances", max_instances, 1)
        self._max_waiting = None if max_waiting is None else _number("max_waiting", max_waiting, 0)
        self._max_uses = _number("max_uses", max_uses, 1)
        self._idle_seconds = None if idle_seconds is None else _seconds(idle_seconds)
        self._limits = limits
        self._imports = imports
        self._plan = Plan(module, imports, limits)
        self._lock = threading.RLock()  # a collection in there may end a use of the pool
        self._closed = False
        self._loop: object = None  # the event loop whose tasks use or await instances
        self._places = 0  # taken
        self._stores: dict[StoreCore, None] = {}  # in use, oldest first
        self._idle: deque[_Entry] = deque()  # used last at the end
        self._waiting: deque[_Waiter] = deque()
        self._closers: list[AsyncioSignal | TrioSignal] = []
        self._created = self._reused = self._discarded = 0

    def acquire(self) -> AbstractAsyncContextManager[Instance]:
        """
        Lend an instance to an ``async with`` block.

        Tasks wait for their turn in the order in which they came. If there is room and nobody
        is in line, entering the block does not let the event loop run. Whatever is left of the
        instance after the block is not the block's any more: it may be closed, or lent again.

        Returns:
            A context manager, good for one block, that gives the instance.
        Raises:
            WouldBlock: If it had to wait, and *max_waiting* tasks do so already.
            ClosedResourceError: If the pool is closed before it is its turn.
            RuntimeError: If the pool is in use in another event loop.
            Trap: If the start function traps.
            RangeError: If the module needs more memory, or more of anything, than it can have.
            Exception: Whatever a start function, or the callable that makes imports, raises.
        Cancellation: While waiting, the task leaves the line. While the instance is being made,
            its start function is stopped; the place goes to the next in line.
        """
        return _Acquisition(self)

    def replace(self, module: Module) -> None:
        """
        Make instances of another module from now on, with the same imports.

        Instances of the old module that are idle are closed now, those in use when they are
        given back. The imports are read again.

        Args:
            module: What to instantiate from now on.
        Raises:
            TypeError: If *module* is no Module, or imports what there is nothing for.
            LinkError: If an import is missing, or has the wrong type.
            ClosedResourceError: If the pool has been closed.
        """
        plan = Plan(module, self._imports, self._limits)
        with self._lock:
            self._check_open()
            self._plan = plan
            dropped = self._drop_idle()
        _free(dropped)

    def statistics(self) -> PoolStatistics:
        """Return what the pool has done, and what it is doing."""
        with self._lock:
            dropped = self._drop_expired()
            statistics = PoolStatistics(
                max_instances=self._max_instances,
                created=self._created,
                reused=self._reused,
                discarded=self._discarded,
                in_use=self._places,
                idle=len(self._idle),
                waiting=len(self._waiting),
            )
        _free(dropped)
        return statistics

    @property
    def module(self) -> Module:
        """What new instances are made of."""
        return self._plan.module

    @property
    def closed(self) -> bool:
        """Whether the pool lends nothing any more."""
        return self._closed

    def close(self) -> None:
        """
        Close the pool and all its instances now; idempotent, on any thread.

        Calls that are under way end with `Interrupted`, tasks in line with
        ClosedResourceError.
        """
        self._refuse()
        with self._lock:
            stores = list(self._stores)
        for store in reversed(stores):
            store.close()

    async def aclose(self) -> None:
        """
        Close the pool, and wait until the instances in use have been given back; idempotent.

        Tasks in line get ClosedResourceError, at once. A task that uses an instance must not
        wait for itself: it calls `close`.

        Cancellation: Closes the instances in use, too, as `close` does.
        """
        self._refuse()
        try:
            await checkpoint_if_cancelled()
            with self._lock:
                if not self._places:
                    return
                signal = new_signal()
                self._closers.append(signal)
            await signal.wait()
        except BaseException:
            self.close()
            raise

    async def __aenter__(self) -> InstancePool:
        self._check_open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: object
    ) -> None:
        if exc_type is None:
            await self.aclose()
        else:
            self.close()

    def __repr__(self) -> str:
        return (
            f"<asyncwasm.InstancePool of {self.module!r} {self._places} of {self._max_instances} "
            f"in use, {len(self._waiting)} waiting{' closed' * self._closed}>"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError("the pool has been closed")

    # taking and giving back

    def _take_new(self, loop: object) -> _Entry | None:
        """Make an instance if there is a place for one and it takes no time, None otherwise."""
        with self._lock:
            plan = self._plan
            if (
                plan.blueprint is None
                or self._closed
                or self._idle
                or self._places >= self._max_instances
            ):
                return None
            if self._loop is not loop:
                if self._loop is not None:
                    return None
                self._loop = loop
            self._places += 1
            store = self._enroll(plan, plan.pooled)
        entry: _Entry | None = None
        try:
            entry = self._make_at_once(plan, plan.blueprint, store)
        finally:
            if entry is None:
                self._leave(None)
        return entry

    async def _take(self) -> _Entry:
        if not at_ease():
            await checkpoint_if_cancelled()
        loop = running_loop()
        found = self._take_new(loop)
        if found is not None:
            return found
        waiter: _Waiter | None = None
        entry: _Entry | None = None
        with self._lock:
            self._check_open()
            if self._loop is not loop:
                if self._loop is not None:
                    raise RuntimeError(
                        "the pool is in use in another event loop; make one for each"
                    )
                self._loop = loop
            dropped = self._drop_expired() if self._idle else None
            if self._places < self._max_instances:
                self._places += 1
                if self._idle:
                    entry = self._idle.pop()
            elif self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
                raise anyio.WouldBlock(
                    f"all {self._max_instances} instances are in use, and "
                    f"{len(self._waiting)} tasks wait for one"
                )
            else:
                waiter = _Waiter()
                self._waiting.append(waiter)
        if dropped:
            _free(dropped)
        if waiter is not None:
            entry = await self._wait(waiter)
        try:
            return (
                (entry is not None and self._lend(entry))
                or self._make_new(self._plan)
                or await self._make(self._plan)
            )
        except BaseException:
            self._leave(None)
            raise

    async def _wait(self, waiter: _Waiter) -> _Entry | None:
        """Wait for a place, and return the instance that comes with it, if one does."""
        try:
            await waiter.signal.wait()
        except BaseException:
            with self._lock:
                in_line = not (waiter.served or waiter.refused)
                if in_line:
                    self._waiting.remove(waiter)
            if waiter.served:
                self._leave(waiter.entry)
            raise
        if waiter.refused:
            raise anyio.ClosedResourceError("the pool has been closed")
        return waiter.entry

    def _lend(self, entry: _Entry) -> _Entry | None:
        """Return *entry* if it can be used."""
        store = entry.instance._store
        with self._lock:
            usable = not self._closed and entry.plan is self._plan and store.reusable
            if usable:
                self._reused += 1
                self._stores[store] = None
            else:
                self._discarded += 1
        if usable:
            return entry
        entry.instance.close()
        return None

    def _make_new(self, plan: Plan) -> _Entry | None:
        """Make an instance for a place that has been taken; None if that may take longer."""
        if plan.blueprint is None:
            return None
        return self._make_at_once(plan, plan.blueprint, self._open(plan, plan.pooled))

    def _make_at_once(self, plan: Plan, blueprint: Blueprint, store: StoreCore) -> _Entry | None:
        """Make an instance in *store*, which is forgotten if there comes none of it."""
        instance: Instance | None = None
        try:
            instance = Instance._built(plan.module, store, blueprint, plan.hosts)
        except RangeError:
            pass  # it is found out the long way what it is about
        except anyio.ClosedResourceError:
            self._check_open()
            raise
        finally:
            if instance is None:
                self._forget(store)
        return None if instance is None else self._entry(instance, plan)

    def _entry(self, instance: Instance, plan: Plan) -> _Entry:
        """Return what has been made, by whoever has a place: all of those are in one loop."""
        self._created += 1
        return _Entry(instance, plan)

    async def _make(self, plan: Plan) -> _Entry:
        store = self._open(plan, plan.pooled)
        preparation: Preparation | None = None
        try:
            try:
                preparation = plan.prepare(store)
                if preparation.immediate and preparation.ready:  # `_take` has let cancelling in
                    instance = Instance._from_preparation(preparation, preparation.now())
                else:
                    instance = await instantiate_prepared(preparation)
            except RangeError as exc:
                if not self._fits_not(plan, preparation, store, exc):
                    raise
                self._forget(store)
                store = self._open(plan, False)
                instance = await instantiate_prepared(plan.prepare(store))
        except BaseException as exc:
            self._forget(store)
            if self._closed and isinstance(exc, Interrupted) and exc.reason == "closed":
                raise anyio.ClosedResourceError("the pool has been closed") from exc
            if isinstance(exc, LinkError) and exc.expected == SAME_STORE:
                exc.add_note(
                    "Each instance of a pool has a store of its own: let the callable that "
                    "makes the imports make such objects, too."
                )
            raise
        return self._entry(instance, plan)

    def _open(self, plan: Plan, pooled: bool) -> StoreCore:
        """Return a store for one more instance."""
        with self._lock:
            self._check_open()
            return self._enroll(plan, pooled)

    def _enroll(self, plan: Plan, pooled: bool) -> StoreCore:
        """Return a store for one more instance. The caller holds the lock."""
        store = StoreCore(plan.engine, self._limits, pooled=pooled)
        self._stores[store] = None
        return store

    def _forget(self, store: StoreCore) -> None:
        """Close a store that no instance was made in."""
        with self._lock:
            self._stores.pop(store, None)
        store.close()

    def _fits_not(
        self, plan: Plan, preparation: Preparation | None, store: StoreCore, exc: RangeError
    ) -> bool:
        """Return whether *exc* is about the engine's pool, and there is a way without it."""
        if not (store.bound and store.variant.pooled and store.pooled):
            return False
        if plan.module.engine.config.pools_everything:
            return False
        unfit = plan.module._artifact.unpoolable
        if not unfit and not (preparation is not None and preparation.found_pool_empty):
            return False
        if unfit:
            plan.pooled = False
        _log.event("pool_not_used", _log.INFO, digest=plan.module.digest, error=str(exc))
        return True

    def _give_back(self, entry: _Entry, sound: bool) -> None:
        entry.uses += 1
        store = entry.instance._store
        kept = False
        try:
            sound = sound and entry.uses < self._max_uses and store.reusable
            if sound and self._limits is not None and self._limits.fuel is not None:
                store.fuel = self._limits.fuel
            kept = sound
        finally:
            if not kept:
                store.close()  # first: the next in line gets the place, and its memory
            self._leave(entry if kept else None, store)

    def _leave(self, entry: _Entry | None, used: StoreCore | None = None) -> None:
        """Give a place, and *entry* if there is one, to the next in line; *used* has been lent."""
        with self._lock:
            dropped = self._drop_expired() if self._idle else _NONE
            if used is not None:
                del self._stores[used]
            if entry is not None and (self._closed or entry.plan is not self._plan):
                dropped = [*dropped, entry]
                entry = None
                self._discarded += 1
            elif entry is None and used is not None:
                self._discarded += 1
            while self._waiting:
                waiter = self._waiting.popleft()
                waiter.served = True
                waiter.entry = entry
                if waiter.signal.wake():  # pragma: no branch  # tested in another process
                    break
            else:
                if entry is not None:
                    entry.idle_since = self._now()
                    self._idle.append(entry)
                self._places -= 1
                if not self._places:
                    self._loop = None
                    while self._closers:
                        self._closers.pop().wake()
        if dropped:
            _free(dropped)

    # what is idle; the caller holds the lock, and frees what it gets

    def _now(self) -> float:
        return 0.0 if self._idle_seconds is None else monotonic()

    def _drop_expired(self) -> list[_Entry]:
        idle = self._idle
        if not idle or self._idle_seconds is None:
            return []
        before = monotonic() - self._idle_seconds
        dropped: list[_Entry] = []
        while idle and idle[0].idle_since <= before:
            dropped.append(idle.popleft())
        self._discarded += len(dropped)
        return dropped

    def _drop_idle(self) -> list[_Entry]:
        dropped = list(self._idle)
        self._idle.clear()
        self._discarded += len(dropped)
        return dropped

    def _refuse(self) -> None:
        """Lend nothing any more."""
        with self._lock:
            self._closed = True
            dropped = self._drop_idle()
            while self._waiting:
                waiter = self._waiting.popleft()
                waiter.refused = True
                waiter.signal.wake()
        _free(dropped)


def _free(entries: list[_Entry]) -> None:
    for entry in reversed(entries):
        entry.instance.close()


def _number(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected an int for {name}, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"expected {name} of at least {least}, got {value}")
    return value


def _seconds(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"expected a number for idle_seconds, got {type(value).__name__}")
    if not value >= 0:
        raise ValueError(f"expected idle_seconds of at least 0, got {value}")
    return value

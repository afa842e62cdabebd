"""The store as its users see it; what it stands for lives below."""

from __future__ import annotations

import math
from contextvars import Token
from typing import Any

from .._runtime.config import Limits
from .._runtime.store import StoreCore, ambient
from .engine import Engine
from .face import Face


class Store(Face):
    """
    Hold what a group of instances shares, and free it when closed.

    Every `instantiate` makes a store of its own unless it is told otherwise or its imports
    already live in one. Use a store when objects are to be shared; inside of
    ``with asyncwasm.Store() as store:`` whatever is made goes there.

    Args:
        engine: Engine that its modules are compiled for; theirs if omitted.
        limits: What its guests may take; unlimited if omitted.
        interleave: Whether suspended calls may interleave, as they do in JS. Only for guests
            that keep no stack of their own in linear memory: what C and Rust compile to does.
            Guests that can hold references to objects take turns all the same.
        sync_deadline_seconds: How long a synchronous call of an export, or a start function
            under `Instance()`, may run before it is stopped with `Interrupted`; for ever if
            omitted. What its imports take counts, though only the guest is stopped. Awaited
            calls have none: they end with their cancel scope (`anyio.fail_after`).
    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If *sync_deadline_seconds* is not positive and finite.
    """

    __slots__ = ("__dict__", "_tokens")

    _core: StoreCore
    _tokens: list[Token[StoreCore | None]]  # one for each `with` around

    def __init__(
        self,
        *,
        engine: Engine | None = None,
        limits: Limits | None = None,
        interleave: bool = False,
        sync_deadline_seconds: float | None = None,
    ) -> None:
        if engine is not None and not isinstance(engine, Engine):
            raise TypeError(f"expected an Engine, got {type(engine).__name__}")
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f"expected Limits, got {type(limits).__name__}")
        if sync_deadline_seconds is not None:
            _check_seconds(sync_deadline_seconds)
        self._stand_for(
            StoreCore(
                None if engine is None else engine._core,
                limits,
                interleave=bool(interleave),
                sync_deadline_seconds=sync_deadline_seconds,
            )
        )

    def _stand_for(self, core: StoreCore) -> None:
        super()._stand_for(core)
        self._tokens = []

    def close(self) -> None:
        """
        Free the store and everything in it; idempotent, and safe at any moment.

        A call that runs on another thread, or waits for its turn, ends with `Interrupted`, and
        so does one that is suspended, when the import that it waits for has ended. Views of a
        memory stay readable as long as they live.
        """
        self._core.close()

    def __enter__(self) -> Store:
        self._core.check_open()
        self._tokens.append(ambient.set(self._core))
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._tokens:
            try:
                ambient.reset(self._tokens.pop())
            except ValueError:
                pass  # entered in another context, as fixtures are: nothing to restore here
        self.close()

    async def __aenter__(self) -> Store:
        return self.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        self.__exit__()

    def __reduce__(self) -> Any:
        raise TypeError("a Store cannot be pickled or copied")

    def __repr__(self) -> str:
        return f"<asyncwasm.Store at 0x{id(self):x}{' closed' * self.closed}>"

    @property
    def closed(self) -> bool:
        """Whether the store has been closed."""
        return self._core.closed

    @property
    def engine(self) -> Engine:
        """The engine that the store's modules are compiled for."""
        return Engine._of(self._core.engine)

    @property
    def limits(self) -> Limits:
        """What guests may take."""
        return self._core.limits

    @property
    def interleave(self) -> bool:
        """Whether suspended calls may interleave."""
        return self._core.interleave

    @property
    def sync_deadline_seconds(self) -> float | None:
        """How long a synchronous call may run, None for ever."""
        return self._core.sync_deadline_seconds

    @property
    def fuel(self) -> int | None:
        """Fuel that is left, None if the store has no fuel limit; set it to give more."""
        return self._core.fuel

    @fuel.setter
    def fuel(self, amount: int) -> None:
        if self.limits.fuel is None:
            raise ValueError("the store counts no fuel; make it with Limits(fuel=...)")
        if not isinstance(amount, int) or isinstance(amount, bool):
            raise TypeError(f"expected an int of fuel, got {type(amount).__name__}")
        if not 0 <= amount < 1 << 63:
            raise ValueError(f"expected fuel from 0 to 2**63 - 1, got {amount}")
        self._core.fuel = amount


def _check_seconds(seconds: float) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(
            f"expected a number for sync_deadline_seconds, got {type(seconds).__name__}"
        )
    if not 0 < seconds < math.inf:
        raise ValueError(
            f"expected positive and finite sync_deadline_seconds, got {seconds}; "
            "leave it out for no deadline"
        )


def ambient_or(store: Store | None) -> StoreCore | None:
    """Return what *store* stands for, or the store whose ``with`` block this is in."""
    if store is None:
        return ambient.get()
    if not isinstance(store, Store):
        raise TypeError(f"expected a Store, got {type(store).__name__}")
    return store._core

"""The engine as its users see it; what it stands for lives below."""

from __future__ import annotations

from typing import Any

from .._runtime.config import EngineConfig
from .._runtime.engine import EngineCore, default_engine
from .face import Face


class Engine(Face):
    """
    Compile and run modules with one configuration.

    There is a default engine for the process; make another to compile differently or to
    keep tenants apart. An engine may be used from any thread and any event loop.

    Args:
        config: How to compile; the default configuration if omitted.
    Raises:
        TypeError: If *config* is no EngineConfig.
    """

    __slots__ = ("__dict__",)

    _core: EngineCore

    def __init__(self, config: EngineConfig | None = None) -> None:
        if config is not None and not isinstance(config, EngineConfig):
            raise TypeError(f"expected an EngineConfig, got {type(config).__name__}")
        self._stand_for(EngineCore(config or EngineConfig()))

    @property
    def config(self) -> EngineConfig:
        """The configuration."""
        return self._core.config

    @property
    def closed(self) -> bool:
        """Whether the engine has been closed."""
        return self._core.closed

    def close(self) -> None:
        """
        End the engine's threads; nothing new can be compiled or instantiated with it.

        Stores that exist go on to work, except that long awaited calls hold the event loop.
        """
        self._core.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("an Engine cannot be pickled or copied; pickle its config")

    def __repr__(self) -> str:
        return f"<asyncwasm.Engine tier={self.config.tier!r}{' closed' * self.closed}>"


def core_or_default(engine: Engine | None) -> EngineCore:
    """Return what *engine*, or the default engine, stands for."""
    if engine is None:
        return default_engine()
    if not isinstance(engine, Engine):
        raise TypeError(f"expected an Engine, got {type(engine).__name__}")
    return engine._core

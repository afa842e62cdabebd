"""How an instance pool makes an instance, until its module is replaced."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .._runtime.blueprint import Blueprint
from .._runtime.config import UNLIMITED, Limits
from .._runtime.host import HostFunction
from .._runtime.store import StoreCore, ambient
from .._types import MemoryType
from .instance import Preparation, Template
from .module import Module


class Plan:
    """
    A module and its imports, read once, or what makes them for each instance.

    Where a new instance takes no time there is a `blueprint`.
    """

    __slots__ = ("_factory", "_template", "blueprint", "engine", "hosts", "module", "pooled")

    def __init__(self, module: Module, imports: Any, limits: Limits | None) -> None:
        if not isinstance(module, Module):
            raise TypeError(f"expected a Module, got {type(module).__name__}")
        self.module = module
        self.engine = module._artifact.engine
        self.pooled = _may_pool(module)
        self._factory: Callable[[], Any] | None = None
        self._template: Template | None = None
        if _is_factory(imports):
            self._factory = imports
        else:
            self._template = Template(module, imports)
        # Where a new instance takes no time; None: it may.
        self.blueprint: Blueprint | None = None
        hosts = None if self._template is None else self._template.hosts
        self.hosts: list[HostFunction] = hosts or []
        if hosts is not None and module._artifact.stands_alone:
            self.blueprint = Blueprint(module._artifact, limits or UNLIMITED)

    def prepare(self, store: StoreCore) -> Preparation:
        """Return the instantiation of one more instance, in *store*."""
        if self._template is not None:
            preparation = Preparation(self.module, None, store, None, self._template)
        else:
            preparation = Preparation(self.module, self._imports(store), store, None)
        preparation.owned = True
        return preparation

    def _imports(self, store: StoreCore) -> Any:
        assert self._factory is not None
        store.bind(self.engine, self.module._artifact)
        token = ambient.set(store)  # so that the objects it makes live there
        try:
            return self._factory()
        finally:
            ambient.reset(token)


def _may_pool(module: Module) -> bool:
    artifact = module._artifact
    # A shared memory belongs to the native engine of its first store, which has no pool.
    return not artifact.unpoolable and not any(
        isinstance(each.type, MemoryType) and each.type.shared for each in artifact.info.imports
    )


def _is_factory(imports: Any) -> bool:
    if not callable(imports) or isinstance(imports, Mapping):
        return False
    if inspect.iscoroutinefunction(imports):
        raise TypeError("expected imports or a callable that returns them, got an async function")
    return True

"""Instances and what they export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import anyio

from .._binary import Export
from .._ffi import externs
from .._ffi.codec import KIND_ANY
from .._ffi.linking import export, exported_function
from .._runtime.artifact import Variant
from .._runtime.blueprint import Blueprint
from .._runtime.config import UNLIMITED, Limits
from .._runtime.host import HostFunction
from .._runtime.instantiation import Instantiation, instantiate_now
from .._runtime.running import run
from .._runtime.store import StoreCore
from .._types import FunctionType, GlobalType, MemoryType, TableType, TagType
from . import guard
from .function import ExportedFunction, Shape, concrete_kinds
from .global_ import Global
from .imports import choose_store, definitions, for_many_stores, read_imports, with_hosts
from .memory import Memory
from .module import Module
from .store import Store, ambient_or
from .storeobject import StoreObject
from .table import Table
from .tag import PYTHON_TAG, Tag


class Exports(Mapping[str, Any]):
    """
    What an instance exports: a read-only mapping in declaration order.

    Names that are identifiers, and no methods of mappings, are attributes too.
    """

    # What has been asked for is an attribute, so that it is found at once the next time.
    __slots__ = ("__dict__", "__weakref__", "_home")

    # What everything is made from, and what cannot be an attribute because methods have its name;
    # not the instance: that would be a cycle.
    _home: tuple[StoreCore, bytes, Module, dict[str, Any]]

    def __init__(self, store: StoreCore, raw: bytes, module: Module) -> None:
        _set_home(self, (store, raw, module, {}))

    @property
    def _declared(self) -> dict[str, Export]:
        return self._home[2]._artifact.exports

    def __getitem__(self, name: str) -> Any:
        made = self._home[3] if name in _METHODS else self.__dict__
        value = made.get(name)
        if value is None:
            value = made[name] = self._find(self._declared[name])
        return value

    def __getattr__(self, name: str) -> Any:
        # Called for what is no attribute yet, so it is not the name of a method.
        declared = self._declared.get(name)
        if declared is None:
            raise AttributeError(f"the instance has no export {name!r}", name=name, obj=self)
        value = self.__dict__[name] = self._find(declared)
        return value

    def _find(self, declared: Export) -> Any:
        store, raw, module, _ = self._home
        return _export(store, raw, module, declared)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"exports are read-only: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"exports are read-only: cannot delete {name!r}")

    def __setitem__(self, name: str, value: Any) -> None:
        raise TypeError(f"exports are read-only: cannot set {name!r}")

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"exports are read-only: cannot delete {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._declared)

    def __len__(self) -> int:
        return len(self._declared)

    def __contains__(self, name: object) -> bool:
        return name in self._declared

    def __reduce__(self) -> Any:
        raise TypeError(
            "an instance's exports cannot be pickled or copied; pickle its module and "
            "instantiate it"
        )

    def __dir__(self) -> list[str]:
        return [*{*super().__dir__(), *(name for name in self._declared if name.isidentifier())}]

    def __repr__(self) -> str:
        shown = ", ".join(f"{each.name}: {each.kind}" for each in self._declared.values())
        return f"<asyncwasm exports {{{shown}}}>"


_METHODS = frozenset(dir(Exports))
_set_home = Exports._home.__set__  # type: ignore[attr-defined]  # past `__setattr__`


class Template:
    """
    A module and its imports, read once, for many instances that live in stores of their own.

    Raises:
        TypeError: If *imports* has the wrong shape.
        LinkError: If an import is missing, has the wrong type, or belongs to one store.
    """

    __slots__ = ("hosts", "values")

    def __init__(self, module: Module, imports: Any) -> None:
        artifact = module._artifact
        read = read_imports(artifact, module._provided, imports)
        self.values = for_many_stores(artifact, read)
        # What there is to define, if that is nothing but plain host functions.
        self.hosts = plain_hosts(self.values)


_NONE: list[Any] = []  # stays empty


def _blueprint(module: Module, limits: Limits) -> Blueprint:
    """Return the blueprint of instances that import plain host functions, if anything."""
    known = module._blueprint
    if known is None or (known.limits is not limits and known.limits != limits):
        known = module._blueprint = Blueprint(module._artifact, limits)
    return known


def plain_hosts(definitions: Sequence[Any]) -> list[HostFunction] | None:
    """Return the definitions if all of them are host functions that a thread's own stack can run."""
    hosts = [each for each in definitions if isinstance(each, HostFunction) and each.plain]
    return hosts if len(hosts) == len(definitions) else None


class Preparation:
    """An instantiation whose imports have been read, and whose store is chosen."""

    __slots__ = (
        "_blueprint",
        "_definitions",
        "_hosts",
        "_operation",
        "module",
        "owned",
        "shared",
        "store",
    )

    def __init__(
        self,
        module: Module,
        imports: Any,
        store: Store | StoreCore | None,
        limits: Limits | None,
        template: Template | None = None,
    ) -> None:
        artifact = module._artifact
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f"expected Limits, got {type(limits).__name__}")
        # Whoever makes one for it knows its core.
        explicit = store if isinstance(store, StoreCore) else ambient_or(store)
        values: Sequence[Any] = _NONE
        # Those that it imports, if nothing else.
        self._hosts: list[HostFunction] | None = _NONE
        if template is not None:
            values, self._hosts = template.values, template.hosts
        elif imports is not None or artifact.info.imports:
            values = with_hosts(artifact, read_imports(artifact, module._provided, imports))
            self._hosts = plain_hosts(values)

        self.module = module
        self._operation: Instantiation | None = None
        self._blueprint: Blueprint | None = None
        if self._hosts is not None and explicit is None and artifact.stands_alone:
            self._blueprint = _blueprint(module, limits or UNLIMITED)
            self.store, self.owned = StoreCore(artifact.engine, limits), True
            self.shared = False
            self._definitions: Sequence[externs.Extern | HostFunction] = self._hosts
            return
        self.store, self.owned = choose_store(artifact, values, explicit, limits)
        self.shared = any(isinstance(value, StoreObject) for value in values)
        self._definitions = definitions(artifact, values, self.store)

    @property
    def operation(self) -> Instantiation:
        """The instantiation, where `now` does not do."""
        if self._operation is None:
            self._operation = Instantiation(self.store, self.module._artifact, self._definitions)
        return self._operation

    @property
    def immediate(self) -> bool:
        """Whether nobody else knows the store, and nothing can run long or wait."""
        return self.owned and not self.shared and self.module._artifact.info.start is None

    def now(self) -> bytes:
        """Instantiate what is `immediate`."""
        hosts = self._hosts
        if self._blueprint is not None and hosts is not None:
            built = self._blueprint.build(self.store, hosts)
            if built is not None:
                return built
            self.store.bind(self.module._artifact.engine, self.module._artifact)
        if hosts is None or not self.store.direct:
            return self.operation.at_once()
        made = instantiate_now(self.store, self.module._artifact, hosts)
        if isinstance(made, bytes):
            return made
        raise self.operation.failed(*made)

    @property
    def found_pool_empty(self) -> bool:
        """Whether it has failed because nothing was left in the engine's pool."""
        return self._operation is not None and self._operation.found_pool_empty

    @property
    def ready(self) -> bool:
        """Whether the code that the store needs has been compiled."""
        return self.module._artifact.has(self.variant)

    @property
    def variant(self) -> Variant:
        """What code the store runs, or will."""
        store = self.store
        if store.bound:
            return store.variant
        return self.module._artifact.variant(store.limits.fuel is not None)

    def compile(self) -> None:
        """Compile the code that the store needs, on this thread."""
        self.module._artifact.native(self.variant)

    def failed(self) -> None:
        """Clean up after an instantiation that has failed; what the host made lives on."""
        if self.owned and not self.shared:
            self.store.close()


class Instance:
    """
    An instance of a module.

    This constructor instantiates on the calling thread; it is for scripts, and for when
    synchronous work is absolutely required. Otherwise use
    ``await asyncwasm.instantiate(module, imports)``.

    Args:
        module: The module.
        imports: A mapping (or object) of mappings (or objects) with what it imports.
        store: Store to instantiate in; that of the imports, or a new one, if omitted.
        limits: What the guest may take, for a new store.
    Raises:
        TypeError: If *module* is no Module, or *imports* has the wrong shape.
        LinkError: If an import is missing, has the wrong type, or lives in another store.
        RangeError: If the module needs more memory, or more of anything, than it can have.
        SuspendError: If the start function reaches a suspending import.
        Trap: If the start function traps, or a segment does not fit.
        LargeModuleError: If the module is above the guard's limit, and that is set to "error".
    Spec: https://webassembly.github.io/spec/js-api/#dom-instance-instance
    """

    __slots__ = ("__dict__", "__weakref__", "_module", "_owned", "_raw", "_store")

    _module: Module
    _owned: bool
    _raw: bytes
    _store: StoreCore

    def __init__(
        self,
        module: Module,
        imports: Any = None,
        /,
        *,
        store: Store | None = None,
        limits: Limits | None = None,
    ) -> None:
        if not isinstance(module, Module):
            raise TypeError(f"expected a Module, got {type(module).__name__}")
        guard.check_module(module.byte_length, "Instance()", "`await asyncwasm.instantiate(...)`")
        preparation = Preparation(module, imports, store, limits)
        try:
            raw = preparation.now() if preparation.immediate else run(preparation.operation)
        except BaseException:
            preparation.failed()
            raise
        self._setup(preparation.module, preparation.store, preparation.owned, raw)

    @classmethod
    def _from_preparation(cls, preparation: Preparation, raw: bytes) -> Instance:
        self = cls.__new__(cls)
        self._setup(preparation.module, preparation.store, preparation.owned, raw)
        return self

    @classmethod
    def _built(
        cls, module: Module, store: StoreCore, blueprint: Blueprint, hosts: list[HostFunction]
    ) -> Instance | None:
        """
        Instantiate *module*, which imports *hosts*, in *store*, which is new, as *blueprint* says;
        None: it takes longer.
        """
        made = blueprint.build(store, hosts)
        if made is None:
            return None
        self = cls.__new__(cls)
        self._setup(module, store, True, made)
        return self

    def _setup(self, module: Module, store: StoreCore, owned: bool, raw: bytes) -> None:
        self._module = module
        self._store = store
        self._owned = owned
        self._raw = raw

    @property
    def exports(self) -> Exports:
        """
        What the instance exports; the same object each time.

        Spec: https://webassembly.github.io/spec/js-api/#dom-instance-exports
        """
        found: Exports | None = self.__dict__.get("_exports")
        if found is None:
            # In one step: several threads may ask at once, and all of them get the same.
            made = Exports(self._store, self._raw, self._module)
            found = self.__dict__.setdefault("_exports", made)
        return found

    @property
    def module(self) -> Module:
        """The module."""
        return self._module

    @property
    def store(self) -> Store:
        """The store that the instance lives in."""
        found: Store | None = self.__dict__.get("_face")
        if found is None:  # kept, so that it is the same one as long as the instance lives
            found = self.__dict__.setdefault("_face", Store._of(self._store))
        return found

    def close(self) -> None:
        """
        Free the instance's store if it is the instance's own; idempotent.

        What is used afterwards raises ClosedResourceError. An instance in a store that others
        share is freed with that store.
        """
        if self._owned:
            self._store.close()

    def __enter__(self) -> Instance:
        if self._store.closed:
            raise anyio.ClosedResourceError("the store has been closed")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Instance:
        return self.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "an Instance cannot be pickled or copied; pickle its module and instantiate it"
        )

    def __repr__(self) -> str:
        return f"<asyncwasm.Instance of {self._module!r}{' closed' * self._store.closed}>"


# Not a method: exports that refer to their instance would be a cycle.
def _export(store: StoreCore, raw: bytes, module: Module, declared: Export) -> Any:
    if declared.kind == "function":
        return _function(store, raw, module, declared)
    with store.entered():
        extern = export(store.opened(), raw, declared.name)
    return _MAKERS[declared.kind](store, extern, declared, module)


def _function(
    store: StoreCore, instance: bytes, module: Module, declared: Export
) -> ExportedFunction:
    shape = _shape(module, declared)
    made = ExportedFunction._of_export(store, instance, shape)
    if made is not None:
        return made
    found = exported_function(store.handle, instance, declared.name)
    if found is None:
        with store.entered():
            raw = export(store.opened(), instance, declared.name).raw
        found = raw, externs.function_identity(raw)
    raw, identity = found
    known: ExportedFunction | None = store.known.get(identity)
    if known is None:
        known = ExportedFunction._from_shape(store, raw, shape)
        store.remember(identity, known)
    elif not known._name:  # met in a table before
        known._name = shape.name
    return known


def _shape(module: Module, declared: Export) -> Shape:
    """Return what the function has in common with those of the module's other instances."""
    shapes = module._artifact.shapes
    shape: Shape | None = shapes.get(declared.name)
    if shape is None:
        type = declared.type
        assert isinstance(type, FunctionType)
        concrete = concrete_kinds(type.parameters, module._artifact.kinds)
        shape = Shape(type, concrete, str(declared.index), declared.name)
        shapes[declared.name] = shape
    return shape


def _memory(store: StoreCore, extern: externs.Extern, declared: Export, module: Module) -> Any:
    assert isinstance(declared.type, MemoryType)
    if extern.kind == externs.SHARED_MEMORY:
        return Memory._from_extern(store, extern, declared.type)
    known: Memory | None = store.known.get(extern.key)
    if known is not None:
        return known
    return Memory._from_extern(store, extern, declared.type)


def _concrete(type: Any, module: Module) -> int:
    kinds = concrete_kinds([type], module._artifact.kinds)
    return kinds[0] if kinds else KIND_ANY


def _table(store: StoreCore, extern: externs.Extern, declared: Export, module: Module) -> Any:
    type = declared.type
    assert isinstance(type, TableType)
    known: Table | None = store.known.get(extern.key)
    if known is not None:
        return known
    return Table._from_extern(store, extern, type, _concrete(type.element, module))


def _global(store: StoreCore, extern: externs.Extern, declared: Export, module: Module) -> Any:
    type = declared.type
    assert isinstance(type, GlobalType)
    known: Global | None = store.known.get(extern.key)
    if known is not None:
        return known
    return Global._from_extern(store, extern, type, _concrete(type.value, module))


def _tag(store: StoreCore, extern: externs.Extern, declared: Export, module: Module) -> Any:
    assert isinstance(declared.type, TagType)
    known: Tag | None = store.known.get(extern.key)
    if known is not None:
        return known
    if store.python_tag is not None and extern.key == store.python_tag.key:
        return PYTHON_TAG
    return Tag._from_extern(store, extern, declared.type)


_MAKERS: dict[str, Callable[[StoreCore, externs.Extern, Export, Module], Any]] = {
    "memory": _memory,
    "table": _table,
    "global": _global,
    "tag": _tag,
}

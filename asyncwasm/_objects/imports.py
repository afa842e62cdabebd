"""
Reading imports, in the order and with the errors of the JS API.

Rule 1: everything is read before anything is bound or instantiated; what an attribute or a
mapping raises propagates unchanged.
Rule 2: what builtins and string constants satisfy comes first; nobody else is asked for it.
Spec: https://webassembly.github.io/spec/js-api/#read-the-imports
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._binary import Import
from .._errors import LinkError, RangeError
from .._ffi.externs import Extern
from .._runtime.artifact import Artifact
from .._runtime.config import Limits
from .._runtime.host import HostFunction, HostShape
from .._runtime.store import StoreCore
from .._types import (
    FunctionType,
    GlobalType,
    MemoryType,
    TableType,
    TagType,
)
from .builtins import Builtin, Scope
from .function import ExportedFunction, Suspending, concrete_kinds, host_function
from .global_ import Global
from .memory import Memory
from .storeobject import StoreObject, binding, other_store
from .table import Table
from .tag import PYTHON_TAG, Tag
from .value import check_value

_MISSING: Any = object()
_CLASSES: dict[str, type[StoreObject]] = {
    "function": ExportedFunction,
    "memory": Memory,
    "table": Table,
    "global": Global,
    "tag": Tag,
}
_NO_OBJECT = (type(None), bool, int, float, complex, str, bytes, bytearray, memoryview)


def read_imports(
    artifact: Artifact, provided: Mapping[int, Builtin | str], imports: Any
) -> list[Any]:
    """
    Return one value for each import of *artifact*, checked as far as a value tells.

    For what is in *provided*, by the import's position, *imports* is not asked.
    """
    declared = artifact.info.imports
    if imports is not None and isinstance(imports, _NO_OBJECT):
        raise TypeError(f"expected a mapping of imports, got {type(imports).__name__}")
    if imports is None and len(provided) < len(declared):
        missing = [each for index, each in enumerate(declared) if index not in provided]
        raise TypeError(
            f"the module imports {missing[0].module!r} {missing[0].name!r} and "
            f"{len(missing) - 1} more; give a mapping of imports"
        )
    return [
        provided[index] if index in provided else _read(imports, each)
        for index, each in enumerate(declared)
    ]


def _read(imports: Any, declared: Import) -> Any:
    module = _get(imports, declared.module)
    if module is _MISSING or isinstance(module, _NO_OBJECT):
        what = "nothing" if module is _MISSING else type(module).__name__
        raise TypeError(
            f"expected a mapping or an object for import module {declared.module!r}, got {what}"
        )
    value = _get(module, declared.name)
    return _CHECKS[declared.kind](declared, value)


def _get(container: Any, name: str) -> Any:
    if container.__class__ is dict:
        return container.get(name, _MISSING)
    if isinstance(container, Mapping):
        try:
            return container[name]
        except KeyError:
            if name in container:  # it is the mapping's value that failed
                raise
            return _MISSING
    return getattr(container, name, _MISSING)


def link_error(declared: Import, expected: object, actual: object, hint: str = "") -> LinkError:
    """Return the error for an import that does not fit."""
    shown = "nothing" if actual is _MISSING else actual
    return LinkError(
        f"import {declared.module!r} {declared.name!r}: expected {expected}, got {shown}{hint}",
        module=declared.module,
        name=declared.name,
        expected=expected,
        actual=None if actual is _MISSING else actual,
    )


def _named(value: Any) -> Any:
    return value if value is _MISSING else f"{type(value).__name__} {value!r}"


def _function(declared: Import, value: Any) -> Any:
    type = declared.type
    assert isinstance(type, FunctionType)
    if isinstance(value, ExportedFunction):
        if value.type != type and not _may_match(type, value.type):
            raise link_error(declared, f"a function of type {type}", f"one of type {value.type}")
        return value
    if not callable(value) and not isinstance(value, Suspending):
        raise link_error(declared, "a callable", _named(value))
    return value


def _may_match(wanted: FunctionType, given: FunctionType) -> bool:
    """Return whether only the engine can tell: where references differ, one may be a subtype."""
    return all(
        len(ours) == len(theirs)
        and all(
            a == b or (a.is_reference and b.is_reference) for a, b in zip(ours, theirs, strict=True)
        )
        for ours, theirs in (
            (wanted.parameters, given.parameters),
            (wanted.results, given.results),
        )
    )


def _concrete(types: Sequence[Any]) -> bool:
    return any(type.heap.isdecimal() for type in types)


def _global(declared: Import, value: Any) -> Any:
    type = declared.type
    assert isinstance(type, GlobalType)
    expected = f"a {'mutable ' * type.mutable}global of type {type.value}"
    if isinstance(value, Global):
        if not _concrete([type.value]) and value.type != type:
            # a constant may be of a subtype: the engine knows
            if type.mutable or value.type.mutable or not type.value.is_reference:
                other = f"a {'mutable ' * value.type.mutable}global of type {value.type.value}"
                raise link_error(declared, expected, other)
        return value
    if type.mutable:
        raise link_error(declared, expected, _named(value), "; use asyncwasm.Global(...)")
    if value is _MISSING:
        raise link_error(declared, expected, value)
    try:
        return check_value(type.value, value)
    except (TypeError, OverflowError) as exc:
        raise link_error(declared, expected, _named(value), f": {exc}") from None


def _memory(declared: Import, value: Any) -> Any:
    if not isinstance(value, Memory):
        raise link_error(declared, "a Memory", _named(value))
    wanted, given = declared.type, value.type
    assert isinstance(wanted, MemoryType)
    _check_size(declared, wanted, given, "memory", "pages")
    if wanted.shared != given.shared or wanted.address != given.address:
        raise link_error(declared, wanted, given)
    return value


def _table(declared: Import, value: Any) -> Any:
    if not isinstance(value, Table):
        raise link_error(declared, "a Table", _named(value))
    wanted, given = declared.type, value.type
    assert isinstance(wanted, TableType)
    if not _concrete([wanted.element, given.element]) and wanted.element != given.element:
        raise link_error(declared, wanted, given)
    if wanted.address != given.address:
        raise link_error(declared, wanted, given)
    _check_size(declared, wanted, given, "table", "entries")
    return value


def _check_size(declared: Import, wanted: Any, given: Any, what: str, unit: str) -> None:
    if given.minimum < wanted.minimum:
        raise link_error(
            declared,
            f"a {what} of at least {wanted.minimum} {unit}",
            f"one of {given.minimum}",
        )
    if wanted.maximum is not None and (given.maximum is None or given.maximum > wanted.maximum):
        raise link_error(
            declared,
            f"a {what} of at most {wanted.maximum} {unit}",
            "one without a maximum" if given.maximum is None else f"one of {given.maximum}",
        )


def _tag(declared: Import, value: Any) -> Any:
    if not isinstance(value, Tag):
        raise link_error(declared, "a Tag", _named(value))
    type = declared.type
    assert isinstance(type, TagType)
    if not _concrete(type.parameters) and value.type != type:
        raise link_error(
            declared,
            f"a tag of ({', '.join(type.parameters)})",
            f"one of ({', '.join(value.type.parameters)})",
        )
    return value


_CHECKS = {
    "function": _function,
    "global": _global,
    "memory": _memory,
    "table": _table,
    "tag": _tag,
}


def _is_bound(value: Any) -> bool:
    return isinstance(value, StoreObject) and value is not PYTHON_TAG and value._store is not None


def choose_store(
    artifact: Artifact, values: Sequence[Any], explicit: StoreCore | None, limits: Limits | None
) -> tuple[StoreCore, bool]:
    """
    Return the store for an instance with these imports, and whether it is the instance's own.

    Objects that are not bound yet are bound to it: all at once, or none if one cannot be.
    """
    if not values and (explicit is None or limits is None):
        chosen = StoreCore(artifact.engine, limits) if explicit is None else explicit
        _check_shared(artifact, chosen)
        chosen.bind(artifact.engine, artifact)
        return chosen, explicit is None
    objects = [value for value in values if isinstance(value, StoreObject)]
    with binding:
        store = explicit
        for index, value in enumerate(values):
            if not _is_bound(value):
                continue
            if store is None:
                store = value._store
            elif value._store is not store:
                declared = artifact.info.imports[index]
                error = other_store(value)
                error.module, error.name = declared.module, declared.name
                raise error
        owned = store is None
        if store is None:
            store = StoreCore(artifact.engine, limits)
        elif limits is not None and limits != store.limits:
            raise LinkError(
                "limits belong to a store, and the instance joins one that has others; "
                "give them to Store(limits=...)",
                expected=store.limits,
                actual=limits,
            )
        _check_shared(artifact, store)
        for value in objects:
            if value._store is None:
                value._check_limits(store.limits)
        store.bind(artifact.engine, artifact)
        for value in objects:
            value._bind(store)
    return store, owned


def _check_shared(artifact: Artifact, store: StoreCore) -> None:
    most = store.limits.memory_bytes
    if most is not None and artifact.shared_bytes > most:
        raise RangeError(  # the library would let it grow
            f"a shared memory of the module can grow to {artifact.shared_bytes} bytes; "
            f"the store has Limits(memory_bytes={most})"
        )


def definitions(
    artifact: Artifact, values: Sequence[Any], store: StoreCore
) -> list[Extern | HostFunction]:
    """Return what to define for each import of `with_hosts`; *store* is the one that was chosen."""
    scope = Scope(store)
    made: list[Extern | HostFunction] = []
    for declared, value in zip(artifact.info.imports, values, strict=True):
        if isinstance(value, StoreObject) and isinstance(value, _CLASSES[declared.kind]):
            made.append(value._bind(store))
        elif isinstance(value, Builtin):
            assert isinstance(declared.type, FunctionType)
            made.append(value.host_function(scope, declared.type))
        elif isinstance(value, HostFunction):
            made.append(value)
        else:
            assert isinstance(declared.type, GlobalType)
            constant = Global.__new__(Global)
            constant._setup(declared.type)
            constant._kept = value
            made.append(constant._bind(store))
    return made


def with_hosts(artifact: Artifact, values: Sequence[Any]) -> list[Any]:
    """Return *values*, as read, with a host function in the place of each callable."""
    return [
        _host(artifact, index, value)
        if declared.kind == "function" and not isinstance(value, (StoreObject, Builtin))
        else value
        for index, (declared, value) in enumerate(zip(artifact.info.imports, values, strict=True))
    ]


def _host(artifact: Artifact, index: int, value: Any) -> HostFunction:
    shape = artifact.host_shapes.get(index)
    if shape is None:
        declared = artifact.info.imports[index]
        assert isinstance(declared.type, FunctionType)
        shape = artifact.host_shapes[index] = HostShape(
            declared.type,
            f"import {declared.module!r} {declared.name!r}",
            concrete_kinds(declared.type.results, artifact.kinds),
        )
    return host_function(value, shape)


def for_many_stores(artifact: Artifact, values: Sequence[Any]) -> list[Any]:
    """
    Return what `with_hosts` does, for instances in different stores.

    Raises:
        LinkError: If a value belongs to one store.
    """
    for declared, value in zip(artifact.info.imports, values, strict=True):
        if (
            isinstance(value, StoreObject)
            and value is not PYTHON_TAG
            and not (isinstance(value, Memory) and value.type.shared)
        ):
            raise link_error(
                declared,
                "what can be given to many stores",
                _named(value),
                ", which lives in one; make it anew for each instance, in a callable that "
                "returns the imports",
            )
    return with_hosts(artifact, values)

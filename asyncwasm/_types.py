"""
The vocabulary of WebAssembly types: frozen, comparable, printable, free of any engine.

Rule 1: a type is a value. Two types are equal when the specification says they are.
Rule 2: value types are strings with the names of the text format, so that they read
and compare as users write them (``function.type.results == ("i32",)``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from ._record import Record

AddressName: TypeAlias = Literal["i32", "i64"]
Kind: TypeAlias = Literal["function", "memory", "table", "global", "tag"]

PAGE_BYTES = 65_536

_NUMERIC = ("i32", "i64", "f32", "f64", "v128")

# Abbreviation -> heap type, for the nullable references the text format shortens.
_ABBREVIATED = {
    "funcref": "func",
    "externref": "extern",
    "anyref": "any",
    "eqref": "eq",
    "i31ref": "i31",
    "structref": "struct",
    "arrayref": "array",
    "exnref": "exn",
    "nullref": "none",
    "nullfuncref": "nofunc",
    "nullexternref": "noextern",
    "nullexnref": "noexn",
}
_BY_HEAP = {heap: name for name, heap in _ABBREVIATED.items()}


class ValueType(str):
    """
    A value type: a ``str`` with its name in the text format.

    ``"anyfunc"``, the JS API's older name of ``"funcref"``, equals it. References that have
    no short name are spelled out: ``"(ref extern)"``, ``"(ref null 3)"``, where a number is
    an index into the defining module's type section.
    """

    __slots__ = ()
    __hash__ = str.__hash__

    def __new__(cls, name: str) -> ValueType:
        """Return the value type called *name*, or raise TypeError when there is none."""
        if type(name) is cls:
            return name
        if not isinstance(name, str):
            raise TypeError(f"expected the name of a value type, got {type(name).__name__}")
        return str.__new__(cls, _canonical(name))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        return str.__eq__(self, "funcref" if str.__eq__(other, "anyfunc") else other)

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return NotImplemented if equal is NotImplemented else not equal

    @property
    def is_reference(self) -> bool:
        """Whether values of this type are references."""
        return str(self) not in _NUMERIC

    @property
    def heap(self) -> str:
        """The heap type's name (``"extern"``, ``"func"``, ``"3"``); empty for a number or vector."""
        if not self.is_reference:
            return ""
        return _ABBREVIATED.get(str(self)) or str(self)[:-1].split()[-1]

    @property
    def nullable(self) -> bool:
        """Whether null is a value of this reference type."""
        return str(self) in _ABBREVIATED or self.startswith("(ref null ")


def _canonical(name: str) -> str:
    if name in _NUMERIC or name in _ABBREVIATED:
        return str(name)
    if name == "anyfunc":
        return "funcref"
    words = name[1:-1].split() if name[:1] == "(" and name[-1:] == ")" else []
    if len(words) in (2, 3) and words[0] == "ref" and (len(words) == 2 or words[1] == "null"):
        heap = words[-1]
        if heap in _BY_HEAP or heap.isdecimal():
            if len(words) == 2:
                return f"(ref {heap})"
            return _BY_HEAP.get(heap, f"(ref null {heap})")
    raise TypeError(f"expected the name of a value type such as 'i32' or 'externref', got {name!r}")


def reference(heap: str, nullable: bool) -> ValueType:
    """Return the reference type to *heap*."""
    return ValueType(f"(ref null {heap})" if nullable else f"(ref {heap})")


def _value_types(names: Iterable[str], part: str) -> tuple[ValueType, ...]:
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise TypeError(f"expected a sequence of value types for {part}, got {names!r}")
    return tuple(map(ValueType, names))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FunctionType(Record):
    """
    Parameters and results of a function, in order.

    Args:
        parameters: Names of their types.
        results: Names of their types.
    Raises:
        TypeError: If there is no type with such a name.
    Spec: https://webassembly.github.io/js-types/js-api/#dictdef-functiontype
    """

    parameters: tuple[ValueType, ...] = ()
    results: tuple[ValueType, ...] = ()

    def __init__(self, parameters: Iterable[str] = (), results: Iterable[str] = ()) -> None:
        object.__setattr__(self, "parameters", _value_types(parameters, "parameters"))
        object.__setattr__(self, "results", _value_types(results, "results"))

    def __str__(self) -> str:
        return f"({', '.join(self.parameters)}) -> ({', '.join(self.results)})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MemoryType(Record):
    """
    Size of a memory in pages of 64 KiB, and how it is addressed.

    Args:
        minimum: Pages it has at least.
        maximum: Pages it may grow to, None if it has no such limit.
        shared: Whether guests on several threads may use it.
        address: ``"i32"`` or ``"i64"``.
    Spec: https://webassembly.github.io/spec/js-api/#dictdef-memorydescriptor
    """

    minimum: int
    maximum: int | None = None
    shared: bool = False
    address: AddressName = "i32"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TableType(Record):
    """
    Element type of a table, and its size in entries.

    Args:
        element: Name of the type of the entries.
        minimum: Entries it has at least.
        maximum: Entries it may grow to, None if it has no such limit.
        address: ``"i32"`` or ``"i64"``.
    Raises:
        TypeError: If there is no type called *element*.
    Spec: https://webassembly.github.io/spec/js-api/#dictdef-tabledescriptor
    """

    element: ValueType
    minimum: int
    maximum: int | None = None
    address: AddressName = "i32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "element", ValueType(self.element))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GlobalType(Record):
    """
    Value type of a global, and whether it can change.

    Args:
        value: Name of the type of its value.
        mutable: Whether it can change.
    Raises:
        TypeError: If there is no type called *value*.
    Spec: https://webassembly.github.io/spec/js-api/#dictdef-globaldescriptor
    """

    value: ValueType
    mutable: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", ValueType(self.value))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TagType(Record):
    """
    Types of the values that an exception with the tag carries.

    Args:
        parameters: Names of the types.
    Raises:
        TypeError: If there is no type with such a name.
    Spec: https://webassembly.github.io/spec/js-api/#dictdef-tagtype
    """

    parameters: tuple[ValueType, ...] = ()

    def __init__(self, parameters: Iterable[str] = ()) -> None:
        object.__setattr__(self, "parameters", _value_types(parameters, "parameters"))


ExternType: TypeAlias = FunctionType | MemoryType | TableType | GlobalType | TagType


class ExportDescriptor(NamedTuple):
    """
    One export of a module, as `Module.exports` lists it.

    Args:
        name: Its name.
        kind: ``"function"``, ``"memory"``, ``"table"``, ``"global"`` or ``"tag"``.
        type: A `FunctionType`, `MemoryType`, `TableType`, `GlobalType` or `TagType`.
    Spec: https://webassembly.github.io/spec/js-api/#dictdef-moduleexportdescriptor
    """

    name: str
    kind: Kind
    type: ExternType


class ImportDescriptor(NamedTuple):
    """
    One import of a module, as `Module.imports` lists it.

    Args:
        module: First part of its name.
        name: Second part of its name.
        kind: ``"function"``, ``"memory"``, ``"table"``, ``"global"`` or ``"tag"``.
        type: A `FunctionType`, `MemoryType`, `TableType`, `GlobalType` or `TagType`.
    Spec: https://webassembly.github.io/spec/js-api/#dictdef-moduleimportdescriptor
    """

    module: str
    name: str
    kind: Kind
    type: ExternType


def function_type(type: object) -> FunctionType:
    """Return *type* as a FunctionType: one, a mapping of its parts, or a pair of them."""
    if isinstance(type, FunctionType):
        return type
    if isinstance(type, Mapping):
        parts: Mapping[str, Any] = type
        missing = [name for name in ("parameters", "results") if name not in parts]
        if missing:
            raise TypeError(f"expected a function type, got a mapping without {missing[0]!r}")
        return FunctionType(parts["parameters"], parts["results"])
    if isinstance(type, tuple) and len(type) == 2:
        return FunctionType(*type)
    raise TypeError(
        f"expected a FunctionType or (parameters, results), got {type.__class__.__name__}"
    )

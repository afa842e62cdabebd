"""
A cursor over a wasm binary.

Rule 1: the engine validates; this module only reads. On a valid binary it is exact, on any
other bytes it returns something or raises ValueError with the offset, and nothing else.
Rule 2: nothing is allocated because a count says so, and of a whole binary only the headers of
its sections are looked at.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias, overload

from ._types import (
    AddressName,
    FunctionType,
    GlobalType,
    Kind,
    MemoryType,
    TableType,
    ValueType,
    reference,
)


class Binary(Protocol):
    """A binary in memory, or one of which only what is asked for is read."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, key: int, /) -> int: ...

    @overload
    def __getitem__(self, key: slice, /) -> bytes: ...


class Field(NamedTuple):
    """A field of a struct, or the element of an array; packed ones are ``"i8"`` or ``"i16"``."""

    type: str
    mutable: bool


class SubType(NamedTuple):
    """One entry of the type index space; *group* counts the recursion groups before its own."""

    kind: Literal["func", "struct", "array"]
    function: FunctionType | None
    fields: tuple[Field, ...]
    final: bool
    supertypes: tuple[int, ...]
    group: int


HEADER = b"\0asm\1\0\0\0"
_KINDS: Final[tuple[Kind, ...]] = ("function", "table", "memory", "global", "tag")

CUSTOM, TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START = range(9)
CODE, DATA, TAG = 10, 11, 13

HEAPS: Final = {
    **dict(enumerate(("exn", "array", "struct", "i31", "eq", "any"), 0x69)),
    **dict(enumerate(("extern", "func", "none", "noextern", "nofunc", "noexn"), 0x6F)),
}
REF_NULL, _REF = 0x63, 0x64
_ABSTRACT: Final = {
    prefix: {code: reference(heap, prefix == REF_NULL) for code, heap in HEAPS.items()}
    for prefix in (REF_NULL, _REF)
}
_VALUES: Final = _ABSTRACT[REF_NULL] | {
    0x7F: ValueType("i32"),
    0x7E: ValueType("i64"),
    0x7D: ValueType("f32"),
    0x7C: ValueType("f64"),
    0x7B: ValueType("v128"),
}
_PACKED: Final = {0x78: "i8", 0x77: "i16"}
REC = b"\x4e"
_SUB, _SUB_FINAL = 0x50, 0x4F
_ARRAY, _STRUCT, _FUNC = 0x5E, 0x5F, 0x60
_INITIALIZED = b"\x40\0"  # Instead of a table's type: the type and an initializer follow.

# The bits in the first byte of limits; wide is 64 bits, and a page size is not kept.
MAXIMUM, _SHARED, WIDE, _PAGE_SIZE = 1, 2, 4, 8
_TABLE_LIMITS = MAXIMUM | WIDE
_MEMORY_LIMITS = MAXIMUM | _SHARED | WIDE | _PAGE_SIZE

# Constant instructions: how many LEB128 numbers follow the opcode, and how many plain bytes.
_END = 0x0B
_CONSTANT: Final = {
    # global.get, i32.const, i64.const, ref.null, ref.func
    **dict.fromkeys((0x23, 0x41, 0x42, 0xD0, 0xD2), (1, 0)),
    # add, sub and mul of i32 and of i64
    **dict.fromkeys((0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E), (0, 0)),
    0x43: (0, 4),  # f32.const
    0x44: (0, 8),  # f64.const
}
_CONSTANT_PREFIXED: Final = {
    0xFB: {
        # struct.new, struct.new_default, array.new, array.new_default
        **dict.fromkeys((0, 1, 6, 7), (1, 0)),
        8: (2, 0),  # array.new_fixed
        # any.convert_extern, extern.convert_any, ref.i31
        **dict.fromkeys((26, 27, 28), (0, 0)),
    },
    0xFD: {12: (0, 16)},  # v128.const
}

# Big modules repeat few types very often: equal ones are one object, and are checked once.
_function_type = lru_cache(maxsize=1 << 14)(FunctionType)
_global_type = lru_cache(maxsize=1 << 14)(GlobalType)


_FEW = 32  # parameters, so that what is kept of them is little


@lru_cache(maxsize=1 << 14)
def _value_types(codes: bytes) -> tuple[ValueType, ...] | None:
    """Return the types that *codes* are, if each is a type that takes one byte."""
    types = [_VALUES.get(code) for code in codes]
    return None if None in types else tuple(filter(None, types))


@lru_cache(maxsize=1 << 14)
def _concrete(index: int, nullable: bool) -> ValueType:
    return reference(str(index), nullable)


# What the binary says of an import or a definition: for functions and tags, a type's index.
Declared: TypeAlias = int | TableType | MemoryType | GlobalType


_ENDS = bytes(0x80) + b"\xff" * 0x80  # of each byte, 0 if it ends a number
# A LEB128 number of 32 bits. The bound keeps the search linear where none ends.
_NUMBER = rb"[\x80-\xff]{0,4}[\x00-\x7f]"
_TOO_LARGE = rb"[\x80-\xff]{4}[\x10-\xff]"
_STRIDE = 512  # bytes between two places whose index is known


class Indices(Sequence[int]):
    """
    The type of each function, imports first, read where it is looked at.

    A module may have 100,000 functions and export five.

    Args:
        imported: Those that come first.
        body: The others, a vector of LEB128 numbers.
        count: How many there are.
    Raises:
        ValueError: If *body* has more or fewer numbers, or one of more than 32 bits.
    """

    __slots__ = ("_body", "_count", "_ends", "_imported", "_strides")

    def __init__(self, imported: Sequence[int], body: bytes, count: int) -> None:
        ending = body.translate(_ENDS)
        ends = list(
            accumulate(
                ending.count(b"\0", start, start + _STRIDE)
                for start in range(0, len(body), _STRIDE)
            )
        )
        if (ends[-1] if ends else 0) != count or ending.endswith(b"\xff"):
            raise ValueError(f"expected {count} indices")
        if b"\xff\xff\xff\xff" in ending and re.search(_TOO_LARGE, body):
            raise ValueError("number too large")
        self._imported = imported
        self._body = body
        self._count = count
        self._ends = ends  # how many numbers end before each stride does
        self._strides: dict[int, list[bytes]] = {}  # those that have been looked at, by number

    def __len__(self) -> int:
        return len(self._imported) + self._count

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> list[int]: ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[each] for each in range(len(self))[at]]
        at = range(len(self))[at]
        if at < len(self._imported):
            return self._imported[at]
        at -= len(self._imported)
        body = self._body
        if len(body) == self._count:  # nothing but numbers of one byte
            return body[at]
        stride = bisect_right(self._ends, at)
        numbers = self._strides.get(stride)
        if numbers is None:
            start = stride * _STRIDE
            while start and body[start - 1] > 0x7F:  # the number began in the stride before
                start -= 1
            end = min((stride + 1) * _STRIDE, len(body))
            numbers = self._strides[stride] = re.findall(_NUMBER, body[start:end])
        return Reader(numbers[at - (self._ends[stride - 1] if stride else 0)]).unsigned()

    def __iter__(self) -> Iterator[int]:
        yield from self._imported
        reader = Reader(self._body)
        yield from (reader.unsigned() for _ in range(self._count))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<indices of {len(self)} functions>"


class Reader:
    """A cursor over a binary, or over the bytes of one section, which starts at *base* of it."""

    __slots__ = ("base", "data", "offset")

    def __init__(self, data: Binary, base: int = 0, offset: int = 0) -> None:
        self.data = data
        self.base = base
        self.offset = offset

    def fail(self, problem: str) -> ValueError:
        return ValueError(f"{problem} at offset {self.base + self.offset}")

    def skip(self, prefix: bytes) -> bool:
        """Go behind *prefix* if it is next, and tell whether it was."""
        found = self.data[self.offset : self.offset + len(prefix)] == prefix
        if found:
            self.offset += len(prefix)
        return found

    def byte(self) -> int:
        try:
            value = self.data[self.offset]
        except IndexError:
            raise self.fail("unexpected end") from None
        self.offset += 1
        return value

    def unsigned(self, bits: int = 32) -> int:
        value = self.byte()
        if value < 0x80:
            return value
        value &= 0x7F
        for shift in range(7, bits, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            raise self.fail("number too long")
        if value >> bits:
            raise self.fail("number too large")
        return value

    def name(self) -> str:
        size = self.unsigned()
        end = self.offset + size
        name = self.data[self.offset : end]
        if len(name) != size:
            raise self.fail("unexpected end of a name")
        try:
            text = name.decode()
        except UnicodeDecodeError:
            raise self.fail("malformed UTF-8") from None
        self.offset = end
        return text

    def entries(self) -> Iterator[int]:
        """Count the entries of a section that is nothing but a vector, while they are read."""
        yield from range(self.unsigned())
        if self.offset != len(self.data):
            raise self.fail("section longer than its entries")

    def indices(self, imported: Sequence[int]) -> Indices:
        """Read a section that is a vector of indices, which come behind those *imported*."""
        count = self.unsigned()
        try:
            return Indices(imported, self.data[self.offset : len(self.data)], count)
        except ValueError as exc:
            raise self.fail(str(exc)) from None

    def heap(self, prefix: int) -> ValueType:
        start = self.offset
        abstract = _ABSTRACT[prefix].get(self.byte())
        if abstract is not None:
            return abstract
        self.offset = start
        index = self.unsigned()
        if self.data[self.offset - 1] & 0x40:  # The number is signed, and this bit is its sign.
            raise self.fail("unknown heap type")
        return _concrete(index, prefix == REF_NULL)

    def value_type(self) -> ValueType:
        code = self.byte()
        known = _VALUES.get(code)
        if known is not None:
            return known
        if code in _ABSTRACT:
            return self.heap(code)
        raise self.fail(f"unknown value type 0x{code:02x}")

    def value_types(self) -> tuple[ValueType, ...]:
        count = self.unsigned()
        if count < _FEW:
            known = _value_types(self.data[self.offset : self.offset + count])
            if known is not None and len(known) == count:
                self.offset += count
                return known
        return tuple([self.value_type() for _ in range(count)])

    def flag(self) -> bool:
        flag = self.byte()
        if flag > 1:
            raise self.fail(f"expected 0 or 1, got {flag}")
        return flag == 1

    def field(self) -> Field:
        packed = _PACKED.get(self.byte())
        if packed is None:
            self.offset -= 1
        return Field(packed or self.value_type(), self.flag())

    def sub_type(self, group: int) -> SubType:
        final = True
        supertypes: tuple[int, ...] = ()
        code = self.byte()
        if code in (_SUB, _SUB_FINAL):
            final = code == _SUB_FINAL
            supertypes = tuple([self.unsigned() for _ in range(self.unsigned())])
            code = self.byte()
        if code == _FUNC:
            function = _function_type(self.value_types(), self.value_types())
            return SubType("func", function, (), final, supertypes, group)
        if code == _STRUCT:
            fields = tuple([self.field() for _ in range(self.unsigned())])
            return SubType("struct", None, fields, final, supertypes, group)
        if code == _ARRAY:
            return SubType("array", None, (self.field(),), final, supertypes, group)
        raise self.fail(f"unknown type constructor 0x{code:02x}")

    def limits(self, allowed: int) -> tuple[int, int | None, bool, AddressName]:
        flags = self.byte()
        if flags & ~allowed:
            raise self.fail(f"unknown limits 0x{flags:02x}")
        bits = 64 if flags & WIDE else 32
        minimum = self.unsigned(bits)
        maximum = self.unsigned(bits) if flags & MAXIMUM else None
        if flags & _PAGE_SIZE:
            self.unsigned()
        return minimum, maximum, bool(flags & _SHARED), "i64" if flags & WIDE else "i32"

    def table_type(self) -> TableType:
        element = self.value_type()
        minimum, maximum, _, address = self.limits(_TABLE_LIMITS)
        return TableType(element, minimum, maximum, address)

    def memory_type(self) -> MemoryType:
        return MemoryType(*self.limits(_MEMORY_LIMITS))

    def global_type(self) -> GlobalType:
        return _global_type(self.value_type(), self.flag())

    def tag(self) -> int:
        if self.byte():
            raise self.fail("unknown tag attribute")
        return self.unsigned()

    def kind(self) -> Kind:
        code = self.byte()
        if code >= len(_KINDS):
            raise self.fail(f"unknown kind 0x{code:02x}")
        return _KINDS[code]

    def declaration(self) -> tuple[Kind, Declared]:
        kind = self.kind()
        return kind, _DECLARATIONS[kind](self)

    def defined_table(self) -> TableType:
        initialized = self.skip(_INITIALIZED)
        type = self.table_type()
        if initialized:
            self.skip_constant()
        return type

    def defined_global(self) -> GlobalType:
        type = self.global_type()
        self.skip_constant()
        return type

    def skip_constant(self) -> None:
        """Go behind the end of a constant expression."""
        while (opcode := self.byte()) != _END:
            prefixed = _CONSTANT_PREFIXED.get(opcode)
            shape = _CONSTANT.get(opcode) if prefixed is None else prefixed.get(self.unsigned())
            if shape is None:
                raise self.fail(f"unknown constant instruction 0x{opcode:02x}")
            numbers, size = shape
            for _ in range(numbers):
                while self.byte() > 0x7F:
                    pass
            self.offset += size


_DECLARATIONS: Final[dict[Kind, Callable[[Reader], Declared]]] = {
    "function": Reader.unsigned,
    "table": Reader.table_type,
    "memory": Reader.memory_type,
    "global": Reader.global_type,
    "tag": Reader.tag,
}
# The sections that define what else can be exported, and how to read one entry.
DEFINITIONS: Final[dict[Kind, tuple[int, Callable[[Reader], Declared]]]] = {
    "table": (TABLE, Reader.defined_table),
    "memory": (MEMORY, Reader.memory_type),
    "global": (GLOBAL, Reader.defined_global),
    "tag": (TAG, Reader.tag),
}


_SECTION_HEADER_BYTES = 6  # at most: what it is, and its size


class Section(NamedTuple):
    """Where a section is: *start* and *end* are its payload's, behind *name* if it is custom."""

    id: int
    header: int
    start: int
    end: int
    name: bytes


def sections_of(binary: Binary) -> Iterator[Section]:
    """Yield where each section of *binary* is, looking at nothing but their headers."""
    if binary[: len(HEADER)] != HEADER:
        raise ValueError("no header of a wasm module at offset 0")
    header, size = len(HEADER), len(binary)
    while header < size:
        reader = Reader(binary[header : header + _SECTION_HEADER_BYTES], header)
        id = reader.byte()
        payload = reader.unsigned()
        start = header + reader.offset
        end = start + payload
        name = b""
        if id > TAG:
            raise reader.fail(f"unknown section {id}")
        if id == CUSTOM:
            reader = Reader(binary, offset=start)
            length = reader.unsigned()
            start = reader.offset + length
            name = binary[reader.offset : start]
        if not start <= end <= size:
            raise ValueError(f"unexpected end of a section at offset {start}")
        yield Section(id, header, start, end, name)
        header = end

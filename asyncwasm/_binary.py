"""
Reads from a wasm binary what reflection and linking need, without any engine.

Rule 1: the engine validates; this module only reads. On a valid binary it is exact, on any
other bytes it returns something or raises ValueError with the offset, and nothing else.
Rule 2: work is proportional to the sections that are read. Code, data and elements are skipped
by their size, and nothing is allocated because a count says so.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias

from ._types import (
    AddressName,
    ExternType,
    FunctionType,
    GlobalType,
    Kind,
    MemoryType,
    TableType,
    TagType,
    ValueType,
    reference,
)


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


class Import(NamedTuple):
    """One import; functions and tags also tell the index of their type."""

    module: str
    name: str
    kind: Kind
    type: ExternType
    type_index: int | None


class Export(NamedTuple):
    """One export; *index* is into the index space of its kind, which starts with the imports."""

    name: str
    kind: Kind
    index: int  # type: ignore[assignment]  # Hides tuple.index, which nobody needs here.
    type: ExternType


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleInfo:
    """
    What a module declares.

    *function_types* has the type index of every function, imports first. *type_section* is the
    section's payload as it stands. *import_section* is where that section starts and ends in
    the binary, header included.
    """

    types: tuple[SubType, ...]
    imports: tuple[Import, ...]
    exports: tuple[Export, ...]
    start: int | None
    imported_functions: int
    function_types: Sequence[int]
    type_section: bytes
    import_section: tuple[int, int] | None
    name: str | None


_HEADER = b"\0asm\1\0\0\0"
_KINDS: Final[tuple[Kind, ...]] = ("function", "table", "memory", "global", "tag")

_CUSTOM, _TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY, _GLOBAL, _EXPORT, _START = range(9)
_CODE, _DATA, _TAG = 10, 11, 13

_HEAPS: Final = {
    **dict(enumerate(("exn", "array", "struct", "i31", "eq", "any"), 0x69)),
    **dict(enumerate(("extern", "func", "none", "noextern", "nofunc", "noexn"), 0x6F)),
}
_REF_NULL, _REF = 0x63, 0x64
_ABSTRACT: Final = {
    prefix: {code: reference(heap, prefix == _REF_NULL) for code, heap in _HEAPS.items()}
    for prefix in (_REF_NULL, _REF)
}
_VALUES: Final = _ABSTRACT[_REF_NULL] | {
    0x7F: ValueType("i32"),
    0x7E: ValueType("i64"),
    0x7D: ValueType("f32"),
    0x7C: ValueType("f64"),
    0x7B: ValueType("v128"),
}
_PACKED: Final = {0x78: "i8", 0x77: "i16"}
_REC = b"\x4e"
_SUB, _SUB_FINAL = 0x50, 0x4F
_ARRAY, _STRUCT, _FUNC = 0x5E, 0x5F, 0x60
_INITIALIZED = b"\x40\0"  # Instead of a table's type: the type and an initializer follow.

# A LEB128 number of 32 bits. The bound keeps the search linear where none ends.
_NUMBER = re.compile(rb"[\x80-\xff]{0,4}[\x00-\x7f]")

# The bits in the first byte of limits; wide is 64 bits, and a page size is not kept.
_MAXIMUM, _SHARED, _WIDE, _PAGE_SIZE = 1, 2, 4, 8
_TABLE_LIMITS = _MAXIMUM | _WIDE
_MEMORY_LIMITS = _MAXIMUM | _SHARED | _WIDE | _PAGE_SIZE

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


@lru_cache(maxsize=1 << 14)
def _concrete(index: int, nullable: bool) -> ValueType:
    return reference(str(index), nullable)


# What the binary says of an import or a definition: for functions and tags, a type's index.
_Declared: TypeAlias = int | TableType | MemoryType | GlobalType


class _Reader:
    """A cursor over the bytes of one section, which starts at *base* of the binary."""

    __slots__ = ("base", "data", "offset")

    def __init__(self, data: bytes, base: int = 0, offset: int = 0) -> None:
        self.data = data
        self.base = base
        self.offset = offset

    def fail(self, problem: str) -> ValueError:
        return ValueError(f"{problem} at offset {self.base + self.offset}")

    def skip(self, prefix: bytes) -> bool:
        """Go behind *prefix* if it is next, and tell whether it was."""
        found = self.data.startswith(prefix, self.offset)
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

    def indices(self) -> array[int]:
        """Read a section that is a vector of indices: few different ones, 100,000 times."""
        count = self.unsigned()
        body = self.data[self.offset :]
        numbers = _NUMBER.findall(body)
        if len(numbers) != count or sum(map(len, numbers)) != len(body):
            raise self.fail(f"expected {count} indices")
        values = {number: _Reader(number, self.base).unsigned() for number in set(numbers)}
        return array("I", [values[number] for number in numbers])

    def heap(self, prefix: int) -> ValueType:
        start = self.offset
        abstract = _ABSTRACT[prefix].get(self.byte())
        if abstract is not None:
            return abstract
        self.offset = start
        index = self.unsigned()
        if self.data[self.offset - 1] & 0x40:  # The number is signed, and this bit is its sign.
            raise self.fail("unknown heap type")
        return _concrete(index, prefix == _REF_NULL)

    def value_type(self) -> ValueType:
        code = self.byte()
        known = _VALUES.get(code)
        if known is not None:
            return known
        if code in _ABSTRACT:
            return self.heap(code)
        raise self.fail(f"unknown value type 0x{code:02x}")

    def value_types(self) -> tuple[ValueType, ...]:
        return tuple([self.value_type() for _ in range(self.unsigned())])

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
        bits = 64 if flags & _WIDE else 32
        minimum = self.unsigned(bits)
        maximum = self.unsigned(bits) if flags & _MAXIMUM else None
        if flags & _PAGE_SIZE:
            self.unsigned()
        return minimum, maximum, bool(flags & _SHARED), "i64" if flags & _WIDE else "i32"

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

    def declaration(self) -> tuple[Kind, _Declared]:
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


_DECLARATIONS: Final[dict[Kind, Callable[[_Reader], _Declared]]] = {
    "function": _Reader.unsigned,
    "table": _Reader.table_type,
    "memory": _Reader.memory_type,
    "global": _Reader.global_type,
    "tag": _Reader.tag,
}
# The sections that define what else can be exported, and how to read one entry.
_DEFINITIONS: Final[dict[Kind, tuple[int, Callable[[_Reader], _Declared]]]] = {
    "table": (_TABLE, _Reader.defined_table),
    "memory": (_MEMORY, _Reader.memory_type),
    "global": (_GLOBAL, _Reader.defined_global),
    "tag": (_TAG, _Reader.tag),
}


class _Section(NamedTuple):
    """Where a section is: *start* and *end* are its payload's, behind *name* if it is custom."""

    id: int
    header: int
    start: int
    end: int
    name: bytes


def _sections(binary: bytes) -> Iterator[_Section]:
    reader = _Reader(binary)
    if not reader.skip(_HEADER):
        raise reader.fail("no header of a wasm module")
    while reader.offset < len(binary):
        header = reader.offset
        id = reader.byte()
        size = reader.unsigned()
        end = reader.offset + size
        name = b""
        if id > _TAG:
            raise reader.fail(f"unknown section {id}")
        if id == _CUSTOM:
            size = reader.unsigned()
            name = binary[reader.offset : reader.offset + size]
            reader.offset += size
        if not reader.offset <= end <= len(binary):
            raise reader.fail("unexpected end of a section")
        yield _Section(id, header, reader.offset, end, name)
        reader.offset = end


def outline(binary: bytes) -> str:
    """Return a digest of what `decode` reads: all sections but code, data and custom ones."""
    digest = hashlib.blake2b(digest_size=32)
    for section in _sections(binary):
        if section.id not in (_CUSTOM, _CODE, _DATA):
            digest.update(section.id.to_bytes(1, "little"))
            digest.update((section.end - section.start).to_bytes(8, "little"))
            digest.update(memoryview(binary)[section.start : section.end])
    return digest.hexdigest()


def _module_name(payload: bytes) -> str | None:
    reader = _Reader(payload)
    # A custom section may be nonsense: the specification wants that ignored.
    with suppress(ValueError):
        while reader.offset < len(payload):
            subsection, size = reader.byte(), reader.unsigned()
            if subsection == 0:
                return _Reader(payload[reader.offset : reader.offset + size]).name()
            reader.offset += size
    return None


def _types(reader: _Reader) -> tuple[SubType, ...]:
    types: list[SubType] = []
    for group in reader.entries():
        if reader.skip(_REC):
            types.extend([reader.sub_type(group) for _ in range(reader.unsigned())])
        else:
            types.append(reader.sub_type(group))
    return tuple(types)


def decode(binary: bytes) -> ModuleInfo:
    """
    Read what the module *binary* declares.

    Definitions behind the last exported one of their kind are not looked at: the compilers of
    managed languages write tens of thousands of globals, with long initializers.

    Raises:
        ValueError: If *binary* is malformed in a place that is looked at.
    """
    sections: dict[int, _Section] = {}
    name: str | None = None
    for section in _sections(binary):
        if section.id != _CUSTOM:
            if sections.setdefault(section.id, section) is not section:
                raise ValueError(f"second section {section.id} at offset {section.header}")
        elif section.name == b"name" and name is None:
            name = _module_name(binary[section.start : section.end])

    def read(id: int) -> _Reader:
        if id not in sections:
            return _Reader(b"\0")  # A vector without entries.
        return _Reader(binary[sections[id].start : sections[id].end], sections[id].start)

    types = _types(read(_TYPE))

    def resolve(reader: _Reader, kind: Kind, declared: _Declared) -> ExternType:
        if not isinstance(declared, int):
            return declared
        function = types[declared].function if declared < len(types) else None
        if function is None:
            raise reader.fail(f"type {declared} is not a function type")
        return function if kind == "function" else TagType(function.parameters)

    imports: list[Import] = []
    functions = array("I")
    spaces: dict[Kind, list[_Declared]] = {kind: [] for kind in _DEFINITIONS}
    reader = read(_IMPORT)
    for _ in reader.entries():
        module, field = reader.name(), reader.name()
        kind, declared = reader.declaration()
        index = declared if isinstance(declared, int) else None
        imports.append(Import(module, field, kind, resolve(reader, kind, declared), index))
        if index is not None and kind == "function":
            functions.append(index)
        else:
            spaces[kind].append(declared)
    imported_functions = len(functions)
    functions.extend(read(_FUNCTION).indices())

    reader = read(_EXPORT)
    exported = [
        (reader.name(), reader.kind(), reader.unsigned(), reader.offset) for _ in reader.entries()
    ]
    for kind, (id, entry) in _DEFINITIONS.items():
        last = max((index for _, of, index, _ in exported if of == kind), default=-1)
        definitions = read(id)
        for _ in definitions.entries():
            if len(spaces[kind]) > last:
                break
            spaces[kind].append(entry(definitions))

    exports: list[Export] = []
    for field, kind, index, end in exported:
        reader.offset = end
        space: Sequence[_Declared] = functions if kind == "function" else spaces[kind]
        if index >= len(space):
            raise reader.fail(f"no {kind} {index}")
        exports.append(Export(field, kind, index, resolve(reader, kind, space[index])))

    imported = sections.get(_IMPORT)
    return ModuleInfo(
        types=types,
        imports=tuple(imports),
        exports=tuple(exports),
        start=read(_START).unsigned() if _START in sections else None,
        imported_functions=imported_functions,
        function_types=functions,
        type_section=read(_TYPE).data if _TYPE in sections else b"",
        import_section=(imported.header, imported.end) if imported else None,
        name=name,
    )


def defined_memories(binary: bytes) -> list[MemoryType]:
    """Return the types of the memories that *binary* defines itself."""
    for section in _sections(binary):
        if section.id == _MEMORY:
            reader = _Reader(binary[section.start : section.end], section.start)
            return [reader.memory_type() for _ in reader.entries()]
    return []


def custom_sections(binary: bytes, name: str) -> list[bytes]:
    """
    Return the payloads of the custom sections called *name*, in order.

    Raises:
        ValueError: If *binary* is malformed.
    """
    try:
        wanted = name.encode()
    except UnicodeEncodeError:  # A lone surrogate: no section has it in its name.
        return []
    return [
        binary[section.start : section.end]
        for section in _sections(binary)
        if section.id == _CUSTOM and section.name == wanted
    ]


def rename_imports(binary: bytes, names: Sequence[tuple[str, str]]) -> tuple[bytes, int]:
    """
    Call the i-th import of *binary* ``names[i]``, a module and a name.

    A module may import the same pair twice, even with different types, but a linker holds one
    definition for each pair.

    Returns:
        A copy of *binary*, and by how many bytes everything behind its imports moved.
    Raises:
        ValueError: If *binary* is malformed, or has not as many imports as there are names.
    """
    section = next((section for section in _sections(binary) if section.id == _IMPORT), None)
    declarations: list[bytes] = []
    if section is not None:
        reader = _Reader(binary[section.start : section.end], section.start)
        for _ in reader.entries():
            reader.name(), reader.name()
            start = reader.offset
            reader.declaration()
            declarations.append(reader.data[start : reader.offset])
    if len(names) != len(declarations):
        raise ValueError(f"expected {len(declarations)} names, got {len(names)}")
    if section is None:
        return binary, 0
    parts = [_unsigned(len(names))]
    for (module, name), declaration in zip(names, declarations, strict=True):
        parts += [_sized(module.encode()), _sized(name.encode()), declaration]
    renamed = bytes([_IMPORT]) + _sized(b"".join(parts))
    moved = len(renamed) - (section.end - section.header)
    return b"".join((binary[: section.header], renamed, binary[section.end :])), moved


def _unsigned(value: int) -> bytes:
    encoded = b""
    while value > 0x7F:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])


def _sized(content: bytes) -> bytes:
    return _unsigned(len(content)) + content


def table_module(type: TableType) -> bytes:
    """Return a module that exports, as ``""``, a table of *type* filled with null."""
    codes = {heap: code for code, heap in _HEAPS.items()}
    element = type.element
    if element.heap not in codes or not element.nullable:
        raise ValueError(f"a table of {element} cannot be made by itself")
    flags = (_WIDE if type.address == "i64" else 0) | (type.maximum is not None and _MAXIMUM)
    limits = bytes([flags]) + _unsigned(type.minimum)
    if type.maximum is not None:
        limits += _unsigned(type.maximum)
    table = b"\1" + bytes([_REF_NULL, codes[element.heap]]) + limits
    export = b"\1\0\1\0"
    return _HEADER + bytes([_TABLE]) + _sized(table) + bytes([_EXPORT]) + _sized(export)

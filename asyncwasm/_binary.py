"""
What a wasm binary declares, as reflection and linking need it, without any engine.

Rule 1: the engine validates; this module only reads. On a valid binary it is exact, on any
other bytes it returns something or raises ValueError with the offset, and nothing else.
Rule 2: work is proportional to the sections that are read. Code, data and elements are skipped
by their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from ._reader import (
    CODE,
    CUSTOM,
    DATA,
    DEFINITIONS,
    EXPORT,
    FUNCTION,
    HEADER,
    IMPORT,
    MEMORY,
    REC,
    START,
    TYPE,
    Binary,
    Declared,
    Reader,
    Section,
    SubType,
    sections_of,
)
from ._types import ExternType, GlobalType, Kind, MemoryType, TableType, TagType

_GAP_BYTES = 4096  # up to which reading what is between two spans is cheaper than leaving it out


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


class ModuleInfo(NamedTuple):
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


def spans_of(binary: Binary) -> list[tuple[int, int]]:
    """
    Return from where to where *binary* has what `decode` reads, and the headers of all sections.

    Binaries of one size that agree there have the same sections, and declare the same.

    Raises:
        ValueError: If *binary* is not divided into sections.
    """
    spans = [(0, len(HEADER))]
    for section in sections_of(binary):
        end = section.start if section.id in (CUSTOM, CODE, DATA) else section.end
        start, last = spans[-1]
        if section.header - last <= _GAP_BYTES:
            spans[-1] = (start, end)
        else:
            spans.append((section.header, end))
    return spans


def declared_bytes(binary: Binary) -> int:
    """Return how many bytes `decode` reads, about."""
    return sum(end - start for start, end in spans_of(binary))


def _module_name(payload: bytes) -> str | None:
    reader = Reader(payload)
    # A custom section may be nonsense: the specification wants that ignored.
    with suppress(ValueError):
        while reader.offset < len(payload):
            subsection, size = reader.byte(), reader.unsigned()
            if subsection == 0:
                return Reader(payload[reader.offset : reader.offset + size]).name()
            reader.offset += size
    return None


def _types(reader: Reader) -> tuple[SubType, ...]:
    types: list[SubType] = []
    for group in reader.entries():
        if reader.skip(REC):
            types.extend([reader.sub_type(group) for _ in range(reader.unsigned())])
        else:
            types.append(reader.sub_type(group))
    return tuple(types)


def decode(binary: Binary) -> ModuleInfo:
    """
    Read what the module *binary* declares.

    Definitions behind the last exported one of their kind are not looked at: the compilers of
    managed languages write tens of thousands of globals, with long initializers.

    Raises:
        ValueError: If *binary* is malformed in a place that is looked at.
    """
    sections: dict[int, Section] = {}
    name: str | None = None
    for section in sections_of(binary):
        if section.id != CUSTOM:
            if sections.setdefault(section.id, section) is not section:
                raise ValueError(f"second section {section.id} at offset {section.header}")
        elif section.name == b"name" and name is None:
            name = _module_name(binary[section.start : section.end])

    def read(id: int) -> Reader:
        if id not in sections:
            return Reader(b"\0")  # A vector without entries.
        return Reader(binary[sections[id].start : sections[id].end], sections[id].start)

    types = _types(read(TYPE))

    def resolve(reader: Reader, kind: Kind, declared: Declared) -> ExternType:
        if not isinstance(declared, int):
            return declared
        function = types[declared].function if declared < len(types) else None
        if function is None:
            raise reader.fail(f"type {declared} is not a function type")
        return function if kind == "function" else TagType(function.parameters)

    imports: list[Import] = []
    imported: list[int] = []
    spaces: dict[Kind, list[Declared]] = {kind: [] for kind in DEFINITIONS}
    reader = read(IMPORT)
    for _ in reader.entries():
        module, field = reader.name(), reader.name()
        kind, declared = reader.declaration()
        index = declared if isinstance(declared, int) else None
        imports.append(Import(module, field, kind, resolve(reader, kind, declared), index))
        if index is not None and kind == "function":
            imported.append(index)
        else:
            spaces[kind].append(declared)
    functions = read(FUNCTION).indices(imported)

    reader = read(EXPORT)
    exported = [
        (reader.name(), reader.kind(), reader.unsigned(), reader.offset) for _ in reader.entries()
    ]
    for kind, (id, entry) in DEFINITIONS.items():
        last = max((index for _, of, index, _ in exported if of == kind), default=-1)
        definitions = read(id)
        for _ in definitions.entries():
            if len(spaces[kind]) > last:
                break
            spaces[kind].append(entry(definitions))

    exports: list[Export] = []
    for field, kind, index, end in exported:
        reader.offset = end
        space: Sequence[Declared] = functions if kind == "function" else spaces[kind]
        if index >= len(space):
            raise reader.fail(f"no {kind} {index}")
        exports.append(Export(field, kind, index, resolve(reader, kind, space[index])))

    section_of_imports = sections.get(IMPORT)
    return ModuleInfo(
        types=types,
        imports=tuple(imports),
        exports=tuple(exports),
        start=read(START).unsigned() if START in sections else None,
        imported_functions=len(imported),
        function_types=functions,
        type_section=binary[sections[TYPE].start : sections[TYPE].end] if TYPE in sections else b"",
        import_section=(
            (section_of_imports.header, section_of_imports.end) if section_of_imports else None
        ),
        name=name,
    )


def defined_memories(binary: Binary) -> list[MemoryType]:
    """Return the types of the memories that *binary* defines itself."""
    for section in sections_of(binary):
        if section.id == MEMORY:
            reader = Reader(binary[section.start : section.end], section.start)
            return [reader.memory_type() for _ in reader.entries()]
    return []


def custom_sections(binary: Binary, name: str) -> list[bytes]:
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
        for section in sections_of(binary)
        if section.id == CUSTOM and section.name == wanted
    ]


def holds_references(info: ModuleInfo) -> bool:
    """
    Return whether guests can hold references to objects on their stacks, as far as *info* tells.

    What it does not tell is `catch_all_ref`, which needs no type.
    """
    return any(type.kind != "func" for type in info.types) or _refers(info)


def _refers(info: ModuleInfo) -> bool:
    """Return whether a reference to an object can come into a module from outside."""
    types = [
        each
        for type in info.types
        if type.function is not None
        for each in (*type.function.parameters, *type.function.results)
    ]
    for declared in info.imports:
        if isinstance(declared.type, GlobalType):
            types.append(declared.type.value)
        elif isinstance(declared.type, TableType):
            types.append(declared.type.element)
    return any(type.is_reference and type.heap not in ("func", "nofunc") for type in types)

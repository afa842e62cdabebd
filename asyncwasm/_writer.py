"""Writes the few binaries that linking and tables need."""

from __future__ import annotations

from collections.abc import Sequence

from ._reader import (
    EXPORT,
    HEADER,
    HEAPS,
    IMPORT,
    MAXIMUM,
    REF_NULL,
    TABLE,
    WIDE,
    Reader,
    sections_of,
)
from ._types import TableType


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
    section = next((section for section in sections_of(binary) if section.id == IMPORT), None)
    declarations: list[bytes] = []
    if section is not None:
        reader = Reader(binary[section.start : section.end], section.start)
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
    renamed = bytes([IMPORT]) + _sized(b"".join(parts))
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
    codes = {heap: code for code, heap in HEAPS.items()}
    element = type.element
    if element.heap not in codes or not element.nullable:
        raise ValueError(f"a table of {element} cannot be made by itself")
    flags = (WIDE if type.address == "i64" else 0) | (type.maximum is not None and MAXIMUM)
    limits = bytes([flags]) + _unsigned(type.minimum)
    if type.maximum is not None:
        limits += _unsigned(type.maximum)
    table = b"\1" + bytes([REF_NULL, codes[element.heap]]) + limits
    export = b"\1\0\1\0"
    return HEADER + bytes([TABLE]) + _sized(table) + bytes([EXPORT]) + _sized(export)

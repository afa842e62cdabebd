"""
What a module consists of, for people who look at one.

Rule 1: `_binary` reads what linking needs, and stops there; this goes through everything.
Rule 2: on a valid binary it is exact, on other bytes it raises ValueError at most.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, NamedTuple

from .._binary import custom_sections
from .._reader import CUSTOM, DEFINITIONS, Reader, sections_of
from .._types import GlobalType, Kind, MemoryType, TableType


class SectionSize(NamedTuple):
    """A section: what it is called, and how many bytes are in it, behind its name if custom."""

    name: str
    custom: bool
    size_bytes: int


class Outline(NamedTuple):
    """What a module is made of. The definitions are its own: imports are not among them."""

    sections: tuple[SectionSize, ...]
    memories: tuple[MemoryType, ...]
    tables: tuple[TableType, ...]
    globals: tuple[GlobalType, ...]
    tags: int


_SECTION_NAMES: Final = (
    *("custom", "type", "import", "function", "table", "memory", "global", "export"),
    *("start", "element", "code", "data", "data count", "tag"),
)


def outline(binary: bytes) -> Outline:
    """
    List the sections of *binary*, and everything it defines except functions.

    Raises:
        ValueError: If *binary* is malformed in a place that is looked at.
    """
    sections: list[SectionSize] = []
    found: dict[Kind, list[Any]] = {kind: [] for kind in DEFINITIONS}
    for section in sections_of(binary):
        custom = section.id == CUSTOM
        name = section.name.decode(errors="replace") if custom else _SECTION_NAMES[section.id]
        sections.append(SectionSize(name, custom, section.end - section.start))
        for kind, (id, entry) in DEFINITIONS.items():
            if section.id == id:
                reader = Reader(binary[section.start : section.end], section.start)
                found[kind] = [entry(reader) for _ in reader.entries()]
    return Outline(
        tuple(sections),
        tuple(found["memory"]),
        tuple(found["table"]),
        tuple(found["global"]),
        len(found["tag"]),
    )


def producers(binary: bytes) -> dict[str, list[tuple[str, str]]]:
    """
    Return what made *binary*, by its own account: fields, each with names and versions.

    The field names are ``"language"``, ``"processed-by"`` and ``"sdk"``. Empty if it does not
    say, or the section is nonsense.

    Raises:
        ValueError: If *binary* is malformed.
    """
    fields: dict[str, list[tuple[str, str]]] = {}
    for payload in custom_sections(binary, "producers")[:1]:
        reader = Reader(payload)
        with suppress(ValueError):
            for _ in range(reader.unsigned()):
                values = fields.setdefault(reader.name(), [])
                for _ in range(reader.unsigned()):
                    values.append((reader.name(), reader.name()))
    return fields

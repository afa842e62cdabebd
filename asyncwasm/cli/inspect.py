"""``asyncwasm inspect``: what a module consists of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import click

from .._binary import ModuleInfo, decode
from .._types import ExternType, Kind
from ._common import (
    columns,
    counted,
    file_argument,
    json_option,
    printable,
    read_module,
    type_json,
    type_text,
    write_json,
)
from ._outline import Outline, outline, producers
from .validate import check


@click.command()
@file_argument
@json_option
def inspect(file: str, as_json: bool) -> None:
    """
    Show what FILE imports, exports and consists of.

    The module is validated, not compiled.
    """
    binary = read_module(file)
    error = check(binary)
    if error is not None:
        raise error
    info, parts, made_by = decode(binary), outline(binary), producers(binary)
    if as_json:
        write_json(_document(file, binary, info, parts, made_by))
    else:
        click.echo("\n".join(_lines(file, binary, info, parts, made_by)))


def _size_of(parts: Outline, name: str) -> int:
    return sum(
        each.size_bytes for each in parts.sections if (each.name, each.custom) == (name, False)
    )


def _all(info: ModuleInfo, kind: Kind, own: Iterable[ExternType]) -> list[tuple[ExternType, bool]]:
    """Return the index space of *kind*: each type, and whether it is imported."""
    imported = [(each.type, True) for each in info.imports if each.kind == kind]
    return imported + [(type, False) for type in own]


def _spaces(info: ModuleInfo, parts: Outline) -> dict[str, list[tuple[ExternType, bool]]]:
    return {
        "memories": _all(info, "memory", parts.memories),
        "tables": _all(info, "table", parts.tables),
        "globals": _all(info, "global", parts.globals),
    }


def _document(
    file: str,
    binary: bytes,
    info: ModuleInfo,
    parts: Outline,
    made_by: dict[str, list[tuple[str, str]]],
) -> dict[str, Any]:
    return {
        "file": file,
        "name": info.name,
        "bytes": len(binary),
        "digest": hashlib.sha256(binary).hexdigest(),
        "code_bytes": _size_of(parts, "code"),
        "data_bytes": _size_of(parts, "data"),
        "has_start": info.start is not None,
        "imports": [
            {
                "module": each.module,
                "name": each.name,
                "kind": each.kind,
                "type": type_json(each.type),
            }
            for each in info.imports
        ],
        "exports": [
            {"name": each.name, "kind": each.kind, "type": type_json(each.type)}
            for each in info.exports
        ],
        "functions": {
            "imported": info.imported_functions,
            "defined": len(info.function_types) - info.imported_functions,
        },
        **{
            name: [{**type_json(type), "imported": imported} for type, imported in space]
            for name, space in _spaces(info, parts).items()
        },
        "sections": [
            {"name": each.name, "bytes": each.size_bytes}
            for each in parts.sections
            if not each.custom
        ],
        "custom_sections": [
            {"name": each.name, "bytes": each.size_bytes} for each in parts.sections if each.custom
        ],
        "producers": {
            field: [{"name": name, "version": version} for name, version in values]
            for field, values in made_by.items()
        },
    }


_MANY = 20  # definitions that are shown one by one; toolchains write thousands of globals


def _lines(
    file: str,
    binary: bytes,
    info: ModuleInfo,
    parts: Outline,
    made_by: dict[str, list[tuple[str, str]]],
) -> Iterable[str]:
    functions = len(info.function_types) - info.imported_functions
    yield printable(file)
    yield from columns(
        [
            ("name", printable(info.name or "-")),
            ("digest", hashlib.sha256(binary).hexdigest()),
            (
                "size",
                f"{counted(len(binary), 'byte')}: code {_size_of(parts, 'code'):,}, "
                f"data {_size_of(parts, 'data'):,}",
            ),
            ("functions", f"{functions:,}" + ", one runs at the start" * (info.start is not None)),
        ]
    )
    if info.imports:
        yield "imports"
        yield from columns(
            [
                (printable(f"{each.module}.{each.name}"), each.kind, type_text(each.type))
                for each in info.imports
            ]
        )
    if info.exports:
        yield "exports"
        yield from columns(
            [(printable(each.name), each.kind, type_text(each.type)) for each in info.exports]
        )
    for name, space in _spaces(info, parts).items():
        if space:
            yield name
            yield from columns(
                [
                    (str(index), type_text(type) + ", imported" * imported)
                    for index, (type, imported) in enumerate(space[:_MANY])
                ]
            )
        if len(space) > _MANY:
            yield f"  and {len(space) - _MANY:,} more"
    custom = [each for each in parts.sections if each.custom]
    if custom:
        yield "custom sections"
        yield from columns(
            [(printable(each.name), counted(each.size_bytes, "byte")) for each in custom]
        )
    if made_by:
        yield "producers"
        yield from columns(
            [
                (printable(field), printable(f"{name} {version}".rstrip()))
                for field, values in made_by.items()
                for name, version in values
            ]
        )

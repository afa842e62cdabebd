"""What the commands share: reading modules, and writing results."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .._api import wat2wasm
from .._errors import Trap
from .._objects.conversions import Source
from .._types import (
    ExternType,
    FunctionType,
    GlobalType,
    MemoryType,
    TableType,
    TagType,
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Write one JSON document instead of text."
)
file_argument = click.argument("file", type=click.Path(allow_dash=True))


def printable(text: str) -> str:
    """
    Return *text* with everything escaped that a terminal could take for a command.

    Names in a module are whatever its author wanted them to be.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def described(error: BaseException) -> str:
    """Return one error as text, of as many lines as it needs."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return printable(f"{where}{error.strerror}")
    lines = [printable(line) for line in str(error).splitlines()] or [type(error).__name__]
    if isinstance(error, Trap):
        lines += [f"  in {printable(str(frame))}" for frame in error.frames]
    return "\n".join(lines)


def read_module(file: str) -> bytes:
    """Return the binary in *file*, made from the text format if it is that."""
    if file == "-":
        data = sys.stdin.buffer.read()
        return data if data.startswith(b"\0asm") else text_to_binary(data)
    data = Path(file).read_bytes()
    return text_to_binary(data) if is_text(Path(file), data) else data


def source_of(file: str) -> Source:
    """Return what to compile: the path of a binary, or what the text there stands for."""
    if not file.endswith((".wat", ".wast")):
        return Path(file)
    return read_module(file)


def is_text(path: Path, data: bytes) -> bool:
    """Return whether *data*, from *path*, is meant as the text format."""
    return path.suffix in (".wat", ".wast") and not data.startswith(b"\0asm")


def text_to_binary(data: bytes) -> bytes:
    """Return the binary of a module in the text format."""
    return wat2wasm(data.decode("utf-8-sig", errors="surrogateescape"))


def write_json(document: Any) -> None:
    """Write the result of a command."""
    click.echo(json.dumps(document, indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """Return a guest's value as JSON has it: what JSON lacks is a string."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (int, float, str)):
        return value
    return repr(value)


def error_json(error: BaseException) -> dict[str, Any]:
    """Return an error as JSON."""
    document: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, Trap):
        document["code"] = None if error.code is None else error.code.name
        document["frames"] = [frame._asdict() for frame in error.frames]
    offset = getattr(error, "offset", None)
    if offset is not None:
        document["offset"] = offset
    return document


def first_line(error: dict[str, Any]) -> str:
    """Return the first line of an error, for a table."""
    lines = str(error["message"]).splitlines() or [str(error["type"])]
    return printable(lines[0])


def type_json(type: ExternType) -> dict[str, Any]:
    """Return a type as JSON."""
    return dataclasses.asdict(type)


def type_text(type: ExternType) -> str:
    """Return a type as one reads it."""
    if isinstance(type, FunctionType):
        return str(type)
    if isinstance(type, MemoryType):
        flags = ", shared" * type.shared + ", 64-bit" * (type.address == "i64")
        return _size(type.minimum, type.maximum, "page") + flags
    if isinstance(type, TableType):
        flags = ", 64-bit" * (type.address == "i64")
        return f"{type.element}, {_size(type.minimum, type.maximum, 'entry')}{flags}"
    if isinstance(type, GlobalType):
        return f"{'mut ' * type.mutable}{type.value}"
    assert isinstance(type, TagType)
    return f"({', '.join(type.parameters)})"


def _size(minimum: int, maximum: int | None, unit: str) -> str:
    bound = "" if maximum is None else f", at most {maximum:,}"
    return f"{counted(minimum, unit)}{bound}"


def counted(number: int, noun: str) -> str:
    """Return a number of things: ``"1 page"``, ``"3 pages"``, ``"2 entries"``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun.removesuffix('y')}ies" if noun[-1] == "y" else f"{number:,} {noun}s"


def columns(rows: Sequence[tuple[str, ...]], indent: str = "  ") -> list[str]:
    """Return lines with the cells of *rows* below each other."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [(indent + "  ".join(map(str.ljust, row, widths))).rstrip() for row in rows]

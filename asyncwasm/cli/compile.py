"""``asyncwasm compile``: fill the cache ahead of time."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import anyio
import click

from .._api import compile as compile_module
from .._errors import WasmError
from ..cache import CacheInfo, info
from ._common import (
    columns,
    error_json,
    first_line,
    json_option,
    printable,
    source_of,
    write_json,
)


@click.command("compile")
@click.argument("files", nargs=-1, required=True, type=click.Path(), metavar="FILE...")
@json_option
@click.pass_context
def compile_(ctx: click.Context, files: tuple[str, ...], as_json: bool) -> None:
    """
    Compile each FILE with the optimizing compiler, so that programs find it in the cache.

    Exit code 1 if one cannot be compiled, or the cache cannot be used. A cache that is off is
    no error, but it is said.
    """
    rows = anyio.run(_compile, files)
    place = info()
    if as_json:
        directory = None if place.directory is None else str(place.directory)
        write_json({"cache": directory, "problem": place.problem, "modules": rows})
    else:
        click.echo("\n".join(columns([_cells(row, place) for row in rows], indent="")))
    if place.directory is None:
        click.echo("The cache is off: nothing was kept.", err=True)
    elif place.problem is not None:
        click.echo(f"Error: nothing was kept: {printable(place.problem)}", err=True)
    if place.problem is not None or any(row["error"] is not None for row in rows):
        ctx.exit(1)


async def _compile(files: tuple[str, ...]) -> list[dict[str, Any]]:
    """Compile one after the other: the compiler itself uses every processor."""
    rows = []
    for file in files:
        started = perf_counter()
        row: dict[str, Any] = {"file": file, "bytes": None, "digest": None, "cached": False}
        error: Exception | None = None
        try:
            module = await compile_module(source_of(file))
            row |= {"bytes": module.byte_length, "digest": module.digest}
            row["cached"] = module._artifact.cached
            await module.optimized()
        except (WasmError, OSError) as exc:
            error = exc
        row["seconds"] = perf_counter() - started
        row["error"] = None if error is None else error_json(error)
        rows.append(row)
    return rows


def _cells(row: dict[str, Any], place: CacheInfo) -> tuple[str, ...]:
    if row["error"] is not None:
        return printable(row["file"]), "", first_line(row["error"])
    kept = place.directory is not None and place.problem is None
    verdict = "was in the cache" if row["cached"] else "kept" if kept else "compiled"
    return printable(row["file"]), f"{row['seconds']:.4f} s", verdict

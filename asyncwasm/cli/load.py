"""``asyncwasm load``: many modules at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import click

from .._api import instantiate
from .._objects.conversions import Source
from ..batch import Loaded, load_many
from ._common import (
    counted,
    error_json,
    first_line,
    json_option,
    printable,
    source_of,
    write_json,
)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(), metavar="PATH...")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many to load at a time; about as many as there are processors if omitted.",
)
@click.option(
    "--instantiate/--no-instantiate",
    "with_instances",
    default=True,
    help="Whether to make an instance of each module that needs no imports (the default).",
)
@json_option
@click.pass_context
def load(
    ctx: click.Context,
    *,
    paths: tuple[str, ...],
    concurrency: int | None,
    with_instances: bool,
    as_json: bool,
) -> None:
    """
    Load every module at the PATHs, side by side.

    A directory stands for the *.wasm and *.wat files below it. Modules that need imports are
    compiled only, since there is nobody here to give them any. Exit code 1 if one fails.
    """
    started = perf_counter()
    rows: list[dict[str, Any]] = []
    sources: dict[str, Source] = {}
    for path in _expand(paths):
        try:
            sources[str(path)] = source_of(str(path))
        except Exception as exc:  # to be told with those of the other modules
            rows.append(_row(Loaded(str(path), None, None, exc, 0.0, False)))
    anyio.run(_load, sources, concurrency, with_instances, rows)
    rows.sort(key=lambda row: str(row["name"]))
    failed = sum(row["error"] is not None for row in rows)
    seconds = perf_counter() - started
    if as_json:
        write_json({"modules": rows, "failed": failed, "seconds": seconds})
    else:
        if rows:
            click.echo(_table(rows), nl=False)
        total = sum(row["bytes"] or 0 for row in rows)
        click.echo(
            f"{counted(len(rows), 'module')}, {counted(total, 'byte')}, {seconds:.2f} s, "
            f"{failed} failed",
            err=True,
        )
    if failed:
        ctx.exit(1)


def _expand(paths: tuple[str, ...]) -> Iterator[Path]:
    for each in map(Path, paths):
        if each.is_dir():
            found = [path for path in each.rglob("*.wa[st]*") if path.suffix in (".wasm", ".wat")]
            if not found:
                raise click.ClickException(f"{printable(str(each))}: no *.wasm and no *.wat here")
            yield from sorted(found)
        else:
            yield each


async def _load(
    sources: dict[str, Source],
    concurrency: int | None,
    with_instances: bool,
    rows: list[dict[str, Any]],
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    progress = Progress(
        TextColumn("loading"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        bar = progress.add_task("loading", total=len(sources))
        # Whether a module needs imports shows when it has been compiled: it is instantiated here.
        async with aclosing(
            load_many(sources, concurrency=concurrency, instantiate=False)
        ) as batch:
            async for item in batch:
                rows.append(await _finish(item) if with_instances else _row(item))
                progress.advance(bar)


async def _finish(item: Loaded) -> dict[str, Any]:
    """Instantiate what was compiled, if it can be, and return its row."""
    if item.module is None or item.module.imports():
        return _row(item)
    started = perf_counter()
    try:
        instance = await instantiate(item.module)
    except Exception as exc:
        return _row(item._replace(error=exc))
    instance.close()
    return _row(item._replace(instance=instance, seconds=item.seconds + perf_counter() - started))


def _row(item: Loaded) -> dict[str, Any]:
    module = item.module
    return {
        "name": item.name,
        "bytes": _file_size(item.name) if module is None else module.byte_length,
        "tier": None if module is None else module.tier,
        "seconds": item.seconds,
        "cached": item.cached,
        "instantiated": item.instance is not None,
        "imports": [] if module is None else [_import_name(each) for each in module.imports()],
        "error": None if item.error is None else error_json(item.error),
    }


def _import_name(declared: Any) -> str:
    return f"{declared.module}.{declared.name}"


def _file_size(name: str) -> int | None:
    try:
        return Path(name).stat().st_size
    except OSError:
        return None


def _note(row: dict[str, Any]) -> str:
    """Return what there is to say of a module, in one line."""
    if row["error"] is not None:
        return first_line(row["error"])
    if row["instantiated"]:
        return ""
    needed = [printable(each) for each in row["imports"]]
    if not needed:
        return "compiled only"
    more = f" and {len(needed) - 3} more" if len(needed) > 3 else ""
    return f"compiled only: needs {', '.join(needed[:3])}{more}"


def _table(rows: list[dict[str, Any]]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Whoever reads a pipe wants each module in one line, however long.
    console = Console(width=None if sys.stdout.isatty() else 10_000)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", overflow="fold")
    for name in ("size", "tier", "seconds", "cached"):
        table.add_column(name, justify="left" if name == "tier" else "right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for row in rows:
        table.add_row(
            Text(printable(row["name"])),
            "-" if row["bytes"] is None else f"{row['bytes']:,}",
            row["tier"] or "-",
            f"{row['seconds']:.4f}",
            "yes" if row["cached"] else "no",
            Text(_note(row), style="" if row["error"] is None else "red"),
        )
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"

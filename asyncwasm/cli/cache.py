"""``asyncwasm cache``: the cache of compiled modules."""

from __future__ import annotations

import click

from .. import cache as face
from ..cache import CacheInfo, Removed
from ._common import columns, counted, json_option, printable, write_json

_directory_option = click.option(
    "--directory",
    default="default",
    metavar="PATH",
    help="Another directory than the default engine's.",
)


@click.group()
def cache() -> None:
    """
    Look at the cache of compiled modules, and empty it.

    Its directory is the user's, or what ASYNCWASM_CACHE_DIR names ("off": there is none).
    """


@cache.command()
@_directory_option
@json_option
def info(directory: str, as_json: bool) -> None:
    """Show where the cache is and how much is in it."""
    found = face.info(directory)
    if as_json:
        write_json(info_json(found))
    elif found.directory is None:
        click.echo("the cache is off")
    else:
        size = f"{found.size_bytes:,} of at most {counted(found.limit_bytes, 'byte')}"
        rows = [
            ("directory", printable(str(found.directory))),
            ("entries", f"{found.entries:,}"),
            ("size", size),
        ]
        if found.problem is not None:
            rows[1:] = [("not usable", printable(found.problem))]
        click.echo("\n".join(columns(rows, indent="")))


@cache.command()
@_directory_option
@click.option(
    "--limit-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Size to prune to; the engine's limit if omitted.",
)
@json_option
def prune(directory: str, limit_bytes: int | None, as_json: bool) -> None:
    """Remove what is of no use any more, and what was not used for longest."""
    _tell(face.prune(directory, limit_bytes=limit_bytes), as_json)


@cache.command()
@_directory_option
@json_option
def clear(directory: str, as_json: bool) -> None:
    """Remove everything."""
    _tell(face.clear(directory), as_json)


def info_json(found: CacheInfo) -> dict[str, object]:
    """Return what is known of a cache as JSON."""
    return {
        "directory": None if found.directory is None else str(found.directory),
        "problem": found.problem,
        "entries": found.entries,
        "bytes": found.size_bytes,
        "limit_bytes": found.limit_bytes,
    }


def _tell(removed: Removed, as_json: bool) -> None:
    if as_json:
        write_json({"removed_entries": removed.entries, "removed_bytes": removed.size_bytes})
    else:
        modules = counted(removed.entries, "compiled module")
        click.echo(f"removed {modules}, {counted(removed.size_bytes, 'byte')}")

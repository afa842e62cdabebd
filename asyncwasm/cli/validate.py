"""``asyncwasm validate``: whether files are modules, and if not, why."""

from __future__ import annotations

from typing import Any

import anyio
import click

from .._api import compile as compile_module
from .._api import validate as is_valid
from .._errors import CompileError
from ._common import described, error_json, json_option, printable, read_module, write_json


def check(binary: bytes) -> CompileError | None:
    """Return why *binary* is no valid module, or None if it is one."""
    if is_valid(binary):
        return None

    async def explain() -> CompileError | None:
        try:
            await compile_module(binary)
        except CompileError as exc:
            return exc
        return None

    # The compiler validates first, and tells what it found.
    return anyio.run(explain)


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(allow_dash=True), metavar="FILE..."
)
@json_option
@click.pass_context
def validate(ctx: click.Context, files: tuple[str, ...], as_json: bool) -> None:
    """Say of each FILE whether it is a valid module; exit code 1 if one is not."""
    rows: list[dict[str, Any]] = []
    for file in files:
        error: Exception | None
        try:
            error = check(read_module(file))
        except (CompileError, OSError) as exc:
            error = exc
        rows.append(
            {
                "file": file,
                "valid": error is None,
                "error": None if error is None else error_json(error),
            }
        )
        if not as_json:
            verdict = "valid" if error is None else described(error)
            click.echo(f"{printable(file)}: {verdict}")
    if as_json:
        write_json({"files": rows})
    if not all(row["valid"] for row in rows):
        ctx.exit(1)

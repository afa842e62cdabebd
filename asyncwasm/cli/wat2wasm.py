"""``asyncwasm wat2wasm``: text format to binary."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import click

from ._common import (
    counted,
    file_argument,
    json_option,
    printable,
    text_to_binary,
    write_json,
)


@click.command()
@file_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(allow_dash=True),
    help='Where the binary goes; FILE with the ending .wasm if omitted, "-" for standard output.',
)
@json_option
def wat2wasm(file: str, output: str | None, as_json: bool) -> None:
    """Turn the text format in FILE into a binary."""
    if output is None:
        if file == "-":
            raise click.UsageError("standard input has no name: say where to with -o")
        output = str(Path(file).with_suffix(".wasm"))
    if output == "-" and as_json:
        raise click.UsageError("--json and -o - both write to standard output")
    if output != "-" and file != "-" and Path(output).resolve() == Path(file).resolve():
        raise click.UsageError(f"{printable(file)} is the input: say where to with -o")

    binary = text_to_binary(sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes())
    if output == "-":
        sys.stdout.buffer.write(binary)
        sys.stdout.buffer.flush()
        return
    Path(output).write_bytes(binary)
    if as_json:
        digest = hashlib.sha256(binary).hexdigest()
        write_json({"file": file, "output": output, "bytes": len(binary), "digest": digest})
    else:
        click.echo(f"{printable(output)}: {counted(len(binary), 'byte')}")

"""
The command line: one command a module, each with ``--help`` and ``--json``.

Rule 1: stdout carries results and nothing else; progress, notes and errors go to stderr.
Rule 2: what comes out of a module (names above all) is made printable before it is printed.
Rule 3: with ``--json``, stdout is one JSON document, or nothing where there is no result.
"""

from __future__ import annotations

from typing import Any

import click

from .._errors import WasmError
from .._version import __version__
from ._common import described
from .bench import bench
from .cache import cache
from .compile import compile_
from .inspect import inspect
from .load import load
from .run import run
from .validate import validate
from .wat2wasm import wat2wasm

__all__ = ("commands",)


class _Commands(click.Group):
    """Commands whose expected errors are one line, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (WasmError, OSError) as exc:
            raise click.ClickException(described(exc)) from exc


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="asyncwasm")
def commands() -> None:
    """
    Look at WebAssembly modules, run them, load many of them at once.

    A FILE is a binary, or the text format if it is called *.wat; "-" is standard input.
    """


for _command in (inspect, run, load, compile_, cache, bench, validate, wat2wasm):
    commands.add_command(_command)

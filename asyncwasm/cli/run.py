"""``asyncwasm run``: call one export of a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import click

from .._api import compile as compile_module
from .._api import instantiate
from .._errors import Interrupted, LinkError, WasmError
from .._objects.function import ExportedFunction
from .._objects.module import Module
from .._runtime.config import Limits
from .._types import FunctionType, ImportDescriptor, ValueType
from ._common import (
    counted,
    described,
    error_json,
    file_argument,
    json_option,
    plain,
    printable,
    read_module,
    type_text,
    write_json,
)

_DEFAULTS = ("_start", "main", "run")


@click.command(context_settings={"ignore_unknown_options": True})  # for numbers below zero
@file_argument
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
@click.option(
    "--invoke",
    metavar="NAME",
    help=f"The export to call; one of {', '.join(_DEFAULTS)} if omitted.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop the guest after that time.",
)
@click.option(
    "--fuel",
    type=click.IntRange(min=0, max=(1 << 63) - 1),
    metavar="N",
    help="Stop the guest after N units of work, about one an instruction.",
)
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    *,
    file: str,
    arguments: tuple[str, ...],
    invoke: str | None,
    timeout_seconds: float | None,
    fuel: int | None,
    as_json: bool,
) -> None:
    """
    Call an export of FILE with ARGS and print what it returns.

    ARGS are converted as the export's type asks: integers (also 0x..., 0b...), floats (also
    inf, nan, 0x1.8p3), 32 hexadecimal digits for v128, text for externref; null for a reference.
    The module gets no imports. Exit code 1 if the guest traps or is stopped.
    """
    name = invoke or ""
    results: list[Any] = []
    error: Exception | None = None

    async def call() -> None:
        nonlocal name
        module = await compile_module(read_module(file))
        missing = module.imports()
        if missing:
            raise LinkError(_explain(file, missing))
        name = _choose(module, invoke)
        type = _function_type(module, name)
        values = _convert(type, arguments, name)
        limits = None if fuel is None else Limits(fuel=fuel)
        with anyio.fail_after(timeout_seconds):
            async with await instantiate(module, limits=limits) as instance:
                function: ExportedFunction = instance.exports[name]
                value = await function.call_async(*values)
        results.extend(value if isinstance(value, tuple) else [value] * len(type.results))

    try:
        anyio.run(call)
    except TimeoutError:
        error = TimeoutError(f"stopped after {timeout_seconds:g} s")
    except Interrupted as exc:
        error = Interrupted(exc.reason, f"stopped after {fuel} units of fuel", exc.code, exc.frames)
    except WasmError as exc:
        error = exc
    if as_json:
        write_json(
            {
                "file": file,
                "function": name or None,
                "results": None if error else [plain(each) for each in results],
                "error": None if error is None else error_json(error),
            }
        )
    elif error is None:
        for each in results:
            click.echo(printable(_text(each)))
    if error is not None:
        click.echo(f"Error: {described(error)}", err=True)
        ctx.exit(1)


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return value.hex() if isinstance(value, bytes) else str(value)


def _choose(module: Module, invoke: str | None) -> str:
    functions = [each.name for each in module.exports() if each.kind == "function"]
    for name in _DEFAULTS if invoke is None else (invoke,):
        if name in functions:
            return name
    listed = (
        f"it exports {', '.join(map(printable, functions))}" if functions else "it exports none"
    )
    if invoke is None:
        raise click.UsageError(
            f"no function called {', '.join(_DEFAULTS[:-1])} or {_DEFAULTS[-1]}; "
            f"choose one with --invoke: {listed}"
        )
    raise click.UsageError(f"no function called {printable(invoke)}: {listed}")


def _function_type(module: Module, name: str) -> FunctionType:
    for each in module.exports():
        if each.name == name and isinstance(each.type, FunctionType):
            return each.type
    raise AssertionError(name)


def _explain(file: str, missing: Sequence[ImportDescriptor]) -> str:
    lines = [
        f"{printable(file)} needs {counted(len(missing), 'import')}, and nothing is there for "
        "a module that runs alone:"
    ]
    lines += [
        f"  {printable(each.module)}.{printable(each.name)}: {each.kind} {type_text(each.type)}"
        for each in missing
    ]
    if any(each.module.startswith("wasi_") for each in missing):
        lines.append("It is a WASI program; those need a host that gives them files and a clock.")
    lines.append("From Python: asyncwasm.instantiate(source, {module: {name: value}}).")
    return "\n".join(lines)


def _convert(type: FunctionType, arguments: Sequence[str], name: str) -> list[Any]:
    if not any(parameter.heap == "extern" for parameter in type.parameters):
        for argument in arguments:
            # Numbers can be below zero, so a misspelt option gets this far.
            if argument.startswith("--"):
                raise click.NoSuchOption(argument)
    if len(arguments) != len(type.parameters):
        raise click.UsageError(
            f"{printable(name)} {type} takes {counted(len(type.parameters), 'argument')}, "
            f"got {len(arguments)}"
        )
    return [
        _value(parameter, argument)
        for parameter, argument in zip(type.parameters, arguments, strict=True)
    ]


def _value(type: ValueType, text: str) -> Any:
    """Return the argument *text* as a value of *type*."""
    if type.is_reference and type.nullable and text == "null":
        return None
    if type.heap == "extern":
        return text
    if type.is_reference:
        raise click.UsageError(f"a value of {type} cannot be written, except for null")
    try:
        if type in ("i32", "i64"):
            number = int(text, 0)
            if -1 << (int(type[1:]) - 1) <= number < 1 << int(type[1:]):
                return number
        elif type in ("f32", "f64"):
            return float.fromhex(text) if "x" in text.lower() else float(text)
        elif len(value := bytes.fromhex(text.removeprefix("0x"))) == 16:
            return value
    except (ValueError, OverflowError):
        pass
    raise click.UsageError(f"expected {type}, got {printable(text)!r}")

"""``asyncwasm bench``: how long it takes to get a module going."""

from __future__ import annotations

import statistics
from time import perf_counter
from typing import Any, Literal

import anyio
import click

from .._api import compile as compile_module
from .._api import instantiate
from .._api import validate as is_valid
from .._objects.engine import Engine
from .._runtime.config import EngineConfig, Tier
from ._common import (
    columns,
    counted,
    file_argument,
    json_option,
    printable,
    read_module,
    write_json,
)

_EMPTY = b"\0asm\1\0\0\0"


@click.command()
@file_argument
@click.option(
    "-n",
    "--repeat",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="How often.",
)
@click.option(
    "--tier",
    type=click.Choice(["baseline", "optimized"]),
    default="optimized",
    show_default=True,
    help="Which compiler to measure.",
)
@json_option
def bench(file: str, repeat: int, tier: Literal["baseline", "optimized"], as_json: bool) -> None:
    """
    Measure how long FILE takes to validate, compile and instantiate.

    Every compilation is cold: an engine of its own, and no cache. A module that needs imports is
    not instantiated.
    """
    binary = read_module(file)
    seconds = anyio.run(_measure, binary, repeat, tier)
    steps: dict[str, Any] = {
        step: {"median_seconds": statistics.median(taken), "least_seconds": min(taken)}
        if taken
        else None
        for step, taken in seconds.items()
    }
    if as_json:
        write_json({"file": file, "bytes": len(binary), "tier": tier, "repeat": repeat, **steps})
        return
    click.echo(
        f"{printable(file)}: {counted(len(binary), 'byte')}, {tier}, median (least) of {repeat}"
    )
    click.echo(
        "\n".join(
            columns(
                [
                    (
                        step,
                        f"{1000 * taken['median_seconds']:9.3f} ms "
                        f"({1000 * taken['least_seconds']:.3f})"
                        if taken
                        else "needs imports",
                    )
                    for step, taken in steps.items()
                ]
            )
        )
    )


async def _measure(binary: bytes, repeat: int, tier: Tier) -> dict[str, list[float]]:
    """Return the seconds of each step, once for each repetition."""
    seconds: dict[str, list[float]] = {"validate": [], "compile": [], "instantiate": []}
    for _ in range(repeat):
        with Engine(EngineConfig(tier=tier)) as engine:
            # The first module makes the native engine, which is no part of compiling this one.
            await compile_module(_EMPTY, engine=engine)
            started = perf_counter()
            is_valid(binary, engine=engine)
            validated = perf_counter()
            module = await compile_module(binary, engine=engine)
            compiled = perf_counter()
            seconds["validate"].append(validated - started)
            seconds["compile"].append(compiled - validated)
            if module.imports():
                continue
            started = perf_counter()
            instance = await instantiate(module)
            seconds["instantiate"].append(perf_counter() - started)
            instance.close()
    return seconds

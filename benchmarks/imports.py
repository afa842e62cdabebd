"""
What it costs when a guest calls Python: ``python -m benchmarks.imports``.

"In a loop" is one call whose guest calls its import 1,000 times, for each import; "round trip"
is one call that calls its import once. The other side of an asynchronous import is what one
does without one: wasmtime-py in a worker thread, and `asyncio.run_coroutine_threadsafe`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from ._guests import CALLER, ours, peer
from ._measure import (
    WASMTIME,
    Figure,
    Options,
    in_turn,
    in_turn_async,
    inline,
    inline_async,
    run_alone,
)

IMPORTS = 1_000


def identity(value: int) -> int:
    """Be a synchronous import."""
    return value


async def at_once(value: int) -> int:
    """Be an asynchronous import that never waits."""
    return value


async def waiting(value: int) -> int:
    """Be an asynchronous import that lets the event loop go round once."""
    await asyncio.sleep(0)
    return value


def synchronous(options: Options) -> Iterator[Figure]:
    """Yield the figures of calls without an event loop."""
    mine = ours(CALLER, {"host": {"f": identity}})
    for name, times, shown in (("loop", IMPORTS, "in a loop"), ("one", 1, "round trip")):
        function, store = peer(CALLER, name, [identity])
        yield Figure.pair(
            f"synchronous call, synchronous import, {shown}",
            "us",
            WASMTIME,
            in_turn(
                inline("f(n)", f=mine[name], n=times),
                inline("f(s, n)", f=function, s=store, n=times),
                options,
                each=times,
            ),
        )


async def awaited(options: Options) -> AsyncIterator[Figure]:
    """Yield the figures of awaited calls."""
    running = asyncio.get_running_loop()

    def through_the_loop(function: Any) -> Any:
        return lambda value: asyncio.run_coroutine_threadsafe(function(value), running).result()

    imports = {
        "synchronous import": (identity, identity),
        "async import that returns at once": (at_once, through_the_loop(at_once)),
        "async import that waits": (waiting, through_the_loop(waiting)),
    }
    for what, (mine, theirs) in imports.items():
        exports = ours(CALLER, {"host": {"f": mine}})
        for name, times, shown in (("loop", IMPORTS, "in a loop"), ("one", 1, "round trip")):
            function, store = peer(CALLER, name, [theirs])
            yield Figure.pair(
                f"awaited call, {what}, {shown}",
                "us",
                "wasmtime-py in a thread" + (" and the loop" if theirs is not identity else ""),
                await in_turn_async(
                    inline_async("f(n)", f=exports[name].call_async, n=times),
                    inline_async("t(f, s, n)", t=asyncio.to_thread, f=function, s=store, n=times),
                    options,
                    each=times,
                ),
            )


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    yield from synchronous(options)

    async def collected() -> list[Figure]:
        return [figure async for figure in awaited(options)]

    yield from asyncio.run(collected())


if __name__ == "__main__":
    run_alone("imports", measure, __doc__)

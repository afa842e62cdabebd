"""
Whether awaited calls use several processors: ``python -m benchmarks.parallel``.

Two CPU-bound calls at once, in instances of their own, against one of the same length; the same
with wasmtime-py in threads. Target on two idle processors: two take at most 1.2 times as long as
one.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Iterator
from typing import Any

import asyncwasm as aw

from ._guests import SPIN, module, peer
from ._measure import Figure, Options, run_alone
from .heartbeat import steps_for


async def seconds(*calls: Awaitable[Any]) -> float:
    """Return how long it takes to await *calls* together."""
    started = time.perf_counter()
    await asyncio.gather(*calls)
    return time.perf_counter() - started


async def compared(options: Options) -> list[Figure]:
    """Return the figures."""
    compiled = module(SPIN)
    works = [aw.Instance(compiled).exports.work.call_async for _ in range(2)]
    peers = [peer(SPIN, "work") for _ in range(2)]
    steps = steps_for(0.05 if options.quick else 0.5, lambda n: peers[0][0](peers[0][1], n))
    in_threads = [
        lambda steps, work=work, store=store: asyncio.to_thread(work, store, steps)
        for work, store in peers
    ]
    ratios: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for _ in range(options.rounds):
        for name, sides in (("ours", works), ("theirs", in_threads)):
            one = await seconds(sides[0](steps))
            both = await seconds(*(side(steps) for side in sides))
            ratios[name].append((one, both))
    mine, theirs = (
        statistics.median(both / one for one, both in ratios[name]) for name in ("ours", "theirs")
    )
    one = statistics.median(one for one, _ in ratios["ours"])
    one_there = statistics.median(one for one, _ in ratios["theirs"])
    return [
        Figure(
            name="one CPU-bound call",
            unit="s",
            ours=one,
            other="wasmtime-py in a thread",
            theirs=one_there,
            ratio=one_there / one,
            note="ours counts ticks, so that it can be stopped",
        ),
        Figure(
            name="two at once, compared with one",
            unit="times",
            ours=mine,
            other="wasmtime-py in threads",
            theirs=theirs,
            ratio=theirs / mine,
            at_most=1.2,
        ),
    ]


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    yield from asyncio.run(compared(options))


if __name__ == "__main__":
    run_alone("parallel", measure, __doc__)

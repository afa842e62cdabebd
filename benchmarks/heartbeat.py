"""
How late the event loop gets while guests compile and run: ``python -m benchmarks.heartbeat``.

A task sleeps for 1 ms again and again, and notes how late it wakes. Each load runs through
asyncwasm and through wasmtime-py in worker threads (`asyncio.to_thread`), in one process, in turn.
The lines are the median, the 99th percentile and the worst of all beats. ``--wasm`` names a
large module to compile (such as esbuild.wasm of the npm package esbuild-wasm); a generated
module of about 2 MB if omitted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import wasmtime

import asyncwasm as aw

from ._guests import SPIN, generated, module, peer
from ._measure import Figure, Options, quantile, run_alone

BEAT_SECONDS = 0.001
CALLS_PER_SECOND = 1_000
QUANTILES = {"p50": 50, "p99": 99, "max": 100}
TARGETS = {"p99": 6.0, "max": 25.0}  # ms
Load: TypeAlias = Callable[[], Awaitable[Any]]


async def lateness(load: Load) -> tuple[list[float], float]:
    """Return how late each beat was while *load* ran, in ms, and how long it ran, in s."""
    late: list[float] = []

    async def beat() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(BEAT_SECONDS)
            late.append((time.perf_counter() - before - BEAT_SECONDS) * 1000)

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0.05)
    late.clear()
    started = time.perf_counter()
    await load()
    seconds = time.perf_counter() - started
    await asyncio.sleep(0.002)  # the beat that the load's end held up counts, too
    beating.cancel()
    return late, seconds


def steps_for(seconds: float, work: Callable[[int], Any]) -> int:
    """Return how many rounds of the guest take so long on this machine."""
    steps = 1_000_000
    while True:
        started = time.perf_counter()
        work(steps)
        taken = time.perf_counter() - started
        if taken > 0.05:
            return int(steps * seconds / taken)
        steps *= 4


async def paced(seconds: float, call: Callable[[], Awaitable[Any]]) -> None:
    """Make short calls, one each millisecond as far as the machine keeps up."""
    for _ in range(int(seconds * CALLS_PER_SECOND)):
        await call()
        await asyncio.sleep(1 / CALLS_PER_SECOND)


def loads(options: Options) -> Iterator[tuple[str, Load, Load]]:
    """Yield each load: a name, and how each side does it."""
    seconds = 0.1 if options.quick else 2.0
    if options.wasm is not None:
        wasm = Path(options.wasm).read_bytes()
    else:
        wasm = generated(40 if options.quick else 800)
    compiled = module(SPIN)
    work, store = peer(SPIN, "work")
    steps = steps_for(seconds, lambda steps: work(store, steps))

    async def ours_guests(count: int) -> None:
        made = [aw.Instance(compiled) for _ in range(count)]
        await asyncio.gather(*(each.exports.work.call_async(steps // count) for each in made))

    async def peer_guests(count: int) -> None:
        made = [peer(SPIN, "work") for _ in range(count)]
        await asyncio.gather(
            *(asyncio.to_thread(function, store, steps // count) for function, store in made)
        )

    async def idle() -> None:
        await asyncio.sleep(seconds)

    yield "nothing", idle, idle
    for count in (1, 2, 8):
        name = f"{count} CPU-bound guest{'s' * (count > 1)}"
        yield name, partial(ours_guests, count), partial(peer_guests, count)

    call = aw.Instance(compiled).exports.add.call_async
    add, add_store = peer(SPIN, "add")
    yield (
        f"{CALLS_PER_SECOND:,} short calls a second",
        lambda: paced(seconds, lambda: call(1, 2)),
        lambda: paced(seconds, lambda: asyncio.to_thread(add, add_store, 1, 2)),
    )
    yield (
        f"compiling {len(wasm) / 1e6:.1f} MB",
        lambda: aw.compile(wasm, engine=aw.Engine()),
        lambda: asyncio.to_thread(wasmtime.Module, wasmtime.Engine(), wasm),
    )


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    for name, ours, theirs in loads(options):
        mine, mine_seconds = asyncio.run(lateness(ours))
        others, others_seconds = asyncio.run(lateness(theirs))
        if not mine or not others:
            yield Figure(name=name, unit="ms", note="over before the first beat")
            continue
        for shown, percent in QUANTILES.items():
            late, peer_late = quantile(mine, percent), quantile(others, percent)
            yield Figure(
                name=f"{name}: {shown}",
                unit="ms",
                ours=late,
                other="wasmtime-py in threads",
                theirs=peer_late,
                ratio=peer_late / late if late > 0 else None,
                at_most=None if name == "nothing" else TARGETS.get(shown),
                details={
                    "beats": len(mine),
                    "seconds": mine_seconds,
                    "other beats": len(others),
                    "other seconds": others_seconds,
                },
            )


if __name__ == "__main__":
    run_alone("heartbeat", measure, __doc__)

"""
How long cancelling takes, whatever the guest does: ``python -m benchmarks.cancellation``.

From `task.cancel()` to the moment when the task that awaited the guest has ended, 200 times each.
Targets: 10 ms in the median, 50 ms in the worst case. Threads cannot be cancelled at all, so there
is no other side.

One instruction is what the engine cannot interrupt: how long those take that work on many bytes or
entries at once is measured, too.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import asyncwasm as aw

from ._guests import CALLER, SPIN, generated, module
from ._measure import Figure, Options, run_alone

STARTER = '(module (func $start (loop (br 0))) (start $start) (func (export "add")))'
NESTER = """(module
  (import "host" "f" (func $f (param i32)))
  (func (export "nest") (param i32) (call $f (local.get 0)))
  (func (export "spin") (loop (br 0))))"""
PAGES, ENTRIES = 1024, 1_000_000  # 64 MiB
BULK = f"""(module
  (memory {PAGES})
  (table {ENTRIES} funcref)
  (func (export "memory.fill")
    (memory.fill (i32.const 0) (i32.const 1) (i32.const {PAGES << 16})))
  (func (export "memory.copy")
    (memory.copy (i32.const 0) (i32.const {PAGES << 15}) (i32.const {PAGES << 15})))
  (func (export "table.fill")
    (table.fill (i32.const 0) (ref.null func) (i32.const {ENTRIES})))
  (func (export "memory.fill again and again")
    (loop (memory.fill (i32.const 0) (i32.const 1) (i32.const {PAGES << 16})) (br 0))))"""
DEPTH = 3
MEDIAN_MS, WORST_MS = 10, 50
Start: TypeAlias = Callable[[], Coroutine[Any, Any, Any]]


@asynccontextmanager
async def spinning() -> AsyncIterator[Start]:
    """A guest that never returns and calls nothing."""
    with aw.Instance(module(SPIN)) as instance:
        yield instance.exports.spin.call_async


@asynccontextmanager
async def waiting() -> AsyncIterator[Start]:
    """A guest that waits for an async import."""

    async def forever(value: int) -> int:
        await asyncio.Event().wait()
        return value

    with aw.Instance(module(CALLER), {"host": {"f": forever}}) as instance:
        yield lambda: instance.exports.one.call_async(1)


@asynccontextmanager
async def queued() -> AsyncIterator[Start]:
    """A call behind another one, which waits."""
    async with waiting() as start:
        first = asyncio.create_task(start())
        await asyncio.sleep(0.01)
        yield start
        first.cancel()
        await asyncio.wait([first])


@asynccontextmanager
async def starting() -> AsyncIterator[Start]:
    """An instance whose start function never returns."""
    compiled = module(STARTER)
    yield lambda: aw.instantiate(compiled)


@asynccontextmanager
async def nested() -> AsyncIterator[Start]:
    """Three calls deep: each but the last waits for an import, which awaits the next."""

    async def deeper(depth: int) -> None:
        if depth == 1:
            await instance.exports.spin.call_async()
        else:
            await instance.exports.nest.call_async(depth - 1)

    with aw.Instance(module(NESTER), {"host": {"f": deeper}}) as instance:
        yield lambda: instance.exports.nest.call_async(DEPTH - 1)


@asynccontextmanager
async def filling() -> AsyncIterator[Start]:
    """A guest that fills 64 MiB again and again."""
    with aw.Instance(module(BULK)) as instance:
        yield instance.exports["memory.fill again and again"].call_async


def one_instruction(name: str, times: int) -> float:
    """Return how long an instruction takes at worst, in ms; in a fresh instance each time."""
    taken = []
    for _ in range(times):
        with aw.Instance(module(BULK)) as instance:
            function = instance.exports[name]
            before = time.perf_counter()
            function()
            taken.append((time.perf_counter() - before) * 1000)
    return max(taken)


class Compiling:
    """Compilations of a large module, begun again when one is finished."""

    def __init__(self, functions: int) -> None:
        self.wasm = generated(functions)
        self.engine = aw.Engine()
        self.begun = 0

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Start]:
        """Somebody who awaits the compilation."""
        yield self.start
        self.engine.close()

    async def start(self) -> None:
        while True:  # whoever is cancelled leaves the compilation to the next
            await aw.compile(self.wasm, engine=self.engine)
            self.engine = aw.Engine()
            self.begun += 1


async def latencies(kind: Callable[[], Any], times: int) -> list[float]:
    """Return how long each cancellation took, in ms."""
    chance = random.Random(1)
    taken = []
    async with kind() as start:
        for _ in range(times):
            task = asyncio.create_task(start())
            # Some are still on the event loop's thread by then, some on a worker.
            await asyncio.sleep(chance.uniform(0.001, 0.02))
            before = time.perf_counter()
            task.cancel()
            await asyncio.wait([task])
            taken.append((time.perf_counter() - before) * 1000)
            assert task.cancelled(), task
    return taken


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    times = 5 if options.quick else 200
    kinds: dict[str, Callable[[], Any]] = {
        "spinning": spinning,
        "waiting in an async import": waiting,
        "queued behind another call": queued,
        "in a start function": starting,
        "in nested calls three deep": nested,
        "filling 64 MiB again and again": filling,
        "compiling a large module": Compiling(200 if options.quick else 2_000),
    }
    for name, kind in kinds.items():
        taken = asyncio.run(latencies(kind, times))
        yield Figure(
            name=f"{name}: median", unit="ms", ours=statistics.median(taken), at_most=MEDIAN_MS
        )
        yield Figure(
            name=f"{name}: worst of {times}",
            unit="ms",
            ours=max(taken),
            at_most=None if kind is filling else WORST_MS,
        )
    for name, amount in (
        ("memory.fill", "64 MiB"),
        ("memory.copy", "32 MiB"),
        ("table.fill", f"{ENTRIES:,} entries"),
    ):
        yield Figure(
            name=f"one {name} of {amount}, which cannot be interrupted: worst of 10",
            unit="ms",
            ours=one_instruction(name, 2 if options.quick else 10),
        )


if __name__ == "__main__":
    run_alone("cancellation", measure, __doc__)

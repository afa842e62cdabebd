"""
How late the event loop gets while guests compile and run: ``python -m benchmarks.heartbeat [WASM]``.

A task sleeps for 1 ms again and again, and notes how late it wakes. Each load runs through
asyncwasm and through wasmtime-py in worker threads (`asyncio.to_thread`), in one process, in turn.
WASM is a large module to compile (such as esbuild.wasm of the npm package esbuild-wasm); a
generated module of about 2 MB if omitted.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import wasmtime

import asyncwasm as aw

BEAT_SECONDS = 0.001
SPIN = """(module
  (func (export "work") (param $n i64) (result i64) (local $x i64)
    (loop
      (local.set $x (i64.add (i64.mul (local.get $x) (i64.const 6364136223846793005)) (i64.const 1)))
      (br_if 0 (i64.ne (i64.const 0) (local.tee $n (i64.sub (local.get $n) (i64.const 1))))))
    (local.get $x))
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))"""


def generated() -> bytes:
    """Return a module of about 2 MB."""
    body = "(local.set 0 (i32.add (i32.mul (local.get 0) (i32.const 7)) (i32.const 3)))" * 300
    functions = "".join(
        f'(func (export "f{index}") (param i32) (result i32) {body} (local.get 0))'
        for index in range(800)
    )
    return aw.wat2wasm(f"(module {functions})")


async def lateness(load: Callable[[], Awaitable[Any]]) -> tuple[list[float], float]:
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
    beating.cancel()
    return late, seconds


def loads(
    wasm: bytes,
) -> dict[str, tuple[Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]]]]:
    """Return the loads: a name, and how each side does it."""
    steps = 400_000_000
    module = aw.Module(aw.wat2wasm(SPIN))
    engine = wasmtime.Engine()
    peer_module = wasmtime.Module(engine, SPIN)

    def peer(name: str) -> Callable[..., Any]:
        store = wasmtime.Store(engine)
        function = wasmtime.Instance(store, peer_module, []).exports(store)[name]
        return lambda *arguments: function(store, *arguments)  # type: ignore[operator]

    async def ours_guests(count: int) -> None:
        calls = [aw.Instance(module).exports.work.call_async(steps // count) for _ in range(count)]
        await asyncio.gather(*calls)

    async def peer_guests(count: int) -> None:
        await asyncio.gather(
            *(asyncio.to_thread(peer("work"), steps // count) for _ in range(count))
        )

    async def ours_short() -> None:
        add = aw.Instance(module).exports.add
        for _ in range(1000):
            await add.call_async(1, 2)
            await asyncio.sleep(0)

    async def peer_short() -> None:
        add = peer("add")
        for _ in range(1000):
            await asyncio.to_thread(add, 1, 2)

    async def ours_compile() -> None:
        await aw.compile(wasm, engine=aw.Engine())

    async def peer_compile() -> None:
        await asyncio.to_thread(wasmtime.Module, wasmtime.Engine(), wasm)

    return {
        f"compile {len(wasm) / 1e6:.1f} MB": (ours_compile, peer_compile),
        **{
            f"{count} CPU-bound guest{'s' * (count > 1)}": (
                lambda count=count: ours_guests(count),
                lambda count=count: peer_guests(count),
            )
            for count in (1, 2, 8)
        },
        "1,000 short calls": (ours_short, peer_short),
    }


def row(name: str, side: str, late: list[float], seconds: float) -> str:
    """Return one line of the table."""
    quantiles = statistics.quantiles(late, n=100) if len(late) > 2 else [0.0] * 99
    return (
        f"{name:24} {side:12} {quantiles[49]:8.2f} {quantiles[98]:8.2f} "
        f"{max(late, default=0):8.2f} {len(late):7} {seconds:8.2f}"
    )


async def main() -> None:
    """Print the table."""
    wasm = Path(sys.argv[1]).read_bytes() if len(sys.argv) > 1 else generated()
    print(f"CPython {platform.python_version()}, {os.cpu_count()} processors, 1 ms heartbeat")
    print(f"{'load':24} {'':12} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'beats':>7} {'s':>8}")
    for name, (ours, peer) in loads(wasm).items():
        for side, load in (("asyncwasm", ours), ("wasmtime-py", peer)):
            print(row(name, side, *await lateness(load)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())

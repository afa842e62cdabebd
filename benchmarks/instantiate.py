"""
What an instance costs, against wasmtime-py and Node: ``python -m benchmarks.instantiate``.

Ours and wasmtime-py's are measured in turn, several times, and the median of the ratios is
printed: the machine's speed cancels out. ``ASYNCWASM_PURE=1`` measures without the accelerator,
``--json FILE`` writes the figures down.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import wasmtime

import asyncwasm as aw
from asyncwasm._ffi.accelerator import speedups

TEXT = """(module (memory (export "memory") 1) (data (i32.const 0) "asyncwasm")
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))"""
IMPORTING = """(module (import "host" "f" (func $f (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))"""
NODE = """
const module = new WebAssembly.Module(Buffer.from(process.argv[1], 'hex'));
const imports = {host: {f: x => x}};
function round(count, call) {
  const started = process.hrtime.bigint();
  for (let i = 0; i < count; i++) {
    const instance = new WebAssembly.Instance(module, imports);
    if (call) instance.exports.add(1, 2);
  }
  return Number(process.hrtime.bigint() - started) / 1e9 / count;
}
const seconds = {plain: [], called: []};
for (let i = 0; i < 7; i++) {
  seconds.plain.push(round(1000, false));
  seconds.called.push(round(1000, true));
}
console.log(JSON.stringify(seconds));
"""
ROUNDS, COUNT = 7, 1000

Measure = Callable[[], Coroutine[Any, Any, float]]


def timed(action: Callable[[], Any], count: int = COUNT) -> Measure:
    """Return what measures *action*, in seconds."""

    async def measure() -> float:
        started = time.perf_counter()
        for _ in range(count):
            action()
        return (time.perf_counter() - started) / count

    return measure


def awaited(action: Callable[[], Coroutine[Any, Any, Any]], count: int = COUNT) -> Measure:
    """Return what measures awaiting *action*, in seconds."""

    async def measure() -> float:
        started = time.perf_counter()
        for _ in range(count):
            await action()
        return (time.perf_counter() - started) / count

    return measure


def peers(text: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what makes an instance of wasmtime-py's, and what calls it, too."""
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, text)
    kind = wasmtime.FuncType([wasmtime.ValType.i32()], [wasmtime.ValType.i32()])

    def make() -> tuple[Any, Any]:
        store = wasmtime.Store(engine)
        made = [wasmtime.Func(store, kind, lambda x: x)] if module.imports else []
        return store, wasmtime.Instance(store, module, made)

    def call() -> None:
        store, instance = make()
        instance.exports(store)["add"](store, 1, 2)

    return make, call


def ours(text: str, imports: Any) -> dict[str, tuple[Measure, bool]]:
    """Return ways to an instance, each with whether it is called."""
    module = aw.Module(aw.wat2wasm(text))
    pooled = aw.Module(aw.wat2wasm(text), engine=aw.Engine(aw.EngineConfig(pooling=True)))
    pool = aw.InstancePool(module, imports, max_instances=4)

    def plain(module: aw.Module = module) -> None:
        aw.Instance(module, imports).close()

    def plain_called(module: aw.Module = module) -> None:
        with aw.Instance(module, imports) as instance:
            instance.exports.add(1, 2)

    async def instantiated() -> None:
        instance = await aw.instantiate(module, imports)
        await instance.exports.add.call_async(1, 2)
        instance.close()

    async def acquired() -> None:
        async with pool.acquire():
            pass

    async def acquired_called() -> None:
        async with pool.acquire() as instance:
            instance.exports.add(1, 2)

    async def acquired_awaited() -> None:
        async with pool.acquire() as instance:
            await instance.exports.add.call_async(1, 2)

    return {
        "Instance()": (timed(plain), False),
        "Instance(), call": (timed(plain_called), True),
        "Instance(), pooling engine": (timed(lambda: plain(pooled)), False),
        "Instance(), pooling engine, call": (timed(lambda: plain_called(pooled)), True),
        "await instantiate(), call_async": (awaited(instantiated), True),
        "InstancePool.acquire()": (awaited(acquired), False),
        "InstancePool.acquire(), call": (awaited(acquired_called), True),
        "InstancePool.acquire(), call_async": (awaited(acquired_awaited), True),
    }


def node(text: str) -> dict[bool, float]:
    """Return seconds of Node's, without and with a call; nothing where there is no Node."""
    program = shutil.which("node")
    if program is None:
        return {}
    done = subprocess.run(
        [program, "-e", NODE, aw.wat2wasm(text).hex()], capture_output=True, check=True
    )
    found = json.loads(done.stdout)
    return {
        False: statistics.median(found["plain"]),
        True: statistics.median(found["called"]),
    }


async def compare(text: str, imports: Any) -> list[dict[str, Any]]:
    """Measure everything in turn; return a row for each way of ours."""
    theirs = dict(zip((False, True), map(timed, peers(text)), strict=True))
    node_seconds = node(text)
    rows = []
    for name, (measure, called) in ours(text, imports).items():
        await measure()  # warm
        pairs = []
        for _ in range(ROUNDS):
            gc.collect()
            pairs.append((await measure(), await theirs[called]()))
        mine = statistics.median(a for a, _ in pairs)
        rows.append(
            {
                "name": name,
                "microseconds": mine * 1e6,
                "fastest_microseconds": min(a for a, _ in pairs) * 1e6,
                "wasmtime_py_microseconds": statistics.median(b for _, b in pairs) * 1e6,
                "times_faster_than_wasmtime_py": statistics.median(b / a for a, b in pairs),
                "times_faster_than_node": node_seconds.get(called, 0) / mine or None,
            }
        )
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print *rows* as a table."""
    print(f"\n{title:36} {'ours':>9} {'wasmtime-py':>14} {'times':>6} {'node, times':>12}")
    for row in rows:
        beside_node = row["times_faster_than_node"]
        print(
            f"{row['name']:36} {row['microseconds']:6.1f} us "
            f"{row['wasmtime_py_microseconds']:11.1f} us "
            f"{row['times_faster_than_wasmtime_py']:6.1f} "
            f"{'-' if beside_node is None else format(beside_node, '.1f'):>12}"
        )


async def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    options = parser.parse_args()
    facts = {
        "asyncwasm": aw.__version__,
        "wasmtime": version("wasmtime"),
        "accelerator": speedups is not None,
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
    }
    print("# " + ", ".join(f"{key} {value}" for key, value in facts.items()))
    figures = {
        "a module without imports": await compare(TEXT, None),
        "a module with a host function": await compare(IMPORTING, {"host": {"f": lambda x: x}}),
    }
    for title, rows in figures.items():
        show(title, rows)
    if options.json is not None:
        options.json.write_text(json.dumps({**facts, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    anyio.run(main)

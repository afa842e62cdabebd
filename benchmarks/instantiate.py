"""
What an instance costs, against wasmtime-py and Node: ``python -m benchmarks.instantiate``.

Every line makes a store and an instance, and closes them; "called" also looks an export up and
calls it. Node is measured in a process of its own, before the others.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import wasmtime

import asyncwasm as aw

from ._measure import WASMTIME, AsyncAction, Figure, Options, in_turn_async, run_alone

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
const seconds = [[], []];
for (let i = 0; i < 7; i++) {
  seconds[0].push(round(1000, false));
  seconds[1].push(round(1000, true));
}
console.log(JSON.stringify(seconds));
"""
ACQUIRED_MICROSECONDS = 15.0


def timed(action: Callable[[], object]) -> AsyncAction:
    """Return what does *action* so often, and returns the seconds."""

    async def run(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            action()
        return time.perf_counter() - started

    return run


def awaited(action: Callable[[], Awaitable[object]]) -> AsyncAction:
    """Return what awaits *action* so often, and returns the seconds."""

    async def run(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            await action()
        return time.perf_counter() - started

    return run


def peer(text: str) -> tuple[AsyncAction, AsyncAction]:
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

    return timed(make), timed(call)


def ours(text: str, imports: Any) -> dict[str, tuple[AsyncAction, bool]]:
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
        "Instance(), called": (timed(plain_called), True),
        "Instance(), pooling engine": (timed(lambda: plain(pooled)), False),
        "Instance(), pooling engine, called": (timed(lambda: plain_called(pooled)), True),
        "await instantiate(), awaited call": (awaited(instantiated), True),
        "InstancePool.acquire()": (awaited(acquired), False),
        "InstancePool.acquire(), called": (awaited(acquired_called), True),
        "InstancePool.acquire(), awaited call": (awaited(acquired_awaited), True),
    }


def node(text: str) -> list[float] | None:
    """Return seconds of Node's without and with a call; None where there is no Node."""
    program = shutil.which("node")
    if program is None:
        return None
    done = subprocess.run(
        [program, "-e", NODE, aw.wat2wasm(text).hex()], capture_output=True, check=True
    )
    return [statistics.median(each) for each in json.loads(done.stdout)]


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    for what, text, imports in (
        ("no imports", TEXT, None),
        ("a host function", IMPORTING, {"host": {"f": lambda x: x}}),
    ):
        theirs = peer(text)
        beside = node(text)
        for name, (action, called) in ours(text, imports).items():
            anyio.run(action, 200)  # the first makes pools, and loads code into them
            figure = Figure.pair(
                f"{name} ({what})",
                "us",
                WASMTIME,
                anyio.run(in_turn_async, action, theirs[called], options),
                at_most=ACQUIRED_MICROSECONDS
                if name == "InstancePool.acquire()" and imports is None
                else None,
            )
            yield figure
            if beside is None:
                yield Figure(name=f"{name} ({what})", unit="us", note="node was not found")
            else:
                assert figure.ours is not None
                microseconds = beside[called] * 1e6
                yield Figure(
                    name=f"{name} ({what})",
                    unit="us",
                    ours=figure.ours,
                    other="Node",
                    theirs=microseconds,
                    ratio=microseconds / figure.ours,
                )


if __name__ == "__main__":
    run_alone("instantiate", measure, __doc__)

"""
What a call costs, against wasmtime-py and threads: ``python -m benchmarks.calls``.

Each pair is measured in turn, several times, and the median of the ratios is printed: the
machine's speed cancels out. ``ASYNCWASM_PURE=1`` measures without the accelerator.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import anyio
import wasmtime

import asyncwasm as aw
from asyncwasm._ffi.accelerator import speedups

TEXT = """(module
  (import "host" "f" (func $f (param i32) (result i32)))
  (func (export "one") (param i32) (result i32) (call $f (local.get 0)))
  (func (export "loop") (param $n i32) (result i32) (local $sum i32)
    (loop $again
      (local.set $sum (i32.add (local.get $sum) (call $f (local.get $n))))
      (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (local.get $sum)))"""
ADD = """(module (func (export "add") (param i32 i32) (result i32)
  (i32.add (local.get 0) (local.get 1))))"""
ROUNDS = 7


def peer(text: str, name: str, imports: list[Any] | None = None) -> Callable[..., Any]:
    """Return an export of wasmtime-py's."""
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    module = wasmtime.Module(engine, text)
    kind = wasmtime.FuncType([wasmtime.ValType.i32()], [wasmtime.ValType.i32()])
    made = [wasmtime.Func(store, kind, each) for each in imports or []]
    function = wasmtime.Instance(store, module, made).exports(store)[name]
    return lambda *arguments: function(store, *arguments)  # type: ignore[operator]


def ours(text: str, name: str, imports: Any = None) -> Any:
    """Return an export of ours."""
    return aw.Instance(aw.Module(aw.wat2wasm(text)), imports).exports[name]


def seconds(action: Callable[[], Any], count: int) -> float:
    """Return how long *action* takes."""
    started = time.perf_counter()
    for _ in range(count):
        action()
    return (time.perf_counter() - started) / count


def show(name: str, pairs: list[tuple[float, float]], each: int = 1) -> None:
    """Print the medians and the median ratio."""
    mine = statistics.median(a for a, _ in pairs) / each * 1e6
    theirs = statistics.median(b for _, b in pairs) / each * 1e6
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{name:52} {mine:9.2f} us {theirs:9.2f} us {ratio:8.1f} times")


def synchronous() -> None:
    """Calls and imports without an event loop."""
    add, peer_add = ours(ADD, "add"), peer(ADD, "add")
    show(
        "add(i32, i32) / wasmtime-py",
        [
            (seconds(lambda: add(1, 2), 20_000), seconds(lambda: peer_add(1, 2), 2_000))
            for _ in range(ROUNDS)
        ],
    )
    loop = ours(TEXT, "loop", {"host": {"f": lambda x: x}})
    peer_loop = peer(TEXT, "loop", [lambda x: x])
    show(
        "synchronous import / wasmtime-py",
        [
            (seconds(lambda: loop(1_000), 10), seconds(lambda: peer_loop(1_000), 3))
            for _ in range(ROUNDS)
        ],
        each=1_000,
    )


async def awaited() -> None:
    """Awaited calls and async imports."""
    add = ours(ADD, "add")

    async def repeat(action: Callable[[], Any], count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            await action()
        return (time.perf_counter() - started) / count

    show(
        "await add.call_async / anyio.to_thread",
        [
            (
                await repeat(lambda: add.call_async(1, 2), 2_000),
                await repeat(lambda: anyio.to_thread.run_sync(lambda: 3), 500),
            )
            for _ in range(ROUNDS)
        ],
    )

    async def answer(value: int) -> int:
        await asyncio.sleep(0)
        return value

    running = asyncio.get_running_loop()

    def through_the_loop(value: int) -> int:
        return asyncio.run_coroutine_threadsafe(answer(value), running).result()

    one = ours(TEXT, "one", {"host": {"f": answer}})
    show(
        "async import / thread and run_coroutine_threadsafe",
        [
            (
                await repeat(lambda: one.call_async(1), 500),
                await repeat(lambda: asyncio.to_thread(through_the_loop, 1), 200),
            )
            for _ in range(ROUNDS)
        ],
    )


def main() -> None:
    """Print the table."""
    print(
        f"CPython {platform.python_version()}, {os.cpu_count()} processors, "
        f"{'pure Python' if speedups is None else 'accelerated'}, "
        f"wasmtime {version('wasmtime')}"
    )
    print(f"{'':52} {'asyncwasm':>12} {'other':>12} {'faster':>14}")
    synchronous()
    asyncio.run(awaited())


if __name__ == "__main__":
    main()

"""
What many suspended calls cost: ``python -m benchmarks.suspended``.

Calls wait in an async import, all on one thread: in one `Store(interleave=True)`, or in a store
for each call. Counted are the seconds until all wait, and what each takes: resident memory,
Python objects (tracemalloc, in a run of its own) and mappings; the kernel allows 65,530 mappings
to a process unless told otherwise. The same number of tasks that wait without a guest is shown
for comparison. At last, calls that wait and go on one after the other, to see whether resident
memory stays flat.

    python -m benchmarks.suspended --case stores --count 1000 --trace    where the objects are made
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncwasm as aw

from ._guests import CALLER, module
from ._measure import Figure, Options, run_alone

CASES = {
    "store": "in one store",
    "stores": "in a store each",
    "memories": "in a store with a memory each",
    "tasks": "without a guest",
}
MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+) *(.*)$")


def memory() -> dict[str, int]:
    """
    Return resident bytes by kind of mapping, and the number of mappings.

    The heap is the library's, and Python's for large objects; what is anonymous are Python's
    arenas, the stacks of fibers and the memories of guests.
    """
    found = dict.fromkeys(("heap", "anonymous", "files", "resident", "mappings"), 0)
    kind = ""
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as file:
        for text in file:
            mapping = MAPPING.match(text)
            if mapping:
                found["mappings"] += 1
                inode, path = mapping.groups()
                if path == "[heap]":
                    kind = "heap"
                elif inode != "0":
                    kind = "files"
                else:
                    kind = "anonymous"
            elif text.startswith("Rss:"):
                size = int(text.split()[1]) * 1024
                found[kind] += size
                found["resident"] += size
    return found


def resident() -> int:
    """Return the resident bytes of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Gate:
    """An async import that waits until it is let through, and counts who does."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.all_wait = asyncio.Event()
        self.waiting = 0
        self.expected = 0

    async def __call__(self, value: int) -> int:
        self.waiting += 1
        if self.waiting == self.expected:
            self.all_wait.set()
        await self.opened.wait()
        return value

    async def reached(self, call: Callable[[int], Awaitable[int]], count: int) -> list[Any]:
        """Return the tasks of *count* calls when all of them wait."""
        self.waiting, self.expected = 0, count
        self.all_wait.clear()
        self.opened.clear()
        tasks = [asyncio.ensure_future(call(index)) for index in range(count)]
        await self.all_wait.wait()
        return tasks

    async def leave(self, tasks: list[Any]) -> None:
        """Let everybody through."""
        self.opened.set()
        assert await asyncio.gather(*tasks) == list(range(len(tasks)))


def with_memory(text: str) -> str:
    """Return the guest with a memory of one page, of which its start writes a byte."""
    end = text.rindex(")")
    return (
        f"{text[:end]} (memory 1) "
        "(func $start (i32.store8 (i32.const 0) (i32.const 1))) (start $start))"
    )


async def crowd(case: str, count: int, trace: bool) -> dict[str, Any]:
    """Let *count* calls wait, and return what they take."""
    gate = Gate()
    compiled = module(with_memory(CALLER) if case == "memories" else CALLER)
    imports = {"host": {"f": gate}}
    shared = aw.Instance(compiled, imports, store=aw.Store(interleave=True))

    async def in_a_store_each(value: int) -> int:
        with aw.Instance(compiled, imports) as instance:
            result: int = await instance.exports.one.call_async(value)
        return result

    call: Callable[[int], Awaitable[int]] = {
        "store": shared.exports.one.call_async,
        "stores": in_a_store_each,
        "memories": in_a_store_each,
        "tasks": gate,
    }[case]
    await gate.leave(await gate.reached(call, 10))  # whatever is made once is made now
    gc.collect()
    if trace:
        tracemalloc.start(1)
    before = memory()
    started = time.perf_counter()
    tasks = await gate.reached(call, count)
    seconds = time.perf_counter() - started
    after = memory()
    found: dict[str, Any] = {"seconds": seconds}
    found |= {name: (after[name] - before[name]) / count for name in after}
    if trace:
        snapshot = tracemalloc.take_snapshot()
        tracemalloc.stop()
        made = snapshot.statistics("filename")
        found["objects"] = sum(each.size for each in made) / count
        found["where"] = [
            [str(each.traceback[0]), each.size / count]
            for each in snapshot.statistics("lineno")[:25]
        ]
    await gate.leave(tasks)
    return found


async def sequence(case: str, count: int) -> dict[str, Any]:
    """Make *count* calls that wait once, one after the other."""

    async def once(value: int) -> int:
        await asyncio.sleep(0)
        return value

    exports = aw.Instance(module(CALLER), {"host": {"f": once}}).exports
    for index in range(max(count // 10, 100)):
        await exports.one.call_async(index)
    gc.collect()
    before = resident()
    started = time.perf_counter()
    for index in range(count):
        assert await exports.one.call_async(index) == index
    seconds = time.perf_counter() - started
    gc.collect()
    return {"seconds": seconds, "grown": resident() - before}


def in_a_process(case: str, count: int, *more: str) -> dict[str, Any] | str:
    """Return what a case finds in a process of its own, or why it cannot."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.suspended",
            "--case",
            case,
            "--count",
            str(count),
            *more,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    count = 100 if options.quick else 10_000
    if not os.path.exists("/proc/self/smaps"):
        yield Figure(name="suspended calls", unit="", note="there is no /proc/self/smaps here")
        return
    for case, where in CASES.items():
        found = in_a_process(case, count)
        traced = in_a_process(case, min(count, 1_000), "--trace")
        name = f"{count:,} waiting {where}"
        if isinstance(found, str) or isinstance(traced, str):
            reason = found if isinstance(found, str) else traced
            yield Figure(name=name, unit="", note=f"failed: {reason}")
            continue
        guest = case != "tasks"
        yield Figure(
            name=f"{name}: all wait after",
            unit="s",
            ours=found["seconds"],
            at_most=2.0 if guest else None,
        )
        yield Figure(
            name=f"{name}: resident memory each",
            unit="KB",
            ours=found["resident"] / 1000,
            at_most=25 if guest else None,
            details={name: found[name] for name in ("heap", "anonymous", "files")},
        )
        yield Figure(name=f"{name}: Python objects each", unit="KB", ours=traced["objects"] / 1000)
        yield Figure(name=f"{name}: mappings each", unit="maps", ours=found["mappings"])
    times = 1_000 if options.quick else 100_000
    found = in_a_process("sequence", times)
    name = f"{times:,} calls waiting in turn"
    if isinstance(found, str):
        yield Figure(name=name, unit="", note=f"failed: {found}")
        return
    yield Figure(name=f"{name}: each", unit="us", ours=found["seconds"] / times * 1e6)
    yield Figure(
        name=f"{name}: resident memory grew by",
        unit="KB",
        ours=found["grown"] / 1000,
        at_most=1_000,
    )


def main() -> None:
    """Measure everything, or one case in this process."""
    cases = argparse.ArgumentParser(add_help=False)
    cases.add_argument("--case", choices=[*CASES, "sequence"])
    cases.add_argument("--count", type=int, default=1_000)
    cases.add_argument("--trace", action="store_true")
    arguments, _ = cases.parse_known_args()
    if arguments.case is None:
        run_alone("suspended", measure, __doc__)
    elif arguments.case == "sequence":
        print(json.dumps(asyncio.run(sequence(arguments.case, arguments.count))))
    else:
        print(json.dumps(asyncio.run(crowd(arguments.case, arguments.count, arguments.trace))))


if __name__ == "__main__":
    main()

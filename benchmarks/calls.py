"""
What a synchronous call costs, against wasmtime-py: ``python -m benchmarks.calls``.

``ASYNCWASM_PURE=1`` measures without the accelerator.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import wasmtime

import asyncwasm as aw

from ._guests import ours, peer
from ._measure import WASMTIME, Action, Figure, Options, alone, in_turn, inline, run_alone

# What is called: parameters, results, arguments.
SHAPES: dict[str, tuple[list[str], list[str], tuple[Any, ...]]] = {
    "no arguments": ([], [], ()),
    "2 i32 -> i32": (["i32"] * 2, ["i32"], (1, 2)),
    "10 i32 -> i32": (["i32"] * 10, ["i32"], tuple(range(10))),
    "2 f64 -> f64": (["f64"] * 2, ["f64"], (1.5, 2.5)),
    "2 i64 -> i64": (["i64"] * 2, ["i64"], (1 << 40, 2)),
    "externref -> externref": (["externref"], ["externref"], ("an object",)),
    "i32 f64 i64 -> i32 f64 i64": (["i32", "f64", "i64"], ["i32", "f64", "i64"], (1, 2.5, 3)),
    "v128 -> v128": (["v128"], ["v128"], (bytes(range(16)),)),
}
TRAP = '(module (func (export "f") unreachable))'


def text(parameters: list[str], results: list[str]) -> str:
    """Return a guest whose `f` returns its first arguments."""
    returned = " ".join(f"(local.get {index})" for index in range(len(results)))
    return (
        f'(module (func (export "f") (param {" ".join(parameters)}) '
        f"(result {' '.join(results)}) {returned}))"
    )


def calling(function: Any, arguments: tuple[Any, ...], *first: Any) -> Action:
    """Return an action that calls *function* with *arguments* behind *first*."""
    names = {f"a{index}": value for index, value in enumerate((*first, *arguments))}
    return inline(f"f({', '.join(names)})", f=function, **names)


def catching(function: Any, error: type[BaseException], *arguments: Any) -> Action:
    """Return an action that calls *function*, which fails."""

    def call() -> None:
        try:
            function(*arguments)
        except error:
            pass  # that it fails is what is measured

    return inline("call()", call=call)


def refused(guest: str, arguments: tuple[Any, ...]) -> str:
    """Return why wasmtime-py cannot call *guest*, tried in a process that it may take along."""
    source = (
        "import wasmtime\nstore = wasmtime.Store()\n"
        f"module = wasmtime.Module(store.engine, {guest!r})\n"
        'function = wasmtime.Instance(store, module, []).exports(store)["f"]\n'
        f"function(store, *{arguments!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )
    if not done.returncode:
        return ""
    if done.returncode < 0:
        return f"there the process ends with signal {-done.returncode}"
    return f"there: {done.stderr.strip().splitlines()[-1]}"


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    for name, (parameters, results, arguments) in SHAPES.items():
        guest = text(parameters, results)
        mine = calling(ours(guest).f, arguments)
        reason = refused(guest, arguments) if "v128" in parameters else ""
        if reason:
            yield Figure(
                name=name,
                unit="us",
                ours=alone(mine, options) * 1e6,
                other=WASMTIME,
                note=reason,
            )
            continue
        function, store = peer(guest, "f")
        theirs = calling(function, arguments, store)
        yield Figure.pair(name, "us", WASMTIME, in_turn(mine, theirs, options))

    function, store = peer(TRAP, "f")
    yield Figure.pair(
        "a trap, caught",
        "us",
        WASMTIME,
        in_turn(catching(ours(TRAP).f, aw.Trap), catching(function, wasmtime.Trap, store), options),
    )

    def python(a: int, b: int) -> int:
        return a

    parameters, results, arguments = SHAPES["2 i32 -> i32"]
    yield Figure.pair(
        "2 i32 -> i32",
        "us",
        "a Python function",
        in_turn(
            calling(ours(text(parameters, results)).f, arguments),
            calling(python, arguments),
            options,
        ),
    )


if __name__ == "__main__":
    run_alone("calls", measure, __doc__)

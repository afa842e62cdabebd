"""
What awaiting a short call costs, on each event loop: ``python -m benchmarks.awaited``.

The other side is a worker thread that does nothing (`anyio.to_thread.run_sync`): less than any
binding in a thread can take.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread

from ._guests import ADD, ours
from ._measure import Figure, Options, in_turn_async, inline_async, run_alone

LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}


def nothing() -> int:
    """Be the work of a thread."""
    return 3


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    call = ours(ADD).add.call_async

    async def pairs() -> list[tuple[float, float]]:
        return await in_turn_async(
            inline_async("f(1, 2)", f=call),
            inline_async("t(f)", t=anyio.to_thread.run_sync, f=nothing),
            options,
        )

    for name, options_of_loop in LOOPS.items():
        shown = f"await add.call_async(1, 2) under {name}"
        if name != "asyncio" and importlib.util.find_spec(name) is None:
            yield Figure(name=shown, unit="us", note=f"{name} is not installed")
            continue
        yield Figure.pair(
            shown, "us", "anyio.to_thread.run_sync", anyio.run(pairs, **options_of_loop)
        )


if __name__ == "__main__":
    run_alone("awaited", measure, __doc__)

"""
A short run of tests/chaos.py on each loop; the long ones are run by hand.

So many programs rather than seconds: the same ones on a busy machine, others on each loop.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from .support import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "seed", "options"),
    [("asyncio", 1, []), ("uvloop", 2, []), ("trio", 3, []), ("asyncio", 4, ["--pooling"])],
    ids=["asyncio", "uvloop", "trio", "pooling"],
)
def test_random_programs_do_what_the_model_does(
    backend: str, seed: int, options: list[str]
) -> None:
    """In a process of its own, which a crash would end, and where nothing else has leaked."""
    pytest.importorskip(backend)

    limits = ["--programs", "100", "--seed", str(seed)]

    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *limits, "--backend", backend, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed" in done.stdout

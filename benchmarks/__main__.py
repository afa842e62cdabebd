"""
Run the benchmarks: ``python -m benchmarks``.

Each subject runs in a process of its own and prints a table; ``--json FILE`` writes all figures
to one file, which ``python -m benchmarks.report`` turns into the tables of
``docs/performance.md``. ``ASYNCWASM_PURE=1`` measures without the accelerator.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from ._measure import Figure, describe, machine, parser, read, write

ROOT = Path(__file__).resolve().parents[1]
SUBJECTS = (
    "calls",
    "imports",
    "awaited",
    "instantiate",
    "compile",
    "memory",
    "suspended",
    "parallel",
    "cancellation",
    "heartbeat",
    "http",
    "peers",
)


def passed_on(arguments: argparse.Namespace) -> list[str]:
    """Return the options that each benchmark gets, too."""
    options = ["--quick"] if arguments.quick else []
    for name in ("wasm", "directory"):
        value = getattr(arguments, name)
        if value is not None:
            options += [f"--{name}", str(value)]
    return options


def main() -> int:
    """Run what is asked for; return how many subjects failed."""
    options = parser(__doc__)
    options.add_argument(
        "--only", action="append", choices=SUBJECTS, metavar="NAME", help="measure only this"
    )
    options.add_argument(
        "--peers", action="store_true", help="install other packages, and measure them, too"
    )
    options.add_argument(
        "--plots", type=Path, metavar="DIRECTORY", help="draw the figures there, as SVG and PNG"
    )
    arguments = options.parse_args()
    wanted = arguments.only or [name for name in SUBJECTS if name != "peers" or arguments.peers]
    facts = machine()
    print(describe(facts), flush=True)
    figures: dict[str, list[Figure]] = {}
    failed = []
    with tempfile.TemporaryDirectory() as directory:
        for subject in wanted:
            file = Path(directory) / f"{subject}.json"
            command = [sys.executable, "-m", "benchmarks._subject", subject]
            command += ["--json", str(file), *passed_on(arguments)]
            done = subprocess.run(command, cwd=ROOT, check=False)
            if done.returncode:
                print(f"{subject}: failed with exit status {done.returncode}", flush=True)
                failed.append(subject)
            if file.exists():
                figures |= read(file)[1]
    if arguments.json:
        write(arguments.json, facts, figures)
    if arguments.plots:
        from ._plots import draw

        for path in draw(figures, facts, arguments.plots):
            print(path)
    missed = [
        f"{subject}: {figure.name}"
        for subject, some in figures.items()
        for figure in some
        if figure.met is False
    ]
    print("\ntargets missed:" if missed else "\nno target missed")
    for name in missed:
        print(f"  {name}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())

"""
Runs the official test suite: ``python -m tests.core_suite PATH``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from . import find_scripts, run_file
from ._report import from_json, summary, table, to_json
from ._runner import Outcome, Report

_ROOT: Final = Path(__file__).resolve().parents[2]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.core_suite",
        description="Run the WebAssembly core test suite through asyncwasm.",
        epilog="The suite is the folder test/core of the WebAssembly specification's repository.",
    )
    parser.add_argument("path", type=Path, help="the folder with the suite, or one script")
    parser.add_argument(
        "files", nargs="*", help="run only scripts whose path contains one of these"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="processes at a time; each runs one script, so that a crash costs one script. "
        "0 runs everything in this process (default: %(default)s)",
    )
    parser.add_argument(
        "--tier", choices=("baseline", "optimized"), help="the compiler (default: the library's)"
    )
    parser.add_argument(
        "--face",
        choices=("sync", "async"),
        default="sync",
        help="call directly, or through the awaitable forms (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="for one script, with --jobs of 1 or more (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the reports as JSON")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="name each script as it ends, on stderr"
    )
    return parser


def _run_apart(options: argparse.Namespace, file: str) -> Report:
    """Run one script in a process of its own; its end, whatever it is, becomes a report."""
    command = [sys.executable, "-m", __package__ or "tests.core_suite", str(options.path), file]
    command += ["--apart", "--jobs", "0", "--json", "--face", options.face]
    if options.tier:
        command += ["--tier", options.tier]
    problem = ""
    output: str | bytes | None
    try:
        done = subprocess.run(
            command, check=False, cwd=_ROOT, capture_output=True, text=True, timeout=options.timeout
        )
    except subprocess.TimeoutExpired as exc:
        output = exc.stdout
        problem = f"did not end within {options.timeout:g} seconds"
    else:
        output = done.stdout
        if done.returncode:
            last = (done.stderr.strip() or "nothing on stderr").splitlines()[-1]
            problem = f"the process ended with code {done.returncode}: {last}"
    try:
        (report,) = from_json(output or "")
    except ValueError:
        report = Report(file)
        problem = problem or "the process printed no report"
    if problem:
        # After a report, it is how the process ended that went wrong.
        report.outcomes.append(Outcome("process", 0, "failed", problem))
    return report


def _run(options: argparse.Namespace, files: Sequence[str]) -> Iterator[Report]:
    if options.jobs < 1:
        for file in files:
            yield run_file(options.path, file, tier=options.tier, face=options.face)
        return
    with ThreadPoolExecutor(options.jobs) as pool:
        yield from pool.map(lambda file: _run_apart(options, file), files)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what *arguments* ask for; 0 if everything came out as expected, 1 if not, else 2."""
    parser = _parser()
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.path = options.path.resolve()
    try:
        files = options.files if options.apart else find_scripts(options.path, options.files)
    except FileNotFoundError as exc:
        parser.error(str(exc))
    if not files:
        parser.error("no script has a name like that")
    reports = []
    for report in _run(options, files):
        reports.append(report)
        if options.verbose:
            state = f"{len(report.failures)} FAILED" if report.failures else "ok"
            print(f"{report.file}: {state} ({report.seconds:.1f} s)", file=sys.stderr, flush=True)
    if options.json:
        print(to_json(reports))
    else:
        print(table(reports))
        for report in reports:
            for line in report.lines():
                print(line)
        print(summary(reports))
    failed = any(report.failures for report in reports)
    return 1 if failed and not options.apart else 0


if __name__ == "__main__":  # pragma: no cover - only a process of its own comes here
    sys.exit(main())

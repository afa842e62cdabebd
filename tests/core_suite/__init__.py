"""
Runs the official test suite of WebAssembly (``test/core`` of the specification's repository,
which is not part of this one) through the public API.

It tests the engine more than the library; of the library it tests how modules are refused,
linked and instantiated, and that values cross unchanged. ``python -m tests.core_suite PATH``
runs it, and so does ``pytest --core-suite PATH``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ._reader import ScriptError
from ._runner import Face, Outcome, Report, Tier, run_script
from ._script import parse_script
from ._shortfalls import KNOWN_SHORTFALLS, Shortfall

__all__ = (
    "KNOWN_SHORTFALLS",
    "Face",
    "Outcome",
    "Report",
    "ScriptError",
    "Shortfall",
    "Tier",
    "find_scripts",
    "parse_script",
    "run_file",
    "run_script",
)


def find_scripts(path: Path, wanted: Sequence[str] = ()) -> list[str]:
    """
    Return the scripts under *path*, relative to it; only those that contain one of *wanted*.

    Raises:
        FileNotFoundError: If there is nothing at *path*, or no script.
    """
    if path.is_file():
        return [path.name]
    found = sorted(script.relative_to(path).as_posix() for script in path.rglob("*.wast"))
    if not found:
        raise FileNotFoundError(f"no .wast script at {path}")
    return [name for name in found if not wanted or any(part in name for part in wanted)]


def run_file(path: Path, file: str, *, tier: Tier | None = None, face: Face = "sync") -> Report:
    """Run the script *file* of the suite at *path*; one that cannot be read is a failure."""
    started = time.monotonic()
    try:
        commands = parse_script((path if path.is_file() else path / file).read_bytes())
    except ScriptError as exc:
        failure = Outcome("script", exc.line, "failed", exc.problem)
        return Report(file, [failure], time.monotonic() - started)
    return run_script(commands, file=file, tier=tier, face=face)

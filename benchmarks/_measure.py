"""
How the benchmarks measure, and what they print.

Rule 1: what is compared is measured in turn, in one process, several times; the ratio is the
median of the ratios of those pairs, so that the machine's mood cancels out.
Rule 2: a figure that cannot be had is printed with the reason, never left out.
Rule 3: nothing here knows a result: what is printed was measured in this run.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from asyncwasm._ffi.accelerator import speedups

Action: TypeAlias = Callable[[int], float]  # does it so often, and returns the seconds
AsyncAction: TypeAlias = Callable[[int], Awaitable[float]]
WASMTIME = "wasmtime-py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How long to measure, and with what."""

    quick: bool = False
    wasm: str | None = None
    directory: Path | None = None

    @property
    def rounds(self) -> int:
        """How many pairs."""
        return 3 if self.quick else 9

    @property
    def seconds(self) -> float:
        """How long one side of a pair takes at least."""
        return 0.002 if self.quick else 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """
    One line: a quantity, ours and theirs.

    `ratio` is how many times as much the other one takes. `at_most` bounds ours, and
    `slower_at_most` how many times as much as the other one ours may take.
    """

    name: str
    unit: str
    ours: float | None = None
    other: str = ""
    theirs: float | None = None
    ratio: float | None = None
    at_most: float | None = None
    slower_at_most: float | None = None
    note: str = ""
    details: dict[str, float] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The target in words."""
        if self.at_most is not None:
            return f"<= {number(self.at_most)} {self.unit}"
        if self.slower_at_most is not None:
            return f"<= {number(self.slower_at_most)} x"
        return ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is none, or no figure."""
        if self.at_most is not None and self.ours is not None:
            return self.ours <= self.at_most
        if self.slower_at_most is not None and self.ratio:
            return 1 / self.ratio <= self.slower_at_most
        return None

    @classmethod
    def pair(
        cls, name: str, unit: str, other: str, pairs: list[tuple[float, float]], **more: Any
    ) -> Figure:
        """Return the figure of pairs (ours, theirs) in seconds."""
        scale = {"us": 1e6, "ms": 1e3, "s": 1.0}[unit]
        return cls(
            name=name,
            unit=unit,
            ours=statistics.median(ours for ours, _ in pairs) * scale,
            other=other,
            theirs=statistics.median(theirs for _, theirs in pairs) * scale,
            ratio=statistics.median(theirs / ours for ours, theirs in pairs),
            **more,
        )


# measuring


def inline(statement: str, **names: Any) -> Action:
    """Return an action that has *statement* in its loop, without a function call around it."""
    action: Action = _compiled("def run(count):\n", statement, names)
    return action


def inline_async(expression: str, **names: Any) -> AsyncAction:
    """Return an action that awaits *expression* in its loop."""
    action: AsyncAction = _compiled("async def run(count):\n", f"await {expression}", names)
    return action


def _compiled(head: str, statement: str, names: dict[str, Any]) -> Any:
    scope = {**names, "_now": time.perf_counter, "_repeat": itertools.repeat}
    # The names are locals of the loop: looking them up shall not count.
    bound = "".join(f"    {name} = globals()[{name!r}]\n" for name in names)
    source = (
        f"{head}{bound}    started = _now()\n    for _ in _repeat(None, count):\n"
        f"        {statement}\n    return _now() - started\n"
    )
    exec(source, scope)
    return scope["run"]


def calibrated(action: Action, seconds: float) -> int:
    """Return how often *action* has to be done to take *seconds*."""
    count = 1
    while action(count) < seconds:
        count *= 2
    return count


async def calibrated_async(action: AsyncAction, seconds: float) -> int:
    """Return how often *action* has to be done to take *seconds*."""
    count = 1
    while await action(count) < seconds:
        count *= 2
    return count


def in_turn(
    ours: Action, theirs: Action, options: Options, *, each: int = 1
) -> list[tuple[float, float]]:
    """Return pairs of seconds for one of the *each* things that an action does at a time."""
    counts = [calibrated(action, options.seconds) for action in (ours, theirs)]
    gc.collect()
    return [
        (ours(counts[0]) / counts[0] / each, theirs(counts[1]) / counts[1] / each)
        for _ in range(options.rounds)
    ]


async def in_turn_async(
    ours: AsyncAction, theirs: AsyncAction, options: Options, *, each: int = 1
) -> list[tuple[float, float]]:
    """Return pairs of seconds, as `in_turn` does."""
    counts = [await calibrated_async(action, options.seconds) for action in (ours, theirs)]
    gc.collect()
    return [
        (await ours(counts[0]) / counts[0] / each, await theirs(counts[1]) / counts[1] / each)
        for _ in range(options.rounds)
    ]


def alone(action: Action, options: Options, *, each: int = 1) -> float:
    """Return the median of seconds for what nobody else does."""
    count = calibrated(action, options.seconds)
    return statistics.median(action(count) / count / each for _ in range(options.rounds))


def quantile(values: list[float], percent: int) -> float:
    """Return the value that so many percent of *values* do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


# printing


def number(value: float) -> str:
    """Return *value* with three significant digits."""
    if value and abs(value) < 0.0995:
        return f"{value:.3f}"
    for limit, digits in ((0.995, 2), (9.95, 2), (99.5, 1)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:,.0f}"


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    versions = {}
    for name in ("wasmtime", "anyio", "trio", "uvloop", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "processors": str(len(os.sched_getaffinity(0)) if _CAN_ASK else os.cpu_count()),
        "asyncwasm": importlib.metadata.version("asyncwasm") if _installed() else "from its source",
        "calls": "pure Python" if speedups is None else "accelerated",
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        **versions,
    }


_CAN_ASK = hasattr(os, "sched_getaffinity")


def _installed() -> bool:
    try:
        importlib.metadata.version("asyncwasm")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # elsewhere the platform module knows as much as anybody
    return platform.processor() or "unknown"


def describe(facts: dict[str, str]) -> str:
    """Return what `machine` found as one line."""
    return (
        f"{facts['python']}, {facts['calls']}, wasmtime {facts['wasmtime']}, {facts['system']}, "
        f"{facts['processors']} processors ({facts['processor']}), load at the start {facts['load']}"
    )


def head(subject: str) -> str:
    """Return the first line of a table."""
    return (
        f"\n{subject:54} {'asyncwasm':>13} {'other':>13} {'faster':>10}  against (target, verdict)"
    )


def line(figure: Figure) -> str:
    """Return one line of a table."""
    ours, theirs = (
        "-" if value is None else f"{number(value)} {figure.unit}"
        for value in (figure.ours, figure.theirs)
    )
    ratio = "" if figure.ratio is None else f"{number(figure.ratio)} x"
    rest = [figure.other] if figure.other else []
    if figure.target:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[figure.met]
        rest.append(f"({figure.target}, {verdict})")
    if figure.note:
        rest.append(f"[{figure.note}]")
    return f"{figure.name:54} {ours:>13} {theirs:>13} {ratio:>10}  {' '.join(rest)}"


def show(subject: str, figures: Iterable[Figure]) -> list[Figure]:
    """Print a table as its lines come in, and return them."""
    print(head(subject), flush=True)
    seen = []
    for figure in figures:
        print(line(figure), flush=True)
        seen.append(figure)
    return seen


# running


def parser(text: str | None) -> argparse.ArgumentParser:
    """Return the parser of the options that every benchmark takes."""
    made = argparse.ArgumentParser(
        description=(text or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="measure shortly, and less exactly")
    made.add_argument("--json", metavar="FILE", type=Path, help="write the figures there, too")
    made.add_argument(
        "--directory", type=Path, help="keep there what is installed, and not in a temporary one"
    )
    made.add_argument("--wasm", metavar="FILE", help="a large module, for what compiles one")
    return made


def options_of(arguments: argparse.Namespace) -> Options:
    """Return what the command line says."""
    return Options(quick=arguments.quick, wasm=arguments.wasm, directory=arguments.directory)


def run_alone(
    subject: str, measure: Callable[[Options], Iterator[Figure]], text: str | None
) -> None:
    """Be ``python -m benchmarks.<subject>``."""
    arguments = parser(text).parse_args()
    facts = machine()
    print(describe(facts))
    figures = show(subject, measure(options_of(arguments)))
    if arguments.json:
        write(arguments.json, facts, {subject: figures})


def write(path: Path, facts: dict[str, str], figures: dict[str, list[Figure]]) -> None:
    """Write everything as JSON."""
    content = {
        "machine": facts,
        "figures": {name: [asdict(each) for each in some] for name, some in figures.items()},
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> tuple[dict[str, str], dict[str, list[Figure]]]:
    """Read what `write` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["machine"], {
        name: [Figure(**each) for each in some] for name, some in content["figures"].items()
    }

"""
The benchmarks run and print their tables; nothing here asserts on a time.

Those that install packages are imported only.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as suite
from benchmarks import report
from benchmarks._measure import Figure, Options, head, in_turn, inline, line, read, write

from .support import ROOT

# The others need files of /proc, a web server, or packages from elsewhere.
QUICK = ("calls", "imports", "awaited", "memory", "parallel", "cancellation", "heartbeat")
PAIRED = Figure(
    name="work", unit="us", ours=1.5, other="them", theirs=15.0, ratio=10.0, slower_at_most=1.3
)
BOUNDED = Figure(name="wait", unit="ms", ours=60.0, at_most=50)
UNKNOWN = Figure(name="gone", unit="ms", note="not installed")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmarks as a user does."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
        # A busy machine makes short calls long.
        env={**os.environ, "ASYNCWASM_SYNC_GUARD": "ignore:65536", "PYTHONUTF8": "1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("subject", QUICK)
def test_benchmark_prints_its_table(subject: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run(f"benchmarks.{subject}", "--quick", "--json", str(file))

    assert done.returncode == 0, done.stderr
    first, _, title, *lines = done.stdout.splitlines()
    assert "wasmtime" in first
    assert title.split() == head(subject).split()
    facts, figures = read(file)
    assert facts["python"] in first
    assert [line(each) for each in figures[subject]] == lines
    assert any(each.ours for each in figures[subject])


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="asks the kernel")
def test_suspended_calls_are_measured_in_processes_of_their_own() -> None:
    done = run("benchmarks.suspended", "--case", "store", "--count", "20", "--trace")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["seconds"] > 0
    assert found["objects"] > 0


@pytest.mark.slow
def test_suite_measures_what_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run("benchmarks", "--quick", "--only", "awaited", "--json", str(file))

    assert done.returncode == 0, done.stderr
    assert "targets missed" in done.stdout or "no target missed" in done.stdout
    assert list(read(file)[1]) == ["awaited"]


@pytest.mark.parametrize("subject", suite.SUBJECTS)
def test_benchmark_can_be_imported(subject: str) -> None:
    module = importlib.import_module(f"benchmarks.{subject}")

    assert module.__doc__ is not None
    assert f"benchmarks.{subject}" in module.__doc__


def test_every_benchmark_is_in_the_suite() -> None:
    """A file that the suite does not know would never be run."""
    found = {path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")}

    assert found - {"report"} <= set(suite.SUBJECTS)


def test_targets_are_judged() -> None:
    assert (PAIRED.met, BOUNDED.met, UNKNOWN.met) == (True, False, None)
    assert "(<= 50.0 ms, MISSED)" in line(BOUNDED)
    assert "[not installed]" in line(UNKNOWN)
    assert "(<= 1.30 x, met)" in line(PAIRED)


def test_pairs_are_compared_one_by_one() -> None:
    """One disturbed pair must not move the ratio."""
    figure = Figure.pair("work", "us", "them", [(1.0, 2.0), (50.0, 100.0), (1.0, 90.0)])

    assert figure.ratio == 2.0
    assert figure.ours == 1e6


def test_inline_runs_its_statement_as_often_as_told() -> None:
    seen: list[int] = []
    action = inline("seen.append(n)", seen=seen, n=7)

    assert action(3) > 0
    assert seen == [7, 7, 7]
    options = Options(quick=True)
    assert len(in_turn(action, action, options)) == options.rounds


def test_report_fills_the_places_of_a_document(tmp_path: Path) -> None:
    figures, document = tmp_path / "figures.json", tmp_path / "document.md"
    write(figures, _facts(), {"some": [PAIRED, BOUNDED, UNKNOWN]})
    place = "before\n<!-- figures: {} -->\nold\n<!-- end -->\nafter\n"
    document.write_text(place.format("some") + place.format("none"), encoding="utf-8")

    done = run("benchmarks.report", str(figures), str(document))

    assert done.returncode == 0, done.stderr
    text = document.read_text(encoding="utf-8")
    assert "| work | 1.50 us | 15.0 us (them) | 10.0 | <= 1.30 x: met |" in text
    assert "| wait | 60.0 ms | | | <= 50.0 ms: **missed** |" in text
    assert "| gone: not installed | | | | |" in text
    assert "Not measured in this run." in text
    assert "old" not in text
    assert text.startswith("before\n") and text.endswith("after\n")


def test_figures_of_the_documentation_are_those_of_its_file() -> None:
    made = report.tables(*read(ROOT / "docs" / "performance.json"))
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")

    assert report.filled(text, made) == text


def test_plots_are_drawn_in_both_formats(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")  # of the extra `bench`
    from benchmarks._plots import draw

    files = list(draw({"some": [PAIRED, BOUNDED, UNKNOWN]}, _facts(), tmp_path / "plots"))

    assert [each.name for each in files] == [
        "some-us.svg",
        "some-us.png",
        "some-ms.svg",
        "some-ms.png",
    ]
    assert all(each.stat().st_size for each in files)


def _facts() -> dict[str, str]:
    names = ("python", "calls", "wasmtime", "system", "processors", "processor", "load")
    return dict.fromkeys(names, "x")

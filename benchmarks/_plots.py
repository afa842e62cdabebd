"""Draws figures: for each subject, what takes how long on either side, on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._measure import Figure, describe

OURS, THEIRS = "#3b6fb6", "#c9ccd1"
FORMATS = ("svg", "png")


def draw(
    figures: dict[str, list[Figure]], facts: dict[str, str], directory: Path
) -> Iterator[Path]:
    """Draw a file of each format for each subject and unit, and yield their paths."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("plots need matplotlib: pip install 'asyncwasm[bench]'") from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "asyncwasm"  # the same figures, the same file
    directory.mkdir(parents=True, exist_ok=True)
    for subject, some in figures.items():
        units = list(dict.fromkeys(each.unit for each in some if each.ours))
        for unit in units:
            drawn = [each for each in some if each.unit == unit and each.ours]
            name = subject if len(units) == 1 else f"{subject}-{unit}"
            yield from _saved(_bars(subject, unit, drawn, facts), directory / name)


def _bars(subject: str, unit: str, figures: list[Figure], facts: dict[str, str]) -> Any:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(9, 1.2 + 0.45 * len(figures)), layout="constrained")
    axes = canvas.add_subplot()
    for position, figure in enumerate(figures):
        assert figure.ours is not None
        axes.barh(position - 0.2, figure.ours, 0.38, color=OURS)
        if figure.theirs:
            axes.barh(position + 0.2, figure.theirs, 0.38, color=THEIRS)
        if figure.at_most is not None:
            axes.plot([figure.at_most] * 2, [position - 0.4, position + 0.4], color="#b03030")
    axes.set_yticks(
        range(len(figures)),
        [f"{each.name}\n{each.other}" if each.other else each.name for each in figures],
        fontsize=7,
    )
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"{unit}: asyncwasm blue, the other grey, a target red; less is better")
    axes.set_title(subject, loc="left")
    canvas.supxlabel(describe(facts), fontsize=6)
    return canvas


def _saved(canvas: Any, path: Path) -> Iterator[Path]:
    for kind in FORMATS:
        file = path.with_suffix(f".{kind}")
        # Without a date, so that a file changes when its figures do.
        canvas.savefig(file, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        yield file

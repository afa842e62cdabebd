"""
Write figures as tables: ``python -m benchmarks.report FILE [DOCUMENT]``.

Prints Markdown, or puts each table into DOCUMENT between the lines
``<!-- figures: NAME -->`` and ``<!-- end -->``. What the machine was is there as ``machine``.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ._measure import Figure, describe, number, read

PLACE = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(figures: list[Figure]) -> str:
    """Return a table in Markdown."""
    lines = [
        "| | asyncwasm | other | times faster | target |",
        "|---|---:|---:|---:|---|",
    ]
    for figure in figures:
        ours, theirs = (
            "" if value is None else f"{number(value)} {figure.unit}"
            for value in (figure.ours, figure.theirs)
        )
        if figure.other:
            theirs = f"{theirs} ({figure.other})" if theirs else figure.other
        ratio = "" if figure.ratio is None else number(figure.ratio)
        target = figure.target
        if target:
            verdict = {True: "met", False: "**missed**", None: "not measured"}[figure.met]
            target = f"{target}: {verdict}"
        name = f"{figure.name}: {figure.note}" if figure.note else figure.name
        lines.append(f"| {name} | {ours} | {theirs} | {ratio} | {target} |".replace("  ", " "))
    return "\n".join(lines) + "\n"


def tables(facts: dict[str, str], figures: dict[str, list[Figure]]) -> dict[str, str]:
    """Return what belongs into each place of a document."""
    return {"machine": f"{describe(facts)}.\n"} | {
        name: table(some) for name, some in figures.items()
    }


def filled(document: str, made: dict[str, str]) -> str:
    """Return *document* with the tables; places without figures say so."""

    def fill(place: re.Match[str]) -> str:
        content = made.get(place[2], "Not measured in this run.\n")
        return f"{place[1]}\n{content}\n{place[3]}"

    return PLACE.sub(fill, document)


def main() -> None:
    """Print the tables, or put them into a document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("document", type=Path, nargs="?")
    arguments = parser.parse_args()
    made = tables(*read(arguments.file))
    if arguments.document is None:
        for name, content in made.items():
            print(f"## {name}\n\n{content}")
    else:
        document = arguments.document.read_text(encoding="utf-8")
        arguments.document.write_text(filled(document, made), encoding="utf-8")


if __name__ == "__main__":
    main()

"""
Shows reports as text and carries them between processes as JSON.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from ._runner import Outcome, Report

# Keyword -> column. Commands that are no assertions share theirs with their kind.
_COLUMNS: Final = {
    "module": "module",
    "instance": "module",
    "register": "action",
    "invoke": "action",
    "get": "action",
    "assert_return": "return",
    "assert_trap": "trap",
    "assert_exhaustion": "exhaust",
    "assert_exception": "except",
    "assert_invalid": "invalid",
    "assert_malformed": "malformed",
    "assert_invalid_custom": "custom",
    "assert_malformed_custom": "custom",
    "assert_unlinkable": "unlink",
}
_OTHER: Final = "other"


def to_json(reports: Iterable[Report]) -> str:
    """Return *reports* as JSON."""
    return json.dumps([asdict(report) for report in reports])


def from_json(text: str | bytes) -> list[Report]:
    """
    Return the reports that `to_json` wrote.

    Raises:
        ValueError: If *text* is not what it wrote.
    """
    try:
        return [_report(**item) for item in json.loads(text)]
    except TypeError as exc:
        raise ValueError("not a list of reports") from exc


def _report(file: str, outcomes: list[dict[str, Any]], seconds: float) -> Report:
    return Report(file, [Outcome(**outcome) for outcome in outcomes], seconds)


def table(reports: Sequence[Report]) -> str:
    """
    Return a table with a row for each script and the total.

    A cell is the number that passed; ``-n`` after it are failures, ``~n`` known shortfalls.
    """
    counts = [_count(report.outcomes) for report in reports]
    total: Counter[tuple[str, str]] = Counter()
    for count in counts:
        total.update(count)
    present = {column for column, _ in total}
    columns = [name for name in (*dict.fromkeys(_COLUMNS.values()), _OTHER) if name in present]
    rows = [["file", *columns, "all", "seconds"]]
    for name, count, seconds in (
        *((report.file, count, report.seconds) for report, count in zip(reports, counts)),
        ("total", total, sum(report.seconds for report in reports)),
    ):
        cells = [_cell(count, (column,)) for column in columns]
        rows.append([name, *cells, _cell(count, columns), f"{seconds:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    )


def _count(outcomes: Iterable[Outcome]) -> Counter[tuple[str, str]]:
    return Counter((_COLUMNS.get(outcome.keyword, _OTHER), outcome.status) for outcome in outcomes)


def _cell(count: Counter[tuple[str, str]], columns: Sequence[str]) -> str:
    passed, failed, known = (
        sum(count[column, status] for column in columns) for status in ("passed", "failed", "known")
    )
    if not passed and not failed and not known:
        return "."
    return f"{passed}{f'-{failed}' if failed else ''}{f'~{known}' if known else ''}"


def summary(reports: Sequence[Report]) -> str:
    """Return one line with the totals."""
    statuses = Counter(outcome.status for report in reports for outcome in report.outcomes)
    bad = sum(bool(report.failures) for report in reports)
    return (
        f"{len(reports)} scripts, {sum(statuses.values())} commands: {statuses['passed']} passed, "
        f"{statuses['failed']} failed in {bad} scripts, {statuses['known']} known shortfalls"
    )

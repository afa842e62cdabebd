"""The recipes of docs/bulk-data.md run, in order, as they stand there."""

from __future__ import annotations

import re
from typing import Any

import pytest

from .support import ROOT

DOCUMENT = ROOT / "docs" / "bulk-data.md"


def recipes() -> list[tuple[str, str]]:
    """Return the heading and the code of each block."""
    found, heading = [], "set up"
    text = DOCUMENT.read_text(encoding="utf-8")
    for match in re.finditer(
        r"^#+ ([^\n]+)$|^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        if match[1]:
            heading = match[1]
        else:
            found.append((heading, match[2]))
    return found


def test_every_recipe_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy")
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    for heading, code in recipes():
        try:
            exec(compile(code, f"{DOCUMENT.name}: {heading}", "exec"), names)
        except AssertionError as exc:  # pragma: no cover - only when the page is wrong
            raise AssertionError(f"{heading}\n{code}") from exc

    assert names["result"].sum() == pytest.approx(1000)
    assert names["digest"].digest_size == 32


def test_every_recipe_but_the_first_says_what_comes_out() -> None:
    """A block that asserts nothing would run whatever the library does."""
    blocks = recipes()

    assert len(blocks) >= 8
    assert all("assert" in code for _, code in blocks[1:])

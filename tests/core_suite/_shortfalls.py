"""
What the engine falls short of: commands of the official suite that are known to fail.

Rule 1: only what the engine does or lacks belongs here. A failure of this library is a bug.
Rule 2: an entry that passes is an error, so that the list never outlives its reasons.
Entries name commands by text rather than line where they can: lines move with every
revision of the suite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ._script import Command


@dataclass(frozen=True, slots=True)
class Shortfall:
    """
    Commands that are known to fail, and why.

    Attributes:
        file: The script: its path, or the end of it.
        where: The line of a command, or a piece of its source.
        reason: What the engine falls short of.
        tiers: The compilers it is true of; all of them when empty.
    """

    file: str
    where: int | str
    reason: str
    tiers: tuple[str, ...] = ()

    def concerns(self, file: str, tier: str | None) -> bool:
        """Whether this is about the script *file* as compiled by *tier*."""
        tail = f"/{file}".endswith(f"/{self.file}")
        return tail and (not self.tiers or tier in self.tiers)

    def covers(self, command: Command) -> bool:
        """Whether *command* is one that this is about."""
        if isinstance(self.where, int):
            return command.line == self.where
        return self.where in command.source


KNOWN_SHORTFALLS: Final[tuple[Shortfall, ...]] = (
    Shortfall(
        "branch_hint.wast",
        "assert_invalid_custom",
        "branch hints are an optional custom section; the engine does not check their targets",
    ),
)

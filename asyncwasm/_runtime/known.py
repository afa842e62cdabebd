"""What a store knows of."""

from __future__ import annotations

import weakref
from typing import Any


class Known:
    """
    The objects of a store by what they are, held weakly.

    Leaner than a WeakValueDictionary, which costs more to make than most stores put there. What
    has been collected is swept out when it may be half of all.
    """

    __slots__ = ("_sweep_at", "references")

    def __init__(self) -> None:
        self.references: dict[tuple[Any, ...], weakref.ref[Any]] = {}
        self._sweep_at = 64

    def get(self, identity: tuple[Any, ...]) -> Any:
        """Return the object, None if there is none."""
        reference = self.references.get(identity)
        return None if reference is None else reference()

    def __setitem__(self, identity: tuple[Any, ...], value: object) -> None:
        self.references[identity] = weakref.ref(value)
        self.sweep()

    def sweep(self) -> None:
        """Sweep if it is time, because something has been put there."""
        references = self.references
        if len(references) >= self._sweep_at:
            for key, reference in list(references.items()):
                # Whoever has put another one there meanwhile, put one that lives.
                if reference() is None and references.get(key) is reference:
                    del references[key]
            self._sweep_at = max(64, 2 * len(references))

    def values(self) -> list[Any]:
        """Return those that are alive."""
        if not self.references:
            return []
        found = [reference() for reference in list(self.references.values())]
        return [each for each in found if each is not None]

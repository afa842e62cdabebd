"""
Faces: what users see of something that the package keeps in the open for itself.

A core knows its face weakly, and gets another when nobody has the one it had.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Self


class Face:
    """What stands for a core."""

    __slots__ = ("__weakref__", "_core")

    _core: Any

    def _stand_for(self, core: Any) -> None:
        self._core = core
        core.face = weakref.ref(self)

    @classmethod
    def _of(cls, core: Any) -> Self:
        """Return what stands for *core*; the same one as long as anybody has it."""
        with _lock:
            found: Self | None = None if core.face is None else core.face()
            if found is None:
                found = cls.__new__(cls)
                found._stand_for(core)
            return found


# Else two threads that ask at once would get two. A collection in there may run a finalizer.
_lock = threading.RLock()

"""
What the objects of a store have in common: they are bound to it when they first meet it.

Rule 1: binding is atomic. Whoever binds holds `binding`, and looks again under it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from .._errors import LinkError
from .._ffi.externs import Extern
from .._runtime.config import Limits
from .._runtime.store import StoreCore

binding = threading.RLock()
SAME_STORE = "an object of the same store"


class StoreObject:
    """An object that lives in a store, or will."""

    if not TYPE_CHECKING:
        __slots__ = ()  # the classes below have them, because one has a base in C

    _store: StoreCore | None
    _extern: Extern | None

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled or copied: it belongs to a store"
        )

    def _check_limits(self, limits: Limits) -> None:
        """Raise RangeError if the object is too large for a store with *limits*."""

    def _make(self, store: StoreCore) -> Extern:
        """Make the native object in *store*, which is bound."""
        raise NotImplementedError

    def _bind(self, store: StoreCore) -> Extern:
        """Return the native object in *store*, made now if there is none yet."""
        extern = self._extern
        if extern is None:
            with binding:
                if self._extern is None:
                    if self._store is not None and self._store is not store:
                        raise other_store(self)
                    if not store.bound:
                        store.bind(store.engine)
                    self._store = store
                    try:
                        self._extern = self._make(store)
                    except BaseException:
                        self._store = None
                        raise
                    store.remember(self._extern.key, self)
                extern = self._extern
        if self._store is not store:
            raise other_store(self)
        return extern

    def _attach(self, store: StoreCore, extern: Extern) -> Any:
        """Become the object for *extern*, which exists."""
        self._store = store
        self._extern = extern
        store.remember(extern.key, self)
        return self


def other_store(value: object) -> LinkError:
    """Return the error for an object that lives in another store."""
    return LinkError(
        f"{value!r} lives in another store; make both with the same one: "
        "`with asyncwasm.Store() as store:`, or store=...",
        expected=SAME_STORE,
        actual=repr(value),
    )

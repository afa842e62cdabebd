"""What a store makes when it is first asked for it: most live for one call or two, and need little."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from .store import StoreCore

T = TypeVar("T")


class OnDemand(Generic[T]):
    """
    An attribute of a store that is made when it is first asked for.

    Most stores live for one call or two, and need few of them.
    """

    def __init__(self, make: Callable[[StoreCore], T]) -> None:
        self._make = make

    def __set_name__(self, owner: type[StoreCore], name: str) -> None:
        self._name = name

    def __get__(self, store: StoreCore | None, owner: type[StoreCore]) -> T:
        if store is None:  # somebody looks at the class
            raise AttributeError(self._name)
        # In one step: several threads may ask at once, and all of them get the same.
        made: T = store.__dict__.setdefault(self._name, self._make(store))
        return made

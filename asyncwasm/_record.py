"""
Records: frozen dataclasses that are compared, hashed and shown by one piece of code.

``dataclass`` compiles that anew for every class, in every process, which is most of what a
class costs: decorate a Record with ``eq=False, repr=False``.
"""

from __future__ import annotations

from typing import Any


class Record:
    """Values of the same class are equal when all their fields are, in order."""

    __slots__ = ()
    __dataclass_fields__: dict[str, Any]

    def _values(self) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in self.__dataclass_fields__])

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        pairs = zip(self.__dataclass_fields__, self._values(), strict=True)
        return (
            f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in pairs)})"
        )

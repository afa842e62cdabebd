"""
The type of each function of a module, read where it is looked at.

A module may have 100,000 functions and export five. Reading all of their indices took most of the
time in which a large module is found in the cache.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, overload

_ENDS = bytes(0x80) + b"\xff" * 0x80  # of each byte, 0 if it ends a number
_NUMBER = re.compile(rb"[\x80-\xff]{0,4}[\x00-\x7f]")
_TOO_LARGE = re.compile(rb"[\x80-\xff]{4}[\x10-\xff]")
_STRIDE = 512  # bytes between two places whose index is known


class Indices(Sequence[int]):
    """
    Indices, of imports and then of what a section defines: a vector of LEB128 numbers.

    Args:
        imported: Those that come first.
        body: The numbers, as they are encoded.
        count: How many there are.
    Raises:
        ValueError: If *body* has more or fewer numbers, or one of more than 32 bits.
    """

    __slots__ = ("_body", "_count", "_ends", "_imported")

    def __init__(self, imported: Sequence[int], body: bytes, count: int) -> None:
        ending = body.translate(_ENDS)
        ends = list(
            accumulate(
                ending.count(b"\0", start, start + _STRIDE)
                for start in range(0, len(body), _STRIDE)
            )
        )
        if (ends[-1] if ends else 0) != count or ending.endswith(b"\xff"):
            raise ValueError(f"expected {count} indices")
        if b"\xff\xff\xff\xff" in ending and _TOO_LARGE.search(body):
            raise ValueError("number too large")
        self._imported = imported
        self._body = body
        self._count = count
        self._ends = ends  # how many numbers end before each stride does

    def __len__(self) -> int:
        return len(self._imported) + self._count

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> list[int]: ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[each] for each in range(len(self))[at]]
        at = range(len(self))[at]
        if at < len(self._imported):
            return self._imported[at]
        at -= len(self._imported)
        body = self._body
        if len(body) == self._count:  # nothing but numbers of one byte
            return body[at]
        stride = bisect_right(self._ends, at)
        start = stride * _STRIDE
        before = self._ends[stride - 1] if stride else 0
        while start and body[start - 1] > 0x7F:  # the number began in the stride before
            start -= 1
        end = min((stride + 1) * _STRIDE, len(body))
        return _value(_NUMBER.findall(body, start, end)[at - before])

    def __iter__(self) -> Iterator[int]:
        yield from self._imported
        yield from map(_value, _NUMBER.findall(self._body))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<indices of {len(self)} functions>"


def _value(number: bytes) -> int:
    value = 0
    for shift, byte in enumerate(number):
        value |= (byte & 0x7F) << (7 * shift)
    return value

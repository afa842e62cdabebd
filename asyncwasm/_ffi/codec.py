"""
Values between Python and the native library, compiled once per function type.

Rule 1: conversion happens before the store is entered, because it may run the user's
``__index__`` and ``__float__``; a value that cannot be converted never reaches native code.
Rule 2: numbers travel in bulk through one `struct.Struct`; only when that refuses are the
values looked at one by one, to find the narrowest error or the value that struct rejects
and the contract takes (an f32 that overflows to infinity).

There are two layouts. "Raw" (16 bytes a value, results over arguments) is what an unchecked
call takes; "val" (32 bytes: kind, then payload) is what everything else takes.
"""

from __future__ import annotations

import ctypes
import math
import operator
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from .._types import FunctionType, ValueType

RAW_BYTES = 16
VAL_BYTES = 32
PAYLOAD = 8  # offset of the payload in a val

KIND_FUNC, KIND_EXTERN, KIND_ANY, KIND_EXN = 5, 6, 7, 8
KINDS = {"i32": 0, "i64": 1, "f32": 2, "f64": 3, "v128": 4}
_LETTERS = {"i32": "i", "i64": "q", "f32": "f", "f64": "d", "v128": "16s"}
_SIZES = {"i32": 4, "i64": 8, "f32": 4, "f64": 8, "v128": 16}
_INFINITY = math.inf
EXACT = frozenset((int, float))  # the types whose conversion runs nobody's code


def to_integer(value: Any, bits: int, type: str) -> int:
    """Return *value* as a signed integer of *bits*; the upper half may be given unsigned."""
    if not hasattr(value.__class__, "__index__"):
        hint = "; floats are not truncated, use int(...)" if isinstance(value, float) else ""
        raise TypeError(f"expected an int for {type}, got {_described(value)}{hint}")
    index = int.__index__(operator.index(value))  # of a bool, too
    if not -(1 << bits - 1) <= index < 1 << bits:
        raise OverflowError(
            f"{type} takes {-(1 << bits - 1)} to {(1 << bits) - 1}, got {index}; "
            f"to wrap it use {index} & 0x{(1 << bits) - 1:x}"
        )
    return index if index < 1 << bits - 1 else index - (1 << bits)


def to_float(value: Any, type: str) -> float:
    """Return *value* as a float; an f32 too large to round becomes infinite."""
    if not (hasattr(value.__class__, "__float__") or hasattr(value.__class__, "__index__")):
        raise TypeError(f"expected a float for {type}, got {_described(value)}")
    number = float(value)
    if type == "f32":
        try:
            struct.pack("<f", number)
        except OverflowError:
            return math.copysign(_INFINITY, number)
    return number


def to_vector(value: Any) -> bytes:
    """Return *value* as the 16 bytes of a v128."""
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"expected 16 bytes for v128, got {_described(value)}")
    data = bytes(value)
    if len(data) != 16:
        raise TypeError(f"expected 16 bytes for v128, got {len(data)}")
    return data


NUMBERS: dict[str, Callable[[Any], Any]] = {
    "i32": lambda value: to_integer(value, 32, "i32"),
    "i64": lambda value: to_integer(value, 64, "i64"),
    "f32": lambda value: to_float(value, "f32"),
    "f64": lambda value: to_float(value, "f64"),
    "v128": to_vector,
}


def _described(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def wrong_count(given: int, type: FunctionType, name: str) -> TypeError:
    """Return the error for a call with the wrong number of arguments."""
    wanted = len(type.parameters)
    return TypeError(
        f"wasm function {name!r} takes {wanted} argument{'s' * (wanted != 1)} "
        f"({', '.join(type.parameters) or 'none'}), got {given}"
    )


class Row:
    """A row of value types: how arguments, results or fields are laid out in memory."""

    __slots__ = (
        "_kinds",
        "_pack",
        "checked",
        "letters",
        "numeric",
        "outcome",
        "raw_bytes",
        "raw_letters",
        "raw_pack",
        "raw_unpack",
        "types",
        "unpack",
        "val_bytes",
        "val_memory",
    )

    def __init__(self, types: Sequence[ValueType]) -> None:
        self.types = tuple(types)
        self.numeric = all(type in KINDS for type in self.types)
        # struct pads or cuts a vector of the wrong length in silence
        self.checked = "v128" in self.types
        self.val_bytes = VAL_BYTES * len(self.types)
        self.raw_bytes = RAW_BYTES * len(self.types)
        if self.numeric:
            self.raw_letters = "".join(
                f"{_LETTERS[type]}{RAW_BYTES - _SIZES[type]}x" for type in self.types
            )
            val = "".join(f"B7x{_LETTERS[type]}{24 - _SIZES[type]}x" for type in self.types)
            payload = "".join(f"8x{_LETTERS[type]}{24 - _SIZES[type]}x" for type in self.types)
            self.letters = "".join("v" if type == "v128" else _LETTERS[type] for type in self.types)
            raw = struct.Struct("<" + self.raw_letters)
            self.raw_pack, self.raw_unpack = raw.pack_into, raw.unpack_from
            # the trap and the raw results of a direct call
            self.outcome = struct.Struct("<Q8x" + self.raw_letters).unpack_from
            self._pack = struct.Struct("<" + val).pack_into
            self.unpack = struct.Struct("<" + payload).unpack_from
            self.val_memory = (ctypes.c_ubyte * self.val_bytes).from_address
            self._kinds: list[Any] = []
            for type in self.types:
                self._kinds += [KINDS[type], None]

    def converted(self, values: Sequence[Any]) -> list[Any]:
        """Return numeric *values* converted one by one, or raise the narrowest error."""
        return [NUMBERS[type](value) for type, value in zip(self.types, values, strict=True)]

    def pack_raw(self, memory: Any, offset: int, values: Sequence[Any]) -> None:
        """Write numeric *values* in the raw layout."""
        if self.checked:
            values = self.converted(values)
        try:
            self.raw_pack(memory, offset, *values)
        except (struct.error, OverflowError):
            self.raw_pack(memory, offset, *self.converted(values))

    def packed_raw(self, values: Sequence[Any]) -> bytearray:
        """Return numeric *values* in the raw layout."""
        packed = bytearray(self.raw_bytes)
        self.pack_raw(packed, 0, values)
        return packed

    def pack_exact(self, memory: Any, offset: int, values: Sequence[Any]) -> None:
        """Write plain numbers in the val layout; `struct.error` or OverflowError if some do not fit."""
        items = self._kinds.copy()
        items[1::2] = values
        self._pack(memory, offset, *items)

    def pack(self, memory: Any, offset: int, values: Sequence[Any]) -> None:
        """Write numeric *values* in the val layout; there must be as many as types."""
        if self.checked or not EXACT.issuperset(map(type, values)):
            values = self.converted(values)  # once: it runs the user's code
        try:
            self.pack_exact(memory, offset, values)
        except (struct.error, OverflowError):
            self.pack_exact(memory, offset, self.converted(values))


@lru_cache(maxsize=4096)
def row(types: tuple[ValueType, ...]) -> Row:
    """Return the row of *types*; the same one each time."""
    return Row(types)

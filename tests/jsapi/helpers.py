"""What the conformance tests share: modules from text, and the three ways to instantiate them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Literal

import pytest

import asyncwasm as aw

from ..support import instance, wasm

EMPTY = b"\0asm\x01\0\0\0"

# Wrong in every place that wants a page count, a length or an index.
NOT_AN_INTEGER = [1.5, float("nan"), "1", None, b"1", 1j, [1], object()]
# What an address that is no u32, or no u64, may raise: the exact class is left open.
ADDRESS_ERRORS = (TypeError, ValueError, OverflowError)
# Import parts that are no objects.
PRIMITIVES: list[Any] = [True, "", b"", bytearray(), 1, 0.1, float("nan")]

# Called with names of types, as users write them.
GlobalType: Any = aw.GlobalType
TableType: Any = aw.TableType

# Exports `fn: (f64) -> ()` and `fn2: () -> ()`.
TWO_FUNCTIONS = '(module (func (export "fn") (param f64)) (func (export "fn2")))'


def readable(value: object) -> str:
    """Name a parameter the same way in every process."""
    if isinstance(value, type) or callable(value):
        return getattr(value, "__name__", type(value).__name__)
    text = repr(value)
    return type(value).__name__ if " at 0x" in text or len(text) > 40 else text


def compiled(text: str, **options: Any) -> aw.Module:
    """Compile a module in the text format, synchronously."""
    return aw.Module(wasm(text), **options)


def instance_of(text: str, imports: Any = None, **options: Any) -> aw.Instance:
    """Instantiate a module in the text format, synchronously."""
    return instance(text, imports, **options)


def exports_of(text: str, imports: Any = None, **options: Any) -> Any:
    """Return the exports of a new instance of a module in the text format."""
    return instance_of(text, imports, **options).exports


def two_functions() -> tuple[Any, Any]:
    """Return two exported functions of different types, of one instance."""
    exports = exports_of(TWO_FUNCTIONS)
    return exports.fn, exports.fn2


Way = Callable[..., Awaitable[aw.Instance]]


async def _constructor(wasm: bytes, imports: Any = None) -> aw.Instance:
    return aw.Instance(aw.Module(wasm), imports)


async def _from_bytes(wasm: bytes, imports: Any = None) -> aw.Instance:
    return (await aw.instantiate(wasm, imports)).instance


async def _from_module(wasm: bytes, imports: Any = None) -> aw.Instance:
    return await aw.instantiate(await aw.compile(wasm), imports)


WAYS: dict[str, Way] = {
    "Instance": _constructor,
    "instantiate-bytes": _from_bytes,
    "instantiate-Module": _from_module,
}
in_every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


class Recorder(Mapping[str, Any]):
    """A mapping that writes down each key it is asked for."""

    def __init__(self, order: list[str], parts: Mapping[str, Any]) -> None:
        self._order = order
        self._parts = parts

    def __getitem__(self, key: str) -> Any:
        self._order.append(key)
        return self._parts[key]

    def __contains__(self, key: object) -> bool:
        return key in self._parts

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("imports are looked up by name, not listed")

    def __len__(self) -> int:
        return len(self._parts)


class Index:
    """An integer that is none: it has only ``__index__``, and counts how often it was asked."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.asked = 0

    def __index__(self) -> int:
        self.asked += 1
        return self.value


class Float:
    """A number that has only ``__float__``."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return self.value


def leb128(number: int) -> bytes:
    """Encode an unsigned number as the binary format does."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def section(identifier: int, content: bytes) -> bytes:
    """Encode one section of a binary module."""
    return bytes([identifier]) + leb128(len(content)) + content


def vector(count: int, item: bytes) -> bytes:
    """Encode *count* times the same item."""
    return leb128(count) + item * count


AddressName = Literal["i32", "i64"]

"""Address values and byte sources, converted as the JS API does."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from .._errors import RangeError, TableIndexError
from .._runtime.source import FileReader
from .._types import AddressName

BytesLike: TypeAlias = "bytes | bytearray | memoryview"
Source: TypeAlias = "bytes | bytearray | memoryview | os.PathLike[str]"


class AddressError(RangeError, TypeError, OverflowError):
    """
    An int that is no address or size at all: negative, or wider than the address type.

    JS raises TypeError where Python programmers expect a ValueError; this is both.
    """


class TableAddressError(AddressError, TableIndexError):
    """An int that can be no index of any table."""


def address_value(
    value: Any, address: AddressName, what: str, error: type[AddressError] = AddressError
) -> int:
    """
    Return *value* as an address.

    Spec: https://webassembly.github.io/spec/js-api/#addressvaluetou64
    """
    if not hasattr(value.__class__, "__index__"):
        raise TypeError(f"expected an int for {what}, got {type(value).__name__}")
    number = operator.index(value)
    bits = 64 if address == "i64" else 32
    if not 0 <= number < 1 << bits:
        raise error(f"expected {what} from 0 to 2**{bits} - 1, got {number}")
    return number


def address_name(value: Any) -> AddressName:
    """Return *value* if it names an address type."""
    if value == "i32":
        return "i32"
    if value == "i64":
        return "i64"
    raise TypeError(f"expected an address type of 'i32' or 'i64', got {value!r}")


def read_source(source: object) -> bytes:
    """
    Return a copy of the bytes of a bytes-like *source*.

    Spec: https://webassembly.github.io/spec/js-api/#dom-webassembly-compile
    """
    if type(source) is bytes:
        return source
    if isinstance(source, (str, Mapping)) or isinstance(source, os.PathLike):
        raise _no_source(source)
    try:
        view = memoryview(source)  # type: ignore[arg-type]  # refused below if it has no buffer
    except TypeError:
        raise _no_source(source) from None
    return view.tobytes()


def source_reader(source: object) -> tuple[Callable[[], bytes], object]:
    """
    Return a function that returns the bytes of *source*, and what identifies them.

    Bytes are copied now; a file is read when the function is called, on whatever thread.
    """
    if isinstance(source, os.PathLike):
        return FileReader(os.fspath(source)), object()
    binary = read_source(source)
    return (lambda: binary), ("bytes", id(binary))


def measured(read: Callable[[], bytes]) -> tuple[Callable[[], bytes], int]:
    """Return a function like *read*, and the size of what it returns; a plain file is not read."""
    if isinstance(read, FileReader):
        with read.glance() as glance:
            if glance is not None:
                return read, glance.identity.size
    binary = read()
    return (lambda: binary), len(binary)


def read_now(source: object) -> bytes:
    """Return the bytes of *source*, reading a file on this thread."""
    return source_reader(source)[0]()


def _no_source(source: object) -> TypeError:
    hint = ""
    if isinstance(source, str):
        hint = "; for a file use pathlib.Path(...), for text asyncwasm.wat2wasm(...)"
    return TypeError(f"expected a bytes-like object or a path, got {type(source).__name__}{hint}")

"""Values that are kept before there is a store to put them in."""

from __future__ import annotations

from typing import Any

from .._ffi.codec import NUMBERS
from .._ffi.references import GCObject
from .._runtime.store import StoreCore
from .._types import ValueType
from .function import ExportedFunction


def default_value(type: ValueType) -> Any:
    """
    Return the default value of *type*.

    Spec: https://webassembly.github.io/spec/js-api/#defaultvalue
    """
    if type in ("i32", "i64"):
        return 0
    if type in ("f32", "f64"):
        return 0.0
    if type == "v128":
        return bytes(16)
    if not type.nullable:
        raise TypeError(f"expected a value: {type} has no default")
    return None


def check_value(type: ValueType, value: Any) -> Any:
    """
    Return *value* as one of *type*, or raise TypeError or OverflowError.

    Only a store can tell whether a GC object has the right type; it will.
    """
    import struct

    if type in NUMBERS:
        number = NUMBERS[type](value)
        return struct.unpack("<f", struct.pack("<f", number))[0] if type == "f32" else number
    heap = type.heap
    if heap in ("exn", "noexn"):
        raise TypeError(f"values of {type} cannot cross between wasm and Python")
    if value is None:
        if not type.nullable:
            raise TypeError(f"expected a value for {type}, got None; this type has no null")
        return None
    if heap in ("func", "nofunc"):
        if heap == "nofunc" or not isinstance(value, ExportedFunction):
            hint = "; wrap a callable with asyncwasm.Function" if callable(value) else ""
            raise TypeError(
                f"expected an exported function or None for {type}, got {value!r}{hint}"
            )
    elif heap in ("none", "noextern"):
        raise TypeError(f"expected None for {type}, got {value!r}")
    elif heap in ("eq", "struct", "array", "i31"):
        small = isinstance(value, int) and -(1 << 30) <= value < 1 << 30
        if not (
            (small and heap in ("eq", "i31")) or (isinstance(value, GCObject) and heap != "i31")
        ):
            raise TypeError(f"expected a value for {type}, got {value!r}")
    return value


def store_of(value: Any) -> StoreCore | None:
    """Return the store that *value* lives in, if it is bound to one."""
    if isinstance(value, ExportedFunction):
        return value._store
    return None

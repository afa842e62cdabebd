"""
Arrays of 16-bit integers that guests made, as the code units of a text.

Rule 1: whoever opens an array is in its store; it is closed before the store is left.
Rule 2: store, element type and bounds are checked here, before the library is asked for an
element: it ends the process for some of these mistakes.
Rule 3: nothing here allocates in the guest's heap, so that nothing can be collected.
"""

from __future__ import annotations

import ctypes
from array import array
from functools import cache

from .._errors import RangeError
from .codec import KINDS, PAYLOAD, VAL_BYTES
from .errors import check
from .handles import StoreHandle
from .library import lib
from .references import GCObject, References

_REFERENCE_BYTES = 24
_FIELD_BYTES = 24  # whether it is mutable; at 8 the kind of its storage
_STORAGE = 8
_I16 = 1
_ELEMENT = 2  # where the payload of a val is, in words of 32 bits

# Made once: looking a function up takes as long as a few calls of it.
_function = cache(lib.undeclared)


class CodeUnits:
    """
    A mutable array of 16-bit integers, until the block ends.

    Raises:
        TypeError: If *value* is no such array, or belongs to another store.
    """

    __slots__ = ("_at", "_context", "_reference", "length")

    def __init__(self, handle: StoreHandle, references: References, value: object) -> None:
        self._reference = (ctypes.c_ubyte * _REFERENCE_BYTES)()
        self._at = ctypes.addressof(self._reference)
        self._context = handle.context
        if not isinstance(value, GCObject) or value._table is not references:
            raise TypeError(f"expected an array of this store, got {value!r}")
        if not lib.wasmtime_anyref_as_array(self._context, value._root + PAYLOAD, self._at):
            raise TypeError(f"expected an array, got {value!r}")
        try:
            self._check_elements()
            length = ctypes.c_uint32()
            check(
                lib.wasmtime_arrayref_len(self._context, self._at, ctypes.byref(length)),
                RangeError,
            )
        except BaseException:
            self._close()
            raise
        self.length = length.value

    def _check_elements(self) -> None:
        field = (ctypes.c_ubyte * _FIELD_BYTES)()
        type = lib.wasmtime_arrayref_type(self._context, self._at)
        try:
            lib.wasmtime_array_type_element(type, ctypes.addressof(field))
        finally:
            lib.wasmtime_array_type_delete(type)
        mutable, storage = field[0], field[_STORAGE]
        lib.wasmtime_field_type_delete(ctypes.addressof(field))
        if not mutable or storage != _I16:
            raise TypeError("expected an array of mutable 16-bit integers")

    def __enter__(self) -> CodeUnits:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close()

    def _close(self) -> None:
        lib.wasmtime_arrayref_unroot(self._at)

    def _check_bounds(self, start: int, end: int) -> None:
        if not 0 <= start <= end <= self.length:
            raise RangeError(f"{start} to {end} is not within an array of {self.length}")

    def read(self, start: int, end: int) -> array[int]:
        """Return the elements from *start* up to *end*."""
        self._check_bounds(start, end)
        get = _function("wasmtime_arrayref_get")
        units = array("H")
        if start == end:
            return units
        val = (ctypes.c_uint32 * (VAL_BYTES // 4))()
        context, reference = ctypes.c_void_p(self._context), ctypes.c_void_p(self._at)
        index, at = ctypes.c_uint32(), ctypes.c_void_p(ctypes.addressof(val))
        append = units.append
        for position in range(start, end):
            index.value = position
            check(get(context, reference, index, at), RangeError)
            append(val[_ELEMENT])
        return units

    def write(self, start: int, units: array[int]) -> None:
        """Set the elements from *start* on."""
        self._check_bounds(start, start + len(units))
        put = _function("wasmtime_arrayref_set")
        val = (ctypes.c_uint32 * (VAL_BYTES // 4))(KINDS["i32"])
        context, reference = ctypes.c_void_p(self._context), ctypes.c_void_p(self._at)
        index, at = ctypes.c_uint32(), ctypes.c_void_p(ctypes.addressof(val))
        for position, unit in enumerate(units, start):
            index.value = position
            val[_ELEMENT] = unit
            check(put(context, reference, index, at), RangeError)

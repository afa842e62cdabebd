"""
References: Python objects, functions and GC objects as wasm values.

Rule 1: no Python object is reached from native code except through an identifier in its
store's table. The store owns the table, so that cycles through it can be collected.
Rule 2: a native finalizer runs wherever the collector runs, a fiber included. It only notes
the identifier; the object is let go later, on an ordinary stack (`drain`).
Rule 3: a val that is written here owns its root. Whoever hands it to a function that borrows
frees it with `unroot`; what the library takes over or has read, it frees itself.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any, Protocol

from .._types import ValueType
from .codec import (
    KIND_ANY,
    KIND_EXN,
    KIND_EXTERN,
    KIND_FUNC,
    KINDS,
    NUMBERS,
    PAYLOAD,
    VAL_BYTES,
    Row,
)
from .handles import StoreHandle
from .library import lib

_I31 = range(-(1 << 30), 1 << 30)
_dropped: deque[int] = deque()
_FINALIZER = ctypes.CFUNCTYPE(None, ctypes.c_size_t)(_dropped.append)
_tables: weakref.WeakValueDictionary[int, References] = weakref.WeakValueDictionary()
_serials = itertools.count(1)
_INDEX_BITS = 40
_FIRST_COLLECTION = 4096

_FUNC_HEAPS = ("func", "nofunc")
_EXTERN_HEAPS = ("extern", "noextern")
_EXN_HEAPS = ("exn", "noexn")


class FunctionRegistry(Protocol):
    """What a store knows of functions."""

    def function_to_raw(self, function: Any) -> tuple[int, int]: ...
    def function_from_raw(self, raw: tuple[int, int]) -> Any: ...
    def is_function(self, value: object) -> bool: ...


class GCObject:
    """
    An object that a guest made: opaque, hashable by identity, good for handing back.

    Spec: https://webassembly.github.io/spec/js-api/#exported-gc-exotic-objects
    """

    __slots__ = ("__weakref__", "_root", "_table")

    _root: int  # address of the val that keeps it
    _table: References

    def __init__(self) -> None:
        raise TypeError("a GCObject is made by a guest, not by calling the class")

    def __reduce__(self) -> Any:
        raise TypeError("a GCObject cannot be pickled or copied: it belongs to a store")

    def __repr__(self) -> str:
        return f"<asyncwasm.GCObject at 0x{id(self):x}>"


class Family:
    """Which of the four families of references a type belongs to; decided once per type."""

    __slots__ = ("heap", "kind", "nullable", "type")

    def __init__(self, type: ValueType, concrete_kind: int) -> None:
        self.type = type
        self.heap = type.heap
        self.nullable = type.nullable
        if self.heap in _FUNC_HEAPS:
            self.kind = KIND_FUNC
        elif self.heap in _EXTERN_HEAPS:
            self.kind = KIND_EXTERN
        elif self.heap in _EXN_HEAPS:
            self.kind = KIND_EXN
        elif self.heap.isdecimal():
            self.kind = concrete_kind
        else:
            self.kind = KIND_ANY


_family = lru_cache(maxsize=4096)(Family)


def _refuse(family: Family, value: object, hint: str = "") -> TypeError:
    return TypeError(f"expected {_EXPECTED[family.kind]} for {family.type}, got {value!r}{hint}")


_EXPECTED = {
    KIND_FUNC: "an exported function or asyncwasm.Function",
    KIND_EXTERN: "an object",
    KIND_ANY: "an int in the i31 range, a GCObject or None",
    KIND_EXN: "nothing (exception references cannot cross)",
}


class References:
    """The host values of one store, and the rules for every reference in and out of it."""

    def __init__(self, handle: StoreHandle, functions: FunctionRegistry) -> None:
        self._handle = handle
        self._functions = functions
        self._serial = next(_serials)
        self._count = itertools.count(self._serial << _INDEX_BITS)
        self._values: dict[int, object] = {}
        self._objects: weakref.WeakValueDictionary[int, GCObject] = weakref.WeakValueDictionary()
        self._collect_at = _FIRST_COLLECTION
        _tables[self._serial] = self

    def __len__(self) -> int:
        drain()
        return len(self._values)

    def prepare(self, type: ValueType, value: Any, concrete_kind: int = KIND_ANY) -> Any:
        """
        Return *value* in the form that `write` takes, or raise TypeError.

        Runs outside of the store, because numbers run the user's conversions.
        """
        if type in NUMBERS:
            return NUMBERS[type](value)
        family = _family(type, concrete_kind)
        kind, heap = family.kind, family.heap
        if kind == KIND_EXN:
            raise _refuse(family, value)
        if value is None:
            if not family.nullable:
                raise _refuse(family, value, "; this type has no null")
            return None
        if kind == KIND_FUNC:
            if heap == "nofunc" or not self._functions.is_function(value):
                hint = "; wrap a callable with asyncwasm.Function" if callable(value) else ""
                raise _refuse(family, value, hint)
            return self._functions.function_to_raw(value)
        if kind == KIND_EXTERN:
            if heap == "noextern":
                raise _refuse(family, value)
            return value
        if isinstance(value, GCObject):
            if value._table is not self:
                raise TypeError(f"{value!r} belongs to another store")
            return value
        if isinstance(value, int) and heap in ("any", "eq", "i31") and value in _I31:
            return int(value)
        if heap != "any":
            raise _refuse(family, value)
        return _HostValue(value)

    def write(
        self, type: ValueType, address: int, prepared: Any, concrete_kind: int = KIND_ANY
    ) -> None:
        """Write a prepared value to the val at *address*. The caller is in the store."""
        if type in KINDS:
            ctypes.c_uint8.from_address(address).value = KINDS[type]
            _write_number(type, address + PAYLOAD, prepared)
            return
        kind = _family(type, concrete_kind).kind
        ctypes.c_uint8.from_address(address).value = kind
        payload = address + PAYLOAD
        ctypes.memset(payload, 0, 24)
        if prepared is None:
            return
        if kind == KIND_FUNC:
            (ctypes.c_uint64 * 2).from_address(payload)[:] = prepared
        elif kind == KIND_EXTERN:
            self._write_extern(payload, prepared)
        else:
            self._write_any(payload, prepared)

    def _write_extern(self, payload: int, value: object) -> None:
        if isinstance(value, GCObject) and value._table is self:
            raw = lib.wasmtime_anyref_to_raw(self._handle.context, value._root + PAYLOAD)
            lib.wasmtime_externref_from_raw(self._handle.context, raw, payload)
            return
        if len(self._values) >= self._collect_at:
            self._collect()
        identifier = next(self._count)
        self._values[identifier] = value
        if not lib.wasmtime_externref_new(self._handle.context, identifier, _finalizer(), payload):
            del self._values[identifier]
            raise MemoryError("the store has no room for another reference to a host value")

    def _write_any(self, payload: int, prepared: Any) -> None:
        context = self._handle.context
        if isinstance(prepared, GCObject):
            lib.wasmtime_val_clone(prepared._root, payload - PAYLOAD)
        elif isinstance(prepared, int):
            lib.wasmtime_anyref_from_i31(context, prepared & 0xFFFFFFFF, payload)
        else:
            # The two hierarchies share one representation, as `any.convert_extern` does.
            self._write_extern(payload, prepared.value)
            raw = lib.wasmtime_externref_to_raw(context, payload)
            val = payload - PAYLOAD
            extern = (ctypes.c_ubyte * VAL_BYTES)()
            ctypes.memmove(extern, val, VAL_BYTES)
            extern[0] = KIND_EXTERN
            lib.wasmtime_anyref_from_raw(context, raw, payload)
            lib.wasmtime_val_unroot(ctypes.addressof(extern))

    def collect(self) -> None:
        """Run the native collector, so that `drain` finds what is free. The caller is in the store."""
        # The collector does not see the stacks of suspended fibers.
        if not self._handle.futures:
            error = lib.wasmtime_context_gc(self._handle.context)
            if error:
                lib.wasmtime_error_delete(error)

    def _collect(self) -> None:
        self.collect()
        drain()
        self._collect_at = max(_FIRST_COLLECTION, 2 * len(self._values))

    def read(self, address: int) -> Any:
        """Return the value of the val at *address*. The caller is in the store."""
        kind = ctypes.c_uint8.from_address(address).value
        payload = address + PAYLOAD
        if kind <= 4:
            return _read_number(kind, payload)
        store_id, second = (ctypes.c_uint64 * 2).from_address(payload)
        if not store_id:
            return None
        if kind == KIND_FUNC:
            return self._functions.function_from_raw((store_id, second))
        if kind == KIND_EXTERN:
            return self._read_extern(payload)
        if kind == KIND_ANY:
            return self._read_any(address)
        raise TypeError("an exception reference cannot cross to the host")

    def _read_extern(self, payload: int) -> Any:
        identifier = lib.wasmtime_externref_data(self._handle.context, payload)
        if identifier:
            return self._values[identifier]
        # An internal reference that `extern.convert_any` sent over.
        raw = lib.wasmtime_externref_to_raw(self._handle.context, payload)
        return self._read_raw_any(raw)

    def _read_any(self, address: int) -> Any:
        context = self._handle.context
        payload = address + PAYLOAD
        raw = lib.wasmtime_anyref_to_raw(context, payload)
        if not (
            lib.wasmtime_anyref_is_struct(context, payload)
            or lib.wasmtime_anyref_is_array(context, payload)
        ):
            # `wasmtime_anyref_is_i31` says yes to every object; the tag bit does not lie.
            if raw & 1:
                number = ctypes.c_int32()
                lib.wasmtime_anyref_i31_get_s(context, payload, ctypes.byref(number))
                return number.value
            extern = (ctypes.c_ubyte * VAL_BYTES)()
            extern[0] = KIND_EXTERN
            at = ctypes.addressof(extern)
            lib.wasmtime_externref_from_raw(context, raw, at + PAYLOAD)
            try:
                return self._values[lib.wasmtime_externref_data(context, at + PAYLOAD)]
            finally:
                lib.wasmtime_val_unroot(at)
        known = self._objects.get(raw)
        if known is not None:
            return known
        object_ = GCObject.__new__(GCObject)
        root = (ctypes.c_ubyte * VAL_BYTES)()
        object_._table = self
        object_._root = ctypes.addressof(root)
        lib.wasmtime_val_clone(address, object_._root)
        weakref.finalize(object_, _forget_root, self._handle, root).atexit = False
        self._objects[raw] = object_
        return object_

    def _read_raw_any(self, raw: int) -> Any:
        val = (ctypes.c_ubyte * VAL_BYTES)()
        val[0] = KIND_ANY
        address = ctypes.addressof(val)
        lib.wasmtime_anyref_from_raw(self._handle.context, raw, address + PAYLOAD)
        try:
            return self._read_any(address)
        finally:
            lib.wasmtime_val_unroot(address)

    def prepare_row(
        self, row: Row, values: Sequence[Any], concrete: Sequence[int] = ()
    ) -> list[Any]:
        """Prepare as many *values* as *row* has types."""
        kinds = concrete or itertools.repeat(KIND_ANY)
        return [
            self.prepare(type, value, kind)
            for type, value, kind in zip(row.types, values, kinds, strict=False)
        ]

    def write_row(
        self, row: Row, address: int, prepared: Iterable[Any], concrete: Sequence[int] = ()
    ) -> None:
        """Write prepared values from *address* on."""
        kinds = concrete or itertools.repeat(KIND_ANY)
        for type, value, kind in zip(row.types, prepared, kinds, strict=False):
            self.write(type, address, value, kind)
            address += VAL_BYTES

    def read_row(self, count: int, address: int) -> tuple[Any, ...]:
        """Return *count* values from *address* on."""
        return tuple(self.read(address + VAL_BYTES * index) for index in range(count))


class _HostValue:
    """Marks a host object on its way into the internal hierarchy."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


@cache
def _finalizer() -> int:
    return ctypes.cast(_FINALIZER, ctypes.c_void_p).value or 0


def _forget_root(handle: StoreHandle, root: Any) -> None:
    # A root may be freed on any thread; it only marks itself as dead.
    if handle.ours:
        lib.wasmtime_val_unroot(ctypes.addressof(root))


def unroot(address: int, count: int) -> None:
    """Free the roots that *count* vals from *address* on own."""
    for index in range(count):
        lib.wasmtime_val_unroot(address + VAL_BYTES * index)


def drain() -> None:
    """Let go of the host values whose references the collector has freed."""
    while _dropped:
        try:
            identifier = _dropped.popleft()
        except IndexError:  # another thread was faster
            return
        table = _tables.get(identifier >> _INDEX_BITS)
        if table is not None:
            table._values.pop(identifier, None)


def pending_drops() -> bool:
    """Return whether `drain` has something to do."""
    return bool(_dropped)


_FORMATS = {0: "<i", 1: "<q", 2: "<f", 3: "<d", 4: "<16s"}


def _write_number(type: ValueType, address: int, value: Any) -> None:
    data = struct.pack(_FORMATS[KINDS[type]], value)
    ctypes.memmove(address, data, len(data))


def _read_number(kind: int, address: int) -> Any:
    return struct.unpack(
        _FORMATS[kind], ctypes.string_at(address, struct.calcsize(_FORMATS[kind]))
    )[0]

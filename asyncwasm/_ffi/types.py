"""Types between our vocabulary and the native library's."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from .._errors import RangeError
from .._types import (
    FunctionType,
    GlobalType,
    MemoryType,
    TableType,
    TagType,
    ValueType,
    reference,
)
from .errors import check
from .handles import Handle
from .library import PointerVec, lib

_NUMERIC = ("i32", "i64", "f32", "f64", "v128")
_REFERENCE = 5
_HEAPS = (
    "extern",
    "noextern",
    "func",
    "concrete func",
    "nofunc",
    "any",
    "none",
    "eq",
    "i31",
    "array",
    "concrete array",
    "struct",
    "concrete struct",
    "exn",
    "concrete exn",
    "noexn",
)
_UNLIMITED = 0xFFFFFFFF


class _Type(ctypes.Structure):
    """``wasmtime_valtype_t``, its reference and heap types spread out."""

    _fields_ = [
        ("kind", ctypes.c_uint8),
        ("nullable", ctypes.c_uint64),  # a bool; the rest of the word is padding
        ("heap", ctypes.c_uint64),  # a byte, likewise
        ("of", ctypes.c_void_p),
    ]


def value_type(engine: Handle, type: ValueType) -> int:
    """Return a new native value type, which the caller owns."""
    native = _Type()
    if type in _NUMERIC:
        native.kind = _NUMERIC.index(type)
    else:
        if type.heap not in _HEAPS:
            raise TypeError(f"{type} names a type of one module; a host object cannot have it")
        native.kind = _REFERENCE
        native.nullable = type.nullable
        native.heap = _HEAPS.index(type.heap)
    pointer: int = lib.wasmtime_valtype_to_wasm(engine.pointer, ctypes.byref(native))
    return pointer


def _vector(engine: Handle, types: Sequence[ValueType]) -> PointerVec:
    vector = PointerVec()
    pointers = [value_type(engine, type) for type in types]
    array = (ctypes.c_void_p * len(pointers))(*pointers)
    lib.wasm_valtype_vec_new(ctypes.byref(vector), len(pointers), array)
    return vector


def function_type(engine: Handle, type: FunctionType) -> Handle:
    """Return a new native function type."""
    parameters = _vector(engine, type.parameters)
    results = _vector(engine, type.results)
    return Handle(
        lib.wasm_functype_new(ctypes.byref(parameters), ctypes.byref(results)),
        "wasm_functype_delete",
    )


def tag_type(engine: Handle, type: TagType) -> Handle:
    """Return a new native tag type."""
    function = function_type(engine, FunctionType(type.parameters))
    pointer, function.pointer = function.pointer, 0  # taken over
    return Handle(lib.wasm_tagtype_new(pointer), "wasm_tagtype_delete")


def global_type(engine: Handle, type: GlobalType) -> Handle:
    """Return a new native global type."""
    return Handle(
        lib.wasm_globaltype_new(value_type(engine, type.value), type.mutable),
        "wasm_globaltype_delete",
    )


def table_type(engine: Handle, type: TableType) -> Handle:
    """Return a new native table type; the native API has no 64-bit tables."""
    if type.address == "i64":
        raise RangeError("the engine cannot make a table with 64-bit addresses from the host")
    limits = (ctypes.c_uint32 * 2)(
        type.minimum, _UNLIMITED if type.maximum is None else min(type.maximum, _UNLIMITED)
    )
    return Handle(
        lib.wasm_tabletype_new(value_type(engine, type.element), limits),
        "wasm_tabletype_delete",
    )


def memory_type(type: MemoryType) -> Handle:
    """Return a new native memory type."""
    pointer = ctypes.c_void_p()
    check(
        lib.wasmtime_memorytype_new(
            type.minimum,
            type.maximum is not None,
            type.maximum or 0,
            type.address == "i64",
            type.shared,
            16,
            ctypes.byref(pointer),
        ),
        RangeError,
    )
    return Handle(pointer.value or 0, "wasm_memorytype_delete")


def read_function_type(pointer: int) -> FunctionType:
    """Return the type at *pointer*; references to concrete types are widened."""
    return FunctionType(
        _read_vector(lib.wasm_functype_params(pointer)),
        _read_vector(lib.wasm_functype_results(pointer)),
    )


def _read_vector(pointer: int) -> list[ValueType]:
    return [_read(each) for each in PointerVec.from_address(pointer).pointers()]


def _read(pointer: int) -> ValueType:
    native = _Type()
    lib.wasmtime_valtype_new(pointer, ctypes.byref(native))
    try:
        if native.kind != _REFERENCE:
            return ValueType(_NUMERIC[native.kind])
        heap = _HEAPS[native.heap & 0xFF].removeprefix("concrete ")
        return reference(heap, bool(native.nullable & 1))
    finally:
        lib.wasmtime_valtype_delete(ctypes.byref(native))

"""Engines and modules: making and checking them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

from .._errors import CompileError
from . import accelerator, pooling
from .errors import compile_error, take_error
from .handles import Handle, was_forked
from .library import ByteVec, PointerVec, lib, machine

OPTIMIZING, BASELINE = 1, 2
_OFF_BY_DEFAULT = ("wide_arithmetic", "custom_page_sizes")
_FIBER_STACK_BYTES = 2 << 20


def new_engine(
    *,
    strategy: int,
    fuel: bool,
    max_wasm_stack_bytes: int,
    features: Mapping[str, bool],
    parallel: bool = True,
    pool: pooling.Sizes | None = None,
) -> Handle:
    """
    Return a new native engine; one that is not *parallel* compiles on the calling thread.

    Raises:
        RangeError: If the system has no room for *pool*.
    """
    stack_bytes = max_wasm_stack_bytes + _FIBER_STACK_BYTES
    if pool is not None:
        pooling.check_room(pool, stack_bytes)
    config = lib.wasm_config_new()
    lib.wasmtime_config_strategy_set(config, strategy)
    lib.wasmtime_config_epoch_interruption_set(config, True)
    lib.wasmtime_config_consume_fuel_set(config, fuel)
    lib.wasmtime_config_max_wasm_stack_set(config, max_wasm_stack_bytes)
    lib.wasmtime_config_async_stack_size_set(config, stack_bytes)
    lib.wasmtime_config_memory_may_move_set(config, False)
    lib.wasmtime_config_shared_memory_set(config, features.get("threads", True))
    lib.wasmtime_config_wasm_component_model_async_set(config, False)
    # In a forked process the threads of the parent's compiler do not exist.
    lib.wasmtime_config_parallel_compilation_set(config, parallel and not was_forked())
    # Only what differs from the library's defaults: it aborts the process when a proposal that
    # the compiler lacks is asked for, and switches it off by itself when it is not.
    for name, enabled in features.items():
        if enabled is not (name in _OFF_BY_DEFAULT):
            continue
        getattr(lib, f"wasmtime_config_wasm_{name}_set")(config, enabled)
    if pool is not None:
        pooling.configure(config, pool)
    accelerator.bind()  # stores come after engines
    return Handle(lib.wasm_engine_new_with_config(config), "wasm_engine_delete")


def new_module(engine: Handle, binary: bytes) -> Handle:
    """Compile *binary* on this thread (and the library's own), without holding the GIL."""
    pointer = ctypes.c_void_p()
    error = lib.wasmtime_module_new(
        engine.pointer, ctypes.c_char_p(binary), len(binary), ctypes.byref(pointer)
    )
    if error:
        raise compile_error(error)
    return Handle(pointer.value or 0, "wasmtime_module_delete")


def validate(engine: Handle, binary: bytes) -> None:
    """Raise CompileError unless *binary* is a valid module."""
    error = lib.wasmtime_module_validate(engine.pointer, ctypes.c_char_p(binary), len(binary))
    if error:
        raise compile_error(error)


def is_valid(engine: Handle, binary: bytes) -> bool:
    """Return whether *binary* is a valid module."""
    error = lib.wasmtime_module_validate(engine.pointer, ctypes.c_char_p(binary), len(binary))
    if error:
        take_error(error)
    return not error


def engine_version() -> str:
    """Return the version of the library."""
    return lib.loaded_version()


def has_baseline() -> bool:
    """Return whether the baseline compiler makes code for this machine."""
    return machine() == "x86_64"


def serialize(module: Handle) -> bytes:
    """Return the code of *module*, which any engine of the same configuration can load."""
    vector = ByteVec()
    error = lib.wasmtime_module_serialize(module.pointer, ctypes.byref(vector))
    if error:
        raise compile_error(error)
    return vector.take()


def deserialize(engine: Handle, code: bytes) -> Handle:
    """Load what `serialize` returned. Anything else is executed all the same: authenticate it."""
    pointer = ctypes.c_void_p()
    error = lib.wasmtime_module_deserialize(
        engine.pointer, ctypes.c_char_p(code), len(code), ctypes.byref(pointer)
    )
    if error:
        raise compile_error(error)
    return Handle(pointer.value or 0, "wasmtime_module_delete")


def deserialize_file(engine: Handle, path: str) -> Handle:
    """Like `deserialize`, mapping the file at *path*, which must never be written to again."""
    pointer = ctypes.c_void_p()
    error = lib.wasmtime_module_deserialize_file(
        engine.pointer, os.fsencode(path), ctypes.byref(pointer)
    )
    if error:
        raise compile_error(error)
    return Handle(pointer.value or 0, "wasmtime_module_delete")


def imported_function_types(module: Handle) -> list[Handle | None]:
    """Return the native function type of every import of *module*; None if it is no function."""
    vector = PointerVec()
    lib.wasmtime_module_imports(module.pointer, ctypes.byref(vector))
    try:
        types: list[Handle | None] = []
        for pointer in vector.pointers():
            function = lib.wasm_externtype_as_functype_const(lib.wasm_importtype_type(pointer))
            types.append(
                Handle(lib.wasm_functype_copy(function), "wasm_functype_delete")
                if function
                else None
            )
        return types
    finally:
        lib.wasm_importtype_vec_delete(ctypes.byref(vector))


def wat2wasm(text: str) -> bytes:
    """Return the binary of a module in the text format."""
    try:
        data = text.encode()
    except UnicodeEncodeError as exc:
        raise CompileError(f"the text is not valid Unicode: {exc}") from None
    vector = ByteVec()
    error = lib.wasmtime_wat2wasm(data, len(data), ctypes.byref(vector))
    if error:
        raise CompileError(take_error(error).message)
    return vector.take()

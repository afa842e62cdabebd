"""
Native errors and traps, translated once, here.

Rule 1: whoever gets an error or trap pointer hands it to this module, which frees it.
"""

from __future__ import annotations

import ctypes
import re
from contextlib import suppress
from typing import Any, NamedTuple

from .._errors import (
    CompileError,
    Frame,
    Interrupted,
    StackOverflow,
    Trap,
    TrapCode,
    WasmError,
)
from .library import ByteVec, PointerVec, lib
from .pooling import POOL_EMPTY, explained

_OFFSET = r"\(at offset 0x([0-9a-f]+)\)"
_BACKTRACE = "error while executing at wasm backtrace:"
_UNKNOWN_OFFSET = (1 << 64) - 1
# What a direct call ends with at the epoch deadline of a store that has run fibers.
_CANNOT_YIELD = "cannot use `UpdateDeadline::Yield` without using an async wasm entrypoint"

_MESSAGES = {
    TrapCode.STACK_OVERFLOW: "call stack exhausted",
    TrapCode.MEMORY_OUT_OF_BOUNDS: "out of bounds memory access",
    TrapCode.HEAP_MISALIGNED: "unaligned atomic",
    TrapCode.TABLE_OUT_OF_BOUNDS: "out of bounds table access",
    TrapCode.INDIRECT_CALL_TO_NULL: "uninitialized element: call through a null table entry",
    TrapCode.BAD_SIGNATURE: "indirect call type mismatch",
    TrapCode.INTEGER_OVERFLOW: "integer overflow",
    TrapCode.INTEGER_DIVISION_BY_ZERO: "integer divide by zero",
    TrapCode.BAD_CONVERSION_TO_INTEGER: "invalid conversion to integer",
    TrapCode.UNREACHABLE: "unreachable executed",
    TrapCode.ATOMIC_WAIT_NON_SHARED_MEMORY: "atomic wait on a memory that is not shared",
    TrapCode.NULL_REFERENCE: "null reference",
    TrapCode.ARRAY_OUT_OF_BOUNDS: "out of bounds array access",
    TrapCode.ALLOCATION_TOO_LARGE: "allocation size too large",
    TrapCode.CAST_FAILURE: "cast failure",
}


class NativeError(NamedTuple):
    """What a native error says: its text without the backtrace, and the backtrace."""

    message: str
    frames: tuple[Frame, ...]

    @property
    def is_deadline(self) -> bool:
        """Whether the guest has reached its epoch deadline on a stack that cannot yield."""
        return _CANNOT_YIELD in self.message

    @property
    def is_empty_pool(self) -> bool:
        """Whether there was nothing left in the engine's pool."""
        return self.message.startswith(POOL_EMPTY)


def take_error(pointer: int) -> NativeError:
    """Read and free the error at *pointer*."""
    try:
        text = ByteVec()
        lib.wasmtime_error_message(pointer, ctypes.byref(text))
        frames = _frames(lib.wasmtime_error_wasm_trace, pointer)
    finally:
        lib.wasmtime_error_delete(pointer)
    return NativeError(explained(_bare(text.take().decode(errors="replace"))), frames)


def take_trap(pointer: int) -> Trap:
    """Read and free the trap at *pointer*, and return it as the narrowest exception."""
    try:
        number = ctypes.c_uint8()
        code: TrapCode | None = None
        if lib.wasmtime_trap_code(pointer, ctypes.byref(number)):
            with suppress(ValueError):  # a code newer than ours: the text still says what happened
                code = TrapCode(number.value)
        frames = _frames(lib.wasm_trap_trace, pointer)
        message = None if code is None else _MESSAGES.get(code)
        if message is None:  # otherwise it need not be asked for: making it takes long
            text = ByteVec()
            lib.wasm_trap_message(pointer, ctypes.byref(text))
            message = _bare(text.take().rstrip(b"\0").decode(errors="replace"))
    finally:
        lib.wasm_trap_delete(pointer)
    if frames:
        message = f"{message} in {frames[0]}"
    if code is TrapCode.STACK_OVERFLOW:
        return StackOverflow(message, code, frames)
    if code is TrapCode.OUT_OF_FUEL:
        return Interrupted("fuel", code=code, frames=frames)
    if code is TrapCode.INTERRUPT:
        return Interrupted("deadline", frames=frames)
    return Trap(message, code, frames)


def compile_error(pointer: int) -> CompileError:
    """Read and free the error at *pointer*, and return it as a CompileError."""
    message = take_error(pointer).message
    found = re.search(_OFFSET, message)
    return CompileError(message, int(found[1], 16) if found else None)


def check(pointer: int | None, error: type[WasmError]) -> None:
    """Raise *error* with the text of the native error at *pointer*, if there is one."""
    if pointer:
        raise error(take_error(pointer).message)


def _bare(message: str) -> str:
    """Return *message* without the backtrace, its causes joined in one line."""
    if message.startswith(_BACKTRACE):
        _, found, causes = message.partition("Caused by:")
        message = causes if found else message
    parts = []
    for line in message.replace("Caused by:", "").splitlines():
        text = re.sub(r"^\s*(\d+: )?", "", line).strip()
        if text and text not in parts:
            parts.append(text)
    return ": ".join(parts)


def _frames(trace: Any, pointer: int) -> tuple[Frame, ...]:
    vector = PointerVec()
    trace(pointer, ctypes.byref(vector))
    try:
        return tuple(map(_frame, vector.pointers()))
    finally:
        lib.wasm_frame_vec_delete(ctypes.byref(vector))


def _frame(pointer: int) -> Frame:
    name = _name(lib.wasmtime_frame_func_name(pointer))
    offset = lib.wasm_frame_module_offset(pointer)
    return Frame(
        _name(lib.wasmtime_frame_module_name(pointer)),
        str(lib.wasm_frame_func_index(pointer)) if name is None else name,
        None if offset == _UNKNOWN_OFFSET else offset,
    )


def _name(pointer: int | None) -> str | None:
    if not pointer:
        return None
    return ByteVec.from_address(pointer).copy().decode(errors="replace")


def check_type(pointer: int | None, expected: str, value: object) -> None:
    """Raise TypeError if the library has refused *value*."""
    if pointer:
        message = take_error(pointer).message
        raise TypeError(f"expected {expected}, got {value!r}: {message}")

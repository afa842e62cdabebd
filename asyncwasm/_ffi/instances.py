"""
Making a store, an instance in it, and finding what that exports: the life of a short guest.

Rule 1: addresses in, addresses out: each of these is one step in C where the accelerator is.
Rule 2: but for `open_store`, the caller is in the store.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any

from . import accelerator
from .accelerator import speedups
from .library import lib

EXTERN_BYTES = 32
_Place = ctypes.c_ubyte * EXTERN_BYTES
_Words = ctypes.c_size_t * 4
_FUNCTION = struct.Struct("<8xQQ")


def _open_store(engine: int, ticks: int, *limits: int) -> tuple[int, int]:
    pointer = lib.wasmtime_store_new(engine, None, None)
    context = lib.wasmtime_store_context(pointer)
    lib.wasmtime_context_set_epoch_deadline(context, ticks)
    lib.wasmtime_store_limiter(pointer, *limits)
    return pointer, context


def _instantiate(
    context: int, module: int, externs: Sequence[bytes | bytearray]
) -> tuple[int, int, bytes]:
    place = _Place()
    at = ctypes.addressof(place)
    vector = ctypes.c_char_p(b"".join(externs)) if externs else None
    error = lib.wasmtime_instance_new(context, module, vector, len(externs), at, at + 16)
    made = bytes(place)
    return error or 0, int.from_bytes(made[16:24], "little"), made[:16]


def _find_export(context: int, instance: bytes, name: bytes) -> bytes:
    place = _Place()
    at = ctypes.addressof(place)
    found = lib.wasmtime_instance_export_get(
        context, ctypes.c_char_p(instance), name, len(name), at
    )
    assert found
    return bytes(place)


def _find_function(context: int, instance: bytes, name: bytes) -> tuple[int, int, int, int]:
    first, second = _FUNCTION.unpack_from(_find_export(context, instance, name))
    words = _Words.from_address(second)
    return first, second, words[0], words[3]


# (engine, ticks to the epoch deadline, *limits): the store and its context
open_store: Callable[..., tuple[int, int]] = _open_store
# (context, module, externs): error, trap, instance
instantiate: Callable[[int, int, Sequence[Any]], tuple[int, int, bytes]] = _instantiate
# (context, instance, name): the extern
find_export: Callable[[int, bytes, bytes], bytes] = _find_export
# (context, instance, name): the two words of the function, and those that identify it
find_function: Callable[[int, bytes, bytes], tuple[int, int, int, int]] = _find_function

if speedups is not None:

    def _open_first(engine: int, ticks: int, *limits: int) -> tuple[int, int]:
        accelerator.bind()
        pair: tuple[int, int] = speedups.open_store(engine, ticks, *limits)
        return pair

    open_store = _open_first
    instantiate = speedups.instantiate
    find_export = speedups.find_export
    find_function = speedups.find_function

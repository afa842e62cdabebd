"""
Making an instance, and finding what it exports: the life of a short guest.

Rule 1: addresses in, addresses out: each of these is one step in C where the accelerator is.
Rule 2: the caller is in the store, unless it says otherwise.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .accelerator import speedups
from .handles import FAR, Handle, StoreHandle
from .library import lib

EXTERN_BYTES = 32
_Place = ctypes.c_ubyte * EXTERN_BYTES
_Words = ctypes.c_size_t * 4
_FUNCTION = struct.Struct("<8xQQ")


def _instantiate(
    context: int, module: int, externs: Sequence[bytes | bytearray]
) -> tuple[int, int, bytes]:
    place = _Place()
    at = ctypes.addressof(place)
    vector = ctypes.c_char_p(b"".join(externs)) if externs else None
    error = lib.wasmtime_instance_new(context, module, vector, len(externs), at, at + 16)
    made = bytes(place)
    return error or 0, int.from_bytes(made[16:24], "little"), made[:16]


def _build(
    engine: Handle,
    limits: tuple[int, int, int, int, int],
    stack_bytes: int,
    code: int,
    linked: bool,
) -> tuple[StoreHandle, int, int, bytes]:
    handle = StoreHandle(engine, FAR, limits, stack_bytes)
    with handle.lock:
        return handle, *_instantiate(handle.context, code, ())


def _find_export(context: int, instance: bytes, name: bytes) -> bytes:
    place = _Place()
    at = ctypes.addressof(place)
    found = lib.wasmtime_instance_export_get(
        context, ctypes.c_char_p(instance), name, len(name), at
    )
    assert found
    return bytes(place)


def _find_function(
    handle: StoreHandle, instance: bytes, name: bytes
) -> tuple[tuple[int, int], tuple[int, int, int]] | None:
    if handle.closing or not handle.ours or handle.lock.locked():
        return None
    with handle.lock:
        if not handle.open:
            return None
        first, second = _FUNCTION.unpack_from(_find_export(handle.context, instance, name))
    words = _Words.from_address(second)
    return (first, second), (0, words[0], words[3])


# (context, module, externs): error, trap, instance
instantiate: Callable[[int, int, Sequence[Any]], tuple[int, int, bytes]] = _instantiate
# (context, linked module): the same; it has plain host functions only, which only the accelerator
# knows, and no start function
instantiate_linked: Callable[[int, int], tuple[int, int, bytes]]
# (engine, limits, stack bytes, module, whether that is a linked one): a store, as the handle makes
# it, then the same; nothing is imported, or what it is linked with
build: Callable[
    [Handle, tuple[int, int, int, int, int], int, int, bool], tuple[StoreHandle, int, int, bytes]
] = _build
# (context, instance, name): the extern
find_export: Callable[[int, bytes, bytes], bytes] = _find_export
# (handle, instance, name): the two words of the function, and what identifies it; None if somebody
# is in the store, which takes more care. The caller need not be.
find_function: Callable[
    [StoreHandle, bytes, bytes], tuple[tuple[int, int], tuple[int, int, int]] | None
] = _find_function

if speedups is not None:
    build = partial(speedups.build, StoreHandle)
    instantiate = speedups.instantiate
    instantiate_linked = speedups.instantiate_linked
    find_export = speedups.find_export
    find_function = speedups.find_function

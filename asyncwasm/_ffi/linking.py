"""
Linking: host functions and externs under the names that a module imports.

Rule 1: host functions are defined as asynchronous ones, all with one callback; what tells
them apart is their number in the store. So a store with host functions runs on fibers only.
Rule 2: whoever calls these functions is in the store.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from .._errors import LinkError, RangeError
from . import instances
from .errors import check
from .externs import FUNCTION, Extern
from .fiber import Fiber, import_callback
from .handles import Handle, StoreHandle
from .library import lib


class Linker:
    """Definitions for one instantiation."""

    def __init__(self, handle: StoreHandle) -> None:
        self._store = handle
        self._handle = Handle(
            lib.wasmtime_linker_new(handle.engine.pointer), "wasmtime_linker_delete"
        )

    @property
    def pointer(self) -> int:
        """The native linker."""
        return self._handle.pointer

    def define(self, module: str, name: str, extern: Extern) -> None:
        """Define an extern of the store."""
        first, second = module.encode(), name.encode()
        check(
            lib.wasmtime_linker_define(
                self.pointer,
                self._store.context,
                first,
                len(first),
                second,
                len(second),
                extern.whole,
            ),
            LinkError,
        )

    def define_host(self, module: str, name: str, type: Handle, number: int) -> None:
        """Define host function *number* of the store."""
        first, second = module.encode(), name.encode()
        check(
            lib.wasmtime_linker_define_async_func(
                self.pointer,
                first,
                len(first),
                second,
                len(second),
                type.pointer,
                import_callback(),
                number,
                None,
            ),
            LinkError,
        )

    def link(self, module: Handle) -> Handle:
        """
        Return *module* linked with what was defined: host functions only.

        It is good for any store of the engine in which they have the same numbers.
        """
        linked = ctypes.c_void_p()
        check(
            lib.wasmtime_linker_instantiate_pre(self.pointer, module.pointer, ctypes.byref(linked)),
            LinkError,
        )
        return Handle(linked.value or 0, "wasmtime_instance_pre_delete")

    def get(self, module: str, name: str) -> Extern:
        """Return what was defined, as an extern of the store."""
        first, second = module.encode(), name.encode()
        extern = Extern()
        found = lib.wasmtime_linker_get(
            self.pointer,
            self._store.context,
            first,
            len(first),
            second,
            len(second),
            extern.whole,
        )
        assert found
        return extern.found()


def instantiate_directly(
    handle: StoreHandle, module: Handle, externs: Sequence[Extern]
) -> tuple[int, int, bytes]:
    """Instantiate without a fiber, and return (error, trap, instance)."""
    given = [bytes(each.memory) for each in externs] if externs else ()
    return instances.instantiate(handle.context, module.pointer, given)


def instantiate_alone(handle: StoreHandle, module: Handle) -> bytes:
    """Instantiate a module of our own, which imports nothing and runs nothing."""
    linker = Linker(handle)
    fiber = Fiber(handle, 16)
    fiber.start_instantiation(linker.pointer, module.pointer, (linker, module))
    try:
        done = fiber.poll(False)
        assert done
        trap, error = fiber.outcome()
        assert not trap
        check(error, RangeError)
        return fiber.payload(16)
    finally:
        fiber.delete()


def exported_function(
    handle: StoreHandle, instance: bytes, name: str
) -> tuple[tuple[int, int], tuple[Any, ...]]:
    """Return the function that *instance* exports as *name*, raw, and what identifies it."""
    first, second, code, context = instances.find_function(handle.context, instance, name.encode())
    return (first, second), (FUNCTION, code, context)


def export(handle: StoreHandle, instance: bytes, name: str) -> Extern:
    """Return the extern that *instance* exports as *name*."""
    return Extern.of(instances.find_export(handle.context, instance, name.encode()))

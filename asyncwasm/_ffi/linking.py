"""
Linking: host functions and externs under the names that a module imports.

Rule 1: what tells host functions apart is their number in the store. Plain ones are defined as
ordinary functions of the library's, and wait, on fibers, by calling the store's waiter; the others
are asynchronous ones, and a store that has one of those runs on fibers only.
Rule 2: whoever calls these functions is in the store.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

from .._errors import LinkError, RangeError
from .._types import FunctionType
from . import instances, types
from .errors import check
from .externs import Extern
from .fiber import Fiber, callbacks
from .handles import Handle, StoreHandle
from .library import lib


class Linker:
    """Definitions for instantiations."""

    def __init__(self, engine: Handle) -> None:
        self._handle = Handle(lib.wasmtime_linker_new(engine.pointer), "wasmtime_linker_delete")

    @property
    def pointer(self) -> int:
        """The native linker."""
        return self._handle.pointer

    def define(self, module: str, name: str, store: StoreHandle, extern: Extern) -> None:
        """Define an extern of a store."""
        first, second = module.encode(), name.encode()
        check(
            lib.wasmtime_linker_define(
                self.pointer,
                store.context,
                first,
                len(first),
                second,
                len(second),
                extern.whole,
            ),
            LinkError,
        )

    def define_host(
        self, module: str, name: str, type: Handle, number: int, *, plain: bool
    ) -> None:
        """Define host function *number* of the store."""
        if plain:
            self._define(
                lib.wasmtime_linker_define_func_unchecked,
                (module, name),
                type,
                callbacks().plain,
                number,
            )
        else:
            self._define(
                lib.wasmtime_linker_define_async_func,
                (module, name),
                type,
                callbacks().importing,
                number,
            )

    def define_waiter(self, type: Handle) -> None:
        """Define the function that suspends the fiber of whoever calls it, as "" ""."""
        self._define(lib.wasmtime_linker_define_async_func, ("", ""), type, callbacks().waiting, 0)

    def _define(
        self, define: Any, names: tuple[str, str], type: Handle, callback: int, number: int
    ) -> None:
        first, second = names[0].encode(), names[1].encode()
        check(
            define(
                self.pointer,
                first,
                len(first),
                second,
                len(second),
                type.pointer,
                callback,
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

    def get(self, module: str, name: str, store: StoreHandle) -> Extern:
        """Return what was defined, as an extern of a store."""
        first, second = module.encode(), name.encode()
        extern = Extern()
        found = lib.wasmtime_linker_get(
            self.pointer,
            store.context,
            first,
            len(first),
            second,
            len(second),
            extern.whole,
        )
        assert found
        return extern.found()


# By engine; the linker does not refer to it.
_waiters: weakref.WeakKeyDictionary[Handle, Linker] = weakref.WeakKeyDictionary()


def make_waiter(handle: StoreHandle) -> None:
    """Make what suspends fibers for the plain host functions of the store. The caller is inside."""
    engine: Handle = handle.engine
    linker = _waiters.get(engine)
    if linker is None:
        linker = Linker(engine)
        linker.define_waiter(types.function_type(engine, FunctionType((), ())))
        _waiters[engine] = linker
    handle.set_waiter(linker.get("", "", handle).raw)


def instantiate_directly(
    handle: StoreHandle, module: Handle, externs: Sequence[Extern]
) -> tuple[int, int, bytes]:
    """Instantiate without a fiber, and return (error, trap, instance)."""
    given = [bytes(each.memory) for each in externs] if externs else ()
    return instances.instantiate(handle.context, module.pointer, given)


def instantiate_linked(handle: StoreHandle, linked: Handle) -> tuple[int, int, bytes]:
    """Instantiate what is linked with plain host functions, and return (error, trap, instance)."""
    return instances.instantiate_linked(handle.context, linked.pointer)


def instantiate_alone(handle: StoreHandle, module: Handle) -> bytes:
    """Instantiate a module of our own, which imports nothing and runs nothing."""
    linker = Linker(handle.engine)
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
) -> tuple[tuple[int, int], tuple[Any, ...]] | None:
    """
    Return the function that *instance* exports as *name*, raw, and what identifies it.

    The caller need not be in the store; None if somebody is, or the store has been closed.
    """
    return instances.find_function(handle, instance, name.encode())


def export(handle: StoreHandle, instance: bytes, name: str) -> Extern:
    """Return the extern that *instance* exports as *name*."""
    return Extern.of(instances.find_export(handle.context, instance, name.encode()))

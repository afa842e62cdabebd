"""
When the library lets go of what it has rooted for itself.

`wasmtime_context_take_exception` roots what it returns until the call around it ends. Where no
call is around it, that is when the store is freed: every exception that a guest lets out would
stay until then, with the frames and locals of its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .._types import FunctionType
from .fiber import (
    IMPORT_FRAMES,
    Fiber,
    make_sure_of_room,
    on_main_thread,
    raise_deferred,
)
from .handles import StoreHandle
from .linking import Linker
from .types import function_type

_NUMBER = (1 << 32) - 1  # of no host function: the request is never answered


def new_scope_function(handle: StoreHandle) -> tuple[int, int]:
    """Return a function of the store that waits for ever, raw."""
    linker = Linker(handle.engine)
    type = function_type(handle.engine, FunctionType())
    linker.define_host("", "", type, _NUMBER, plain=False)
    return linker.get("", "", handle).raw


@contextmanager
def root_scope(handle: StoreHandle, function: tuple[int, int]) -> Iterator[None]:
    """
    Be inside of a call of *function*, which is suspended until the block ends.

    The caller is in the store, and in nothing that was begun after this and ends before.
    """
    try:
        make_sure_of_room(2 * IMPORT_FRAMES)
    except RecursionError:  # rather keep an exception for long than lose it
        yield
        return
    fiber = Fiber(handle, 0)
    fiber.start_call(function, 0, 0)
    try:
        fiber.poll(on_main_thread())
        yield
    finally:
        fiber.delete()
        raise_deferred()

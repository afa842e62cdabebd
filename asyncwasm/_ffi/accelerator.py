"""
The compiled accelerator, where it was built, unless ``ASYNCWASM_PURE=1`` says not to use it.

Rule 1: nothing depends on it. `speedups` is None without it, and everything works the same.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

from .library import lib

speedups: Any = None
if os.environ.get("ASYNCWASM_PURE", "0") in ("", "0"):
    try:
        from .. import _speedups as speedups  # type: ignore[attr-defined,no-redef]
    except ImportError:
        pass  # it is optional
_INTERFACE = 15  # of the file in C: the number there is raised with each change of what is here
if speedups is not None and getattr(speedups, "INTERFACE", None) != _INTERFACE:
    speedups = None
    warnings.warn(
        "asyncwasm's accelerator was built from other sources, and is left out; install again",
        RuntimeWarning,
        stacklevel=2,
    )

if speedups is not None and hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=speedups.forked)

_bound = False


def bind() -> None:
    """Hand the accelerator the addresses of the library's functions, once."""
    global _bound
    if _bound or speedups is None:
        return
    from .externs import Extern
    from .fiber import ANSWERED, DONE, IMPORT, YIELDED, abandon

    names = (  # in the order in which the accelerator has them
        "wasmtime_func_call_unchecked",
        "wasmtime_call_future_poll",
        "wasmtime_func_call_async",
        "wasmtime_call_future_delete",
        "wasmtime_context_set_epoch_deadline",
        "wasmtime_store_epoch_deadline_callback",
        "wasmtime_store_new",
        "wasmtime_store_context",
        "wasmtime_store_limiter",
        "wasmtime_store_delete",
        "wasmtime_instance_new",
        "wasmtime_instance_export_get",
        "wasmtime_instance_pre_instantiate",
        "wasmtime_trap_new",
        "wasm_trap_delete",
        "wasmtime_error_new",
        "wasmtime_error_delete",
        "wasmtime_engine_increment_epoch",
    )
    addresses = tuple(lib.address(name) for name in names)
    speedups.bind(addresses, DONE, IMPORT, YIELDED, ANSWERED, abandon, Extern.function)
    _bound = True

"""
The WebAssembly JavaScript API for async Python.

    module, instance = await asyncwasm.instantiate(wasm_bytes, {"env": {"log": print}})
    instance.exports.add(1, 2)                    # a synchronous call, as in JS
    await instance.exports.fib.call_async(40)     # never holds the event loop
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._api import compile as compile
from ._api import compile_streaming as compile_streaming
from ._api import instantiate as instantiate
from ._api import instantiate_streaming as instantiate_streaming
from ._api import validate as validate
from ._api import wat2wasm as wat2wasm
from ._driver.compiling import Instantiated as Instantiated
from ._errors import BlockingCallWarning as BlockingCallWarning
from ._errors import CompileError as CompileError
from ._errors import Frame as Frame
from ._errors import Interrupted as Interrupted
from ._errors import LargeModuleError as LargeModuleError
from ._errors import LargeModuleWarning as LargeModuleWarning
from ._errors import LinkError as LinkError
from ._errors import RangeError as RangeError
from ._errors import StackOverflow as StackOverflow
from ._errors import SuspendError as SuspendError
from ._errors import TableIndexError as TableIndexError
from ._errors import Trap as Trap
from ._errors import TrapCode as TrapCode
from ._errors import WasmError as WasmError
from ._ffi.references import GCObject as GCObject
from ._objects.engine import Engine as Engine
from ._objects.exception import WasmException as WasmException
from ._objects.function import ExportedFunction as ExportedFunction
from ._objects.function import Function as Function
from ._objects.function import Suspending as Suspending
from ._objects.function import promising as promising
from ._objects.global_ import Global as Global
from ._objects.guard import configure_sync_guard as configure_sync_guard
from ._objects.instance import Instance as Instance
from ._objects.memory import Memory as Memory
from ._objects.module import Module as Module
from ._objects.store import Store as Store
from ._objects.table import Table as Table
from ._objects.tag import PYTHON_TAG as PYTHON_TAG
from ._objects.tag import Tag as Tag
from ._runtime.config import EngineConfig as EngineConfig
from ._runtime.config import Limits as Limits
from ._runtime.config import Pooling as Pooling
from ._types import ExportDescriptor as ExportDescriptor
from ._types import FunctionType as FunctionType
from ._types import GlobalType as GlobalType
from ._types import ImportDescriptor as ImportDescriptor
from ._types import MemoryType as MemoryType
from ._types import TableType as TableType
from ._types import TagType as TagType
from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .batch import Loaded as Loaded
    from .batch import load_many as load_many
    from .pool import InstancePool as InstancePool

__all__ = (
    "PYTHON_TAG",
    "BlockingCallWarning",
    "CompileError",
    "Engine",
    "EngineConfig",
    "ExportDescriptor",
    "ExportedFunction",
    "Frame",
    "Function",
    "FunctionType",
    "GCObject",
    "Global",
    "GlobalType",
    "ImportDescriptor",
    "Instance",
    "InstancePool",
    "Instantiated",
    "Interrupted",
    "LargeModuleError",
    "LargeModuleWarning",
    "Limits",
    "LinkError",
    "Loaded",
    "Memory",
    "MemoryType",
    "Module",
    "Pooling",
    "RangeError",
    "StackOverflow",
    "Store",
    "SuspendError",
    "Suspending",
    "Table",
    "TableIndexError",
    "TableType",
    "Tag",
    "TagType",
    "Trap",
    "TrapCode",
    "WasmError",
    "WasmException",
    "compile",
    "compile_streaming",
    "configure_sync_guard",
    "instantiate",
    "instantiate_streaming",
    "load_many",
    "promising",
    "validate",
    "wat2wasm",
)

_LAZY = {"InstancePool": "pool", "Loaded": "batch", "load_many": "batch"}  # name -> its face

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a face when something of it is first used: most programs need few of them."""
        face = _LAZY.get(name)
        if face is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{face}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


for _name in __all__:
    if _name in _LAZY:
        continue  # says itself where it is at home
    _object = globals()[_name]
    if isinstance(_object, type) or callable(_object):
        _object.__module__ = __name__
del TYPE_CHECKING, _name, _object

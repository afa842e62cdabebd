"""
The wheel's shared library, loaded on first use.

Rule 1: importing this module loads nothing; the first attribute of `lib` does.
Rule 2: the library is found beside the installed `wasmtime` package, whose Python code is
not imported: that alone would cost a tenth of a second.
Rule 3: a function that is not in PROTOTYPES is not called.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import Any

SUPPORTED = (50, 51)  # from, below: the raw layer may change with every major release

_CODES: dict[str, Any] = {
    "v": None,
    "p": ctypes.c_void_p,
    "s": ctypes.c_char_p,
    "z": ctypes.c_size_t,
    "b": ctypes.c_bool,
    "B": ctypes.c_uint8,
    "i": ctypes.c_int32,
    "I": ctypes.c_uint32,
    "q": ctypes.c_int64,
    "Q": ctypes.c_uint64,
}

# name: result and parameters, one letter each
PROTOTYPES = {
    "wasm_byte_vec_delete": "v p",
    "wasm_config_new": "p",
    "wasm_engine_new_with_config": "p p",
    "wasm_engine_delete": "v p",
    "wasm_externtype_as_functype_const": "p p",
    "wasm_frame_func_index": "I p",
    "wasm_frame_module_offset": "z p",
    "wasm_frame_vec_delete": "v p",
    "wasm_functype_copy": "p p",
    "wasm_functype_delete": "v p",
    "wasm_functype_new": "p p p",
    "wasm_functype_params": "p p",
    "wasm_functype_results": "p p",
    "wasm_globaltype_delete": "v p",
    "wasm_globaltype_new": "p p B",
    "wasm_importtype_type": "p p",
    "wasm_importtype_vec_delete": "v p",
    "wasm_tabletype_delete": "v p",
    "wasm_tabletype_new": "p p p",
    "wasm_tagtype_delete": "v p",
    "wasm_tagtype_new": "p p",
    "wasm_tagtype_functype": "p p",
    "wasm_trap_delete": "v p",
    "wasm_trap_message": "v p p",
    "wasm_trap_trace": "v p p",
    "wasm_valtype_delete": "v p",
    "wasm_valtype_vec_delete": "v p",
    "wasm_valtype_vec_new": "v p z p",
    "wasmtime_anyref_as_array": "b p p p",
    "wasmtime_anyref_from_i31": "v p I p",
    "wasmtime_anyref_from_raw": "v p I p",
    "wasmtime_anyref_i31_get_s": "b p p p",
    "wasmtime_anyref_is_array": "b p p",
    "wasmtime_anyref_is_struct": "b p p",
    "wasmtime_anyref_to_raw": "I p p",
    "wasmtime_array_type_delete": "v p",
    "wasmtime_array_type_element": "v p p",
    "wasmtime_arrayref_get": "p p p I p",
    "wasmtime_arrayref_len": "p p p p",
    "wasmtime_arrayref_set": "p p p I p",
    "wasmtime_arrayref_type": "p p p",
    "wasmtime_arrayref_unroot": "v p",
    "wasmtime_call_future_delete": "v p",
    "wasmtime_call_future_poll": "b p",
    "wasmtime_config_async_stack_size_set": "v p z",
    "wasmtime_config_consume_fuel_set": "v p b",
    "wasmtime_config_cranelift_opt_level_set": "v p B",
    "wasmtime_config_epoch_interruption_set": "v p b",
    "wasmtime_config_max_wasm_stack_set": "v p z",
    "wasmtime_config_memory_may_move_set": "v p b",
    "wasmtime_config_parallel_compilation_set": "v p b",
    "wasmtime_config_shared_memory_set": "v p b",
    "wasmtime_config_strategy_set": "v p B",
    "wasmtime_config_wasm_component_model_async_set": "v p b",
    "wasmtime_config_wasm_custom_page_sizes_set": "v p b",
    "wasmtime_config_wasm_exceptions_set": "v p b",
    "wasmtime_config_wasm_function_references_set": "v p b",
    "wasmtime_config_wasm_gc_set": "v p b",
    "wasmtime_config_wasm_memory64_set": "v p b",
    "wasmtime_config_wasm_multi_memory_set": "v p b",
    "wasmtime_config_wasm_relaxed_simd_set": "v p b",
    "wasmtime_config_wasm_simd_set": "v p b",
    "wasmtime_config_wasm_tail_call_set": "v p b",
    "wasmtime_config_wasm_threads_set": "v p b",
    "wasmtime_config_wasm_wide_arithmetic_set": "v p b",
    "wasmtime_context_epoch_deadline_async_yield_and_update": "p p Q",
    "wasmtime_context_gc": "p p",
    "wasmtime_context_get_fuel": "p p p",
    "wasmtime_context_has_exception": "b p",
    "wasmtime_context_set_epoch_deadline": "v p Q",
    "wasmtime_context_set_exception": "p p p",
    "wasmtime_context_set_fuel": "p p Q",
    "wasmtime_context_take_exception": "b p p",
    "wasmtime_engine_increment_epoch": "v p",
    "wasmtime_error_delete": "v p",
    "wasmtime_error_message": "v p p",
    "wasmtime_error_new": "p s",
    "wasmtime_error_wasm_trace": "v p p",
    "wasmtime_exnref_clone": "v p p",
    "wasmtime_exnref_field": "p p p z p",
    "wasmtime_exnref_field_count": "z p p",
    "wasmtime_exnref_new": "p p p p z p",
    "wasmtime_exnref_tag": "p p p p",
    "wasmtime_exnref_to_raw": "I p p",
    "wasmtime_exnref_unroot": "v p",
    "wasmtime_externref_data": "p p p",
    "wasmtime_externref_from_raw": "v p I p",
    "wasmtime_externref_new": "b p p p p",
    "wasmtime_externref_to_raw": "I p p",
    "wasmtime_field_type_delete": "v p",
    "wasmtime_frame_func_name": "p p",
    "wasmtime_frame_module_name": "p p",
    "wasmtime_func_call": "p p p p z p z p",
    "wasmtime_func_call_async": "p p p p z p z p p",
    "wasmtime_func_call_unchecked": "p p p p z p",
    "wasmtime_func_type": "p p p",
    "wasmtime_global_get": "v p p p",
    "wasmtime_global_new": "p p p p p",
    "wasmtime_global_set": "p p p p",
    "wasmtime_instance_export_nth": "b p p z p p p",
    "wasmtime_instance_export_get": "b p p s z p",
    "wasmtime_instance_new": "p p p p z p p",
    "wasmtime_instance_pre_delete": "v p",
    "wasmtime_instance_pre_instantiate_async": "p p p p p p",
    "wasmtime_linker_define": "p p p s z s z p",
    "wasmtime_linker_define_async_func": "p p s z s z p p z p",
    "wasmtime_linker_define_func_unchecked": "p p s z s z p p z p",
    "wasmtime_linker_delete": "v p",
    "wasmtime_linker_get": "b p p s z s z p",
    "wasmtime_linker_instantiate_async": "p p p p p p p",
    "wasmtime_linker_instantiate_pre": "p p p p",
    "wasmtime_linker_new": "p p",
    "wasmtime_memory_data": "p p p",
    "wasmtime_memory_data_size": "z p p",
    "wasmtime_memory_grow": "p p p Q p",
    "wasmtime_memory_new": "p p p p",
    "wasmtime_memory_size": "Q p p",
    "wasm_memorytype_delete": "v p",
    "wasmtime_memorytype_new": "p Q b Q b b B p",
    "wasmtime_module_delete": "v p",
    "wasmtime_module_deserialize": "p p p z p",
    "wasmtime_module_deserialize_file": "p p s p",
    "wasmtime_module_imports": "v p p",
    "wasmtime_module_new": "p p p z p",
    "wasmtime_module_serialize": "p p p",
    "wasmtime_module_validate": "p p p z",
    "wasmtime_pooling_allocation_config_delete": "v p",
    "wasmtime_pooling_allocation_config_linear_memory_keep_resident_set": "v p z",
    "wasmtime_pooling_allocation_config_max_core_instance_size_set": "v p z",
    "wasmtime_pooling_allocation_config_max_memories_per_module_set": "v p I",
    "wasmtime_pooling_allocation_config_max_memory_size_set": "v p z",
    "wasmtime_pooling_allocation_config_max_tables_per_module_set": "v p I",
    "wasmtime_pooling_allocation_config_new": "p",
    "wasmtime_pooling_allocation_config_table_elements_set": "v p z",
    "wasmtime_pooling_allocation_config_table_keep_resident_set": "v p z",
    "wasmtime_pooling_allocation_config_total_core_instances_set": "v p I",
    "wasmtime_pooling_allocation_config_total_gc_heaps_set": "v p I",
    "wasmtime_pooling_allocation_config_total_memories_set": "v p I",
    "wasmtime_pooling_allocation_config_total_stacks_set": "v p I",
    "wasmtime_pooling_allocation_config_total_tables_set": "v p I",
    "wasmtime_pooling_allocation_strategy_set": "v p p",
    "wasmtime_sharedmemory_clone": "p p",
    "wasmtime_sharedmemory_data": "p p",
    "wasmtime_sharedmemory_data_size": "z p",
    "wasmtime_sharedmemory_delete": "v p",
    "wasmtime_sharedmemory_grow": "p p Q p",
    "wasmtime_sharedmemory_new": "p p p p",
    "wasmtime_sharedmemory_size": "Q p",
    "wasmtime_store_context": "p p",
    "wasmtime_store_delete": "v p",
    "wasmtime_store_limiter": "v p q q q q q",
    "wasmtime_store_new": "p p p p",
    "wasmtime_table_get": "b p p Q p",
    "wasmtime_table_grow": "p p p Q p p",
    "wasmtime_table_new": "p p p p p",
    "wasmtime_table_set": "p p p Q p",
    "wasmtime_table_size": "Q p p",
    "wasmtime_tag_eq": "b p p p",
    "wasmtime_tag_new": "p p p p",
    "wasmtime_tag_type": "p p p",
    "wasmtime_trap_code": "b p p",
    "wasmtime_trap_new": "p s z",
    "wasmtime_val_clone": "v p p",
    "wasmtime_val_unroot": "v p",
    "wasmtime_valtype_delete": "v p",
    "wasmtime_valtype_new": "v p p",
    "wasmtime_valtype_to_wasm": "p p p",
    "wasmtime_wat2wasm": "p s z p",
}


def machine() -> str:
    """Return the kind of processor, by the name that the wheel's directories have."""
    if hasattr(os, "uname"):
        name = os.uname().machine.lower()
    else:  # pragma: no cover  # Windows
        import platform  # takes as long to import as the library to load

        name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def _package() -> str:
    """Return the directory of the wasmtime package, which is not imported."""
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec("wasmtime")
    if spec is None:  # it may be installed in some other way than as a directory on the path
        import importlib.util

        spec = importlib.util.find_spec("wasmtime")
    if spec is None:
        raise ImportError(f"wasmtime is not installed; {_remedy()}", name="wasmtime")
    if not spec.submodule_search_locations:
        raise ImportError("the wasmtime package has no directory", name="wasmtime")
    return spec.submodule_search_locations[0]


def _version(package: str) -> str:
    """Return the version of what is in the directory *package*, which must be one we know."""
    # Installers write it into the name of a directory beside the package. Asking
    # importlib.metadata takes as long as everything else up to the first instance together.
    beside = [
        name[len("wasmtime-") : -len(".dist-info")]
        for name in os.listdir(os.path.dirname(package))
        if name.startswith("wasmtime-") and name.endswith(".dist-info")
    ]
    if len(beside) == 1:
        found = beside[0]
    else:
        import importlib.metadata

        try:
            found = importlib.metadata.version("wasmtime")
        except importlib.metadata.PackageNotFoundError:
            raise ImportError(f"wasmtime is not installed; {_remedy()}", name="wasmtime") from None
    low, high = SUPPORTED
    if not low <= int(found.split(".")[0]) < high:
        raise ImportError(f"found wasmtime {found}; {_remedy()}", name="wasmtime")
    return found


def _remedy() -> str:
    low, high = SUPPORTED
    return f"asyncwasm needs wasmtime >= {low}, < {high}: python -m pip install 'wasmtime>={low},<{high}'"


def _path(package: str) -> str:
    """Return the path of the library in the directory *package*."""
    system = "android" if hasattr(sys, "getandroidapilevel") else sys.platform
    names = {"win32": "_wasmtime.dll", "darwin": "_libwasmtime.dylib"}
    name = names.get(sys.platform, "_libwasmtime.so")
    path = os.path.join(package, f"{system}-{machine()}", name)
    if not os.path.exists(path):
        raise ImportError(
            f"the installed wasmtime has no library for {system}-{machine()} (looked for {name})",
            name="wasmtime",
        )
    return path


def _preload(path: str) -> None:
    """Load the library at *path* without the GIL, which ctypes holds all the while."""
    if sys.platform != "win32":
        dlopen = ctypes.CDLL(None).dlopen
        dlopen.restype, dlopen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)
        dlopen(os.fsencode(path), os.RTLD_NOW)  # whoever loads it then is told what is wrong


class Library:
    """The C API as attributes; each function is declared when it is first used."""

    def __init__(self) -> None:
        self.__dict__["_lock"] = threading.Lock()
        self.__dict__["_dll"] = None

    def __getattr__(self, name: str) -> Any:
        # Only reached for a function that was not used before.
        function = self.prototype(name)
        self.__dict__[name] = function
        return function

    def prototype(self, name: str) -> Any:
        """Return a new foreign function object for *name*, declared."""
        if name not in PROTOTYPES:
            raise AttributeError(name)
        result, *parameters = PROTOTYPES[name].split()
        function = self._load()[name]
        function.restype = _CODES[result]
        function.argtypes = [_CODES[code] for code in parameters]
        return function

    def undeclared(self, name: str) -> Any:
        """
        Return a new foreign function object for *name* without parameter types.

        The fastest way ctypes has to call: every argument must be a prepared ctypes object.
        """
        function = self.prototype(name)
        function.argtypes = None
        return function

    def brief(self, name: str) -> Any:
        """
        Return a new foreign function object for *name* that does not release the GIL.

        For functions that take less time than releasing it, and never call back.
        """
        self._load()
        function = self.__dict__["_brief"][name]
        result, *parameters = PROTOTYPES[name].split()
        function.restype = _CODES[result]
        function.argtypes = [_CODES[code] for code in parameters]
        return function

    def loaded_version(self) -> str:
        """Return the library's version."""
        self._load()
        version: str = self.__dict__["version"]
        return version

    def address(self, name: str) -> int:
        """Return the address of function *name*, to be handed back as a callback."""
        return ctypes.cast(self._load()[name], ctypes.c_void_p).value or 0

    def _load(self) -> Any:
        with self.__dict__["_lock"]:
            if self.__dict__["_dll"] is None:
                if sys.maxsize < 2**32:
                    raise ImportError("wasmtime only supports 64-bit platforms", name="wasmtime")
                package = _package()
                version = _version(package)
                path = _path(package)
                _preload(path)
                dll = ctypes.CDLL(path)
                self.__dict__["_brief"] = ctypes.PyDLL(path, handle=dll._handle)
                self.__dict__["_dll"] = dll
                self.__dict__["version"] = version
            return self.__dict__["_dll"]


lib = Library()


class ByteVec(ctypes.Structure):
    """``wasm_byte_vec_t``, also ``wasm_name_t``."""

    _fields_ = [("size", ctypes.c_size_t), ("data", ctypes.c_void_p)]

    def take(self) -> bytes:
        """Return a copy of the bytes, and free the native ones."""
        copy = self.copy()
        lib.wasm_byte_vec_delete(ctypes.byref(self))
        return copy

    def copy(self) -> bytes:
        """Return a copy of the bytes."""
        return ctypes.string_at(self.data, self.size) if self.size else b""


class PointerVec(ctypes.Structure):
    """Any ``wasm_*_vec_t`` of pointers."""

    _fields_ = [("size", ctypes.c_size_t), ("data", ctypes.c_void_p)]

    def pointers(self) -> list[int]:
        """Return the elements."""
        if not self.size:
            return []
        return list((ctypes.c_size_t * self.size).from_address(self.data))

"""
Memories, tables, globals, tags and functions of a store, as the native library names them.

Rule 1: an extern is a plain value, valid as long as its store; using one after that, or in
another store, aborts the process. The objects above check both before every call here.
Rule 2: every function here that takes a handle is called by someone who is in the store.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from .._errors import RangeError
from .._types import FunctionType, GlobalType, MemoryType, TableType, TagType, ValueType
from .._writer import table_module
from . import types
from .codec import KIND_ANY, KIND_EXN, VAL_BYTES
from .compiling import new_module
from .errors import check
from .handles import Handle, StoreHandle
from .library import lib
from .references import References, unroot

FUNCTION, GLOBAL, TABLE, MEMORY, SHARED_MEMORY, TAG = range(6)

# Where the fields are that tell one extern of a kind from another; the rest is padding.
_KEYS = {
    FUNCTION: struct.Struct("<QQ"),
    GLOBAL: struct.Struct("<QIII"),
    TABLE: struct.Struct("<QI4xI"),
    MEMORY: struct.Struct("<QI4xI"),
    SHARED_MEMORY: struct.Struct("<Q"),
    TAG: struct.Struct("<QI4xI"),
}


_Memory = ctypes.c_ubyte * 32
_FUNCTION = struct.Struct("<QQQ8x")


class Extern:
    """``wasmtime_extern_t``: a kind, and the value of that kind at `address`."""

    __slots__ = ("_raw", "kind", "memory")

    _raw: tuple[int, int]  # of a function that is known by its words
    memory: Any

    def __init__(self, kind: int = FUNCTION) -> None:
        self.kind = kind
        self.memory = _Memory(kind)

    @property
    def whole(self) -> int:
        """Address of the kind and the value."""
        return ctypes.addressof(self.memory)

    @property
    def address(self) -> int:
        """Address of the value."""
        return ctypes.addressof(self.memory) + 8

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies the value in its store."""
        return self.kind, *_KEYS[self.kind].unpack_from(self.memory, 8)

    @property
    def raw(self) -> tuple[int, int]:
        """The two words of a function."""
        try:
            return self._raw
        except AttributeError:
            first, second = struct.unpack_from("<QQ", self.memory, 8)
            return first, second

    @classmethod
    def function(cls, raw: tuple[int, int]) -> Extern:
        """Return the extern of a raw function."""
        extern = cls.__new__(cls)
        extern.kind = FUNCTION
        extern._raw = raw
        return extern

    def __getattr__(self, name: str) -> Any:
        # Most functions are called only, for which their words will do.
        if name != "memory":
            raise AttributeError(name)
        self.memory = _Memory.from_buffer_copy(_FUNCTION.pack(FUNCTION, *self._raw))
        return self.memory

    @classmethod
    def of(cls, whole: bytes) -> Extern:
        """Return the extern with these bytes."""
        extern = cls.__new__(cls)
        extern.kind = whole[0]
        extern.memory = _Memory.from_buffer_copy(whole)
        return extern

    def found(self) -> Extern:
        """Take over the kind that the library has written."""
        self.kind = self.memory[0]
        return self


def function_identity(raw: tuple[int, int]) -> tuple[int, int, int]:
    """
    Return what tells one function of a store from another.

    A function that is imported again gets another raw pointer in each instance, but all of
    them describe the same code (first word) with the same context (fourth word).
    """
    words = (ctypes.c_size_t * 4).from_address(raw[1])
    return FUNCTION, words[0], words[3]


def function_type(handle: StoreHandle, raw: tuple[int, int]) -> FunctionType:
    """Return the type of a function; references to concrete types are widened."""
    extern = Extern.function(raw)
    native = Handle(lib.wasmtime_func_type(handle.context, extern.address), "wasm_functype_delete")
    return types.read_function_type(native.pointer)


# memories


def new_memory(handle: StoreHandle, type: MemoryType) -> Extern:
    """Make a memory in the store."""
    extern = Extern(MEMORY)
    native = types.memory_type(type)
    check(lib.wasmtime_memory_new(handle.context, native.pointer, extern.address), RangeError)
    return extern


def memory_view(handle: StoreHandle, extern: Extern) -> memoryview:
    """Return the memory's bytes now; the view keeps the native store."""
    size = lib.wasmtime_memory_data_size(handle.context, extern.address)
    data = lib.wasmtime_memory_data(handle.context, extern.address)
    if not size:
        return memoryview(bytearray())
    array = (ctypes.c_ubyte * size).from_address(data)
    handle.add_view(array)
    return memoryview(array).cast("B")


def memory_span(handle: StoreHandle, extern: Extern) -> tuple[int, int]:
    """Return address and length of the memory's bytes now."""
    return (
        lib.wasmtime_memory_data(handle.context, extern.address) or 0,
        lib.wasmtime_memory_data_size(handle.context, extern.address),
    )


def memory_bytes(handle: StoreHandle, extern: Extern) -> int:
    """Return the memory's length in bytes."""
    size: int = lib.wasmtime_memory_data_size(handle.context, extern.address)
    return size


def grow_memory(handle: StoreHandle, extern: Extern, pages: int) -> int:
    """Grow the memory and return its old size in pages."""
    old = ctypes.c_uint64()
    check(
        lib.wasmtime_memory_grow(handle.context, extern.address, pages, ctypes.byref(old)),
        RangeError,
    )
    return old.value


def copy_out(address: int, length: int) -> bytes:
    """Return a copy of the bytes at *address*."""
    return ctypes.string_at(address, length)


class SharedMemory:
    """A memory that lives outside of any store."""

    def __init__(self, engine: Handle, type: MemoryType) -> None:
        native = types.memory_type(type)
        pointer = ctypes.c_void_p()
        check(
            lib.wasmtime_sharedmemory_new(engine.pointer, native.pointer, ctypes.byref(pointer)),
            RangeError,
        )
        self._handle = Handle(pointer.value or 0, "wasmtime_sharedmemory_delete")
        self._engine = engine

    @classmethod
    def from_extern(cls, extern: Extern, engine: Handle) -> SharedMemory:
        """Take over the shared memory that an instance exports."""
        self = cls.__new__(cls)
        pointer = struct.unpack_from("<Q", extern.memory, 8)[0]
        self._handle = Handle(pointer, "wasmtime_sharedmemory_delete")
        self._engine = engine
        return self

    @property
    def identity(self) -> int:
        """Where the bytes are: the same for every handle of one memory."""
        data: int = lib.wasmtime_sharedmemory_data(self._handle.pointer)
        return data

    def extern(self) -> Extern:
        """Return the extern to import."""
        extern = Extern(SHARED_MEMORY)
        struct.pack_into("<Q", extern.memory, 8, self._handle.pointer)
        return extern

    def view(self) -> memoryview:
        """Return the bytes now; the view keeps the memory."""
        size = lib.wasmtime_sharedmemory_data_size(self._handle.pointer)
        if not size:
            return memoryview(bytearray())
        array = (ctypes.c_ubyte * size).from_address(self.identity)
        array.keepalive = self
        return memoryview(array).cast("B")

    def byte_length(self) -> int:
        """Return the length in bytes."""
        size: int = lib.wasmtime_sharedmemory_data_size(self._handle.pointer)
        return size

    def grow(self, pages: int) -> int:
        """Grow and return the old size in pages."""
        old = ctypes.c_uint64()
        check(
            lib.wasmtime_sharedmemory_grow(self._handle.pointer, pages, ctypes.byref(old)),
            RangeError,
        )
        return old.value


# tables


class Val:
    """A val for one call; what it owns is freed when the block ends."""

    __slots__ = ("address", "memory")

    def __init__(self) -> None:
        self.memory = (ctypes.c_ubyte * VAL_BYTES)()
        self.address = ctypes.addressof(self.memory)

    def __enter__(self) -> Val:
        return self

    def __exit__(self, *exc_info: object) -> None:
        unroot(self.address, 1)


def new_table(
    handle: StoreHandle, references: References, type: TableType, prepared: Any
) -> Extern:
    """Make a table in the store, filled with *prepared*."""
    if type.address == "i64":
        return _new_wide_table(handle, references, type, prepared)
    extern = Extern(TABLE)
    native = types.table_type(handle.engine, type)
    with Val() as val:
        references.write(type.element, val.address, prepared)
        check(
            lib.wasmtime_table_new(handle.context, native.pointer, val.address, extern.address),
            RangeError,
        )
    return extern


def _new_wide_table(
    handle: StoreHandle, references: References, type: TableType, prepared: Any
) -> Extern:
    # The native API makes tables with 32-bit addresses only; a module makes the others.
    from .linking import export, instantiate_alone

    module = new_module(handle.engine, table_module(type))
    extern = export(handle, instantiate_alone(handle, module), "")
    if prepared is not None:
        for index in range(type.minimum):
            table_set(handle, references, extern, type.element, index, prepared)
    return extern


def table_length(handle: StoreHandle, extern: Extern) -> int:
    """Return the number of entries."""
    size: int = lib.wasmtime_table_size(handle.context, extern.address)
    return size


def table_get(
    handle: StoreHandle, references: References, extern: Extern, index: int
) -> tuple[bool, Any]:
    """Return whether *index* is in bounds, and the entry there."""
    with Val() as val:
        if not lib.wasmtime_table_get(handle.context, extern.address, index, val.address):
            return False, None
        return True, references.read(val.address)


def table_set(
    handle: StoreHandle,
    references: References,
    extern: Extern,
    element: ValueType,
    index: int,
    prepared: Any,
    concrete: int = KIND_ANY,
) -> int | None:
    """Store an entry; return the native error, if any."""
    with Val() as val:
        references.write(element, val.address, prepared, concrete)
        error: int | None = lib.wasmtime_table_set(
            handle.context, extern.address, index, val.address
        )
        return error


def table_grow(
    handle: StoreHandle,
    references: References,
    extern: Extern,
    element: ValueType,
    entries: int,
    prepared: Any,
    concrete: int = KIND_ANY,
) -> int:
    """Grow the table and return its old length."""
    old = ctypes.c_uint64()
    with Val() as val:
        references.write(element, val.address, prepared, concrete)
        check(
            lib.wasmtime_table_grow(
                handle.context, extern.address, entries, val.address, ctypes.byref(old)
            ),
            RangeError,
        )
    return old.value


# globals


def new_global(
    handle: StoreHandle, references: References, type: GlobalType, prepared: Any
) -> Extern:
    """Make a global in the store."""
    extern = Extern(GLOBAL)
    native = types.global_type(handle.engine, type)
    with Val() as val:
        references.write(type.value, val.address, prepared)
        check(
            lib.wasmtime_global_new(handle.context, native.pointer, val.address, extern.address),
            RangeError,
        )
    return extern


def global_get(handle: StoreHandle, references: References, extern: Extern) -> Any:
    """Return the global's value."""
    with Val() as val:
        lib.wasmtime_global_get(handle.context, extern.address, val.address)
        return references.read(val.address)


def global_set(
    handle: StoreHandle,
    references: References,
    extern: Extern,
    type: ValueType,
    prepared: Any,
    concrete: int = KIND_ANY,
) -> int | None:
    """Set the global's value; return the native error, if any."""
    with Val() as val:
        references.write(type, val.address, prepared, concrete)
        error: int | None = lib.wasmtime_global_set(handle.context, extern.address, val.address)
        return error


# tags and exceptions


def new_tag(handle: StoreHandle, type: TagType) -> Extern:
    """Make a tag in the store."""
    extern = Extern(TAG)
    native = types.tag_type(handle.engine, type)
    check(lib.wasmtime_tag_new(handle.context, native.pointer, extern.address), RangeError)
    return extern


class Root(Val):
    """A val that lives as long as the Python object that it belongs to."""

    __slots__ = ("_handle",)

    def __init__(self, handle: StoreHandle) -> None:
        super().__init__()
        self._handle = handle

    def __del__(self) -> None:
        if self._handle.ours:
            unroot(self.address, 1)


def tag_type(handle: StoreHandle, extern: Extern) -> TagType:
    """Return the type of a tag; references to concrete types are widened."""
    native = Handle(lib.wasmtime_tag_type(handle.context, extern.address), "wasm_tagtype_delete")
    function = types.read_function_type(lib.wasm_tagtype_functype(native.pointer))
    return TagType(function.parameters)


def throw(
    handle: StoreHandle, references: References, tag: Extern, type: TagType, fields: list[Any]
) -> tuple[Root, int]:
    """Make an exception pending; return it, and the trap that a host function fails with."""
    count = len(fields)
    vals = (ctypes.c_ubyte * (VAL_BYTES * max(count, 1)))()
    start = ctypes.addressof(vals)
    exception = Root(handle)
    payload = exception.address + 8
    try:
        for index, (value_type, value) in enumerate(zip(type.parameters, fields, strict=True)):
            references.write(value_type, start + VAL_BYTES * index, value)
        check(
            lib.wasmtime_exnref_new(handle.context, tag.address, start, count, payload),
            RangeError,
        )
    finally:
        unroot(start, count)
    exception.memory[0] = KIND_EXN
    trap: int = lib.wasmtime_context_set_exception(handle.context, payload)
    return exception, trap


def rethrow(handle: StoreHandle, exception: Root) -> int:
    """Make an exception that was taken before pending again."""
    trap: int = lib.wasmtime_context_set_exception(handle.context, exception.address + 8)
    return trap


def has_exception(handle: StoreHandle) -> bool:
    """Return whether an exception is pending."""
    pending: bool = lib.wasmtime_context_has_exception(handle.context)
    return pending


def take_exception(handle: StoreHandle, references: References) -> tuple[Extern, list[Any], Root]:
    """Return tag and fields of the pending exception, and its root."""
    exception = Root(handle)
    payload = exception.address + 8
    found = lib.wasmtime_context_take_exception(handle.context, payload)
    assert found
    exception.memory[0] = KIND_EXN
    tag = Extern(TAG)
    check(lib.wasmtime_exnref_tag(handle.context, payload, tag.address), RangeError)
    fields = []
    for index in range(lib.wasmtime_exnref_field_count(handle.context, payload)):
        with Val() as val:
            check(
                lib.wasmtime_exnref_field(handle.context, payload, index, val.address),
                RangeError,
            )
            fields.append(references.read(val.address))
    return tag, fields, exception


def exception_identity(handle: StoreHandle, exception: Root) -> int:
    """Return a number that is the same for the same exception."""
    raw: int = lib.wasmtime_exnref_to_raw(handle.context, exception.address + 8)
    return raw


def trap_new(message: str) -> int:
    """Make a trap that no guest can catch."""
    text = message.encode()
    trap: int = lib.wasmtime_trap_new(text, len(text))
    return trap


# fuel


def get_fuel(handle: StoreHandle) -> int:
    """Return the fuel that is left in a store that counts it."""
    amount = ctypes.c_uint64()
    check(lib.wasmtime_context_get_fuel(handle.context, ctypes.byref(amount)), RangeError)
    return amount.value

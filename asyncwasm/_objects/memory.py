"""
Memories.

Rule 1: a view never dangles. It keeps what it shows: the native store, the shared memory, or
the pages of a memory that is not bound yet.
Rule 2: `buffer` is one object until the memory changes; what was handed out before is then
released, the counterpart of detaching; slices taken of it stay readable.
"""

from __future__ import annotations

import mmap
from typing import Any

from .._errors import LinkError, RangeError
from .._ffi import externs
from .._ffi.externs import Extern, SharedMemory
from .._runtime.artifact import Variant
from .._runtime.config import Limits
from .._runtime.engine import default_engine
from .._runtime.store import StoreCore
from .._types import PAGE_BYTES, AddressName, MemoryType
from .conversions import address_name, address_value
from .store import Store, ambient_or
from .storeobject import StoreObject, binding

_MAX_DECLARED = {"i32": 1 << 16, "i64": (1 << 37) - 1}
_MAX_PAGES = {"i32": 1 << 16, "i64": 1 << 18}  # at run time


def checked_memory_type(initial: Any, maximum: Any, shared: bool, address: Any) -> MemoryType:
    """Return the type of a new memory, or raise what the JS API raises."""
    if isinstance(initial, MemoryType):
        initial, maximum, shared, address = (
            initial.minimum,
            initial.maximum,
            initial.shared,
            initial.address,
        )
    address = address_name(address)
    minimum = address_value(initial, address, "initial pages")
    if maximum is not None:
        maximum = address_value(maximum, address, "maximum pages")
    for name, value, most in (
        ("initial", minimum, _MAX_PAGES[address]),
        ("maximum", maximum, _MAX_DECLARED[address]),
    ):
        if value is not None and value > most:
            raise RangeError(f"{name} of {value} pages is above the limit of {most}")
    if maximum is not None and minimum > maximum:
        raise RangeError(f"initial of {minimum} pages is above the maximum of {maximum}")
    if shared and maximum is None:
        raise TypeError("a shared memory needs a maximum")
    return MemoryType(minimum, maximum, bool(shared), address)


class Memory(StoreObject):
    """
    A linear memory: bytes that guests and Python share.

    Args:
        initial: Size in pages of 64 KiB, or a `MemoryType`.
        maximum: Pages it may grow to.
        shared: Whether guests on several threads may use it; needs a maximum.
        address: ``"i32"`` or ``"i64"``.
        store: Store to bind to at once; otherwise it is bound when it is first linked.
    Raises:
        TypeError: If an argument has the wrong type.
        RangeError: If a size is above the maximum, or above what the JS API allows.
    Spec: https://webassembly.github.io/spec/js-api/#memories
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_extern",
        "_pages",
        "_shared",
        "_store",
        "_type",
        "_view",
    )

    def __init__(
        self,
        initial: int | MemoryType,
        maximum: int | None = None,
        *,
        shared: bool = False,
        address: AddressName = "i32",
        store: Store | None = None,
    ) -> None:
        self._setup(checked_memory_type(initial, maximum, shared, address))
        chosen = ambient_or(store)
        if chosen is not None:
            self._bind(chosen)

    def _setup(self, type: MemoryType) -> None:
        self._type = type
        self._store = None
        self._extern = None
        self._view: memoryview | None = None
        self._pages: mmap.mmap | None = None  # contents before the memory is bound
        self._shared: SharedMemory | None = None

    @classmethod
    def _from_extern(cls, store: StoreCore, extern: Extern, type: MemoryType) -> Memory:
        self = cls.__new__(cls)
        self._setup(type)
        if extern.kind == externs.SHARED_MEMORY:
            self._shared = SharedMemory.from_extern(extern, store.handle.engine)
            identity = ("shared", self._shared.identity)
            known: Memory | None = store.known.get(identity)
            if known is None:
                store.remember(identity, self)
                known = self
            return known
        self._attach(store, extern)
        return self

    # binding

    def _bind(self, store: StoreCore) -> Extern:
        if not self._type.shared:
            return super()._bind(store)
        if not store.bound:
            store.bind(store.engine)
        with binding:
            if self._shared is None:
                self._shared = SharedMemory(store.handle.engine, self._type)
        if self._shared._engine is not store.handle.engine:
            raise LinkError(
                "the shared memory was made for another engine than the store's (one that counts "
                "fuel is another than one that does not)",
                expected="a memory of the same engine",
                actual=repr(self),
            )
        store.remember(("shared", self._shared.identity), self)
        return self._shared.extern()

    def _check_limits(self, limits: Limits) -> None:
        size = self._type.minimum * PAGE_BYTES
        if not self._type.shared and limits.memory_bytes is not None and size > limits.memory_bytes:
            raise RangeError(
                f"a memory of {size} bytes exceeds memory limits; "
                f"the store has Limits(memory_bytes={limits.memory_bytes})"
            )

    def _make(self, store: StoreCore) -> Extern:
        with store.entered():
            handle = store.opened()
            extern = externs.new_memory(handle, self._type)
            if self._pages is not None:
                view = externs.memory_view(handle, extern)
                view[: len(self._pages)] = memoryview(self._pages)
        self._pages = None
        self._release_view()
        return extern

    def _own_shared(self) -> SharedMemory:
        with binding:
            if self._shared is None:
                engine = default_engine()
                self._shared = SharedMemory(engine.native(Variant()), self._type)
        return self._shared

    def _release_view(self) -> None:
        view, self._view = self._view, None
        if view is not None:
            try:
                view.release()
            except BufferError:
                pass  # somebody holds a part of it, which stays readable

    def _store_closed(self) -> None:
        # The view keeps the native store. Whoever has taken it keeps both; we need not.
        if not self._type.shared:
            self._view = None

    # reading and writing

    @property
    def type(self) -> MemoryType:
        """The memory's type; `minimum` is its size now."""
        own = self._type
        return MemoryType(self.byte_length // PAGE_BYTES, own.maximum, own.shared, own.address)

    @property
    def byte_length(self) -> int:
        """Size in bytes now."""
        if self._shared is not None:
            return self._shared.byte_length()
        if self._extern is None:
            return self._type.minimum * PAGE_BYTES
        assert self._store is not None
        with self._store.entered():
            handle = self._store.opened()
            return externs.memory_bytes(handle, self._extern)

    @property
    def buffer(self) -> memoryview:
        """
        The memory's bytes as a writable view without a copy.

        The same object until the memory grows. A view that was taken before stays valid, and
        shows the bytes it showed.

        Raises:
            BusyResourceError: If a guest of the store runs on another thread.
            ClosedResourceError: If the store has been closed.
        Spec: https://webassembly.github.io/spec/js-api/#dom-memory-buffer
        """
        length = self.byte_length
        view = self._view
        if view is not None and _length(view) == length:
            return view
        self._release_view()
        if self._type.shared:
            view = self._own_shared().view()
        elif self._extern is not None:
            assert self._store is not None
            self._store.viewed[(id(self),)] = self
            with self._store.entered():
                handle = self._store.opened()
                view = externs.memory_view(handle, self._extern)
        elif length:
            if self._pages is None:
                self._pages = mmap.mmap(-1, length)
            view = memoryview(self._pages)
        else:
            view = memoryview(bytearray())
        self._view = view
        return view

    def read(self, offset: int, length: int, /) -> bytes:
        """
        Return a copy of *length* bytes from *offset* on.

        Raises:
            RangeError: If they are not all inside of the memory.
            TypeError: If an argument is no int.
        """
        view = self._covering(offset, length)
        if view is not None:
            return view[offset : offset + length].tobytes()
        view = self.buffer
        start, end = self._span(offset, length, len(view))
        return view[start:end].tobytes()

    def write(self, offset: int, data: Any, /) -> None:
        """
        Copy bytes-like *data* into the memory at *offset*.

        Raises:
            RangeError: If it does not all fit; nothing is written then.
            TypeError: If *data* is not bytes-like, or *offset* no int.
        """
        source = data if type(data) is bytes else _bytes_of(data)
        view = self._covering(offset, len(source))
        if view is not None:
            view[offset : offset + len(source)] = source
            return
        view = self.buffer
        start, end = self._span(offset, len(source), len(view))
        view[start:end] = source

    def _covering(self, offset: Any, length: Any) -> memoryview | None:
        """
        Return the view that was made last if the bytes asked for are all in it, else None.

        The memory may have grown since. The view shows its bytes all the same, because memories
        never move; asking the library for the length would cost more than a short copy does.
        """
        view = self._view
        if (
            view is None
            or type(offset) is not int
            or type(length) is not int
            or offset < 0
            or not 0 <= length <= _length(view) - offset
        ):
            return None
        if self._extern is not None:
            assert self._store is not None
            if not self._store.free:
                return None
        return view

    def _span(self, offset: Any, length: Any, size: int) -> tuple[int, int]:
        start = address_value(offset, self._type.address, "offset")
        count = address_value(length, "i64", "length")
        if start + count > size:
            raise RangeError(
                f"bytes {start} to {start + count} are outside of the memory of {size} bytes"
            )
        return start, start + count

    def grow(self, pages: int, /) -> int:
        """
        Grow the memory.

        Args:
            pages: How many pages of 64 KiB to add.
        Returns:
            The old size in pages.
        Raises:
            RangeError: If the memory cannot grow that far; it is unchanged then.
            TypeError: If *pages* is no int.
        Spec: https://webassembly.github.io/spec/js-api/#dom-memory-grow
        """
        delta = address_value(pages, self._type.address, "pages")
        old = self.byte_length // PAGE_BYTES
        most = _MAX_PAGES[self._type.address]
        if self._type.maximum is not None:
            most = min(most, self._type.maximum)
        if old + delta > most:
            raise RangeError(f"cannot grow a memory of {old} pages by {delta}: the limit is {most}")
        if self._type.shared:
            with binding:
                if self._shared is None:
                    self._grow_unbound(old + delta)
                    return old
            grown = self._shared.grow(delta)
            self._view = None  # views of a shared memory are never detached
            return grown
        if self._extern is None:
            self._grow_unbound(old + delta)
            return old
        assert self._store is not None
        with self._store.entered():
            handle = self._store.opened()
            try:
                grown = externs.grow_memory(handle, self._extern, delta)
            except RangeError as exc:
                raise RangeError(f"cannot grow a memory of {old} pages by {delta}: {exc}") from None
        self._release_view()
        return grown

    def _grow_unbound(self, pages: int) -> None:
        own = self._type
        if self._pages is not None:
            grown = mmap.mmap(-1, pages * PAGE_BYTES)
            grown[: len(self._pages)] = self._pages[:]
            self._pages = grown
        self._type = MemoryType(pages, own.maximum, own.shared, own.address)
        self._release_view()

    def to_fixed_length_buffer(self) -> memoryview:
        """
        Return the same as `buffer`: a view whose length never changes.

        Spec: https://webassembly.github.io/spec/js-api/#dom-memory-tofixedlengthbuffer
        """
        return self.buffer

    def to_resizable_buffer(self) -> ResizableBuffer:
        """
        Return an object that tracks the memory's length.

        Raises:
            TypeError: If the memory has no maximum.
        Spec: https://webassembly.github.io/spec/js-api/#dom-memory-toresizablebuffer
        """
        if self._type.maximum is None:
            raise TypeError("a memory without a maximum has no resizable buffer")
        known: ResizableBuffer | None = self.__dict__.get("_resizable")
        if known is None:
            known = self.__dict__["_resizable"] = ResizableBuffer(self)
        return known

    def __repr__(self) -> str:
        own = self._type
        state = "" if self._store is not None or own.shared else " unbound"
        return f"<asyncwasm.Memory {own.address}{' shared' * own.shared}{state}>"


class ResizableBuffer:
    """
    The bytes of a memory, as long as it is at the moment; `resize` grows it.

    Spec: https://webassembly.github.io/spec/js-api/#dom-memory-toresizablebuffer
    """

    __slots__ = ("__weakref__", "_memory")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def __len__(self) -> int:
        return self._memory.byte_length

    def __reduce__(self) -> Any:
        return self._memory.__reduce__()

    @property
    def byte_length(self) -> int:
        """Length in bytes now."""
        return self._memory.byte_length

    @property
    def max_byte_length(self) -> int:
        """Length in bytes that the memory can grow to."""
        maximum = self._memory.type.maximum
        assert maximum is not None
        return maximum * PAGE_BYTES

    def __getitem__(self, index: Any) -> Any:
        return self._memory.buffer[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._memory.buffer[index] = value

    def resize(self, byte_length: int, /) -> None:
        """
        Grow the memory to *byte_length*.

        Raises:
            RangeError: If that is smaller than now, no whole number of pages, or too large.
        """
        wanted = address_value(byte_length, "i64", "byte_length")
        now = self._memory.byte_length
        if wanted < now or wanted % PAGE_BYTES or wanted > self.max_byte_length:
            raise RangeError(
                f"cannot resize from {now} to {wanted} bytes: expected a multiple of "
                f"{PAGE_BYTES} from {now} to {self.max_byte_length}"
            )
        if wanted > now:
            self._memory.grow((wanted - now) // PAGE_BYTES)


def _bytes_of(data: Any) -> memoryview:
    """Return the bytes of a bytes-like object, one after the other."""
    if isinstance(data, str):
        raise TypeError("expected a bytes-like object, got str; encode it first")
    source = memoryview(data)
    if source.format == "B" and source.ndim == 1:
        return source
    return source.cast("B") if source.c_contiguous else memoryview(source.tobytes())


def _length(view: memoryview) -> int:
    try:
        return len(view)
    except ValueError:  # released by its user
        return -1

"""Tables."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from .._errors import RangeError, TableIndexError
from .._ffi import errors, externs
from .._ffi.codec import KIND_ANY
from .._ffi.externs import Extern
from .._ffi.handles import StoreHandle
from .._runtime.config import Limits
from .._runtime.store import StoreCore
from .._types import AddressName, TableType, ValueType
from .conversions import TableAddressError, address_name, address_value
from .store import Store, ambient_or
from .storeobject import StoreObject
from .value import check_value, default_value, store_of

MAX_ENTRIES = 10_000_000
_MISSING: Any = object()


class Table(StoreObject):
    """
    A table of references.

    Args:
        element: Type of the entries, such as ``"anyfunc"`` or ``"externref"``, or a `TableType`.
        initial: Number of entries.
        maximum: Entries it may grow to.
        value: What fills it; null if omitted or None.
        address: ``"i32"`` or ``"i64"``.
        store: Store to bind to at once; otherwise it is bound when it is first linked.
    Raises:
        TypeError: If an argument has the wrong type.
        RangeError: If a size is above the maximum, or above 10,000,000.
    Spec: https://webassembly.github.io/spec/js-api/#tables
    """

    __slots__ = ("__dict__", "__weakref__", "_concrete", "_entries", "_extern", "_store", "_type")

    def __init__(
        self,
        element: str | TableType,
        initial: int = _MISSING,
        maximum: int | None = None,
        value: Any = None,
        *,
        address: AddressName = "i32",
        store: Store | None = None,
    ) -> None:
        if isinstance(element, TableType):
            given = element
            element, initial, address = given.element, given.minimum, given.address
            maximum = given.maximum if maximum is None else maximum
        if initial is _MISSING:
            raise TypeError("expected the initial number of entries")
        kind = ValueType(element)
        if not kind.is_reference or kind.heap in ("exn", "noexn"):
            raise TypeError(f"expected a reference type for the entries, got {str(kind)!r}")
        address = address_name(address)
        minimum = address_value(initial, address, "initial entries")
        if maximum is not None:
            maximum = address_value(maximum, address, "maximum entries")
            if minimum > maximum:
                raise RangeError(f"initial of {minimum} is above the maximum of {maximum}")
        if minimum > MAX_ENTRIES:
            raise RangeError(f"initial of {minimum} entries is above the limit of {MAX_ENTRIES}")
        self._entries: list[Any]
        self._setup(TableType(kind, minimum, maximum, address))
        chosen = ambient_or(store)
        if value is None:
            fill = default_value(kind)
        else:
            fill = check_value(kind, value)
            chosen = chosen or store_of(value)
        self._entries = [fill] * minimum
        if chosen is not None:
            self._bind(chosen)

    def _setup(self, type: TableType, concrete: int = KIND_ANY) -> None:
        self._type = type
        self._concrete = concrete
        self._store = None
        self._extern = None
        self._entries = []  # before the table is bound

    @classmethod
    def _from_extern(
        cls, store: StoreCore, extern: Extern, type: TableType, concrete: int
    ) -> Table:
        self = cls.__new__(cls)
        self._setup(type, concrete)
        self._attach(store, extern)
        return self

    def _check_limits(self, limits: Limits) -> None:
        if limits.table_elements is not None and self.length > limits.table_elements:
            raise RangeError(
                f"a table of {self.length} entries exceeds table limits; "
                f"the store has Limits(table_elements={limits.table_elements})"
            )

    def _make(self, store: StoreCore) -> Extern:
        references = store.references
        entries = self._entries
        prepared = [references.prepare(self._type.element, entry) for entry in entries]
        fill = prepared[0] if prepared else default_value(self._type.element)
        own = self._type

        def make(handle: StoreHandle) -> Extern:
            now = TableType(own.element, len(entries), own.maximum, own.address)
            extern = externs.new_table(handle, references, now, fill)
            for index in range(1, len(entries)):
                if entries[index] is not entries[0]:
                    externs.table_set(
                        handle, references, extern, own.element, index, prepared[index]
                    )
            return extern

        extern = store.allocate(make)
        self._entries = []
        return extern

    @property
    def type(self) -> TableType:
        """The table's type; `minimum` is its length now."""
        own = self._type
        return TableType(own.element, self.length, own.maximum, own.address)

    @property
    def length(self) -> int:
        """Number of entries now."""
        if self._extern is None:
            return len(self._entries)
        assert self._store is not None
        with self._store.entered():
            handle = self._store.opened()
            return externs.table_length(handle, self._extern)

    def __len__(self) -> int:
        return self.length

    def get(self, index: int, /) -> Any:
        """
        Return the entry at *index*.

        Raises:
            TableIndexError: If *index* is not below the length. Negative indices do not count
                from the end.
            TypeError: If *index* is no int.
        Spec: https://webassembly.github.io/spec/js-api/#dom-table-get
        """
        at = self._index(index)
        if self._type.element.heap in ("exn", "noexn"):
            raise TypeError(f"values of {self._type.element} cannot cross between wasm and Python")
        if self._extern is None:
            if at >= len(self._entries):
                raise self._outside(at, len(self._entries))
            return self._entries[at]
        assert self._store is not None
        with self._store.entered():
            handle = self._store.opened()
            found, value = externs.table_get(handle, self._store.references, self._extern, at)
            if not found:
                raise self._outside(at, externs.table_length(handle, self._extern))
        return value

    def set(self, index: int, value: Any = _MISSING, /) -> None:
        """
        Store *value*, or the type's default if it is omitted, at *index*.

        Raises:
            TableIndexError: If *index* is not below the length.
            TypeError: If *index* is no int, or *value* does not fit the type.
        Spec: https://webassembly.github.io/spec/js-api/#dom-table-set
        """
        at = self._index(index)
        value = self._value(value)
        self._meet(value)
        if self._extern is None:
            if at >= len(self._entries):
                raise self._outside(at, len(self._entries))
            self._entries[at] = value
            return
        store = self._store
        assert store is not None
        prepared = store.references.prepare(self._type.element, value, self._concrete)
        native = self._extern

        def put(handle: StoreHandle) -> int | None:
            length = externs.table_length(handle, native)
            if at >= length:
                raise self._outside(at, length)
            return externs.table_set(
                handle, store.references, native, self._type.element, at, prepared, self._concrete
            )

        error = store.allocate(put)
        errors.check_type(error, f"a value of type {self._type.element}", value)

    def grow(self, entries: int, value: Any = _MISSING, /) -> int:
        """
        Grow the table, filling it with *value* or the type's default.

        Returns:
            The old length.
        Raises:
            RangeError: If the table cannot grow that far; it is unchanged then.
            TypeError: If *entries* is no int, or *value* does not fit the type.
        Spec: https://webassembly.github.io/spec/js-api/#dom-table-grow
        """
        delta = address_value(entries, self._type.address, "entries", TableAddressError)
        value = self._value(value)
        self._meet(value)
        old = self.length
        most = min(MAX_ENTRIES, MAX_ENTRIES if self._type.maximum is None else self._type.maximum)
        if old + delta > most:
            raise RangeError(f"cannot grow a table of {old} by {delta}: the limit is {most}")
        if self._extern is None:
            self._entries.extend([value] * delta)
            return old
        store = self._store
        assert store is not None
        prepared = store.references.prepare(self._type.element, value, self._concrete)
        native = self._extern
        return store.allocate(
            lambda handle: externs.table_grow(
                handle,
                store.references,
                native,
                self._type.element,
                delta,
                prepared,
                self._concrete,
            )
        )

    def __getitem__(self, index: int) -> Any:
        return self.get(index)

    def __setitem__(self, index: int, value: Any) -> None:
        self.set(index, value)

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.length):
            yield self.get(index)

    def __repr__(self) -> str:
        state = "" if self._store is not None else " unbound"
        return f"<asyncwasm.Table {self._type.element}{state}>"

    def _index(self, index: Any) -> int:
        if not hasattr(index.__class__, "__index__"):
            raise TypeError(f"expected an int as the index, got {type(index).__name__}")
        return address_value(
            operator.index(index), self._type.address, "the index", TableAddressError
        )

    def _value(self, value: Any) -> Any:
        element = self._type.element
        if value is not _MISSING:
            return check_value(element, value)
        return check_value(element, default_value(element))

    def _meet(self, value: Any) -> None:
        """Bind to the store of *value*, if this is not bound and that is."""
        if self._extern is None:
            met = store_of(value)
            if met is not None:
                self._bind(met)

    def _outside(self, index: int, length: int) -> TableIndexError:
        return TableIndexError(f"index {index} is not below the table's length of {length}")

"""Globals."""

from __future__ import annotations

from typing import Any

from .._ffi import errors, externs
from .._ffi.codec import KIND_ANY
from .._ffi.externs import Extern
from .._runtime.store import StoreCore
from .._types import GlobalType, ValueType
from .store import Store, ambient_or
from .storeobject import StoreObject
from .value import check_value, default_value, store_of


class ImmutableGlobalError(AttributeError, TypeError):
    """A constant global was given a value."""


class Global(StoreObject):
    """
    A global variable or constant.

    Args:
        type: Type of the value, such as ``"i32"``, or a `GlobalType`.
        value: Its first value; the type's default if omitted or None.
        mutable: Whether it can change.
        store: Store to bind to at once; otherwise it is bound when it is first linked.
    Raises:
        TypeError: If *type* is no value type, or *value* does not fit it.
        OverflowError: If *value* is out of range.
    Spec: https://webassembly.github.io/spec/js-api/#globals
    """

    __slots__ = ("__dict__", "__weakref__", "_concrete", "_extern", "_kept", "_store", "_type")

    def __init__(
        self,
        type: str | GlobalType,
        value: Any = None,
        *,
        mutable: bool = False,
        store: Store | None = None,
    ) -> None:
        if not isinstance(type, GlobalType):
            type = GlobalType(ValueType(type), bool(mutable))
        if type.value.heap in ("exn", "noexn"):
            raise TypeError(f"values of {type.value} cannot cross to the host")
        self._kept: Any
        self._setup(type)
        chosen = ambient_or(store)
        if value is None:
            self._kept = default_value(type.value)
        else:
            self._kept = check_value(type.value, value)
            chosen = chosen or store_of(self._kept)
        if chosen is not None:
            self._bind(chosen)

    def _setup(self, type: GlobalType, concrete: int = KIND_ANY) -> None:
        self._type = type
        self._concrete = concrete
        self._store = None
        self._extern = None
        self._kept = None  # the value before the global is bound

    @classmethod
    def _from_extern(
        cls, store: StoreCore, extern: Extern, type: GlobalType, concrete: int
    ) -> Global:
        self = cls.__new__(cls)
        self._setup(type, concrete)
        self._attach(store, extern)
        return self

    def _make(self, store: StoreCore) -> Extern:
        prepared = store.references.prepare(self._type.value, self._kept)
        extern = store.allocate(
            lambda handle: externs.new_global(handle, store.references, self._type, prepared)
        )
        self._kept = None
        return extern

    @property
    def type(self) -> GlobalType:
        """The global's type."""
        return self._type

    @property
    def value(self) -> Any:
        """
        The value now; setting it needs a mutable global.

        Raises:
            AttributeError: (and TypeError) If it is set and the global is constant.
            TypeError: If it is set to something that does not fit the type.
            OverflowError: If it is set to an int out of range.
        Spec: https://webassembly.github.io/spec/js-api/#dom-global-value
        """
        if self._extern is None:
            return self._kept
        if self._type.value.heap in ("exn", "noexn"):
            raise TypeError(f"values of {self._type.value} cannot cross to the host")
        assert self._store is not None
        with self._store.entered():
            handle = self._store.opened()
            return externs.global_get(handle, self._store.references, self._extern)

    @value.setter
    def value(self, value: Any) -> None:
        type = self._type.value
        if not self._type.mutable:
            raise ImmutableGlobalError(f"cannot set a constant global of type {type}")
        checked = check_value(type, value)
        if self._extern is None:
            met = store_of(checked)
            if met is not None:
                self._bind(met)
        if self._extern is None:
            self._kept = checked
            return
        store = self._store
        assert store is not None
        prepared = store.references.prepare(type, checked, self._concrete)
        native = self._extern
        error = store.allocate(
            lambda handle: externs.global_set(
                handle, store.references, native, type, prepared, self._concrete
            )
        )
        errors.check_type(error, f"a value of type {type}", value)

    def __repr__(self) -> str:
        state = "" if self._store is not None else " unbound"
        mutable = "mut " * self._type.mutable
        return f"<asyncwasm.Global {mutable}{self._type.value}{state}>"

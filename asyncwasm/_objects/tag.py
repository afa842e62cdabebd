"""Tags, and the tag of Python exceptions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._ffi import externs
from .._ffi.externs import Extern
from .._runtime.exceptions import python_tag
from .._runtime.store import StoreCore
from .._types import TagType
from .store import Store, ambient_or
from .storeobject import StoreObject


class Tag(StoreObject):
    """
    The identity and the payload types of a kind of wasm exception.

    Args:
        parameters: Types of the values that an exception carries, or a `TagType`.
        store: Store to bind to at once; otherwise it is bound when it is first linked.
    Raises:
        TypeError: If *parameters* are no value types.
    Spec: https://webassembly.github.io/spec/js-api/#tags
    """

    __slots__ = ("__dict__", "__weakref__", "_extern", "_store", "_type")

    def __init__(self, parameters: Iterable[str] | TagType, *, store: Store | None = None) -> None:
        self._type = parameters if isinstance(parameters, TagType) else TagType(parameters)
        self._store = None
        self._extern = None
        chosen = ambient_or(store)
        if chosen is not None:
            self._bind(chosen)

    @classmethod
    def _from_extern(cls, store: StoreCore, extern: Extern, type: TagType) -> Tag:
        self = cls.__new__(cls)
        self._type = type
        self._attach(store, extern)
        return self

    def _make(self, store: StoreCore) -> Extern:
        with store.entered():
            handle = store.opened()
            return externs.new_tag(handle, self._type)

    @property
    def type(self) -> TagType:
        """Types of the values that an exception with the tag carries."""
        return self._type

    def __repr__(self) -> str:
        return f"<asyncwasm.Tag ({', '.join(self._type.parameters)}) at 0x{id(self):x}>"

    def __reduce__(self) -> Any:
        return Tag, (self._type,)

    def __copy__(self) -> Tag:
        return self  # a tag is its identity

    def __deepcopy__(self, memo: object) -> Tag:
        return self


class _PythonTag(Tag):
    """The tag of Python exceptions: one object, at home in every store."""

    __slots__ = ()

    def _bind(self, store: StoreCore) -> Extern:
        if not store.bound:
            store.bind(store.engine)
        with store.entered():
            store.opened()
            extern = python_tag(store)
        store.remember(extern.key, self)
        return extern

    def __repr__(self) -> str:
        return "asyncwasm.PYTHON_TAG"

    def __reduce__(self) -> Any:
        return "PYTHON_TAG"


PYTHON_TAG: Tag = _PythonTag(["externref"])
"""The tag of Python exceptions in wasm: the counterpart of ``WebAssembly.JSTag``."""

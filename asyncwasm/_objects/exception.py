"""Wasm exceptions as Python exceptions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._errors import RangeError, WasmError
from .._ffi import externs
from .._ffi.externs import Extern, Root
from .._runtime.store import StoreCore
from .conversions import address_value
from .tag import PYTHON_TAG, Tag
from .value import check_value


class WasmException(WasmError):
    """
    An exception that wasm has thrown, or that an import raises for wasm to catch.

    Args:
        tag: Its tag.
        payload: One value for each of the tag's parameters.
    Raises:
        TypeError: If *tag* is no Tag or is PYTHON_TAG, or *payload* does not fit it.
    Spec: https://webassembly.github.io/spec/js-api/#runtime-exceptions
    """

    def __init__(self, tag: Tag, payload: Iterable[Any]) -> None:
        if not isinstance(tag, Tag):
            raise TypeError(f"expected a Tag, got {type(tag).__name__}")
        if tag is PYTHON_TAG:
            raise TypeError("PYTHON_TAG is for Python exceptions: raise one instead")
        values = tuple(payload)
        types = tag.type.parameters
        if len(values) != len(types):
            raise TypeError(
                f"expected {len(types)} values for ({', '.join(types)}), got {len(values)}"
            )
        self._setup(
            tag, [check_value(kind, value) for kind, value in zip(types, values, strict=True)]
        )

    def _setup(self, tag: Tag, payload: Iterable[Any]) -> None:
        self.tag = tag
        self.payload = tuple(payload)
        self.args = (tag, self.payload)
        self._root: tuple[StoreCore, Root] | None = None

    @property
    def message(self) -> str:
        """The payload as text."""
        return f"wasm exception with payload {self.payload!r}"

    def __str__(self) -> str:
        return self.message

    def is_tag(self, tag: Tag, /) -> bool:
        """
        Return whether *tag* is the exception's.

        Raises:
            TypeError: If *tag* is no Tag.
        Spec: https://webassembly.github.io/spec/js-api/#dom-exception-is
        """
        if not isinstance(tag, Tag):
            raise TypeError(f"expected a Tag, got {type(tag).__name__}")
        return tag is self.tag

    def get_arg(self, tag: Tag, index: int, /) -> Any:
        """
        Return value *index* of the payload.

        Raises:
            TypeError: If *tag* is not the exception's, or *index* no int.
            RangeError: If there is no such value.
        Spec: https://webassembly.github.io/spec/js-api/#dom-exception-getarg
        """
        if not self.is_tag(tag):
            raise TypeError("the exception has another tag")
        at = address_value(index, "i32", "the index")
        if at >= len(self.payload):
            raise RangeError(f"index {at} is not below the number of values, {len(self.payload)}")
        return self.payload[at]

    def _meet(self, store: StoreCore) -> None:
        """Bind the tag to the store that the exception is about to be thrown in."""
        if self.tag._store is None and self.tag is not PYTHON_TAG:
            self.tag._bind(store)

    def _throw_in(self, store: StoreCore) -> int | None:
        """Make the exception pending; None if its tag cannot live in *store*."""
        if self._root is not None and self._root[0] is store:
            return externs.rethrow(store.handle, self._root[1])
        if self.tag._extern is None or self.tag._store is not store:
            return None
        try:
            fields = [
                store.references.prepare(kind, value)
                for kind, value in zip(self.tag.type.parameters, self.payload, strict=True)
            ]
        except TypeError:
            return None
        root, trap = externs.throw(
            store.handle, store.references, self.tag._extern, self.tag.type, fields
        )
        self._root = (store, root)
        store.remember(("exception", externs.exception_identity(store.handle, root)), self)
        return trap

    def __reduce__(self) -> Any:
        facts = {name: value for name, value in self.__dict__.items() if name != "_root"}
        return _rebuild, (type(self), self.tag, self.payload, facts)


def _rebuild(
    cls: type[WasmException], tag: Tag, payload: tuple[Any, ...], facts: dict[str, Any]
) -> WasmException:
    self = cls.__new__(cls)
    self._setup(tag, payload)
    self.__dict__.update(facts)
    return self


def _thrown(store: StoreCore, tag: Extern, fields: list[Any], root: Root) -> BaseException:
    """Return the exception object for what a guest threw; the same one for the same throw."""
    identity = ("exception", externs.exception_identity(store.handle, root))
    known: WasmException | None = store.known.get(identity)
    if known is not None:
        return known
    owner: Tag | None = store.known.get(tag.key)
    if store.python_tag is not None and tag.key == store.python_tag.key:
        owner = PYTHON_TAG
    if owner is None:
        owner = Tag._from_extern(store, tag, externs.tag_type(store.handle, tag))
    self = WasmException.__new__(WasmException)
    self._setup(owner, fields)
    self._root = (store, root)
    store.remember(identity, self)
    return self


StoreCore.exception_maker = staticmethod(_thrown)

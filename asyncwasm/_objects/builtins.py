"""
Builtin sets: functions that a module may import without anybody giving them.

There is one, ``js-string``: strings, which are Python's, counted in UTF-16 code units as in JS.

Rule 1: a string is a str, of a subclass too; what a mistake traps with, no guest can catch.
Rule 2: indices and lengths are unsigned, and nothing wraps.
Rule 3: in a string that is made here, a high surrogate before a low one is one character. One
that comes from outside may hold the two apart; every function sees the character.
Rule 4: what looks at one place of a string takes no longer for a long one, but for the first
look at one that is not ASCII.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias, TypeGuard

from .._binary import Import, ModuleInfo
from .._errors import Trap, TrapCode
from .._ffi.arrays import CodeUnits
from .._reader import Field, SubType
from .._runtime.host import HostFunction, HostShape
from .._runtime.store import StoreCore
from .._types import FunctionType, ValueType

MAX_CHARACTERS = (1 << 29) - 24  # in a string that is made here; V8's limit

_CODEC = "utf-16-le" if sys.byteorder == "little" else "utf-16-be"
_UNSIGNED = 0xFFFF_FFFF
_REMEMBER_FROM = 256  # characters; looking at a shorter string is as fast as remembering
_REMEMBERED = 8  # strings


class Builtin(NamedTuple):
    """A function of a set: its qualified name, its type, and what it does."""

    module: str
    name: str
    parameters: tuple[str, ...]
    result: str
    body: Callable[..., Any]

    def matches(self, info: ModuleInfo, declared: Import) -> bool:
        """
        Return whether the type that a module imports the function with is the function's own.

        Spec: https://webassembly.github.io/spec/js-api/#validate-an-import-for-builtins
        """
        if declared.kind != "function" or declared.type_index is None:
            return False
        function = info.types[declared.type_index].function
        if function is None or not _stands_alone(info.types, declared.type_index):
            return False
        return (
            function.results == (self.result,)
            and len(function.parameters) == len(self.parameters)
            and all(
                _is_array(info.types, given) if wanted is _ARRAY else given == wanted
                for given, wanted in zip(function.parameters, self.parameters, strict=True)
            )
        )

    def host_function(self, scope: Scope, type: FunctionType) -> HostFunction:
        """Return the function for one instance; *type* is what its import declares."""
        shape = HostShape(type, f"builtin {self.module!r} {self.name!r}")
        return HostFunction(partial(self.body, scope), shape, False)

    def __str__(self) -> str:
        return f"({', '.join(self.parameters)}) -> ({self.result})"


def _stands_alone(types: tuple[SubType, ...], index: int) -> bool:
    """Return whether a type is final, without supertypes, and its recursion group's only one."""
    type = types[index]
    return (
        type.final
        and not type.supertypes
        and all(each.group != type.group for each in types[max(index - 1, 0) : index])
        and all(each.group != type.group for each in types[index + 1 : index + 2])
    )


def _is_array(types: tuple[SubType, ...], type: ValueType) -> bool:
    """Return whether *type* is that of null and arrays of mutable 16-bit integers."""
    if not type.nullable or not type.heap.isdecimal():
        return False
    index = int(type.heap)
    array_type = types[index]
    return (
        array_type.kind == "array"
        and array_type.fields == (_CODE_UNIT,)
        and _stands_alone(types, index)
    )


_CODE_UNIT: Final = Field("i16", True)


# What a string looks like in code units: None if each character is one of them and no
# surrogate is among them, so that the string can be indexed as it is.
_Units: TypeAlias = "memoryview | None"


def _look_at(text: str) -> _Units:
    try:
        encoded = text.encode(_CODEC)
        if len(encoded) == 2 * len(text):
            return None
    except UnicodeEncodeError:
        encoded = text.encode(_CODEC, "surrogatepass")
    return memoryview(encoded).cast("H")


class Scope:
    """What the builtins of one instance work with."""

    __slots__ = ("_recent", "store")

    def __init__(self, store: StoreCore) -> None:
        self.store = store
        self._recent: dict[int, tuple[str, _Units]] = {}

    def units(self, text: str) -> _Units:
        """
        Return what *text* looks like in code units.

        For a long string that is remembered, by its identity: a guest that goes through it asks
        again and again, and comparing contents would take as long as looking at them.
        """
        if text.isascii():
            return None
        if len(text) < _REMEMBER_FROM:
            return _look_at(text)
        known = self._recent.get(id(text))
        if known is not None:
            return known[1]
        units = _look_at(text)
        if len(self._recent) >= _REMEMBERED:
            self._recent.clear()
        self._recent[id(text)] = text, units
        return units


def _decoded(units: bytes | memoryview) -> str:
    return str(units, _CODEC, "surrogatepass")


def _is_text(value: object) -> TypeGuard[str]:
    return issubclass(type(value), str)  # unlike isinstance(), not taken in by a proxy


def _text(value: object, name: str) -> str:
    """Return the string that *value* is, or trap."""
    if type(value) is str:
        return value
    if _is_text(value):
        return str.__str__(value)  # a copy, without what the subclass redefines
    got = "null" if value is None else type(value).__name__
    raise Trap(f"js-string {name}: expected a str, got {got}", TrapCode.CAST_FAILURE)


def _unit_at(text: str, units: _Units, index: int) -> int:
    return ord(text[index]) if units is None else units[index]


def _count(text: str, units: _Units) -> int:
    return len(text) if units is None else len(units)


def _cast(scope: Scope, value: object) -> object:
    _text(value, "cast")
    return value


def _test(scope: Scope, value: object) -> bool:
    return _is_text(value)


def _array(value: object, name: str) -> object:
    if value is None:
        raise Trap(f"js-string {name}: the array is null", TrapCode.NULL_REFERENCE)
    return value


def _outside(name: str, start: int, end: int, length: int) -> Trap:
    return Trap(
        f"js-string {name}: {start} to {end} is not within an array of {length}",
        TrapCode.ARRAY_OUT_OF_BOUNDS,
    )


def _from_char_code_array(scope: Scope, value: object, start: int, end: int) -> str:
    start, end = start & _UNSIGNED, end & _UNSIGNED
    given = _array(value, "fromCharCodeArray")
    with (
        scope.store.entered(),
        CodeUnits(scope.store.opened(), scope.store.references, given) as chars,
    ):
        if not start <= end <= chars.length:
            raise _outside("fromCharCodeArray", start, end, chars.length)
        units = chars.read(start, end)
    return _decoded(units.tobytes())


def _into_char_code_array(scope: Scope, string: object, value: object, start: int) -> int:
    start &= _UNSIGNED
    given = _array(value, "intoCharCodeArray")
    text = _text(string, "intoCharCodeArray")
    units = array("H", text.encode(_CODEC, "surrogatepass"))
    with (
        scope.store.entered(),
        CodeUnits(scope.store.opened(), scope.store.references, given) as chars,
    ):
        if start + len(units) > chars.length:
            raise _outside("intoCharCodeArray", start, start + len(units), chars.length)
        chars.write(start, units)
    return len(units)


def _from_char_code(scope: Scope, code: int) -> str:
    return chr(code & 0xFFFF)


def _from_code_point(scope: Scope, code: int) -> str:
    code &= _UNSIGNED
    if code > sys.maxunicode:
        raise Trap(f"js-string fromCodePoint: 0x{code:x} is no code point")
    return chr(code)


def _beyond(name: str, index: int, length: int) -> Trap:
    return Trap(f"js-string {name}: index {index} is not below the length, {length}")


def _char_code_at(scope: Scope, value: object, index: int) -> int:
    text = _text(value, "charCodeAt")
    index &= _UNSIGNED
    units = scope.units(text)
    if index >= _count(text, units):
        raise _beyond("charCodeAt", index, _count(text, units))
    return _unit_at(text, units, index)


def _code_point_at(scope: Scope, value: object, index: int) -> int:
    text = _text(value, "codePointAt")
    index &= _UNSIGNED
    units = scope.units(text)
    length = _count(text, units)
    if index >= length:
        raise _beyond("codePointAt", index, length)
    unit = _unit_at(text, units, index)
    if units is not None and 0xD800 <= unit < 0xDC00 and index + 1 < length:
        following = units[index + 1]
        if 0xDC00 <= following < 0xE000:
            return _joined(unit, following)
    return unit


def _joined(high: int, low: int) -> int:
    return 0x10000 + (high - 0xD800 << 10) + (low - 0xDC00)


def _length(scope: Scope, value: object) -> int:
    text = _text(value, "length")
    return _count(text, scope.units(text))


def _whole(text: str) -> str:
    """Return *text* with the halves of characters that it may hold joined."""
    if text.isascii():
        return text
    try:
        text.encode(_CODEC)
    except UnicodeEncodeError:  # there are surrogates
        return _decoded(text.encode(_CODEC, "surrogatepass"))
    return text


def _concat(scope: Scope, first: object, second: object) -> str:
    left, right = _text(first, "concat"), _text(second, "concat")
    if len(left) + len(right) > MAX_CHARACTERS:
        raise Trap(
            f"js-string concat: a string of more than {MAX_CHARACTERS:,} characters",
            TrapCode.ALLOCATION_TOO_LARGE,
        )
    left, right = _whole(left), _whole(right)
    if "\ud800" <= left[-1:] < "\udc00" <= right[:1] < "\ue000":
        return left[:-1] + chr(_joined(ord(left[-1]), ord(right[0]))) + right[1:]
    return left + right


def _substring(scope: Scope, value: object, start: int, end: int) -> str:
    text = _text(value, "substring")
    start, end = start & _UNSIGNED, end & _UNSIGNED
    units = scope.units(text)
    if start > end or start > _count(text, units):
        return ""
    return text[start:end] if units is None else _decoded(units[start:end])


def _equals(scope: Scope, first: object, second: object) -> bool:
    left = None if first is None else _text(first, "equals")
    right = None if second is None else _text(second, "equals")
    if left is None or right is None:
        return left is right
    if left == right or left.isascii() or right.isascii():
        return left == right
    return _whole(left) == _whole(right)


def _compare(scope: Scope, first: object, second: object) -> int:
    left, right = _text(first, "compare"), _text(second, "compare")
    # Code points are in the order of code units up to the surrogates, which all of the
    # characters that need two units start with.
    if left == right or left.isascii() or right.isascii():
        return (left > right) - (left < right)
    one, other = (text.encode("utf-16-be", "surrogatepass") for text in (left, right))
    return (one > other) - (one < other)


_Function: TypeAlias = tuple[str, tuple[str, ...], str, Callable[..., Any]]
_EXTERN, _STRING, _INT = "externref", "(ref extern)", "i32"
_ARRAY: Final = "(ref null (array (mut i16)))"

_JS_STRING: tuple[_Function, ...] = (
    ("cast", (_EXTERN,), _STRING, _cast),
    ("test", (_EXTERN,), _INT, _test),
    ("fromCharCodeArray", (_ARRAY, _INT, _INT), _STRING, _from_char_code_array),
    ("intoCharCodeArray", (_EXTERN, _ARRAY, _INT), _INT, _into_char_code_array),
    ("fromCharCode", (_INT,), _STRING, _from_char_code),
    # The specification's text gives this one a nullable result; its tests, and all who
    # implement it, do not.
    ("fromCodePoint", (_INT,), _STRING, _from_code_point),
    ("charCodeAt", (_EXTERN, _INT), _INT, _char_code_at),
    ("codePointAt", (_EXTERN, _INT), _INT, _code_point_at),
    ("length", (_EXTERN,), _INT, _length),
    ("concat", (_EXTERN, _EXTERN), _STRING, _concat),
    ("substring", (_EXTERN, _INT, _INT), _STRING, _substring),
    ("equals", (_EXTERN, _EXTERN), _INT, _equals),
    ("compare", (_EXTERN, _EXTERN), _INT, _compare),
)


def _set(module: str, functions: tuple[_Function, ...]) -> Mapping[str, Builtin]:
    return {each[0]: Builtin(module, *each) for each in functions}


SETS: Final[Mapping[str, Mapping[str, Builtin]]] = {
    "wasm:js-string": _set("wasm:js-string", _JS_STRING),
}
"""The functions of each set, by its qualified name."""

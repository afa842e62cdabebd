"""
Values of a script: constants that are passed, and patterns that results must match.

Rule 1: numbers are kept as bits. Nothing is compared as a Python float, so -0.0, NaN
payloads and the last bit of a rounding all count.
Rule 2: what Python cannot show is not claimed. An f32 crosses the API as a Python float,
and the conversion of a signalling NaN makes it a quiet one; `Number.hidden` tells which
numbers are affected, and the runner then looks from inside wasm (see `_exact`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Final, Literal, TypeAlias

from ._reader import Atom, Form, Node, Unreadable

NaN: TypeAlias = Literal["canonical", "arithmetic"]
Kind: TypeAlias = Literal["ref", "eq", "i31", "struct", "array", "func", "exn", "extern"]

_SHAPES: Final = {
    "i8x16": ("i", 8, 16),
    "i16x8": ("i", 16, 8),
    "i32x4": ("i", 32, 4),
    "i64x2": ("i", 64, 2),
    "f32x4": ("f", 32, 4),
    "f64x2": ("f", 64, 2),
}
_REFERENCES: Final[dict[str, Kind]] = {
    "ref": "ref",
    "ref.eq": "eq",
    "ref.i31": "i31",
    "ref.struct": "struct",
    "ref.array": "array",
    "ref.func": "func",
    "ref.exn": "exn",
    "ref.extern": "extern",
}
_SCALARS: Final = {"i32": ("i", 32), "i64": ("i", 64), "f32": ("f", 32), "f64": ("f", 64)}
# Bits of the significand (with the hidden one), and the exponent of the smallest normal number.
_FLOATS: Final = {32: (24, -126), 64: (53, -1022)}


class HostReference:
    """What ``ref.host n`` and ``ref.extern n`` stand for: one Python object for each n."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"host reference {self.number}"


host_reference = cache(HostReference)


def _exponent_mask(width: int) -> int:
    precision, _ = _FLOATS[width]
    return ((1 << (width - precision)) - 1) << (precision - 1)


def _is_nan(bits: int, width: int) -> bool:
    return bits & ~(1 << (width - 1)) > _exponent_mask(width)


def _quiet_bit(width: int) -> int:
    return 1 << (_FLOATS[width][0] - 2)


@dataclass(frozen=True, slots=True)
class Lane:
    """One number of *width* bits: exact *bits*, or a class of NaNs."""

    width: int
    bits: int = 0
    nan: NaN | None = None

    def accepts(self, bits: int) -> bool:
        """Whether a result with these *bits* is the one expected."""
        if self.nan is None:
            return bits == self.bits
        quiet = _exponent_mask(self.width) | _quiet_bit(self.width)
        if self.nan == "canonical":
            return bits & ~(1 << (self.width - 1)) == quiet
        return bits & quiet == quiet

    def __str__(self) -> str:
        return f"nan:{self.nan}" if self.nan else f"0x{self.bits:0{self.width // 4}x}"


@dataclass(frozen=True, slots=True)
class Number:
    """A number or vector of *type*: one lane, or those of the vector."""

    type: str
    lanes: tuple[Lane, ...]

    @property
    def hidden(self) -> bool:
        """Whether a Python float cannot hold these bits: a signalling NaN of an f32."""
        lane = self.lanes[0]
        return (
            self.type == "f32"
            and lane.nan is None
            and _is_nan(lane.bits, 32)
            and not lane.bits & _quiet_bit(32)
        )

    def __str__(self) -> str:
        return f"{self.type} {' '.join(map(str, self.lanes))}"


@dataclass(frozen=True, slots=True)
class Null:
    """The null reference."""

    def __str__(self) -> str:
        return "null"


@dataclass(frozen=True, slots=True)
class Host:
    """A value of the host, by its number."""

    number: int

    def __str__(self) -> str:
        return str(host_reference(self.number))


@dataclass(frozen=True, slots=True)
class Reference:
    """A pattern: any reference of *kind* that is not null."""

    kind: Kind

    def __str__(self) -> str:
        return f"reference ({self.kind})"


@dataclass(frozen=True, slots=True)
class Either:
    """A pattern: one of several."""

    patterns: tuple[Pattern, ...]

    def __str__(self) -> str:
        return " or ".join(map(str, self.patterns))


Constant: TypeAlias = Number | Null | Host
Pattern: TypeAlias = Number | Null | Host | Reference | Either


# Reading.


def parse_integer(word: str, width: int) -> int:
    """
    Return the bits of the integer literal *word*.

    Raises:
        ValueError: If it is no integer of the text format, or needs more than *width* bits.
    """
    sign, digits = (word[0], word[1:]) if word[:1] in ("+", "-") else ("", word)
    base = 16 if digits.startswith("0x") else 10
    digits = digits[2:] if base == 16 else digits
    if not digits[:1].isalnum():
        raise Unreadable(f"not an integer: {word!r}")
    value = int(digits, base)
    value = -value if sign == "-" else value
    if not -(1 << (width - 1)) <= value < 1 << width:
        raise Unreadable(f"{word} is out of range for {width} bits")
    return value & ((1 << width) - 1)


@cache
def parse_float(word: str, width: int) -> int:
    """
    Return the bits of the float literal *word*, rounded once, to nearest and ties to even.

    Raises:
        ValueError: If it is no float of the text format, or too large for *width* bits.
    """
    sign, body = (word[0], word[1:]) if word[:1] in ("+", "-") else ("", word)
    top = 1 << (width - 1) if sign == "-" else 0
    if body == "inf":
        return top | _exponent_mask(width)
    if body == "nan":
        return top | _exponent_mask(width) | _quiet_bit(width)
    if body.startswith("nan:0x"):
        payload = int(body[4:], 16)
        if not 0 < payload < 1 << (_FLOATS[width][0] - 1):
            raise Unreadable(f"{word} is out of range for {width} bits")
        return top | _exponent_mask(width) | payload
    return top | _round(_fraction(body), width, word)


def _fraction(body: str) -> Fraction:
    """Return the exact value of an unsigned float literal."""
    base, mark, scale = (16, "p", 2) if body.startswith("0x") else (10, "e", 10)
    mantissa, _, exponent = (body[2:] if base == 16 else body).lower().partition(mark)
    whole, _, part = mantissa.partition(".")
    part = part.replace("_", "")
    if not whole[:1].isalnum():
        raise Unreadable(f"not a float: {body!r}")
    digits = Fraction(int(whole.replace("_", "") + part, base), base ** len(part))
    power: int = scale ** abs(int(exponent or 0))
    return digits / power if exponent.startswith("-") else digits * power


def _round(value: Fraction, width: int, word: str) -> int:
    """Return the bits of the float nearest to *value*, which is not negative."""
    if value == 0:
        return 0
    precision, lowest = _FLOATS[width]
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    if Fraction(2) ** exponent > value:
        exponent -= 1
    exponent = max(exponent, lowest)
    # The significand carries its hidden bit into the exponent's field, which is therefore
    # one less; a carry out of rounding lands there too.
    significand = round(value / Fraction(2) ** (exponent - precision + 1))
    bits = ((exponent - lowest) << (precision - 1)) + significand
    if bits >= _exponent_mask(width):
        raise Unreadable(f"{word} is out of range for {width} bits")
    return bits


def _lane(word: str, form: str, width: int) -> Lane:
    if form == "i":
        return Lane(width, parse_integer(word, width))
    if word == "nan:canonical":
        return Lane(width, nan="canonical")
    if word == "nan:arithmetic":
        return Lane(width, nan="arithmetic")
    return Lane(width, parse_float(word, width))


def parse_pattern(node: Node) -> Pattern:
    """
    Read a result pattern; every constant is one too.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(node, Form):
        raise Unreadable(f"expected a value, got {node!r}")
    head, rest = node.head, node.items[1:]
    if head == "either":
        return Either(tuple(map(parse_pattern, rest)))
    if not all(isinstance(item, Atom) for item in rest):
        raise Unreadable(f"unknown value {node!r}")
    words = [item.text for item in rest if isinstance(item, Atom)]
    if head == "v128.const" and words and words[0] in _SHAPES:
        form, width, count = _SHAPES[words[0]]
        if len(words) != count + 1:
            raise Unreadable(f"expected {count} lanes, got {len(words) - 1}")
        return Number("v128", tuple(_lane(word, form, width) for word in words[1:]))
    scalar = head.removesuffix(".const")
    if scalar in _SCALARS and head != scalar and len(words) == 1:
        return Number(scalar, (_lane(words[0], *_SCALARS[scalar]),))
    if head == "ref.null" and len(words) <= 1:
        return Null()
    if head in ("ref.extern", "ref.host") and len(words) == 1:
        return Host(parse_integer(words[0], 32))
    if not words and head in _REFERENCES:
        return Reference(_REFERENCES[head])
    raise Unreadable(f"unknown value {node!r}")


def parse_constant(node: Node) -> Constant:
    """
    Read a constant.

    Raises:
        ValueError: If it is none, or only a pattern.
    """
    pattern = parse_pattern(node)
    if isinstance(pattern, (Reference, Either)) or (
        isinstance(pattern, Number) and any(lane.nan for lane in pattern.lanes)
    ):
        raise Unreadable(f"expected a constant, got the pattern {node!r}")
    return pattern


# To Python and back.


def to_python(constant: Constant) -> object:
    """Return the Python value that the API takes for *constant*."""
    if isinstance(constant, Null):
        return None
    if isinstance(constant, Host):
        return host_reference(constant.number)
    if constant.type == "v128":
        return b"".join(lane.bits.to_bytes(lane.width // 8, "little") for lane in constant.lanes)
    bits = constant.lanes[0].bits
    if constant.type in ("i32", "i64"):
        return signed(bits, constant.lanes[0].width)
    if constant.type == "f64":
        return _double(bits)
    # Not through struct's "f": widening by hand keeps the payload on every processor.
    return _double(_widen(bits)) if _is_nan(bits, 32) else _single(bits)


def signed(bits: int, width: int) -> int:
    """Return the signed integer with these *bits*."""
    return bits - (1 << width) if bits >> (width - 1) else bits


def _double(bits: int) -> float:
    value: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
    return value


def _single(bits: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return value


def _widen(bits: int) -> int:
    """Return the bits of the double NaN with sign and payload of a single one."""
    return (bits >> 31) << 63 | _exponent_mask(64) | (bits & 0x7F_FFFF) << 29


def _seen_bits(type: str, value: object) -> int | str:
    """Return the bits of a scalar result, or what is wrong with it."""
    if type in ("i32", "i64"):
        width = 32 if type == "i32" else 64
        if not isinstance(value, int) or isinstance(value, bool):
            return f"expected an int, got {value!r}"
        if not -(1 << (width - 1)) <= value < 1 << (width - 1):
            return f"{value} is no signed {type}"
        return value & ((1 << width) - 1)
    if not isinstance(value, float):
        return f"expected a float, got {value!r}"
    (bits,) = struct.unpack("<Q", struct.pack("<d", value))
    assert isinstance(bits, int)
    if type == "f64":
        return bits
    if _is_nan(bits, 64):
        if bits & ((1 << 29) - 1):
            return f"NaN with bits {bits:#x}, which no f32 has"
        return bits >> 63 << 31 | _exponent_mask(32) | bits >> 29 & 0x7F_FFFF
    (narrow,) = struct.unpack("<I", struct.pack("<f", value))
    if _single(narrow) != value:
        return f"{value!r}, which no f32 has"
    assert isinstance(narrow, int)
    return narrow


def _same_number(pattern: Number, value: object) -> str:
    if pattern.type == "v128":
        if not isinstance(value, bytes) or len(value) != 16:
            return f"expected 16 bytes, got {value!r}"
        offset = 0
        lanes = []
        for lane in pattern.lanes:
            size = lane.width // 8
            lanes.append(int.from_bytes(value[offset : offset + size], "little"))
            offset += size
    else:
        seen = _seen_bits(pattern.type, value)
        if isinstance(seen, str):
            return seen
        lanes = [seen]
    # A signalling NaN that comes as a float has become quiet on the way. The runner does
    # not ask here about those that it expects; for `nan:arithmetic` and `nan:canonical` the
    # sign and the other payload bits are seen, and the quiet bit is taken on trust.
    if all(lane.accepts(bits) for lane, bits in zip(pattern.lanes, lanes, strict=True)):
        return ""
    shown = " ".join(f"0x{bits:0{lane.width // 4}x}" for lane, bits in zip(pattern.lanes, lanes))
    return f"expected {pattern}, got {shown}"


def mismatch(pattern: Pattern, value: object, kind_of: Callable[[object], str]) -> str:
    """
    Return how the result *value* differs from *pattern*: nothing if it does not.

    Args:
        kind_of: Says what a reference that is not null is: ``"i31"``, ``"struct"``,
            ``"array"``, ``"func"`` or ``"host"``.
    """
    if isinstance(pattern, Number):
        return _same_number(pattern, value)
    if isinstance(pattern, Either):
        problems = [mismatch(choice, value, kind_of) for choice in pattern.patterns]
        return "" if "" in problems else "; ".join(problems)
    if isinstance(pattern, Null):
        return "" if value is None else f"expected null, got {value!r}"
    if isinstance(pattern, Host):
        expected = host_reference(pattern.number)
        return "" if value is expected else f"expected {expected}, got {value!r}"
    if value is None:
        return f"expected {pattern}, got null"
    kind = kind_of(value)
    fits = {
        "ref": True,
        "eq": kind in ("i31", "struct", "array"),
        # Anything of the any hierarchy can be an externref.
        "extern": kind in ("i31", "struct", "array", "host"),
        "exn": False,
    }.get(pattern.kind, kind == pattern.kind)
    return "" if fits else f"expected {pattern}, got {value!r} ({kind})"

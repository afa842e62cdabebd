"""The builtins of `wasm:js-string`: Python strings, counted in UTF-16 code units as in JS."""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asyncwasm as aw
from asyncwasm._objects import builtins

from .helpers import Recorder, exports_of, readable

EXTERN, STRING, CHARS, INT = "externref", "(ref extern)", "(ref null $chars)", "i32"
BUILTINS: dict[str, tuple[list[str], str]] = {
    "cast": ([EXTERN], STRING),
    "test": ([EXTERN], INT),
    "fromCharCodeArray": ([CHARS, INT, INT], STRING),
    "intoCharCodeArray": ([EXTERN, CHARS, INT], INT),
    "fromCharCode": ([INT], STRING),
    "fromCodePoint": ([INT], STRING),
    "charCodeAt": ([EXTERN, INT], INT),
    "codePointAt": ([EXTERN, INT], INT),
    "length": ([EXTERN], INT),
    "concat": ([EXTERN, EXTERN], STRING),
    "substring": ([EXTERN, INT, INT], STRING),
    "equals": ([EXTERN, EXTERN], INT),
    "compare": ([EXTERN, EXTERN], INT),
}


def _signature(parameters: list[str], result: str) -> str:
    return f"(param {' '.join(parameters)}) (result {result})"


def _wrapper(name: str) -> str:
    parameters, result = BUILTINS[name]
    arguments = " ".join(f"(local.get {index})" for index in range(len(parameters)))
    return (
        f'(func (export "{name}") {_signature(parameters, result)} (call ${name} {arguments}))'
        f'(export "direct_{name}" (func ${name}))'
    )


MODULE = f"""(module
  (type $chars (array (mut i16)))
  {
    "".join(
        f'(import "wasm:js-string" "{name}" (func ${name} {_signature(*types)}))'
        for name, types in BUILTINS.items()
    )
}
  {"".join(map(_wrapper, BUILTINS))}
  (func (export "make") (param i32) (result (ref $chars))
    (array.new_default $chars (local.get 0)))
  (func (export "put") (param (ref $chars) i32 i32)
    (array.set $chars (local.get 0) (local.get 1) (local.get 2)))
  (func (export "at") (param (ref $chars) i32) (result i32)
    (array.get_u $chars (local.get 0) (local.get 1))))"""

HIGH, LOW, PAIR = "\ud83d", "\ude00", "\U0001f600"
STRINGS = ["", "a", "1", "ab", "hello, world", "\n", "\0", "\u263a", "\u263a\u263a", "\uffff"]
STRINGS += ["\U00010000\U00010001", f"a{PAIR}b", HIGH, LOW, LOW + HIGH, f"{HIGH}a"]
OTHER_VALUES: list[Any] = [None, True, 13.37, 37, -0.0, float("nan"), b"hi", ["hi"], {"x": 1}]
OTHER_VALUES += [object(), len, str]


@pytest.fixture(scope="module")
def strings() -> Any:
    """Return the exports of one instance that calls each builtin."""
    module = aw.Module(aw.wat2wasm(MODULE), builtins=["js-string"])
    return aw.Instance(module).exports


def _units(text: str) -> list[int]:
    encoded = text.encode("utf-16-le", "surrogatepass")
    return [int.from_bytes(encoded[at : at + 2], "little") for at in range(0, len(encoded), 2)]


def _text(units: list[int]) -> str:
    encoded = b"".join(unit.to_bytes(2, "little") for unit in units)
    return encoded.decode("utf-16-le", "surrogatepass")


def _array(strings: Any, units: list[int]) -> Any:
    array = strings.make(len(units))
    for index, unit in enumerate(units):
        strings.put(array, index, unit)
    return array


in_every_string = pytest.mark.parametrize("text", STRINGS, ids=ascii)
in_every_other_value = pytest.mark.parametrize("value", OTHER_VALUES, ids=readable)


@in_every_string
def test_test_and_cast_accept_a_str(strings: Any, text: str) -> None:
    assert strings.test(text) == 1
    assert strings.cast(text) == text


@in_every_other_value
def test_test_refuses_any_other_value(strings: Any, value: Any) -> None:
    assert strings.test(value) == 0


CALLS: dict[str, Any] = {
    "cast": lambda strings, value: strings.cast(value),
    "intoCharCodeArray": lambda strings, value: strings.intoCharCodeArray(
        value, strings.make(10), 0
    ),
    "charCodeAt": lambda strings, value: strings.charCodeAt(value, 0),
    "codePointAt": lambda strings, value: strings.codePointAt(value, 0),
    "length": lambda strings, value: strings.length(value),
    "concat-first": lambda strings, value: strings.concat(value, "a"),
    "concat-second": lambda strings, value: strings.concat("a", value),
    "substring": lambda strings, value: strings.substring(value, 0, 0),
    "compare-first": lambda strings, value: strings.compare(value, "a"),
    "compare-second": lambda strings, value: strings.compare("a", value),
}


@in_every_other_value
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_builtin_traps_on_a_value_that_is_no_str(strings: Any, call: Any, value: Any) -> None:
    with pytest.raises(aw.Trap):
        call(strings, value)


@in_every_other_value
def test_equals_traps_on_a_value_that_is_neither_str_nor_null(strings: Any, value: Any) -> None:
    if value is None:
        assert strings.equals(None, "") == 0
        assert strings.equals("", None) == 0
        assert strings.equals(None, None) == 1
        return
    for first, second in ((value, "a"), ("a", value), (value, value), (None, value)):
        with pytest.raises(aw.Trap):
            strings.equals(first, second)


def test_trap_of_a_builtin_is_not_catchable_by_the_guest() -> None:
    """Non-string arguments trap: no exception that `catch_all` could see."""
    text = """(module (import "wasm:js-string" "length" (func $l (param externref) (result i32)))
      (func (export "f") (result i32)
        (block $caught (drop (try_table (result i32) (catch_all $caught)
          (call $l (ref.null extern)))) (return (i32.const 0)))
        (i32.const 1)))"""
    instance = aw.Instance(aw.Module(aw.wat2wasm(text), builtins=["js-string"]))

    with pytest.raises(aw.Trap):
        instance.exports.f()


@in_every_string
def test_length_counts_code_units(strings: Any, text: str) -> None:
    assert strings.length(text) == len(_units(text))


@in_every_string
def test_char_code_at_gives_code_units(strings: Any, text: str) -> None:
    units = _units(text)

    assert [strings.charCodeAt(text, index) for index in range(len(units))] == units


@in_every_string
def test_code_point_at_joins_surrogate_pairs(strings: Any, text: str) -> None:
    units = _units(text)
    expected = [ord(_text(units[index : index + 2])[0]) for index in range(len(units))]

    assert [strings.codePointAt(text, index) for index in range(len(units))] == expected


@pytest.mark.parametrize("name", ["charCodeAt", "codePointAt"])
@pytest.mark.parametrize(("text", "index"), [("", 0), ("ab", 2), (PAIR, 2), ("ab", -1)], ids=ascii)
def test_index_beyond_the_end_traps(strings: Any, name: str, text: str, index: int) -> None:
    with pytest.raises(aw.Trap):
        strings[name](text, index)


@pytest.mark.parametrize("code", [0, 1, 10, 0x7F, 0xFF, 0xD83D, 0xDE00, 0xFFFE, 0xFFFF])
def test_from_char_code_gives_one_code_unit(strings: Any, code: int) -> None:
    assert strings.fromCharCode(code) == chr(code)


@pytest.mark.parametrize("code", [0x10000, 0x1F600, -1])
def test_from_char_code_keeps_sixteen_bits(strings: Any, code: int) -> None:
    assert strings.fromCharCode(code) == chr(code & 0xFFFF)


@pytest.mark.parametrize("code", [0, 1, 0x7F, 0xFFFF, 0xD83D, 0x10000, 0x1F600, 0x10FFFF])
def test_from_code_point_gives_one_character(strings: Any, code: int) -> None:
    assert strings.fromCodePoint(code) == chr(code)


@pytest.mark.parametrize("code", [0x110000, 2**31 - 1, -1])
def test_from_code_point_beyond_unicode_traps(strings: Any, code: int) -> None:
    with pytest.raises(aw.Trap):
        strings.fromCodePoint(code)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(STRINGS, STRINGS)), ids=ascii)
def test_concat_equals_and_compare_work_on_code_units(
    strings: Any, first: str, second: str
) -> None:
    left, right = _units(first), _units(second)

    assert strings.concat(first, second) == _text(left + right)
    assert strings.equals(first, second) == (left == right)
    assert strings.compare(first, second) == (left > right) - (left < right)


def test_compare_orders_by_code_units_and_not_by_code_points(strings: Any) -> None:
    assert sorted(["\U00010000", "\uffff"]) == ["\uffff", "\U00010000"]
    assert strings.compare("\U00010000", "\uffff") == -1


def test_joined_surrogates_are_the_character(strings: Any) -> None:
    joined = strings.concat(HIGH, LOW)

    assert joined == PAIR
    assert strings.equals(joined, PAIR) == 1
    assert strings.length(joined) == 2


@pytest.mark.parametrize("text", ["", "ab", "hello, world", f"a{PAIR}b"], ids=ascii)
def test_substring_cuts_code_units(strings: Any, text: str) -> None:
    units = _units(text)
    cuts = list(itertools.product(range(len(units) + 2), repeat=2))

    results = [strings.substring(text, start, end) for start, end in cuts]

    assert results == [_text(units[start:end]) if start <= end else "" for start, end in cuts]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(1, -1, "ello"), (-1, -1, ""), (-1, 2, ""), (0, 2**31, "hello"), (9, 9, "")],
)
def test_substring_takes_its_indices_as_unsigned(
    strings: Any, start: int, end: int, expected: str
) -> None:
    assert strings.substring("hello", start, end) == expected


def test_halves_of_a_pair_are_lone_surrogates(strings: Any) -> None:
    assert strings.substring(PAIR, 0, 1) == HIGH
    assert strings.substring(PAIR, 1, 2) == LOW


@in_every_string
def test_into_char_code_array_writes_code_units(strings: Any, text: str) -> None:
    units = _units(text)
    array = strings.make(len(units) + 2)

    written = strings.intoCharCodeArray(text, array, 1)

    assert written == len(units)
    assert [strings.at(array, index) for index in range(len(units) + 2)] == [0, *units, 0]


@in_every_string
def test_from_char_code_array_reads_code_units(strings: Any, text: str) -> None:
    units = _units(text)
    array = _array(strings, [0x41, *units, 0x42])

    assert strings.fromCharCodeArray(array, 1, len(units) + 1) == text


@pytest.mark.parametrize(("start", "end"), [(2, 1), (0, 4), (4, 4), (-1, 0), (0, -1), (-1, -1)])
def test_from_char_code_array_out_of_range_traps(strings: Any, start: int, end: int) -> None:
    array = _array(strings, [0x61, 0x62, 0x63])

    with pytest.raises(aw.Trap):
        strings.fromCharCodeArray(array, start, end)


@pytest.mark.parametrize("start", [2, 3, 4, -1])
def test_into_char_code_array_out_of_range_traps_and_writes_nothing(
    strings: Any, start: int
) -> None:
    array = strings.make(3)

    with pytest.raises(aw.Trap):
        strings.intoCharCodeArray("xy", array, start)

    assert [strings.at(array, index) for index in range(3)] == [0, 0, 0]


def test_null_array_traps(strings: Any) -> None:
    with pytest.raises(aw.Trap):
        strings.fromCharCodeArray(None, 0, 0)
    with pytest.raises(aw.Trap):
        strings.intoCharCodeArray("a", None, 0)


@pytest.mark.parametrize("name", ["length", "test"])
def test_builtin_can_be_exported_and_called_directly(strings: Any, name: str) -> None:
    """EF2."""
    function = strings[f"direct_{name}"]

    assert isinstance(function, aw.ExportedFunction)
    assert function(PAIR) == strings[name](PAIR)


async def test_builtins_work_in_awaited_calls(strings: Any) -> None:
    assert await strings.concat.call_async("a", "b") == "ab"
    with pytest.raises(aw.Trap):
        await strings.length.call_async(None)


@pytest.mark.parametrize("name", BUILTINS)
def test_builtin_with_its_type_in_another_rec_group_is_refused(name: str) -> None:
    wasm = aw.wat2wasm(f"""(module (type $chars (array (mut i16)))
      (rec (type $t (func {_signature(*BUILTINS[name])})) (type (struct)))
      (import "wasm:js-string" "{name}" (func (type $t))))""")

    assert aw.validate(wasm) is True
    assert aw.validate(wasm, builtins=["js-string"]) is False
    with pytest.raises(aw.CompileError):
        aw.Module(wasm, builtins=["js-string"])


@pytest.mark.parametrize("name", BUILTINS)
def test_builtin_with_another_signature_is_refused(name: str) -> None:
    wasm = aw.wat2wasm(f'(module (import "wasm:js-string" "{name}" (func (param i64))))')

    assert aw.validate(wasm, builtins=["js-string"]) is False
    with pytest.raises(aw.CompileError):
        aw.Module(wasm, builtins=["js-string"])


@pytest.mark.parametrize("kind", ["(global i32)", "(memory 1)", "(table 1 funcref)"])
def test_builtin_of_another_kind_is_refused(kind: str) -> None:
    wasm = aw.wat2wasm(f'(module (import "wasm:js-string" "length" {kind}))')

    assert aw.validate(wasm, builtins=["js-string"]) is False


def test_satisfied_imports_are_not_listed() -> None:
    """MO4."""
    text = """(module (import "constants" "c" (global externref))
      (import "wasm:js-string" "test" (func (param externref) (result i32))))"""

    module = aw.Module(
        aw.wat2wasm(text), builtins=["js-string"], imported_string_constants="constants"
    )

    assert module.imports() == []


@pytest.mark.parametrize("mutable", [False, True], ids=["constant", "mutable"])
@pytest.mark.parametrize(
    "type_", ["anyref", "(ref any)", "funcref", "(ref func)", "externref", "(ref extern)"]
)
def test_string_constant_must_be_a_constant_that_extern_matches(type_: str, mutable: bool) -> None:
    """OP2."""
    declared = f"(mut {type_})" if mutable else type_
    wasm = aw.wat2wasm(f'(module (import "\'" "constant" (global {declared})))')
    expected = "extern" in type_ and not mutable

    assert aw.validate(wasm, imported_string_constants="'") is expected
    if not expected:
        with pytest.raises(aw.CompileError):
            aw.Module(wasm, imported_string_constants="'")


def _quoted(text: str) -> str:
    return "".join(f"\\{byte:02x}" for byte in text.encode())


@pytest.mark.parametrize("type_", ["externref", "(ref extern)"])
@pytest.mark.parametrize("constant", ["", "\0", "0", "0" * 10_000, PAIR], ids=readable)
@pytest.mark.parametrize("namespace", ["", "'", "strings"])
def test_string_constant_is_any_name(namespace: str, constant: str, type_: str) -> None:
    """OP2, MO8."""
    wasm = aw.wat2wasm(f"""(module
      (import "{namespace}" "{_quoted(constant)}" (global $g {type_})) (export "g" (global $g)))""")

    instance = aw.Instance(aw.Module(wasm, imported_string_constants=namespace))

    assert instance.exports.g.value == constant


async def test_string_constant_may_be_long() -> None:
    """OP2."""
    constant = "0" * 100_000
    wasm = aw.wat2wasm(f"""(module
      (import "s" "{constant}" (global $g externref)) (export "g" (global $g)))""")

    _, instance = await aw.instantiate(wasm, imported_string_constants="s")

    assert instance.exports.g.value == constant


def test_strings_pass_as_they_are_without_builtins() -> None:
    exports = exports_of(
        '(module (func (export "f") (param externref) (result externref) (local.get 0)))'
    )

    assert [exports.f(text) for text in STRINGS] == STRINGS


# Half of the characters are ones that are counted, cut or joined differently in UTF-16.
_characters = st.one_of(
    st.sampled_from(["a", HIGH, LOW, PAIR, "\uffff", "\ud800", "\udfff", "\U0010ffff"]),
    st.characters(categories=None),
)
texts = st.one_of(
    st.text(_characters, max_size=8),
    st.text(_characters, max_size=8).map(lambda text: text * 200),  # is remembered
)
indices = st.one_of(st.integers(-3, 12), st.integers(-(2**31), 2**31 - 1))


def _outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except aw.Trap:
        return "trap"


def _at(units: list[int], index: int) -> Any:
    return units[index] if 0 <= index < len(units) else "trap"


@settings(max_examples=50)
@given(first=texts, second=texts, start=indices, end=indices)
def test_builtins_do_what_a_list_of_code_units_does(
    strings: Any, first: str, second: str, start: int, end: int
) -> None:
    left, right = _units(first), _units(second)
    low, high = start % 2**32, end % 2**32

    assert strings.length(first) == len(left)
    assert _outcome(strings.charCodeAt, first, start) == _at(left, low)
    expected = _at(left, low)
    if expected != "trap":
        expected = ord(_text(left[low : low + 2])[0])
    assert _outcome(strings.codePointAt, first, start) == expected
    assert strings.concat(first, second) == _text(left + right)
    cut = strings.substring(first, start, end)
    assert _units(cut) == (left[low:high] if low <= high else [])
    assert strings.equals(first, second) == (left == right)
    assert strings.equals(first, _text(left)) == 1
    assert strings.compare(first, second) == (left > right) - (left < right)
    assert strings.compare(first, _text(left)) == 0
    assert strings.test(first) == 1
    assert strings.cast(first) == first
    assert strings.fromCharCode(start) == chr(low & 0xFFFF)
    code = _outcome(strings.fromCodePoint, start)
    assert code == (chr(low) if low < 0x110000 else "trap")


@settings(max_examples=20)
@given(text=st.text(_characters, max_size=12), start=indices, end=indices)
def test_array_builtins_do_what_a_list_of_code_units_does(
    strings: Any, text: str, start: int, end: int
) -> None:
    units = _units(text)
    low, high = start % 2**32, end % 2**32
    array = _array(strings, units)

    read = _outcome(strings.fromCharCodeArray, array, start, end)
    assert read == (_text(units[low:high]) if low <= high <= len(units) else "trap")

    room = strings.make(10)
    fits = low + len(units) <= 10
    assert _outcome(strings.intoCharCodeArray, text, room, start) == (
        len(units) if fits else "trap"
    )
    expected = [0] * 10
    if fits:
        expected[low : low + len(units)] = units
    assert [strings.at(room, index) for index in range(10)] == expected


class _Text(str):
    """A string whose length is a lie."""

    __slots__ = ()

    def __len__(self) -> int:
        return 1_000_000


def test_instance_of_a_subclass_of_str_is_a_string(strings: Any) -> None:
    text = _Text("abc")

    assert strings.test(text) == 1
    assert strings.cast(text) is text
    assert strings.length(text) == 3
    assert strings.substring(text, 1, 9) == "bc"
    assert strings.equals(text, "abc") == 1


def test_object_that_only_claims_to_be_a_str_is_no_string(strings: Any) -> None:
    class Proxy:
        @property  # type: ignore[misc]  # what a proxy does
        def __class__(self) -> Any:
            return str

    proxy = Proxy()

    assert isinstance(proxy, str)
    assert strings.test(proxy) == 0
    with pytest.raises(aw.Trap):
        strings.length(proxy)


@pytest.mark.parametrize("halves", [HIGH + LOW, f"a{HIGH}{LOW}", f"{LOW}{HIGH}{LOW}"], ids=ascii)
def test_halves_that_come_from_outside_are_joined_in_results(strings: Any, halves: str) -> None:
    assert strings.concat(halves, "") == _text(_units(halves))
    assert strings.concat("", halves) == _text(_units(halves))
    assert strings.cast(halves) is halves


def test_concatenation_that_is_too_long_traps(
    strings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "MAX_CHARACTERS", 5)

    assert strings.concat("ab", "cde") == "abcde"
    with pytest.raises(aw.Trap) as caught:
        strings.concat("abc", "def")

    assert caught.value.code is aw.TrapCode.ALLOCATION_TOO_LARGE


def test_traps_say_what_was_wrong(strings: Any) -> None:
    with pytest.raises(aw.Trap, match="length: expected a str, got null") as caught:
        strings.length(None)
    assert caught.value.code is aw.TrapCode.CAST_FAILURE
    with pytest.raises(aw.Trap, match="charCodeAt: index 4294967295 is not below the length, 2"):
        strings.charCodeAt("ab", -1)
    with pytest.raises(aw.Trap, match="1 to 5 is not within an array of 3") as caught:
        strings.fromCharCodeArray(strings.make(3), 1, 5)
    assert caught.value.code is aw.TrapCode.ARRAY_OUT_OF_BOUNDS


OTHER_ARRAYS = """(module
  (type $bytes (array (mut i8))) (type $words (array (mut i32))) (type $fixed (array i16))
  (type $pair (struct (field i32)))
  (func (export "bytes") (result anyref) (array.new_default $bytes (i32.const 4)))
  (func (export "words") (result anyref) (array.new_default $words (i32.const 4)))
  (func (export "fixed") (result anyref) (array.new_default $fixed (i32.const 4)))
  (func (export "pair") (result anyref) (struct.new_default $pair))
  (func (export "number") (result anyref) (ref.i31 (i32.const 4))))"""


@pytest.mark.parametrize("name", ["bytes", "words", "fixed", "pair", "number"])
@pytest.mark.parametrize("prefix", ["", "direct_"])
def test_array_of_another_type_is_refused(prefix: str, name: str) -> None:
    with aw.Store():
        strings = aw.Instance(aw.Module(aw.wat2wasm(MODULE), builtins=["js-string"])).exports
        other = exports_of(OTHER_ARRAYS)

        with pytest.raises(TypeError):
            strings[f"{prefix}fromCharCodeArray"](other[name](), 0, 1)
        with pytest.raises(TypeError):
            strings[f"{prefix}intoCharCodeArray"]("a", other[name](), 0)


def test_builtins_that_take_arrays_can_be_called_directly(strings: Any) -> None:
    array = _array(strings, [0x61, 0x62])

    assert strings.direct_fromCharCodeArray(array, 0, 2) == "ab"
    assert strings.direct_intoCharCodeArray("z", array, 1) == 1
    assert strings.fromCharCodeArray(array, 0, 2) == "az"


def test_guest_keeps_its_strings_while_builtins_make_others() -> None:
    """Collections happen while the guest waits for a builtin; they see what it holds."""
    text = """(module
      (type $chars (array (mut i16)))
      (import "wasm:js-string" "concat"
        (func $concat (param externref externref) (result (ref extern))))
      (import "wasm:js-string" "fromCharCodeArray"
        (func $from (param (ref null $chars) i32 i32) (result (ref extern))))
      (func (export "f") (param $text externref) (param $rounds i32) (result externref)
        (local $chars (ref $chars)) (local $kept externref)
        (local.set $chars (array.new $chars (i32.const 0x78) (i32.const 2)))
        (local.set $kept (call $concat (local.get $text) (local.get $text)))
        (loop $again
          (drop (call $concat (local.get $kept) (local.get $text)))
          (local.set $rounds (i32.sub (local.get $rounds) (i32.const 1)))
          (br_if $again (local.get $rounds)))
        (call $concat (local.get $kept)
          (call $from (local.get $chars) (i32.const 0) (i32.const 2)))))"""
    instance = aw.Instance(aw.Module(aw.wat2wasm(text), builtins=["js-string"]))

    assert instance.exports.f("ab", 6_000) == "ababxx"


def test_start_function_that_traps_in_a_builtin_raises_the_trap() -> None:
    """IC3."""
    text = """(module (import "wasm:js-string" "length" (func $l (param externref) (result i32)))
      (func $start (drop (call $l (ref.null extern)))) (start $start))"""
    module = aw.Module(aw.wat2wasm(text), builtins=["js-string"])

    with pytest.raises(aw.Trap):
        aw.Instance(module)


async def test_builtins_of_one_store_take_turns() -> None:
    async with aw.Store():
        module = aw.Module(aw.wat2wasm(MODULE), builtins=["js-string"])
        first, second = aw.Instance(module).exports, aw.Instance(module).exports

        results = await asyncio.gather(
            *[
                exports.concat.call_async("a", str(index))
                for index in range(50)
                for exports in (first, second)
            ]
        )

    assert sorted(results) == sorted(f"a{index}" for index in range(50) for _ in range(2))


def test_builtin_may_be_imported_twice() -> None:
    text = """(module
      (import "wasm:js-string" "length" (func $a (param externref) (result i32)))
      (import "wasm:js-string" "length" (func $b (param externref) (result i32)))
      (import "s" "abc" (global $c externref)) (import "s" "abc" (global $d (ref extern)))
      (func (export "f") (result i32)
        (i32.add (call $a (global.get $c)) (call $b (global.get $d)))))"""
    module = aw.Module(aw.wat2wasm(text), builtins=["js-string"], imported_string_constants="s")

    assert aw.Instance(module).exports.f() == 6


def test_builtins_work_in_a_store_that_counts_fuel() -> None:
    module = aw.Module(aw.wat2wasm(MODULE), builtins=["js-string"])

    instance = aw.Instance(module, limits=aw.Limits(fuel=100_000))

    assert instance.exports.concat("a", "b") == "ab"


def test_pickled_module_keeps_its_builtins() -> None:
    """MO6, OP3."""
    module = aw.Module(aw.wat2wasm(MODULE), builtins=["js-string", "unknown"])

    twin = pickle.loads(pickle.dumps(module))

    assert twin.imports() == []
    assert aw.Instance(twin).exports.length(PAIR) == 2


@pytest.mark.parametrize(
    "types",
    [
        "(type $chars (array i16))",
        "(type $chars (array (mut i8)))",
        "(type $chars (array (mut i32)))",
        "(type $chars (struct (field (mut i16))))",
        "(type $chars (sub (array (mut i16))))",
        "(rec (type $chars (array (mut i16))) (type (struct)))",
        "(rec (type (struct)) (type $chars (array (mut i16))))",
        "(type $base (sub (array (mut i16)))) (type $chars (sub final $base (array (mut i16))))",
    ],
)
@pytest.mark.parametrize("name", ["fromCharCodeArray", "intoCharCodeArray"])
def test_array_type_must_be_the_very_one(name: str, types: str) -> None:
    """VA2: the same type is one that is equal by the rules of recursion groups."""
    text = f"""(module {types}
      (import "wasm:js-string" "{name}" (func {_signature(*BUILTINS[name])})))"""

    assert aw.validate(aw.wat2wasm(text)) is True
    assert aw.validate(aw.wat2wasm(text), builtins=["js-string"]) is False


@pytest.mark.parametrize("chars", ["(ref $chars)", "(ref null array)", "arrayref", "anyref"])
def test_array_parameter_must_be_the_very_one(chars: str) -> None:
    """VA2."""
    text = f"""(module (type $chars (array (mut i16)))
      (import "wasm:js-string" "fromCharCodeArray"
        (func (param {chars} i32 i32) (result (ref extern)))))"""

    assert aw.validate(aw.wat2wasm(text)) is True
    assert aw.validate(aw.wat2wasm(text), builtins=["js-string"]) is False


@pytest.mark.parametrize(
    "types",
    [
        "(type $t (sub (func (param externref) (result i32))))",
        """(type $base (sub (func (param externref) (result i32))))
           (type $t (sub final $base (func (param externref) (result i32))))""",
        "(rec (type (struct)) (type $t (func (param externref) (result i32))))",
    ],
    ids=["open", "supertype", "group"],
)
def test_function_type_must_be_the_very_one(types: str) -> None:
    """VA2."""
    wasm = aw.wat2wasm(f'(module {types} (import "wasm:js-string" "test" (func (type $t))))')

    assert aw.validate(wasm) is True
    assert aw.validate(wasm, builtins=["js-string"]) is False


def test_equal_types_elsewhere_in_the_module_change_nothing() -> None:
    """VA2: only what is in the same recursion group counts."""
    text = """(module (type (array (mut i16))) (type $chars (array (mut i16))) (type (struct))
      (rec (type (struct)) (type (struct)))
      (type $t (func (param (ref null $chars) i32 i32) (result (ref extern))))
      (rec (type (struct)) (type (struct)))
      (import "wasm:js-string" "fromCharCodeArray" (func (type $t))))"""

    assert aw.validate(aw.wat2wasm(text), builtins=["js-string"]) is True


def test_import_object_is_asked_only_for_what_the_options_leave() -> None:
    """OP4, section 1.11."""
    text = """(module (import "s" "hello" (global externref)) (import "m" "a" (global i32))
      (import "wasm:js-string" "test" (func (param externref) (result i32)))
      (import "m" "b" (global i32)) (import "wasm:js-string" "mine" (func)))"""
    order: list[str] = []
    parts = {
        "m": Recorder(order, {"a": 1, "b": 2}),
        "wasm:js-string": Recorder(order, {"mine": lambda: None}),
    }
    module = aw.Module(aw.wat2wasm(text), builtins=["js-string"], imported_string_constants="s")

    aw.Instance(module, Recorder(order, parts))

    assert order == ["m", "a", "m", "b", "wasm:js-string", "mine"]


def test_string_constants_win_over_a_builtin_set_of_the_same_name() -> None:
    """VA2: the module of constants is looked at first."""
    wasm = aw.wat2wasm("""(module (import "wasm:js-string" "length" (global $g externref))
      (export "g" (global $g)))""")
    options: dict[str, Any] = {
        "builtins": ["js-string"],
        "imported_string_constants": "wasm:js-string",
    }

    assert aw.Instance(aw.Module(wasm, **options)).exports.g.value == "length"


def test_what_is_left_must_be_given() -> None:
    """RI1."""
    text = """(module (import "s" "hello" (global externref)) (import "m" "a" (global i32)))"""
    module = aw.Module(aw.wat2wasm(text), imported_string_constants="s")

    with pytest.raises(TypeError, match="'m' 'a'"):
        aw.Instance(module)


BAD_OPTIONS: list[dict[str, Any]] = [
    {"builtins": "js-string"},
    {"builtins": b"js-string"},
    {"builtins": None},
    {"builtins": 1},
    {"builtins": [None]},
    {"builtins": [b"js-string"]},
    {"imported_string_constants": b"s"},
    {"imported_string_constants": 1},
    {"imported_string_constants": ["s"]},
]
in_every_bad_option = pytest.mark.parametrize("options", BAD_OPTIONS, ids=repr)


@in_every_bad_option
def test_option_of_the_wrong_type_is_a_type_error(options: dict[str, Any]) -> None:
    """OP1, OP2."""
    wasm = aw.wat2wasm("(module)")

    with pytest.raises(TypeError):
        aw.Module(wasm, **options)
    with pytest.raises(TypeError):
        aw.validate(wasm, **options)


@in_every_bad_option
async def test_option_of_the_wrong_type_is_a_type_error_when_awaited(
    options: dict[str, Any],
) -> None:
    """OP1, OP2, CO2."""
    wasm = aw.wat2wasm("(module)")

    for coroutine in (
        aw.compile(wasm, **options),
        aw.instantiate(wasm, **options),
    ):
        with pytest.raises(TypeError):
            await coroutine


async def test_names_of_builtin_sets_are_read_at_the_call() -> None:
    """Contract 1: arguments are read at the call."""
    names = ["js-string"]
    wasm = aw.wat2wasm(MODULE)

    compiling = aw.compile(wasm, builtins=iter(names))
    listed = aw.instantiate(wasm, builtins=names)
    names.clear()

    assert (await compiling).imports() == []
    assert (await listed).instance.exports.length("ab") == 2


async def test_one_set_of_bytes_has_modules_with_different_options() -> None:
    """OP3: the code is shared, the options are not."""
    wasm = aw.wat2wasm(MODULE)

    with_builtins, without = await asyncio.gather(
        aw.compile(wasm, builtins=["js-string"]), aw.compile(wasm)
    )

    assert with_builtins.imports() == []
    assert len(without.imports()) == len(BUILTINS)


async def _chunks(wasm: bytes) -> AsyncIterator[bytes]:
    yield wasm


async def test_streaming_forms_take_the_options() -> None:
    """OP3."""
    wasm = aw.wat2wasm(MODULE)

    module = await aw.compile_streaming(_chunks(wasm), builtins=["js-string"])
    _, instance = await aw.instantiate_streaming(_chunks(wasm), builtins=["js-string"])

    assert module.imports() == []
    assert instance.exports.length(PAIR) == 2
    with pytest.raises(aw.CompileError):
        await aw.compile_streaming(_chunks(wasm), builtins=["unknown", "unknown"])


@pytest.mark.parametrize("character", ["\u263a", PAIR], ids=ascii)
def test_guest_may_go_through_many_long_strings_at_once(strings: Any, character: str) -> None:
    """More of them than are remembered."""
    texts = [character * 300 + str(index) for index in range(20)]
    units = [_units(text) for text in texts]

    for position in (0, 1, 299, 300):
        assert [strings.charCodeAt(text, position) for text in texts] == [
            each[position] for each in units
        ]
    assert [strings.length(text) for text in texts] == [len(each) for each in units]

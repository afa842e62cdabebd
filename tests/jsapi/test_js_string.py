"""The builtins of `wasm:js-string`: Python strings, counted in UTF-16 code units as in JS."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import asyncwasm as aw

from .helpers import exports_of, readable

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
STRINGS += ["\U00010000\U00010001", f"a{PAIR}b", HIGH, LOW, LOW + HIGH]
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

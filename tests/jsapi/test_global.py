"""`Global`: the constructor, its value, and that a constant stays constant."""

from __future__ import annotations

from typing import Any

import pytest

import asyncwasm as aw

from .helpers import GlobalType, Index, exports_of, readable, two_functions

DEFAULTS = [
    ("i32", 0),
    ("i64", 0),
    ("f32", 0.0),
    ("f64", 0.0),
    ("externref", None),
    ("funcref", None),
    ("anyfunc", None),
]


@pytest.mark.parametrize("mutable", [False, True], ids=["constant", "mutable"])
@pytest.mark.parametrize("arguments", [(), (None,)], ids=["omitted", "None"])
@pytest.mark.parametrize(("type_", "value"), DEFAULTS)
def test_value_defaults_to_zero_or_null(
    type_: str, value: object, arguments: tuple[Any, ...], mutable: bool
) -> None:
    """GL1, GL3."""
    held = aw.Global(type_, *arguments, mutable=mutable)

    assert held.value == value
    assert type(held.value) is type(value)
    assert held.type == GlobalType(GlobalType(type_).value, mutable)


def test_global_is_constant_unless_said_otherwise() -> None:
    """GL1."""
    assert aw.Global("i32").type.mutable is False


def test_global_may_be_made_from_a_global_type() -> None:
    """GL1."""
    global_type: Any = GlobalType("i64", True)

    held = aw.Global(global_type, 5)

    assert (held.type, held.value) == (global_type, 5)


@pytest.mark.parametrize("name", ["i16", "i128", "f16", "f128", "u32", "u64", "i32\0", "", "I32"])
def test_unknown_type_is_a_type_error(name: Any) -> None:
    """GL1."""
    with pytest.raises(TypeError):
        aw.Global(name)


@pytest.mark.parametrize("value", [None, True, 1, b"i32", {}, object(), int], ids=readable)
def test_type_must_be_the_name_of_a_type(value: Any) -> None:
    """GL1."""
    with pytest.raises(TypeError):
        aw.Global(value)


def test_type_is_required() -> None:
    """GL1."""
    held: Any = aw.Global

    with pytest.raises(TypeError):
        held()


def test_mutable_is_keyword_only() -> None:
    held: Any = aw.Global

    with pytest.raises(TypeError):
        held("i32", 0, True)


@pytest.mark.parametrize("value", [None, 0])
def test_global_of_exceptions_is_a_type_error(value: Any) -> None:
    """GL2."""
    with pytest.raises(TypeError):
        aw.Global("exnref", value)


def test_v128_global_holds_bytes() -> None:
    """GL2, where Python differs."""
    held = aw.Global("v128", bytes(range(16)), mutable=True)
    before = held.value

    held.value = b"\x01" * 16

    assert before == bytes(range(16))
    assert held.value == b"\x01" * 16


@pytest.mark.parametrize(
    ("type_", "value", "error"),
    [
        ("i32", 1.5, TypeError),
        ("i32", "3", TypeError),
        ("i32", 2**32, OverflowError),
        ("i64", 1.0, TypeError),
        ("i64", 2**64, OverflowError),
        ("f64", "3", TypeError),
        ("funcref", len, TypeError),
    ],
)
def test_initial_value_must_convert(type_: str, value: Any, error: type[Exception]) -> None:
    """GL1, GL5."""
    with pytest.raises(error):
        aw.Global(type_, value)


@pytest.mark.parametrize("type_", ["i32", "i64"])
def test_initial_value_is_kept_signed(type_: str) -> None:
    """GL5."""
    assert aw.Global(type_, Index(-3)).value == -3
    assert aw.Global("i32", 2**32 - 1).value == -1


@pytest.mark.parametrize(("type_", "value"), [("i32", 1), ("i64", 1), ("f32", 1.5), ("f64", 2.5)])
def test_mutable_global_takes_a_new_value(type_: str, value: Any) -> None:
    """GL4."""
    held = aw.Global(type_, mutable=True)

    held.value = value

    assert held.value == value


@pytest.mark.parametrize("type_", ["i32", "i64", "f32", "f64"])
def test_value_that_does_not_convert_changes_nothing(type_: str) -> None:
    """GL4."""
    held: Any = aw.Global(type_, 1, mutable=True)

    with pytest.raises(TypeError):
        held.value = "2"
    with pytest.raises(TypeError):
        held.value = None

    assert held.value == 1


@pytest.mark.parametrize("error", [AttributeError, TypeError])
@pytest.mark.parametrize("type_", ["i32", "i64", "f32", "f64", "externref"])
def test_setting_a_constant_is_an_attribute_error_and_a_type_error(
    type_: str, error: type[Exception]
) -> None:
    """GL4."""
    held: Any = aw.Global(type_)
    before = held.value

    with pytest.raises(error):
        held.value = 1

    assert held.value == before


def test_setting_a_constant_does_not_convert_the_value() -> None:
    """GL4."""
    held: Any = aw.Global("i32")
    value = Index(1)

    with pytest.raises(AttributeError):
        held.value = value

    assert value.asked == 0


def test_constant_exported_by_wasm_cannot_be_set() -> None:
    """GL4."""
    held = exports_of('(module (global (export "g") i32 (i32.const 7)))').g

    with pytest.raises(AttributeError):
        held.value = 1

    assert held.value == 7


def test_mutable_global_exported_by_wasm_is_live_both_ways() -> None:
    """GL4."""
    exports = exports_of("""(module (global $g (export "g") (mut i64) (i64.const 7))
      (func (export "read") (result i64) (global.get $g))
      (func (export "write") (param i64) (global.set $g (local.get 0))))""")

    exports.g.value = 2**63
    seen = exports.read()
    exports.write(5)

    assert seen == -(2**63)
    assert exports.g.value == 5


@pytest.mark.parametrize(
    "value", [None, True, 1, -0.0, 1.5, "text", {"an": "object"}, len], ids=readable
)
def test_externref_global_holds_the_identical_object(value: Any) -> None:
    """GL1, GL4."""
    constant, held = aw.Global("externref", value), aw.Global("externref", mutable=True)

    held.value = value

    assert constant.value is value
    assert held.value is value


def test_funcref_global_holds_an_exported_function() -> None:
    """GL1, GL4."""
    function, other = two_functions()
    held = aw.Global("anyfunc", function, mutable=True)
    before = held.value

    held.value = other

    assert before is function
    assert held.value is other


def test_global_of_exceptions_exported_by_wasm_has_no_value() -> None:
    """GL6."""
    held = exports_of('(module (global (export "g") (mut exnref) (ref.null exn)))').g

    with pytest.raises(TypeError):
        _ = held.value
    with pytest.raises(TypeError):
        held.value = None


def test_v128_global_exported_by_wasm_has_bytes() -> None:
    """GL6, where Python differs."""
    held = exports_of('(module (global (export "g") v128 (v128.const i32x4 1 2 3 4)))').g

    assert held.value == b"".join(number.to_bytes(4, "little") for number in (1, 2, 3, 4))


def test_attribute_type_is_read_only() -> None:
    held: Any = aw.Global("i32", mutable=True)

    with pytest.raises(AttributeError):
        held.type = GlobalType("i64")


def test_repr_names_the_class() -> None:
    """ME11."""
    assert "Global" in repr(aw.Global("i32"))

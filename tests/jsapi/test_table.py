"""`Table`: the constructor, entries, growing, and the order in which arguments are checked."""

from __future__ import annotations

from typing import Any

import pytest

import asyncwasm as aw

from .helpers import (
    ADDRESS_ERRORS,
    NOT_AN_INTEGER,
    AddressName,
    Index,
    TableType,
    exports_of,
    readable,
    two_functions,
)

NO_FUNCTIONS = [True, "f", 7, {}, len, lambda: None, object(), aw.Table]

in_both_addresses = pytest.mark.parametrize("address", ["i32", "i64"])


def _entries(table: aw.Table) -> list[Any]:
    return [table.get(index) for index in range(len(table))]


@in_both_addresses
@pytest.mark.parametrize("length", [0, 5])
@pytest.mark.parametrize("element", ["funcref", "anyfunc", "externref"])
def test_new_table_is_filled_with_null(element: str, length: int, address: AddressName) -> None:
    """TA1, TA3, TA4."""
    table = aw.Table(element, length, address=address)

    assert (table.length, len(table)) == (length, length)
    assert _entries(table) == [None] * length
    assert table.type == TableType(TableType(element, 0).element, length, None, address)


def test_table_may_be_made_from_a_table_type() -> None:
    """TA1."""
    table_type: Any = TableType("externref", 1, 3)

    assert aw.Table(table_type).type == table_type


@pytest.mark.parametrize(
    "element", ["i32", "f64", "v128", "func", "", "anyFunc", None, 1, object()]
)
def test_element_that_is_no_reference_type_is_a_type_error(element: Any) -> None:
    """TA1."""
    with pytest.raises(TypeError):
        aw.Table(element, 1)


@pytest.mark.parametrize("arguments", [(), ("funcref",)], ids=["none", "element"])
def test_element_and_initial_are_required(arguments: tuple[Any, ...]) -> None:
    """TA1."""
    with pytest.raises(TypeError):
        aw.Table(*arguments)


@in_both_addresses
@pytest.mark.parametrize("value", NOT_AN_INTEGER, ids=readable)
def test_initial_of_another_type_is_a_type_error(address: AddressName, value: Any) -> None:
    """TA1."""
    with pytest.raises(TypeError):
        aw.Table("funcref", value, address=address)


@in_both_addresses
@pytest.mark.parametrize(
    "value", [value for value in NOT_AN_INTEGER if value is not None], ids=readable
)
def test_maximum_of_another_type_is_a_type_error(address: AddressName, value: Any) -> None:
    """TA1."""
    with pytest.raises(TypeError):
        aw.Table("funcref", 0, value, address=address)


@in_both_addresses
@pytest.mark.parametrize("value", [-1, 2**64, 2**70])
def test_size_that_is_no_address_is_refused(address: AddressName, value: int) -> None:
    """TA1."""
    with pytest.raises(ADDRESS_ERRORS):
        aw.Table("funcref", value, address=address)
    with pytest.raises(ADDRESS_ERRORS):
        aw.Table("funcref", 0, value, address=address)


@pytest.mark.parametrize("value", ["unknown", "", "i16"])
def test_unknown_address_is_a_type_error(value: Any) -> None:
    """TA1."""
    with pytest.raises(TypeError):
        aw.Table("funcref", 1, address=value)


@in_both_addresses
def test_initial_above_maximum_is_a_range_error(address: AddressName) -> None:
    """TA2."""
    with pytest.raises(aw.RangeError):
        aw.Table("funcref", 10, 9, address=address)


def test_externref_table_is_filled_with_the_given_value() -> None:
    """TA3."""
    value = object()

    assert _entries(aw.Table("externref", 3, None, value)) == [value] * 3


def test_funcref_table_is_filled_with_the_given_function() -> None:
    """TA3."""
    function, _ = two_functions()

    table = aw.Table("anyfunc", 3, None, function)

    assert all(entry is function for entry in _entries(table))


@pytest.mark.parametrize("value", NO_FUNCTIONS, ids=readable)
@pytest.mark.parametrize("length", [0, 3])
def test_bad_fill_value_is_a_type_error_even_where_nothing_is_filled(
    length: int, value: Any
) -> None:
    """TA3, TA8."""
    with pytest.raises(TypeError):
        aw.Table("funcref", length, None, value)


@in_both_addresses
def test_set_entries_are_found_by_get(address: AddressName) -> None:
    """TA5, TA6."""
    first, second = two_functions()
    table: Any = aw.Table("funcref", 5, address=address)

    for index, function in ((0, first), (2, second), (4, first)):
        assert table.set(index, function) is None
    before = _entries(table)
    table.set(0, None)

    assert before == [first, None, second, None, first]
    assert _entries(table) == [None, None, second, None, first]


@in_both_addresses
def test_index_syntax_is_get_and_set(address: AddressName) -> None:
    """TA5, TA6."""
    function, _ = two_functions()
    table = aw.Table("funcref", 2, address=address)

    table[1] = function

    assert table[1] is function is table.get(1)
    assert table[0] is None


@pytest.mark.parametrize("element", ["funcref", "externref"])
def test_set_without_a_value_stores_the_default(element: str) -> None:
    """TA6."""
    function, _ = two_functions()
    table = aw.Table(element, 1, None, function)
    before = table.get(0)

    table.set(0)

    assert before is function
    assert table.get(0) is None


def test_externref_table_holds_any_object() -> None:
    """TA6."""
    values = [object(), 0, "", None, 37, len]
    table = aw.Table("externref", len(values))

    for index, value in enumerate(values):
        table.set(index, value)

    assert all(table.get(index) is value for index, value in enumerate(values))


@in_both_addresses
@pytest.mark.parametrize("index", [5, 6, 2**31, 2**32 - 1])
def test_index_beyond_the_end_is_a_table_index_error(address: AddressName, index: int) -> None:
    """TA5, TA6."""
    table = aw.Table("funcref", 5, address=address)

    with pytest.raises(aw.TableIndexError):
        table.get(index)
    with pytest.raises(aw.TableIndexError):
        table.set(index, None)
    with pytest.raises(IndexError):
        table[index]
    with pytest.raises(aw.RangeError):
        table[index] = None


@in_both_addresses
@pytest.mark.parametrize("index", [-1, -5, 2**64], ids=["last", "first", "huge"])
def test_index_that_is_no_address_is_refused_and_never_wraps(
    address: AddressName, index: int
) -> None:
    """TA5, TA6."""
    table = aw.Table("externref", 5, address=address)

    with pytest.raises(ADDRESS_ERRORS):
        table.get(index)
    with pytest.raises(ADDRESS_ERRORS):
        table.set(index, "wrapped")
    with pytest.raises(ADDRESS_ERRORS):
        table[index]
    with pytest.raises(ADDRESS_ERRORS):
        table[index] = "wrapped"

    assert _entries(table) == [None] * 5


@in_both_addresses
@pytest.mark.parametrize("index", [*NOT_AN_INTEGER, slice(0, 1)], ids=readable)
def test_index_of_another_type_is_a_type_error(address: AddressName, index: Any) -> None:
    """TA5, TA6."""
    table: Any = aw.Table("funcref", 1, address=address)

    with pytest.raises(TypeError):
        table.get(index)
    with pytest.raises(TypeError):
        table.set(index, None)
    with pytest.raises(TypeError):
        table[index]


def test_anything_with_index_is_an_index() -> None:
    """TA5."""
    table: Any = aw.Table("externref", 2, None, "x")

    assert table.get(Index(1)) == table[Index(0)] == table[True] == "x"


@pytest.mark.parametrize("method", ["get", "set", "grow"])
def test_method_needs_its_argument(method: str) -> None:
    """TA5, TA6, TA7."""
    with pytest.raises(TypeError):
        getattr(aw.Table("funcref", 1), method)()


@pytest.mark.parametrize("value", NO_FUNCTIONS, ids=readable)
def test_funcref_table_takes_functions_of_wasm_only(value: Any) -> None:
    """TA6, TA8."""
    table = aw.Table("funcref", 1)

    with pytest.raises(TypeError):
        table.set(0, value)
    with pytest.raises(TypeError):
        table[0] = value

    assert table.get(0) is None


def test_function_wraps_a_callable_for_a_table() -> None:
    """TA8."""
    function = aw.Function(aw.FunctionType(["i32"], ["i32"]), lambda value: value + 1)
    table = aw.Table("funcref", 1)

    table.set(0, function)

    assert table.get(0) is function
    assert function(1) == 2


def test_wasm_calls_the_function_that_the_host_stored() -> None:
    """TA8."""
    function = aw.Function(aw.FunctionType(["i32"], ["i32"]), lambda value: value + 1)
    exports = exports_of("""(module (type $t (func (param i32) (result i32)))
      (table $t (export "t") 1 funcref)
      (func (export "f") (param i32) (result i32)
        (call_indirect (type $t) (local.get 0) (i32.const 0))))""")

    exports.t[0] = function

    assert exports.f(41) == 42


def test_index_is_converted_before_the_value() -> None:
    """TA6."""
    index: Any = Index(0)
    value: Any = object()

    with pytest.raises(TypeError):
        aw.Table("funcref", 1).set(index, value)

    assert index.asked == 1


def test_value_is_converted_before_the_bounds_are_checked() -> None:
    """TA6."""
    value: Any = object()

    with pytest.raises(TypeError):
        aw.Table("funcref", 1).set(99, value)


@in_both_addresses
def test_grow_returns_the_old_length(address: AddressName) -> None:
    """TA7."""
    table = aw.Table("funcref", 5, address=address)

    assert table.grow(3) == 5
    assert _entries(table) == [None] * 8
    assert table.type.minimum == 8


@in_both_addresses
def test_grow_keeps_the_entries(address: AddressName) -> None:
    """TA7."""
    first, second = two_functions()
    table = aw.Table("funcref", 2, address=address)
    table.set(0, first)
    table.set(1, second)

    table.grow(2)

    assert _entries(table) == [first, second, None, None]


@in_both_addresses
def test_table_grows_up_to_its_maximum(address: AddressName) -> None:
    """TA7."""
    table = aw.Table("funcref", 3, 5, address=address)

    assert [table.grow(2), table.grow(0)] == [3, 5]
    with pytest.raises(aw.RangeError):
        table.grow(1)


@in_both_addresses
def test_grow_above_the_maximum_is_a_range_error_and_changes_nothing(address: AddressName) -> None:
    """TA7."""
    table = aw.Table("externref", 2, 5, "x", address=address)

    with pytest.raises(aw.RangeError):
        table.grow(4)

    assert _entries(table) == ["x", "x"]


def test_grow_fills_with_the_given_function() -> None:
    """TA7."""
    function, _ = two_functions()
    table = aw.Table("anyfunc", 1)

    assert table.grow(2, function) == 1
    assert _entries(table) == [None, function, function]


@pytest.mark.parametrize("delta", [0, 2])
@pytest.mark.parametrize("value", NO_FUNCTIONS, ids=readable)
def test_grow_with_a_bad_fill_value_is_a_type_error(value: Any, delta: int) -> None:
    """TA7."""
    table = aw.Table("funcref", 1)

    with pytest.raises(TypeError):
        table.grow(delta, value)

    assert len(table) == 1


@in_both_addresses
@pytest.mark.parametrize("value", NOT_AN_INTEGER, ids=readable)
def test_grow_by_something_else_than_an_integer_is_a_type_error(
    address: AddressName, value: Any
) -> None:
    """TA7."""
    with pytest.raises(TypeError):
        aw.Table("funcref", 1, address=address).grow(value)


@in_both_addresses
@pytest.mark.parametrize("value", [-1, 2**64])
def test_grow_by_what_is_no_address_is_refused(address: AddressName, value: int) -> None:
    """TA7."""
    table = aw.Table("funcref", 1, address=address)

    with pytest.raises(ADDRESS_ERRORS):
        table.grow(value)

    assert len(table) == 1


def test_table_grown_by_wasm_shows_its_new_length() -> None:
    """TA4, TA7."""
    table = aw.Table("externref", 1, 3)
    grow = exports_of(
        """(module (import "m" "t" (table $t 1 externref))
          (func (export "grow") (param externref i32) (result i32)
            (table.grow $t (local.get 0) (local.get 1))))""",
        {"m": {"t": table}},
    ).grow

    assert (grow("new", 2), grow("more", 1)) == (1, -1)
    assert _entries(table) == [None, "new", "new"]


NON_NULLABLE = """(module
  (table (export "t") 2 4 (ref any) (ref.i31 (i32.const 42))))"""


def test_table_without_null_needs_a_value() -> None:
    """TA6, TA7."""
    table = exports_of(NON_NULLABLE).t

    with pytest.raises(TypeError):
        table.set(0)
    with pytest.raises(TypeError):
        table.set(0, None)
    with pytest.raises(TypeError):
        table.grow(1)

    assert _entries(table) == [42, 42]


def test_table_of_exceptions_cannot_be_read_or_written() -> None:
    """TA5."""
    table = exports_of('(module (table (export "t") 1 exnref))').t

    with pytest.raises(TypeError):
        table.get(0)
    with pytest.raises(TypeError):
        table.set(0, None)


@pytest.mark.parametrize("name", ["length", "type"])
def test_attribute_is_read_only(name: str) -> None:
    """TA4."""
    table: Any = aw.Table("funcref", 2)

    with pytest.raises(AttributeError):
        setattr(table, name, 1)

    assert len(table) == 2


def test_repr_names_the_class() -> None:
    """ME11."""
    assert "Table" in repr(aw.Table("funcref", 1))

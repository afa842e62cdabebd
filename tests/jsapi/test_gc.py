"""References of the GC proposal: which host values each type takes, i31, and GC objects."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

import asyncwasm as aw

from .helpers import exports_of, readable

# One function for each type that takes it, one that takes it nullable, and makers of values.
KINDS = {
    "any": "any",
    "eq": "eq",
    "struct": "struct",
    "array": "array",
    "i31": "i31",
    "func": "func",
    "extern": "extern",
    "none": "none",
    "nofunc": "nofunc",
    "noextern": "noextern",
    "concrete_struct": "$struct",
    "concrete_array": "$array",
    "concrete_func": "$func",
}
CASTS = f"""(module
  (type $struct (struct (field (mut i32)))) (type $struct2 (struct (field (mut f32))))
  (type $array (array (mut i32))) (type $array2 (array (mut f32)))
  (type $func (func)) (type $func2 (func (result i32)))
  (func (export "make_struct") (result (ref $struct)) (struct.new $struct (i32.const 42)))
  (func (export "make_struct2") (result (ref $struct2)) (struct.new $struct2 (f32.const 42)))
  (func (export "make_array") (result (ref $array))
    (array.new $array (i32.const 42) (i32.const 5)))
  (func (export "make_array2") (result (ref $array2))
    (array.new $array2 (f32.const 42) (i32.const 5)))
  (func (export "function") (type $func))
  (func (export "function2") (type $func2) (i32.const 42))
  {
    "".join(
        f'(func (export "{name}") (param (ref {heap})))'
        f'(func (export "{name}_null") (param (ref null {heap})))'
        for name, heap in KINDS.items()
    )
})"""

HOST_VALUES: dict[str, Any] = {
    "text": "foo",
    "float": 1.5,
    "large-int": 2**40,
    "dict": {},
    "object": object(),
    "callable": len,
}
MADE = ["make_struct", "make_struct2", "make_array", "make_array2", "function", "function2"]
VALUES = [*MADE, "small-int", *HOST_VALUES]

HOST = set(HOST_VALUES)
OBJECTS = {"make_struct", "make_struct2", "make_array", "make_array2"}
FUNCTIONS = {"function", "function2"}
ACCEPTED: dict[str, set[str]] = {
    "any": set(VALUES),
    "eq": OBJECTS | {"small-int"},
    "struct": {"make_struct", "make_struct2"},
    "array": {"make_array", "make_array2"},
    "i31": {"small-int"},
    "func": FUNCTIONS,
    "extern": set(VALUES),
    "none": set(),
    "nofunc": set(),
    "noextern": set(),
    "concrete_struct": {"make_struct"},
    "concrete_array": {"make_array"},
    "concrete_func": {"function"},
}


@pytest.fixture(scope="module")
def casts() -> Any:
    """Return the exports of one instance that makes and takes values of each type."""
    return exports_of(CASTS)


def _value(exports: Any, name: str) -> Any:
    if name == "small-int":
        return 42
    if name in HOST_VALUES:
        return HOST_VALUES[name]
    return exports[name]() if name.startswith("make") else exports[name]


@pytest.mark.parametrize("nullable", [False, True], ids=["non-null", "nullable"])
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("kind", KINDS)
def test_reference_type_takes_the_values_it_should(
    casts: Any, kind: str, value: str, nullable: bool
) -> None:
    """Section 1.15."""
    function = casts[f"{kind}_null" if nullable else kind]
    argument = _value(casts, value)

    if value in ACCEPTED[kind]:
        assert function(argument) is None
    else:
        with pytest.raises(TypeError):
            function(argument)


@pytest.mark.parametrize("kind", KINDS)
def test_none_is_null_where_null_is_allowed(casts: Any, kind: str) -> None:
    """Section 1.15."""
    assert casts[f"{kind}_null"](None) is None
    with pytest.raises(TypeError):
        casts[kind](None)


I31 = """(module
  (func (export "make") (param i32) (result (ref i31)) (ref.i31 (local.get 0)))
  (func (export "cast") (param (ref any)) (result i32)
    (i31.get_u (ref.cast (ref i31) (local.get 0))))
  (func (export "read") (param (ref i31)) (result i32) (i31.get_s (local.get 0)))
  (func (export "take") (param i31ref))
  (global (export "g") (mut i31ref) (ref.i31 (i32.const 0)))
  (table (export "t") 10 i31ref))"""

I31_MIN, I31_MAX = -(2**30), 2**30 - 1
OUTSIDE = [2**30, -(2**30) - 1, 2**31, 2**70]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (42, 42),
        (I31_MAX, I31_MAX),
        (2**30, I31_MIN),
        (I31_MIN, I31_MIN),
        (2**31 - 1, -1),
        (2**31, 0),
    ],
)
def test_i31_comes_out_as_a_signed_int(given: int, expected: int) -> None:
    """Section 1.15."""
    assert exports_of(I31).make(given) == expected


@pytest.mark.parametrize("value", [0, 42, I31_MAX, I31_MIN])
def test_int_in_range_goes_in_as_i31(value: int) -> None:
    """Section 1.15."""
    exports = exports_of(I31)

    assert exports.read(value) == value
    assert exports.cast(value) == value % 2**31


@pytest.mark.parametrize("value", [*OUTSIDE, "2", 2.0, len], ids=readable)
def test_other_value_is_no_i31(value: Any) -> None:
    """Section 1.15."""
    with pytest.raises(TypeError):
        exports_of(I31).take(value)


@pytest.mark.parametrize("value", OUTSIDE)
def test_int_out_of_range_is_a_host_value_and_no_i31(value: int) -> None:
    """Section 1.15."""
    with pytest.raises(aw.Trap) as caught:
        exports_of(I31).cast(value)

    assert caught.value.code is aw.TrapCode.CAST_FAILURE


def test_i31_global_takes_ints_in_range_only() -> None:
    """Section 1.15, GL4."""
    held = exports_of(I31).g
    before = held.value
    held.value = 42

    for value in OUTSIDE:
        with pytest.raises(TypeError):
            held.value = value

    assert (before, held.value) == (0, 42)


def test_i31_table_takes_ints_in_range_only() -> None:
    """Section 1.15, TA6."""
    table = exports_of(I31).t
    before = table.get(0)
    table.set(0, 42)

    for value in OUTSIDE:
        with pytest.raises(TypeError):
            table.set(0, value)

    assert (before, table.get(0)) == (None, 42)


TABLES = """(module
  (table (export "plain") 10 20 (ref any) (ref.i31 (i32.const 42)))
  (table (export "nullable") 10 20 anyref))"""


def test_nullable_anyref_table_grows_with_null() -> None:
    """TA7."""
    table = exports_of(TABLES).nullable

    table.grow(5)

    assert [table.get(10 + index) for index in range(5)] == [None] * 5


def test_anyref_table_without_null_needs_a_value_to_grow() -> None:
    """TA7."""
    table = exports_of(TABLES).plain

    with pytest.raises(TypeError):
        table.grow(5)
    table.grow(5, "foo")

    assert [table.get(10 + index) for index in range(5)] == ["foo"] * 5


def test_nullable_anyref_table_is_set_to_null_by_default() -> None:
    """TA6."""
    table = exports_of(TABLES).nullable
    table.set(3, "foo")

    table.set(3)

    assert table.get(3) is None


def test_anyref_table_without_null_needs_a_value_to_set() -> None:
    """TA6."""
    table = exports_of(TABLES).plain

    with pytest.raises(TypeError):
        table.set(3)

    assert table.get(3) == 42


ROUND_TRIP = """(module
  (type $struct (struct (field (mut i32)))) (type $array (array (mut i32)))
  (global $kept (mut anyref) (ref.null any))
  (func (export "struct") (result anyref) (struct.new $struct (i32.const 42)))
  (func (export "array") (result anyref) (array.new $array (i32.const 1) (i32.const 5)))
  (func (export "same") (param anyref) (result anyref) (local.get 0))
  (func (export "keep") (param anyref) (global.set $kept (local.get 0)))
  (func (export "kept") (result anyref) (global.get $kept))
  (func (export "field") (param anyref) (result i32)
    (struct.get $struct 0 (ref.cast (ref $struct) (local.get 0)))))"""

in_both_makers = pytest.mark.parametrize("maker", ["struct", "array"])


@in_both_makers
def test_object_of_the_guest_is_an_opaque_gc_object(maker: str) -> None:
    """Section 1.20."""
    value: Any = exports_of(ROUND_TRIP)[maker]()

    assert issubclass(type(value), aw.GCObject)
    assert not hasattr(value, "field0")
    with pytest.raises(AttributeError):
        value.field0 = 1
    with pytest.raises(TypeError):
        value[0]


@in_both_makers
def test_gc_object_that_comes_back_is_the_same_object(maker: str) -> None:
    """Section 1.20, ST2."""
    exports = exports_of(ROUND_TRIP)
    value = exports[maker]()

    exports.keep(value)

    assert exports.same(value) is value
    assert exports.kept() is value


@in_both_makers
def test_gc_object_is_a_key_by_identity(maker: str) -> None:
    """Section 1.20."""
    exports = exports_of(ROUND_TRIP)
    first, second = exports[maker](), exports[maker]()

    names = {first: "first", second: "second"}

    assert first != second
    assert names[exports.same(first)] == "first"
    assert names[exports.same(second)] == "second"


@in_both_makers
def test_gc_object_can_be_referred_to_weakly(maker: str) -> None:
    """Section 1.20."""
    value = exports_of(ROUND_TRIP)[maker]()

    assert weakref.ref(value)() is value


def test_gc_object_keeps_its_contents_for_the_guest() -> None:
    """Section 1.20."""
    exports = exports_of(ROUND_TRIP)

    assert exports.field(exports.struct()) == 42


def test_gc_object_cannot_be_made_by_the_host() -> None:
    """Section 1.20."""
    with pytest.raises(TypeError):
        aw.GCObject()


@pytest.mark.parametrize("value", ["foo", 1.5, 2**40, object(), len], ids=readable)
def test_host_value_in_anyref_comes_back_identical(value: Any) -> None:
    """Section 1.15."""
    exports = exports_of(ROUND_TRIP)

    exports.keep(value)

    assert exports.same(value) is value
    assert exports.kept() is value


def test_gc_objects_pass_as_externref_too() -> None:
    """Section 1.15."""
    exports = exports_of("""(module (type $struct (struct))
      (func (export "make") (result anyref) (struct.new $struct))
      (func (export "same") (param externref) (result externref) (local.get 0))
      (func (export "out") (param anyref) (result externref)
        (extern.convert_any (local.get 0)))
      (func (export "in") (param externref) (result anyref)
        (any.convert_extern (local.get 0))))""")
    value = exports.make()

    assert exports.same(value) is value
    assert exports.out(value) is value
    assert exports["in"](value) is value


@pytest.mark.parametrize("value", ["foo", object(), None], ids=readable)
def test_host_value_keeps_its_identity_between_any_and_extern(value: Any) -> None:
    """Section 1.15."""
    exports = exports_of("""(module
      (func (export "out") (param anyref) (result externref)
        (extern.convert_any (local.get 0)))
      (func (export "in") (param externref) (result anyref)
        (any.convert_extern (local.get 0))))""")

    assert exports["in"](value) is value
    assert exports.out(value) is value


async def test_references_pass_through_imports_and_awaited_calls() -> None:
    """Section 1.15."""
    seen: list[Any] = []

    async def host(value: Any) -> Any:
        seen.append(value)
        return value

    exports = exports_of(
        """(module (type $struct (struct))
          (import "m" "f" (func $f (param anyref) (result anyref)))
          (func (export "make") (result anyref) (struct.new $struct))
          (func (export "g") (param anyref) (result anyref) (call $f (local.get 0))))""",
        {"m": {"f": host}},
    )
    values = [exports.make(), 5, None, "foo"]

    results = [await exports.g.call_async(value) for value in values]

    assert all(left is right for left, right in zip(results, values, strict=True))
    assert all(left is right for left, right in zip(seen, values, strict=True))

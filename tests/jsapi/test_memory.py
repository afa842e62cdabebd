"""`Memory`: the constructor, growing, and reading and writing with bounds checks."""

from __future__ import annotations

from typing import Any

import pytest

import asyncwasm as aw

from .helpers import ADDRESS_ERRORS, NOT_AN_INTEGER, AddressName, Index, exports_of, readable

PAGE = 65_536
GROW = """(module (import "m" "m" (memory {0} 0))
  (func (export "grow") (param {0}) (result {0}) (memory.grow (local.get 0))))"""

in_both_addresses = pytest.mark.parametrize("address", ["i32", "i64"])


@in_both_addresses
@pytest.mark.parametrize("pages", [0, 1, 4])
def test_new_memory_has_its_initial_size(address: AddressName, pages: int) -> None:
    """ME1, ME9."""
    memory = aw.Memory(pages, address=address)

    assert memory.byte_length == pages * PAGE
    assert memory.type == aw.MemoryType(pages, None, False, address)


def test_new_memory_is_zero() -> None:
    """ME1."""
    assert aw.Memory(1).read(0, PAGE) == bytes(PAGE)


def test_address_is_i32_unless_said_otherwise() -> None:
    """ME1."""
    assert aw.Memory(1).type.address == "i32"


def test_memory_may_be_made_from_a_memory_type() -> None:
    """ME1."""
    memory_type: Any = aw.MemoryType(1, 3, False, "i64")

    assert aw.Memory(memory_type).type == memory_type


def test_initial_is_required() -> None:
    """ME1."""
    memory: Any = aw.Memory

    with pytest.raises(TypeError):
        memory()


@in_both_addresses
@pytest.mark.parametrize("value", NOT_AN_INTEGER, ids=readable)
def test_initial_of_another_type_is_a_type_error(address: AddressName, value: Any) -> None:
    """ME1, ME2."""
    with pytest.raises(TypeError):
        aw.Memory(value, address=address)


@in_both_addresses
@pytest.mark.parametrize(
    "value", [value for value in NOT_AN_INTEGER if value is not None], ids=readable
)
def test_maximum_of_another_type_is_a_type_error(address: AddressName, value: Any) -> None:
    """ME1, ME2."""
    with pytest.raises(TypeError):
        aw.Memory(0, value, address=address)


@in_both_addresses
@pytest.mark.parametrize("value", [-1, 2**64, 2**70])
def test_size_that_is_no_address_is_refused(address: AddressName, value: int) -> None:
    """ME2, ME9."""
    with pytest.raises(ADDRESS_ERRORS):
        aw.Memory(value, address=address)
    with pytest.raises(ADDRESS_ERRORS):
        aw.Memory(0, value, address=address)


@pytest.mark.parametrize("value", ["none", "i16", "", "I32"])
def test_unknown_address_is_a_type_error(value: Any) -> None:
    """ME2."""
    with pytest.raises(TypeError):
        aw.Memory(1, address=value)


@in_both_addresses
def test_initial_above_maximum_is_a_range_error(address: AddressName) -> None:
    """ME2, ME9."""
    with pytest.raises(aw.RangeError):
        aw.Memory(10, 9, address=address)


def test_anything_with_index_is_a_size() -> None:
    """ME1."""
    initial: Any = Index(1)
    maximum: Any = Index(2)

    assert aw.Memory(initial, maximum).type == aw.MemoryType(1, 2)
    assert aw.Memory(True).byte_length == PAGE


def test_shared_memory_needs_a_maximum() -> None:
    """ME8."""
    with pytest.raises(TypeError):
        aw.Memory(1, shared=True)


def test_shared_memory_says_so() -> None:
    """ME8."""
    assert aw.Memory(1, 2, shared=True).type == aw.MemoryType(1, 2, True)


@in_both_addresses
@pytest.mark.parametrize(
    ("initial", "maximum"), [(0, None), (3, None), (0, 2), (3, 5)], ids=["0", "3", "0-2", "3-5"]
)
def test_grow_returns_the_old_size(address: AddressName, initial: int, maximum: int | None) -> None:
    """ME4, ME9."""
    memory = aw.Memory(initial, maximum, address=address)

    assert memory.grow(2) == initial
    assert memory.byte_length == (initial + 2) * PAGE
    assert memory.type.minimum == initial + 2


@in_both_addresses
def test_memory_grows_step_by_step_to_its_maximum(address: AddressName) -> None:
    """ME4."""
    memory = aw.Memory(0, 2, address=address)

    assert [memory.grow(1), memory.grow(1), memory.grow(0)] == [0, 1, 2]
    with pytest.raises(aw.RangeError):
        memory.grow(1)


@in_both_addresses
@pytest.mark.parametrize("shared", [False, True], ids=["unshared", "shared"])
def test_grow_above_the_maximum_is_a_range_error_and_changes_nothing(
    address: AddressName, shared: bool
) -> None:
    """ME4."""
    memory = aw.Memory(1, 2, shared=shared, address=address)
    memory.write(0, b"kept")

    with pytest.raises(aw.RangeError):
        memory.grow(2)

    assert memory.byte_length == PAGE
    assert memory.read(0, 4) == b"kept"


def test_grow_above_what_an_i32_memory_may_have_is_a_range_error() -> None:
    """ME4, ME10."""
    memory = aw.Memory(1)

    with pytest.raises(aw.RangeError):
        memory.grow(65_536)

    assert memory.byte_length == PAGE


@in_both_addresses
@pytest.mark.parametrize("value", NOT_AN_INTEGER, ids=readable)
def test_grow_by_something_else_than_an_integer_is_a_type_error(
    address: AddressName, value: Any
) -> None:
    """ME4."""
    with pytest.raises(TypeError):
        aw.Memory(0, address=address).grow(value)


@in_both_addresses
@pytest.mark.parametrize("value", [-1, 2**64])
def test_grow_by_what_is_no_address_is_refused(address: AddressName, value: int) -> None:
    """ME4, ME9."""
    memory = aw.Memory(0, address=address)

    with pytest.raises(ADDRESS_ERRORS):
        memory.grow(value)

    assert memory.byte_length == 0


def test_grow_needs_its_argument() -> None:
    """ME4."""
    memory: Any = aw.Memory(0)

    with pytest.raises(TypeError):
        memory.grow()


@in_both_addresses
def test_memory_grown_by_wasm_shows_its_new_size(address: AddressName) -> None:
    """ME4."""
    memory = aw.Memory(1, 3, address=address)
    grow = exports_of(GROW.format(address), {"m": {"m": memory}}).grow

    assert grow(2) == 1
    assert memory.byte_length == 3 * PAGE
    assert grow(1) == -1
    assert memory.type == aw.MemoryType(3, 3, False, address)


def test_memory_grown_by_the_host_shows_its_new_size_to_wasm() -> None:
    """ME4."""
    memory = aw.Memory(1)
    grow = exports_of(GROW.format("i32"), {"m": {"m": memory}}).grow

    memory.grow(4)

    assert grow(0) == 5


def test_contents_survive_growing() -> None:
    """ME4."""
    memory = aw.Memory(1)
    memory.write(PAGE - 4, b"tail")

    memory.grow(1)

    assert memory.read(PAGE - 4, 8) == b"tail\0\0\0\0"


@in_both_addresses
def test_read_gives_what_write_wrote(address: AddressName) -> None:
    """ME9."""
    memory = aw.Memory(1, address=address)

    memory.write(10, b"hello")

    assert memory.read(9, 7) == b"\0hello\0"
    assert type(memory.read(0, 1)) is bytes


@pytest.mark.parametrize(
    "data", [b"ab", bytearray(b"ab"), memoryview(b"ab")], ids=["bytes", "bytearray", "memoryview"]
)
def test_write_takes_any_bytes_like_object(data: Any) -> None:
    memory = aw.Memory(1)

    memory.write(0, data)

    assert memory.read(0, 3) == b"ab\0"


@pytest.mark.parametrize("data", ["ab", 5, None], ids=readable)
def test_write_of_something_else_is_a_type_error(data: Any) -> None:
    with pytest.raises(TypeError):
        aw.Memory(1).write(0, data)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(PAGE, 0), (PAGE - 1, 1), (0, 0), (0, PAGE)],
    ids=["end-0", "last-1", "start-0", "all"],
)
def test_access_up_to_the_end_is_in_bounds(offset: int, length: int) -> None:
    memory = aw.Memory(1)

    memory.write(offset, b"x" * length)

    assert memory.read(offset, length) == b"x" * length


OUT_OF_BOUNDS = (ValueError, IndexError, OverflowError, TypeError)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(PAGE, 1), (PAGE - 1, 2), (PAGE + 1, 0), (0, PAGE + 1), (2**32, 1), (2**64, 1), (-1, 1)],
)
def test_access_beyond_the_end_is_refused(offset: int, length: int) -> None:
    memory = aw.Memory(1)

    with pytest.raises(OUT_OF_BOUNDS):
        memory.read(offset, length)
    with pytest.raises(OUT_OF_BOUNDS):
        memory.write(offset, bytes(length))

    assert memory.read(0, PAGE) == bytes(PAGE)


def test_read_of_a_negative_length_is_refused() -> None:
    with pytest.raises(OUT_OF_BOUNDS):
        aw.Memory(1).read(1, -1)


def test_write_that_does_not_fit_writes_nothing() -> None:
    memory = aw.Memory(1)

    with pytest.raises(OUT_OF_BOUNDS):
        memory.write(PAGE - 2, b"abc")

    assert memory.read(PAGE - 2, 2) == b"\0\0"


@pytest.mark.parametrize("value", ["1", 1.5, None], ids=readable)
def test_offset_of_another_type_is_a_type_error(value: Any) -> None:
    memory = aw.Memory(1)

    with pytest.raises(TypeError):
        memory.read(value, 1)
    with pytest.raises(TypeError):
        memory.write(value, b"x")


def test_unbound_memory_does_not_get_a_store_of_its_own_by_being_used() -> None:
    """ST1."""
    memory = aw.Memory(1)
    memory.write(0, b"x")
    other = exports_of('(module (memory (export "n") 1))')
    text = '(module (import "m" "m" (memory 1)) (import "o" "n" (memory 1)))'

    exports = exports_of(text, {"m": {"m": memory}, "o": other})

    assert len(exports) == 0
    assert memory.read(0, 1) == b"x"


@pytest.mark.parametrize("name", ["buffer", "byte_length", "type"])
def test_attribute_is_read_only(name: str) -> None:
    """ME3."""
    memory: Any = aw.Memory(1)

    with pytest.raises(AttributeError):
        setattr(memory, name, memory.type)


def test_repr_names_the_class() -> None:
    """ME11."""
    assert "Memory" in repr(aw.Memory(1))

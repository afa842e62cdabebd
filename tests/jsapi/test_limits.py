"""Limits: the largest module parts that the JS API allows, and one more."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

import asyncwasm as aw

from .helpers import EMPTY, AddressName, exports_of, leb128, section, vector

VOID = b"\x60\0\0"
I32 = b"\x7f"


def _types(count: int) -> bytes:
    return EMPTY + section(1, vector(count, VOID))


def _parameters(count: int) -> bytes:
    return EMPTY + section(1, b"\x01\x60" + vector(count, I32) + b"\0")


def _results(count: int) -> bytes:
    return EMPTY + section(1, b"\x01\x60\0" + vector(count, I32))


def _fields(count: int) -> bytes:
    return EMPTY + section(1, b"\x01\x5f" + vector(count, I32 + b"\0"))


def _subtypes(depth: int) -> bytes:
    children = b"".join(b"\x50\x01" + leb128(parent) + VOID for parent in range(depth))
    return EMPTY + section(1, leb128(depth + 1) + b"\x50\0" + VOID + children)


def _functions(count: int) -> bytes:
    code = section(10, vector(count, b"\x02\0\x0b"))
    return EMPTY + section(1, vector(1, VOID)) + section(3, vector(count, b"\0")) + code


def _body(size: int) -> bytes:
    body = leb128(size) + b"\0" + b"\x01" * (size - 2) + b"\x0b"
    return _one_function(body)


def _locals(count: int) -> bytes:
    body = b"\x01" + leb128(count) + I32 + b"\x0b"
    return _one_function(leb128(len(body)) + body)


def _one_function(body: bytes) -> bytes:
    declared = section(1, vector(1, VOID)) + section(3, vector(1, b"\0"))
    return EMPTY + declared + section(10, b"\x01" + body)


def _imports(count: int) -> bytes:
    return EMPTY + section(1, vector(1, VOID)) + section(2, vector(count, b"\0\0\0\0"))


def _exports(count: int) -> bytes:
    names = itertools.islice(itertools.product(range(0x21, 0x7F), repeat=4), count)
    exports = b"\x04" + b"\x03\0\x04".join(map(bytes, names)) + b"\x03\0"
    held = section(6, vector(1, I32 + b"\0\x41\0\x0b"))
    return EMPTY + held + section(7, leb128(count) + exports)


def _globals(count: int) -> bytes:
    return EMPTY + section(6, vector(count, I32 + b"\x01\x41\0\x0b"))


def _tags(count: int) -> bytes:
    return EMPTY + section(1, vector(1, VOID)) + section(13, vector(count, b"\0\0"))


def _data_segments(count: int) -> bytes:
    return EMPTY + section(5, vector(1, b"\0\x01")) + section(11, vector(count, b"\0\x41\0\x0b\0"))


def _element_entries(count: int) -> bytes:
    return (
        EMPTY
        + section(1, vector(1, VOID))
        + section(3, vector(1, b"\0"))
        + section(4, vector(1, b"\x70\0\x01"))
        + section(9, b"\x01\0\x41\0\x0b" + vector(count, b"\0"))
        + section(10, vector(1, b"\x02\0\x0b"))
    )


def _memories(count: int) -> bytes:
    return EMPTY + section(5, vector(count, b"\0\0"))


def _pages(count: int) -> bytes:
    return EMPTY + section(5, b"\x01\0" + leb128(count))


Build = Callable[[int], bytes]

LIMITS: dict[str, tuple[Build, int, int]] = {
    "types": (_types, 0, 1_000_000),
    "parameters": (_parameters, 0, 1_000),
    "results": (_results, 0, 1_000),
    "struct-fields": (_fields, 0, 10_000),
    "subtype-depth": (_subtypes, 0, 63),
    "functions": (_functions, 0, 1_000_000),
    "function-body": (_body, 2, 7_654_321),
    "locals": (_locals, 0, 50_000),
    "globals": (_globals, 0, 1_000_000),
    "tags": (_tags, 0, 1_000_000),
    "data-segments": (_data_segments, 0, 100_000),
    "element-entries": (_element_entries, 0, 10_000_000),
    "memories": (_memories, 0, 100),
    "memory-pages": (_pages, 0, 65_536),
}
# The engine needs more than these allow for a module that uses all of them.
OVER_ONLY: dict[str, tuple[Build, int]] = {
    **{name: (build, limit) for name, (build, _, limit) in LIMITS.items()},
    "imports": (_imports, 1_000_000),
    "exports": (_exports, 1_000_000),
}
SMALL = [name for name, (_, _, limit) in LIMITS.items() if limit <= 100_000]


@pytest.mark.parametrize(("build", "least", "limit"), LIMITS.values(), ids=LIMITS.keys())
def test_module_up_to_the_limit_is_valid(build: Build, least: int, limit: int) -> None:
    """Section 1.22."""
    assert aw.validate(build(least)) is True
    assert aw.validate(build(limit)) is True


@pytest.mark.parametrize(("build", "limit"), OVER_ONLY.values(), ids=OVER_ONLY.keys())
def test_module_over_the_limit_is_invalid(build: Build, limit: int) -> None:
    """Section 1.22."""
    assert aw.validate(build(limit + 1)) is False


@pytest.mark.parametrize(("build", "limit"), OVER_ONLY.values(), ids=OVER_ONLY.keys())
async def test_module_over_the_limit_does_not_compile(build: Build, limit: int) -> None:
    """Section 1.22."""
    with pytest.raises(aw.CompileError):
        await aw.compile(build(limit + 1))


@pytest.mark.parametrize("name", SMALL)
async def test_module_up_to_the_limit_compiles(name: str) -> None:
    """Section 1.22."""
    build, least, limit = LIMITS[name]

    for count in (least, limit):
        assert isinstance(await aw.compile(build(count)), aw.Module)


@pytest.mark.parametrize(
    ("address", "pages"), [("i32", 65_537), ("i32", 2**32 - 1), ("i64", 2**37), ("i64", 2**64 - 1)]
)
def test_memory_of_too_many_pages_is_a_range_error(address: AddressName, pages: int) -> None:
    """ME2, ME10."""
    with pytest.raises(aw.RangeError):
        aw.Memory(pages, address=address)
    with pytest.raises(aw.RangeError):
        aw.Memory(0, pages, address=address)


def test_memory_may_declare_the_largest_maximum() -> None:
    """ME10."""
    assert aw.Memory(0, 65_536).type.maximum == 65_536
    assert aw.Memory(0, 2**37 - 1, address="i64").type.maximum == 2**37 - 1


def test_memory64_has_at_most_16_gib_at_run_time() -> None:
    """ME10."""
    with pytest.raises(aw.RangeError):
        aw.Memory(262_145, address="i64")


def test_guest_cannot_grow_a_memory_beyond_the_limit() -> None:
    """ME10."""
    grow = exports_of("""(module (memory 1)
      (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))""").grow

    assert grow(65_536) == -1
    assert grow(0) == 1


ENTRIES = 10_000_000


@pytest.mark.parametrize("element", ["funcref", "externref"])
def test_table_of_too_many_entries_is_a_range_error(element: str) -> None:
    """TA2."""
    with pytest.raises(aw.RangeError):
        aw.Table(element, ENTRIES + 1)


def test_table_cannot_grow_beyond_the_limit() -> None:
    """TA7."""
    table = aw.Table("externref", 1)

    with pytest.raises(aw.RangeError):
        table.grow(ENTRIES)

    assert len(table) == 1


@pytest.mark.parametrize("element", ["func", "extern"])
@pytest.mark.parametrize("maximum", ["", str(ENTRIES + 1)], ids=["unlimited", "maximum"])
def test_guest_cannot_grow_a_table_beyond_the_limit(element: str, maximum: str) -> None:
    """TA7."""
    exports = exports_of(f"""(module (table $t (export "t") 1 {maximum} {element}ref)
      (func (export "grow") (param i32) (result i32)
        (table.grow $t (ref.null {element}) (local.get 0))))""")

    assert exports.grow(ENTRIES) == -1
    assert exports.grow(1) == 1
    assert len(exports.t) == 2

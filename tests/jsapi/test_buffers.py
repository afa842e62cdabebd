"""`Memory.buffer` and its two fixed forms: zero-copy views that never dangle."""

from __future__ import annotations

import gc
import hashlib
import struct
from typing import Any

import pytest

import asyncwasm as aw

from .helpers import exports_of, instance_of

PAGE = 65_536
OWN = """(module (memory (export "m") 1 4)
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "read") (param i32) (result i32) (i32.load8_u (local.get 0)))
  (func (export "write") (param i32 i32) (i32.store8 (local.get 0) (local.get 1))))"""


def _reads_or_raises(view: Any, length: int) -> bool:
    """Touch a view that may be stale: all of it must be valid memory, or the access raise."""
    try:
        return len(bytes(view)) in (0, length)
    except ValueError:
        return True


def test_buffer_is_a_writable_memoryview_of_the_whole_memory() -> None:
    """ME3."""
    buffer = aw.Memory(2).buffer

    assert type(buffer) is memoryview
    assert not buffer.readonly
    assert buffer.nbytes == 2 * PAGE
    assert bytes(buffer) == bytes(2 * PAGE)


def test_buffer_of_an_empty_memory_is_empty() -> None:
    """ME3."""
    assert len(aw.Memory(0).buffer) == 0


def test_buffer_is_the_same_object_until_a_change() -> None:
    """ME3."""
    memory = aw.Memory(1)

    assert memory.buffer is memory.buffer


def test_buffer_and_wasm_see_the_same_bytes() -> None:
    """ME3."""
    exports = exports_of(OWN)
    buffer = exports.m.buffer

    buffer[3] = 7
    exports.write(4, 8)

    assert exports.read(3) == 7
    assert buffer[4] == 8


def test_buffer_works_with_struct_and_hashlib() -> None:
    """ME3."""
    memory = aw.Memory(1)

    struct.pack_into("<I", memory.buffer, 8, 0x01020304)

    assert memory.read(8, 4) == b"\x04\x03\x02\x01"
    assert hashlib.sha256(memory.buffer).digest() == hashlib.sha256(memory.read(0, PAGE)).digest()


def test_buffer_works_with_numpy() -> None:
    """ME3."""
    numpy = pytest.importorskip("numpy")
    memory = aw.Memory(1)

    array = numpy.frombuffer(memory.buffer, "<u4")
    array[1] = 5

    assert memory.read(4, 4) == b"\x05\0\0\0"


def test_released_buffer_does_not_spoil_the_next_one() -> None:
    """ME3."""
    memory = aw.Memory(1)
    with memory.buffer as view:
        view[0] = 1

    assert memory.buffer[0] == 1


@pytest.mark.parametrize("by", ["host", "wasm"])
def test_successful_grow_gives_a_new_and_longer_buffer(by: str) -> None:
    """ME5."""
    exports = exports_of(OWN)
    before = exports.m.buffer

    old_size = exports.m.grow(2) if by == "host" else exports.grow(2)

    assert old_size == 1
    assert exports.m.buffer is not before
    assert len(exports.m.buffer) == 3 * PAGE


@pytest.mark.parametrize("by", ["host", "wasm"])
def test_failed_grow_keeps_the_buffer(by: str) -> None:
    """ME4, ME5."""
    exports = exports_of(OWN)
    before = exports.m.buffer

    if by == "host":
        with pytest.raises(aw.RangeError):
            exports.m.grow(4)
    else:
        assert exports.grow(4) == -1

    assert exports.m.buffer is before
    assert len(before) == PAGE


@pytest.mark.parametrize("by", ["host", "wasm"])
def test_view_that_outlives_a_grow_is_valid_or_raises(by: str) -> None:
    """ME5."""
    exports = exports_of(OWN)
    view = exports.m.buffer
    part = view[16:32]

    old_size = exports.m.grow(3) if by == "host" else exports.grow(3)

    assert old_size == 1
    assert _reads_or_raises(view, PAGE)
    assert _reads_or_raises(part, 16)


def test_view_of_a_large_memory64_that_outlives_a_grow_is_valid_or_raises() -> None:
    """ME5, ME9: a 64-bit memory may move when it grows past what was reserved."""
    memory = aw.Memory(1, address="i64")
    view = memory.buffer
    part = view[16:32]

    old_size = memory.grow(70_000)

    assert old_size == 1
    assert _reads_or_raises(view, PAGE)
    assert _reads_or_raises(part, 16)


def test_numpy_array_that_outlives_a_grow_is_valid_memory() -> None:
    """ME5."""
    numpy = pytest.importorskip("numpy")
    exports = exports_of(OWN)
    array = numpy.frombuffer(exports.m.buffer, "u1")

    exports.grow(3)
    array[0] = 1

    assert int(array.sum()) == 1


def test_view_that_outlives_a_closed_instance_is_valid_or_raises() -> None:
    """ME5."""
    instance = instance_of(OWN)
    view = instance.exports.m.buffer
    part = view[16:32]

    instance.close()

    assert _reads_or_raises(view, PAGE)
    assert _reads_or_raises(part, 16)


def test_view_that_outlives_a_closed_store_is_valid_or_raises() -> None:
    """ME5."""
    with aw.Store():
        memory = aw.Memory(1)
        exports_of('(module (import "m" "m" (memory 1)))', {"m": {"m": memory}})
        view = memory.buffer
        part = view[16:32]

    assert _reads_or_raises(view, PAGE)
    assert _reads_or_raises(part, 16)


def test_view_that_outlives_everything_else_is_valid_or_raises() -> None:
    """ME5."""
    view = exports_of(OWN).m.buffer
    gc.collect()

    assert _reads_or_raises(view, PAGE)


@pytest.mark.parametrize("linked", [False, True], ids=["unbound", "linked"])
def test_view_made_before_linking_is_valid_or_raises(linked: bool) -> None:
    """ME5."""
    memory = aw.Memory(1)
    view = memory.buffer
    view[0] = 9
    if linked:
        exports_of('(module (import "m" "m" (memory 1)))', {"m": {"m": memory}})

    assert memory.read(0, 1) == b"\x09"
    assert _reads_or_raises(view, PAGE)


def test_fixed_length_buffer_is_the_current_buffer() -> None:
    """ME6."""
    memory = aw.Memory(1, 2)

    assert memory.to_fixed_length_buffer() is memory.buffer


def test_fixed_length_buffer_after_a_resizable_one_is_a_memoryview() -> None:
    """ME6."""
    memory = aw.Memory(1, 2)
    memory.to_resizable_buffer()

    fixed = memory.to_fixed_length_buffer()

    assert type(fixed) is memoryview
    assert len(fixed) == PAGE


def test_resizable_buffer_needs_a_maximum() -> None:
    """ME7."""
    with pytest.raises(TypeError):
        aw.Memory(1).to_resizable_buffer()


def test_resizable_buffer_is_the_same_object_each_time() -> None:
    """ME7."""
    memory = aw.Memory(1, 2)

    assert memory.to_resizable_buffer() is memory.to_resizable_buffer()


@pytest.mark.parametrize("by", ["host", "wasm"])
def test_resizable_buffer_tracks_the_length(by: str) -> None:
    """ME7."""
    exports = exports_of(OWN)
    buffer = exports.m.to_resizable_buffer()
    before = len(buffer)

    old_size = exports.m.grow(2) if by == "host" else exports.grow(2)

    assert (before, old_size, len(buffer)) == (PAGE, 1, 3 * PAGE)


def test_resize_grows_the_memory() -> None:
    """ME7."""
    memory = aw.Memory(1, 4)
    buffer = memory.to_resizable_buffer()

    buffer.resize(3 * PAGE)

    assert memory.byte_length == 3 * PAGE
    assert len(buffer) == 3 * PAGE


def test_resize_to_the_same_length_changes_nothing() -> None:
    """ME7."""
    memory = aw.Memory(1, 4)

    memory.to_resizable_buffer().resize(PAGE)

    assert memory.byte_length == PAGE


@pytest.mark.parametrize(
    "length", [0, PAGE, 2 * PAGE + 1, 5 * PAGE], ids=["zero", "shrink", "no-page", "above-maximum"]
)
def test_resize_to_a_length_that_cannot_be_is_a_range_error(length: int) -> None:
    """ME7."""
    memory = aw.Memory(2, 4)
    buffer = memory.to_resizable_buffer()

    with pytest.raises(aw.RangeError):
        buffer.resize(length)

    assert memory.byte_length == 2 * PAGE


def test_growing_a_shared_memory_keeps_the_old_buffer_alive_and_aliased() -> None:
    """ME8."""
    memory = aw.Memory(1, 2, shared=True)
    old = memory.buffer

    old_size = memory.grow(1)
    new = memory.buffer
    old[0] = 1

    assert old_size == 1
    assert (len(old), len(new)) == (PAGE, 2 * PAGE)
    assert old is not new
    assert (old[0], new[0]) == (1, 1)


def test_shared_memory_is_used_from_two_stores() -> None:
    """ME8, ST3."""
    memory = aw.Memory(1, 2, shared=True)
    text = """(module (import "m" "m" (memory 1 2 shared))
      (func (export "add") (result i32) (i32.atomic.rmw.add (i32.const 0) (i32.const 1))))"""
    first = instance_of(text, {"m": {"m": memory}}, store=aw.Store())
    second = instance_of(text, {"m": {"m": memory}}, store=aw.Store())

    results = [first.exports.add(), second.exports.add(), first.exports.add()]

    assert results == [0, 1, 2]
    assert memory.buffer[0] == 3

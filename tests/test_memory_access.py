"""
Reading and writing a memory again: what was found out at the first access may be out of date.

The first access makes a view, later ones use it without asking the library. So everything that
makes an access fail, or changes where it goes, is tried after one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import asyncwasm as aw

from .support import instance

PAGE = 65_536
TEXT = """(module (memory (export "m") 1 4)
  (func (export "grow") (drop (memory.grow (i32.const 1))))
  (func (export "store") (param i32 i32) (i32.store8 (local.get 0) (local.get 1)))
  (func (export "load") (param i32) (result i32) (i32.load8_u (local.get 0))))"""


def _exported() -> aw.Memory:
    memory: aw.Memory = instance(TEXT).exports.m
    return memory


MAKERS: dict[str, Callable[[], aw.Memory]] = {
    "exported": _exported,
    "unbound": lambda: aw.Memory(1, 4),
    "shared": lambda: aw.Memory(1, 4, shared=True),
    "i64": lambda: aw.Memory(1, 4, address="i64", store=aw.Store()),
}


@pytest.fixture(params=MAKERS)
def memory(request: pytest.FixtureRequest) -> aw.Memory:
    made = MAKERS[request.param]()
    made.write(0, b"seen")
    assert made.read(0, 4) == b"seen"
    return made


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 0), (0, 1), (PAGE - 1, 1), (PAGE, 0), (0, PAGE), (100, PAGE - 100)],
)
def test_later_access_in_bounds(memory: aw.Memory, offset: int, length: int) -> None:
    data = bytes(index % 253 for index in range(length))
    memory.write(offset, data)

    assert memory.read(offset, length) == data


@pytest.mark.parametrize(
    ("offset", "length"), [(PAGE, 1), (PAGE + 1, 0), (PAGE - 1, 2), (0, PAGE + 1), (1, PAGE)]
)
def test_later_access_out_of_bounds_is_refused(memory: aw.Memory, offset: int, length: int) -> None:
    with pytest.raises(aw.RangeError):
        memory.read(offset, length)
    with pytest.raises(aw.RangeError):
        memory.write(offset, bytes(length))

    assert memory.read(0, PAGE) == b"seen".ljust(PAGE, b"\0")


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (-4, 4), (1 << 64, 0)])
def test_later_access_at_what_is_no_address_is_refused(
    memory: aw.Memory, offset: int, length: int
) -> None:
    with pytest.raises(aw.RangeError):
        memory.read(offset, length)


@pytest.mark.parametrize("wrong", [0.0, "0", None, b"0"])
def test_later_access_with_another_type_is_a_type_error(memory: aw.Memory, wrong: Any) -> None:
    with pytest.raises(TypeError):
        memory.read(wrong, 1)
    with pytest.raises(TypeError):
        memory.read(0, wrong)
    with pytest.raises(TypeError):
        memory.write(wrong, b"x")


def test_later_access_reaches_what_was_grown(memory: aw.Memory) -> None:
    memory.grow(1)
    memory.write(PAGE - 1, b"across")

    assert memory.read(PAGE - 1, 6) == b"across"
    assert memory.read(2 * PAGE - 1, 1) == b"\0"
    with pytest.raises(aw.RangeError):
        memory.read(2 * PAGE, 1)


def test_later_access_sees_what_the_guest_does_and_the_other_way_round() -> None:
    exports = instance(TEXT).exports
    exports.m.write(0, b"\x01")
    exports.grow()
    exports.store(0, 7)
    exports.store(PAGE, 8)
    exports.m.write(1, b"\x09")

    assert exports.m.read(0, 2) == b"\x07\x09"
    assert exports.m.read(PAGE, 1) == b"\x08"
    assert exports.load(1) == 9


def test_view_that_was_released_by_its_user_is_made_again(memory: aw.Memory) -> None:
    memory.buffer.release()
    assert memory.read(0, 4) == b"seen"
    memory.buffer.release()
    memory.write(0, b"SEEN")

    assert memory.read(0, 4) == b"SEEN"


def test_later_access_goes_where_the_memory_was_bound() -> None:
    memory = aw.Memory(1, 4)
    memory.write(0, b"\x05")
    text = """(module (import "m" "m" (memory 1 4))
      (func (export "load") (param i32) (result i32) (i32.load8_u (local.get 0))))"""
    exports = instance(text, {"m": {"m": memory}}).exports
    memory.write(1, b"\x06")

    assert (exports.load(0), exports.load(1)) == (5, 6)


def test_later_access_to_a_closed_store_is_refused() -> None:
    one = instance(TEXT)
    memory = one.exports.m
    memory.write(0, b"seen")
    one.close()

    with pytest.raises(anyio.ClosedResourceError):
        memory.read(0, 4)
    with pytest.raises(anyio.ClosedResourceError):
        memory.write(0, b"x")


def test_later_access_while_another_thread_runs_the_guest_is_refused() -> None:
    text = """(module (memory (export "m") 1)
      (func (export "until") (i32.store8 (i32.const 1) (i32.const 1))
        (loop (br_if 0 (i32.eqz (i32.load8_u (i32.const 0)))))))"""
    exports = instance(text).exports
    memory, view = exports.m, exports.m.buffer
    memory.write(2, b"seen")
    thread = threading.Thread(target=exports.until)
    thread.start()
    while thread.is_alive() and not view[1]:
        pass

    try:
        with pytest.raises(anyio.BusyResourceError):
            memory.read(2, 4)
        with pytest.raises(anyio.BusyResourceError):
            memory.write(2, b"x")
    finally:
        view[0] = 1
        thread.join()
    assert memory.read(2, 4) == b"seen"


@pytest.mark.parametrize("data", [bytearray(b"abcd"), memoryview(b"a_b_c_d_")[::2]])
def test_later_write_takes_any_bytes_like_object(memory: aw.Memory, data: Any) -> None:
    memory.write(8, data)

    assert memory.read(8, 4) == b"abcd"


def test_later_write_of_text_is_a_type_error(memory: aw.Memory) -> None:
    with pytest.raises(TypeError, match="encode"):
        memory.write(0, "text")

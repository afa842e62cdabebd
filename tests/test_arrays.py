"""Reading and writing the arrays of a guest: what is refused before the library sees it."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import pytest

import asyncwasm as aw
from asyncwasm._ffi.arrays import CodeUnits

TEXT = """(module
  (type $chars (array (mut i16))) (type $bytes (array (mut i8))) (type $fixed (array i16))
  (type $words (array (mut i32))) (type $texts (array (mut externref)))
  (type $chars_array (array (mut (ref null $chars)))) (type $pair (struct (field (mut i16))))
  (func (export "chars") (param i32) (result anyref)
    (array.new $chars (i32.const 7) (local.get 0)))
  (func (export "bytes") (result anyref) (array.new_default $bytes (i32.const 4)))
  (func (export "fixed") (result anyref) (array.new_default $fixed (i32.const 4)))
  (func (export "words") (result anyref) (array.new_default $words (i32.const 4)))
  (func (export "texts") (result anyref) (array.new_default $texts (i32.const 4)))
  (func (export "nested") (result anyref) (array.new_default $chars_array (i32.const 4)))
  (func (export "pair") (result anyref) (struct.new_default $pair)))"""


@pytest.fixture
def instance() -> aw.Instance:
    return aw.Instance(aw.Module(aw.wat2wasm(TEXT)))


def _units(instance: aw.Instance, value: object, use: Callable[[CodeUnits], Any]) -> Any:
    store = instance.store
    with (
        store._core.entered(),
        CodeUnits(store._core.opened(), store._core.references, value) as units,
    ):
        return use(units)


def _length(units: CodeUnits) -> int:
    return units.length


@pytest.mark.parametrize("name", ["bytes", "fixed", "words", "texts", "nested", "pair"])
def test_another_type_is_refused(instance: aw.Instance, name: str) -> None:
    with pytest.raises(TypeError):
        _units(instance, instance.exports[name](), _length)


@pytest.mark.parametrize("value", [None, 1, "text", object()], ids=["None", "int", "str", "object"])
def test_anything_else_is_refused(instance: aw.Instance, value: object) -> None:
    with pytest.raises(TypeError):
        _units(instance, value, _length)


def test_array_of_another_store_is_refused(instance: aw.Instance) -> None:
    other = aw.Instance(aw.Module(aw.wat2wasm(TEXT)))

    with pytest.raises(TypeError):
        _units(instance, other.exports.chars(1), _length)


@pytest.mark.parametrize("length", [0, 1, 300])
def test_elements_are_read_and_written(instance: aw.Instance, length: int) -> None:
    value = instance.exports.chars(length)
    written = array("H", [0xFFFF - index for index in range(length)])

    def use(units: CodeUnits) -> Any:
        before = units.read(0, length)
        units.write(0, written)
        return units.length, before, units.read(0, length)

    assert _units(instance, value, use) == (length, array("H", [7] * length), written)


@pytest.mark.parametrize(("start", "end"), [(0, 4), (-1, 2), (2, 1), (4, 4)])
def test_bounds_are_checked(instance: aw.Instance, start: int, end: int) -> None:
    value = instance.exports.chars(3)

    with pytest.raises(aw.RangeError):
        _units(instance, value, lambda units: units.read(start, end))


def test_nothing_is_written_out_of_bounds(instance: aw.Instance) -> None:
    value = instance.exports.chars(3)

    with pytest.raises(aw.RangeError):
        _units(instance, value, lambda units: units.write(2, array("H", [1, 2])))

    assert _units(instance, value, lambda units: units.read(0, 3)) == array("H", [7, 7, 7])

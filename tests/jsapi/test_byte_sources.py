"""Byte sources: what counts as the bytes of a module, and when they are read."""

from __future__ import annotations

import array
import ctypes
import mmap
import pathlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import asyncwasm as aw

from .helpers import EMPTY, readable

INVALID = EMPTY + b"\0\0"

Accepts = Callable[[Any], Awaitable[bool]]


async def _validate(source: Any) -> bool:
    return aw.validate(source)


async def _module(source: Any) -> bool:
    try:
        aw.Module(source)
    except aw.CompileError:
        return False
    return True


async def _compile(source: Any) -> bool:
    try:
        await aw.compile(source)
    except aw.CompileError:
        return False
    return True


async def _instantiate(source: Any) -> bool:
    try:
        await aw.instantiate(source)
    except aw.CompileError:
        return False
    return True


CONSUMERS = {
    "validate": _validate,
    "Module": _module,
    "compile": _compile,
    "instantiate": _instantiate,
}
in_every_consumer = pytest.mark.parametrize("accepts", CONSUMERS.values(), ids=CONSUMERS.keys())


def _mapped(data: bytes) -> mmap.mmap:
    mapping = mmap.mmap(-1, len(data))
    mapping[:] = data
    return mapping


def _numpy(data: bytes) -> Any:
    return pytest.importorskip("numpy").frombuffer(data, "u1")


FORMS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "memoryview-part": lambda data: memoryview(b"\xff" + data + b"\xff")[1:-1],
    "memoryview-u16": lambda data: memoryview(data).cast("H"),
    "array-i8": lambda data: array.array("b", data),
    "array-u16": lambda data: array.array("H", data),
    "ctypes": lambda data: ctypes.create_string_buffer(data, len(data)),
    "shared-memory": _mapped,
    "numpy": _numpy,
}
in_every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())

NO_SOURCES = [None, True, 1, 1.5, {}, [], list(EMPTY), object(), bytes, aw.Module, iter(EMPTY)]


@in_every_consumer
@in_every_form
async def test_any_bytes_like_object_is_a_source(
    accepts: Accepts, form: Callable[[bytes], Any]
) -> None:
    """BS1."""
    assert await accepts(form(EMPTY)) is True


@in_every_consumer
@in_every_form
async def test_trailing_bytes_are_invalid_in_any_form(
    accepts: Accepts, form: Callable[[bytes], Any]
) -> None:
    """BS1, BS4."""
    assert await accepts(form(INVALID)) is False


@in_every_consumer
@pytest.mark.parametrize("source", NO_SOURCES, ids=readable)
async def test_other_objects_are_no_source(accepts: Accepts, source: Any) -> None:
    """BS1, CO2."""
    with pytest.raises(TypeError):
        await accepts(source)


@in_every_consumer
@pytest.mark.parametrize("text", ["", "(module)", "module.wasm"])
async def test_str_source_is_a_type_error_that_names_the_remedies(
    accepts: Accepts, text: str
) -> None:
    """BS1."""
    with pytest.raises(TypeError) as caught:
        await accepts(text)

    assert "pathlib.Path" in str(caught.value)
    assert "wat2wasm" in str(caught.value)


@in_every_consumer
@pytest.mark.parametrize("data", [EMPTY, INVALID, b""], ids=["valid", "invalid", "empty"])
async def test_path_is_a_source(accepts: Accepts, data: bytes, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "module.wasm"
    path.write_bytes(data)

    assert await accepts(path) is (data == EMPTY)


@pytest.mark.parametrize("start", [aw.compile, aw.instantiate], ids=readable)
async def test_bytes_are_copied_at_the_call(start: Any) -> None:
    """BS2."""
    buffer = bytearray(EMPTY)
    coroutine = start(buffer)
    buffer[0] = 1

    assert await coroutine is not None


@pytest.mark.parametrize("start", [aw.compile, aw.instantiate], ids=readable)
async def test_length_is_read_at_the_call(start: Any) -> None:
    """BS3."""
    buffer = bytearray(EMPTY)
    coroutine = start(buffer)
    buffer.clear()

    assert await coroutine is not None


@pytest.mark.parametrize("start", [aw.compile, aw.instantiate], ids=readable)
async def test_bytes_made_valid_after_the_call_stay_invalid(start: Any) -> None:
    """BS2."""
    buffer = bytearray(b"\x01" + EMPTY[1:])
    coroutine = start(buffer)
    buffer[0] = 0

    with pytest.raises(aw.CompileError):
        await coroutine


async def test_module_does_not_see_later_changes_of_its_source() -> None:
    """BS2, MO2."""
    buffer = bytearray(EMPTY)
    module = aw.Module(buffer)
    buffer[:] = b"\xff" * len(buffer)

    assert len(aw.Instance(module).exports) == 0


@in_every_consumer
async def test_released_memoryview_is_a_value_error(accepts: Accepts) -> None:
    """BS3."""
    view = memoryview(EMPTY)
    view.release()

    with pytest.raises(ValueError, match="released"):
        await accepts(view)


@in_every_consumer
@in_every_form
async def test_empty_source_is_invalid(accepts: Accepts, form: Callable[[bytes], Any]) -> None:
    """BS4."""
    if form is _mapped:
        pytest.skip("an empty mapping cannot exist")

    assert await accepts(form(b"")) is False

"""The namespace: which names there are, and which of them are awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import asyncwasm as aw

from .helpers import EMPTY

FUNCTIONS = {
    "NS2": ["validate", "compile", "instantiate", "wat2wasm"],
    "NS3": ["compile_streaming", "instantiate_streaming"],
    "NS4": ["promising"],
    "guard": ["configure_sync_guard"],
    "batch": ["load_many"],
}
CLASSES = {
    "NS2": ["Module", "Instance", "Memory", "Table", "Global", "Tag"],
    "NS4": ["Suspending"],
    "NS5": ["Function", "ExportedFunction"],
    "types": ["MemoryType", "TableType", "GlobalType", "TagType", "FunctionType"],
    "descriptors": ["ExportDescriptor", "ImportDescriptor", "Instantiated"],
    "values": ["GCObject", "TrapCode"],
    "stores": ["Store", "Limits", "Engine", "EngineConfig", "InstancePool"],
}
ERRORS = {
    "NS2": ["WasmError", "CompileError", "LinkError", "RangeError", "TableIndexError", "Trap"],
    "NS4": ["SuspendError"],
    "more": ["StackOverflow", "Interrupted", "WasmException", "LargeModuleError"],
    "warnings": ["LargeModuleWarning", "BlockingCallWarning"],
}


def _named(groups: dict[str, list[str]]) -> list[Any]:
    return [
        pytest.param(name, id=f"{rule}-{name}") for rule, names in groups.items() for name in names
    ]


@pytest.mark.parametrize("name", _named(FUNCTIONS))
def test_function_is_public(name: str) -> None:
    assert callable(getattr(aw, name))
    assert not isinstance(getattr(aw, name), type)


@pytest.mark.parametrize("name", _named(CLASSES))
def test_class_is_public(name: str) -> None:
    assert isinstance(getattr(aw, name), type)


@pytest.mark.parametrize("name", _named(ERRORS))
def test_error_class_is_public(name: str) -> None:
    assert issubclass(getattr(aw, name), Exception)


def test_python_tag_is_a_tag() -> None:
    """NS2."""
    assert isinstance(aw.PYTHON_TAG, aw.Tag)


def test_namespace_is_neither_callable_nor_constructible() -> None:
    """NS1."""
    assert not callable(aw)


STARTS: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
    "compile": lambda: aw.compile(EMPTY),
    "instantiate-bytes": lambda: aw.instantiate(EMPTY),
    "instantiate-Module": lambda: aw.instantiate(aw.Module(EMPTY)),
}
in_every_start = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())


@in_every_start
def test_awaitable_function_returns_a_coroutine(
    start: Callable[[], Coroutine[Any, Any, Any]],
) -> None:
    coroutine = start()

    assert isinstance(coroutine, Coroutine)
    coroutine.close()


@in_every_start
async def test_awaitable_function_can_be_made_a_task(
    start: Callable[[], Coroutine[Any, Any, Any]],
) -> None:
    result = await asyncio.create_task(start())

    assert result is not None


SOURCES = {
    "compile": aw.compile,
    "instantiate": aw.instantiate,
    "validate": aw.validate,
    "Module": aw.Module,
}


@pytest.mark.parametrize("function", SOURCES.values(), ids=SOURCES.keys())
def test_source_is_positional_only(function: Any) -> None:
    with pytest.raises(TypeError):
        function(source=EMPTY)


@pytest.mark.parametrize("function", SOURCES.values(), ids=SOURCES.keys())
def test_source_is_required(function: Any) -> None:
    """CO2, MO1, VA1."""
    with pytest.raises(TypeError):
        function()


def test_wat2wasm_returns_the_binary_format() -> None:
    assert aw.wat2wasm("(module)") == EMPTY


@pytest.mark.parametrize("text", ["(module", "(module (func (result i31)))", "module", "(modul)"])
def test_wat2wasm_of_bad_text_raises_compile_error(text: str) -> None:
    with pytest.raises(aw.CompileError):
        aw.wat2wasm(text)

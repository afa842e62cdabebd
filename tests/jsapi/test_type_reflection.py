"""`.type` of every object and descriptor, the type dataclasses, and `Function`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import asyncwasm as aw

from .helpers import GlobalType, TableType, compiled, exports_of, readable, two_functions

ADD = aw.FunctionType(["i32", "i32"], ["i32"])


def _add(left: int, right: int) -> int:
    return left + right


MEMORIES = {
    "minimum": ((1,), {}, aw.MemoryType(1)),
    "maximum": ((1, 5), {}, aw.MemoryType(1, 5)),
    "shared": ((1, 5), {"shared": True}, aw.MemoryType(1, 5, shared=True)),
    "i64": ((1, 5), {"address": "i64"}, aw.MemoryType(1, 5, address="i64")),
}


@pytest.mark.parametrize(
    ("arguments", "options", "expected"), MEMORIES.values(), ids=MEMORIES.keys()
)
def test_memory_has_the_type_it_was_made_with(
    arguments: Any, options: Any, expected: aw.MemoryType
) -> None:
    """NS5, section 1.25."""
    assert aw.Memory(*arguments, **options).type == expected


TABLES = {
    "funcref": (("funcref", 1), {}, TableType("funcref", 1)),
    "anyfunc": (("anyfunc", 1), {}, TableType("funcref", 1)),
    "externref": (("externref", 1, 5), {}, TableType("externref", 1, 5)),
    "i64": (("funcref", 0), {"address": "i64"}, TableType("funcref", 0, address="i64")),
}


@pytest.mark.parametrize(("arguments", "options", "expected"), TABLES.values(), ids=TABLES.keys())
def test_table_has_the_type_it_was_made_with(
    arguments: Any, options: Any, expected: aw.TableType
) -> None:
    """NS5, section 1.25."""
    assert aw.Table(*arguments, **options).type == expected


@pytest.mark.parametrize("mutable", [False, True], ids=["constant", "mutable"])
@pytest.mark.parametrize("value", ["i32", "i64", "f32", "f64", "externref", "funcref"])
def test_global_has_the_type_it_was_made_with(value: Any, mutable: bool) -> None:
    """NS5, section 1.25."""
    assert aw.Global(value, mutable=mutable).type == GlobalType(value, mutable)


@pytest.mark.parametrize("parameters", [[], ["i32"], ["i32", "i64", "f32", "f64"]], ids=len)
def test_tag_has_the_type_it_was_made_with(parameters: Any) -> None:
    """NS5, section 1.25."""
    assert aw.Tag(parameters).type == aw.TagType(parameters)


def test_minimum_of_a_type_is_the_current_size() -> None:
    """Section 1.25."""
    memory, table = aw.Memory(1, 5), aw.Table("funcref", 1, 5)

    memory.grow(2)
    table.grow(3)

    assert memory.type == aw.MemoryType(3, 5)
    assert table.type == TableType("funcref", 4, 5)


KINDS: dict[str, tuple[str, Any]] = {
    "function": ("(func {0} (param i32 i32) (result i32) {1})", ADD),
    "memory": ("(memory {0} 1 2)", aw.MemoryType(1, 2)),
    "memory-shared": ("(memory {0} 1 2 shared)", aw.MemoryType(1, 2, True)),
    "memory-i64": ("(memory {0} i64 1)", aw.MemoryType(1, address="i64")),
    "table": ("(table {0} 1 2 externref)", TableType("externref", 1, 2)),
    "table-i64": ("(table {0} i64 1 funcref)", TableType("funcref", 1, address="i64")),
    "global": ("(global {0} (mut f64) {2})", GlobalType("f64", True)),
    "tag": ("(tag {0} (param i32 externref))", aw.TagType(["i32", "externref"])),
}


def _exporting(text: str) -> str:
    return "(module " + text.format('(export "it")', "unreachable", "(f64.const 1)") + ")"


def _importing(text: str) -> str:
    return "(module " + text.format('(import "m" "it")', "", "") + ")"


@pytest.mark.parametrize(("text", "expected"), KINDS.values(), ids=KINDS.keys())
def test_export_descriptor_has_the_type(text: str, expected: object) -> None:
    """MO3, section 1.25."""
    (export,) = compiled(_exporting(text)).exports()

    assert export.type == expected


@pytest.mark.parametrize(("text", "expected"), KINDS.values(), ids=KINDS.keys())
def test_import_descriptor_has_the_type(text: str, expected: object) -> None:
    """MO4, section 1.25."""
    (item,) = compiled(_importing(text)).imports()

    assert item.type == expected


@pytest.mark.parametrize(("text", "expected"), KINDS.values(), ids=KINDS.keys())
def test_exported_object_has_the_type(text: str, expected: object) -> None:
    """NS5, section 1.25."""
    assert exports_of(_exporting(text)).it.type == expected


TYPES = [
    ADD,
    aw.MemoryType(1, 2),
    TableType("funcref", 1),
    GlobalType("i32"),
    aw.TagType(["i32"]),
]


@pytest.mark.parametrize("value", TYPES, ids=lambda value: type(value).__name__)
def test_type_is_a_frozen_dataclass(value: Any) -> None:
    """Section 1.25."""
    twin = dataclasses.replace(value)

    with pytest.raises(AttributeError):
        setattr(value, dataclasses.fields(value)[0].name, None)
    assert twin is not value
    assert (twin, hash(twin)) == (value, hash(value))


def test_value_types_compare_with_their_names() -> None:
    """Section 1.25."""
    function_type = aw.FunctionType(["i32", "anyfunc"], ["externref"])

    assert function_type.parameters == ("i32", "funcref")
    assert function_type.results == ("externref",)
    assert TableType("anyfunc", 1).element == "anyfunc" == TableType("funcref", 1).element


@pytest.mark.parametrize("value", ["invalid", "i16", "", 1, None, True], ids=readable)
def test_unknown_value_type_is_a_type_error(value: Any) -> None:
    """Section 1.25."""
    with pytest.raises(TypeError):
        aw.FunctionType([value], [])
    with pytest.raises(TypeError):
        aw.FunctionType([], [value])


def test_function_wraps_a_callable() -> None:
    """NS5, section 1.25."""
    function = aw.Function(ADD, _add)

    assert isinstance(function, aw.Function)
    assert isinstance(function, aw.ExportedFunction)
    assert function.type == ADD
    assert function(1, 2) == 3


async def test_function_can_be_awaited_too() -> None:
    """NS5, section 1.25."""
    assert await aw.Function(ADD, _add).call_async(1, 2) == 3


def test_function_needs_type_and_callable() -> None:
    """Section 1.25."""
    function: Any = aw.Function

    with pytest.raises(TypeError):
        function()
    with pytest.raises(TypeError):
        function(ADD)


@pytest.mark.parametrize("value", [None, 72, {}, "f", object()], ids=readable)
def test_function_wraps_callables_only(value: Any) -> None:
    """Section 1.25."""
    with pytest.raises(TypeError):
        aw.Function(ADD, value)


@pytest.mark.parametrize(
    "value", [None, 72, "i32", {}, {"parameters": []}, {"results": []}], ids=str
)
def test_function_needs_parameters_and_results(value: Any) -> None:
    """Section 1.25."""
    with pytest.raises(TypeError):
        aw.Function(value, _add)


def test_function_converts_as_any_exported_function_does() -> None:
    """Section 1.25, 1.15."""
    function = aw.Function(ADD, lambda left, right: 2**32 - 1)

    assert function(1, 2) == -1
    with pytest.raises(OverflowError):
        function(2**32, 1)
    with pytest.raises(TypeError):
        function("1", 2)
    with pytest.raises(TypeError):
        function(1)


def test_error_of_the_wrapped_callable_is_raised_unchanged() -> None:
    """Section 1.25, HF4."""
    error = KeyError("mine")

    def fail() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        aw.Function(aw.FunctionType(), fail)()

    assert caught.value is error


def test_functions_of_different_types_share_a_table() -> None:
    """Section 1.25, TA8."""
    functions = [
        aw.Function(aw.FunctionType([name], []), lambda value: None)
        for name in ("i32", "f32", "i64")
    ]
    table = aw.Table("anyfunc", 3)

    for index, function in enumerate(functions):
        table.set(index, function)

    assert all(table.get(index) is function for index, function in enumerate(functions))
    assert [table.get(index).type.parameters for index in range(3)] == [
        ("i32",),
        ("f32",),
        ("i64",),
    ]


def test_wasm_calls_an_imported_function() -> None:
    """Section 1.25."""
    exports = exports_of(
        """(module (import "m" "add" (func $add (param i32 i32) (result i32)))
          (func (export "f") (result i32) (call $add (i32.const 40) (i32.const 2))))""",
        {"m": {"add": aw.Function(ADD, _add)}},
    )

    assert exports.f() == 42


def test_wrapping_an_exported_function_of_the_same_type_gives_it_back() -> None:
    """Section 1.25."""
    function, _ = two_functions()

    assert aw.Function(aw.FunctionType(["f64"], []), function) is function


def test_wrapping_an_exported_function_of_another_type_is_a_type_error() -> None:
    """Section 1.25."""
    function, _ = two_functions()

    with pytest.raises(TypeError):
        aw.Function(ADD, function)

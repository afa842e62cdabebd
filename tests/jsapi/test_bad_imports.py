"""
The 106 ways to import badly, each through the three ways to instantiate.

TypeError is for the shape of the import object, LinkError for the kind or type of a value.
Where JavaScript has values that Python lacks (symbols, prototypes, BigInt beside Number),
the nearest wrong value takes their place.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest

import asyncwasm as aw

from .helpers import EMPTY, PRIMITIVES, GlobalType, TableType, Way, in_every_way, readable

FUNCTION = '(module (import "module" "fn" (func)))'
MEMORY = '(module (import "module" "memory" (memory 0 128)))'
TABLE = '(module (import "module" "table" (table 0 128 funcref)))'
NUMBERS = ["i32", "i64", "f32", "f64"]

MISSING = object()
NO_OBJECTS: list[Any] = [MISSING, None, True, "", b"", 1, 0.1, float("nan")]


def _global(type_: str) -> str:
    return f'(module (import "module" "global" (global {type_})))'


def _other_function() -> aw.Function:
    return aw.Function(aw.FunctionType(), lambda: None)


def _lookalike(**parts: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(**parts)


def _same(value: Any) -> Any:
    return value


def _named(value: object) -> str:
    return "missing" if value is MISSING else readable(value)


# (text, imports or a function that makes them), by what is wrong.
SHAPES: dict[str, tuple[str, Any]] = {
    **{f"imports-{_named(value)}": ("(module)", value) for value in PRIMITIVES},
    **{f"module-{readable(value)}": (FUNCTION, {"module": value}) for value in [None, *PRIMITIVES]},
    "omitted": (FUNCTION, MISSING),
    "None": (FUNCTION, None),
    "empty": (FUNCTION, {}),
    "other-name": (FUNCTION, {"module\0": None}),
}


def _link_cases() -> dict[str, tuple[str, str, Callable[[], Any]]]:
    cases: dict[str, tuple[str, str, Callable[[], Any]]] = {}

    def add(rule: str, text: str, name: str, values: dict[str, Callable[[], Any]]) -> None:
        for label, make in values.items():
            cases[f"{rule}-{label}"] = (text, name, make)

    def these(*values: Any) -> dict[str, Callable[[], Any]]:
        return {_named(value): functools.partial(_same, value) for value in values}

    add("RI3-function", FUNCTION, "fn", {**these(*NO_OBJECTS), "object": object})
    for type_ in NUMBERS:
        add(
            f"RI8-{type_}",
            _global(type_),
            "global",
            {
                **these(MISSING, None, "", b"", [], 1j),
                "object": object,
                "class": lambda: aw.Global,
                "lookalike": lambda: _lookalike(value=0, type=GlobalType("i32")),
                "number-in-text": lambda: "0",
            },
        )
        other = "f64" if type_ == "f32" else "f32"
        add(
            "RI7",
            _global(type_),
            "global",
            {f"{type_}-{other}": functools.partial(aw.Global, other)},
        )
    for type_ in NUMBERS:
        mutable = _global(f"(mut {type_})")
        add("RI10", mutable, "global", {f"mutable-{type_}-number": lambda: 0})
        add(
            "RI7",
            mutable,
            "global",
            {f"mutable-{type_}-constant": functools.partial(aw.Global, type_, 0)},
        )
    add(
        "RI13-memory",
        MEMORY,
        "memory",
        {
            **these(*NO_OBJECTS),
            "object": object,
            "class": lambda: aw.Memory,
            "lookalike": lambda: _lookalike(buffer=b"", grow=len, type=aw.MemoryType(0, 128)),
            "table": lambda: aw.Table("funcref", 0, 128),
        },
    )
    add("RI14", MEMORY, "memory", {"memory-too-large": lambda: aw.Memory(256)})
    add(
        "RI13-table",
        TABLE,
        "table",
        {
            **these(*NO_OBJECTS),
            "object": object,
            "class": lambda: aw.Table,
            "lookalike": lambda: _lookalike(get=len, type=TableType("funcref", 0, 128)),
            "memory": lambda: aw.Memory(0, 128),
        },
    )
    add("RI14", TABLE, "table", {"table-too-large": lambda: aw.Table("funcref", 256)})
    return cases


LINKS = _link_cases()


def test_every_case_of_the_original_suite_has_a_counterpart() -> None:
    assert len(SHAPES) + len(LINKS) == 106


@in_every_way
@pytest.mark.parametrize(("text", "imports"), SHAPES.values(), ids=SHAPES.keys())
async def test_import_object_of_the_wrong_shape_is_a_type_error(
    way: Way, text: str, imports: Any
) -> None:
    """RI1, RI2, RI15, IS2."""
    arguments = () if imports is MISSING else (imports,)

    with pytest.raises(TypeError):
        await way(aw.wat2wasm(text), *arguments)


@in_every_way
@pytest.mark.parametrize(("text", "name", "make"), LINKS.values(), ids=LINKS.keys())
async def test_import_of_the_wrong_kind_or_type_is_a_link_error(
    way: Way, text: str, name: str, make: Callable[[], Any]
) -> None:
    """RI3, RI7, RI8, RI10, RI13, RI14."""
    value = make()
    part = {} if value is MISSING else {name: value}

    with pytest.raises(aw.LinkError) as caught:
        await way(aw.wat2wasm(text), {"module": part})

    assert (caught.value.module, caught.value.name) == ("module", name)


MORE_LINKS: dict[str, tuple[str, Callable[[], Any]]] = {
    "RI4-parameters": ("(func (param i32))", _other_function),
    "RI4-results": ("(func (result i32))", _other_function),
    "RI4-not-callable": ("(func)", lambda: aw.Memory(1)),
    "RI7-reference-type": ("(global (mut externref))", lambda: aw.Global("funcref", mutable=True)),
    "RI7-mutable-for-constant": ("(global i32)", lambda: aw.Global("i32", mutable=True)),
    "RI12-float-for-i32": ("(global i32)", lambda: 3.7),
    "RI12-nan-for-i64": ("(global i64)", lambda: float("nan")),
    "RI8-out-of-range-i32": ("(global i32)", lambda: 2**32),
    "RI8-out-of-range-i64": ("(global i64)", lambda: -(2**63) - 1),
    "RI9-v128-too-short": ("(global v128)", lambda: bytes(15)),
    "RI9-v128-number": ("(global v128)", lambda: 0),
    "RI11-function-for-funcref": ("(global funcref)", lambda: len),
    "RI11-null-for-non-null": ("(global (ref extern))", lambda: None),
    "RI11-missing-externref": ("(global externref)", lambda: MISSING),
    "RI11-number-for-structref": ("(global structref)", lambda: 1),
    "RI13-tag-number": ("(tag)", lambda: 1),
    "RI13-tag-class": ("(tag)", lambda: aw.Tag),
    "RI13-tag-missing": ("(tag)", lambda: MISSING),
    "RI13-tag-type": ("(tag (param i32))", lambda: aw.Tag(["i64"])),
    "RI14-memory-too-small": ("(memory 2)", lambda: aw.Memory(1)),
    "RI14-memory-no-maximum": ("(memory 1 2)", lambda: aw.Memory(1)),
    "RI14-memory-larger-maximum": ("(memory 1 2)", lambda: aw.Memory(1, 3)),
    "RI14-memory-not-shared": ("(memory 1 2 shared)", lambda: aw.Memory(1, 2)),
    "RI14-memory-shared": ("(memory 1 2)", lambda: aw.Memory(1, 2, shared=True)),
    "RI14-memory-address": ("(memory i64 1)", lambda: aw.Memory(1)),
    "RI14-memory-address-64": ("(memory 1)", lambda: aw.Memory(1, address="i64")),
    "RI14-table-too-small": ("(table 2 funcref)", lambda: aw.Table("funcref", 1)),
    "RI14-table-no-maximum": ("(table 1 2 funcref)", lambda: aw.Table("funcref", 1)),
    "RI14-table-larger-maximum": ("(table 1 2 funcref)", lambda: aw.Table("funcref", 1, 3)),
    "RI14-table-element": ("(table 1 funcref)", lambda: aw.Table("externref", 1)),
    "RI14-table-address": ("(table i64 1 funcref)", lambda: aw.Table("funcref", 1)),
}


@in_every_way
@pytest.mark.parametrize(("kind", "make"), MORE_LINKS.values(), ids=MORE_LINKS.keys())
async def test_import_that_does_not_match_its_type_is_a_link_error(
    way: Way, kind: str, make: Callable[[], Any]
) -> None:
    value = make()
    part = {} if value is MISSING else {"n": value}

    with pytest.raises(aw.LinkError) as caught:
        await way(aw.wat2wasm(f'(module (import "m" "n" {kind}))'), {"m": part})

    assert (caught.value.module, caught.value.name) == ("m", "n")


@in_every_way
async def test_link_error_says_what_was_expected_and_what_was_given(way: Way) -> None:
    """RI15."""
    with pytest.raises(aw.LinkError) as caught:
        await way(aw.wat2wasm(_global("i32")), {"module": {"global": aw.Global("f64")}})

    assert "i32" in str(caught.value.expected)
    assert "f64" in str(caught.value.actual)


@in_every_way
async def test_current_size_counts_as_the_minimum(way: Way) -> None:
    """RI14."""
    memory, table = aw.Memory(1, 4), aw.Table("funcref", 1, 4)
    memory.grow(2)
    table.grow(2)
    text = '(module (import "m" "memory" (memory 3 4)) (import "m" "table" (table 3 4 funcref)))'

    instance = await way(aw.wat2wasm(text), {"m": {"memory": memory, "table": table}})

    assert len(instance.exports) == 0


@in_every_way
@pytest.mark.parametrize(
    ("modules", "error"),
    [(("m", "missing"), aw.LinkError), (("missing", "m"), TypeError)],
    ids=["value-first", "shape-first"],
)
async def test_first_bad_import_decides_the_error(
    way: Way, modules: tuple[str, str], error: type[Exception]
) -> None:
    """RI15."""
    fields = "".join(f'(import "{module}" "f" (func))' for module in modules)

    with pytest.raises(error):
        await way(aw.wat2wasm(f"(module {fields})"), {"m": {"f": 1}})


@in_every_way
async def test_all_imports_are_read_before_instantiation_starts(way: Way) -> None:
    """Section 1.11: a start function does not run when a later import is bad."""
    started: list[None] = []
    text = """(module (import "m" "f" (func $f)) (import "m" "g" (global i32)) (start $f))"""

    with pytest.raises(aw.LinkError):
        await way(aw.wat2wasm(text), {"m": {"f": lambda: started.append(None), "g": "no"}})

    assert started == []


@in_every_way
async def test_any_callable_imports_as_a_function_whatever_it_takes(way: Way) -> None:
    """RI6."""
    text = '(module (import "m" "f" (func (param i32 i32 i32))))'

    for value in (lambda: None, len, dict, str.join, types.SimpleNamespace):
        assert len((await way(aw.wat2wasm(text), {"m": {"f": value}})).exports) == 0


@in_every_way
async def test_none_is_a_null_reference_global(way: Way) -> None:
    """RI11."""
    text = '(module (import "m" "g" (global $g externref)) (export "g" (global $g)))'

    exports = (await way(aw.wat2wasm(text), {"m": {"g": None}})).exports

    assert exports.g.value is None


@in_every_way
async def test_bool_counts_as_an_integer_global(way: Way) -> None:
    """RI8, where Python differs: bool is an int."""
    text = '(module (import "m" "g" (global $g i32)) (export "g" (global $g)))'

    exports = (await way(aw.wat2wasm(text), {"m": {"g": True}})).exports

    assert exports.g.value == 1


@in_every_way
async def test_v128_global_imports_as_bytes(way: Way) -> None:
    """RI9, where Python differs."""
    text = '(module (import "m" "g" (global $g v128)) (export "g" (global $g)))'

    exports = (await way(aw.wat2wasm(text), {"m": {"g": bytes(range(16))}})).exports

    assert exports.g.value == bytes(range(16))


def test_empty_import_object_satisfies_a_module_without_imports() -> None:
    assert len(aw.Instance(aw.Module(EMPTY), {}).exports) == 0

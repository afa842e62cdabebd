"""`compile` and the compile options."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import pytest

import asyncwasm as aw

from .helpers import EMPTY, compiled, exports_of, instance_of

JS_STRING_TEST = '(module (import "wasm:js-string" "test" (func {0} (result i32))){1})'
CONSTANT = '(module (import "strings" "hello" {0}) {1})'


async def test_compile_returns_a_module() -> None:
    """CO1."""
    module = await aw.compile(EMPTY)

    assert type(module) is aw.Module


async def test_compile_of_an_invalid_module_raises_compile_error_when_awaited() -> None:
    """CO1, CO2."""
    coroutine = aw.compile(EMPTY + b"\0\0")

    with pytest.raises(aw.CompileError):
        await coroutine


async def test_offset_of_a_compile_error_lies_in_the_binary() -> None:
    with pytest.raises(aw.CompileError) as caught:
        await aw.compile(EMPTY + b"\x0c\xff")

    assert caught.value.offset is None or 0 <= caught.value.offset <= len(EMPTY) + 2


async def test_compile_that_is_cancelled_can_be_repeated() -> None:
    """CO4."""
    task = asyncio.create_task(aw.compile(EMPTY))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert isinstance(await aw.compile(EMPTY), aw.Module)


async def test_compile_delivers_its_result_on_the_callers_thread() -> None:
    """CO1."""
    thread = threading.get_ident()

    await aw.compile(aw.wat2wasm('(module (func (export "f")))'))

    assert threading.get_ident() == thread


async def test_compiling_the_same_bytes_at_once_gives_each_caller_a_module() -> None:
    """CO1."""
    wasm = aw.wat2wasm('(module (func (export "same") (result i32) (i32.const 5)))')

    modules = await asyncio.gather(*[aw.compile(wasm) for _ in range(10)])

    assert {module.digest for module in modules} == {modules[0].digest}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_compile_runs_under_both_event_loops(backend: str) -> None:
    """CO1."""

    async def main() -> aw.Module:
        return await aw.compile(EMPTY)

    assert isinstance(anyio.run(main, backend=backend), aw.Module)


def test_unknown_builtin_set_is_ignored() -> None:
    """OP1."""
    assert compiled("(module)", builtins=["no-such-set"]).imports() == []


BAD_OPTIONS = [
    pytest.param("(module)", {"builtins": ["js-string", "js-string"]}, id="OP1-duplicate"),
    pytest.param(
        JS_STRING_TEST.format("(param i32)", ""), {"builtins": ["js-string"]}, id="OP1-type"
    ),
    *[
        pytest.param(
            CONSTANT.format(kind, ""), {"imported_string_constants": "strings"}, id=f"OP2-{name}"
        )
        for name, kind in {
            "i32": "(global i32)",
            "mutable": "(global (mut externref))",
            "funcref": "(global funcref)",
            "function": "(func)",
            "memory": "(memory 1)",
        }.items()
    ],
]


@pytest.mark.parametrize(("text", "options"), BAD_OPTIONS)
async def test_import_that_its_option_cannot_satisfy_is_a_compile_error(
    text: str, options: dict[str, Any]
) -> None:
    """CO3."""
    coroutine = aw.compile(aw.wat2wasm(text), **options)

    with pytest.raises(aw.CompileError):
        await coroutine


@pytest.mark.parametrize(("text", "options"), BAD_OPTIONS)
def test_import_that_its_option_cannot_satisfy_fails_the_constructor(
    text: str, options: dict[str, Any]
) -> None:
    """CO3, MO1."""
    with pytest.raises(aw.CompileError):
        compiled(text, **options)


@pytest.mark.parametrize("declared", ["externref", "(ref extern)"])
def test_value_of_a_string_constant_is_the_name_of_the_import(declared: str) -> None:
    """OP2."""
    text = CONSTANT.format(f"(global $g {declared})", '(export "g" (global $g))')

    instance = aw.Instance(compiled(text, imported_string_constants="strings"))

    assert instance.exports.g.value == "hello"


async def test_options_are_remembered_by_the_module() -> None:
    """OP3."""
    text = CONSTANT.format("(global $g externref)", '(export "g" (global $g))')
    module = await aw.compile(aw.wat2wasm(text), imported_string_constants="strings")

    instances = [await aw.instantiate(module), await aw.instantiate(module)]

    assert [instance.exports.g.value for instance in instances] == ["hello", "hello"]


async def test_instantiate_takes_the_options_with_bytes() -> None:
    """OP3."""
    text = CONSTANT.format("(global $g externref)", '(export "g" (global $g))')

    _, instance = await aw.instantiate(aw.wat2wasm(text), imported_string_constants="strings")

    assert instance.exports.g.value == "hello"


def test_string_constants_win_over_the_import_object() -> None:
    """OP4."""
    text = CONSTANT.format("(global $g externref)", '(export "g" (global $g))')
    module = compiled(text, imported_string_constants="strings")

    instance = aw.Instance(module, {"strings": {"hello": "other"}})

    assert instance.exports.g.value == "hello"


def test_without_the_option_the_import_object_is_read() -> None:
    """OP4."""
    text = CONSTANT.format("(global $g externref)", '(export "g" (global $g))')

    exports = exports_of(text, {"strings": {"hello": "other"}})

    assert exports.g.value == "other"


def test_enabled_builtin_wins_over_the_import_object() -> None:
    """OP4."""
    text = JS_STRING_TEST.format("$f (param externref)", '(export "f" (func $f))')
    module = compiled(text, builtins=["js-string"])

    instance = aw.Instance(module, {"wasm:js-string": {"test": lambda value: 7}})

    assert instance.exports.f("text") == 1


def test_builtin_that_is_not_enabled_can_be_polyfilled() -> None:
    """OP4."""
    text = JS_STRING_TEST.format("$f (param externref)", '(export "f" (func $f))')

    exports = exports_of(text, {"wasm:js-string": {"test": lambda value: 7}})

    assert exports.f("text") == 7


def test_name_that_the_builtin_set_lacks_comes_from_the_import_object() -> None:
    """OP4."""
    text = '(module (import "wasm:js-string" "mine" (func $f (result i32))) (export "f" (func $f)))'
    module = compiled(text, builtins=["js-string"])

    instance = aw.Instance(module, {"wasm:js-string": {"mine": lambda: 7}})

    assert instance.exports.f() == 7


def test_builtin_that_is_not_enabled_is_an_ordinary_missing_import() -> None:
    """OP1."""
    with pytest.raises(aw.LinkError):
        instance_of(JS_STRING_TEST.format("(param externref)", ""), {"wasm:js-string": {}})

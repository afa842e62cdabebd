"""Exported functions: names, arity, identity, calls and what they raise."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import asyncwasm as aw

from .helpers import Index, exports_of

ADD = """(module (func (export "add") (param i32 i32) (result i32)
  (i32.add (local.get 0) (local.get 1))))"""

Call = Any


async def _directly(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


async def _awaited(function: Any, *arguments: Any) -> Any:
    return await function.call_async(*arguments)


async def _promising(function: Any, *arguments: Any) -> Any:
    return await aw.promising(function)(*arguments)


in_every_call = pytest.mark.parametrize(
    "call", [_directly, _awaited, _promising], ids=["direct", "call_async", "promising"]
)


def test_exported_function_is_a_callable_and_no_class() -> None:
    """EF1."""
    add = exports_of(ADD).add

    assert isinstance(add, aw.ExportedFunction)
    assert callable(add)
    assert not isinstance(add, type)


def test_name_is_the_index_in_the_defining_module() -> None:
    """EF2."""
    exports = exports_of(
        """(module (import "m" "f" (func)) (func (export "a")) (func) (func (export "b")))""",
        {"m": {"f": lambda: None}},
    )

    assert (exports.a.name, exports.b.name) == ("1", "3")


def test_name_of_a_re_exported_host_function_is_its_index_among_function_imports() -> None:
    """EF2, HF6."""
    exports = exports_of(
        """(module (import "m" "g" (global i32)) (import "m" "f" (func $a))
          (import "m" "f" (func $b)) (export "a" (func $a)) (export "b" (func $b)))""",
        {"m": {"g": 0, "f": lambda: None}},
    )

    assert (exports.a.name, exports.b.name) == ("0", "1")


def test_name_stays_that_of_the_defining_module_after_a_re_import() -> None:
    """EF2."""
    first = exports_of('(module (func) (func) (func (export "f")))')

    again = exports_of('(module (import "m" "f" (func $f)) (export "f" (func $f)))', {"m": first})

    assert again.f.name == "2"


def test_name_of_a_re_exported_builtin_is_its_index_among_function_imports() -> None:
    """EF2."""
    text = """(module (import "wasm:js-string" "test" (func (param externref) (result i32)))
      (import "wasm:js-string" "length" (func $l (param externref) (result i32)))
      (export "l" (func $l)))"""
    module = aw.Module(aw.wat2wasm(text), builtins=["js-string"])

    assert aw.Instance(module).exports.l.name == "1"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_signature_tells_the_number_of_parameters(count: int) -> None:
    """EF2."""
    function = exports_of(f'(module (func (export "f") (param {"i32 " * count})))').f

    assert len(inspect.signature(function).parameters) == count


def test_type_tells_parameters_and_results() -> None:
    """EF2."""
    function = exports_of(
        """(module (func (export "f") (param i32 f64) (result i64 externref)
          (i64.const 0) (ref.null extern)))"""
    ).f

    assert function.type == aw.FunctionType(["i32", "f64"], ["i64", "externref"])


def test_function_in_a_table_is_the_exported_one() -> None:
    """EF3."""
    exports = exports_of("""(module (func $f (export "f")) (table (export "t") 2 funcref)
      (elem (i32.const 1) $f))""")

    assert exports.t.get(1) is exports.f
    assert exports.t.get(0) is None


def test_function_that_comes_back_as_a_value_is_the_exported_one() -> None:
    """EF3."""
    exports = exports_of("""(module (func $f (export "f")) (elem declare func $f)
      (func (export "self") (result funcref) (ref.func $f))
      (global (export "g") funcref (ref.func $f)))""")

    assert exports.self() is exports.f
    assert exports.g.value is exports.f


def test_function_that_is_not_exported_is_one_object_too() -> None:
    """EF3."""
    exports = exports_of("""(module (func $f) (table (export "t") 2 funcref)
      (elem (i32.const 0) $f $f))""")

    assert exports.t.get(0) is exports.t.get(1)


def test_re_exported_python_callable_is_a_new_exported_function() -> None:
    """EF3."""

    def callable_() -> int:
        return 6

    exports = exports_of(
        '(module (import "m" "f" (func $f (result i32))) (export "f" (func $f)))',
        {"m": {"f": callable_}},
    )

    assert isinstance(exports.f, aw.ExportedFunction)
    assert exports.f is not callable_
    assert exports.f() == 6


def test_one_callable_imported_twice_is_two_exported_functions() -> None:
    """EF3."""
    exports = exports_of(
        """(module (import "m" "f" (func $a)) (import "m" "f" (func $b))
          (export "a" (func $a)) (export "b" (func $b)))""",
        {"m": {"f": lambda: None}},
    )

    assert exports.a is not exports.b


def test_re_exported_callable_imported_again_is_the_same_function() -> None:
    """EF3."""
    text = '(module (import "m" "f" (func $f)) (export "f" (func $f)))'
    first = exports_of(text, {"m": {"f": lambda: None}})

    second = exports_of(text, {"m": first})

    assert second.f is first.f


@in_every_call
@pytest.mark.parametrize("field", ["(param exnref)", "(result exnref) (ref.null exn)"])
async def test_exnref_in_the_signature_is_a_type_error_on_every_call(
    call: Call, field: str
) -> None:
    """EF4."""
    function = exports_of(f'(module (func (export "f") {field}))').f
    arguments = [None] * len(function.type.parameters)

    with pytest.raises(TypeError):
        await call(function, *arguments)


async def test_exnref_in_the_signature_fails_before_arguments_are_converted() -> None:
    """EF4."""
    value = Index(1)
    function = exports_of('(module (func (export "f") (param i32 exnref)))').f

    with pytest.raises(TypeError):
        function(value, None)

    assert value.asked == 0


@in_every_call
@pytest.mark.parametrize("arguments", [(), (1,), (1, 2, 3)], ids=len)
async def test_wrong_number_of_arguments_is_a_type_error(
    call: Call, arguments: tuple[int, ...]
) -> None:
    """EF5, where Python differs."""
    with pytest.raises(TypeError):
        await call(exports_of(ADD).add, *arguments)


def test_keyword_arguments_are_a_type_error() -> None:
    """EF5."""
    with pytest.raises(TypeError):
        exports_of(ADD).add(1, b=2)


async def test_arguments_are_converted_from_left_to_right() -> None:
    """EF6."""
    add = exports_of(ADD).add
    first = Index(1)

    with pytest.raises(TypeError):
        add(first, "2")
    with pytest.raises(OverflowError):
        add(2**32, "2")

    assert first.asked == 1


@in_every_call
async def test_call_does_not_start_when_an_argument_does_not_convert(call: Call) -> None:
    """EF6."""
    called: list[int] = []
    exports = exports_of(
        '(module (import "m" "f" (func $f (param i32))) (func (export "g") (param i32 i32)'
        " (call $f (local.get 0))))",
        {"m": {"f": called.append}},
    )

    with pytest.raises(OverflowError):
        await call(exports.g, 1, 2**32)

    assert called == []


@in_every_call
@pytest.mark.parametrize(
    ("results", "body", "expected"),
    [
        ("", "", None),
        ("i32", "(i32.const 7)", 7),
        ("i32 f64", "(i32.const 7) (f64.const 4.2)", (7, 4.2)),
        ("i32 i64 externref", "(i32.const 1) (i64.const 2) (ref.null extern)", (1, 2, None)),
        ("i32 " * 30, "(i32.const 3)" * 30, (3,) * 30),
    ],
    ids=["none", "one", "two", "three", "thirty"],
)
async def test_results_are_none_a_value_or_a_tuple(
    call: Call, results: str, body: str, expected: object
) -> None:
    """EF7, JP6."""
    result = await call(exports_of(f'(module (func (export "f") (result {results}) {body}))').f)

    assert result == expected
    assert type(result) is type(expected)


@in_every_call
async def test_multiple_values_keep_their_order_both_ways(call: Call) -> None:
    """EF7."""
    swap = exports_of("""(module (func (export "swap") (param f64 i32) (result i32 f64)
      (local.get 1) (local.get 0)))""").swap

    assert await call(swap, 4.2, 7) == (7, 4.2)


@in_every_call
async def test_trap_is_raised_and_the_instance_stays_usable(call: Call) -> None:
    """EF8, ST4."""
    exports = exports_of("""(module (func (export "trap") unreachable)
      (func (export "f") (result i32) (i32.const 1)))""")

    for _ in range(3):
        with pytest.raises(aw.Trap) as caught:
            await call(exports.trap)
        assert caught.value.code is aw.TrapCode.UNREACHABLE

    assert await call(exports.f) == 1


@in_every_call
async def test_uncaught_wasm_exception_is_raised_with_its_payload(call: Call) -> None:
    """EF8."""
    exports = exports_of("""(module (tag $t (export "t") (param i32 f64))
      (func (export "f") (throw $t (i32.const 7) (f64.const 0.5))))""")

    with pytest.raises(aw.WasmException) as caught:
        await call(exports.f)

    assert caught.value.tag is exports.t
    assert list(caught.value.payload) == [7, 0.5]


@in_every_call
async def test_parameter_that_is_a_function_must_match_its_type(call: Call) -> None:
    """EF6."""
    exports = exports_of("""(module (type $t (func (param f64)))
      (func (export "f") (param (ref null $t)))
      (func (export "matching") (param f64)) (func (export "other")))""")

    assert await call(exports.f, exports.matching) is None
    assert await call(exports.f, None) is None
    with pytest.raises(TypeError):
        await call(exports.f, exports.other)


async def test_calls_nest_through_python() -> None:
    """EF8."""
    exports: Any = None

    def step(value: int) -> int:
        return int(exports.f(value - 1)) + 1 if value else 0

    exports = exports_of(
        """(module (import "m" "step" (func $s (param i32) (result i32)))
          (func (export "f") (param i32) (result i32) (call $s (local.get 0))))""",
        {"m": {"step": step}},
    )

    assert exports.f(20) == 20
    assert await exports.f.call_async(20) == 20

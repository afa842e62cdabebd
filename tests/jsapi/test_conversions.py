"""Values on their way into wasm and out of it, on every route that they can take."""

from __future__ import annotations

import decimal
import fractions
import math
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import asyncwasm as aw

from .helpers import Float, Index, exports_of, readable, two_functions

Route = Callable[[str, Any], Awaitable[Any]]

IDENTITY = '(module (func (export "f") (param {0}) (result {0}) (local.get 0)))'
THROUGH_IMPORT = """(module (import "m" "f" (func $f (param {0}) (result {0})))
  (func (export "g") (param {0}) (result {0}) (call $f (local.get 0))))"""
FROM_IMPORT = """(module (import "m" "f" (func $f (result {0})))
  (func (export "g") (result {0}) (call $f)))"""
MUTABLE = '(module (global (export "g") (mut {0}) ({1})))'
ZERO = {
    "i32": "i32.const 0",
    "i64": "i64.const 0",
    "f32": "f32.const 0",
    "f64": "f64.const 0",
    "v128": "v128.const i64x2 0 0",
    "externref": "ref.null extern",
    "funcref": "ref.null func",
}


async def _call(type_: str, value: Any) -> Any:
    return exports_of(IDENTITY.format(type_)).f(value)


async def _call_async(type_: str, value: Any) -> Any:
    return await exports_of(IDENTITY.format(type_)).f.call_async(value)


async def _import_argument(type_: str, value: Any) -> Any:
    seen: list[Any] = []

    def host(argument: Any) -> Any:
        seen.append(argument)
        return argument

    exports_of(THROUGH_IMPORT.format(type_), {"m": {"f": host}}).g(value)
    return seen[0]


async def _import_result(type_: str, value: Any) -> Any:
    return exports_of(FROM_IMPORT.format(type_), {"m": {"f": lambda: value}}).g()


async def _awaited_import_result(type_: str, value: Any) -> Any:
    async def host() -> Any:
        return value

    return await exports_of(FROM_IMPORT.format(type_), {"m": {"f": host}}).g.call_async()


async def _function(type_: str, value: Any) -> Any:
    return aw.Function(aw.FunctionType([type_], [type_]), lambda argument: argument)(value)


async def _global_value(type_: str, value: Any) -> Any:
    held = aw.Global(type_, bytes(16) if type_ == "v128" else None, mutable=True)
    held.value = value
    return held.value


async def _exported_global_value(type_: str, value: Any) -> Any:
    held = exports_of(MUTABLE.format(type_, ZERO[type_])).g
    held.value = value
    return held.value


async def _exception_payload(type_: str, value: Any) -> Any:
    tag = aw.Tag([type_])
    return aw.WasmException(tag, [value]).get_arg(tag, 0)


ROUTES: dict[str, Route] = {
    "call": _call,
    "call_async": _call_async,
    "import-argument": _import_argument,
    "import-result": _import_result,
    "awaited-import-result": _awaited_import_result,
    "Function": _function,
    "Global": _global_value,
    "exported-Global": _exported_global_value,
    "WasmException": _exception_payload,
}
on_every_route = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES.keys())

NAN = float("nan")
INF = float("inf")

NUMBERS: list[tuple[str, Any, Any]] = [
    ("i32", 0, 0),
    ("i32", -1, -1),
    ("i32", 2**31 - 1, 2**31 - 1),
    ("i32", -(2**31), -(2**31)),
    ("i32", 2**31, -(2**31)),
    ("i32", 2**32 - 1, -1),
    ("i32", True, 1),
    ("i32", Index(7), 7),
    ("i64", 0, 0),
    ("i64", 2**32, 2**32),
    ("i64", 2**63 - 1, 2**63 - 1),
    ("i64", -(2**63), -(2**63)),
    ("i64", 2**63, -(2**63)),
    ("i64", 2**64 - 1, -1),
    ("i64", False, 0),
    ("i64", Index(-7), -7),
    ("f32", 1.5, 1.5),
    ("f32", 3, 3.0),
    ("f32", 0.1, 0.10000000149011612),
    ("f32", 16_777_217, 16_777_216.0),
    ("f32", 1e40, INF),
    ("f32", -1e40, -INF),
    ("f32", 3.5e38, INF),
    ("f32", 1e-46, 0.0),
    ("f32", -0.0, -0.0),
    ("f32", INF, INF),
    ("f32", NAN, NAN),
    ("f32", Float(2.5), 2.5),
    ("f32", True, 1.0),
    ("f64", 0.1, 0.1),
    ("f64", 3, 3.0),
    ("f64", 2**53 + 1, float(2**53)),
    ("f64", -0.0, -0.0),
    ("f64", -INF, -INF),
    ("f64", NAN, NAN),
    ("f64", 5e-324, 5e-324),
    ("f64", Float(2.5), 2.5),
    ("f64", fractions.Fraction(1, 4), 0.25),
    ("f64", decimal.Decimal("0.5"), 0.5),
    ("f64", False, 0.0),
    ("v128", bytes(range(16)), bytes(range(16))),
    ("v128", b"\xff" * 16, b"\xff" * 16),
]


def _same(left: object, right: object) -> bool:
    """Compare value and type, with NaN equal to itself and -0.0 different from 0.0."""
    if isinstance(left, float) and isinstance(right, float):
        if math.isnan(left) or math.isnan(right):
            return math.isnan(left) and math.isnan(right)
        return struct.pack("d", left) == struct.pack("d", right)
    return type(left) is type(right) and left == right


@on_every_route
@pytest.mark.parametrize(("type_", "given", "expected"), NUMBERS, ids=readable)
async def test_number_arrives_as_the_nearest_value_of_its_type(
    route: Route, type_: str, given: Any, expected: Any
) -> None:
    """Section 1.15, GL5."""
    result = await route(type_, given)

    assert _same(result, expected)


@on_every_route
@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("i32", 2**32),
        ("i32", -(2**31) - 1),
        ("i32", 10**30),
        ("i32", Index(2**32)),
        ("i64", 2**64),
        ("i64", -(2**63) - 1),
        ("i64", -(10**30)),
        ("f64", 10**400),
    ],
    ids=readable,
)
async def test_number_out_of_range_is_an_overflow_error(
    route: Route, type_: str, value: Any
) -> None:
    """Section 1.15, where Python differs: integers never wrap."""
    with pytest.raises(OverflowError):
        await route(type_, value)


NOT_INTEGERS = [1.0, NAN, "1", b"1", None, 1j, [1], object(), decimal.Decimal(1), Float(1.0)]
NOT_FLOATS = ["1.5", b"1.5", None, 1j, [1.5], object()]


@on_every_route
@pytest.mark.parametrize(
    ("type_", "value"),
    [("i32", value) for value in NOT_INTEGERS]
    + [("i64", value) for value in NOT_INTEGERS]
    + [("f32", value) for value in NOT_FLOATS]
    + [("f64", value) for value in NOT_FLOATS]
    + [("v128", value) for value in (None, 1, 1.5, "x" * 16, [0] * 16)],
    ids=readable,
)
async def test_value_of_another_type_is_a_type_error(route: Route, type_: str, value: Any) -> None:
    """Section 1.15: nothing is coerced from text, null or float."""
    with pytest.raises(TypeError):
        await route(type_, value)


@on_every_route
@pytest.mark.parametrize("length", [0, 15, 17])
async def test_v128_of_another_length_is_refused(route: Route, length: int) -> None:
    """Section 1.15."""
    with pytest.raises((TypeError, ValueError)):
        await route("v128", bytes(length))


@on_every_route
@pytest.mark.parametrize("type_", ["i32", "i64"])
async def test_numpy_integer_is_an_integer(route: Route, type_: str) -> None:
    """Section 1.15."""
    numpy = pytest.importorskip("numpy")

    assert _same(await route(type_, numpy.int32(-5)), -5)


@on_every_route
@pytest.mark.parametrize("type_", ["f32", "f64"])
async def test_numpy_float_is_a_float(route: Route, type_: str) -> None:
    """Section 1.15."""
    numpy = pytest.importorskip("numpy")

    assert _same(await route(type_, numpy.float32(0.5)), 0.5)


async def _error() -> None: ...


HOST_VALUES = [
    None,
    0,
    False,
    True,
    2**70,
    1.5,
    NAN,
    "",
    "text",
    b"",
    (),
    [],
    {},
    object(),
    len,
    int,
    math,
    KeyError("k"),
    lambda: None,
    _error,
]


@on_every_route
@pytest.mark.parametrize("value", HOST_VALUES, ids=readable)
async def test_any_object_passes_as_externref_and_comes_back_identical(
    route: Route, value: Any
) -> None:
    """Section 1.15."""
    assert await route("externref", value) is value


async def test_one_object_passes_many_times() -> None:
    """Section 1.15."""
    value = object()
    exports = exports_of("""(module (func (export "f") (param externref externref externref)
      (result externref externref externref) (local.get 2) (local.get 1) (local.get 0)))""")

    results = [exports.f(value, None, value) for _ in range(100)]

    assert all(first is last is value and middle is None for first, middle, last in results)


@pytest.mark.parametrize("route", [_call, _call_async, _import_result, _awaited_import_result])
async def test_none_is_no_value_of_a_type_without_null(route: Route) -> None:
    """Section 1.15."""
    with pytest.raises(TypeError):
        await route("(ref extern)", None)


@pytest.mark.parametrize("route", [_call, _call_async, _import_result, _awaited_import_result])
async def test_object_passes_as_a_reference_that_is_not_null(route: Route) -> None:
    """Section 1.15."""
    value = object()

    assert await route("(ref extern)", value) is value


@on_every_route
async def test_none_passes_as_a_null_function(route: Route) -> None:
    """Section 1.15."""
    assert await route("funcref", None) is None


@on_every_route
async def test_exported_function_passes_as_funcref_and_comes_back_identical(route: Route) -> None:
    """Section 1.15."""
    with aw.Store():
        function, _ = two_functions()

        assert await route("funcref", function) is function


@on_every_route
async def test_host_made_function_passes_as_funcref_and_comes_back_identical(route: Route) -> None:
    """Section 1.15."""
    function = aw.Function(aw.FunctionType([], ["i32"]), lambda: 3)

    assert await route("funcref", function) is function


@on_every_route
@pytest.mark.parametrize("value", [len, lambda: None, 1, "f", object(), int], ids=readable)
async def test_plain_callable_is_no_funcref(route: Route, value: Any) -> None:
    """Section 1.15, TA8."""
    with pytest.raises(TypeError):
        await route("funcref", value)


@pytest.mark.parametrize(
    ("type_", "bits"),
    [("i32", 32), ("i64", 64)],
)
def test_integers_come_out_signed(type_: str, bits: int) -> None:
    """Section 1.15."""
    exports = exports_of(f'(module (func (export "f") (result {type_}) ({type_}.const -1)))')

    assert exports.f() == -1
    assert exports_of(IDENTITY.format(type_)).f(2**bits - 1) == -1


def test_integer_keeps_its_bits_inside_wasm() -> None:
    """Section 1.15."""
    exports = exports_of("""(module (func (export "f") (param i32) (result i64)
      (i64.extend_i32_u (local.get 0))))""")

    assert exports.f(2**32 - 1) == 2**32 - 1
    assert exports.f(-1) == 2**32 - 1


def test_v128_bytes_are_little_endian_lanes() -> None:
    """Section 1.15."""
    exports = exports_of("""(module (func (export "f") (param v128) (result i32)
      (i32x4.extract_lane 1 (local.get 0))))""")

    assert exports.f(struct.pack("<4i", 10, 11, 12, 13)) == 11


def test_f64_nan_bits_out_of_wasm_stay_nan() -> None:
    """Section 1.15."""
    exports = exports_of(
        '(module (func (export "f") (result f64) (f64.const nan:0x4000000000001)))'
    )

    assert math.isnan(exports.f())

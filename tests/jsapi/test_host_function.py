"""Python callables as imports: what they get, what they may return, what their errors become."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import asyncwasm as aw

from .helpers import exports_of, readable

TWO_RESULTS = """(module (import "m" "f" (func $f (result i32 f64)))
  (func (export "g") (result i32 f64) (call $f)))"""
# `g` calls the import; `catches` answers whether that threw something that wasm can catch.
CATCH_ALL = """(module (import "m" "f" (func $f))
  (func $g (export "g") (call $f))
  (func (export "catches") (result i32)
    (block $caught (try_table (catch_all $caught) (call $g)) (return (i32.const 0)))
    (i32.const 1)))"""
# `catch` returns the payload of what the import throws, `rethrow` throws it again.
CATCH_PYTHON = """(module
  (import "m" "f" (func $f))
  (import "m" "tag" (tag $tag (param externref)))
  (func (export "catch") (result externref)
    (block $caught (result externref)
      (try_table (catch $tag $caught) (call $f)) (return (ref.null extern))))
  (func (export "rethrow")
    (block $caught (result exnref)
      (try_table (catch_all_ref $caught) (call $f)) (return))
    (throw_ref)))"""


def _raiser(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_import_is_called_with_converted_positional_arguments() -> None:
    """HF1."""
    calls: list[tuple[object, ...]] = []

    def record(*args: object, **kwargs: object) -> None:
        calls.append((*args, kwargs))

    exports_of(
        """(module (import "m" "f" (func $f (param i32 i64 f32 f64 externref)))
          (func (export "g") (call $f (i32.const -1) (i64.const -2) (f32.const 0.5)
            (f64.const 0.25) (ref.null extern))))""",
        {"m": {"f": record}},
    ).g()

    assert calls == [(-1, -2, 0.5, 0.25, None, {})]
    assert [type(value) for value in calls[0][:4]] == [int, int, float, float]


def test_v128_reaches_an_import_as_bytes() -> None:
    """HF1, where Python differs."""
    seen: list[object] = []

    exports_of(
        """(module (import "m" "f" (func $f (param v128))) (func (export "g")
          (call $f (v128.const i8x16 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15))))""",
        {"m": {"f": seen.append}},
    ).g()

    assert seen == [bytes(range(16))]


def test_exnref_in_the_signature_is_a_type_error_when_called() -> None:
    """HF1."""
    called: list[object] = []
    exports = exports_of(
        '(module (import "m" "f" (func $f (param exnref))) (func (export "g")'
        " (call $f (ref.null exn))))",
        {"m": {"f": called.append}},
    )

    with pytest.raises(TypeError):
        exports.g()

    assert called == []


@pytest.mark.parametrize("value", [None, 1, "text", (1, 2), object()], ids=readable)
def test_result_is_ignored_where_none_is_declared(value: object) -> None:
    """HF2."""
    exports = exports_of(
        '(module (import "m" "f" (func $f)) (func (export "g") (call $f)))',
        {"m": {"f": lambda: value}},
    )

    assert exports.g() is None


def test_single_result_is_converted() -> None:
    """HF2."""
    exports = exports_of(
        '(module (import "m" "f" (func $f (param i32) (result i32)))'
        ' (func (export "g") (result i32) (call $f (i32.const -26))))',
        {"m": {"f": lambda value: value + 2**32}},
    )

    assert exports.g() == -26


@pytest.mark.parametrize(
    ("type_", "value", "error"),
    [
        ("i32", 6.0, TypeError),
        ("i32", None, TypeError),
        ("i32", (6,), TypeError),
        ("i64", "6", TypeError),
        ("i64", 2**64, OverflowError),
        ("f64", "6", TypeError),
        ("funcref", len, TypeError),
    ],
)
def test_result_that_does_not_convert_is_raised_to_the_caller(
    type_: str, value: object, error: type[Exception]
) -> None:
    """HF2."""
    exports = exports_of(
        f"""(module (import "m" "f" (func $f (result {type_})))
          (func (export "g") (drop (call $f))))""",
        {"m": {"f": lambda: value}},
    )

    with pytest.raises(error):
        exports.g()


def _generator() -> Iterator[float]:
    yield 2
    yield 7.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: (2, 7.5),
        lambda: [2, 7.5],
        _generator,
        lambda: {2: "a", 7.5: "b"},
        lambda: iter((2, 7.5)),
    ],
    ids=["tuple", "list", "generator", "dict", "iterator"],
)
def test_many_results_may_come_as_any_iterable(make: Callable[[], Any]) -> None:
    """HF3."""
    assert exports_of(TWO_RESULTS, {"m": {"f": make}}).g() == (2, 7.5)


@pytest.mark.parametrize(
    "value",
    [None, 2, (), (2,), (2, 7.5, 1), object()],
    ids=["None", "int", "0", "1", "3", "object"],
)
def test_many_results_of_another_number_are_a_type_error(value: object) -> None:
    """HF3."""
    exports = exports_of(TWO_RESULTS, {"m": {"f": lambda: value}})

    with pytest.raises(TypeError):
        exports.g()


def test_results_are_drained_before_they_are_converted() -> None:
    """HF3."""
    reached: list[str] = []

    def results() -> Iterator[object]:
        yield "no i32"
        yield 1.0
        reached.append("end")

    with pytest.raises(TypeError):
        exports_of(TWO_RESULTS, {"m": {"f": results}}).g()

    assert reached == ["end"]


def test_error_of_the_iterable_is_raised_unchanged() -> None:
    """HF3."""
    error = LookupError("half way")

    def results() -> Iterator[object]:
        yield 1
        raise error

    with pytest.raises(LookupError) as caught:
        exports_of(TWO_RESULTS, {"m": {"f": results}}).g()

    assert caught.value is error


async def test_uncaught_python_exception_is_the_very_same_object() -> None:
    """HF4, EF8."""
    error = KeyError("mine")
    exports = exports_of(CATCH_ALL, {"m": {"f": _raiser(error)}})

    with pytest.raises(KeyError) as direct:
        exports.g()
    with pytest.raises(KeyError) as awaited:
        await exports.g.call_async()

    assert direct.value is error
    assert awaited.value is error


def test_uncaught_python_exception_gets_a_note_of_the_wasm_frames() -> None:
    """HF4."""
    error = ValueError("mine")
    exports = exports_of(
        '(module (import "m" "f" (func $f)) (func $outer (export "g") (call $f)))',
        {"m": {"f": _raiser(error)}},
    )

    with pytest.raises(ValueError, match="mine"):
        exports.g()

    assert any("outer" in note for note in error.__notes__)


@pytest.mark.parametrize("error", [KeyError("k"), RuntimeError("r"), StopIteration(), TypeError()])
def test_catch_all_catches_a_python_exception(error: Exception) -> None:
    """HF5."""
    assert exports_of(CATCH_ALL, {"m": {"f": _raiser(error)}}).catches() == 1


async def test_catch_all_catches_a_python_exception_in_an_awaited_call() -> None:
    """HF5."""
    exports = exports_of(CATCH_ALL, {"m": {"f": _raiser(KeyError())}})

    assert await exports.catches.call_async() == 1


def test_python_exception_is_the_payload_of_the_python_tag() -> None:
    """HF4, JT1."""
    error = KeyError("mine")
    exports = exports_of(CATCH_PYTHON, {"m": {"f": _raiser(error), "tag": aw.PYTHON_TAG}})

    assert exports.catch() is error


def test_rethrown_python_exception_is_the_very_same_object() -> None:
    """HF4, EX5."""
    error = KeyError("mine")
    exports = exports_of(CATCH_PYTHON, {"m": {"f": _raiser(error), "tag": aw.PYTHON_TAG}})

    with pytest.raises(KeyError) as caught:
        exports.rethrow()

    assert caught.value is error


def test_conversion_error_of_a_result_is_an_exception_that_wasm_can_catch() -> None:
    """HF4."""
    exports = exports_of(
        """(module (import "m" "f" (func $f (result i32)))
          (func (export "catches") (result i32)
            (block $caught (drop (try_table (result i32) (catch_all $caught) (call $f)))
              (return (i32.const 0)))
            (i32.const 1)))""",
        {"m": {"f": lambda: "no i32"}},
    )

    assert exports.catches() == 1


def test_wrong_number_of_arguments_is_found_when_called() -> None:
    """RI6."""
    exports = exports_of(
        """(module (import "m" "f" (func $f (param i32)))
          (func (export "g") (call $f (i32.const 1))))""",
        {"m": {"f": lambda: None}},
    )

    with pytest.raises(TypeError):
        exports.g()


class _Stop(BaseException): ...


@pytest.mark.parametrize("error", [_Stop(), KeyboardInterrupt(), SystemExit(3)])
def test_base_exceptions_are_not_catchable_by_the_guest(error: BaseException) -> None:
    """HF5."""
    exports = exports_of(CATCH_ALL, {"m": {"f": _raiser(error)}})

    with pytest.raises(type(error)) as caught:
        exports.catches()

    assert caught.value is error


def test_traps_are_not_catchable_by_the_guest() -> None:
    """HF5."""
    exports = exports_of("""(module (func (export "catches") (result i32)
      (block $caught (try_table (catch_all $caught) unreachable) (return (i32.const 0)))
      (i32.const 1)))""")

    with pytest.raises(aw.Trap):
        exports.catches()


def test_trap_that_passes_through_python_stays_uncatchable() -> None:
    """HF5."""
    trap = exports_of('(module (func (export "trap") unreachable))').trap
    exports = exports_of(CATCH_ALL, {"m": {"f": lambda: trap()}})

    with pytest.raises(aw.Trap) as caught:
        exports.catches()

    assert caught.value.code is aw.TrapCode.UNREACHABLE


def test_stack_overflow_is_not_catchable_by_the_guest() -> None:
    """HF5, ER2."""
    exports = exports_of("""(module (func $deep (call $deep))
      (func (export "catches") (result i32)
        (block $caught (try_table (catch_all $caught) (call $deep)) (return (i32.const 0)))
        (i32.const 1)))""")

    with pytest.raises(aw.StackOverflow):
        exports.catches()


def test_store_stays_usable_after_an_exception_of_an_import() -> None:
    """ST4."""
    errors: list[Exception] = [KeyError("first")]

    def once() -> None:
        if errors:
            raise errors.pop()

    exports = exports_of(CATCH_ALL, {"m": {"f": once}})
    with pytest.raises(KeyError):
        exports.g()

    assert exports.g() is None
    assert exports.catches() == 0


def test_coroutine_of_an_import_that_is_not_suspending_is_a_type_error() -> None:
    """JP12."""
    made: list[Any] = []

    async def answer() -> int:
        return 1

    def plain() -> Any:
        made.append(answer())
        return made[-1]

    exports = exports_of(
        '(module (import "m" "f" (func $f (result i32))) (export "f" (func $f)))',
        {"m": {"f": plain}},
    )

    with pytest.raises(TypeError):
        exports.f()

    assert inspect.getcoroutinestate(made[0]) == inspect.CORO_CLOSED

"""`WasmException`: payload, tags, identity, and the host's exceptions in wasm."""

from __future__ import annotations

from typing import Any

import pytest

import asyncwasm as aw

from .helpers import ADDRESS_ERRORS, NOT_AN_INTEGER, exports_of, readable

THROW = """(module (tag $t (export "t") (param externref))
  (func (export "f") (param externref) (throw $t (local.get 0))))"""
# The import throws what the test wants; the exports catch it in each of the four ways.
CATCHES = """(module
  (import "m" "f" (func $f)) (import "m" "t" (tag $t (param i32)))
  (func (export "all_clauses") (result i32)
    (block $all_ref (result exnref)
      (block $ref (result i32 exnref)
        (block $all
          (block $plain (result i32)
            (try_table (catch $t $plain) (catch_all $all) (catch_ref $t $ref)
              (catch_all_ref $all_ref) (call $f))
            (return (i32.const 0)))
          (return))
        (return (i32.const -1)))
      (return (i32.const -2)))
    (return (i32.const -3)))
  (func (export "catch_ref_rethrow")
    (block $caught (result i32 exnref)
      (try_table (catch_ref $t $caught) (call $f)) (return))
    (throw_ref))
  (func (export "catch_all_ref_rethrow")
    (block $caught (result exnref)
      (try_table (catch_all_ref $caught) (call $f)) (return))
    (throw_ref))
  (func (export "catch_throw_again")
    (block $caught (result i32)
      (try_table (catch $t $caught) (call $f)) (return))
    (throw $t)))"""
PYTHON = """(module
  (import "m" "t" (tag $t (param externref)))
  (import "m" "f" (func $f (param externref) (result externref)))
  (func (export "throw") (param externref) (throw $t (local.get 0)))
  (func (export "catch") (param externref) (result externref)
    (block $caught (result externref)
      (try_table (result externref) (catch $t $caught) (call $f (local.get 0)))))
  (func (export "catch_ref") (param externref) (result externref)
    (block $caught (result externref exnref)
      (try_table (result externref) (catch_ref $t $caught) (call $f (local.get 0))) (return))
    (drop))
  (func (export "rethrow") (param externref) (result externref)
    (block $caught (result externref exnref)
      (try_table (result externref) (catch_ref $t $caught) (call $f (local.get 0))) (return))
    (throw_ref)))"""

NO_TAGS = [None, False, True, "", "test", 1, {}, object(), aw.Tag]


def _raise(error: Any) -> Any:
    raise error


def _python() -> Any:
    return exports_of(PYTHON, {"m": {"t": aw.PYTHON_TAG, "f": _raise}})


def test_exception_knows_its_tag_and_its_payload() -> None:
    """EX1."""
    tag = aw.Tag(["i32", "externref"])
    value = object()

    error = aw.WasmException(tag, [42, value])

    assert error.tag is tag
    assert list(error.payload) == [42, value]
    assert isinstance(error, aw.WasmError)


@pytest.mark.parametrize("tag", NO_TAGS, ids=readable)
def test_tag_must_be_a_tag(tag: Any) -> None:
    """EX1."""
    with pytest.raises(TypeError):
        aw.WasmException(tag, [])


def test_tag_and_payload_are_required() -> None:
    """EX1."""
    error: Any = aw.WasmException

    with pytest.raises(TypeError):
        error()
    with pytest.raises(TypeError):
        error(aw.Tag([]))


@pytest.mark.parametrize("payload", [[], [1], [1, 2, 3]], ids=len)
def test_payload_of_another_length_is_a_type_error(payload: list[int]) -> None:
    """EX1."""
    with pytest.raises(TypeError):
        aw.WasmException(aw.Tag(["i32", "i32"]), payload)


@pytest.mark.parametrize("payload", [None, 1, object()], ids=readable)
def test_payload_must_be_a_sequence(payload: Any) -> None:
    """EX1."""
    with pytest.raises(TypeError):
        aw.WasmException(aw.Tag([]), payload)


@pytest.mark.parametrize(
    ("type_", "given", "expected"),
    [("i32", 2**32 - 1, -1), ("f32", 0.1, 0.10000000149011612), ("f64", 1, 1.0)],
)
def test_payload_is_converted(type_: str, given: Any, expected: Any) -> None:
    """EX1."""
    error = aw.WasmException(aw.Tag([type_]), [given])

    assert list(error.payload) == [expected]


def test_exnref_in_a_tag_cannot_be_a_payload() -> None:
    """EX1, EX2."""
    with pytest.raises(TypeError):
        aw.WasmException(aw.Tag(["exnref"]), [None])


def test_get_arg_gives_the_value() -> None:
    """EX2."""
    tag = aw.Tag(["i32", "f64"])
    error = aw.WasmException(tag, [42, 0.5])

    assert [error.get_arg(tag, 0), error.get_arg(tag, 1)] == [42, 0.5]


@pytest.mark.parametrize("tag", NO_TAGS, ids=readable)
def test_get_arg_wants_a_tag(tag: Any) -> None:
    """EX2."""
    with pytest.raises(TypeError):
        aw.WasmException(aw.Tag([]), []).get_arg(tag, 0)


def test_get_arg_with_another_tag_is_a_type_error() -> None:
    """EX2."""
    error = aw.WasmException(aw.Tag(["i32"]), [42])

    with pytest.raises(TypeError):
        error.get_arg(aw.Tag(["i32"]), 0)


@pytest.mark.parametrize("index", [1, 2, 2**32 - 1])
def test_get_arg_beyond_the_end_is_a_range_error(index: int) -> None:
    """EX2."""
    tag = aw.Tag(["i32"])
    error = aw.WasmException(tag, [42])

    with pytest.raises(aw.RangeError):
        error.get_arg(tag, index)


@pytest.mark.parametrize("index", NOT_AN_INTEGER, ids=readable)
def test_get_arg_wants_an_integer(index: Any) -> None:
    """EX2."""
    tag = aw.Tag(["i32"])

    with pytest.raises(TypeError):
        aw.WasmException(tag, [42]).get_arg(tag, index)


@pytest.mark.parametrize("index", [-1, 2**32, 2**64])
def test_get_arg_index_that_is_no_u32_is_refused(index: int) -> None:
    """EX2."""
    tag = aw.Tag(["i32"])

    with pytest.raises(ADDRESS_ERRORS):
        aw.WasmException(tag, [42]).get_arg(tag, index)


@pytest.mark.parametrize("arguments", [(), (aw.Tag,)], ids=len)
def test_get_arg_needs_both_arguments(arguments: tuple[Any, ...]) -> None:
    """EX2."""
    error: Any = aw.WasmException(aw.Tag([]), [])

    with pytest.raises(TypeError):
        error.get_arg(*arguments)


def test_is_tag_compares_identities() -> None:
    """EX3."""
    tag, other = aw.Tag(["i32"]), aw.Tag(["i32"])
    error = aw.WasmException(tag, [42])

    assert error.is_tag(tag) is True
    assert error.is_tag(other) is False


@pytest.mark.parametrize("tag", NO_TAGS, ids=readable)
def test_is_tag_wants_a_tag(tag: Any) -> None:
    """EX3."""
    with pytest.raises(TypeError):
        aw.WasmException(aw.Tag([]), []).is_tag(tag)


VALUES = [None, True, "test", 0, 4.2, {}, object(), len, KeyError("k")]


@pytest.mark.parametrize("value", VALUES, ids=readable)
def test_wasm_throws_any_externref(value: Any) -> None:
    """EF8, EX2."""
    exports = exports_of(THROW)

    with pytest.raises(aw.WasmException) as caught:
        exports.f(value)

    assert caught.value.is_tag(exports.t)
    assert caught.value.get_arg(exports.t, 0) is value


def test_wasm_throws_a_null_function_and_an_integer() -> None:
    """EF8."""
    exports = exports_of("""(module (tag $t (export "t") (param funcref i32))
      (func (export "f") (throw $t (ref.null func) (i32.const 7))))""")

    with pytest.raises(aw.WasmException) as caught:
        exports.f()

    assert list(caught.value.payload) == [None, 7]


def test_tag_that_is_not_exported_still_makes_an_exception() -> None:
    """EF8."""
    exports = exports_of(
        '(module (tag $t (param i32)) (func (export "f") (throw $t (i32.const 7))))'
    )

    with pytest.raises(aw.WasmException) as caught:
        exports.f()

    assert caught.value.get_arg(caught.value.tag, 0) == 7
    assert caught.value.tag.type == aw.TagType(["i32"])


def _catches(error: Any, tag: aw.Tag) -> Any:
    return exports_of(CATCHES, {"m": {"f": lambda: _raise(error), "t": tag}})


def test_wasm_catches_the_hosts_wasm_exception_with_the_first_matching_clause() -> None:
    """HF4, EX1."""
    tag = aw.Tag(["i32"])

    assert _catches(aw.WasmException(tag, [42]), tag).all_clauses() == 42


def test_exception_with_another_tag_goes_to_catch_all() -> None:
    """HF4."""
    error = aw.WasmException(aw.Tag(["i32"]), [42])

    assert _catches(error, aw.Tag(["i32"])).all_clauses() == -1


@pytest.mark.parametrize("name", ["catch_ref_rethrow", "catch_all_ref_rethrow"])
def test_rethrown_wasm_exception_is_the_identical_object(name: str) -> None:
    """EX5."""
    tag = aw.Tag(["i32"])
    error = aw.WasmException(tag, [42])

    with pytest.raises(aw.WasmException) as caught:
        _catches(error, tag)[name]()

    assert caught.value is error


def test_exception_of_wasm_that_comes_back_twice_is_the_identical_object() -> None:
    """EX5."""
    thrower = exports_of("""(module (tag $t (export "t") (param i32))
      (func (export "f") (throw $t (i32.const 5))))""")
    seen: list[aw.WasmException] = []

    def watch() -> None:
        try:
            thrower.f()
        except aw.WasmException as error:
            seen.append(error)
            raise

    exports = exports_of(CATCHES, {"m": {"f": watch, "t": thrower.t}})

    with pytest.raises(aw.WasmException) as caught:
        exports.catch_all_ref_rethrow()

    assert caught.value is seen[0]


def test_payload_thrown_again_is_a_new_exception() -> None:
    """EX5."""
    tag = aw.Tag(["i32"])
    error = aw.WasmException(tag, [42])

    with pytest.raises(aw.WasmException) as caught:
        _catches(error, tag).catch_throw_again()

    assert caught.value is not error
    assert caught.value.get_arg(tag, 0) == 42


def test_exception_has_the_traceback_of_every_python_exception() -> None:
    """EX4, where Python differs."""
    tag = aw.Tag(["i32"])

    with pytest.raises(aw.WasmException) as caught:
        _catches(aw.WasmException(tag, [42]), tag).catch_throw_again()

    assert caught.value.__traceback__ is not None


def test_exceptions_are_equal_only_to_themselves() -> None:
    """EX5."""
    tag = aw.Tag(["i32"])

    assert aw.WasmException(tag, [42]) != aw.WasmException(tag, [42])


@pytest.mark.parametrize("name", ["catch", "catch_ref"])
def test_python_exception_is_caught_by_the_python_tag(name: str) -> None:
    """JT1."""
    error = KeyError("mine")

    assert _python()[name](error) is error


def test_python_exception_rethrown_by_wasm_is_the_identical_object() -> None:
    """JT1."""
    error = KeyError("mine")

    with pytest.raises(KeyError) as caught:
        _python().rethrow(error)

    assert caught.value is error


@pytest.mark.parametrize("name", ["catch", "catch_ref", "rethrow"])
def test_wasm_exception_of_this_store_passes_the_python_tag_by(name: str) -> None:
    """JT1."""
    error = aw.WasmException(aw.Tag(["externref"]), [None])

    with pytest.raises(aw.WasmException) as caught:
        _python()[name](error)

    assert caught.value is error


def test_wasm_exception_of_another_store_travels_as_a_python_exception() -> None:
    """JT1, ST3."""
    other = exports_of(THROW)
    with pytest.raises(aw.WasmException) as thrown:
        other.f(None)
    error = thrown.value

    assert _python()["catch"](error) is error
    with pytest.raises(aw.WasmException) as caught:
        _python().rethrow(error)
    assert caught.value is error


def test_exception_thrown_by_wasm_with_the_python_tag_is_raised_itself() -> None:
    """JT1."""
    error = KeyError("mine")

    with pytest.raises(KeyError) as caught:
        _python().throw(error)

    assert caught.value is error


@pytest.mark.parametrize("value", [None, 5, "text", KeyError, object()], ids=readable)
def test_other_value_thrown_with_the_python_tag_is_a_wasm_exception(value: Any) -> None:
    """JT1."""
    with pytest.raises(aw.WasmException) as caught:
        _python().throw(value)

    assert caught.value.tag is aw.PYTHON_TAG
    assert len(caught.value.payload) == 1
    assert caught.value.payload[0] is value


async def test_awaited_call_raises_the_same_exceptions() -> None:
    """EF8, JP6."""
    tag = aw.Tag(["i32"])
    error = aw.WasmException(tag, [42])

    with pytest.raises(aw.WasmException) as caught:
        await _catches(error, tag).catch_all_ref_rethrow.call_async()

    assert caught.value is error

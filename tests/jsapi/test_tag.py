"""`Tag`: parameters, identity, and `PYTHON_TAG`."""

from __future__ import annotations

from typing import Any

import pytest

import asyncwasm as aw

from .helpers import exports_of, readable


@pytest.mark.parametrize(
    "parameters", [[], ["i32"], ("i64", "f64"), ["externref", "anyfunc", "v128"]], ids=str
)
def test_tag_knows_its_parameters(parameters: Any) -> None:
    """TG1."""
    assert aw.Tag(parameters).type == aw.TagType(parameters)


def test_tag_may_be_made_from_a_tag_type() -> None:
    """TG1."""
    tag_type: Any = aw.TagType(["i32"])

    assert aw.Tag(tag_type).type == tag_type


def test_parameters_are_required() -> None:
    """TG1."""
    tag: Any = aw.Tag

    with pytest.raises(TypeError):
        tag()


@pytest.mark.parametrize("value", [None, False, True, "", "i32", b"i32", 1, object()], ids=readable)
def test_parameters_must_be_a_sequence_of_types(value: Any) -> None:
    """TG1."""
    with pytest.raises(TypeError):
        aw.Tag(value)


@pytest.mark.parametrize("name", ["i16", "i128", "f16", "f128", "u32", "u64", "i32\0", 1, None])
def test_unknown_parameter_type_is_a_type_error(name: Any) -> None:
    """TG1."""
    with pytest.raises(TypeError):
        aw.Tag([name])


def test_each_tag_is_a_new_identity() -> None:
    """TG1."""
    first, second = aw.Tag(["i32"]), aw.Tag(["i32"])

    assert first != second
    assert first == first


def test_wasm_catches_by_identity_and_not_by_structure() -> None:
    """TG1."""
    tag, other = aw.Tag(["i32"]), aw.Tag(["i32"])
    thrown: list[aw.WasmException] = []

    def throw() -> None:
        raise thrown[0]

    catch = exports_of(
        """(module (import "m" "tag" (tag $tag (param i32))) (import "m" "f" (func $f))
          (func (export "catch") (result i32)
            (block $caught (result i32)
              (try_table (catch $tag $caught) (call $f)) (return (i32.const 0)))))""",
        {"m": {"tag": tag, "f": throw}},
    ).catch

    thrown[:] = [aw.WasmException(tag, [7])]
    caught = catch()
    thrown[:] = [aw.WasmException(other, [7])]

    assert caught == 7
    with pytest.raises(aw.WasmException) as passed:
        catch()
    assert passed.value is thrown[0]


def test_two_instances_of_one_module_have_different_tags() -> None:
    """TG1."""
    text = '(module (tag (export "t") (param i32)))'

    assert exports_of(text).t is not exports_of(text).t


def test_exported_tag_is_a_tag_with_its_type() -> None:
    """TG1."""
    tag = exports_of('(module (tag (export "t") (param i32 f64)))').t

    assert type(tag) is aw.Tag
    assert tag.type == aw.TagType(["i32", "f64"])


def test_exception_thrown_by_one_instance_is_caught_by_another() -> None:
    """TG1."""
    thrower = exports_of("""(module (tag $t (export "t") (param i32))
      (func (export "f") (throw $t (i32.const 5))))""")
    catcher = exports_of(
        """(module (import "m" "t" (tag $t (param i32))) (import "m" "f" (func $f))
          (func (export "catch") (result i32)
            (block $caught (result i32)
              (try_table (catch $t $caught) (call $f)) (return (i32.const 0)))))""",
        {"m": thrower},
    )

    assert catcher.catch() == 5


def test_python_tag_is_the_same_each_time_and_carries_one_externref() -> None:
    """JT1."""
    assert aw.PYTHON_TAG is aw.PYTHON_TAG
    assert aw.PYTHON_TAG.type == aw.TagType(["externref"])


def test_python_tag_is_exported_as_itself_from_every_store() -> None:
    """JT1, ST2."""
    text = '(module (import "m" "t" (tag $t (param externref))) (export "t" (tag $t)))'
    imports = {"m": {"t": aw.PYTHON_TAG}}

    assert exports_of(text, imports).t is aw.PYTHON_TAG
    assert exports_of(text, imports).t is aw.PYTHON_TAG


def test_repr_names_the_class() -> None:
    """ME11."""
    assert "Tag" in repr(aw.Tag([]))

"""`Instance`: its exports object, instantiation proper, identities and stores."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import anyio
import pytest

import asyncwasm as aw

from .helpers import EMPTY, Way, compiled, exports_of, in_every_way, instance_of, readable

ADD = """(module (func (export "add") (param i32 i32) (result i32)
  (i32.add (local.get 0) (local.get 1))))"""
ONE_OF_EACH = """(module
  (func (export "f") (param f64))
  (table (export "t") 1 funcref)
  (global (export "g") i32 (i32.const 1))
  (memory (export "m") 4 8)
  (tag (export "e") (param i32)))"""
RE_EXPORT = """(module
  (import "m" "f" (func $f (param f64))) (export "f" (func $f))
  (import "m" "t" (table $t 1 funcref)) (export "t" (table $t))
  (import "m" "g" (global $g i32)) (export "g" (global $g))
  (import "m" "m" (memory $m 4)) (export "m" (memory $m))
  (import "m" "e" (tag $e (param i32))) (export "e" (tag $e)))"""


def test_constructor_instantiates_synchronously() -> None:
    """IS1."""
    instance = aw.Instance(compiled(ADD))

    assert instance.exports.add(1, 2) == 3


def test_instance_knows_its_module_and_its_store() -> None:
    """IS1."""
    module = compiled(ADD)

    instance = aw.Instance(module)

    assert instance.module is module
    assert isinstance(instance.store, aw.Store)


@pytest.mark.parametrize("value", [None, True, "", 1, {}, EMPTY, aw.Module], ids=readable)
def test_something_else_than_a_module_is_a_type_error(value: Any) -> None:
    """IS2."""
    with pytest.raises(TypeError):
        aw.Instance(value)


def test_module_is_required() -> None:
    """IS2."""
    instance: Any = aw.Instance

    with pytest.raises(TypeError):
        instance()


def test_exports_is_the_same_object_each_time() -> None:
    """IS3."""
    instance = instance_of(ADD)

    assert instance.exports is instance.exports


def test_exports_attribute_is_read_only() -> None:
    """IS3."""
    instance: Any = instance_of(ADD)
    before = instance.exports

    with pytest.raises(AttributeError):
        instance.exports = {}

    assert instance.exports is before


def test_exports_is_a_mapping_in_declaration_order() -> None:
    """IS4, IS6."""
    exports = exports_of('(module (func (export "b")) (func (export "2")) (func (export "1")))')

    assert isinstance(exports, Mapping)
    assert list(exports) == ["b", "2", "1"]
    assert len(exports) == 3
    assert list(exports.values()) == [exports[name] for name in exports]
    assert ("b" in exports, "a" in exports) == (True, False)


def test_export_is_found_by_name_and_by_attribute() -> None:
    """IS4."""
    exports = exports_of(ADD)

    assert exports["add"] is exports.add


def test_missing_export_is_a_key_error_and_no_attribute() -> None:
    """IS4."""
    exports = exports_of(ADD)

    with pytest.raises(KeyError):
        exports["sub"]
    assert not hasattr(exports, "sub")
    assert exports.get("sub") is None


@pytest.mark.parametrize("name", ["keys", "get", "items", "values", "__class__", "__len__"])
def test_name_that_the_mapping_uses_is_found_by_index_only(name: str) -> None:
    """IS4."""
    exports = exports_of(f'(module (func (export "{name}") (result i32) (i32.const 5)))')

    assert exports[name]() == 5
    assert getattr(exports, name) is not exports[name]
    assert list(exports.keys()) == [name]


@pytest.mark.parametrize("name", ["class", "import", "None", "a.b", "a-b", " ", "\u00e9t\u00e9"])
def test_any_other_name_works_through_getattr(name: str) -> None:
    """IS4."""
    exports = exports_of(f'(module (func (export "{name}") (result i32) (i32.const 5)))')

    assert getattr(exports, name)() == 5
    assert getattr(exports, name) is exports[name]


@pytest.mark.parametrize("name", ["add", "new"])
def test_exports_cannot_be_changed(name: str) -> None:
    """IS4."""
    exports = exports_of(ADD)
    errors = (TypeError, AttributeError)

    with pytest.raises(errors):
        setattr(exports, name, 1)
    with pytest.raises(errors):
        delattr(exports, name)
    with pytest.raises(errors):
        exports[name] = 1
    with pytest.raises(errors):
        del exports[name]

    assert list(exports) == ["add"]


def test_exports_outlive_their_instance() -> None:
    """IS5."""
    add = exports_of(ADD).add
    gc.collect()

    assert add(20, 22) == 42


def test_same_export_is_the_same_object() -> None:
    """ST2, IS5."""
    exports = exports_of(ONE_OF_EACH)

    assert all(exports[name] is exports[name] for name in exports)


@in_every_way
async def test_imported_object_is_exported_as_itself(way: Way) -> None:
    """ST2."""
    exports = (await way(aw.wat2wasm(ONE_OF_EACH))).exports

    again = (await way(aw.wat2wasm(RE_EXPORT), {"m": exports})).exports

    assert {name: again[name] is exports[name] for name in "ftgme"} == dict.fromkeys("ftgme", True)


@in_every_way
async def test_host_made_object_is_exported_as_itself(way: Way) -> None:
    """ST1, ST2."""
    part: dict[str, Any] = {
        "f": aw.Function(aw.FunctionType(["f64"], []), lambda value: None),
        "t": aw.Table("funcref", 1),
        "g": aw.Global("i32", 1),
        "m": aw.Memory(4),
        "e": aw.Tag(["i32"]),
    }

    exports = (await way(aw.wat2wasm(RE_EXPORT), {"m": part})).exports

    assert {name: exports[name] is part[name] for name in part} == dict.fromkeys(part, True)


def test_one_thing_exported_twice_is_one_object() -> None:
    """ST2, EF3."""
    exports = exports_of("""(module
      (func $f) (export "f1" (func $f)) (export "f2" (func $f))
      (global $g i32 (i32.const 1)) (export "g1" (global $g)) (export "g2" (global $g))
      (memory $m 1) (export "m1" (memory $m)) (export "m2" (memory $m))
      (table $t 1 funcref) (export "t1" (table $t)) (export "t2" (table $t))
      (tag $e) (export "e1" (tag $e)) (export "e2" (tag $e)))""")

    assert all(exports[f"{name}1"] is exports[f"{name}2"] for name in "fgmte")


def test_two_instances_export_different_objects() -> None:
    """ST2."""
    module = compiled(ONE_OF_EACH)

    first, second = aw.Instance(module).exports, aw.Instance(module).exports

    assert all(first[name] is not second[name] for name in first)


def test_host_made_objects_can_be_shared_by_later_instances() -> None:
    """ST1."""
    memory = aw.Memory(1)
    text = """(module (import "m" "m" (memory 1))
      (func (export "read") (result i32) (i32.load8_u (i32.const 0)))
      (func (export "write") (param i32) (i32.store8 (i32.const 0) (local.get 0))))"""
    first, second = exports_of(text, {"m": {"m": memory}}), exports_of(text, {"m": {"m": memory}})

    first.write(7)

    assert second.read() == 7
    assert memory.read(0, 1) == b"\x07"


def test_instance_joins_the_store_of_its_imports() -> None:
    """ST1."""
    first = instance_of(ONE_OF_EACH)

    second = instance_of(RE_EXPORT, {"m": first.exports})

    assert second.store is first.store


def test_instances_have_stores_of_their_own() -> None:
    """ST3, where Python differs: each instantiation makes a store."""
    module = compiled(ADD)

    assert aw.Instance(module).store is not aw.Instance(module).store


TWO_MEMORIES = '(module (import "a" "m" (memory 1)) (import "b" "m" (memory 1)))'
OWN_MEMORY = '(module (memory (export "m") 1))'


@in_every_way
async def test_imports_from_two_stores_are_a_link_error_that_names_the_remedy(way: Way) -> None:
    """ST3."""
    imports = {"a": exports_of(OWN_MEMORY), "b": exports_of(OWN_MEMORY)}

    with pytest.raises(aw.LinkError, match="Store") as caught:
        await way(aw.wat2wasm(TWO_MEMORIES), imports)

    assert "store" in str(caught.value)


@in_every_way
async def test_everything_made_inside_a_store_shares_it(way: Way) -> None:
    """ST1."""
    with aw.Store() as store:
        imports = {
            "a": (await way(aw.wat2wasm(OWN_MEMORY))).exports,
            "b": (await way(aw.wat2wasm(OWN_MEMORY))).exports,
        }
        instance = await way(aw.wat2wasm(TWO_MEMORIES), imports)

        assert instance.store is store


def test_store_argument_decides_where_the_instance_lives() -> None:
    """ST1."""
    store = aw.Store()

    instance = instance_of(ADD, store=store)

    assert instance.store is store
    store.close()


@in_every_way
async def test_active_segment_out_of_bounds_traps_and_earlier_ones_stay(way: Way) -> None:
    """IC1, IC2."""
    memory = aw.Memory(1)
    text = """(module (import "m" "m" (memory 1))
      (data (i32.const 0) "first") (data (i32.const 65535) "second"))"""

    with pytest.raises(aw.Trap) as caught:
        await way(aw.wat2wasm(text), {"m": {"m": memory}})

    assert caught.value.code is aw.TrapCode.MEMORY_OUT_OF_BOUNDS
    assert memory.read(0, 5) == b"first"


@in_every_way
async def test_active_element_segment_out_of_bounds_traps(way: Way) -> None:
    """IC2."""
    text = "(module (func $f) (table 1 funcref) (elem (i32.const 1) $f))"

    with pytest.raises(aw.Trap) as caught:
        await way(aw.wat2wasm(text))

    assert caught.value.code is aw.TrapCode.TABLE_OUT_OF_BOUNDS


@in_every_way
async def test_trap_in_the_start_function_is_raised(way: Way) -> None:
    """IC3."""
    with pytest.raises(aw.Trap) as caught:
        await way(aw.wat2wasm("(module (func $f unreachable) (start $f))"))

    assert caught.value.code is aw.TrapCode.UNREACHABLE


@in_every_way
async def test_python_exception_in_the_start_function_is_raised_unchanged(way: Way) -> None:
    """IC3."""
    error = KeyError("mine")

    def fail() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        await way(aw.wat2wasm('(module (import "m" "f" (func $f)) (start $f))'), {"m": {"f": fail}})

    assert caught.value is error


@in_every_way
async def test_imports_see_what_the_start_function_did(way: Way) -> None:
    """IC4."""
    memory = aw.Memory(1)
    seen: list[bytes] = []
    text = """(module (import "m" "m" (memory 1)) (import "m" "f" (func $f))
      (func $start (i32.store8 (i32.const 0) (i32.const 65)) (call $f)) (start $start))"""

    await way(aw.wat2wasm(text), {"m": {"m": memory, "f": lambda: seen.append(memory.read(0, 1))}})

    assert seen == [b"A"]


def test_use_after_close_is_a_closed_resource_error() -> None:
    instance = instance_of(ADD)
    add = instance.exports.add
    instance.close()

    with pytest.raises(anyio.ClosedResourceError):
        add(1, 2)


async def test_awaited_call_after_close_is_a_closed_resource_error() -> None:
    instance = instance_of(ADD)
    instance.close()

    with pytest.raises(anyio.ClosedResourceError):
        await instance.exports.add.call_async(1, 2)


def test_close_is_idempotent() -> None:
    instance = instance_of(ADD)
    instance.close()

    instance.close()


def test_with_closes_the_instance() -> None:
    with instance_of(ADD) as instance:
        add = instance.exports.add
        result = add(1, 2)

    assert result == 3
    with pytest.raises(anyio.ClosedResourceError):
        add(1, 2)


async def test_async_with_closes_the_instance() -> None:
    async with instance_of(ADD) as instance:
        add = instance.exports.add
        result = await add.call_async(1, 2)

    assert result == 3
    with pytest.raises(anyio.ClosedResourceError):
        add(1, 2)


def test_close_of_an_instance_that_joined_leaves_the_store_open() -> None:
    owner = instance_of(ONE_OF_EACH)
    guest = instance_of(RE_EXPORT, {"m": owner.exports})

    guest.close()

    assert owner.exports.f(1.0) is None

"""`instantiate` and what every way of instantiating has in common."""

from __future__ import annotations

import asyncio
import math
import threading
import types
from typing import Any

import anyio
import pytest

import asyncwasm as aw

from .helpers import EMPTY, PRIMITIVES, Recorder, Way, compiled, in_every_way, readable

FOUR_IMPORTS = """(module
  (import "{0}" "{4}" (func))
  (import "{1}" "{5}" (global i32))
  (import "{2}" "{6}" (memory 0 128))
  (import "{3}" "{7}" (table 0 128 funcref)))"""


def _four_values() -> tuple[Any, int, aw.Memory, aw.Table]:
    return (lambda: None), 0, aw.Memory(64, 128), aw.Table("funcref", 64, 128)


async def test_bytes_give_the_module_and_the_instance() -> None:
    """IN1."""
    result = await aw.instantiate(EMPTY)

    assert type(result) is aw.Instantiated
    assert type(result.module) is aw.Module
    assert type(result.instance) is aw.Instance
    assert result == (result.module, result.instance)


async def test_instance_from_bytes_knows_its_module() -> None:
    """IN1."""
    module, instance = await aw.instantiate(EMPTY)

    assert instance.module is module


async def test_module_gives_the_instance_only() -> None:
    """IN2, IN8."""
    module = aw.Module(EMPTY)

    instance = await aw.instantiate(module)

    assert type(instance) is aw.Instance
    assert instance.module is module


@pytest.mark.parametrize(
    "options",
    [{"builtins": ["js-string"]}, {"imported_string_constants": "strings"}],
    ids=["builtins", "imported_string_constants"],
)
async def test_compile_options_with_a_module_are_a_type_error(options: dict[str, Any]) -> None:
    """IN2."""
    module: Any = aw.Module(EMPTY)

    with pytest.raises(TypeError):
        await aw.instantiate(module, None, **options)


async def test_bytes_read_their_imports_after_compilation() -> None:
    """IN3."""
    order: list[str] = []
    imports = Recorder(order, {"m": Recorder(order, {"g": 0})})
    wasm = aw.wat2wasm('(module (import "m" "g" (global i32)))')

    coroutine = aw.instantiate(wasm, imports)
    read_at_the_call = list(order)
    await coroutine

    assert read_at_the_call == []
    assert order == ["m", "g"]


async def test_module_reads_its_imports_at_the_call() -> None:
    """IN4."""
    order: list[str] = []
    imports = Recorder(order, {"m": Recorder(order, {"g": 0})})
    module = compiled('(module (import "m" "g" (global i32)))')

    coroutine = aw.instantiate(module, imports)
    read_at_the_call = list(order)
    await coroutine

    assert read_at_the_call == ["m", "g"]
    assert order == ["m", "g"]


async def test_imports_changed_after_the_call_do_not_reach_a_module() -> None:
    """IN4."""
    module = compiled('(module (import "m" "g" (global $g i32)) (export "g" (global $g)))')
    imports = {"m": {"g": 1}}

    coroutine = aw.instantiate(module, imports)
    imports["m"]["g"] = 2
    instance = await coroutine

    assert instance.exports.g.value == 1


@in_every_way
async def test_error_while_reading_an_import_is_raised_unchanged(way: Way) -> None:
    """IN5."""
    error = LookupError("no")

    class Imports:
        @property
        def m(self) -> object:
            raise error

    with pytest.raises(LookupError) as caught:
        await way(aw.wat2wasm('(module (import "m" "f" (func)))'), Imports())

    assert caught.value is error


async def test_start_function_runs_when_awaited_and_on_the_loops_thread() -> None:
    """IN6."""
    threads: list[int] = []
    module = compiled('(module (import "m" "f" (func $f)) (start $f))')

    coroutine = aw.instantiate(module, {"m": {"f": lambda: threads.append(threading.get_ident())}})
    run_at_the_call = list(threads)
    await coroutine

    assert run_at_the_call == []
    assert threads == [threading.get_ident()]


@pytest.mark.parametrize("source", [bytes, aw.Module], ids=readable)
async def test_stray_argument_is_a_type_error(source: Any) -> None:
    """IN7."""
    instantiate: Any = aw.instantiate

    with pytest.raises(TypeError):
        await instantiate(source(EMPTY), {}, {})


@in_every_way
@pytest.mark.parametrize("arguments", [(), (None,), ({},)], ids=["omitted", "None", "empty"])
async def test_module_without_imports_needs_no_import_object(
    way: Way, arguments: tuple[Any, ...]
) -> None:
    """IN7, IS2."""
    instance = await way(EMPTY, *arguments)

    assert len(instance.exports) == 0


@in_every_way
@pytest.mark.parametrize("imports", PRIMITIVES, ids=readable)
async def test_import_object_must_be_an_object_even_without_imports(way: Way, imports: Any) -> None:
    """IS2."""
    with pytest.raises(TypeError):
        await way(EMPTY, imports)


async def test_class_of_modules_is_no_module() -> None:
    """IN8."""
    source: Any = aw.Module

    with pytest.raises(TypeError):
        await aw.instantiate(source)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_instantiate_runs_under_both_event_loops(backend: str) -> None:
    """IN1."""
    wasm = aw.wat2wasm('(module (func (export "f") (result i32) (i32.const 3)))')

    async def main() -> Any:
        _, instance = await aw.instantiate(wasm)
        return await instance.exports.f.call_async()

    assert anyio.run(main, backend=backend) == 3


async def test_two_instantiations_of_one_module_share_nothing() -> None:
    module = compiled('(module (global (export "g") (mut i32) (i32.const 1)))')

    first, second = await asyncio.gather(aw.instantiate(module), aw.instantiate(module))
    first.exports.g.value = 5

    assert second.exports.g.value == 1


@in_every_way
async def test_imports_are_read_in_order_and_the_module_part_each_time(way: Way) -> None:
    """Section 1.11: the module part is looked up again for every import."""
    order: list[str] = []
    _, _, memory, _ = _four_values()
    imports = Recorder(
        order,
        {
            "module": Recorder(order, {"global1": 0, "global2": 0, "memory": memory}),
            "module2": Recorder(order, {"global3": 0}),
        },
    )
    text = """(module
      (import "module" "global1" (global i32))
      (import "module2" "global3" (global i32))
      (import "module" "memory" (memory 0 128))
      (import "module" "global2" (global i32)))"""

    await way(aw.wat2wasm(text), imports)

    assert " ".join(order) == ("module global1 module2 global3 module memory module global2")


@in_every_way
async def test_names_that_are_not_imported_are_never_read(way: Way) -> None:
    """Section 1.11."""
    order: list[str] = []
    parts = Recorder(order, {"f": lambda: None, "unused": None})
    imports = Recorder(order, {"m": parts, "unused": None})

    await way(aw.wat2wasm('(module (import "m" "f" (func)))'), imports)

    assert order == ["m", "f"]


@in_every_way
@pytest.mark.parametrize(
    "names",
    [
        ("m", "m", "m", "m", "fn", "global", "memory", "table"),
        ("", "", "", "", "fn", "global", "memory", "table"),
        ("a", "b", "c", "d", "", "", "", ""),
    ],
    ids=["plain", "empty-module-name", "empty-names"],
)
async def test_imports_of_each_kind_are_found_by_name(way: Way, names: tuple[str, ...]) -> None:
    """MO8."""
    imports: dict[str, dict[str, Any]] = {}
    for module, name, value in zip(names[:4], names[4:], _four_values(), strict=True):
        imports.setdefault(module, {})[name] = value

    instance = await way(aw.wat2wasm(FOUR_IMPORTS.format(*names)), imports)

    assert len(instance.exports) == 0


class Environment:
    """An import part whose functions are methods."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def log(self, value: int) -> None:
        self.seen.append(value)


LOG = """(module (import "env" "log" (func $l (param i32)))
  (func (export "f") (call $l (i32.const 7))))"""


@in_every_way
@pytest.mark.parametrize(
    "wrap",
    [lambda part: {"env": part}, lambda part: types.SimpleNamespace(env=part)],
    ids=["mapping", "attributes"],
)
async def test_import_part_may_be_an_object_with_attributes(way: Way, wrap: Any) -> None:
    """RI2, RI15."""
    environment = Environment()

    instance = await way(aw.wat2wasm(LOG), wrap(environment))
    instance.exports.f()

    assert environment.seen == [7]


@in_every_way
async def test_import_part_may_be_a_python_module(way: Way) -> None:
    """RI2."""
    text = (
        '(module (import "math" "sqrt" (func $f (param f64) (result f64))) (export "f" (func $f)))'
    )

    instance = await way(aw.wat2wasm(text), {"math": math})

    assert instance.exports.f(9) == 3.0


@in_every_way
async def test_import_part_may_be_the_exports_of_another_instance(way: Way) -> None:
    """RI2, ST1."""
    first = await way(aw.wat2wasm('(module (func (export "f") (result i32) (i32.const 4)))'))
    text = '(module (import "m" "f" (func $f (result i32))) (export "g" (func $f)))'

    second = await way(aw.wat2wasm(text), {"m": first.exports})

    assert second.exports.g() == 4


@in_every_way
async def test_import_part_may_be_a_function_with_attributes(way: Way) -> None:
    """RI2: a function object counts as an object."""

    def part() -> None: ...

    part.f = lambda: 5  # type: ignore[attr-defined] # that is the point
    text = '(module (import "m" "f" (func $f (result i32))) (export "g" (func $f)))'

    instance = await way(aw.wat2wasm(text), {"m": part})

    assert instance.exports.g() == 5


ALL_KINDS = """(module
  (func (export "fn") (param f64))
  (func (export "fn2"))
  (table (export "table") 1 funcref)
  (global (export "global") (mut i32) (i32.const 7))
  (global (export "global2") (mut f64) (f64.const 1.2))
  (memory (export "memory") 4 8))"""


@in_every_way
async def test_exports_of_each_kind_are_objects_of_their_class(way: Way) -> None:
    """IS5."""
    exports = (await way(aw.wat2wasm(ALL_KINDS))).exports

    assert list(exports) == ["fn", "fn2", "table", "global", "global2", "memory"]
    assert (exports.fn.name, len(exports.fn.type.parameters)) == ("0", 1)
    assert (exports.fn2.name, len(exports.fn2.type.parameters)) == ("1", 0)
    assert [type(value) for value in exports.values()][2:] == [
        aw.Table,
        aw.Global,
        aw.Global,
        aw.Memory,
    ]
    assert len(exports.table) == 1
    assert (exports["global"].value, exports.global2.value) == (7, 1.2)
    assert exports.memory.byte_length == 4 * 65_536


@in_every_way
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('(module (func (export "") (param f64)))', aw.ExportedFunction),
        ('(module (table (export "") 1 funcref))', aw.Table),
        ('(module (global (export "") (mut i32) (i32.const 7)))', aw.Global),
        ('(module (memory (export "") 1))', aw.Memory),
        ('(module (tag (export "")))', aw.Tag),
    ],
    ids=["function", "table", "global", "memory", "tag"],
)
async def test_export_with_an_empty_name_is_found(way: Way, text: str, kind: type) -> None:
    """MO8."""
    exports = (await way(aw.wat2wasm(text))).exports

    assert list(exports) == [""]
    assert isinstance(exports[""], kind)


@in_every_way
@pytest.mark.parametrize(
    ("type_", "given", "seen"),
    [
        ("i32", 102, 102),
        ("i32", 2**32 - 1, -1),
        ("i64", 102, 102),
        ("i64", 2**63, -(2**63)),
        ("f32", 0.5, 0.5),
        ("f64", 3, 3.0),
    ],
)
async def test_plain_number_imports_as_a_constant_global(
    way: Way, type_: str, given: Any, seen: Any
) -> None:
    """RI8."""
    text = f"""(module (import "m" "g" (global $g {type_})) (export "g" (global $g))
      (func (export "read") (result {type_}) (global.get $g)))"""

    exports = (await way(aw.wat2wasm(text), {"m": {"g": given}})).exports

    assert exports.read() == seen
    assert exports.g.value == seen


@in_every_way
@pytest.mark.parametrize("type_", ["i32", "i64"])
async def test_imported_mutable_global_is_shared(way: Way, type_: str) -> None:
    """ST1."""
    value = aw.Global(type_, 102, mutable=True)
    text = f"""(module (import "m" "g" (global $g (mut {type_})))
      (func (export "read") (result {type_}) (global.get $g))
      (func (export "write") (param {type_}) (global.set $g (local.get 0))))"""
    exports = (await way(aw.wat2wasm(text), {"m": {"g": value}})).exports
    before = exports.read()

    value.value = 201
    after = exports.read()
    exports.write(7)

    assert (before, after, value.value) == (102, 201, 7)

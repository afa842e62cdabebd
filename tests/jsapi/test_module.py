"""`Module`: what it says about itself, and that it is a value."""

from __future__ import annotations

import concurrent.futures
import copy
import hashlib
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import asyncwasm as aw

from .helpers import EMPTY, compiled, leb128, readable, section

EXPORTS = """(module
  (func (export "fn"))
  (func (export "fn2") (param i32) (result i64) (i64.const 1))
  (table (export "table") 1 funcref)
  (global (export "global") (mut i32) (i32.const 7))
  (global (export "global2") f64 (f64.const 1.2))
  (memory (export "memory") 0 256)
  (tag (export "tag") (param i32)))"""

IMPORTS = """(module
  (import "{0}" "{4}" (func (param i32)))
  (import "{1}" "{5}" (global i32))
  (import "{2}" "{6}" (memory 0 128))
  (import "{3}" "{7}" (table 0 128 funcref)))"""

NO_MODULES = [None, True, "", 1, {}, object(), aw.Module, EMPTY]
LISTINGS: dict[str, Callable[[Any], Any]] = {
    "exports": lambda module: aw.Module.exports(module),
    "imports": lambda module: aw.Module.imports(module),
    "custom_sections": lambda module: aw.Module.custom_sections(module, ""),
}
in_every_listing = pytest.mark.parametrize("listing", LISTINGS.values(), ids=LISTINGS.keys())


def test_constructor_compiles_synchronously() -> None:
    """MO1."""
    assert aw.Instance(compiled('(module (func (export "f")))')).exports.f() is None


def test_constructor_of_an_invalid_module_raises_compile_error() -> None:
    """MO1."""
    with pytest.raises(aw.CompileError):
        aw.Module(EMPTY + b"\0\0")


def test_module_knows_its_bytes() -> None:
    """MO2."""
    wasm = aw.wat2wasm(EXPORTS)

    module = aw.Module(wasm)

    assert module.byte_length == len(wasm)
    assert module.digest == hashlib.sha256(wasm).hexdigest()
    assert module.tier in ("baseline", "optimized")


@pytest.mark.parametrize("name", ["byte_length", "digest", "tier"])
def test_module_is_immutable(name: str) -> None:
    module: Any = aw.Module(EMPTY)

    with pytest.raises(AttributeError):
        setattr(module, name, 1)


def test_exports_are_listed_in_declaration_order() -> None:
    """MO3."""
    exports = compiled(EXPORTS).exports()

    assert [(export.name, export.kind) for export in exports] == [
        ("fn", "function"),
        ("fn2", "function"),
        ("table", "table"),
        ("global", "global"),
        ("global2", "global"),
        ("memory", "memory"),
        ("tag", "tag"),
    ]


def test_integer_like_names_keep_their_place() -> None:
    """IS4, MO3."""
    module = compiled('(module (func (export "b")) (func (export "2")) (func (export "1")))')

    assert [export.name for export in module.exports()] == ["b", "2", "1"]


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ('(func (export ""))', "function"),
        ('(table (export "") 1 funcref)', "table"),
        ('(global (export "") i32 (i32.const 1))', "global"),
        ('(memory (export "") 1)', "memory"),
        ('(tag (export ""))', "tag"),
    ],
)
def test_export_may_have_an_empty_name(field: str, kind: str) -> None:
    """MO3, MO8."""
    (export,) = compiled(f"(module {field})").exports()

    assert (export.name, export.kind) == ("", kind)


@pytest.mark.parametrize(
    "names",
    [
        ("m", "m", "m", "m", "fn", "global", "memory", "table"),
        ("", "", "", "", "fn", "global", "memory", "table"),
        ("a", "b", "c", "d", "", "", "", ""),
        ("", "", "", "", "", "", "", ""),
    ],
    ids=["plain", "empty-module-name", "empty-names", "all-empty"],
)
def test_imports_are_listed_in_declaration_order(names: tuple[str, ...]) -> None:
    """MO4, MO8."""
    imports = compiled(IMPORTS.format(*names)).imports()

    kinds = ("function", "global", "memory", "table")
    assert [item[:3] for item in imports] == list(zip(names[:4], names[4:], kinds, strict=True))


def test_duplicate_imports_are_all_listed() -> None:
    """MO4."""
    field = '(import "m" "f" (func))'

    assert len(compiled(f"(module {field} {field})").imports()) == 2


def test_imports_that_options_satisfy_are_not_listed() -> None:
    """MO4."""
    text = """(module
      (import "strings" "s" (global externref))
      (import "m" "f" (func))
      (import "wasm:js-string" "length" (func (param externref) (result i32)))
      (import "wasm:js-string" "mine" (func)))"""

    module = compiled(text, builtins=["js-string"], imported_string_constants="strings")

    assert [(item.module, item.name) for item in module.imports()] == [
        ("m", "f"),
        ("wasm:js-string", "mine"),
    ]


@in_every_listing
def test_listing_of_an_empty_module_is_an_empty_list(listing: Callable[[Any], Any]) -> None:
    """MO3, MO4, MO5."""
    assert listing(aw.Module(EMPTY)) == []


@in_every_listing
def test_listing_is_a_fresh_list_each_time(listing: Callable[[Any], Any]) -> None:
    """MO3, MO4, MO5."""
    module = aw.Module(EMPTY)
    listing(module).append("mine")

    assert listing(module) == []


@in_every_listing
@pytest.mark.parametrize("value", NO_MODULES, ids=readable)
def test_listing_of_something_else_is_a_type_error(
    listing: Callable[[Any], Any], value: Any
) -> None:
    """MO3, MO4, MO5."""
    with pytest.raises(TypeError):
        listing(value)


def test_class_and_instance_form_of_a_listing_are_the_same() -> None:
    """MO3, MO4, MO5."""
    module = compiled(EXPORTS)

    assert aw.Module.exports(module) == module.exports()
    assert aw.Module.imports(module) == module.imports()
    assert aw.Module.custom_sections(module, "name") == module.custom_sections("name")


def test_descriptors_are_named_tuples() -> None:
    """MO3, MO4."""
    text = '(module (import "m" "f" (func)) (func (export "g")))'

    ((export,), (item,)) = compiled(text).exports(), compiled(text).imports()

    assert export == aw.ExportDescriptor("g", "function", aw.FunctionType((), ()))
    assert item == aw.ImportDescriptor("m", "f", "function", aw.FunctionType((), ()))


def _custom(name: str, payload: bytes) -> bytes:
    encoded = name.encode("utf-8")
    return section(0, leb128(len(encoded)) + encoded + payload)


SECTIONS = EMPTY + b"".join(
    [
        _custom("one", b"WebAssembly"),
        _custom("one", b"JSAPI"),
        _custom("two", b""),
        _custom("", b"anonymous"),
        _custom("yee\U00010437eey", b"pair"),
        _custom("na\ufffdme", b"replacement"),
    ]
)


@pytest.mark.parametrize(
    ("name", "payloads"),
    [
        ("one", [b"WebAssembly", b"JSAPI"]),
        ("two", [b""]),
        ("", [b"anonymous"]),
        ("three", []),
        ("\0", []),
        ("one\0", []),
        ("ONE", []),
        ("yee\U00010437eey", [b"pair"]),
        ("yee\ufffdeey", []),
        ("yee\ufffd\ufffdeey", []),
        ("na\ufffdme", [b"replacement"]),
        ("name", []),
        ("na\udc01me", []),
    ],
    ids=ascii,
)
def test_custom_sections_are_found_by_their_exact_name(name: str, payloads: list[bytes]) -> None:
    """MO5."""
    assert aw.Module(SECTIONS).custom_sections(name) == payloads


def test_custom_sections_are_bytes() -> None:
    """MO5."""
    assert [type(payload) for payload in aw.Module(SECTIONS).custom_sections("one")] == [bytes] * 2


def test_custom_sections_between_others_are_found() -> None:
    """MO5."""
    wasm = aw.wat2wasm('(module (memory 1) (@custom "late" (after memory) "x"))')

    assert aw.Module(wasm).custom_sections("late") == [b"x"]


def test_custom_sections_need_a_name() -> None:
    """MO5."""
    module: Any = aw.Module(EMPTY)

    with pytest.raises(TypeError):
        module.custom_sections()


@pytest.mark.parametrize("name", [None, 1, b"name"])
def test_custom_sections_name_must_be_a_str(name: Any) -> None:
    """MO5."""
    with pytest.raises(TypeError):
        aw.Module(EMPTY).custom_sections(name)


@pytest.mark.parametrize(
    "duplicate",
    [lambda module: pickle.loads(pickle.dumps(module)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_copied_module_is_the_same_module(duplicate: Callable[[aw.Module], aw.Module]) -> None:
    """MO6."""
    module = compiled(EXPORTS)

    twin = duplicate(module)

    assert twin.digest == module.digest
    assert twin.exports() == module.exports()
    assert aw.Instance(twin).exports.fn2(1) == 1


def test_pickled_module_keeps_its_options() -> None:
    """MO6."""
    text = '(module (import "strings" "hello" (global $g externref)) (export "g" (global $g)))'
    module = compiled(text, imported_string_constants="strings")

    twin = pickle.loads(pickle.dumps(module))

    assert aw.Instance(twin).exports.g.value == "hello"


def test_pickle_of_a_module_holds_its_bytes_and_no_native_code() -> None:
    """MO6."""
    wasm = aw.wat2wasm(EXPORTS)

    pickled = pickle.dumps(aw.Module(wasm))

    assert wasm in pickled
    assert len(pickled) < len(wasm) + 1_000


def test_module_is_usable_from_another_thread() -> None:
    module = compiled('(module (func (export "f") (result i32) (i32.const 9)))')

    def use() -> Any:
        return len(module.exports()), aw.Instance(module).exports.f()

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        assert executor.submit(use).result() == (1, 9)


class MyModule(aw.Module): ...


class MyInstance(aw.Instance): ...


class MyMemory(aw.Memory): ...


class MyTable(aw.Table): ...


class MyGlobal(aw.Global): ...


@pytest.mark.parametrize(
    "make",
    [
        lambda: MyModule(EMPTY),
        lambda: MyInstance(MyModule(EMPTY)),
        lambda: MyMemory(0, 1),
        lambda: MyTable("funcref", 0),
        lambda: MyGlobal("i32", 0),
    ],
    ids=["Module", "Instance", "Memory", "Table", "Global"],
)
def test_class_can_be_subclassed(make: Callable[[], object]) -> None:
    """MO7."""
    value = make()

    assert type(value).__name__.startswith("My")

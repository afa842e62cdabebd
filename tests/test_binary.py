"""
What a module declares, as `asyncwasm._binary` reads it, against what the text says.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable
from datetime import timedelta

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncwasm._binary import (
    Export,
    Import,
    ModuleInfo,
    custom_sections,
    declared_bytes,
    decode,
    spans_of,
)
from asyncwasm._reader import Field, Indices, SubType
from asyncwasm._types import (
    _ABBREVIATED,
    _NUMERIC,
    FunctionType,
    GlobalType,
    MemoryType,
    TableType,
    TagType,
    ValueType,
)
from asyncwasm._writer import rename_imports

HEADER = b"\0asm\1\0\0\0"
CUSTOM, TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START = range(9)
TAG = 13


def _engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_gc = True
    config.wasm_exceptions = True
    config.wasm_memory64 = True
    config.wasm_multi_memory = True
    config.wasm_threads = True
    config.wasm_function_references = True
    config.wasm_custom_page_sizes = True
    config.shared_memory = True
    return wasmtime.Engine(config)


ENGINE = _engine()
atexit.register(ENGINE.close)  # its finalizer would come too late, and complain


def wasm(text: str) -> bytes:
    """Return the binary of a module that the engine accepts."""
    binary = bytes(wasmtime.wat2wasm(text))
    wasmtime.Module.validate(ENGINE, binary)
    return binary


def number(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded) + bytes([value])


def sized(content: bytes) -> bytes:
    return number(len(content)) + content


def vector(*entries: bytes) -> bytes:
    return number(len(entries)) + b"".join(entries)


def section(id: int, payload: bytes) -> bytes:
    return bytes([id]) + sized(payload)


def custom(name: str, payload: bytes) -> bytes:
    return section(CUSTOM, sized(name.encode()) + payload)


# One of everything.
EVERYTHING = wasm(
    r"""
    (module $everything
      (type $f (func (param i32 i64 f32 f64 v128) (result externref funcref)))
      (type $empty (func))
      (rec
        (type $tree (sub (struct (field (mut (ref null $leaves))) (field i8))))
        (type $leaves (sub final (array (mut (ref $tree))))))
      (type $oak (sub final $tree
        (struct (field (mut (ref null $leaves))) (field i8) (field (mut i16)))))
      (type $payload (func (param i32 externref)))
      (import "env" "f" (func $imported (type $f)))
      (import "env" "f" (func (type $empty)))
      (import "env" "table" (table 1 2 funcref))
      (import "env" "memory" (memory 1 2 shared))
      (import "" "" (global $base i32))
      (import "é" "\u{1f40d}" (global (mut (ref null $tree))))
      (import "env" "tag" (tag (type $payload)))
      (func $start)
      (table $initialized 3 4 (ref func) (ref.func $imported))
      (table $wide i64 5 externref)
      (memory $big i64 6 7)
      (memory $fine 8 9 (pagesize 1))
      (tag $own (param f64))
      (global $sum i32 (i32.add (global.get $base) (i32.mul (i32.const -70000) (i32.const 1))))
      (global $pi f64 (f64.const 3.14159))
      (global $bits v128 (v128.const i64x2 0x0b0b0b0b0b0b0b0b 0x0b0b0b0b0b0b0b0b))
      (global $acorn (ref $oak)
        (struct.new $oak
          (array.new_fixed $leaves 2 (struct.new_default $tree) (struct.new_default $tree))
          (i32.const 11) (i32.const 11)))
      (global $last (mut i64) (i64.sub (i64.const 0x7fffffffffffffff) (i64.const 1)))
      (export "start" (func $start))
      (export "f" (func $imported))
      (export "initialized" (table $initialized))
      (export "wide" (table $wide))
      (export "big" (memory $big))
      (export "fine" (memory $fine))
      (export "own" (tag $own))
      (export "tag" (tag 0))
      (export "base" (global $base))
      (export "acorn" (global $acorn))
      (export "last" (global $last))
      (export "" (memory 0))
      (start $start))
    """
)


def declared(text: str) -> ModuleInfo:
    return decode(wasm(text))


def test_empty_module_declares_nothing() -> None:
    assert decode(HEADER) == ModuleInfo(
        types=(),
        imports=(),
        exports=(),
        start=None,
        imported_functions=0,
        function_types=decode(HEADER).function_types,
        type_section=b"",
        import_section=None,
        name=None,
    )
    assert list(decode(HEADER).function_types) == []


def test_types_are_listed_with_their_recursion_groups() -> None:
    signature = FunctionType(("i32", "i64", "f32", "f64", "v128"), ("externref", "funcref"))
    tree = (Field("(ref null 3)", True), Field("i8", False))

    assert decode(EVERYTHING).types == (
        SubType("func", signature, (), True, (), 0),
        SubType("func", FunctionType(), (), True, (), 1),
        SubType("struct", None, tree, False, (), 2),
        SubType("array", None, (Field("(ref 2)", True),), True, (), 2),
        SubType("struct", None, (*tree, Field("i16", True)), True, (2,), 3),
        SubType("func", FunctionType(("i32", "externref")), (), True, (), 4),
        SubType("func", FunctionType(("f64",)), (), True, (), 5),
    )


def test_imports_keep_order_duplicates_and_names() -> None:
    signature = decode(EVERYTHING).types[0].function
    assert signature is not None

    assert decode(EVERYTHING).imports == (
        Import("env", "f", "function", signature, 0),
        Import("env", "f", "function", FunctionType(), 1),
        Import("env", "table", "table", TableType(ValueType("funcref"), 1, 2), None),
        Import("env", "memory", "memory", MemoryType(1, 2, shared=True), None),
        Import("", "", "global", GlobalType(ValueType("i32")), None),
        Import("é", "\U0001f40d", "global", GlobalType(ValueType("(ref null 2)"), True), None),
        Import("env", "tag", "tag", TagType(("i32", "externref")), 5),
    )


def test_exports_keep_order_and_count_imports_first() -> None:
    info = decode(EVERYTHING)

    assert info.exports == (
        Export("start", "function", 2, FunctionType()),
        Export("f", "function", 0, info.imports[0].type),
        Export("initialized", "table", 1, TableType(ValueType("(ref func)"), 3, 4)),
        Export("wide", "table", 2, TableType(ValueType("externref"), 5, None, "i64")),
        Export("big", "memory", 1, MemoryType(6, 7, address="i64")),
        Export("fine", "memory", 2, MemoryType(8, 9)),
        Export("own", "tag", 1, TagType(("f64",))),
        Export("tag", "tag", 0, TagType(("i32", "externref"))),
        Export("base", "global", 0, GlobalType(ValueType("i32"))),
        Export("acorn", "global", 5, GlobalType(ValueType("(ref 4)"))),
        Export("last", "global", 6, GlobalType(ValueType("i64"), True)),
        Export("", "memory", 0, MemoryType(1, 2, shared=True)),
    )
    assert info.exports[1].index == 0


def test_start_name_and_function_types_are_read() -> None:
    info = decode(EVERYTHING)

    assert info.start == 2
    assert info.name == "everything"
    assert info.imported_functions == 2
    assert list(info.function_types) == [0, 1, 1]


def test_type_section_is_kept_verbatim() -> None:
    """A count may be written with more bytes than it needs, and comparing needs the very bytes."""
    payload = b"\x81\0\x60\0\0"

    info = decode(HEADER + section(TYPE, payload))

    assert info.type_section == payload
    assert info.types == (SubType("func", FunctionType(), (), True, (), 0),)


def test_import_section_is_located_with_its_header() -> None:
    imports = section(IMPORT, vector(sized(b"m") + sized(b"n") + b"\x02\0\1"))
    binary = HEADER + custom("first", b"") + imports + custom("last", b"")

    located = decode(binary).import_section

    assert located is not None
    assert binary[slice(*located)] == imports


@pytest.mark.parametrize(
    "name",
    [
        *_NUMERIC,
        *_ABBREVIATED,
        *(f"(ref {heap})" for heap in _ABBREVIATED.values()),
        *("(ref 0)", "(ref null 0)", "(ref null 99)"),
    ],
)
def test_every_value_type_is_named_as_in_the_text_format(name: str) -> None:
    types = "(type (struct))" * 99 + "(type (func))"

    info = declared(f'(module {types} (import "" "" (func (param {name} i32) (result {name}))))')

    assert info.imports[0].type == FunctionType((name, "i32"), (name,))


def test_type_indices_above_one_byte_are_read() -> None:
    """As a signed number, 64 takes two bytes."""
    types = "(type (func))" * 20_000

    info = declared(f"""(module {types}
      (import "" "" (func (param (ref 63) (ref 64) (ref null 8191) (ref 8192) (ref 19999))))
      (func (type 127)) (func (type 128)) (func (type 16384)) (func (type 0)))""")

    assert info.imports[0].type == FunctionType(
        ("(ref 63)", "(ref 64)", "(ref null 8191)", "(ref 8192)", "(ref 19999)")
    )
    assert list(info.function_types) == [20_000, 127, 128, 16_384, 0]


def encoded(number: int, padding: int) -> bytes:
    """Return *number* in LEB128, with up to *padding* bytes that it does not need."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    for _ in range(min(padding, 5 - len(out))):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


@given(
    st.lists(
        st.tuples(st.integers(0, 2**32 - 1) | st.integers(0, 300), st.integers(0, 4)), max_size=800
    ),
    st.lists(st.integers(0, 99), max_size=2),
)
def test_indices_are_what_was_encoded(numbers: list[tuple[int, int]], imported: list[int]) -> None:
    body = b"".join(encoded(*each) for each in numbers)
    wanted = imported + [number for number, _ in numbers]

    indices = Indices(imported, body, len(numbers))

    assert len(indices) == len(wanted)
    assert list(indices) == wanted
    assert [indices[at] for at in range(len(wanted))] == wanted
    assert indices[-1:] == wanted[-1:]
    with pytest.raises(IndexError):
        indices[len(wanted)]
    with pytest.raises(ValueError, match="indices"):
        Indices(imported, body, len(numbers) + 1)


def test_equal_types_are_one_object() -> None:
    info = declared("""(module
      (type (func (param i32))) (type (func (param i32)))
      (func (export "a") (type 0)) (func (export "b") (type 1)))""")

    assert info.types[0].function is info.types[1].function
    assert info.exports[0].type is info.exports[1].type


@pytest.mark.parametrize(
    "limits, expected",
    [
        ("0", MemoryType(0)),
        ("65535 65536", MemoryType(65_535, 65_536)),
        ("1 1 shared", MemoryType(1, 1, shared=True)),
        ("i64 0x800000000000 0x1000000000000", MemoryType(2**47, 2**48, address="i64")),
        ("i64 1 2 shared", MemoryType(1, 2, shared=True, address="i64")),
        ("1 (pagesize 1)", MemoryType(1)),
        ("i64 3 4 (pagesize 65536)", MemoryType(3, 4, address="i64")),
    ],
)
def test_memory_limits(limits: str, expected: MemoryType) -> None:
    info = declared(f'(module (import "" "m" (memory {limits})) (memory (export "m") {limits}))')

    assert info.imports[0].type == info.exports[0].type == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0 funcref", TableType(ValueType("funcref"), 0)),
        ("1 0xffffffff externref", TableType(ValueType("externref"), 1, 2**32 - 1)),
        ("i64 1 0xffffffffffffffff anyref", TableType(ValueType("anyref"), 1, 2**64 - 1, "i64")),
    ],
)
def test_table_limits(text: str, expected: TableType) -> None:
    info = declared(f'(module (import "" "t" (table {text})) (table (export "t") {text}))')

    assert info.imports[0].type == info.exports[0].type == expected


INITIALIZERS = {
    "i32.const": ("i32", "(i32.const 11)"),
    "i32.const-long": ("i32", "(i32.const -2147483648)"),
    "i64.const-long": ("i64", "(i64.const -9223372036854775808)"),
    "f32.const": ("f32", "(f32.const nan:0x0b0b0b)"),
    "f64.const": ("f64", "(f64.const nan:0xb0b0b0b0b0b0b)"),
    "v128.const": ("v128", "(v128.const i32x4 0x0b0b0b0b 11 11 11)"),
    "global.get": ("i32", "(global.get 0)"),
    "ref.null": ("externref", "(ref.null extern)"),
    "ref.null-index": ("(ref null 1)", "(ref.null 1)"),
    "ref.func": ("funcref", "(ref.func 0)"),
    "i32-arithmetic": (
        "i32",
        "(i32.add (i32.const 1) (i32.sub (i32.const 2) (i32.mul (i32.const 3) (global.get 0))))",
    ),
    "i64-arithmetic": (
        "i64",
        "(i64.add (i64.const 1) (i64.sub (i64.const 2) (i64.mul (i64.const 3) (i64.const 4))))",
    ),
    "struct.new": ("(ref 1)", "(struct.new 1 (i32.const 11))"),
    "struct.new_default": ("(ref 1)", "(struct.new_default 1)"),
    "array.new": ("(ref 2)", "(array.new 2 (i32.const 11) (i32.const 11))"),
    "array.new_default": ("(ref 2)", "(array.new_default 2 (i32.const 11))"),
    "array.new_fixed": ("(ref 2)", "(array.new_fixed 2 2 (i32.const 11) (i32.const 11))"),
    "ref.i31": ("(ref i31)", "(ref.i31 (i32.const 11))"),
    "any.convert_extern": ("anyref", "(any.convert_extern (ref.null extern))"),
    "extern.convert_any": ("externref", "(extern.convert_any (ref.i31 (i32.const 11)))"),
}


@pytest.mark.parametrize("type, initializer", INITIALIZERS.values(), ids=INITIALIZERS)
def test_constant_expressions_are_skipped_to_their_end(type: str, initializer: str) -> None:
    """The marker behind the initializer is only found if nothing was left of it."""
    info = declared(f"""(module
      (type (func)) (type (struct (field i32))) (type (array i8))
      (import "" "" (global i32))
      (func)
      (global (export "it") {type} {initializer})
      (global (export "marker") (mut f32) (f32.const 0)))""")

    assert [entry.type for entry in info.exports] == [
        GlobalType(ValueType(type)),
        GlobalType(ValueType("f32"), True),
    ]


def test_unexported_definitions_behind_the_last_export_are_not_looked_at() -> None:
    binary = HEADER + section(MEMORY, vector(b"\0\1", b"\xff")) + section(GLOBAL, vector(b"\xff"))

    info = decode(binary + section(EXPORT, vector(sized(b"m") + b"\x02\0")))

    assert info.exports == (Export("m", "memory", 0, MemoryType(1)),)


def test_code_and_data_are_skipped() -> None:
    nonsense = b"".join(section(id, b"\xff" * 1000) for id in (9, 10, 11, 12))

    assert decode(HEADER + nonsense).exports == ()


def test_what_is_between_the_spans_declares_nothing() -> None:
    text = """(module (import "e" "f" (func)) (memory (export "m") 1) (start 0)
        (@custom "note" (after import) "%s") (data (i32.const 0) "%s")
        (func (export "g") (param i64) %s) (@custom "last" "%s"))"""
    filler = "x" * 5000
    binary = wasm(text % (filler, filler, "nop " * 5000, filler))
    spans = spans_of(binary)
    other = bytearray(255 for _ in binary)
    for start, end in spans:
        other[start:end] = binary[start:end]

    assert len(spans) == 4
    assert decode(bytes(other)) == decode(binary)
    assert spans_of(bytes(other)) == spans
    assert declared_bytes(binary) < 200


def test_small_gaps_belong_to_the_spans() -> None:
    binary = wasm('(module (@custom "a" "1") (func (export "f") nop))')

    assert spans_of(binary) == [(0, len(binary) - 1)]


def test_custom_sections_are_returned_byte_exactly_and_in_order() -> None:
    binary = (
        HEADER
        + custom("a", b"\0\1")
        + section(TYPE, vector(b"\x60\0\0"))
        + custom("b", b"other")
        + custom("a", b"")
        + custom("", b"nameless")
        + custom("\ufeffé\U0001f40d", b"\xff\xfe")
        + custom("a", b"\xff" * 300)
        + custom("aa", b"longer")
    )
    wasmtime.Module.validate(ENGINE, binary)

    assert custom_sections(binary, "a") == [b"\0\1", b"", b"\xff" * 300]
    assert custom_sections(binary, "") == [b"nameless"]
    assert custom_sections(binary, "\ufeffé\U0001f40d") == [b"\xff\xfe"]
    assert custom_sections(binary, "é\U0001f40d") == []
    assert custom_sections(binary, "A") == []


def test_name_that_cannot_be_encoded_matches_no_custom_section() -> None:
    assert custom_sections(HEADER + custom("?", b""), "\ud800") == []


def name_section(*subsections: tuple[int, bytes]) -> bytes:
    return custom("name", b"".join(bytes([id]) + sized(payload) for id, payload in subsections))


@pytest.mark.parametrize(
    "sections, expected",
    [
        (name_section((0, sized("mödule".encode()))), "mödule"),
        (name_section((0, sized(b""))), ""),
        (name_section((1, b"functions"), (0, sized(b"late"))), "late"),
        (name_section((1, b"functions")), None),
        (name_section((0, sized(b"first"))) + name_section((0, sized(b"second"))), "first"),
        (name_section(), None),
        (name_section((0, sized(b"\xff"))), None),
        (custom("name", b"\0\x05\x06abcdef"), None),
        (custom("name", b"\0"), None),
        (custom("NAME", b"\0\2\1a"), None),
    ],
)
def test_module_name_is_read_unless_it_is_malformed(sections: bytes, expected: str | None) -> None:
    """The engine does not validate names, so a module with a broken one is a valid module."""
    wasmtime.Module.validate(ENGINE, HEADER + sections)

    assert decode(HEADER + sections).name == expected


@pytest.mark.parametrize(
    "rename", [lambda _: ("", ""), lambda i: ("m" * 200, f"é{i}")], ids=["shorter", "longer"]
)
def test_renamed_imports_leave_the_rest_as_it_is(rename: Callable[[int], tuple[str, str]]) -> None:
    before = decode(EVERYTHING)
    names = [rename(i) for i in range(len(before.imports))]

    binary, moved = rename_imports(EVERYTHING, names)

    wasmtime.Module.validate(ENGINE, binary)
    after = decode(binary)
    assert [(entry.module, entry.name) for entry in after.imports] == names
    assert [entry[2:] for entry in after.imports] == [entry[2:] for entry in before.imports]
    assert (after.types, after.exports, after.start) == (before.types, before.exports, before.start)
    assert before.import_section is not None
    assert after.import_section is not None
    start, end = before.import_section
    assert after.import_section == (start, end + moved)
    assert binary[:start] == EVERYTHING[:start]
    assert binary[end + moved :] == EVERYTHING[end:]


def test_renaming_imports_to_their_own_names_changes_nothing() -> None:
    names = [(entry.module, entry.name) for entry in decode(EVERYTHING).imports]

    assert rename_imports(EVERYTHING, names) == (EVERYTHING, 0)


def test_renamed_duplicates_can_be_linked_separately() -> None:
    binary, _ = rename_imports(
        wasm("""(module
          (import "m" "n" (global $number i32))
          (import "m" "n" (func $function (result i32)))
          (func (export "sum") (result i32) (i32.add (global.get $number) (call $function))))"""),
        [("", "0"), ("", "1")],
    )
    store = wasmtime.Store(ENGINE)
    linker = wasmtime.Linker(ENGINE)
    type = wasmtime.GlobalType(wasmtime.ValType.i32(), False)
    linker.define(store, "", "0", wasmtime.Global(store, type, wasmtime.Val.i32(40)))
    linker.define_func("", "1", wasmtime.FuncType([], [wasmtime.ValType.i32()]), lambda: 2)

    instance = linker.instantiate(store, wasmtime.Module(ENGINE, binary))

    total = instance.exports(store)["sum"]
    assert isinstance(total, wasmtime.Func)
    assert total(store) == 42


def test_module_without_imports_is_not_renamed() -> None:
    assert rename_imports(HEADER, []) == (HEADER, 0)


@pytest.mark.parametrize("binary", [HEADER, EVERYTHING], ids=["no-section", "seven"])
def test_number_of_new_names_is_checked(binary: bytes) -> None:
    with pytest.raises(ValueError, match=r"expected (0|7) names, got 1"):
        rename_imports(binary, [("", "")])


MALFORMED = {
    "nothing": b"",
    "header-of-a-component": b"\0asm\x0d\0\1\0",
    "truncated-header": HEADER[:5],
    "unknown-section": HEADER + section(14, b""),
    "section-without-size": HEADER + b"\1",
    "section-past-the-end": HEADER + b"\1\2\0",
    "custom-name-past-the-section": HEADER + b"\0\1\1aa",
    "second-section": HEADER + section(TYPE, b"\0") * 2,
    "size-too-long": HEADER + b"\1\x80\x80\x80\x80\x80\0",
    "size-too-large": HEADER + b"\1\xff\xff\xff\xff\x1f",
    "more-than-the-entries": HEADER + section(TYPE, b"\0\0"),
    "unknown-type": HEADER + section(TYPE, vector(b"\x5d\0")),
    "unknown-value-type": HEADER + section(TYPE, vector(b"\x60\1\x40\0")),
    "unknown-heap-type": HEADER + section(TYPE, vector(b"\x60\1\x63\x68\0")),
    "negative-heap-type": HEADER + section(TYPE, vector(b"\x60\1\x64\xff\x7f\0")),
    "mutability": HEADER + section(TYPE, vector(b"\x5e\x7f\2")),
    "name-not-utf-8": HEADER + section(IMPORT, vector(b"\1\xff\0\2\0\1")),
    "name-past-the-end": HEADER + section(IMPORT, vector(b"\x7fabc")),
    "unknown-kind": HEADER + section(IMPORT, vector(b"\0\0\5\0")),
    "import-of-no-type": HEADER + section(IMPORT, vector(b"\0\0\0\0")),
    "import-of-a-struct-type": (
        HEADER + section(TYPE, vector(b"\x5f\0")) + section(IMPORT, vector(b"\0\0\0\0"))
    ),
    "tag-attribute": HEADER + section(IMPORT, vector(b"\0\0\4\1\0")),
    "table-shared": HEADER + section(IMPORT, vector(b"\0\0\1\x70\3\1\1")),
    "memory-limits": HEADER + section(IMPORT, vector(b"\0\0\2\x10\1")),
    "memory-too-large": HEADER + section(IMPORT, vector(b"\0\0\2\0\xff\xff\xff\xff\x1f")),
    "fewer-functions": HEADER + section(FUNCTION, b"\2\0"),
    "more-functions": HEADER + section(FUNCTION, b"\0\0"),
    "function-type-unfinished": HEADER + section(FUNCTION, b"\1\x80"),
    "function-type-too-long": HEADER + section(FUNCTION, b"\1\x80\x80\x80\x80\x80\0"),
    "function-type-too-large": HEADER + section(FUNCTION, b"\1\xff\xff\xff\xff\x1f"),
    "export-of-nothing": HEADER + section(EXPORT, vector(b"\0\2\0")),
    "export-of-untyped-function": (
        HEADER + section(FUNCTION, b"\1\0") + section(EXPORT, vector(b"\0\0\0"))
    ),
    "initializer": (
        HEADER + section(GLOBAL, vector(b"\x7f\0\x10\x0b")) + section(EXPORT, vector(b"\0\3\0"))
    ),
    "initializer-prefixed": (
        HEADER + section(GLOBAL, vector(b"\x7f\0\xfd\x0d\x0b")) + section(EXPORT, vector(b"\0\3\0"))
    ),
    "initializer-unfinished": (
        HEADER + section(TABLE, vector(b"\x40\0\x70\0\1\x44")) + section(EXPORT, vector(b"\0\1\0"))
    ),
    "start-without-function": HEADER + section(START, b""),
}


@pytest.mark.parametrize("binary", MALFORMED.values(), ids=MALFORMED)
def test_malformed_module_is_a_value_error_with_the_offset(binary: bytes) -> None:
    with pytest.raises(ValueError, match=r"at offset \d+$"):
        decode(binary)


def test_offset_points_into_the_binary() -> None:
    binary = HEADER + custom("padding", bytes(100)) + section(TYPE, vector(b"\x60\0\0", b"\x41"))

    with pytest.raises(ValueError, match=f"0x41 at offset {len(binary)}$"):
        decode(binary)


@pytest.mark.parametrize("id", [TYPE, IMPORT, FUNCTION, EXPORT])
@pytest.mark.parametrize("filler", [b"\0", b"\x4e", b"\x80", b"\xff"], ids=bytes.hex)
def test_no_count_is_believed(id: int, filler: bytes) -> None:
    """Four thousand million entries are announced, and a small module must not cost that much."""
    with pytest.raises(ValueError, match="at offset"):
        decode(HEADER + section(id, b"\xff\xff\xff\xff\x0f" + filler * 10_000))


def survives(binary: bytes) -> None:
    """Check that the readers return, or raise what they may."""
    for read in (
        decode,
        lambda binary: custom_sections(binary, "name"),
        lambda binary: rename_imports(binary, [("", "")] * 7),
    ):
        try:
            read(binary)
        except ValueError as error:
            assert "at offset" in str(error) or "names, got 7" in str(error)


def damaged(binary: bytes) -> Iterable[bytes]:
    for end in range(len(binary)):
        yield binary[:end]
    for at in range(len(HEADER), len(binary)):
        for byte in (0x00, 0x40, 0xFF):
            yield binary[:at] + bytes([byte]) + binary[at + 1 :]


def test_module_damaged_anywhere_is_read_or_refused() -> None:
    for binary in damaged(EVERYTHING):
        survives(binary)


@settings(deadline=timedelta(seconds=2))
@given(
    st.lists(
        st.tuples(st.integers(0, len(EVERYTHING)), st.integers(0, 8), st.binary(max_size=8)),
        min_size=1,
        max_size=6,
    )
)
def test_any_edits_of_a_module_are_read_or_refused(edits: list[tuple[int, int, bytes]]) -> None:
    binary = EVERYTHING
    for at, removed, inserted in edits:
        binary = binary[:at] + inserted + binary[at + removed :]

    survives(binary)


@settings(deadline=timedelta(seconds=2))
@given(st.lists(st.tuples(st.integers(0, TAG), st.binary(max_size=40)), max_size=5))
def test_any_payloads_of_sections_are_read_or_refused(sections: list[tuple[int, bytes]]) -> None:
    survives(HEADER + b"".join(section(id, payload) for id, payload in sections))

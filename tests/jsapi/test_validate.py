"""`validate`: synchronous, true or false, an error only for a bad argument."""

from __future__ import annotations

import array
from typing import Any

import pytest

import asyncwasm as aw

from .helpers import EMPTY

MAGIC = b"\0asm"

BINARIES = {
    **{f"header-{length}-bytes": (EMPTY[:length], False) for length in range(8)},
    "header": (EMPTY, True),
    "version-0": (MAGIC + b"\0\0\0\0", False),
    "version-2": (MAGIC + b"\x02\0\0\0", False),
    "custom-without-name": (EMPTY + b"\0\0", False),
    "custom-with-empty-name": (EMPTY + b"\0\x01\0", True),
    "custom-named-a": (EMPTY + b"\0\x02\x01a", True),
}


@pytest.mark.parametrize(
    ("wasm", "code", "expected"),
    [
        pytest.param(wasm, code, expected, id=f"{name}-{code}")
        for name, (wasm, expected) in BINARIES.items()
        for code in "BbHhIi"
        if len(wasm) % array.array(code).itemsize == 0
    ],
)
def test_validate_says_whether_the_binary_is_well_formed(
    wasm: bytes, code: str, expected: bool
) -> None:
    """VA1, VA3."""
    source: Any = array.array(code, wasm)

    assert aw.validate(source) is expected


@pytest.mark.parametrize(
    "text",
    [
        '(module (func (export "f") (result i32) (i32.const 1)))',
        '(module (import "m" "f" (func (param i64))) (memory 1 2))',
        "(module (func (result v128) (v128.const i32x4 1 2 3 4)))",
    ],
    ids=["function", "import", "v128"],
)
def test_validate_accepts_what_compiles(text: str) -> None:
    """VA1."""
    assert aw.validate(aw.wat2wasm(text)) is True


@pytest.mark.parametrize(
    "text",
    ["(module (func (result i32)))", "(module (func (i32.add)))", "(module (func (call 7)))"],
    ids=["missing-result", "empty-stack", "unknown-function"],
)
def test_validate_rejects_what_does_not_type_check(text: str) -> None:
    """VA1."""
    assert aw.validate(aw.wat2wasm(text)) is False


JS_STRING_TEST = '(module (import "wasm:js-string" "test" (func (param {0}) (result i32))))'
CONSTANT = '(module (import "strings" "hello" (global {0})))'

OPTIONS = [
    pytest.param(JS_STRING_TEST.format("externref"), {"builtins": ["js-string"]}, True, id="OP1"),
    pytest.param(JS_STRING_TEST.format("i32"), {"builtins": ["js-string"]}, False, id="OP1-type"),
    pytest.param(JS_STRING_TEST.format("i32"), {}, True, id="OP1-not-enabled"),
    pytest.param("(module)", {"builtins": ["no-such-set"]}, True, id="OP1-unknown-set"),
    pytest.param("(module)", {"builtins": ["js-string"] * 2}, False, id="OP1-duplicate"),
    pytest.param("(module)", {"builtins": ["unknown"] * 2}, False, id="OP1-duplicate-unknown"),
    pytest.param(
        CONSTANT.format("(ref extern)"), {"imported_string_constants": "strings"}, True, id="OP2"
    ),
    pytest.param(
        CONSTANT.format("i32"), {"imported_string_constants": "strings"}, False, id="OP2-type"
    ),
    pytest.param(
        CONSTANT.format("i32"), {"imported_string_constants": None}, True, id="OP2-not-enabled"
    ),
    pytest.param(
        CONSTANT.format("i32"), {"imported_string_constants": "other"}, True, id="OP2-elsewhere"
    ),
]


@pytest.mark.parametrize(("text", "options", "expected"), OPTIONS)
def test_validate_checks_the_imports_that_options_satisfy(
    text: str, options: dict[str, Any], expected: bool
) -> None:
    """VA2."""
    assert aw.validate(aw.wat2wasm(text), **options) is expected

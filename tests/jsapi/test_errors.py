"""The error tree, traps and their codes and frames, and that every error pickles."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import asyncwasm as aw

from .helpers import EMPTY, compiled, exports_of, instance_of

TREE = [
    ("CompileError", "WasmError"),
    ("LinkError", "WasmError"),
    ("RangeError", "WasmError"),
    ("TableIndexError", "RangeError"),
    ("Trap", "WasmError"),
    ("StackOverflow", "Trap"),
    ("Interrupted", "Trap"),
    ("SuspendError", "WasmError"),
    ("WasmException", "WasmError"),
    ("LargeModuleError", "WasmError"),
]
BUILTINS = [
    ("WasmError", Exception),
    ("RangeError", ValueError),
    ("TableIndexError", IndexError),
    ("Trap", RuntimeError),
    ("StackOverflow", RecursionError),
    ("LargeModuleWarning", UserWarning),
    ("BlockingCallWarning", UserWarning),
]


@pytest.mark.parametrize(("name", "parent"), TREE)
def test_error_is_below_its_parent(name: str, parent: str) -> None:
    """ER1."""
    assert issubclass(getattr(aw, name), getattr(aw, parent))


@pytest.mark.parametrize(
    ("name", "parent"), BUILTINS, ids=lambda part: getattr(part, "__name__", part)
)
def test_error_is_below_a_builtin_too(name: str, parent: type[BaseException]) -> None:
    """ER1, ER2."""
    assert issubclass(getattr(aw, name), parent)


TRAPS = {
    "UNREACHABLE": "unreachable",
    "INTEGER_DIVISION_BY_ZERO": "(drop (i32.div_s (i32.const 1) (i32.const 0)))",
    "INTEGER_OVERFLOW": "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))",
    "BAD_CONVERSION_TO_INTEGER": "(drop (i32.trunc_f64_s (f64.const nan)))",
    "MEMORY_OUT_OF_BOUNDS": "(drop (i32.load (i32.const 65536)))",
    "TABLE_OUT_OF_BOUNDS": "(drop (table.get $t (i32.const 9)))",
    "INDIRECT_CALL_TO_NULL": "(call_indirect (type $v) (i32.const 0))",
    "BAD_SIGNATURE": "(call_indirect (type $i) (i32.const 5) (i32.const 1))",
    "STACK_OVERFLOW": "(call $trap)",
    "NULL_REFERENCE": "(drop (struct.get $s 0 (ref.null $s)))",
    "CAST_FAILURE": "(drop (ref.cast (ref i31) (ref.null any)))",
    "ARRAY_OUT_OF_BOUNDS": "(drop (array.get $a (array.new_default $a (i32.const 1))"
    " (i32.const 1)))",
    "ATOMIC_WAIT_NON_SHARED_MEMORY": "(drop (memory.atomic.wait32 (i32.const 0) (i32.const 0)"
    " (i64.const 0)))",
}
TRAPPING = """(module $name
  (type $v (func)) (type $i (func (param i32)))
  (type $s (struct (field i32))) (type $a (array (mut i32)))
  (memory 1) (table $t 2 funcref) (elem (i32.const 1) $f)
  (func $f)
  (func $trap {0})
  (func (export "trap") (call $trap)))"""


@pytest.mark.parametrize(("code", "body"), TRAPS.items(), ids=TRAPS.keys())
async def test_trap_has_the_code_of_what_happened(code: str, body: str) -> None:
    """EF8, ER4."""
    trap = exports_of(TRAPPING.format(body)).trap

    with pytest.raises(aw.Trap) as direct:
        trap()
    with pytest.raises(aw.Trap) as awaited:
        await trap.call_async()

    assert direct.value.code is aw.TrapCode[code]
    assert awaited.value.code is aw.TrapCode[code]


def test_frames_tell_module_function_and_offset_innermost_first() -> None:
    """ER5."""
    wasm = aw.wat2wasm("""(module $mine
      (func $inner unreachable)
      (func (export "outer") (call $inner)))""")

    with pytest.raises(aw.Trap) as caught:
        aw.Instance(aw.Module(wasm)).exports.outer()

    frames = caught.value.frames
    assert [frame.function for frame in frames] == ["inner", "1"]
    assert [frame.module for frame in frames] == ["mine", "mine"]
    assert all(0 < frame.offset < len(wasm) for frame in frames if frame.offset is not None)


def test_stack_overflow_is_a_recursion_error_and_a_trap() -> None:
    """ER2."""
    exports = exports_of("""(module (func $f (export "f") (call $f))
      (func (export "g") (result i32) (i32.const 1)))""")

    with pytest.raises(aw.StackOverflow) as caught:
        exports.f()

    assert isinstance(caught.value, RecursionError)
    assert exports.g() == 1


async def test_stack_overflow_in_an_awaited_call() -> None:
    """ER2."""
    exports = exports_of("""(module (func $f (export "f") (call $f))
      (func (export "g") (result i32) (i32.const 1)))""")

    with pytest.raises(aw.StackOverflow):
        await exports.f.call_async()

    assert await exports.g.call_async() == 1


def _compile_error() -> object:
    return aw.Module(EMPTY + b"\x0c\xff")


def _link_error() -> object:
    return instance_of('(module (import "m" "f" (func)))', {"m": {}})


def _range_error() -> object:
    return aw.Memory(2, 1)


def _table_index_error() -> object:
    return aw.Table("funcref", 1).get(5)


def _trap() -> object:
    return exports_of('(module (func $f (export "f") unreachable))').f()


def _stack_overflow() -> object:
    return exports_of('(module (func $f (export "f") (call $f)))').f()


def _suspend_error() -> object:
    async def wait() -> None: ...

    text = '(module (import "m" "f" (func $f)) (func (export "g") (call $f)))'
    return exports_of(text, {"m": {"f": wait}}).g()


def _out_of_fuel() -> object:
    store = aw.Store(limits=aw.Limits(fuel=1_000))
    return exports_of('(module (func (export "f") (loop $l (br $l))))', store=store).f()


RAISERS = {
    "CompileError": (_compile_error, ["offset"]),
    "LinkError": (_link_error, ["module", "name", "expected", "actual"]),
    "RangeError": (_range_error, []),
    "TableIndexError": (_table_index_error, []),
    "Trap": (_trap, ["code", "frames"]),
    "StackOverflow": (_stack_overflow, ["code", "frames"]),
    "SuspendError": (_suspend_error, []),
    "Interrupted": (_out_of_fuel, ["reason", "code"]),
}


@pytest.mark.parametrize(
    ("name", "raiser", "attributes"),
    [(name, *rest) for name, rest in RAISERS.items()],
    ids=RAISERS.keys(),
)
def test_error_pickles_with_its_facts(name: str, raiser: Any, attributes: list[str]) -> None:
    """Contract 6."""
    with pytest.raises(getattr(aw, name)) as caught:
        raiser()

    twin = pickle.loads(pickle.dumps(caught.value))

    assert type(twin) is type(caught.value) is getattr(aw, name)
    assert str(twin) == str(caught.value)
    for attribute in attributes:
        assert getattr(twin, attribute) == getattr(caught.value, attribute)


@pytest.mark.parametrize("name", RAISERS)
def test_error_has_a_message(name: str) -> None:
    """ER1."""
    raiser: Any = RAISERS[name][0]

    with pytest.raises(getattr(aw, name)) as caught:
        raiser()

    assert str(caught.value)


def test_wasm_exception_pickles_with_its_payload() -> None:
    """Contract 6."""
    error = aw.WasmException(aw.Tag(["i32", "f64"]), [42, 0.5])

    twin = pickle.loads(pickle.dumps(error))

    assert type(twin) is aw.WasmException
    assert list(twin.payload) == [42, 0.5]


def test_out_of_fuel_is_interrupted_with_its_reason() -> None:
    """Contract 6."""
    with pytest.raises(aw.Interrupted) as caught:
        _out_of_fuel()

    assert caught.value.reason == "fuel"


def test_validate_never_raises_for_bad_wasm() -> None:
    """VA1."""
    assert [aw.validate(EMPTY + bytes([byte])) for byte in range(256)] == [False] * 256


def test_instance_stays_usable_after_each_trap() -> None:
    """ST4."""
    exports = exports_of("""(module (memory (export "m") 1)
      (func (export "poke") (param i32) (i32.store8 (local.get 0) (i32.const 1))))""")

    for _ in range(10):
        with pytest.raises(aw.Trap):
            exports.poke(65_536)
    exports.poke(0)

    assert exports.m.read(0, 1) == b"\x01"


def test_compile_error_is_no_link_error() -> None:
    """ER1, IC1."""
    assert not issubclass(aw.CompileError, aw.LinkError)
    with pytest.raises(aw.LinkError):
        aw.Instance(compiled('(module (import "m" "f" (func)))'), {"m": {}})

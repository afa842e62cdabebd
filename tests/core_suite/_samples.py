"""
Scripts that the runner itself is tested with.
"""

from __future__ import annotations

from typing import Final

# Every command comes out as it says.
GOOD: Final = r"""
(module $m
  (import "spectest" "print_i32_f32" (func $print (param i32 f32)))
  (import "spectest" "global_i64" (global $g i64))
  (import "spectest" "memory" (memory 1 2))
  (import "spectest" "table" (table 10 20 funcref))
  (import "spectest" "table64" (table $t64 i64 10 20 funcref))
  (tag $e (param i32))
  (type $s (struct))
  (type $a (array i8))
  (elem declare func $print)
  (global (export "mutable") (mut f64) (f64.const -0))
  (global (export "vector") v128 (v128.const i32x4 1 2 3 4))
  (func (export "print") (call $print (i32.const 7) (f32.const 0.1)))
  (func (export "global") (result i64) (global.get $g))
  (func (export "div") (param i32 i32) (result i32)
    (i32.div_s (local.get 0) (local.get 1)))
  (func (export "same") (param f32) (result f32) (local.get 0))
  (func (export "bits") (param f32) (result i32) (i32.reinterpret_f32 (local.get 0)))
  (func (export "swap") (param i32 f32) (result f32 i32) (local.get 1) (local.get 0))
  (func (export "lanes") (param v128) (result v128) (f32x4.neg (local.get 0)))
  (func (export "extern") (param externref) (result externref) (local.get 0))
  (func (export "any") (param anyref) (result anyref) (local.get 0))
  (func (export "exn") (result exnref) (ref.null exn))
  (func (export "exn-in") (param i32 exnref f32) (result f32 exnref v128 externref)
    (local.get 2) (local.get 1) (v128.const i64x2 1 2) (ref.null extern))
  (func (export "func") (result funcref) (ref.func $print))
  (func (export "struct") (result anyref) (struct.new $s))
  (func (export "array") (result anyref) (array.new $a (i32.const 0) (i32.const 1)))
  (func (export "i31") (result anyref) (ref.i31 (i32.const 5)))
  (func (export "throw") (throw $e (i32.const 1)))
  (func $loop (export "loop") (call $loop))
  (func (export "nothing"))
  (func (export "load") (result i32) (i32.load (i32.const 65534)))
)
(assert_return (invoke "print"))
(assert_return (invoke "global") (i64.const 666))
(assert_return (get "mutable") (f64.const -0))
(assert_return (get $m "vector") (v128.const i32x4 1 2 3 4))
(assert_return (invoke "div" (i32.const 6) (i32.const 3)) (i32.const 2))
(assert_trap (invoke "div" (i32.const 6) (i32.const 0)) "integer divide by zero")
(assert_trap (invoke "div" (i32.const 0x8000_0000) (i32.const -1)) "integer overflow")
(assert_trap (invoke "load") "out of bounds memory access")
(assert_return (invoke "same" (f32.const nan:0x200000)) (f32.const nan:0x200000))
(assert_return (invoke "same" (f32.const -nan)) (f32.const nan:canonical))
(assert_return (invoke "same" (f32.const -nan:0x600000)) (f32.const nan:arithmetic))
(assert_return (invoke "bits" (f32.const -nan:0x1)) (i32.const 0xff800001))
(assert_return (invoke "swap" (i32.const 1) (f32.const nan:0x1)) (f32.const nan:0x1) (i32.const 1))
(assert_return (invoke "swap" (i32.const 1) (f32.const 2)) (f32.const 2) (i32.const 1))
(assert_return (invoke "lanes" (v128.const f32x4 1 -0 inf 0))
  (v128.const f32x4 -1 0 -inf -0))
(assert_return (invoke "extern" (ref.extern 1)) (ref.extern 1))
(assert_return (invoke "extern" (ref.extern 1)) (ref.extern))
(assert_return (invoke "extern" (ref.null extern)) (ref.null extern))
(assert_return (invoke "any" (ref.host 1)) (ref.host 1))
(assert_return (invoke "exn") (ref.null exn))
(assert_return (invoke "exn-in" (i32.const 1) (ref.null exn) (f32.const 2))
  (either (f32.const 1) (f32.const 2)) (ref.null) (v128.const i64x2 1 2) (ref.null extern))
(invoke "exn-in" (i32.const 1) (ref.null noexn) (f32.const nan:0x1))
(assert_return (invoke "func") (ref.func))
(assert_return (invoke "struct") (ref.struct))
(assert_return (invoke "struct") (ref.eq))
(assert_return (invoke "array") (ref.array))
(assert_return (invoke "i31") (ref.i31))
(assert_return (invoke "nothing"))
(assert_exception (invoke "throw"))
(assert_exhaustion (invoke "loop") "call stack exhausted")
(register "m" $m)
(module
  (import "m" "div" (func (param i32 i32) (result i32)))
  (export "div" (func 0))
)
(invoke $m "nothing")
(get $m "mutable")
(assert_return (invoke "div" (i32.const 8) (i32.const 2)) (i32.const 4))
(assert_unlinkable (module (import "m" "div" (func))) "incompatible import type")
(assert_unlinkable (module (import "nobody" "f" (func))) "unknown import")
(assert_trap (module (func $f (unreachable)) (start $f)) "unreachable")
(assert_invalid (module (func (result i32))) "type mismatch")
(assert_malformed (module quote "(func") "unexpected end")
(assert_malformed (module quote "(@a \ff)") "malformed UTF-8 encoding")
(assert_malformed (module binary "\00asm") "unexpected end")
(assert_malformed_custom (module quote "(@custom)") "missing section name")
(module binary "\00asm\01\00\00\00")
(module quote "(func (export \"q\") (result i32)" " (i32.const 1))")
(assert_return (invoke "q") (either (i32.const 0) (i32.const 1)))
(module definition $d (global (export "g") (mut i32) (i32.const 3)))
(module instance $i $d)
(module instance $j $d)
(assert_return (get $i "g") (i32.const 3))
(assert_return (get "g") (i32.const 3))
"""

# Functions for `WRONG` to use.
FUNCTIONS: Final = r"""
(module $m
  (type $s (struct))
  (tag $e)
  (func (export "one") (result i32) (i32.const 1))
  (func (export "pair") (result i32 i32) (i32.const 1) (i32.const 2))
  (func (export "zero") (result f64) (f64.const -0))
  (func (export "nan") (result f32) (f32.const nan:0x400001))
  (func (export "signalling") (result f32) (f32.const nan:0x200001))
  (func (export "same") (param f32) (result f32) (local.get 0))
  (func (export "vector") (result v128) (v128.const f32x4 nan:0x1 0 0 0))
  (func (export "extern") (param externref) (result externref) (local.get 0))
  (func (export "struct") (result anyref) (struct.new $s))
  (func (export "null") (result anyref) (ref.null any))
  (func (export "exn") (result exnref) (ref.null exn))
  (func (export "nothing"))
  (func (export "trap") (unreachable))
  (func (export "div") (result i32) (i32.div_s (i32.const 1) (i32.const 0)))
  (func (export "throw") (throw $e))
  (func $loop (export "loop") (call $loop))
  (global (export "g") i32 (i32.const 1))
  (memory (export "memory") 1)
)
"""

# Commands that must fail after `FUNCTIONS`, and a part of what is said then.
WRONG: Final = (
    ('(assert_return (invoke "one") (i32.const 2))', "expected i32 0x00000002, got 0x00000001"),
    ('(assert_return (invoke "one"))', "expected 0 results"),
    ('(assert_return (invoke "one") (i32.const 1) (i32.const 1))', "expected 2 results"),
    ('(assert_return (invoke "one") (f32.const 1))', "expected a float, got 1"),
    ('(assert_return (invoke "pair") (i32.const 1) (i32.const 3))', "got 0x00000002"),
    ('(assert_return (invoke "nothing") (ref.null))', "expected 1 results"),
    ('(assert_return (invoke "zero") (f64.const 0))', "got 0x8000000000000000"),
    ('(assert_return (invoke "nan") (f32.const nan:canonical))', "got 0x7fc00001"),
    ('(assert_return (invoke "nan") (f32.const nan:0x400002))', "got 0x7fc00001"),
    ('(assert_return (invoke "signalling") (f32.const nan:0x200002))', "got 0x7fa00001"),
    ('(assert_return (invoke "same" (f32.const nan:0x1)) (f32.const 1))', "got 0x7f800001"),
    (
        '(assert_return (invoke "vector") (v128.const f32x4 nan:arithmetic 0 0 0))',
        "got 0x7f800001 0x00000000",
    ),
    (
        '(assert_return (invoke "extern" (ref.extern 1)) (ref.extern 2))',
        "expected host reference 2, got host reference 1",
    ),
    ('(assert_return (invoke "extern" (ref.extern 1)) (ref.null extern))', "expected null"),
    ('(assert_return (invoke "struct") (ref.array))', "(struct)"),
    ('(assert_return (invoke "struct") (ref.null))', "expected null"),
    ('(assert_return (invoke "null") (ref.struct))', "got null"),
    ('(assert_return (invoke "exn") (ref.exn))', "got 0x00000001"),
    (
        '(assert_return (invoke "one") (either (i32.const 2) (i32.const 3)))',
        "expected i32 0x00000002, got 0x00000001; expected i32 0x00000003",
    ),
    ('(assert_return (invoke "trap"))', "unexpected Trap"),
    ('(assert_return (get "g"))', "expected 0 results, got (1,)"),
    ('(assert_return (invoke "signalling") (i32.const 1))', "expected a"),
    ('(assert_return (invoke "same" (f32.const nan:0x1)) (i32.const 0x7f800001))', "gives f32"),
    ('(assert_return (invoke "same") (f32.const 1))', "unexpected TypeError"),
    ('(assert_return (invoke "same" (f32.const nan:0x1) (ref.null)) (f32.const 1))', "argument"),
    ('(assert_return (get "g") (i32.const 2))', "got 0x00000001"),
    ('(assert_return (get "one") (i32.const 1))', "is no global"),
    ('(assert_return (invoke "g") (i32.const 1))', "is no function"),
    ('(assert_return (invoke "missing"))', "there is no export 'missing'"),
    ('(assert_return (invoke $n "one") (i32.const 1))', "there is no instance $n"),
    ("(module instance $i $n)", "there is no module $n"),
    ('(register "m" $n)', "there is no instance $n"),
    ('(invoke "trap")', "unexpected Trap"),
    ('(assert_trap (invoke "one") "unreachable")', "expected 'unreachable', got 1"),
    ('(assert_trap (invoke "trap") "integer overflow")', "expected INTEGER_OVERFLOW"),
    ('(assert_trap (invoke "div") "integer overflow")', "INTEGER_DIVISION_BY_ZERO"),
    ('(assert_trap (invoke "trap") "bad luck")', "not known to the runner"),
    ('(assert_trap (invoke "throw") "unreachable")', "expected Trap"),
    ('(assert_trap (invoke "g") "unreachable")', "is no function"),
    ('(assert_trap (module) "unreachable")', "expected 'unreachable', got"),
    ('(assert_trap (module (func (drop))) "unreachable")', "does not compile"),
    ('(assert_exhaustion (invoke "nothing") "call stack exhausted")', "got None"),
    ('(assert_exhaustion (invoke "trap") "call stack exhausted")', "expected StackOverflow"),
    ('(assert_exception (invoke "nothing"))', "expected 'an exception', got None"),
    ('(assert_exception (invoke "trap"))', "expected WasmException"),
    ('(assert_unlinkable (module) "unknown import")', "expected 'unknown import', got"),
    (
        '(assert_unlinkable (module (func $f (unreachable)) (start $f)) "unknown import")',
        "expected LinkError",
    ),
    ('(assert_unlinkable (module (func (drop))) "unknown import")', "does not compile"),
    ('(assert_invalid (module (func)) "type mismatch")', "validate() accepts it"),
    ('(assert_malformed (module quote "(func)") "unexpected token")', "validate() accepts it"),
    (
        r'(assert_malformed (module binary "\00asm\01\00\00\00") "unexpected end")',
        "validate() accepts it",
    ),
    ('(assert_invalid_custom (module quote "(func)") "x")', "validate() accepts it"),
    ("(module (func (drop)))", "unexpected CompileError"),
    ('(module binary "x")', "unexpected CompileError"),
    ('(module (import "spectest" "print" (global i32)))', "unexpected LinkError"),
    ("(module (func $f (unreachable)) (start $f))", "unexpected Trap"),
)

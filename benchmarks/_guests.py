"""Guests that more than one benchmark needs, here and in wasmtime-py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import wasmtime

import asyncwasm as aw

ADD = """(module (func (export "add") (param i32 i32) (result i32)
  (i32.add (local.get 0) (local.get 1))))"""

# An import, called once or in a loop.
CALLER = """(module
  (import "host" "f" (func $f (param i32) (result i32)))
  (func (export "one") (param i32) (result i32) (call $f (local.get 0)))
  (func (export "loop") (param $n i32) (result i32) (local $sum i32)
    (loop $again
      (local.set $sum (i32.add (local.get $sum) (call $f (local.get $n))))
      (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (local.get $sum)))"""

# Keeps a processor busy for *n* rounds that the compiler cannot leave out, or for ever.
SPIN = """(module
  (func (export "work") (param $n i64) (result i64) (local $x i64)
    (loop
      (local.set $x (i64.add (i64.mul (local.get $x) (i64.const 6364136223846793005)) (i64.const 1)))
      (br_if 0 (i64.ne (i64.const 0) (local.tee $n (i64.sub (local.get $n) (i64.const 1))))))
    (local.get $x))
  (func (export "spin") (loop (br 0)))
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))"""


def module(text: str) -> aw.Module:
    """Return a module of ours."""
    return aw.Module(aw.wat2wasm(text))


def ours(text: str, imports: Any = None) -> Any:
    """Return the exports of an instance of ours."""
    return aw.Instance(module(text), imports).exports


def peer(
    text: str, name: str, imports: Sequence[Callable[..., Any]] = ()
) -> tuple[wasmtime.Func, wasmtime.Store]:
    """Return a function of wasmtime-py's, and the store that it wants first at each call."""
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    kind = wasmtime.FuncType([wasmtime.ValType.i32()], [wasmtime.ValType.i32()])
    made = [wasmtime.Func(store, kind, each) for each in imports]
    exports = wasmtime.Instance(store, wasmtime.Module(engine, text), made).exports(store)
    return exports[name], store


def generated(functions: int = 800) -> bytes:
    """Return a large module; 800 functions are about 2 MB."""
    body = "(local.set 0 (i32.add (i32.mul (local.get 0) (i32.const 7)) (i32.const 3)))" * 300
    made = "".join(
        f'(func (export "f{index}") (param i32) (result i32) {body} (local.get 0))'
        for index in range(functions)
    )
    return aw.wat2wasm(f"(module {made})")

"""Helpers of the tests: small modules, subprocesses, measurements."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import asyncwasm as aw
from asyncwasm._ffi.accelerator import speedups

ROOT = Path(__file__).parents[1]


@cache
def wasm(text: str) -> bytes:
    """Return the binary of a module's text."""
    return aw.wat2wasm(text)


@cache
def module(text: str) -> aw.Module:
    """Return a module made from text."""
    return aw.Module(wasm(text))


def instance(text: str, imports: Any = None, **options: Any) -> aw.Instance:
    """Return an instance of a module made from text, without the habits of earlier tests."""
    return aw.Instance(forgetful(module(text)), imports, **options)


def as_many(count: int) -> int:
    """Return *count*; a fifth of it in pure Python, where each takes five times as long."""
    return count if speedups is not None else count // 5


def forgetful(module: aw.Module) -> aw.Module:
    """Return *module*, which has forgotten what took long."""
    for shape in module._artifact.shapes.values():
        shape.lengthy = 0
    return module


def run_script(
    source: str, *, timeout: float = 60, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python *source* in a process of its own, with warnings as errors."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=variables,
        check=False,
    )


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


ADD = """(module (func (export "add") (param i32 i32) (result i32)
  (i32.add (local.get 0) (local.get 1))))"""

# An import, called once or in a loop, and the guests that tests need most.
CALLER = """(module
  (import "host" "f" (func $f (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "call") (param i32) (result i32) (call $f (local.get 0)))
  (func (export "sum") (param $n i32) (result i32) (local $sum i32)
    (loop $again
      (local.set $sum (i32.add (local.get $sum) (call $f (local.get $n))))
      (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (local.get $sum))
  (func (export "plain") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1)))
  (func (export "trap") unreachable)
  (func (export "spin") (loop (br 0))))"""

SPIN = """(module
  (func (export "spin") (loop (br 0)))
  (func (export "one") (result i32) (i32.const 1))
  (func (export "work") (param $n i32)
    (loop (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))"""

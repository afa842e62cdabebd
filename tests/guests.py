"""A guest that waits, spins and counts, and what must hold after a call of it was stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import asyncwasm as aw

from .support import forgetful, module, wasm

# `until` spins until the first byte of the memory is set, or for so many rounds that a test
# which forgets about it fails instead of hanging. `spin` counts its rounds at address 8.
GUEST = """(module
  (import "host" "f" (func $f (param i32) (result i32)))
  (memory (export "memory") 1)
  (global $heap (mut i32) (i32.const 1024))
  (func (export "plain") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1)))
  (func (export "malloc") (param i32) (result i32)
    (global.get $heap)
    (global.set $heap (i32.add (global.get $heap) (local.get 0))))
  (func (export "call") (param i32) (result i32) (call $f (local.get 0)))
  (func (export "call_twice") (param i32) (result i32)
    (call $f (call $f (local.get 0))))
  (func (export "sum") (param $n i32) (result i32) (local $sum i32)
    (loop $again
      (local.set $sum (i32.add (local.get $sum) (call $f (local.get $n))))
      (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (local.get $sum))
  (func $spin (export "spin") (loop $again
    (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1)))
    (br $again)))
  (func (export "call_and_spin") (param i32) (drop (call $f (local.get 0))) (call $spin))
  (func $until (export "until") (result i32) (local $rounds i64)
    (local.set $rounds (i64.const 20_000_000_000))
    (loop $again
      (if (i32.load8_u (i32.const 0)) (then (return (i32.const 1))))
      (br_if $again (i64.ne (i64.const 0)
        (local.tee $rounds (i64.sub (local.get $rounds) (i64.const 1))))))
    (i32.const 0))
  (func (export "call_until_call") (result i32)
    (drop (call $f (i32.const 1)))
    (drop (call $until))
    (call $f (i32.const 2)))
  (func (export "trap") unreachable))"""

# Calls its import from the start function, then spins if the import says so.
STARTER = """(module
  (import "host" "f" (func $f (param i32) (result i32)))
  (func $start (if (call $f (i32.const 0)) (then (loop $again (br $again)))))
  (start $start))"""

# On a busy machine any call can take long.
not_measured = pytest.mark.filterwarnings("ignore::asyncwasm.BlockingCallWarning")

NAMES = ("plain", "malloc", "call", "call_twice", "sum", "spin", "until", "memory")


def guest(f: Any = abs, *, engine: aw.Engine | None = None, **options: Any) -> aw.Instance:
    """Return an instance of GUEST whose import is *f*, with its exports looked up."""
    compiled = module(GUEST) if engine is None else aw.Module(wasm(GUEST), engine=engine)
    made = aw.Instance(forgetful(compiled), {"host": {"f": f}}, **options)
    for name in NAMES:
        assert made.exports[name] is not None
    return made


def setting(event: anyio.Event) -> Callable[[int], int]:
    """Return a sync import that sets *event*."""

    def call(value: int) -> int:
        event.set()
        return value

    return call


class Gate:
    """An async import that waits until it is let through."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self.opened = anyio.Event()
        self.seen: list[int] = []

    async def __call__(self, value: int) -> int:
        self.seen.append(value)
        self.reached.set()
        await self.opened.wait()
        return value


class Offload:
    """Tells when the work of an engine's guests moves to a thread."""

    def __init__(self) -> None:
        self._submitted = anyio.Event()
        self._started = threading.Event()
        self.threads: set[int] = set()

    @property
    def submitted(self) -> bool:
        """Whether a guest is to be moved."""
        return self._submitted.is_set()

    async def happened(self) -> None:
        """Wait until a worker thread has taken a guest over."""
        await self._submitted.wait()
        assert self._started.wait(30)


@contextmanager
def watching_offload(engine: aw.Engine) -> Iterator[Offload]:
    """Watch what *engine* moves to its threads during the block."""
    offload = Offload()
    runners = engine._core.runners
    submit = runners.submit

    def watched(job: Callable[[], None]) -> None:
        def run() -> None:
            offload.threads.add(threading.get_ident())
            offload._started.set()
            job()

        if not offload._submitted.is_set():  # later ones come from the workers themselves
            offload._submitted.set()
        submit(run)

    runners.submit = watched  # type: ignore[method-assign]
    try:
        yield offload
    finally:
        del runners.submit


async def until(condition: Callable[[], object]) -> None:
    """Let others run until *condition* holds."""
    while not condition():
        await checkpoint()


async def check_stopped(instance: aw.Instance) -> None:
    """Check that nothing is left of a stopped call, and that *instance* works."""
    store, exports = instance.store, instance.exports
    rounds = exports.memory.read(8, 8)

    assert not store._core.handle.futures
    assert not store._core._operations
    assert store._core.root.current is None
    assert not store._core.root.waiting
    assert exports.plain(1) == 2
    assert await exports.plain.call_async(2) == 3
    assert exports.memory.read(8, 8) == rounds, "somebody still polls the guest"

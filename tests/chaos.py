"""
Chaos: random programs against a model, on any event loop, in several threads.

    python -m tests.chaos --seconds 60 --seed 1 --backend trio

Each program is a tree: a call of an export reaches an import, which makes more calls, and so
on; some trap, raise, are cancelled, or run out of something. What a program does depends on the
seed, the thread and the program's number only; in which order things happen, also on the clock.

Rule 1: the model changes where the guest does. What an export does before it calls an import is
entered by the import, and what it does after that, or without one, when it has returned: no
other guest of the store can run in between.
Rule 2: after a call was stopped at an unknown place, the model is read from the guest again.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import random
import struct
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio

import asyncwasm as aw

from .support import resident_bytes, wasm

SLOTS, CELLS, MAX_PAGES = 8, 64, 6
GROWTH_BYTES = 96 << 20
SETTLE_SECONDS = 20.0
HANG_SECONDS = 120

# What a module with imports has in common with and without references.
_COMMON = """
  (import "host" "sync" (func $sync (param i32) (result i32)))
  (import "host" "async" (func $async (param i32) (result i32)))
  (type $f (func (param i32) (result i32)))
  (table $functions (export "functions") 2 funcref)
  (memory (export "memory") 1 6)
  (global $counter (export "counter") (mut i32) (i32.const 0))
  (tag $tag (export "tag") (param i32))
  (func $add (param i32) (global.set $counter (i32.add (global.get $counter) (local.get 0))))
  (func (export "bump") (param i32) (result i32) (call $add (local.get 0)) (global.get $counter))
  (func (export "poke") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "peek") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func $spin (export "spin") (param $n i32) (result i32)
    (loop (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (global.get $counter))
  (func (export "slow_bump") (param $n i32) (result i32)
    (drop (call $spin (local.get $n))) (call $add (i32.const 1)) (global.get $counter))
  (func (export "forever") (loop (br 0)))
  (func (export "trap") (call $add (i32.const 5)) unreachable)
  (func (export "outside") (result i32) (call $add (i32.const 6)) (i32.load (i32.const -1)))
  (func $deep (export "overflow") (result i32) (i32.add (i32.const 1) (call $deep)))
  (func (export "throw") (param i32) (call $add (i32.const 7)) (throw $tag (local.get 0)))
  (func $end (param i32) (result i32)
    (call $add (i32.const 2)) (i32.add (local.get 0) (global.get $counter)))
  (func $call_sync (export "call_sync") (param i32) (result i32)
    (call $add (i32.const 1)) (call $end (call $sync (local.get 0))))
  (func $call_async (export "call_async") (param i32) (result i32)
    (call $add (i32.const 1)) (call $end (call $async (local.get 0))))
  (func (export "call_sync_table") (param i32) (result i32)
    (call $add (i32.const 1))
    (call $end (call_indirect (type $f) (local.get 0) (i32.const 0))))
  (func (export "call_async_table") (param i32) (result i32)
    (call $add (i32.const 1))
    (call $end (call_indirect (type $f) (local.get 0) (i32.const 1))))
  (func (export "guarded_sync") (param i32) (result i32)
    (block $caught
      (return (try_table (result i32) (catch_all $caught) (call $call_sync (local.get 0)))))
    (call $add (i32.const 3)) (i32.const -7))
  (func (export "guarded_async") (param i32) (result i32)
    (block $caught
      (return (try_table (result i32) (catch_all $caught) (call $call_async (local.get 0)))))
    (call $add (i32.const 3)) (i32.const -7))
"""
PLAIN = f"(module {_COMMON})"
REFERENCES = f"""(module {_COMMON}
  (type $box (struct (field i32) (field (mut externref))))
  (table $things (export "things") {SLOTS} externref)
  (func (export "put") (param i32 externref) (table.set $things (local.get 0) (local.get 1)))
  (func (export "get") (param i32) (result externref) (table.get $things (local.get 0)))
  (func (export "churn") (param $n i32) (result i32)
    (loop
      (drop (struct.new $box (local.get $n) (ref.null extern)))
      (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (global.get $counter))
  (func (export "hold_sync") (param $thing externref) (param $frame i32) (result externref i32)
    (local $box (ref null $box))
    (local.set $box (struct.new $box (local.get $frame) (local.get $thing)))
    (call $call_sync (local.get $frame))
    (if (i32.ne (struct.get $box 0 (local.get $box)) (local.get $frame)) (then unreachable))
    (local.set $frame)
    (struct.get $box 1 (local.get $box)) (local.get $frame))
  (func (export "hold_async") (param $thing externref) (param $frame i32) (result externref i32)
    (local $box (ref null $box))
    (local.set $box (struct.new $box (local.get $frame) (local.get $thing)))
    (call $call_async (local.get $frame))
    (if (i32.ne (struct.get $box 0 (local.get $box)) (local.get $frame)) (then unreachable))
    (local.set $frame)
    (struct.get $box 1 (local.get $box)) (local.get $frame)))"""
ALONE = """(module
  (memory (export "memory") 1 6)
  (global $counter (export "counter") (mut i32) (i32.const 0))
  (func (export "bump") (param i32) (result i32)
    (global.set $counter (i32.add (global.get $counter) (local.get 0))) (global.get $counter))
  (func (export "poke") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "peek") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func $spin (export "spin") (param $n i32) (result i32)
    (loop (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (global.get $counter))
  (func (export "forever") (loop (br 0)))
  (func (export "pure") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1)))
  (func $deep (export "overflow") (result i32) (i32.add (i32.const 1) (call $deep))))"""

BRANCHES = ("call", "guarded", "hold", "table")
CHANGES = {"trap": 5, "outside": 6, "throw": 7}
_LEAVES = ("bump", "poke", "peek", "grow", "spin", "overflow", "write", "view", "collect", "sleep")
_OF_IMPORTERS = ("trap", "outside", "throw")
_OF_REFERENCES = ("put", "get", "churn", "put_here", "get_here")


class Mismatch(AssertionError):
    """The library did something else than the model."""


class Boom(Exception):
    """What imports raise for guests to catch."""


class Stop(BaseException):
    """What imports raise that no guest may catch."""


class Thing:
    """A host value."""

    alive: weakref.WeakSet[Thing] = weakref.WeakSet()

    def __init__(self) -> None:
        Thing.alive.add(self)


@dataclass(slots=True)
class Node:
    """One step of a program."""

    kind: str
    number: int = 0
    synchronous: bool = False
    suspending: bool = False  # whether it reaches the asynchronous import
    grouped: bool = False  # whether siblings run at the same time
    parallel: bool = False  # whether its children do
    cancel_seconds: float | None = None
    end: str = "value"  # how its import ends
    swallow: bool = True  # whether what it raises ends here
    children: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Frame:
    """What an import is asked to do, and how it ended."""

    node: Node
    reached: bool = False
    value: int | None = None
    raised: BaseException | None = None


def _wrap(number: int) -> int:
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)


class Writer:
    """Makes random programs."""

    def __init__(self, source: random.Random, kind: str, limited: bool) -> None:
        self.random = source
        self.leaves = [*_LEAVES]
        self.branches: list[str] = []
        if kind != "alone":
            self.leaves += _OF_IMPORTERS
            self.branches += ["call", "guarded", "table"]
        if kind == "references":
            self.leaves += _OF_REFERENCES
            self.branches.append("hold")
        self.limited = limited

    def node(
        self, depth: int, *, asynchronous: bool, grouped: bool = False, quiet: bool = False
    ) -> Node:
        """Return a random step; *quiet* ones are not cancelled: a sibling would be read halfway."""
        draw = self.random
        node = Node("", draw.randrange(1 << 20), grouped=grouped)
        node.synchronous = not asynchronous or draw.random() < 0.4
        node.swallow = grouped or draw.random() < 0.5
        if asynchronous and not quiet and draw.random() < 0.25:
            node.synchronous = False
            node.cancel_seconds = draw.choice([0, 0, 1e-5, 1e-4, 0.0005, 0.001, 0.003, 0.01])
            if draw.random() < 0.2:
                node.kind = "forever"
                return node
        if depth <= 0 or not self.branches or draw.random() < 0.35:
            leaves = self.leaves
            node.kind = draw.choice(leaves)
            if node.kind == "sleep" and node.synchronous:
                node.kind = "collect" if draw.random() < 0.1 else "peek"
            if node.kind == "collect" and draw.random() < 0.8:
                node.kind = "bump"
            if draw.random() < 0.004:
                node.kind = "close"
            return node
        node.kind = draw.choice(self.branches)
        node.suspending = draw.random() < (0.1 if node.synchronous else 0.7)
        node.end = draw.choice(["value"] * 6 + ["boom"] * 2 + ["trap", "stop"])
        inner = node.suspending and not node.synchronous
        node.parallel = inner and not self.limited and draw.random() < 0.2
        for _ in range(draw.choice([0, 1, 1, 2, 3])):
            node.children.append(
                self.node(
                    depth - 1,
                    asynchronous=inner,
                    grouped=node.parallel,
                    quiet=quiet or node.parallel,
                )
            )
        return node


class World:
    """A store with one instance, and the model of its guest."""

    def __init__(
        self, arena: Arena, kind: str, source: random.Random, counts: Counter[str]
    ) -> None:
        self.kind = kind
        self.random = source
        self.counts = counts
        self.fuel = 3_000_000 if source.random() < 0.15 else None
        seconds = 0.03 if self.fuel is None and source.random() < 0.15 else None
        self.limited = self.fuel is not None or seconds is not None
        self.store = aw.Store(
            engine=arena.engine,
            limits=aw.Limits(fuel=self.fuel),
            sync_deadline_seconds=seconds,
            interleave=source.random() < 0.15,
        )
        self.frames: dict[int, Frame] = {}
        self.serial = 0
        self.imports = {"host": {"sync": self.host_sync, "async": self.host_async}}
        self.module = arena.modules[kind]
        self.counter = 0
        self.pages = 1
        self.cells = [0] * CELLS
        self.things: list[Thing | None] = [None] * SLOTS
        self.failure: Mismatch | None = None

    def setup(self, instance: aw.Instance) -> None:
        self.instance = instance
        exports = self.exports = instance.exports
        if self.kind != "alone":
            for index, callable in enumerate((self.host_sync, self.host_async)):
                function = aw.Function((["i32"], ["i32"]), callable)
                exports.functions.set(index, function)
                self.expect(exports.functions.get(index) is function, "a function's identity")

    def expect(self, truth: bool, what: str) -> None:
        if not truth and self.failure is None:
            self.failure = Mismatch(what)
        if self.failure is not None:
            raise self.failure

    # programs

    def run_sync(self, node: Node) -> None:
        """Run one step synchronously."""
        self.counts[f"{node.kind} sync"] += 1
        if self.run_here(node):
            return
        name, arguments, frame = self.prepare(node)
        try:
            result = self.exports[name](*arguments)
        except BaseException as exc:
            self.settle(node, frame, None, exc)
        else:
            self.settle(node, frame, result, None)

    async def run(self, node: Node) -> None:
        """Run one step, cancelled at some point if it says so."""
        if node.cancel_seconds is None:
            await self.run_async(node)
            return
        with anyio.CancelScope() as scope:
            if node.cancel_seconds:
                scope.deadline = anyio.current_time() + node.cancel_seconds
            elif node.kind == "forever" or node.number % 2:
                scope.cancel()
            else:
                scope.deadline = anyio.current_time()
            await self.run_async(node)
        if scope.cancelled_caught:
            self.counts["cancelled"] += 1
            self.read_again()

    async def run_async(self, node: Node) -> None:
        if node.synchronous:
            self.run_sync(node)
            return
        self.counts[f"{node.kind} async"] += 1
        if node.kind == "sleep":
            await anyio.sleep(node.number % 3 / 2000)
            return
        if self.run_here(node):
            return
        name, arguments, frame = self.prepare(node)
        try:
            result = await self.exports[name].call_async(*arguments)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as exc:
            self.settle(node, frame, None, exc)
        else:
            self.settle(node, frame, result, None)

    def prepare(self, node: Node) -> tuple[str, tuple[Any, ...], Frame | None]:
        """Return the export to call, and with what."""
        kind, number = node.kind, node.number
        if kind in BRANCHES:
            frame = Frame(node)
            self.serial += 1
            self.frames[self.serial] = frame
            how = "async" if node.suspending else "sync"
            if kind == "hold":
                return f"hold_{how}", (self.thing(node), self.serial), frame
            name = f"call_{how}_table" if kind == "table" else f"{kind}_{how}"
            return name, (self.serial,), frame
        arguments: dict[str, tuple[Any, ...]] = {
            "bump": (number,),
            "poke": (4 * (number % CELLS), number),
            "peek": (4 * (number % CELLS),),
            "grow": (number % 3,),
            "spin": (1 + number * 4 if number % 4 == 0 else 1 + number % 1000,),
            "churn": (1 + number % 300,),
            "throw": (number,),
            "put": (number % SLOTS, self.thing(node)),
            "get": (number % SLOTS,),
        }
        return kind, arguments.get(kind, ()), None

    def thing(self, node: Node) -> Thing | None:
        """Return a new thing, or one that the guest has."""
        if node.kind not in ("put", "put_here", "hold") or node.number % 7 == 0:
            return None
        thing = self.things[node.number % SLOTS]
        self.latest = Thing() if thing is None or node.number % 3 else thing
        return self.latest

    def run_here(self, node: Node) -> bool:
        """Run a step that is no call; return whether it was one."""
        kind, number = node.kind, node.number
        try:
            if kind == "collect":
                gc.collect(number % 3 if number % 5 else 2)
            elif kind == "close":
                self.store.close()
            elif kind == "sleep":
                time.sleep(number % 3 / 5000)
            elif kind == "write":
                at = number % CELLS
                self.exports.memory.write(4 * at, number.to_bytes(4, "little"))
                self.cells[at] = number
            elif kind == "view":
                view = self.exports.memory.buffer
                found = int.from_bytes(view[4 * (number % CELLS) :][:4], "little", signed=True)
                self.expect(found == self.cells[number % CELLS], f"{found} in the buffer")
                self.expect(len(view) == self.pages << 16, f"{len(view)} bytes")
            elif kind == "put_here":
                thing = self.thing(node)
                self.exports.things.set(number % SLOTS, thing)
                self.things[number % SLOTS] = thing
            elif kind == "get_here":
                found = self.exports.things.get(number % SLOTS)
                self.expect(found is self.things[number % SLOTS], f"{found!r} in the table")
            else:
                return False
        except anyio.BusyResourceError as exc:
            self.expect(node.grouped or self.store.closed, f"{kind}: {exc!r}")
        except anyio.ClosedResourceError as exc:
            self.expect(self.store.closed, f"{kind}: {exc!r}")
        return True

    # imports

    def host_sync(self, serial: int) -> int:
        frame = self.reach(serial)
        try:
            for child in frame.node.children:
                self.run_sync(child)
            return self.end(frame)
        except BaseException as exc:
            frame.raised = exc
            raise

    async def host_async(self, serial: int) -> int:
        frame = self.reach(serial)
        try:
            if frame.node.parallel:
                async with anyio.create_task_group() as tasks:
                    for child in frame.node.children:
                        tasks.start_soon(self.run, child)
            else:
                for child in frame.node.children:
                    await self.run(child)
            return self.end(frame)
        except BaseException as exc:
            frame.raised = exc
            raise

    def reach(self, serial: int) -> Frame:
        frame = self.frames.pop(serial)
        self.expect(not frame.reached, "an import is reached once")
        frame.reached = True
        self.counter = _wrap(self.counter + 1)
        return frame

    def end(self, frame: Frame) -> int:
        end, number = frame.node.end, frame.node.number
        if end == "boom":
            raise Boom(number)
        if end == "trap":
            raise aw.Trap("made here")
        if end == "stop":
            raise Stop(number)
        frame.value = number
        return number

    # the model

    def settle(
        self, node: Node, frame: Frame | None, result: Any, exc: BaseException | None
    ) -> None:
        """Check how a call ended, and let the model follow."""
        if self.failure is not None:
            raise self.failure
        if exc is not None and self.stopped(node, frame, exc):
            return
        if frame is not None:
            self.settle_branch(node, frame, result, exc)
        else:
            self.settle_leaf(node, result, exc)
        if exc is not None and not node.swallow:
            raise exc

    def stopped(self, node: Node, frame: Frame | None, exc: BaseException) -> bool:
        """Return whether *exc* says that the guest was stopped, rather than what it did."""
        if self.store.closed and isinstance(
            exc, (aw.Interrupted, anyio.ClosedResourceError, anyio.BusyResourceError)
        ):
            self.counts["closed"] += 1
            return True
        if isinstance(exc, anyio.BusyResourceError):
            self.counts["busy"] += 1
            self.expect(node.grouped and node.synchronous, f"{node.kind}: {exc!r}")
            return True
        if isinstance(exc, aw.Interrupted) and self.limited:
            self.counts[exc.reason] += 1
            self.expect(exc.reason == ("fuel" if self.fuel is not None else "deadline"), repr(exc))
            if self.fuel is not None:
                self.store.fuel = self.fuel
            self.read_again()
            if not node.swallow:
                raise exc
            return True
        return False

    def settle_branch(
        self, node: Node, frame: Frame, result: Any, exc: BaseException | None
    ) -> None:
        refused = node.synchronous and node.suspending
        raised: BaseException | None = frame.raised
        self.expect(frame.reached is not refused, f"{node.kind}: reached: {frame.reached}: {exc!r}")
        if refused:
            self.counter = _wrap(self.counter + 1)
            raised = exc if node.kind != "guarded" else aw.SuspendError()
            self.expect(isinstance(raised, aw.SuspendError), f"{node.kind}: {exc!r}")
        if raised is None:
            self.expect(exc is None, f"{node.kind}: {exc!r}")
            self.counter = _wrap(self.counter + 2)
            assert frame.value is not None
            value = _wrap(frame.value + self.counter)
            if node.kind == "hold":
                self.expect(result[1] == value, f"hold: {result[1]}, not {value}")
                thing = None if node.number % 7 == 0 else result[0]
                self.expect(result[0] is thing, f"hold: {result[0]!r}")
            else:
                self.expect(result == value, f"{node.kind}: {result}, not {value}")
        elif (
            node.kind == "guarded"
            and isinstance(raised, Exception)
            and not isinstance(raised, aw.Trap)
        ):
            self.expect(exc is None and result == -7, f"guarded: {result}, {exc!r} of {raised!r}")
            self.counter = _wrap(self.counter + 3)
        elif isinstance(raised, aw.WasmException):
            self.expect(
                isinstance(exc, aw.WasmException) and exc.is_tag(self.exports.tag),
                f"{node.kind}: {exc!r}, not {raised!r}",
            )
        else:
            self.expect(exc is raised, f"{node.kind}: {exc!r}, not {raised!r}")

    def settle_leaf(self, node: Node, result: Any, exc: BaseException | None) -> None:
        kind, number = node.kind, node.number
        if kind in CHANGES:
            self.counter = _wrap(self.counter + CHANGES[kind])
            if kind == "throw":
                self.expect(
                    isinstance(exc, aw.WasmException)
                    and exc.is_tag(self.exports.tag)
                    and exc.get_arg(self.exports.tag, 0) == number,
                    f"throw: {exc!r}",
                )
            else:
                code = "UNREACHABLE" if kind == "trap" else "MEMORY_OUT_OF_BOUNDS"
                self.expect(
                    isinstance(exc, aw.Trap) and exc.code is aw.TrapCode[code], f"{kind}: {exc!r}"
                )
            return
        if kind == "overflow":
            self.expect(isinstance(exc, aw.StackOverflow), f"overflow: {exc!r}")
            return
        self.expect(exc is None, f"{kind}: {exc!r}")
        wanted: Any = None
        if kind == "bump":
            self.counter = wanted = _wrap(self.counter + number)
        elif kind in ("spin", "churn"):
            wanted = self.counter
        elif kind == "poke":
            self.cells[number % CELLS] = number
        elif kind == "peek":
            wanted = self.cells[number % CELLS]
        elif kind == "grow":
            wanted = self.pages if self.pages + number % 3 <= MAX_PAGES else -1
            self.pages += number % 3 if wanted != -1 else 0
        elif kind == "put":
            self.things[number % SLOTS] = None if number % 7 == 0 else self.latest_put(number)
        elif kind == "get":
            self.expect(result is self.things[number % SLOTS], f"get: {result!r}")
            return
        self.expect(result == wanted, f"{kind}: {result!r}, not {wanted!r}")

    def latest_put(self, number: int) -> Thing | None:
        # Nobody else can have put anything there since, but another may have made a thing.
        found: Thing | None = self.exports.things.get(number % SLOTS)
        self.expect(isinstance(found, Thing), f"put: {found!r}")
        return found

    def read_again(self) -> None:
        """Take the model from the guest, which was stopped somewhere."""
        if self.store.closed:
            return
        exports = self.exports
        self.counter = exports.counter.value
        memory = exports.memory
        self.pages = memory.byte_length >> 16
        self.cells = list(struct.unpack(f"<{CELLS}i", memory.read(0, 4 * CELLS)))
        if self.kind == "references":
            self.things = [exports.things.get(index) for index in range(SLOTS)]

    def check_idle(self) -> None:
        """Check what is left when no call is in flight."""
        if self.failure is not None:
            raise self.failure
        self.expect(
            not self.store._core._operations,
            f"operations left: {list(self.store._core._operations)}",
        )
        handle = self.store._core._native
        assert handle is not None
        self.expect(not handle.futures, f"{len(handle.futures)} futures left")
        self.expect(not handle.lock.locked(), "the store is locked")
        self.expect(self.store._core.root.current is None, "the room is taken")
        if not self.store.closed:
            before = self.counter, self.pages, self.cells, self.things
            self.read_again()
            after = self.counter, self.pages, self.cells, self.things
            self.expect(before == after, f"model {before}, guest {after}")


class Arena:
    """What all threads share."""

    def __init__(self, seed: int, seconds: float, programs: int | None, pooling: bool) -> None:
        self.seed = seed
        self.end = time.monotonic() + seconds
        self.programs = programs
        self.engine = aw.Engine(aw.EngineConfig(pooling=pooling))
        self.modules = {
            kind: aw.Module(wasm(text), engine=self.engine)
            for kind, text in (("plain", PLAIN), ("references", REFERENCES), ("alone", ALONE))
        }
        self.commons = aw.Instance(self.modules["alone"])
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.lock = threading.Lock()
        self.resident_bytes = 0  # once warm

    def going_on(self, index: int) -> bool:
        if self.failures:
            return False
        if self.programs is not None:
            return index < self.programs
        return time.monotonic() < self.end

    async def run(self, thread: int) -> None:
        """Run programs on this thread's loop."""
        index = 0
        while self.going_on(index):
            source = random.Random(f"{self.seed}/{thread}/{index}")
            counts: Counter[str] = Counter()
            try:
                await self.run_program(source, counts)
            except BaseException as exc:
                if isinstance(exc, anyio.get_cancelled_exc_class()):
                    raise
                import traceback

                text = "".join(traceback.format_exception(exc))
                self.failures.append(f"program {thread}/{index} of seed {self.seed}:\n{text}")
                raise
            with self.lock:
                self.counts += counts
                self.counts["programs"] += 1
            index += 1
            if index == 50 and thread == 0:
                gc.collect()
                self.resident_bytes = resident_bytes()

    async def run_program(self, source: random.Random, counts: Counter[str]) -> None:
        kind = source.choice(["plain", "references", "references", "alone"])
        if source.random() < 0.15:
            await Queue(self, source, counts).run()
            return
        world = World(self, kind, source, counts)
        if source.random() < 0.5:
            instance = await aw.instantiate(world.module, world.imports, store=world.store)
        else:
            instance = aw.Instance(world.module, world.imports, store=world.store)
        world.setup(instance)
        writer = Writer(source, kind, world.limited)
        for _ in range(source.randrange(1, 12)):
            depth = source.choice([0, 1, 2, 3, 3, 4, 7])
            try:
                await world.run(writer.node(depth, asynchronous=True))
            except (Boom, Stop, aw.WasmError, anyio.ClosedResourceError) as exc:
                counts[type(exc).__name__] += 1
            world.check_idle()
            if world.store.closed:
                break
            await self.intrude(source.randrange(1000), counts)
        if source.random() < 0.7:
            world.store.close()

    async def intrude(self, number: int, counts: Counter[str]) -> None:
        """Call into the store that all threads use; they may be in each other's way."""
        try:
            pure = self.commons.exports.pure
            found = pure(number) if number % 2 else await pure.call_async(number)
        except anyio.BusyResourceError:
            counts["intruder refused"] += 1
        else:
            counts["intruder"] += 1
            if found != number + 1:
                raise Mismatch(f"pure: {found}, not {number + 1}")


class Queue:
    """Many tasks call into one store at once, some of them cancelled."""

    def __init__(self, arena: Arena, source: random.Random, counts: Counter[str]) -> None:
        self.world = World(arena, source.choice(["plain", "references"]), source, counts)
        self.world.store = aw.Store(engine=arena.engine, interleave=source.random() < 0.3)
        self.done: list[int] = []
        self.cancelled = 0

    async def run(self) -> None:
        world = self.world
        world.setup(await aw.instantiate(world.module, world.imports, store=world.store))
        plans = [
            (
                world.random.choice([None, None, 0.0, 0.0005, 0.002, 0.01]),
                world.random.choice([1, 1, 1000, 100_000, 3_000_000]),
            )
            for _ in range(world.random.randrange(2, 12))
        ]
        async with anyio.create_task_group() as tasks:
            for seconds, rounds in plans:
                tasks.start_soon(self.bump, seconds, rounds)
        counter = world.exports.counter.value
        world.counts["queued"] += len(plans)
        if len(set(self.done)) != len(self.done) or max([0, *self.done]) > counter:
            raise Mismatch(f"queue: {self.done}, then {counter}")
        if not len(self.done) <= counter <= len(self.done) + self.cancelled:
            raise Mismatch(f"queue: {len(self.done)} done, {self.cancelled} cancelled, {counter}")
        world.counter = counter
        world.check_idle()
        world.store.close()

    async def bump(self, seconds: float | None, rounds: int) -> None:
        function = self.world.exports.slow_bump
        if seconds is None:
            self.done.append(await function.call_async(rounds))
            return
        with anyio.move_on_after(seconds) as scope:
            self.done.append(await function.call_async(rounds))
        self.cancelled += scope.cancelled_caught


def _options(backend: str) -> tuple[str, dict[str, Any]]:
    if backend == "uvloop":
        return "asyncio", {"use_uvloop": True}
    return backend, {}


def run(
    *,
    seconds: float,
    seed: int = 1,
    backend: str = "asyncio",
    threads: int = 2,
    programs: int | None = None,
    only: int | None = None,
    pooling: bool = False,
) -> tuple[Counter[str], list[str]]:
    """Run programs, and return what was done and what went wrong."""
    aw.configure_sync_guard(action="ignore")
    arena = Arena(seed, seconds, programs, pooling)
    name, options = _options(backend)

    def work(thread: int) -> None:
        try:
            anyio.run(arena.run, thread, backend=name, backend_options=options)
        except BaseException as exc:
            if not arena.failures:
                arena.failures.append(f"thread {thread}: {exc!r}")

    numbers = range(threads) if only is None else [only]
    workers = [threading.Thread(target=work, args=(each,), daemon=True) for each in numbers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    counts, failures = arena.counts, arena.failures
    if not failures:
        failures += _leaks(arena)
    return counts, failures


def _leaks(arena: Arena) -> list[str]:
    """End the arena, and return what it has left."""
    found = []
    warm = arena.resident_bytes
    engine = weakref.ref(arena.engine)
    arena.commons.close()
    arena.engine.close()
    del arena.commons, arena.engine, arena.modules
    _wait_until(lambda: (gc.collect(), engine() is None and not _ours())[1])
    if engine() is not None:
        found.append("the engine is still there")
    if _ours():
        found.append(f"threads left: {_ours()}")
    stores = [each for each in gc.get_objects() if isinstance(each, aw.Store)]
    if stores:
        found.append(f"stores left: {stores}")
    if len(Thing.alive):
        found.append(f"{len(Thing.alive)} host values left")
    grown = resident_bytes() - warm
    if warm and grown > GROWTH_BYTES:
        found.append(f"resident memory has grown by {grown:,} bytes")
    arena.counts["resident KiB grown"] = max(grown >> 10, 0) if warm else 0
    return found


def _ours() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("asyncwasm")]


def _wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SETTLE_SECONDS
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Random programs.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", choices=["asyncio", "uvloop", "trio"], default="asyncio")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--programs", type=int, help="programs a thread, instead of seconds")
    parser.add_argument("--only", type=int, help="the one thread to run, to reproduce")
    parser.add_argument("--pooling", action="store_true", help="take all memory from a pool")
    options = parser.parse_args()
    faulthandler.dump_traceback_later(options.seconds + HANG_SECONDS, exit=True)
    counts, failures = run(**vars(options))
    faulthandler.cancel_dump_traceback_later()
    for name, count in sorted(counts.items()):
        sys.stdout.write(f"{count:10,}  {name}\n")
    for failure in failures:
        sys.stdout.write(f"FAILED: {failure}\n")
    sys.stdout.write(f"{'FAILED' if failures else 'passed'}, seed {options.seed}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""
Host functions of synchronous calls: they run while their guest waits on the same stack.

What they do with its store, and what happens to the guest meanwhile, must be no different from
what it is where the guest waits on a fiber.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import threading
import time
from typing import Any

import anyio
import pytest

import asyncwasm as aw
from asyncwasm._ffi.accelerator import speedups

from .guests import GUEST, check_stopped, guest, not_measured
from .support import instance, module, run_script

TWO_RESULTS = """(module
  (import "host" "f" (func $f (param i32 i64) (result f64 i32)))
  (func (export "call") (param i32 i64) (result f64 i32)
    (call $f (local.get 0) (local.get 1))))"""

CATCHING = """(module
  (import "host" "f" (func $f (param i32) (result i32)))
  (func (export "plain") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1)))
  (func (export "call") (param i32) (result i32)
    (block $caught
      (return (try_table (result i32) (catch_all $caught) (call $f (local.get 0)))))
    (i32.const -1)))"""


accelerated = speedups is not None


class Stop(BaseException):
    pass


def check_usable(made: aw.Instance) -> None:
    assert made.exports.plain(1) == 2
    asyncio.run(check_stopped(made))


def test_import_can_call_the_guest_again_and_again() -> None:
    def down(value: int) -> int:
        return value if value == 0 else made.exports.call(value - 1) + 1

    made = guest(down)

    assert made.exports.call(60) == 60
    check_usable(made)


def test_several_results_of_an_import_are_a_tuple_or_any_iterable() -> None:
    answers: list[Any] = [(0.5, 7), [1, True], iter((2.5, -1)), (1, 2, 3), 4]
    made = instance(TWO_RESULTS, {"host": {"f": lambda i, _: answers[i]}})

    assert made.exports.call(0, -1) == (0.5, 7)
    assert made.exports.call(1, 2**63 - 1) == (1.0, 1)
    assert made.exports.call(2, 0) == (2.5, -1)
    with pytest.raises(TypeError, match="2 results, got 3"):
        made.exports.call(3, 0)
    with pytest.raises(TypeError, match="must return an iterable, got int"):
        made.exports.call(4, 0)


def test_guest_catches_exceptions_of_its_import_but_no_cancellation() -> None:
    raises: list[BaseException] = [ValueError("mine"), Stop(), aw.Trap("a trap", None, ())]

    def f(index: int) -> int:
        raise raises[index]

    made = instance(CATCHING, {"host": {"f": f}})

    assert made.exports.call(0) == -1
    for index in (1, 2):
        with pytest.raises(type(raises[index])) as caught:
            made.exports.call(index)
        assert caught.value is raises[index]
    assert made.exports.plain(1) == 2


def test_coroutine_of_a_synchronous_call_is_a_suspend_error_that_the_guest_can_catch() -> None:
    async def f(value: int) -> int:
        return value

    made = instance(CATCHING, {"host": {"f": f}})

    assert made.exports.call(1) == -1
    with pytest.raises(aw.SuspendError, match="call_async"):
        guest(f).exports.call(1)


def test_value_that_an_import_must_not_return_is_an_error_at_the_call() -> None:
    for value, error in (("x", TypeError), (2**40, OverflowError), (None, TypeError)):
        made = guest(lambda _, value=value: value)
        with pytest.raises(error):
            made.exports.call(1)
        check_usable(made)


def test_import_can_instantiate_and_grow_in_its_store() -> None:
    other = module('(module (memory (export "m") 1) (func (export "f") (result i32) i32.const 3))')
    seen: list[Any] = []

    def f(value: int) -> int:
        made.exports.memory.grow(1)
        one = aw.Instance(other, store=made.store)
        seen.append(one.exports.f())
        made.exports.memory.write(0, b"\1")
        return value

    made = guest(f)

    assert made.exports.call(5) == 5
    assert made.exports.call_until_call() == 2
    assert seen == [3, 3, 3]
    assert made.exports.memory.byte_length == 4 * 65536


def to_its_end(coroutine: Any) -> Any:
    while True:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value


async def test_import_that_leaves_a_call_suspended_on_top_of_its_guest_is_refused() -> None:
    """What it has started can go on to its end all the same."""
    started: list[Any] = []

    async def wait(value: int) -> int:
        await asyncio.sleep(0)
        return value

    def start(value: int) -> int:
        coroutine = made.exports.call.call_async(value)
        coroutine.send(None)
        started.append(coroutine)
        return value

    made = guest(wait)
    below = instance(GUEST, {"host": {"f": start}}, store=made.store)

    with pytest.raises(anyio.BusyResourceError):
        below.exports.call(5)
    assert to_its_end(started[0]) == 5
    assert made.exports.plain(1) == 2
    await check_stopped(made)


def test_import_that_closes_the_store_ends_its_guest_and_those_around_it() -> None:
    def f(value: int) -> int:
        if value:
            return int(made.exports.call(value - 1))
        made.store.close()
        return 1

    made = guest(f)

    with pytest.raises(aw.Interrupted) as caught:
        made.exports.call(3)
    assert caught.value.reason == "closed"
    with pytest.raises(anyio.ClosedResourceError):
        made.exports.plain(1)


def test_store_that_another_thread_closes_during_an_import_ends_the_call() -> None:
    def f(value: int) -> int:
        thread = threading.Thread(target=made.store.close)
        thread.start()
        thread.join()
        with pytest.raises(anyio.ClosedResourceError):
            made.exports.memory.read(0, 1)
        return value

    made = guest(f)
    buffer = made.exports.memory.buffer

    with pytest.raises(aw.Interrupted):
        made.exports.call(1)
    assert buffer[0] == 0  # it reads what is still there


def test_other_threads_look_during_an_import_but_do_not_call() -> None:
    found: list[Any] = []

    def elsewhere() -> None:
        found.append(bytes(made.exports.memory.read(0, 1)))
        try:
            made.exports.plain(1)
        except anyio.BusyResourceError as exc:
            found.append(type(exc))

    def f(value: int) -> int:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return value

    made = guest(f)

    assert made.exports.call(1) == 1
    assert found == [b"\0", anyio.BusyResourceError]
    check_usable(made)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here")
def test_signal_handler_ends_a_guest_that_has_host_functions_and_calls_none() -> None:
    def alarm(number: int, frame: object) -> None:
        assert made.exports.memory.read(0, 1) == b"\0"  # nobody is inside
        raise Stop

    made = guest(lambda value: value, engine=aw.Engine())  # whose clock nobody else needs
    before = signal.signal(signal.SIGALRM, alarm)
    try:
        signal.setitimer(
            signal.ITIMER_REAL, 0.3
        )  # a clock that nobody needs has come to rest by then
        with pytest.raises(Stop):
            made.exports.spin()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    check_usable(made)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_import_that_forks_goes_on_in_the_parent_and_is_refused_in_the_child() -> None:
    def f(value: int) -> int:
        children.append(os.fork())
        return value

    children: list[int] = []
    made = guest(f)

    try:
        result: Any = made.exports.call(1)
    except anyio.ClosedResourceError:
        result = "refused"
    if children == [0]:
        os._exit(7 if result == "refused" else 8)

    assert result == 1
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7


def test_deadline_of_a_store_holds_for_calls_into_another_one_with_host_functions() -> None:
    inner = guest(lambda value: value)

    def f(value: int) -> int:
        inner.exports.spin()
        return value

    outer = instance(GUEST, {"host": {"f": f}}, store=aw.Store(sync_deadline_seconds=0.05))

    with pytest.raises(aw.Interrupted) as caught:
        outer.exports.call(1)
    assert caught.value.reason == "deadline"
    check_usable(inner)


def test_hammer_of_calls_from_threads_runs_each_whole_or_refuses_it() -> None:
    inside: list[int] = []
    overlaps: list[int] = []
    done: list[bool] = []

    def f(value: int) -> int:
        inside.append(value)
        if value % 7 == 0:
            time.sleep(0)
        if len(inside) > 1:
            overlaps.append(value)
        inside.remove(value)
        return value

    made = guest(f)

    def work() -> None:
        for value in range(1, 300):
            try:
                assert made.exports.call_twice(value) == value
                done.append(True)
            except anyio.BusyResourceError:
                done.append(False)
            try:
                assert made.exports.memory.read(0, 1) == b"\0"
            except anyio.BusyResourceError:
                pass  # the guest of another thread is inside

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert overlaps == []
    assert len(done) == 3 * 299
    check_usable(made)


REFUSALS = (
    anyio.BusyResourceError,
    anyio.ClosedResourceError,
    aw.Trap,
    RecursionError,
    ValueError,
    Stop,
)


class Turmoil:
    """Guests whose imports do at random what they are allowed to, and what they are not."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.depth = threading.local()
        self.unexpected: list[BaseException] = []
        self.guests = [self.new(index) for index in range(3)]

    def new(self, index: int) -> aw.Instance:
        store = aw.Store(interleave=self.draw.random() < 0.3)
        return guest(lambda value: self.act(index, value), store=store)

    def act(self, index: int, value: int) -> int:
        depth = getattr(self.depth, "value", 0)
        if depth > 4:
            return value
        self.depth.value = depth + 1
        made, chance = self.guests[index], self.draw.random()
        try:
            if chance < 0.3:
                return int(made.exports[self.draw.choice(CALLED)](value % 20 + 1) or 0)
            if chance < 0.4:
                return int(self.guests[index - 1].exports.call(value))
            if chance < 0.45:
                raise ValueError(value)
            if chance < 0.47:
                raise Stop
            if chance < 0.49:
                made.store.close()
            elif chance < 0.55:
                made.exports.memory.write(16, b"x")
            elif chance < 0.57:
                thread = threading.Thread(target=self.call, args=(index, value))
                thread.start()
                thread.join()
            elif chance < 0.6:
                gc.collect(0)
            return value
        finally:
            self.depth.value = depth

    def call(self, index: int, value: int) -> None:
        made = self.guests[index]
        try:
            made.exports[self.draw.choice(CALLED)](value)
        except REFUSALS:
            pass
        except BaseException as exc:
            self.unexpected.append(exc)
        if made.store.closed:
            self.guests[index] = self.new(index)

    async def call_async(self, index: int, value: int) -> None:
        made = self.guests[index]
        try:
            with anyio.move_on_after(self.draw.choice([1, 1, 0.001, 0])):
                await made.exports[self.draw.choice(CALLED)].call_async(value)
        except REFUSALS:
            pass
        except BaseException as exc:
            self.unexpected.append(exc)
            raise
        if made.store.closed:
            self.guests[index] = self.new(index)


CALLED = ("plain", "malloc", "call", "call_twice", "sum")


@not_measured
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_hammer_of_imports_that_do_anything_on_threads_and_in_tasks(seed: int) -> None:
    turmoil = Turmoil(seed)
    draw = random.Random(seed)

    def work() -> None:
        for _ in range(300):
            turmoil.call(draw.randrange(3), draw.randrange(1, 30))

    async def run() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(turmoil.call_async, draw.randrange(3), draw.randrange(1, 30))

    threads = [threading.Thread(target=each) for each in (work, work, lambda: asyncio.run(run()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert turmoil.unexpected == []
    check_usable(guest(abs))


SMALL_STACK = """
import threading
import asyncwasm as aw

TEXT = '''(module
  (import "host" "f" (func $f (param i32) (result i32)))
  (func $deep (export "deep") (param i32) (result i32)
    (i32.add (i32.const 1) (call $deep (i32.add (local.get 0) (call $f (local.get 0)))))))'''
ALONE = '''(module (func $deep (export "deep") (param i32) (result i32)
    (i32.add (i32.const 1) (call $deep (i32.add (local.get 0) (i32.const 1))))))'''
hosted = aw.Instance(aw.Module(aw.wat2wasm(TEXT)), {"host": {"f": lambda x: 1}})
alone = aw.Instance(aw.Module(aw.wat2wasm(ALONE)))
found = []

def run():
    for each in (hosted, alone):
        try:
            each.exports.deep(0)
        except aw.StackOverflow:
            found.append("overflow")

threading.stack_size(512 << 10)
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(*found)
"""

GREENLETS = """
import json
import sys
import greenlet
import asyncwasm as aw

TEXT = '''(module
  (import "host" "f" (func $f (param i32) (result i32)))
  (func (export "call") (param i32) (result i32)
    (i32.div_u (i32.const 100) (call $f (local.get 0)))))'''
module = aw.Module(aw.wat2wasm(TEXT))
main = greenlet.getcurrent()
seen = []

def f(value):
    seen.append(value)
    main.switch()
    return value

def work(value, f):
    made = aw.Instance(module, {"host": {"f": f}})
    try:
        return made.exports.call(value)
    except aw.Trap as exc:
        return exc.code.name

def use_the_stack():
    try:
        json.loads("[" * 800 + "1" + "]" * 800)
    finally:
        return work(0, lambda value: value)

lets = [greenlet.greenlet(work) for _ in range(4)]
for value, each in enumerate(lets):
    each.switch(value, f)
print(*seen, use_the_stack(), *(each.switch() for each in lets))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not accelerated or sys.platform != "linux",
    reason="only the accelerator can tell how large a stack is",
)
def test_guest_that_recurses_on_a_small_stack_overflows_and_does_not_crash() -> None:
    done = run_script(SMALL_STACK)

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["overflow", "overflow"]


@pytest.mark.slow
def test_greenlets_that_switch_inside_of_imports_do_not_crash() -> None:
    """They move pieces of the stack, on which the library has its records."""
    pytest.importorskip("greenlet")

    done = run_script(GREENLETS)

    assert done.returncode == 0, done.stderr[-3000:]
    zero = "INTEGER_DIVISION_BY_ZERO"
    assert done.stdout.split() == ["0", "1", "2", "3", zero, zero, "100", "50", "33"]

"""
Synchronous calls of guests that call no host function: they hold nobody up, and can be ended.

A guest of theirs may hold the interpreter's lock until the clock ticks. Here guests never end by
themselves, so that a test in which others had to wait for them would not end either.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import Any

import pytest

import asyncwasm as aw
from asyncwasm._ffi.accelerator import speedups

from .support import SPIN, instance, module, run_script

compiled = pytest.mark.skipif(speedups is None, reason="only the accelerator can end them")

FILLING = """(module (memory (export "memory") 1024)
  (func (export "fill") (param i32) (loop
    (memory.fill (i32.const 0) (i32.const 1) (i32.mul (local.get 0) (i32.const 67108864)))
    (br_if 0 (local.get 0))))
  (func (export "plain") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1))))"""
SHORT = """(module (memory (export "memory") 1)
  (func $none (export "none"))
  (func (export "spin") (param i32) (loop (call $none) (br_if 0 (local.get 0))))
  (func (export "work") (param $n i32) (result i32)
    (loop (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1))))) (i32.const 2))
  (func (export "plain") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1))))"""
WAITING = """(module (memory (export "memory") 1 1 shared)
  (func (export "wait") (param i32)
    (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0)
      (i64.sub (i64.const 0) (i64.extend_i32_u (local.get 0))))))
  (func (export "plain") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1))))"""

WAKING = """(module (import "host" "memory" (memory 1 1 shared))
  (func (export "wake") (result i32) (memory.atomic.notify (i32.const 0) (i32.const 1))))"""

GREENLETS = """
import signal
import greenlet
import asyncwasm as aw

TEXT = '''(module (import "host" "f" (func $f (param i32) (result i32)))
  (func (export "call") (param i32) (result i32) (call $f (local.get 0)))
  (func (export "spin") (loop (br 0))))'''

def stop(*_):
    raise TimeoutError

if USED:
    greenlet.greenlet(print)
standing = []
def f(value):
    standing.append(made._store.handle.standing)
    return value
made = aw.Instance(aw.Module(aw.wat2wasm(TEXT)), {"host": {"f": f}})
call = made.exports.call
answer = [call(3) for _ in range(3)][-1]
print(standing[-1] == 0, answer)
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    made.exports.spin()
except TimeoutError:
    print("stopped")
"""


class Stop(BaseException):
    pass


def warm(function: Any) -> None:
    """Call a function so often that it is taken for a short one."""
    end = time.monotonic() + 0.02  # twenty ticks
    while time.monotonic() < end:
        function(0)


def call_while_others_run(made: aw.Instance, name: str, end: Any) -> list[BaseException]:
    """Call a function that never ends on a thread; when this one has run for a while, *end* it."""
    raised: list[BaseException] = []
    begun = threading.Event()

    def call() -> None:
        function = made.exports[name]
        warm(function)
        begun.set()
        try:
            function(1)
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=call)
    thread.start()
    assert begun.wait(30)
    for _ in range(100_000):  # which takes several turns of the interpreter's lock
        pass
    end()
    thread.join(30)
    assert not thread.is_alive()
    return raised


@compiled
@pytest.mark.parametrize("name", ["spin", "fill"])
def test_guest_that_never_ends_lets_others_run_and_ends_with_its_store(name: str) -> None:
    made = instance(SHORT if name == "spin" else FILLING)

    raised = call_while_others_run(made, name, made.close)

    assert [type(each) for each in raised] == [aw.Interrupted]
    assert raised[0].reason == "closed"  # type: ignore[attr-defined]


def test_guest_that_waits_for_another_lets_it_run() -> None:
    made = instance(WAITING)
    waker = instance(WAKING, {"host": {"memory": made.exports.memory}}, store=aw.Store())

    def wake() -> None:
        while not waker.exports.wake():
            pass

    assert call_while_others_run(made, "wait", wake) == []
    assert made.exports.plain(1) == 2


@compiled
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here")
@pytest.mark.parametrize("warmed", [True, False], ids=["clock ticks", "clock rests"])
def test_signal_handler_ends_a_guest_without_imports(warmed: bool) -> None:
    def alarm(number: int, frame: object) -> None:
        assert made.exports.memory.read(0, 1) == b"\0"  # nobody is inside
        seen.append(made.exports.work(200_000_000))  # long enough to look for signals again
        raise Stop

    seen: list[int] = []
    made = aw.Instance(aw.Module(aw.wat2wasm(SHORT), engine=aw.Engine()))  # nobody else's clock
    if warmed:
        warm(made.exports.spin)
    before = signal.signal(signal.SIGALRM, alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Stop):
            made.exports.spin(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert seen == [2]
    assert made.exports.plain(1) == 2
    assert asyncio.run(made.exports.plain.call_async(2)) == 3


@compiled
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here")
@pytest.mark.parametrize("used", [False, True], ids=["loaded", "used"])
def test_greenlets_matter_only_where_they_are_used(used: bool) -> None:
    """structlog loads them wherever they are installed; who uses them gets fibers."""
    pytest.importorskip("greenlet")

    done = run_script(GREENLETS.replace("USED", str(used)))

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [str(used), "3", "stopped"]


@compiled
def test_guest_goes_on_after_signal_handlers_that_return() -> None:
    def note(number: int, frame: object) -> None:
        seen.append(number)

    seen: list[int] = []
    made = instance(SPIN)
    before = signal.signal(signal.SIGUSR1, note)
    try:
        for _ in range(50):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert made.exports.work(100_000) == made.exports.work(100_000)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert len(seen) == 50


async def test_direct_and_awaited_calls_of_one_store_take_turns_on_its_clock() -> None:
    """Each sets the deadline that it needs, whatever the others have left there."""
    made = aw.Instance(aw.Module(aw.wat2wasm(SPIN), engine=aw.Engine()))
    work = made.exports.work
    expected = work(1000)

    for _ in range(20):
        assert work(1000) == expected
        assert await work.call_async(200_000) == work(200_000)
        assert aw.Instance(made.module, store=made.store).exports.work(1000) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_process_has_a_clock_of_its_own() -> None:
    made = instance(SPIN)
    made.exports.work(1000)  # the clock ticks, on a thread that the child does not have

    child = os.fork()
    if child == 0:  # pragma: no cover  # in another process
        status = 1
        try:
            with aw.Store(sync_deadline_seconds=0.05) as store:
                aw.Instance(module(SPIN), store=store).exports.spin()
        except aw.Interrupted as exc:
            status = 0 if exc.reason == "deadline" else 2
        finally:
            os._exit(status)

    _, status = os.waitpid(child, 0)
    assert status == 0
    assert made.exports.work(1000) == made.exports.work(1000)

"""The deadline of a store for synchronous calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

import asyncwasm as aw

from .support import CALLER, SPIN, instance

SECONDS = 0.05
AGES_SECONDS = 30.0  # far above what any of these may take; never reached

START = """(module (import "host" "f" (func $f (param i32) (result i32)))
  (func $spin (drop (call $f (i32.const 1))) (loop (br 0))) (start $spin))"""
START_ALONE = "(module (func $spin (loop (br 0))) (start $spin))"
OBJECTS = """(module
  (func (export "spin") (param externref) (loop (br 0)))
  (func (export "same") (param externref) (result externref) (local.get 0)))"""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    aw.configure_sync_guard(action="ignore")


@pytest.fixture
def store() -> Iterator[aw.Store]:
    """Return a store with a short deadline, and an engine that nobody else keeps busy."""
    with aw.Engine() as engine:
        yield aw.Store(engine=engine, sync_deadline_seconds=SECONDS)


def in_store(store: aw.Store, text: str, imports: Any = None) -> aw.Instance:
    return aw.Instance(aw.Module(aw.wat2wasm(text), engine=store.engine), imports, store=store)


def interrupted(function: Callable[..., Any], *arguments: Any) -> aw.Interrupted:
    """Return the error that *function* ends with, not before its time."""
    started = time.perf_counter()
    with pytest.raises(aw.Interrupted) as caught:
        function(*arguments)
    seconds = time.perf_counter() - started

    assert caught.value.reason == "deadline"
    assert SECONDS * 0.99 <= seconds < AGES_SECONDS
    return caught.value


def wait_until_parked(store: aw.Store) -> bool:
    end = time.monotonic() + AGES_SECONDS
    while store.engine._core.ticker.running and time.monotonic() < end:
        time.sleep(0.01)
    return not store.engine._core.ticker.running


def test_direct_call_is_stopped_and_the_next_one_works(store: aw.Store) -> None:
    exports = in_store(store, SPIN).exports

    for _ in range(3):
        exc = interrupted(exports.spin)
        assert exc.code is aw.TrapCode.INTERRUPT
        assert exports.one() == 1


def test_direct_call_is_stopped_after_an_awaited_one(store: aw.Store) -> None:
    """Once fibers have run in a store, the library reports the deadline in another way."""
    exports = in_store(store, SPIN).exports

    async def main() -> None:
        assert await exports.one.call_async() == 1

    anyio.run(main)
    interrupted(exports.spin)
    assert exports.one() == 1
    anyio.run(main)
    interrupted(exports.spin)


def test_call_in_a_store_with_imports_is_stopped(store: aw.Store) -> None:
    exports = in_store(store, CALLER, {"host": {"f": lambda x: x}}).exports

    interrupted(exports.spin)
    assert exports.call(3) == 3
    interrupted(exports.sum, 2**31 - 1)
    assert exports.sum(3) == 9 - 3


def test_call_with_references_is_stopped(store: aw.Store) -> None:
    exports = in_store(store, OBJECTS).exports
    thing = object()

    interrupted(exports.spin, thing)
    assert exports.same(thing) is thing


def test_time_in_imports_counts(store: aw.Store) -> None:
    done = []

    def slow(x: int) -> int:
        time.sleep(2 * SECONDS)
        done.append(x)
        return x

    exports = in_store(store, CALLER, {"host": {"f": slow}}).exports

    interrupted(exports.call, 7)
    assert done == [7]  # only the guest is stopped


def test_nested_call_ends_with_the_outer_one(store: aw.Store) -> None:
    """An import that calls again and again does not get a new deadline each time."""
    calls: list[object] = []

    def nest(x: int) -> int:
        calls.append(x)
        try:
            exports.spin()
        except aw.Interrupted as exc:
            calls.append(exc)
        return x

    exports = in_store(store, CALLER, {"host": {"f": nest}}).exports

    interrupted(exports.sum, 1000)
    assert len(calls) == 2
    assert exports.plain(1) == 2


def test_guest_cannot_catch_the_deadline(store: aw.Store) -> None:
    text = """(module (import "host" "f" (func $f))
      (func (export "try") (result i32)
        (block $caught
          (try_table (catch_all $caught) (call $f) (loop (br 0))))
        (i32.const 1)))"""
    exports = in_store(store, text, {"host": {"f": lambda: None}}).exports

    interrupted(exports["try"])


@pytest.mark.parametrize("text", [START, START_ALONE], ids=["imports", "alone"])
def test_start_function_is_stopped(store: aw.Store, text: str) -> None:
    interrupted(in_store, store, text, {"host": {"f": lambda x: x}})

    assert in_store(store, SPIN).exports.one() == 1


def test_awaited_calls_have_no_deadline(store: aw.Store) -> None:
    exports = in_store(store, SPIN).exports

    async def main() -> bool:
        with anyio.move_on_after(4 * SECONDS) as scope:
            await exports.spin.call_async()
        return scope.cancelled_caught

    assert anyio.run(main)


def test_long_deadline_lets_a_call_finish() -> None:
    exports = instance(SPIN, store=aw.Store(sync_deadline_seconds=AGES_SECONDS)).exports

    exports.work(20_000_000)
    assert exports.one() == 1


@pytest.mark.parametrize("text", [SPIN, CALLER], ids=["direct", "polled"])
def test_clock_stops_when_nothing_runs(store: aw.Store, text: str) -> None:
    exports = in_store(store, text, {"host": {"f": lambda x: x}}).exports

    interrupted(exports.spin)
    assert not store.engine._core.ticker.held
    assert wait_until_parked(store)

    interrupted(exports.spin)  # and it starts again


def test_clock_stops_after_a_call_that_trapped(store: aw.Store) -> None:
    exports = in_store(store, '(module (func (export "trap") unreachable))').exports

    with pytest.raises(aw.Trap, match="unreachable"):
        exports.trap()

    assert not store.engine._core.ticker.held


@pytest.mark.slow
def test_deadline_holds_while_python_is_busy(store: aw.Store) -> None:
    """The clock's thread waits for the GIL then, and makes up for the ticks it has missed."""
    exports = in_store(store, SPIN).exports
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=burn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            interrupted(exports.spin)
            assert exports.one() == 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_two_stores_of_one_engine_keep_their_own_deadlines() -> None:
    with aw.Engine() as engine:
        module = aw.Module(aw.wat2wasm(SPIN), engine=engine)
        seen: list[bool] = []

        def run() -> None:
            store = aw.Store(engine=engine, sync_deadline_seconds=SECONDS)
            interrupted(aw.Instance(module, store=store).exports.spin)
            seen.append(True)

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        aw.Instance(module, store=aw.Store(engine=engine)).exports.work(50_000_000)
        for thread in threads:
            thread.join()

        assert seen == [True, True]
        assert not engine._core.ticker.held


@pytest.mark.parametrize("seconds", [0, -1, 0.0, float("inf"), float("nan")])
def test_deadline_is_positive_and_finite(seconds: float) -> None:
    with pytest.raises(ValueError, match="sync_deadline_seconds"):
        aw.Store(sync_deadline_seconds=seconds)


@pytest.mark.parametrize("seconds", ["1", True, 1j, []])
def test_deadline_is_a_number(seconds: Any) -> None:
    with pytest.raises(TypeError, match="sync_deadline_seconds"):
        aw.Store(sync_deadline_seconds=seconds)


def test_deadline_can_be_read() -> None:
    assert aw.Store().sync_deadline_seconds is None
    assert aw.Store(sync_deadline_seconds=2).sync_deadline_seconds == 2

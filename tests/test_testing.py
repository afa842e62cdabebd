"""asyncwasm.testing: its detector finds leaks, and its clock ticks when told."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

import asyncwasm as aw
from asyncwasm import testing

from .support import ADD, CALLER, SPIN

REFS = """(module
  (table (export "table") 1 externref)
  (func (export "put") (param externref) (table.set (i32.const 0) (local.get 0))))"""
BUSY = 300_000_000  # rounds of `work`: some tenths of a second


@pytest.fixture(autouse=True)
def _quiet() -> None:
    aw.configure_sync_guard(action="ignore")


@pytest.fixture
def engine() -> Iterator[aw.Engine]:
    with aw.Engine() as engine:
        yield engine


def in_engine(engine: aw.Engine, text: str) -> aw.Instance:
    return aw.Instance(aw.Module(aw.wat2wasm(text), engine=engine))


def leak(block: Callable[[], object]) -> str:
    """Return what `leak_check` says about what *block* makes and returns."""
    kept: Any = None
    with pytest.raises(AssertionError) as caught, testing.leak_check():
        kept = block()
    del kept
    return str(caught.value)


# wat


def test_wat_compiles_a_text_once() -> None:
    assert testing.wat(ADD) is testing.wat(ADD)
    assert aw.Instance(testing.wat(ADD)).exports.add(1, 2) == 3


def test_wat_refuses_bad_text() -> None:
    with pytest.raises(aw.CompileError):
        testing.wat("(module")


# leak_check


def test_block_that_closes_everything_passes() -> None:
    with (
        testing.leak_check(),
        aw.Instance(testing.wat(CALLER), {"host": {"f": int}}) as instance,
    ):
        assert instance.exports.call(1) == 1
        anyio.run(instance.exports.sum.call_async, 3)


def test_block_that_drops_everything_passes() -> None:
    """Freed by garbage collection counts as freed, also in a cycle through a guest."""

    def block() -> None:
        def f(x: int) -> int:
            return x + len(instance.exports)

        instance = aw.Instance(testing.wat(CALLER), {"host": {"f": f}})
        instance.exports.call(1)

    with testing.leak_check():
        block()


def test_collection_on_another_thread_is_waited_for() -> None:
    """Meanwhile, Python's collector does nothing for whoever asks it."""
    begun = threading.Event()

    class Slow:
        def __del__(self) -> None:
            begun.set()
            threading.Event().wait(0.05)

    def collect() -> None:
        slow: Any = Slow()
        slow.itself = slow
        del slow
        gc.collect()

    def block() -> None:
        def f(x: int) -> int:
            return x + len(instance.exports)

        instance = aw.Instance(testing.wat(CALLER), {"host": {"f": f}})
        instance.exports.call(1)

    block()  # makes the default engine, if it is not there
    thread = threading.Thread(target=collect)
    with testing.leak_check():
        thread.start()
        begun.wait()
        block()
    thread.join()


def test_what_was_there_before_is_no_leak() -> None:
    instance = aw.Instance(testing.wat(REFS))
    instance.exports.put(object())

    with testing.leak_check():
        instance.exports.put(None)


def test_store_is_reported_with_its_place() -> None:
    text = leak(lambda: aw.Instance(testing.wat(ADD)))

    assert text.startswith("1 leak:\n- a store, made at\n")
    assert "test_testing.py" in text
    assert "aw.Instance(testing.wat(ADD))" in text


def test_store_is_reported_with_its_host_values() -> None:
    def block() -> aw.Instance:
        instance = aw.Instance(testing.wat(REFS))
        instance.exports.put(object())
        return instance

    assert "a store with 1 host values, made at" in leak(block)


def test_view_of_a_closed_store_is_reported() -> None:
    def block() -> memoryview:
        with aw.Instance(testing.wat(CALLER), {"host": {"f": int}}) as instance:
            view: memoryview = instance.exports.memory.buffer
            return view

    assert "- a closed store, kept by a view of its memory, made at" in leak(block)


def test_host_value_is_reported_with_its_place() -> None:
    instance = aw.Instance(testing.wat(REFS))

    text = leak(lambda: instance.exports.put("a string of the test's"))

    assert '- a host value: "a string of the test\'s", handed over at' in text
    assert "instance.exports.put(" in text


def test_host_value_that_the_guest_has_let_go_is_no_leak() -> None:
    instance = aw.Instance(testing.wat(REFS))

    with testing.leak_check():
        instance.exports.put(object())
        instance.exports.put(None)


def test_suspended_call_is_reported_with_its_place() -> None:
    instance = aw.Instance(
        testing.wat(CALLER), {"host": {"f": aw.Suspending(lambda x: anyio.sleep(x))}}
    )

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            check = testing.leak_check()
            check.__enter__()
            tasks.start_soon(instance.exports.call.call_async, 1000)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(AssertionError, match="- a suspended call: function '1', made at"):
                check.__exit__(None, None, None)
            tasks.cancel_scope.cancel()

    anyio.run(main)


@pytest.mark.slow
def test_thread_of_an_engine_is_reported_with_its_place() -> None:
    async def compile_with(engine: aw.Engine) -> None:
        await aw.compile(aw.wat2wasm(ADD), engine=engine)

    def block() -> aw.Engine:
        engine = aw.Engine()
        anyio.run(compile_with, engine)
        return engine

    text = leak(block)

    assert "- a thread: asyncwasm compiler, of an engine made at" in text
    assert "engine = aw.Engine()" in text


def test_engine_that_is_closed_passes() -> None:
    async def compile_with(engine: aw.Engine) -> None:
        await aw.compile(aw.wat2wasm(ADD), engine=engine)

    def block() -> None:
        with aw.Engine() as engine:
            anyio.run(compile_with, engine)

    with testing.leak_check():
        block()


@pytest.mark.slow
def test_thread_at_work_is_reported(engine: aw.Engine) -> None:
    end = threading.Event()

    def block() -> None:
        begun = threading.Event()

        def job() -> None:
            begun.set()
            end.wait()

        engine._core.runners.submit(job)
        assert begun.wait(30)

    try:
        assert "- a thread: asyncwasm runner" in leak(block)
    finally:
        end.set()


@pytest.mark.slow
def test_clock_that_is_held_is_reported(engine: aw.Engine) -> None:
    in_engine(engine, SPIN)
    try:
        assert "- a clock that ticks" in leak(lambda: engine._core.ticker.hold(leak))
    finally:
        engine._core.ticker.release(leak)


def test_error_of_the_block_comes_first() -> None:
    kept = []

    def block() -> None:
        kept.append(aw.Instance(testing.wat(ADD)))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), testing.leak_check():
        block()


def test_checks_nest_and_leave_nothing_behind() -> None:
    from asyncwasm._ffi.handles import StoreHandle

    before = StoreHandle.__init__
    kept = []

    def outer() -> None:
        kept.append(aw.Instance(testing.wat(ADD)))
        with pytest.raises(AssertionError, match="1 leak:"), testing.leak_check():
            kept.append(aw.Instance(testing.wat(ADD)))

    with pytest.raises(AssertionError, match="2 leaks"), testing.leak_check():
        outer()

    assert StoreHandle.__init__ is before


# manual_ticks


class Watch:
    """Counts how often the loop has run."""

    def __init__(self) -> None:
        self.turns = 0
        self.done = False

    async def count(self) -> None:
        while not self.done:
            self.turns += 1
            await anyio.lowlevel.checkpoint()


async def turns_during(function: Any, *arguments: Any) -> int:
    watch = Watch()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.count)
        await anyio.lowlevel.checkpoint()
        before = watch.turns
        await function.call_async(*arguments)
        turns = watch.turns - before
        watch.done = True
    return turns


@pytest.mark.every_loop
@pytest.mark.parametrize("count", [0, 1, 2])
async def test_loop_runs_once_a_tick(engine: aw.Engine, count: int) -> None:
    exports = in_engine(engine, SPIN).exports

    with testing.manual_ticks(engine) as tick:
        tick(count)
        turns = await turns_during(exports.work, 10_000)

    assert turns == count


async def test_nothing_yields_without_ticks_however_long_it_takes(engine: aw.Engine) -> None:
    exports = in_engine(engine, SPIN).exports

    with testing.manual_ticks(engine):
        started = time.perf_counter()
        turns = await turns_during(exports.work, BUSY // 10)

    assert time.perf_counter() - started > 0.005
    assert turns == 0


async def test_third_tick_moves_the_call_to_a_thread(engine: aw.Engine) -> None:
    exports = in_engine(engine, SPIN).exports

    with testing.manual_ticks(engine) as tick:
        async with anyio.create_task_group() as tasks:
            tick(3)
            tasks.start_soon(exports.spin.call_async)
            with anyio.fail_after(30):
                while not engine._core.runners._running:  # noqa: ASYNC110  # nothing tells when
                    await anyio.sleep(0.001)
            await anyio.sleep(0.005)  # the loop is free
            tasks.cancel_scope.cancel()
            tick()
    assert exports.one() == 1


async def test_tick_during_an_import_lets_the_loop_run(engine: aw.Engine) -> None:
    module = aw.Module(aw.wat2wasm(CALLER), engine=engine)

    with testing.manual_ticks(engine) as tick:

        def f(x: int) -> int:
            tick()
            return x

        exports = aw.Instance(module, {"host": {"f": f}}).exports
        turns = await turns_during(exports.sum, 3)

    assert 1 <= turns <= 3  # imports answered in a row may count as one turn


def test_tick_from_a_thread_stops_a_synchronous_call(engine: aw.Engine) -> None:
    store = aw.Store(engine=engine, sync_deadline_seconds=10 / 128)
    module = aw.Module(aw.wat2wasm(CALLER), engine=engine)
    exports = aw.Instance(module, {"host": {"f": int}}, store=store).exports

    with testing.manual_ticks(engine) as tick:
        thread = threading.Thread(target=tick, args=(20,))
        thread.start()
        with pytest.raises(aw.Interrupted) as caught:
            exports.spin()
        thread.join()

    assert caught.value.reason == "deadline"


def test_clock_goes_on_after_the_block(engine: aw.Engine) -> None:
    exports = in_engine(engine, SPIN).exports
    with testing.manual_ticks(engine) as tick:
        tick(100)

    async def main() -> bool:
        with anyio.move_on_after(0.01) as scope:
            await exports.spin.call_async()
        return scope.cancelled_caught

    assert anyio.run(main)
    gc.collect()

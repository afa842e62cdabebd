"""
Many threads at once: each gets its own results and errors, or is told that the store is busy.

The switch interval is made short, so that threads meet in the middle of things.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import pytest

import asyncwasm as aw
from asyncwasm._runtime.artifact import Variant
from asyncwasm._runtime.ticker import Ticker

from ..guests import GUEST, guest, not_measured
from ..support import instance, module, wasm

pytestmark = [pytest.mark.slow, not_measured]


@pytest.fixture(autouse=True)
def _short_switch_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(*jobs: Callable[[], object]) -> None:
    """Run each job on a thread of its own, all starting together; raise what they raise."""
    barrier = threading.Barrier(len(jobs))
    errors: list[BaseException] = []

    def run(job: Callable[[], object]) -> None:
        barrier.wait()
        try:
            job()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise BaseExceptionGroup("in threads", errors)


class Mine(Exception):
    """An exception that tells whose it is."""


# errors


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "awaited"])
def test_each_raising_import_raises_its_own_exception(asynchronous: bool) -> None:
    """Nothing about a call is kept per process or per thread."""
    calls = 1000  # threads are switched several times in each

    def job(number: int) -> Callable[[], None]:
        raised: list[Mine] = []

        def fail(value: int) -> int:
            raised.append(Mine(number, value))
            raise raised[-1]

        async def fail_async(value: int) -> int:
            if value % 16 == 0:
                await asyncio.sleep(0)
            return fail(value)

        def check(value: int, exc: Mine) -> None:
            assert exc is raised.pop()
            assert exc.args == (number, value)
            assert not raised

        def sync() -> None:
            call = guest(fail).exports.call
            for value in range(calls):
                try:
                    call(value)
                except Mine as exc:
                    check(value, exc)
                else:
                    raise AssertionError

        async def awaited() -> None:
            call = guest(fail_async).exports.call
            for value in range(calls):
                try:
                    await call.call_async(value)
                except Mine as exc:
                    check(value, exc)
                else:
                    raise AssertionError

        return (lambda: asyncio.run(awaited())) if asynchronous else sync

    at_once(job(1), job(2))


def test_each_trap_is_raised_where_it_happened() -> None:
    text = """(module
      (func (export "0") unreachable)
      (func (export "1") (param i32) (drop (i32.div_u (i32.const 1) (local.get 0))))
      (func $f (export "2") (call $f)))"""
    codes = [
        aw.TrapCode.UNREACHABLE,
        aw.TrapCode.INTEGER_DIVISION_BY_ZERO,
        aw.TrapCode.STACK_OVERFLOW,
    ]

    def job(number: int) -> Callable[[], None]:
        function = instance(text).exports[str(number)]
        arguments = (0,) if number == 1 else ()

        def run() -> None:
            for _ in range(200):
                with pytest.raises(aw.Trap) as caught:
                    function(*arguments)
                assert caught.value.code is codes[number]

        return run

    at_once(*map(job, (0, 1, 2)))


# sharing


def test_threads_that_share_a_module_have_instances_of_their_own() -> None:
    shared = module(GUEST)
    totals: list[int] = []

    def job() -> None:
        async def main() -> int:
            total = 0
            for value in range(50):
                made = await aw.instantiate(shared, {"host": {"f": lambda number: number * 2}})
                total += await made.exports.call.call_async(value)
                total += made.exports.malloc(8)
                made.close()
            return total

        totals.append(asyncio.run(main()))

    at_once(*[job] * 6)

    assert totals == [sum(2 * value + 1024 for value in range(50))] * 6


def test_threads_fighting_for_one_store_get_results_or_busy() -> None:
    made = guest()
    seen: list[str] = []  # appending is atomic
    direct = instance("""(module (func (export "work") (param $n i32) (result i32)
      (loop (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
      (local.get $n)))""")

    def call(function: Callable[[], object], expected: object) -> None:
        try:
            assert function() == expected
            seen.append("done")
        except anyio.BusyResourceError:
            seen.append("busy")

    def job() -> None:
        for _ in range(2000):
            call(lambda: made.exports.sum(20), 210)
            call(lambda: made.exports.plain(1), 2)
            call(lambda: direct.exports.work(2000), 0)
            call(lambda: made.exports.memory.read(0, 8), bytes(8))

    at_once(job, job, job)

    assert len(seen) == 3 * 2000 * 4
    assert set(seen) == {"done", "busy"}
    assert made.exports.plain(1) == 2


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "awaited"])
def test_call_that_runs_is_not_refused_because_others_look_into_its_store(
    asynchronous: bool,
) -> None:
    """They come in while its imports run; it is the second that is refused, not the first."""
    stop, running = threading.Event(), threading.Event()
    imports = 0
    looks: Counter[str] = Counter()

    def count(value: int) -> int:
        nonlocal imports
        imports += 1
        running.set()
        return 1

    made = guest(count)
    memory, total = made.exports.memory, made.exports.sum

    def look() -> None:
        while not stop.is_set():
            running.wait(1)
            try:
                assert memory.byte_length == 65536
                looks["done"] += 1
            except anyio.BusyResourceError:
                looks["busy"] += 1

    def call() -> None:
        nonlocal imports
        done = 0
        while done < 5 or not looks["done"]:
            imports = 0
            running.clear()  # else the call might never get in
            try:
                value = asyncio.run(total.call_async(200)) if asynchronous else total(200)
                assert value == 200
                done += 1
            except anyio.BusyResourceError:
                assert imports == 0, "refused in the middle"
        stop.set()

    at_once(look, call)

    assert made.exports.plain(1) == 2


def test_second_thread_is_told_at_once_that_the_store_is_busy() -> None:
    """It does not wait for the guest that it was refused for."""
    made = guest()
    view = made.exports.memory.buffer
    reached = threading.Event()
    results: list[int] = []

    def stop(value: int) -> int:
        reached.set()
        return value

    spinning = instance(
        """(module (import "host" "f" (func $f (param i32) (result i32)))
          (import "host" "memory" (memory 1))
          (func (export "until") (result i32) (local $rounds i64)
            (drop (call $f (i32.const 1)))
            (local.set $rounds (i64.const 20_000_000_000))
            (loop $again
              (if (i32.load8_u (i32.const 0)) (then (return (i32.const 1))))
              (br_if $again (i64.ne (i64.const 0)
                (local.tee $rounds (i64.sub (local.get $rounds) (i64.const 1))))))
            (i32.const 0)))""",
        {"host": {"f": stop, "memory": made.exports.memory}},
    )
    thread = threading.Thread(target=lambda: results.append(spinning.exports.until()))
    thread.start()
    assert reached.wait(30)

    for _ in range(20):
        with pytest.raises(anyio.BusyResourceError):
            made.exports.plain(1)
    view[0] = 1
    thread.join()

    assert results == [1]
    assert made.exports.plain(1) == 2


def test_awaited_call_is_told_at_once_that_a_thread_is_in_the_store() -> None:
    made = instance("""(module (memory (export "memory") 1)
      (func (export "plain"))
      (func (export "until") (result i32) (local $rounds i64)
        (local.set $rounds (i64.const 20_000_000_000))
        (loop $again
          (if (i32.load8_u (i32.const 0)) (then (return (i32.const 1))))
          (br_if $again (i64.ne (i64.const 0)
            (local.tee $rounds (i64.sub (local.get $rounds) (i64.const 1))))))
        (i32.const 0)))""")
    view, plain, until = made.exports.memory.buffer, made.exports.plain, made.exports.until
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(until()))
    thread.start()
    while not made._store.handle.lock.locked():
        assert thread.is_alive()

    with pytest.raises(anyio.BusyResourceError):
        asyncio.run(plain.call_async())
    view[0] = 1
    thread.join()

    assert results == [1]
    plain()


def test_loops_on_several_threads_take_turns_in_one_store() -> None:
    """Lines that form on one thread while another leaves lose nobody, and let nobody by."""
    inside: list[int] = []
    overlaps: list[int] = []
    seen: list[str] = []

    async def alone(value: int) -> int:
        inside.append(value)
        await asyncio.sleep(0)
        if len(inside) > 1:
            overlaps.append(value)
        inside.remove(value)
        return value

    made = guest(alone)

    def job(number: int) -> Callable[[], None]:
        async def call(value: int) -> None:
            try:
                assert await made.exports.call.call_async(value) == value
                seen.append("done")
            except anyio.BusyResourceError:
                seen.append("busy")

        async def main() -> None:
            for start in range(number * 10_000, number * 10_000 + 600, 3):
                await asyncio.gather(*(call(start + each) for each in range(3)))

        return lambda: asyncio.run(main())

    at_once(*map(job, range(3)))

    assert overlaps == []
    assert len(seen) == 1800
    assert not made._store.handle.futures
    assert made._store.root.current is None


def test_store_can_be_closed_while_other_threads_call_into_it() -> None:
    async def wait(value: int) -> int:
        await asyncio.sleep(0)
        return value

    for _ in range(80):
        made = guest(wait)
        started = threading.Barrier(3)

        def sync(made: aw.Instance = made, started: threading.Barrier = started) -> None:
            started.wait()
            with pytest.raises((anyio.ClosedResourceError, aw.Interrupted)):
                _for_ever(lambda: _unless_busy(lambda: made.exports.plain(1)))

        def awaited(made: aw.Instance = made, started: threading.Barrier = started) -> None:
            async def main() -> None:
                while True:
                    try:
                        await made.exports.call.call_async(1)
                    except anyio.BusyResourceError:
                        pass

            started.wait()
            with pytest.raises((anyio.ClosedResourceError, aw.Interrupted)):
                asyncio.run(main())

        def close(made: aw.Instance = made, started: threading.Barrier = started) -> None:
            started.wait()
            for _ in range(20):
                _unless_busy(lambda: made.exports.plain(1))
            made.close()

        at_once(sync, awaited, close)


def _for_ever(function: Callable[[], None]) -> None:
    while True:
        function()


def _unless_busy(function: Callable[[], Any]) -> None:
    try:
        function()
    except anyio.BusyResourceError:
        pass


# the engine's own threads


def test_clock_ticks_whenever_somebody_needs_it() -> None:
    """Starting, parking and ending meet each other."""
    engine = aw.Engine()._core.native(Variant())
    ticker = Ticker()
    ticker.add(engine)
    stop = threading.Event()

    def need() -> None:
        for _ in range(20_000):
            ticker.need()

    def hold() -> None:
        owner = object()
        for _ in range(2_000):
            ticker.hold(owner)
            ticker.release(owner)

    def close() -> None:
        while not stop.is_set():
            ticker.close()
            ticker.add(engine)

    closer = threading.Thread(target=close)
    closer.start()
    try:
        at_once(need, need, hold, hold)
    finally:
        stop.set()
        closer.join()

    ticker.need()
    assert ticker.running
    assert not ticker.held
    ticker.close()
    ticker.need()
    assert not ticker.running  # nobody must wait for a tick that no engine sees


def test_guests_on_many_engines_are_all_interrupted() -> None:
    """Each engine has a clock of its own, which starts with the first call and ends with it."""

    async def main() -> None:
        for _ in range(3):
            with aw.Engine() as engine:
                made = guest(engine=engine)
                task = asyncio.ensure_future(made.exports.spin.call_async())
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    at_once(*[lambda: asyncio.run(main())] * 4)


def test_same_bytes_from_many_threads_compile_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asyncwasm")
    sources = [
        wasm(f'(module (func (export "f") (result i32) (i32.const {number})) (@custom "h" "h"))')
        for number in range(20)
    ]
    kept: list[aw.Module] = []
    with aw.Engine(aw.EngineConfig(compile_threads=3)) as engine:

        def job() -> None:
            async def main() -> None:
                for source in sources:
                    copies = [bytes(bytearray(source)) for _ in range(4)]
                    kept.extend(
                        await asyncio.gather(*(aw.compile(each, engine=engine) for each in copies))
                    )
                    kept.append(aw.Module(source, engine=engine))

            asyncio.run(main())

        at_once(*[job] * 4)

    compiled = sum("module_compiled" in each for each in caplog.messages)
    assert compiled == len(sources)
    assert len({id(each._artifact) for each in kept}) == len(sources)
    assert len(kept) == 4 * 5 * len(sources)


def test_bad_bytes_from_many_threads_fail_for_each() -> None:
    good = wasm('(module (func (export "f")))')

    def job() -> None:
        async def main() -> None:
            for length in range(8, len(good) - 1):
                results = await asyncio.gather(
                    *(aw.compile(good[:length] + b"\xff") for _ in range(3)),
                    return_exceptions=True,
                )
                assert [type(each) for each in results] == [aw.CompileError] * 3

        asyncio.run(main())

    at_once(*[job] * 3)


def test_threads_that_ask_for_a_store_get_the_same_one() -> None:
    """Nobody has had it, so that the first who asks makes it, and its engine's."""
    code = module('(module (func (export "f")))')
    for _ in range(500):
        store = aw.Store()
        made = [aw.Instance(code, store=store) for _ in range(4)]
        del store
        got: list[tuple[aw.Store, aw.Engine]] = []

        def ask(each: aw.Instance, got: list[tuple[aw.Store, aw.Engine]] = got) -> None:
            got.append((each.store, each.store.engine))

        at_once(*(partial(ask, each) for each in made))
        made[0].store.close()

        assert len({id(store) for store, _ in got}) == 1
        assert len({id(engine) for _, engine in got}) == 1

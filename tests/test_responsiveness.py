"""
The loop goes on while guests compute and modules compile.

What is measured is counted in beats of a heartbeat; bounds are wide, because the machine may be
busy. Guests spin until a test tells them to stop, so that nothing depends on its speed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import anyio
import pytest
from anyio.lowlevel import checkpoint

import asyncwasm as aw

from .guests import guest, not_measured, until, watching_offload
from .jsapi.helpers import leb128, section, vector
from .support import SPIN, instance, run_script

pytestmark = [pytest.mark.slow, not_measured]
every_loop = pytest.mark.every_loop

LATE_SECONDS = 0.5


class Heart:
    """A task that wakes every millisecond, and notes how late it was at worst."""

    def __init__(self) -> None:
        self.beats = 0
        self.late_seconds = 0.0

    async def beat(self) -> None:
        while True:
            started = perf_counter()
            await anyio.sleep(0.001)
            self.beats += 1
            self.late_seconds = max(self.late_seconds, perf_counter() - started - 0.001)

    async def reaches(self, beats: int) -> None:
        """Wait for so many more beats."""
        wanted = self.beats + beats
        await until(lambda: self.beats >= wanted)


@asynccontextmanager
async def heartbeat() -> AsyncIterator[Heart]:
    heart = Heart()
    async with anyio.create_task_group() as group:
        group.start_soon(heart.beat)
        await heart.reaches(1)
        heart.late_seconds = 0.0
        yield heart
        group.cancel_scope.cancel()


async def spin_for_100_beats() -> None:
    made = guest()
    view = made.exports.memory.buffer
    async with heartbeat() as heart, anyio.create_task_group() as group:

        async def release() -> None:
            await heart.reaches(100)
            view[0] = 1

        group.start_soon(release)
        assert await made.exports.until.call_async() == 1, "the heart has not beaten"

    assert heart.late_seconds < LATE_SECONDS


@every_loop
async def test_heart_beats_while_a_guest_spins() -> None:
    await spin_for_100_beats()


def test_heart_beats_while_a_guest_spins_on_trio() -> None:
    anyio.run(spin_for_100_beats, backend="trio")


async def test_heart_beats_while_a_guest_spins_in_an_interleaving_store() -> None:
    """There the guest stays on the loop's thread, a slice at a time."""
    made = guest(store=aw.Store(interleave=True))
    view = made.exports.memory.buffer
    async with heartbeat() as heart, asyncio.TaskGroup() as group:
        spinning = group.create_task(made.exports.until.call_async())
        await heart.reaches(50)
        view[0] = 1

    assert spinning.result() == 1
    assert heart.late_seconds < LATE_SECONDS


async def test_heart_beats_while_a_start_function_spins() -> None:
    memory = aw.Memory(1)
    source = aw.wat2wasm(
        """(module (import "host" "memory" (memory 1))
          (func $start (loop (br_if 0 (i32.eqz (i32.load8_u (i32.const 0))))))
          (start $start))"""
    )
    with aw.Store():
        instance('(module (import "host" "memory" (memory 1)))', {"host": {"memory": memory}})
        view = memory.buffer
        async with heartbeat() as heart, asyncio.TaskGroup() as group:
            task = group.create_task(aw.instantiate(source, {"host": {"memory": memory}}))
            await heart.reaches(50)
            assert not task.done()
            view[0] = 1

    assert heart.late_seconds < LATE_SECONDS


def large_module(functions: int, name: bytes) -> bytes:
    """Return a module with *functions* functions of about a kilobyte."""
    # local.get 0, i32.const, i32.mul, local.set 0: what no compiler folds away.
    round = b"\x20\x00\x41" + b"\xa5\x01" + b"\x6c\x20\x00\x6a\x21\x00"
    body = b"\x00" + round * 90 + b"\x20\x00\x0b"
    code = leb128(len(body)) + body
    custom = leb128(len(name)) + name
    return b"".join(
        [
            b"\0asm\x01\0\0\0",
            section(0, custom),
            section(1, vector(1, b"\x60\x01\x7f\x01\x7f")),
            section(3, vector(functions, b"\0")),
            section(7, vector(1, b"\x01f\x00\x00")),
            section(10, vector(functions, code)),
        ]
    )


@every_loop
async def test_heart_beats_while_a_large_module_compiles() -> None:
    source = large_module(1000, b"responsive")
    assert len(source) > 900_000
    async with heartbeat() as heart:
        before, started = heart.beats, perf_counter()
        with aw.Engine(aw.EngineConfig(tier="optimized")) as engine:
            compiled = await aw.compile(source, engine=engine)
        beats, seconds = heart.beats - before, perf_counter() - started

    assert compiled.byte_length == len(source)
    assert beats >= min(20, seconds * 100)
    assert heart.late_seconds < LATE_SECONDS


@every_loop
async def test_guests_that_compute_at_the_same_time_all_finish() -> None:
    """More of them than there are threads; none keeps a thread to itself."""
    made = [guest() for _ in range(5)]
    views = [each.exports.memory.buffer for each in made]
    async with heartbeat() as heart:
        with watching_offload(made[0].store.engine) as offload:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(each.exports.until.call_async()) for each in made]
                await offload.happened()
                await heart.reaches(30)
                for view in reversed(views):
                    view[0] = 1

    assert [task.result() for task in tasks] == [1] * 5
    assert heart.late_seconds < LATE_SECONDS


async def test_two_guests_that_count_to_the_end_both_finish() -> None:
    """Their imports run on the loop's thread, wherever the guests have been meanwhile."""
    text = """(module (import "host" "f" (func $f (param i32) (result i32)))
      (func (export "work") (param $n i32) (result i32) (local $count i32)
        (loop $again
          (local.set $count (i32.xor (i32.mul (local.get $count) (i32.const 3)) (local.get $n)))
          (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
        (call $f (local.get $count))))"""
    threads: set[int] = set()

    def look(value: int) -> int:
        threads.add(threading.get_ident())
        return value

    made = [instance(text, {"host": {"f": look}}) for _ in range(2)]
    with watching_offload(made[0].store.engine) as offload:
        one, two = await asyncio.gather(
            *(each.exports.work.call_async(50_000_000) for each in made)
        )

    assert one == two
    assert threads == {threading.get_ident()}
    assert offload.threads
    assert threading.get_ident() not in offload.threads


@every_loop
async def test_calls_of_others_are_answered_while_a_guest_spins() -> None:
    """A short call of another store does not wait for a thread."""
    busy, other = guest(), guest()
    view = busy.exports.memory.buffer
    with watching_offload(busy.store.engine) as offload:
        async with asyncio.TaskGroup() as group:
            spinning = group.create_task(busy.exports.until.call_async())
            await offload.happened()
            for value in range(200):
                assert await other.exports.plain.call_async(value) == value + 1
                await checkpoint()
            assert not spinning.done()
            view[0] = 1

    assert spinning.result() == 1


ATOMIC_WAIT = """(module (import "host" "f" (func $f))
  (memory (export "memory") 1 1 shared)
  (func $wait (export "wait") (result i32)
    (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const 200_000_000)))
  (func (export "after_import") (result i32) (call $f) (call $wait)))"""
MEETING = """(module (import "" "memory" (memory 1 1 shared))
  (func (export "wait") (result i32)
    (i32.atomic.store (i32.const 4) (i32.const 1))
    (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const -1)))
  (func (export "notify") (result i32) (memory.atomic.notify (i32.const 0) (i32.const 1))))"""


@every_loop
@pytest.mark.parametrize("name", ["wait", "after_import"])
async def test_heart_beats_while_a_guest_waits_on_a_shared_memory(name: str) -> None:
    """For 0.2 s, or until notified."""
    called: list[None] = []
    made = instance(ATOMIC_WAIT, {"host": {"f": lambda: called.append(None)}})
    async with heartbeat() as heart:
        before = heart.beats
        assert await made.exports[name].call_async() == 2
        during = heart.beats - before

    assert during >= 10
    assert len(called) == (name == "after_import")


@every_loop
async def test_awaited_guests_meet_at_a_shared_memory() -> None:
    """Many tasks wait in their guests, more than there are processors, until another notifies."""
    count = 20
    memory = aw.Memory(1, 1, shared=True)
    guests = [instance(MEETING, {"": {"memory": memory}}) for _ in range(count + 1)]
    notifier = guests.pop()
    results: list[int] = []

    async def wait(waiter: aw.Instance) -> None:
        results.append(await waiter.exports.wait.call_async())

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for each in guests:
                group.start_soon(wait, each)
            notified = 0
            while notified < count:
                notified += await notifier.exports.notify.call_async()
                await checkpoint()

    assert results == [0] * count


@pytest.mark.parametrize("nanoseconds", [-1, 20_000_000])
def test_process_ends_while_a_guest_waits_on_a_shared_memory(nanoseconds: int) -> None:
    """The thread that it waits on is one of ours, and is in nobody's way."""
    done = run_script(f"""
        import asyncio, threading
        import asyncwasm as aw
        memory = aw.Memory(1, 1, shared=True)
        module = aw.Module(aw.wat2wasm(
            '(module (import "" "memory" (memory 1 1 shared)) (func (export "wait") (result i32)'
            '  (i32.atomic.store (i32.const 4) (i32.const 1))'
            '  (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const {nanoseconds}))))'
        ))
        instance = aw.Instance(module, {{"": {{"memory": memory}}}})
        async def wait():
            await instance.exports.wait.call_async()
        threading.Thread(target=asyncio.run, args=(wait(),), daemon=True).start()
        while memory.read(4, 1) == bytes(1):
            pass
        print("waits")
    """)

    assert (done.returncode, done.stdout) == (0, "waits\n"), done.stderr


@every_loop
async def test_loop_runs_on_while_a_cancelled_guest_waits_on_a_shared_memory() -> None:
    """Nothing stops the instruction, so the task ends when it has been notified."""
    memory = aw.Memory(1, 1, shared=True)
    waiter, notifier = (instance(MEETING, {"": {"memory": memory}}) for _ in range(2))
    ended: list[str] = []

    async def wait() -> None:
        try:
            await waiter.exports.wait.call_async()
        except anyio.get_cancelled_exc_class():
            ended.append("cancelled")
            raise

    with anyio.fail_after(10):
        async with heartbeat() as heart, anyio.create_task_group() as group:
            group.start_soon(wait)
            while memory.read(4, 1) == b"\0":
                await checkpoint()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await heart.reaches(heart.beats + 20)
                assert ended == []
                while not await notifier.exports.notify.call_async():
                    await checkpoint()

    assert ended == ["cancelled"]
    memory.write(0, b"\1")
    assert await waiter.exports.wait.call_async() == 1


@every_loop
async def test_objects_of_a_store_can_be_used_while_its_guest_runs_on_a_thread() -> None:
    """Where a guest runs is not for the caller to know, so it makes no difference."""
    made = instance("""(module
      (memory (export "memory") 1 3) (table (export "table") 2 funcref)
      (global (export "global") (mut i32) (i32.const 5))
      (func (export "plain") (result i32) (i32.const 2))
      (func (export "until") (loop (br_if 0 (i32.eqz (i32.load8_u (i32.const 0)))))))""")
    exports = made.exports
    with watching_offload(made.store.engine) as offload:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(exports.until.call_async())
            await offload.happened()
            for turn in range(20):
                exports["global"].value = turn
                assert exports["global"].value == turn
                exports.table.set(0, exports.plain)
                assert exports.table.get(0) is exports.plain
                with pytest.raises(anyio.BusyResourceError):
                    exports.plain()
                await asyncio.sleep(0)
            assert exports.memory.grow(1) == 1
            assert not running.done()
            exports.memory.write(0, b"\1")

    assert exports.plain() == 2


@every_loop
async def test_function_that_takes_long_goes_to_a_thread_at_once() -> None:
    made = instance(SPIN)
    await made.exports.work.call_async(30_000_000)

    with watching_offload(made.store.engine) as offload:
        call = asyncio.ensure_future(made.exports.work.call_async(30_000_000))
        await asyncio.sleep(0)
        assert offload.submitted
        await call


@every_loop
async def test_function_that_is_short_again_comes_back_to_the_loop() -> None:
    made = instance(SPIN)
    await made.exports.work.call_async(30_000_000)
    for _ in range(10):
        await made.exports.work.call_async(1)

    with watching_offload(made.store.engine) as offload:
        for _ in range(10):
            await made.exports.work.call_async(1)
        assert not offload.submitted

"""Tiers: which compiler makes the code that instances get, and when."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

import asyncwasm as aw
from asyncwasm._ffi import compiling
from asyncwasm._runtime.engine import _SMALL_BYTES
from asyncwasm._runtime.threads import Threads

from .support import ADD, CALLER, SPIN, run_script, wasm

pytestmark = pytest.mark.skipif(not compiling.has_baseline(), reason="no baseline compiler here")

GC = """(module (type $s (struct (field i32)))
  (func (export "f") (result i32) (struct.get $s 0 (struct.new $s (i32.const 7)))))"""
TAIL = """(module (func $g (result i32) (i32.const 7))
  (func (export "f") (result i32) (return_call $g)))"""
EXCEPTION = """(module (tag $t) (func (export "f") (result i32)
  (block $caught (try_table (catch $t $caught) (throw $t)) (unreachable)) (i32.const 7)))"""


def _unsigned(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def large(text: str, mark: bytes = b"") -> bytes:
    """Return the binary of *text* with a custom section that makes it a large module."""
    content = b"\x03pad" + mark + bytes(_SMALL_BYTES)
    return wasm(text) + b"\0" + _unsigned(len(content)) + content


def engine(**options: Any) -> aw.Engine:
    return aw.Engine(aw.EngineConfig(**options))


@contextmanager
def idle_optimizer(engine: aw.Engine) -> Iterator[Callable[[], None]]:
    """Keep the engine's background thread busy until the function or the end of the block."""
    release, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        release.wait()

    engine._core.optimizer.submit(hold)
    assert begun.wait(10)
    try:
        yield release.set
    finally:
        release.set()


@pytest.fixture(autouse=True)
def _no_guard() -> None:
    aw.configure_sync_guard(action="ignore")


# auto


async def test_large_module_starts_with_baseline_code() -> None:
    own = engine()
    with idle_optimizer(own):
        module, instance = await aw.instantiate(large(ADD), engine=own)

        assert module.tier == "baseline"
        assert instance.exports.add(1, 2) == 3
        assert instance._store.variant.baseline


async def test_small_module_is_optimized_at_once() -> None:
    module, instance = await aw.instantiate(wasm(ADD), engine=engine())

    assert module.tier == "optimized"
    assert not instance._store.variant.baseline
    assert await module.optimized() is module


async def test_later_instances_get_optimized_code() -> None:
    own = engine()
    with idle_optimizer(own) as release:
        module, first = await aw.instantiate(large(ADD), engine=own)
        release()
        assert await module.optimized() is module
        second = await aw.instantiate(module)

    assert module.tier == "optimized"
    assert (first._store.variant.baseline, second._store.variant.baseline) == (True, False)
    assert first.exports.add(1, 2) == second.exports.add(1, 2) == 3


async def test_instance_that_joins_a_store_gets_its_code() -> None:
    own = engine()
    module, first = await aw.instantiate(large(ADD), engine=own)
    await module.optimized()
    baseline = first._store.variant.baseline

    second = await aw.instantiate(module, store=first.store)
    small = await aw.instantiate(wasm(CALLER), {"host": {"f": abs}}, store=first.store, engine=own)
    third = aw.Instance(aw.Module(wasm(SPIN), engine=own), store=first.store)

    assert first._store.variant.baseline is baseline
    assert second.exports.add(1, 2) == 3
    assert small.instance.exports.call(-4) == 4
    assert third.exports.one() == 1


@pytest.mark.parametrize("tier", ["auto", "baseline"])
async def test_store_made_before_the_module_runs_optimized_code(tier: str) -> None:
    """Whatever may join it later will find the compiler that can do everything."""
    own = engine(tier=tier)
    with aw.Store(engine=own) as store:
        aw.Memory(1)
        with idle_optimizer(own):
            _, instance = await aw.instantiate(large(ADD), engine=own)

        assert not store._core.variant.baseline
        assert instance.exports.add(1, 2) == 3


async def test_counted_fuel_does_not_depend_on_the_moment() -> None:
    own = engine()
    with idle_optimizer(own):
        module = await aw.compile(large(SPIN), engine=own)
        instance = await aw.instantiate(module, limits=aw.Limits(fuel=100_000))

        assert module.tier == "baseline"
        assert not instance._store.variant.baseline
        assert instance._store.variant.fuel


@pytest.mark.parametrize("text", [GC, TAIL, EXCEPTION], ids=["gc", "tail call", "exception"])
@pytest.mark.parametrize("tier", ["auto", "baseline"])
async def test_what_the_baseline_compiler_lacks_is_optimized_at_once(tier: str, text: str) -> None:
    module, instance = await aw.instantiate(large(text), engine=engine(tier=tier))

    assert module.tier == "optimized"
    assert instance.exports.f() == 7
    assert await module.optimized() is module


async def test_joining_baseline_code_with_what_it_lacks_is_a_link_error() -> None:
    own = engine()
    with idle_optimizer(own):
        _, first = await aw.instantiate(large(ADD), engine=own)

        with pytest.raises(aw.LinkError, match=r"await optimized\(\)"):
            await aw.instantiate(wasm(GC), store=first.store, engine=own)
        assert first.exports.add(1, 2) == 3


@pytest.mark.parametrize("tier", ["auto", "baseline", "optimized"])
async def test_invalid_large_module_is_a_compile_error_with_an_offset(tier: str) -> None:
    binary = large('(module (func (export "f") (result i32) (i32.const 1)))')
    broken = binary.replace(b"\x41\x01\x0b", b"\x42\x01\x0b")  # i64.const

    with pytest.raises(aw.CompileError) as caught:
        await aw.compile(broken, engine=engine(tier=tier))

    assert caught.value.offset is not None


# optimized()


async def test_cancelled_wait_leaves_the_optimization_running() -> None:
    own = engine()
    with idle_optimizer(own) as release:
        module = await aw.compile(large(ADD), engine=own)
        waiter = asyncio.create_task(module.optimized())
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        release()
        await module.optimized()

    assert module.tier == "optimized"


async def test_baseline_engine_optimizes_nothing() -> None:
    module = await aw.compile(large(ADD), engine=engine(tier="baseline"))

    assert await module.optimized() is module
    assert module.tier == "baseline"


async def test_closing_the_engine_ends_the_wait() -> None:
    own = engine()
    with idle_optimizer(own) as release:
        module = await aw.compile(large(ADD), engine=own)
        waiter = asyncio.create_task(module.optimized())
        await asyncio.sleep(0)
        own.close()
        release()

        with pytest.raises(anyio.ClosedResourceError):
            await waiter
        with pytest.raises(anyio.ClosedResourceError):
            await module.optimized()


async def test_failed_optimization_is_raised_and_leaves_baseline_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = engine()
    with idle_optimizer(own) as release:
        module = await aw.compile(large(ADD), engine=own)
        monkeypatch.setattr(
            compiling, "serialize", lambda module: (_ for _ in ()).throw(MemoryError("no room"))
        )
        release()
        with pytest.raises(MemoryError, match="no room"):
            await module.optimized()

    assert module.tier == "baseline"
    assert (await aw.instantiate(module)).exports.add(1, 2) == 3


async def test_module_nobody_has_any_more_is_not_optimized(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = engine()
    optimized: list[object] = []
    monkeypatch.setattr(own._core, "_optimize", optimized.append)
    with idle_optimizer(own) as release:
        module = await aw.compile(large(ADD), engine=own)
        del module
        gc.collect()
        release()
        done: Future[None] = Future()
        own._core.optimizer.submit(lambda: done.set_result(None))
        done.result(10)

    assert optimized == []


def test_optimized_works_under_trio() -> None:
    trio = pytest.importorskip("trio")

    async def main() -> str:
        module = await aw.compile(large(ADD), engine=engine())
        return (await module.optimized()).tier

    assert trio.run(main) == "optimized"


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities of their own")
def test_background_thread_has_low_priority() -> None:
    own = engine()
    priority: Future[int] = Future()
    usual: Future[int] = Future()
    own._core.optimizer.submit(lambda: priority.set_result(_priority()))
    own._core.compilers.submit(lambda: usual.set_result(_priority()))

    assert priority.result(10) > usual.result(10)
    own.close()


def _priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_background_work_does_not_keep_the_process() -> None:
    done = run_script("""
        import asyncio, threading
        import asyncwasm as aw
        from tests.test_tiers import ADD, large
        engine = aw.Engine()
        engine._core.optimizer.submit(threading.Event().wait)
        module = asyncio.run(aw.compile(large(ADD), engine=engine))
        print(module.tier)
    """)

    assert (done.returncode, done.stdout, done.stderr) == (0, "baseline\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_process_optimizes_for_itself() -> None:
    done = run_script("""
        import asyncio, os, sys
        import asyncwasm as aw
        from tests.test_tiers import ADD, idle_optimizer, large
        engine = aw.Engine()
        async def use(module):
            instance = await aw.instantiate(module)
            first = module.tier, instance.exports.add(1, 2)
            return *first, (await module.optimized()).tier
        with idle_optimizer(engine):
            module = asyncio.run(aw.compile(large(ADD), engine=engine))
            child = os.fork()
            if not child:
                answer = asyncio.run(use(module))
                os._exit(0 if answer[1:] == (3, "optimized") else 1)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), module.tier)
    """)

    assert done.stdout == "0 baseline\n", done.stderr


# the queue


async def test_queue_is_bounded() -> None:
    own = engine(compile_threads=1, max_queued_compilations=1)
    with busy_compilers(own) as release:
        waiting = asyncio.create_task(aw.compile(wasm(ADD), engine=own))
        await asyncio.sleep(0)

        with pytest.raises(aw.RangeError, match=r"1 compilations are waiting, .* at most 1 wait"):
            await aw.compile(wasm(SPIN), engine=own)
        release()
        assert (await waiting).tier == "optimized"
    assert (await aw.compile(wasm(SPIN), engine=own)).tier == "optimized"


@contextmanager
def busy_compilers(engine: aw.Engine) -> Iterator[Callable[[], None]]:
    release, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        release.wait()

    engine._core.compilers.submit(hold)
    assert begun.wait(10)
    try:
        yield release.set
    finally:
        release.set()


async def test_request_whose_waiters_are_gone_leaves_the_queue() -> None:
    own = engine(compile_threads=1)
    with busy_compilers(own):
        binary = wasm(ADD)
        waiters = [asyncio.create_task(aw.compile(binary, engine=own)) for _ in range(3)]
        await asyncio.sleep(0)
        queued = own._core.compilers.waiting
        for each in waiters[:2]:
            each.cancel()
        await asyncio.wait(waiters[:2])
        still = own._core.compilers.waiting
        waiters[2].cancel()
        await asyncio.wait(waiters)

        assert (queued, still, own._core.compilers.waiting) == (1, 1, 0)
    assert (await aw.compile(binary, engine=own)).tier == "optimized"


async def test_request_that_others_wait_for_stays() -> None:
    own = engine(compile_threads=1)
    with busy_compilers(own) as release:
        binary = wasm(ADD)
        first = asyncio.create_task(aw.compile(binary, engine=own))
        second = asyncio.create_task(aw.compile(binary, engine=own))
        await asyncio.sleep(0)
        first.cancel()
        release()

        assert (await second).digest


async def test_same_bytes_do_not_occupy_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds its bytes being compiled gives its thread back."""
    own = engine(compile_threads=2)
    held, begun, release = [], threading.Event(), threading.Event()
    compile_alone = own._core._compile_alone

    def slow(binary: bytes, digest: str) -> Any:
        if binary.endswith(b"slow"):
            held.append(digest)
            begun.set()
            assert release.wait(10)
        return compile_alone(binary, digest)

    monkeypatch.setattr(own._core, "_compile_alone", slow)
    binary = wasm(ADD) + b"\0\x05\x00slow"
    same = [asyncio.create_task(aw.compile(bytearray(binary), engine=own)) for _ in range(5)]
    await asyncio.to_thread(begun.wait)
    other = await aw.compile(wasm(SPIN), engine=own)
    release.set()
    modules = await asyncio.gather(*same)

    assert other.tier == "optimized"
    assert len(held) == 1
    assert len({id(each._artifact) for each in modules}) == 1


async def test_waiter_survives_an_interrupted_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the compilation of the main thread, not that of everybody else."""
    own = engine(compile_threads=1)
    begun, release = threading.Event(), threading.Event()
    compile_alone = own._core._compile_alone
    calls: list[str] = []

    def interrupted(binary: bytes, digest: str) -> Any:
        calls.append(digest)
        if len(calls) > 1:
            return compile_alone(binary, digest)
        begun.set()
        assert release.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(own._core, "_compile_alone", interrupted)
    failures: list[BaseException] = []

    def lead() -> None:
        try:
            own._core.compile_now(lambda: wasm(ADD))
        except BaseException as exc:
            failures.append(exc)

    leader = threading.Thread(target=lead)
    leader.start()
    assert begun.wait(10)
    waiter = asyncio.create_task(aw.compile(wasm(ADD), engine=own))
    follower = threading.Thread(target=lambda: own._core.compile_now(lambda: wasm(ADD)))
    follower.start()
    await asyncio.sleep(0.01)
    release.set()
    module = await waiter
    leader.join()
    follower.join()

    assert [type(each) for each in failures] == [KeyboardInterrupt]
    assert module.tier == "optimized"


def test_threads_end_when_closed_and_finish_what_waits() -> None:
    threads = Threads("asyncwasm test", 1)
    done: list[int] = []
    for index in range(10):
        threads.submit(lambda index=index: done.append(index))  # type: ignore[misc]
    threads.close()
    while threads._threads:
        threading.Event().wait(0.001)

    assert done == list(range(10))
    with pytest.raises(anyio.ClosedResourceError):
        threads.submit(lambda: None)


async def test_failed_compilation_needs_no_collection() -> None:
    own = engine()
    gc.collect()
    gc.disable()
    before = [each for each in gc.get_objects() if isinstance(each, Future)]
    try:
        with pytest.raises(aw.CompileError):
            await aw.compile(b"nonsense", engine=own)
        own._core.compilers.settle(10)
        after = [each for each in gc.get_objects() if isinstance(each, Future)]

        assert [each for each in after if not any(each is old for old in before)] == []
    finally:
        gc.enable()


# the same behaviour on both tiers


on_every_tier = pytest.mark.parametrize("tier", ["auto", "baseline", "optimized"])


@on_every_tier
async def test_imports_and_their_exceptions(tier: str) -> None:
    problem = KeyError("no")

    async def host(value: int) -> int:
        await asyncio.sleep(0)
        if value == 3:
            raise problem
        return value * 2

    _, instance = await aw.instantiate(
        large(CALLER), {"host": {"f": host}}, engine=engine(tier=tier)
    )

    assert await instance.exports.call.call_async(21) == 42
    with pytest.raises(KeyError) as caught:
        await instance.exports.call.call_async(3)
    assert caught.value is problem
    with pytest.raises(aw.Trap) as trapped:
        instance.exports.trap()
    assert trapped.value.code is aw.TrapCode.UNREACHABLE
    assert bytes(instance.exports.memory.buffer[:4]) == bytes(4)


@on_every_tier
async def test_spinning_guest_can_be_cancelled(tier: str) -> None:
    _, instance = await aw.instantiate(large(SPIN), engine=engine(tier=tier))

    with anyio.move_on_after(0.05) as scope:
        await instance.exports.spin.call_async()

    assert scope.cancelled_caught
    assert instance.exports.one() == 1


@pytest.mark.parametrize("tier", ["baseline", "optimized"])
def test_fuel_is_the_same_on_both_tiers(tier: str) -> None:
    """It need not be, and `auto` does not rely on it; it would be worth knowing."""
    module = aw.Module(large(SPIN), engine=engine(tier=tier))
    instance = aw.Instance(module, limits=aw.Limits(fuel=100_000))
    instance.exports.work(1000)

    assert instance.store.fuel == 94_999
    with pytest.raises(aw.Interrupted):
        instance.exports.spin()


@on_every_tier
def test_module_pickles(tier: str) -> None:
    module = aw.Module(large(ADD), engine=engine(tier=tier))
    copies = [pickle.loads(pickle.dumps(module)) for _ in range(2)]

    assert copies[0].engine is copies[1].engine
    assert copies[0].engine.config == module.engine.config
    assert aw.Instance(copies[0]).exports.add(1, 2) == 3


async def test_shared_memory_works_with_a_baseline_engine() -> None:
    text = """(module (import "e" "m" (memory 1 2 shared))
      (func (export "f") (result i32) (i32.atomic.load (i32.const 0))))"""
    own = engine(tier="baseline")
    with aw.Store(engine=own):
        memory = aw.Memory(1, 2, shared=True)
        _, instance = await aw.instantiate(wasm(text), {"e": {"m": memory}}, engine=own)

        assert instance.exports.f() == 0


def test_validate_knows_what_the_baseline_compiler_lacks() -> None:
    assert aw.validate(wasm(TAIL), engine=engine(tier="baseline"))

"""Instance pools: the cap, the line, what is used again and what never is."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import asyncwasm as aw
from asyncwasm import pool as pool_module

from .support import ADD, CALLER, module, run_script

BACKENDS = ["asyncio", "trio"]
# Counts its calls, so that a used instance is known from a fresh one.
COUNTER = """(module (global $n (mut i32) (i32.const 0))
  (func (export "count") (result i32)
    (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n))
  (func (export "trap") unreachable)
  (func (export "spin") (loop (br 0))))"""
STARTER = """(module (import "host" "f" (func $f)) (start $f)
  (func (export "one") (result i32) (i32.const 1)))"""
SPINNER = """(module (import "host" "f" (func $f))
  (func (export "spin") (call $f) (loop (br 0)))
  (func (export "one") (result i32) (i32.const 1)))"""
MEMORY = """(module (import "host" "memory" (memory 1))
  (func (export "read") (result i32) (i32.load8_u (i32.const 0)))
  (func (export "write") (param i32) (i32.store8 (i32.const 0) (local.get 0))))"""
CATCHER = """(module (import "host" "f" (func $f))
  (func (export "catch") (result i32)
    (block $caught (try_table (catch_all $caught) (call $f)) (return (i32.const 0)))
    (i32.const 1)))"""


def on_every_backend(function: Callable[[], Awaitable[None]]) -> Callable[[str], None]:
    """Make a test of *function* that runs it on asyncio and on trio."""

    @pytest.mark.parametrize("backend", BACKENDS)
    def test(backend: str) -> None:
        pytest.importorskip(backend)
        anyio.run(function, backend=backend)

    test.__doc__ = function.__doc__
    return test


def counters(**options: Any) -> aw.InstancePool:
    return aw.InstancePool(module(COUNTER), **{"max_instances": 1, **options})


def facts(pool: aw.InstancePool) -> tuple[int, int, int]:
    """Return how many instances were created, reused and discarded."""
    found = pool.statistics()
    return found.created, found.reused, found.discarded


async def use(pool: aw.InstancePool) -> int:
    """Return what a counter counts: 1 in a fresh instance."""
    async with pool.acquire() as instance:
        value: int = instance.exports.count()
        return value


class Holder:
    """A task that holds an instance until it is told to give it back."""

    def __init__(self, pool: aw.InstancePool, group: Any) -> None:
        self.pool = pool
        self.back = anyio.Event()
        self.has = anyio.Event()
        self.scope = anyio.CancelScope()
        self.error: BaseException | None = None
        self.instance: aw.Instance | None = None
        group.start_soon(self._run)

    async def _run(self) -> None:
        with self.scope:
            try:
                async with self.pool.acquire() as self.instance:
                    self.has.set()
                    await self.back.wait()
            except Exception as exc:
                self.error = exc


# arguments


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_instances": 0}, ValueError),
        ({"max_instances": "1"}, TypeError),
        ({"max_instances": True}, TypeError),
        ({"max_waiting": -1}, ValueError),
        ({"max_uses": 0}, ValueError),
        ({"max_uses": 1.5}, TypeError),
        ({"idle_seconds": -1}, ValueError),
        ({"idle_seconds": float("nan")}, ValueError),
        ({"idle_seconds": "1"}, TypeError),
        ({"limits": {}}, TypeError),
    ],
    ids=str,
)
def test_wrong_option_is_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        counters(**options)


def test_pool_wants_a_module() -> None:
    with pytest.raises(TypeError, match="expected a Module, got bytes"):
        aw.InstancePool(b"", max_instances=1)  # type: ignore[arg-type]


def test_missing_import_is_noticed_at_once() -> None:
    with pytest.raises(aw.LinkError, match="'f'"):
        aw.InstancePool(module(CALLER), {"host": {}}, max_instances=1)


def test_imports_of_the_wrong_shape_are_noticed_at_once() -> None:
    with pytest.raises(TypeError):
        aw.InstancePool(module(CALLER), None, max_instances=1)


def test_import_that_lives_in_a_store_is_refused() -> None:
    """It would tie all instances to one store."""
    with pytest.raises(aw.LinkError, match="lives in one; make it anew") as caught:
        aw.InstancePool(module(MEMORY), {"host": {"memory": aw.Memory(1)}}, max_instances=1)

    assert (caught.value.module, caught.value.name) == ("host", "memory")


def test_async_callable_for_imports_is_refused() -> None:
    async def imports() -> dict[str, Any]:
        return {}

    with pytest.raises(TypeError, match="async function"):
        counters(imports=imports)


# a fresh instance for each use


@on_every_backend
async def test_each_use_gets_a_fresh_instance() -> None:
    async with counters() as pool:
        assert [await use(pool) for _ in range(3)] == [1, 1, 1]
        assert facts(pool) == (3, 0, 3)


@on_every_backend
async def test_instance_is_closed_after_its_use() -> None:
    async with counters() as pool:
        async with pool.acquire() as instance:
            assert instance.exports.count() == 1

        with pytest.raises(anyio.ClosedResourceError):
            instance.exports.count()


@on_every_backend
async def test_each_instance_has_a_store_of_its_own() -> None:
    async with counters(max_instances=2) as pool:
        with aw.Store() as around:
            async with pool.acquire() as first, pool.acquire() as second:
                assert len({around, first.store, second.store}) == 3


@on_every_backend
async def test_dropped_pool_leaves_no_store() -> None:
    stores: list[weakref.ref[Any]] = []
    imports = {"host": {"f": lambda value: value}}
    pool = aw.InstancePool(module(CALLER), imports, max_instances=2, max_uses=2)
    for _ in range(3):
        async with pool.acquire() as instance:
            assert await instance.exports.call.call_async(7) == 7
            stores.append(weakref.ref(instance._store))
    del instance, pool
    gc.collect()

    assert [store() for store in stores] == [None] * 3


@on_every_backend
async def test_entering_does_not_let_the_loop_run_if_there_is_room() -> None:
    ran = False

    async def other() -> None:
        nonlocal ran
        ran = True

    async with counters() as pool, anyio.create_task_group() as group:
        group.start_soon(other)
        async with pool.acquire():
            assert not ran


@on_every_backend
async def test_acquisition_is_good_for_one_block() -> None:
    async with counters() as pool:
        acquisition = pool.acquire()
        async with acquisition:
            pass

        with pytest.raises(RuntimeError, match="acquire"):
            await acquisition.__aenter__()


@on_every_backend
async def test_acquisition_takes_part_in_cancellation_on_entry() -> None:
    async with counters() as pool:
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with pool.acquire():
                pytest.fail("got an instance")

        assert facts(pool) == (0, 0, 0)


# imports


@on_every_backend
async def test_imports_are_read_once() -> None:
    class Imports:
        reads = 0

        @property
        def host(self) -> dict[str, Any]:
            Imports.reads += 1
            return {"f": lambda value: value + 1}

    async with aw.InstancePool(module(CALLER), Imports(), max_instances=1) as pool:
        for _ in range(3):
            async with pool.acquire() as instance:
                assert instance.exports.call(1) == 2
                assert await instance.exports.call.call_async(2) == 3

        assert Imports.reads == 1


@on_every_backend
async def test_callable_makes_the_imports_of_each_instance() -> None:
    made: list[aw.Memory] = []

    def imports() -> dict[str, Any]:
        made.append(aw.Memory(1))
        return {"host": {"memory": made[-1]}}

    async with aw.InstancePool(module(MEMORY), imports, max_instances=2) as pool:
        with aw.Store():
            async with pool.acquire() as first, pool.acquire() as second:
                first.exports.write(5)

                assert (first.exports.read(), second.exports.read()) == (5, 0)
                assert [memory.read(0, 1) for memory in made] == [b"\5", b"\0"]


@on_every_backend
async def test_callable_that_shares_an_object_is_told() -> None:
    memory = aw.Memory(1)
    pool = aw.InstancePool(module(MEMORY), lambda: {"host": {"memory": memory}}, max_instances=2)
    async with pool, pool.acquire():
        with pytest.raises(aw.LinkError) as caught:
            async with pool.acquire():
                pytest.fail("got an instance")

        assert "store of its own" in caught.value.__notes__[0]
        assert pool.statistics().in_use == 1


@on_every_backend
async def test_shared_memory_is_for_all_instances() -> None:
    text = MEMORY.replace("(memory 1)", "(memory 1 1 shared)")
    memory = aw.Memory(1, 1, shared=True)
    async with aw.InstancePool(module(text), {"host": {"memory": memory}}, max_instances=1) as pool:
        async with pool.acquire() as instance:
            instance.exports.write(9)
        async with pool.acquire() as instance:
            assert instance.exports.read() == 9


@on_every_backend
async def test_constants_and_tags_can_be_given_to_all_instances() -> None:
    text = """(module (import "m" "n" (global i32)) (import "m" "t" (tag (param externref)))
      (func (export "read") (result i32) (global.get 0)))"""
    imports = {"m": {"n": 42, "t": aw.PYTHON_TAG}}
    async with aw.InstancePool(module(text), imports, max_instances=1) as pool:
        for _ in range(2):
            async with pool.acquire() as instance:
                assert instance.exports.read() == 42


@on_every_backend
async def test_builtins_work_in_every_instance() -> None:
    text = """(module (import "wasm:js-string" "length" (func $l (param externref) (result i32)))
      (func (export "length") (param externref) (result i32) (call $l (local.get 0))))"""
    compiled = await aw.compile(aw.wat2wasm(text), builtins=["js-string"])
    async with aw.InstancePool(compiled, max_instances=1) as pool:
        for text in ("", "abc"):
            async with pool.acquire() as instance:
                assert instance.exports.length(text) == len(text)


@on_every_backend
async def test_start_function_may_await() -> None:
    async with aw.InstancePool(
        module(STARTER), {"host": {"f": checkpoint}}, max_instances=1
    ) as pool:
        for _ in range(2):
            async with pool.acquire() as instance:
                assert instance.exports.one() == 1


@on_every_backend
async def test_failing_start_function_gives_its_place_back() -> None:
    def refuse() -> None:
        raise ValueError("no")

    async with aw.InstancePool(module(STARTER), {"host": {"f": refuse}}, max_instances=1) as pool:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^no$"):
                async with pool.acquire():
                    pytest.fail("got an instance")

        assert pool.statistics().in_use == 0


@on_every_backend
async def test_failing_callable_gives_its_place_back() -> None:
    def imports() -> Any:
        raise ValueError("no")

    async with aw.InstancePool(module(STARTER), imports, max_instances=1) as pool:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^no$"):
                async with pool.acquire():
                    pytest.fail("got an instance")


@on_every_backend
async def test_limits_are_per_instance() -> None:
    async with counters(limits=aw.Limits(fuel=1000)) as pool:
        with pytest.raises(aw.Interrupted):
            async with pool.acquire() as instance:
                instance.exports.spin()

        assert await use(pool) == 1


# waiting


@on_every_backend
async def test_tasks_get_their_turns_in_the_order_they_came() -> None:
    got: list[int] = []
    async with counters() as pool, anyio.create_task_group() as group:

        async def wait(number: int) -> None:
            async with pool.acquire():
                got.append(number)
                await checkpoint()

        async with pool.acquire():
            for number in range(5):
                group.start_soon(wait, number)
                await anyio.wait_all_tasks_blocked()
            assert pool.statistics().waiting == 5

    assert got == [0, 1, 2, 3, 4]


@on_every_backend
async def test_task_that_gives_back_and_asks_again_waits_for_its_turn() -> None:
    """It would starve the others, since it does not let the loop run in between."""
    order: list[str] = []
    async with counters() as pool, anyio.create_task_group() as group:

        async def other() -> None:
            async with pool.acquire():
                order.append("other")

        async with pool.acquire():
            group.start_soon(other)
            await anyio.wait_all_tasks_blocked()
        async with pool.acquire():
            order.append("again")

    assert order == ["other", "again"]


@on_every_backend
async def test_never_more_than_the_cap_are_in_use() -> None:
    using = most = 0
    async with counters(max_instances=3, max_uses=2) as pool:

        async def work() -> None:
            nonlocal using, most
            async with pool.acquire() as instance:
                using += 1
                most = max(most, using)
                await instance.exports.count.call_async()
                await checkpoint()
                using -= 1

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(work)
        found = pool.statistics()

    assert most == 3
    assert found.created + found.reused == 20
    assert found.created - found.discarded == found.idle


@on_every_backend
async def test_too_long_a_line_is_refused() -> None:
    async with counters(max_waiting=1) as pool, anyio.create_task_group() as group:
        async with pool.acquire():
            waiting = Holder(pool, group)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.WouldBlock, match="1 tasks wait"):
                async with pool.acquire():
                    pytest.fail("got an instance")
            assert pool.statistics().waiting == 1
        await waiting.has.wait()
        waiting.back.set()


@on_every_backend
async def test_without_a_line_a_full_pool_refuses() -> None:
    async with counters(max_waiting=0) as pool:
        async with pool.acquire():
            with pytest.raises(anyio.WouldBlock):
                await use(pool)

        assert await use(pool) == 1


@on_every_backend
async def test_cancelled_wait_leaves_the_pool_unchanged() -> None:
    async with counters() as pool, anyio.create_task_group() as group:
        async with pool.acquire():
            cancelled, next_one = Holder(pool, group), Holder(pool, group)
            await anyio.wait_all_tasks_blocked()
            before = pool.statistics()
            assert before.waiting == 2
            cancelled.scope.cancel()
            await anyio.wait_all_tasks_blocked()

            assert pool.statistics().waiting == 1
        await next_one.has.wait()
        assert not cancelled.has.is_set()
        next_one.back.set()

    assert facts(pool) == (2, 0, 2)


@pytest.mark.parametrize("max_uses", [1, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_turn_of_a_task_that_is_cancelled_meanwhile_goes_to_the_next(
    max_uses: int, backend: str
) -> None:
    async def main() -> None:
        async with counters(max_uses=max_uses) as pool, anyio.create_task_group() as group:
            async with pool.acquire() as instance:
                instance.exports.count()
                first, second = Holder(pool, group), Holder(pool, group)
                await anyio.wait_all_tasks_blocked()
                first.scope.cancel()  # it has not run since, so it still is in line
            await second.has.wait()
            assert not first.has.is_set()
            second.back.set()
            await anyio.wait_all_tasks_blocked()
            assert pool.statistics().in_use == 0
            assert await use(pool) == (1 if max_uses == 1 else 2)

    pytest.importorskip(backend)
    anyio.run(main, backend=backend)


@pytest.mark.parametrize("max_uses", [1, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_turn_that_comes_before_a_cancellation_is_not_lost(max_uses: int, backend: str) -> None:
    """The task has its place already when it is cancelled, and has not run yet."""

    async def main() -> None:
        async with counters(max_uses=max_uses) as pool, anyio.create_task_group() as group:
            async with pool.acquire() as instance:
                instance.exports.count()
                first = Holder(pool, group)
                await anyio.wait_all_tasks_blocked()
            first.scope.cancel()
            await anyio.wait_all_tasks_blocked()

            found = pool.statistics()
            assert (found.in_use, found.waiting) == (0, 0)
            assert await use(pool) in (1, 2)

    pytest.importorskip(backend)
    anyio.run(main, backend=backend)


async def test_turn_that_comes_before_a_native_cancellation_is_not_lost() -> None:
    """Here asyncio raises at the wait itself."""
    pool = counters(max_uses=5)
    async with pool.acquire() as instance:
        instance.exports.count()
        task = asyncio.create_task(use(pool))
        await anyio.wait_all_tasks_blocked()
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    assert pool.statistics().in_use == 0
    assert await use(pool) == 2


@on_every_backend
async def test_cancelling_while_an_instance_is_made_gives_the_place_to_the_next() -> None:
    began, ended = anyio.Event(), []

    async def wait() -> None:
        if began.is_set():
            return
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    async with (
        aw.InstancePool(module(STARTER), {"host": {"f": wait}}, max_instances=1) as pool,
        anyio.create_task_group() as group,
    ):
        making = Holder(pool, group)
        await began.wait()
        waiting = Holder(pool, group)
        await anyio.wait_all_tasks_blocked()
        making.scope.cancel()
        await waiting.has.wait()
        waiting.back.set()

    assert ended == [True]
    assert facts(pool) == (1, 0, 1)


# using an instance again


@on_every_backend
async def test_instance_is_used_again_up_to_max_uses() -> None:
    async with counters(max_uses=3) as pool:
        assert [await use(pool) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]
        assert facts(pool) == (3, 4, 2)
        assert pool.statistics().idle == 1


@on_every_backend
async def test_waiting_task_gets_the_instance_itself() -> None:
    async with counters(max_uses=3) as pool, anyio.create_task_group() as group:
        async with pool.acquire() as instance:
            waiting = Holder(pool, group)
            await anyio.wait_all_tasks_blocked()
        await waiting.has.wait()
        assert waiting.instance is instance
        waiting.back.set()


BROKEN = """(module (memory 1) (data (i32.const 65536) "x"))"""


@on_every_backend
async def test_instance_that_cannot_be_made_leaves_its_place_and_counts_as_none() -> None:
    async with aw.InstancePool(module(BROKEN), max_instances=1) as pool:
        for _ in range(3):  # the first one takes longer than the others
            with pytest.raises(aw.Trap):
                async with pool.acquire():
                    raise AssertionError

        assert facts(pool) == (0, 0, 0)
        assert pool.statistics().in_use == 0
        pool.replace(module(COUNTER))
        async with pool.acquire() as instance:
            assert instance.exports.count() == 1


@on_every_backend
async def test_every_way_to_a_place_makes_an_instance_of_its_own() -> None:
    seen: list[int] = []

    async def use() -> None:
        async with pool.acquire() as instance:
            seen.append(instance.exports.count())
            await checkpoint()

    async with counters() as pool, anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(use)

    assert seen == [1, 1, 1, 1]
    assert facts(pool) == (4, 0, 4)


async def _trap(instance: aw.Instance) -> None:
    with pytest.raises(aw.Trap):
        instance.exports.trap()


async def _trap_async(instance: aw.Instance) -> None:
    with pytest.raises(aw.Trap):
        await instance.exports.trap.call_async()


async def _close(instance: aw.Instance) -> None:
    instance.close()


async def _close_store(instance: aw.Instance) -> None:
    instance.store.close()


async def _convert(instance: aw.Instance) -> None:
    with pytest.raises(TypeError):
        instance.exports.count("too much")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spoil", [_trap, _trap_async, _close, _close_store])
def test_spoiled_instance_is_not_used_again(
    backend: str, spoil: Callable[[aw.Instance], Awaitable[None]]
) -> None:
    """Also if whoever used it caught the error."""

    async def main() -> None:
        async with counters(max_uses=9) as pool:
            assert await use(pool) == 1
            async with pool.acquire() as instance:
                await spoil(instance)

            assert await use(pool) == 1
            assert facts(pool) == (2, 1, 1)

    pytest.importorskip(backend)
    anyio.run(main, backend=backend)


@on_every_backend
async def test_call_that_never_reached_the_guest_spoils_nothing() -> None:
    async with counters(max_uses=9) as pool:
        async with pool.acquire() as instance:
            await _convert(instance)

        assert await use(pool) == 1
        assert facts(pool) == (1, 1, 0)


@on_every_backend
async def test_block_left_by_an_exception_spoils_its_instance() -> None:
    async with counters(max_uses=9) as pool:
        with pytest.raises(KeyError):
            async with pool.acquire() as instance:
                raise KeyError
        with anyio.CancelScope() as scope:
            async with pool.acquire():
                scope.cancel()
                await checkpoint()

        assert instance.store.closed
        assert facts(pool) == (2, 0, 2)


@pytest.mark.parametrize("way", ["call", "call_async"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_import_that_raised_spoils_the_instance_unless_the_guest_caught_it(
    backend: str, way: str
) -> None:
    def fail(value: int = 0) -> int:
        raise ValueError

    async def call(function: Any, *arguments: Any) -> Any:
        return function(*arguments) if way == "call" else await function.call_async(*arguments)

    async def main() -> None:
        imports = {"host": {"f": fail}}
        async with aw.InstancePool(module(CATCHER), imports, max_instances=1, max_uses=9) as pool:
            for _ in range(2):
                async with pool.acquire() as instance:
                    assert await call(instance.exports.catch) == 1
            assert facts(pool) == (1, 1, 0)
        async with aw.InstancePool(module(CALLER), imports, max_instances=1, max_uses=9) as pool:
            async with pool.acquire() as instance:
                with pytest.raises(ValueError):  # noqa: PT011  # it has no text
                    await call(instance.exports.call, 1)
            assert facts(pool) == (1, 0, 1)

    pytest.importorskip(backend)
    anyio.run(main, backend=backend)


@pytest.mark.parametrize("where", ["import", "guest"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_cancelled_call_spoils_the_instance(backend: str, where: str) -> None:
    """Also if whoever cancelled it goes on to use the block."""

    async def main() -> None:
        reached = anyio.Event()

        async def wait() -> None:
            reached.set()
            if where == "import":
                await anyio.sleep_forever()

        async with aw.InstancePool(
            module(SPINNER), {"host": {"f": wait}}, max_instances=1, max_uses=9
        ) as pool:
            async with pool.acquire() as instance:
                async with anyio.create_task_group() as group:
                    group.start_soon(instance.exports.spin.call_async)
                    await reached.wait()
                    group.cancel_scope.cancel()
                assert instance.exports.one() == 1

            assert facts(pool) == (1, 0, 1)

    pytest.importorskip(backend)
    anyio.run(main, backend=backend)


@on_every_backend
async def test_instance_with_a_suspended_call_is_closed() -> None:
    began = anyio.Event()
    errors: list[BaseException] = []

    async def wait(value: int) -> int:
        began.set()
        await ends.wait()
        return value

    async def call(instance: aw.Instance) -> None:
        try:
            await instance.exports.call.call_async(1)
        except Exception as exc:
            errors.append(exc)

    ends = anyio.Event()
    async with (
        aw.InstancePool(module(CALLER), {"host": {"f": wait}}, max_instances=1, max_uses=9) as pool,
        anyio.create_task_group() as group,
    ):
        async with pool.acquire() as instance:
            group.start_soon(call, instance)
            await began.wait()
        assert instance.store.closed
        assert facts(pool) == (1, 0, 1)
        ends.set()

    assert [type(exc) for exc in errors] == [aw.Interrupted]


@on_every_backend
async def test_fuel_is_per_use() -> None:
    async with counters(max_uses=100, limits=aw.Limits(fuel=100)) as pool:
        left: list[int | None] = []
        for _ in range(50):
            async with pool.acquire() as instance:
                left.append(instance.store.fuel)
                instance.exports.count()

        assert set(left) == {100}
        assert facts(pool) == (1, 49, 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(pool_module, "monotonic", lambda: now[0])
    return now


async def test_idle_instances_expire(clock: list[float]) -> None:
    async with counters(max_instances=2, max_uses=9, idle_seconds=10) as pool:
        async with pool.acquire() as first, pool.acquire():
            pass
        clock[0] += 5
        assert await use(pool) == 1
        assert pool.statistics().idle == 2
        clock[0] += 5

        assert pool.statistics().idle == 1
        assert pool.statistics().discarded == 1
        clock[0] += 5
        assert await use(pool) == 1
        assert facts(pool) == (3, 1, 2)
        assert first.store.closed


async def test_idle_instances_can_be_kept_for_ever(clock: list[float]) -> None:
    async with counters(max_uses=9, idle_seconds=None) as pool:
        await use(pool)
        clock[0] += 1e9

        assert await use(pool) == 2


async def test_idle_instance_that_somebody_still_used_is_not_lent() -> None:
    """Whoever keeps an instance after its block does wrong; the next user must not suffer."""
    async with counters(max_uses=9) as pool:
        async with pool.acquire() as instance:
            pass
        with pytest.raises(aw.Trap):
            instance.exports.trap()

        assert await use(pool) == 1
        assert facts(pool) == (2, 0, 1)


# replacing the module


@on_every_backend
async def test_replaced_module_is_used_from_then_on() -> None:
    old, new = module(COUNTER), module(ADD)
    async with aw.InstancePool(old, max_instances=2, max_uses=9) as pool:
        async with pool.acquire() as used:
            async with pool.acquire() as idle:
                pass
            pool.replace(new)

            assert pool.module is new
            assert idle.store.closed
            assert used.exports.count() == 1
            async with pool.acquire() as fresh:
                assert fresh.module is new
                assert fresh.exports.add(1, 2) == 3
        assert used.store.closed
        assert facts(pool) == (3, 0, 2)


@on_every_backend
async def test_waiting_task_gets_the_replaced_module() -> None:
    async with (
        aw.InstancePool(module(COUNTER), max_instances=1, max_uses=9) as pool,
        anyio.create_task_group() as group,
    ):
        async with pool.acquire():
            waiting = Holder(pool, group)
            await anyio.wait_all_tasks_blocked()
            pool.replace(module(ADD))
        await waiting.has.wait()
        assert waiting.instance is not None
        assert waiting.instance.module is module(ADD)
        waiting.back.set()


@on_every_backend
async def test_instance_on_its_way_to_a_task_is_dropped_if_the_module_is_replaced() -> None:
    async with (
        aw.InstancePool(module(COUNTER), max_instances=1, max_uses=9) as pool,
        anyio.create_task_group() as group,
    ):
        async with pool.acquire() as old:
            waiting = Holder(pool, group)
            await anyio.wait_all_tasks_blocked()
        pool.replace(module(ADD))
        await waiting.has.wait()
        assert waiting.instance is not None
        assert waiting.instance.module is module(ADD)
        assert old.store.closed
        waiting.back.set()


@pytest.mark.parametrize("closing", [True, False])
async def test_instance_that_nobody_came_for_is_dropped_with_its_module(closing: bool) -> None:
    pool = counters(max_uses=9)
    async with pool.acquire() as old:
        task = asyncio.create_task(use(pool))
        await anyio.wait_all_tasks_blocked()
    if closing:
        pool.close()
    else:
        pool.replace(module(ADD))
    task.cancel()
    await asyncio.wait([task])

    assert old.store.closed
    assert facts(pool) == (1, 0, 1)
    assert pool.statistics().in_use == 0


async def test_module_that_does_not_fit_the_imports_is_not_taken() -> None:
    async with counters() as pool:
        with pytest.raises(TypeError):
            pool.replace(module(CALLER))
        with pytest.raises(TypeError):
            pool.replace(None)  # type: ignore[arg-type]

        assert pool.module is module(COUNTER)
        assert await use(pool) == 1


# closing


@on_every_backend
async def test_closed_pool_lends_nothing() -> None:
    pool = counters()
    await pool.aclose()
    await pool.aclose()
    pool.close()

    assert pool.closed
    with pytest.raises(anyio.ClosedResourceError):
        await use(pool)
    with pytest.raises(anyio.ClosedResourceError):
        pool.replace(module(ADD))
    with pytest.raises(anyio.ClosedResourceError):
        async with pool:
            pytest.fail("entered")


@on_every_backend
async def test_aclose_waits_for_what_is_in_use_and_refuses_the_line() -> None:
    async with anyio.create_task_group() as group:
        pool = counters(max_uses=9)
        using = Holder(pool, group)
        await using.has.wait()
        waiting = Holder(pool, group)
        await anyio.wait_all_tasks_blocked()
        closed = anyio.Event()

        async def close() -> None:
            await pool.aclose()
            closed.set()

        group.start_soon(close)
        await anyio.wait_all_tasks_blocked()
        assert isinstance(waiting.error, anyio.ClosedResourceError)
        assert not closed.is_set()
        assert using.instance is not None
        assert using.instance.exports.count() == 1
        using.back.set()
        await closed.wait()

        assert using.instance.store.closed
        assert facts(pool) == (1, 0, 1)


@on_every_backend
async def test_cancelled_aclose_closes_what_is_in_use() -> None:
    async with anyio.create_task_group() as group:
        pool = counters()
        using = Holder(pool, group)
        await using.has.wait()
        with anyio.move_on_after(0.001) as scope:
            await pool.aclose()

        assert scope.cancelled_caught
        assert using.instance is not None
        assert using.instance.store.closed
        using.back.set()


@on_every_backend
async def test_close_ends_calls_and_makings_now() -> None:
    began = anyio.Event()

    async def wait() -> None:
        began.set()
        await go.wait()

    go = anyio.Event()
    pool = aw.InstancePool(module(STARTER), {"host": {"f": wait}}, max_instances=1)
    async with anyio.create_task_group() as group:
        making = Holder(pool, group)
        await began.wait()
        pool.close()
        go.set()
        await anyio.wait_all_tasks_blocked()

        assert isinstance(making.error, anyio.ClosedResourceError)
        assert pool.statistics().in_use == 0


@on_every_backend
async def test_pool_left_by_an_exception_closes_at_once() -> None:
    pool = counters(max_instances=2)
    async with anyio.create_task_group() as group:
        with pytest.raises(KeyError):  # noqa: PT012
            async with pool:
                using = Holder(pool, group)
                await using.has.wait()
                raise KeyError
        assert using.instance is not None
        assert using.instance.store.closed
        using.back.set()


@on_every_backend
async def test_place_on_its_way_to_a_task_when_the_pool_closes_is_given_back() -> None:
    async with anyio.create_task_group() as group:
        pool = counters(max_uses=9)
        async with pool.acquire():
            waiting = Holder(pool, group)
            await anyio.wait_all_tasks_blocked()
        await pool.aclose()
        await anyio.wait_all_tasks_blocked()

        assert isinstance(waiting.error, anyio.ClosedResourceError)
        assert pool.statistics().in_use == 0
        assert facts(pool) == (1, 0, 1)


def test_close_needs_no_loop() -> None:
    pool = counters(max_uses=9)
    anyio.run(use, pool)
    assert pool.statistics().idle == 1
    pool.close()

    assert pool.statistics().idle == 0


# loops


def test_pool_can_be_used_in_one_loop_after_another() -> None:
    pool = counters(max_uses=9)

    assert [anyio.run(use, pool, backend=backend) for backend in BACKENDS * 2] == [1, 2, 3, 4]


async def test_pool_in_use_in_one_loop_is_refused_in_another() -> None:
    pool = counters(max_instances=2)
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            anyio.run(use, pool)
        except BaseException as exc:
            errors.append(exc)

    async with pool.acquire():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)

    assert [type(exc) for exc in errors] == [RuntimeError]
    assert "another event loop" in str(errors[0])
    assert await use(pool) == 1


def test_task_in_line_of_a_loop_that_has_gone_is_passed_over() -> None:
    done = run_script("""
        import asyncio
        import asyncwasm as aw

        pool = aw.InstancePool(aw.Module(aw.wat2wasm("(module)")), max_instances=1)
        loop = asyncio.new_event_loop()
        held = pool.acquire()
        loop.run_until_complete(held.__aenter__())
        task = loop.create_task(pool.acquire().__aenter__())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        try:
            held.__aexit__(None, None, None).send(None)
        except StopIteration:
            pass
        found = pool.statistics()
        print(found.in_use, found.waiting, flush=True)
        import os
        os._exit(0)  # the task is still pending
    """)

    assert done.stdout == "0 0\n", done.stderr


def test_repr_tells_what_is_going_on() -> None:
    pool = counters(max_instances=3)
    assert "0 of 3 in use, 0 waiting" in repr(pool)
    pool.close()

    assert repr(pool).endswith("closed>")

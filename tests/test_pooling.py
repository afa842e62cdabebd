"""Pooling: what fits, what does not, and that nobody sees what was there before."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest

import asyncwasm as aw
from asyncwasm._runtime import config as config_module

from .support import ADD, CALLER, SPIN, run_script, wasm

MEMORY = """(module (memory (export "memory") 1) (data (i32.const 8) "data")
  (table (export "table") 4 funcref) (global (export "global") (mut i32) (i32.const 7))
  (elem (i32.const 1) $f) (func $f (export "f") (result i32) (i32.const 3))
  (func (export "trap") unreachable))"""
PLAIN_MEMORY = """(module (memory (export "memory") 1))"""
TABLE = """(module (table (export "table") 1 funcref)
  (func (export "grow") (param i32) (result i32)
    (table.grow 0 (ref.null func) (local.get 0))))"""
OBJECTS = """(module (type $s (struct (field i32)))
  (func (export "make") (param i32) (result (ref $s)) (struct.new $s (local.get 0)))
  (func (export "value") (param (ref $s)) (result i32) (struct.get $s 0 (local.get 0)))
  (func (export "same") (param externref) (result externref) (local.get 0)))"""
THROWER = """(module (import "host" "f" (func $f)) (tag $tag (export "tag") (param i32))
  (func (export "throw") (param i32) (throw $tag (local.get 0)))
  (func (export "call") (call $f))
  (func (export "caught") (result i32)
    (block $caught (try_table (catch_all $caught) (call $f)) (return (i32.const 0)))
    (i32.const 1)))"""
SHARED = """(module (memory (export "memory") 1 2 shared))"""
GROWER = """(module (memory (export "memory") 1)
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))"""
PAGE = 65_536
UNFIT = [
    ({"memory_bytes": PAGE}, "(module (memory 2))", ("131072", "65536", "memory_bytes=")),
    ({"table_elements": 20}, "(module (table 21 funcref))", ("21", "20", "table_elements=")),
    ({}, SHARED, ("shared", "without a pool")),
    ({}, "(module (memory i64 70000))", (str(70_000 * PAGE), str(4 << 30))),
    (
        {"tables": 1},
        "(module (table 1 funcref) (table 1 funcref))",
        ("2", "1"),
    ),
]


def engine(**bounds: Any) -> aw.Engine:
    return aw.Engine(aw.EngineConfig(pooling=aw.Pooling(**{"instances": 4, **bounds})))


def pooled(text: str, imports: Any = None, **bounds: Any) -> aw.Instance:
    return aw.Instance(aw.Module(wasm(text), engine=engine(**bounds)), imports)


def is_pooled(instance: aw.Instance) -> bool:
    return instance._store.variant.pooled


@pytest.fixture
def tiny_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pools that engines make by themselves have room for one instance."""
    monkeypatch.setattr(config_module, "_POOLING", aw.Pooling(instances=1))


# configuration


@pytest.mark.parametrize(
    ("bounds", "error"),
    [
        ({"instances": 0}, ValueError),
        ({"instances": None}, TypeError),
        ({"instances": True}, TypeError),
        ({"instances": 1.0}, TypeError),
        ({"instances": 100_001}, ValueError),
        ({"memories": 0}, ValueError),
        ({"tables": -1}, ValueError),
        ({"stacks": "1"}, TypeError),
        ({"memory_bytes": 0}, ValueError),
        ({"memory_bytes": (4 << 30) + 1}, ValueError),
        ({"table_elements": 10_000_001}, ValueError),
        ({"keep_resident_bytes": -1}, ValueError),
    ],
    ids=str,
)
def test_wrong_bound_is_refused(bounds: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(bounds))):
        aw.Pooling(**bounds)


@pytest.mark.parametrize("value", [1, "yes", {}, aw.Pooling], ids=str)
def test_pooling_wants_bounds_or_a_bool(value: Any) -> None:
    with pytest.raises(TypeError, match="expected a Pooling, a bool or None for pooling, got"):
        aw.EngineConfig(pooling=value)


def test_config_with_bounds_is_a_value() -> None:
    config = aw.EngineConfig(pooling=aw.Pooling(instances=3))

    assert pickle.loads(pickle.dumps(config)) == config == copy.deepcopy(config)
    assert hash(replace(config)) == hash(config)
    assert "Pooling(instances=3" in repr(config)
    assert config != aw.EngineConfig(pooling=True)


def test_module_of_a_pooling_engine_pickles() -> None:
    module = aw.Module(wasm(ADD), engine=engine())

    again = pickle.loads(pickle.dumps(module))

    assert again.engine.config.pooling == aw.Pooling(instances=4)
    with aw.Instance(again) as instance:
        assert instance.exports.add(1, 2) == 3
        assert is_pooled(instance)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [(None, False), (False, False), (True, True), (aw.Pooling(instances=2), True)],
    ids=str,
)
def test_pooling_says_where_stores_come_from(pooling: Any, expected: bool) -> None:
    module = aw.Module(wasm(ADD), engine=aw.Engine(aw.EngineConfig(pooling=pooling)))

    with aw.Instance(module) as instance:
        assert is_pooled(instance) is expected


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ({"stacks": 100_000}, "vm.max_map_count"),
        ({"memories": 100_000}, "memories=100,000"),
    ],
    ids=str,
)
def test_pool_that_the_system_has_no_room_for_is_refused(bounds: dict[str, int], says: str) -> None:
    """The library would abort the process."""
    module = aw.Module(wasm(ADD), engine=engine(**bounds))

    with pytest.raises(aw.RangeError, match=says):
        aw.Instance(module)


def test_process_with_little_address_space_has_no_pool() -> None:
    done = run_script(
        f"""
        import anyio, logging, resource, sys
        import asyncwasm as aw
        logging.basicConfig(level="WARNING", stream=sys.stdout, format="%(message)s")
        module = aw.Module(aw.wat2wasm({ADD!r}))
        explicit = aw.Module(aw.wat2wasm({ADD!r}),
                             engine=aw.Engine(aw.EngineConfig(pooling=True)))
        with aw.Instance(module):
            pass
        resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))
        try:
            aw.Instance(explicit)
        except aw.RangeError as exc:
            print("refused", "memories=1,000" in str(exc))
        async def main():
            async with aw.InstancePool(module, max_instances=1) as pool:
                for _ in range(2):
                    async with pool.acquire() as instance:
                        print(instance.exports.add(1, 2), instance._store.variant.pooled)
        anyio.run(main)
        """
    )

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if "pool_not_made" not in line] == [
        "refused True",
        "3 False",
        "3 False",
    ]
    assert sum("pool_not_made" in line for line in lines) == 1


# what works


def test_guest_uses_memory_table_and_global() -> None:
    with pooled(MEMORY) as instance:
        exports = instance.exports

        assert exports.memory.read(8, 4) == b"data"
        assert exports.table[1] is exports.f and exports.f() == 3
        assert exports.memory.grow(2) == 1
        assert exports.table.grow(3) == 4
        assert exports["global"].value == 7


def test_guest_makes_and_takes_objects() -> None:
    with pooled(OBJECTS, memories=1) as instance:
        exports, thing = instance.exports, object()

        assert exports.value(exports.make(5)) == 5
        assert exports.same(thing) is thing


def test_exceptions_travel() -> None:
    error = ValueError("mine")

    def fail() -> None:
        raise error

    with pooled(THROWER, {"host": {"f": fail}}) as instance:
        with pytest.raises(aw.WasmException) as thrown:
            instance.exports.throw(4)
        with pytest.raises(ValueError, match="mine") as raised:
            instance.exports.call()

        assert thrown.value.payload == (4,)
        assert raised.value is error
        assert instance.exports.caught() == 1


@pytest.mark.parametrize("tier", ["baseline", "optimized", "auto"])
def test_every_tier_can_be_pooled(tier: Any) -> None:
    made = aw.Engine(aw.EngineConfig(tier=tier, pooling=aw.Pooling(instances=2)))

    with aw.Instance(aw.Module(wasm(ADD), engine=made)) as instance:
        assert instance.exports.add(1, 2) == 3
        assert is_pooled(instance)


def test_same_fuel_with_and_without_a_pool() -> None:
    left = set()
    for made in (aw.Engine(), engine()):
        module = aw.Module(wasm(SPIN), engine=made)
        with aw.Instance(module, limits=aw.Limits(fuel=100_000)) as instance:
            instance.exports.work(1000)
            left.add(instance.store.fuel)

    assert len(left) == 1


def test_host_made_objects_need_no_room_in_the_pool() -> None:
    with aw.Store(engine=engine(memories=1, tables=1)) as store:
        memories = [aw.Memory(1, store=store) for _ in range(3)]
        tables = [aw.Table("funcref", 2, store=store) for _ in range(3)]
        wide = aw.Table("funcref", 3, address="i64", store=store)

        assert [each.read(0, 1) for each in memories] == [b"\0"] * 3
        assert [len(each) for each in (*tables, wide)] == [2, 2, 2, 3]


def test_imported_shared_memory_needs_no_room_in_the_pool() -> None:
    text = """(module (import "host" "m" (memory 1 2 shared))
      (func (export "load") (result i32) (i32.load8_u (i32.const 1))))"""
    memory = aw.Memory(1, 2, shared=True)
    with pooled(text, {"host": {"m": memory}}) as instance:
        memory.buffer[1] = 9

        assert instance.exports.load() == 9


def test_limits_hold_in_a_pool() -> None:
    module = aw.Module(wasm(GROWER), engine=engine())

    with aw.Instance(module, limits=aw.Limits(memory_bytes=2 * PAGE)) as instance:
        assert [instance.exports.grow(1), instance.exports.grow(1)] == [1, -1]
    with pytest.raises(aw.RangeError, match="memory_bytes=1"):
        aw.Instance(module, limits=aw.Limits(memory_bytes=1))


def test_bounds_hold_for_growing() -> None:
    module = aw.Module(wasm(GROWER), engine=engine(memory_bytes=2 * PAGE))
    with aw.Instance(module) as instance:
        assert [instance.exports.grow(1), instance.exports.grow(1)] == [1, -1]
        with pytest.raises(aw.RangeError):
            instance.exports.memory.grow(1)
    with pooled(TABLE, table_elements=3) as instance:
        assert [instance.exports.grow(2), instance.exports.grow(1)] == [1, -1]
        with pytest.raises(aw.RangeError):
            instance.exports.table.grow(1)


# what does not fit


@pytest.mark.parametrize(
    ("bounds", "text", "says"), UNFIT, ids=["memory", "table", "shared", "memory64", "tables"]
)
def test_module_that_does_not_fit_is_compiled_but_not_instantiated(
    bounds: dict[str, int], text: str, says: tuple[str, ...]
) -> None:
    module = aw.Module(wasm(text), engine=engine(**bounds))

    async def main() -> None:
        with pytest.raises(aw.RangeError) as awaited:
            await aw.instantiate(module)
        with pytest.raises(aw.RangeError) as direct:
            aw.Instance(module)

        for raised in (awaited, direct):
            assert all(each in str(raised.value) for each in says), raised.value
        assert module.exports() == module.exports()

    anyio.run(main)


# a pool that is used up


EXHAUSTED: dict[str, tuple[str, dict[str, int], int]] = {
    "instances": (ADD, {"instances": 2}, 2),
    "memories": (PLAIN_MEMORY, {"memories": 2}, 2),
    "tables": (TABLE, {"tables": 2}, 2),
}


@pytest.mark.parametrize("kind", EXHAUSTED)
def test_used_up_pool_says_what_it_lacks_and_has_room_again(kind: str) -> None:
    text, bounds, count = EXHAUSTED[kind]
    module = aw.Module(wasm(text), engine=engine(**bounds))
    instances = [aw.Instance(module) for _ in range(count)]

    for _ in range(3):
        with pytest.raises(aw.RangeError, match=rf"all {count} are in use.*\({kind}=") as raised:
            aw.Instance(module)
    pickle.loads(pickle.dumps(raised.value))
    for each in instances:
        each.close()

    for _ in range(3 * count):
        aw.Instance(module).close()


def test_dropped_instance_gives_its_room_back() -> None:
    module = aw.Module(wasm(MEMORY), engine=engine(instances=1))
    for _ in range(3):
        instance = aw.Instance(module)
        assert instance.exports.memory.read(8, 4) == b"data"
        del instance
        gc.collect()


def test_stack_is_kept_until_the_store_is_closed() -> None:
    module = aw.Module(wasm(ADD), engine=engine(stacks=1))

    async def main() -> None:
        first, second = await aw.instantiate(module), await aw.instantiate(module)
        assert await first.exports.add.call_async(1, 2) == 3
        with pytest.raises(aw.RangeError, match=r"all 1 are in use.*\(stacks="):
            await second.exports.add.call_async(1, 2)
        assert second.exports.add(1, 2) == 3
        first.close()
        assert await second.exports.add.call_async(1, 2) == 3
        second.close()

    anyio.run(main)


def test_objects_need_room_among_the_memories() -> None:
    """A heap for objects is a memory of the pool: whoever comes too late is told so."""
    module = aw.Module(wasm(OBJECTS), engine=engine(memories=1))
    first = aw.Instance(module)
    first.exports.make(1)
    with pytest.raises(aw.RangeError, match=r"\(memories="):
        aw.Instance(module).exports.make(1)
    first.close()

    with aw.Instance(module) as second:
        assert second.exports.value(second.exports.make(2)) == 2


def test_host_value_without_room_is_an_error() -> None:
    made = engine(memories=1)
    first = aw.Instance(aw.Module(wasm(OBJECTS), engine=made))
    first.exports.make(1)
    with aw.Store(engine=made) as store, pytest.raises(MemoryError, match="no room"):
        aw.Global("externref", object(), store=store).value = 1
    first.close()


def test_failed_start_gives_its_room_back() -> None:
    module = aw.Module(
        wasm("(module (memory 1) (func $s unreachable) (start $s))"), engine=engine()
    )

    for _ in range(10):
        with pytest.raises(aw.Trap):
            aw.Instance(module)


# isolation


def _scribble(instance: aw.Instance) -> None:
    exports = instance.exports
    exports.memory.grow(3)
    exports.memory.write(0, b"\xff" * exports.memory.byte_length)
    exports.table.grow(2, exports.f)
    for index in range(len(exports.table)):
        exports.table.set(index, exports.f)
    exports["global"].value = 99


def _is_fresh(instance: aw.Instance) -> bool:
    exports = instance.exports
    memory = exports.memory
    expected = b"\0" * 8 + b"data" + b"\0" * (PAGE - 12)
    return (
        memory.read(0, memory.byte_length) == expected
        and (memory.grow(3), memory.read(PAGE, 3 * PAGE)) == (1, b"\0" * (3 * PAGE))
        and [entry is None for entry in map(exports.table.get, range(4))]
        == [True, False, True, True]
        and (exports.table.grow(2), exports.table.get(5)) == (4, None)
        and exports["global"].value == 7
    )


@pytest.mark.parametrize("keep", [0, 4096, 64 << 10, 1 << 30], ids=str)
def test_fresh_instance_sees_nothing_of_the_last(keep: int) -> None:
    module = aw.Module(wasm(MEMORY), engine=engine(instances=1, keep_resident_bytes=keep))
    for _ in range(20):
        with aw.Instance(module) as instance:
            assert _is_fresh(instance)
            _scribble(instance)


def test_instance_of_another_module_sees_nothing_of_the_last() -> None:
    made = engine(instances=1)
    first = aw.Module(wasm(MEMORY), engine=made)
    second = aw.Module(wasm(PLAIN_MEMORY), engine=made)
    for _ in range(10):
        with aw.Instance(first) as instance:
            assert _is_fresh(instance)
            _scribble(instance)
        with aw.Instance(second) as instance:
            assert instance.exports.memory.read(0, PAGE) == b"\0" * PAGE
            instance.exports.memory.write(0, b"\xee" * PAGE)


def test_instance_pool_lends_fresh_memory_after_whatever_happened() -> None:
    async def main() -> None:
        async with aw.InstancePool(aw.Module(wasm(MEMORY)), max_instances=1) as pool:
            for round in range(12):
                async with pool.acquire() as instance:
                    assert is_pooled(instance)
                    assert _is_fresh(instance)
                    _scribble(instance)
                    if round % 3 == 1:
                        with pytest.raises(aw.Trap):
                            instance.exports.trap()
                    if round % 3 == 2:
                        instance.close()

    anyio.run(main)


def test_room_is_there_again_after_a_call_was_cancelled() -> None:
    module = aw.Module(wasm(SPIN), engine=engine(instances=1, stacks=1))

    async def main() -> None:
        for _ in range(5):
            instance = await aw.instantiate(module)
            with anyio.move_on_after(0.002):
                await instance.exports.spin.call_async()
            assert instance.exports.one() == 1
            instance.close()

    anyio.run(main)


def test_view_keeps_the_memory_from_the_next_instance() -> None:
    module = aw.Module(wasm(PLAIN_MEMORY), engine=engine(instances=1, memories=1))
    instance = aw.Instance(module)
    view = instance.exports.memory.buffer
    view[5] = 42
    instance.close()

    with pytest.raises(aw.RangeError, match="are in use"):
        aw.Instance(module)
    assert view[5] == 42
    del view
    gc.collect()
    with aw.Instance(module) as instance:
        assert instance.exports.memory.read(5, 1) == b"\0"


# many


def test_many_stores_come_and_go() -> None:
    module = aw.Module(wasm(MEMORY), engine=engine(instances=8))
    for _ in range(100):
        instances = [aw.Instance(module) for _ in range(8)]
        assert [each.exports.f() for each in instances] == [3] * 8
        for each in instances:
            each.close()


def test_threads_share_a_pool() -> None:
    module = aw.Module(wasm(MEMORY), engine=engine(instances=8))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(100):
                with aw.Instance(module) as instance:
                    assert instance.exports.memory.read(0, 12) == b"\0" * 8 + b"data"
                    instance.exports.memory.write(0, b"x" * 100)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert not failures


@pytest.mark.parametrize("pooling", ["True", "None"])
def test_forked_process_makes_a_pool_of_its_own(pooling: str) -> None:
    done = run_script(
        f"""
        import anyio, os
        import asyncwasm as aw
        engine = aw.Engine(aw.EngineConfig(pooling={pooling}))
        module = aw.Module(aw.wat2wasm({MEMORY!r}), engine=engine)
        async def use(word):
            async with aw.InstancePool(module, max_instances=2) as pool:
                for _ in range(3):
                    async with pool.acquire() as instance:
                        assert instance.exports.memory.read(8, 4) == b"data"
                        instance.exports.memory.write(8, word)
                        assert await instance.exports.f.call_async() == 3
                        assert instance._store.variant.pooled
        held = aw.Instance(module)
        anyio.run(use, b"1234")
        child = os.fork()
        if child == 0:
            try:
                held.exports.f()
            except anyio.ClosedResourceError:
                anyio.run(use, b"5678")
                os._exit(0)
            os._exit(3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), held.exports.f())
        anyio.run(use, b"9abc")
        """
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 3\n"


# instance pools


@pytest.mark.usefixtures("tiny_default")
def test_instance_pool_goes_on_where_the_engine_has_no_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = aw.Module(wasm(CALLER), engine=aw.Engine())

    async def main() -> None:
        pool = aw.InstancePool(module, {"host": {"f": lambda x: 2 * x}}, max_instances=2)
        async with pool, pool.acquire() as first, pool.acquire() as second:
            assert [is_pooled(first), is_pooled(second)] == [True, False]
            for each in (first, second):
                assert await each.exports.call.call_async(4) == 8
        pool = aw.InstancePool(module, {"host": {"f": abs}}, max_instances=2)
        async with pool, pool.acquire() as third:
            assert is_pooled(third)

    with caplog.at_level(logging.INFO, "asyncwasm"):
        anyio.run(main)
    assert sum("pool_not_used" in each.getMessage() for each in caplog.records) == 1


@pytest.mark.parametrize(
    "text",
    [SHARED, '(module (memory (export "memory") 1) (memory i64 70000))'],
    ids=["shared", "memory64"],
)
def test_instance_pool_takes_modules_that_fit_no_pool(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = aw.Module(wasm(text), engine=aw.Engine())

    async def main() -> None:
        for _ in range(2):
            async with aw.InstancePool(module, max_instances=2) as pool:
                for _ in range(2):
                    async with pool.acquire() as instance:
                        assert not is_pooled(instance)
                        assert instance.exports.memory.byte_length == PAGE

    with caplog.at_level(logging.INFO, "asyncwasm"):
        anyio.run(main)
    assert sum("pool_not_used" in each.getMessage() for each in caplog.records) == 1


@pytest.mark.parametrize("early", [True, False], ids=["given", "made for each"])
def test_instance_pool_shares_a_memory_with_other_stores(early: bool) -> None:
    text = """(module (import "host" "m" (memory 1 2 shared))
      (func (export "add") (result i32)
        (i32.atomic.rmw.add (i32.const 0) (i32.const 1))))"""
    module = aw.Module(wasm(text))
    memory = aw.Memory(1, 2, shared=True)
    imports = {"host": {"m": memory}}

    async def main() -> None:
        with aw.Instance(module, imports) as outside:
            async with (
                aw.InstancePool(
                    module, imports if early else lambda: imports, max_instances=1
                ) as pool,
                pool.acquire() as instance,
            ):
                assert [outside.exports.add(), instance.exports.add()] == [0, 1]

    anyio.run(main)


def test_instance_pool_keeps_to_the_bounds_of_its_engine() -> None:
    module = aw.Module(wasm(PLAIN_MEMORY), engine=engine(instances=1))

    async def main() -> None:
        async with aw.InstancePool(module, max_instances=2) as pool:
            async with pool.acquire():
                with pytest.raises(aw.RangeError, match="are in use"):
                    async with pool.acquire():
                        pytest.fail("there is no room")
            async with pool.acquire() as instance:
                assert is_pooled(instance)
            assert pool.statistics().in_use == 0

    anyio.run(main)


def test_instance_pool_of_an_engine_without_pools_uses_none() -> None:
    module = aw.Module(wasm(ADD), engine=aw.Engine(aw.EngineConfig(pooling=False)))

    async def main() -> None:
        async with aw.InstancePool(module, max_instances=1) as pool, pool.acquire() as instance:
            assert not is_pooled(instance)

    anyio.run(main)


def test_range_error_of_a_start_function_is_not_tried_again() -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise aw.RangeError("mine")

    text = '(module (import "host" "f" (func $f)) (start $f))'
    module = aw.Module(wasm(text), engine=aw.Engine())

    async def main() -> None:
        async with aw.InstancePool(module, {"host": {"f": fail}}, max_instances=1) as pool:
            with pytest.raises(aw.RangeError, match="mine"):
                async with pool.acquire():
                    pytest.fail("the start function has failed")

    anyio.run(main)
    assert calls == [1]


# cancellation


def test_cancelled_instantiation_makes_nothing() -> None:
    module = aw.Module(wasm(PLAIN_MEMORY), engine=engine(instances=1))

    async def main() -> None:
        for _ in range(3):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await aw.instantiate(module)
            assert scope.cancelled_caught
        (await aw.instantiate(module)).close()

    anyio.run(main)


@pytest.mark.parametrize(
    "make",
    [
        lambda: aw.EngineConfig(compile_threads=1),
        lambda: aw.EngineConfig(compile_threads=1, pooling=True),
    ],
    ids=["instance pool", "engine"],
)
def test_cancelled_while_code_is_loaded_into_the_pool(make: Callable[[], aw.EngineConfig]) -> None:
    """The place is free again, and whoever comes next gets the code."""
    engine = aw.Engine(make())
    module = aw.Module(wasm(MEMORY), engine=engine)
    loading, released = threading.Event(), threading.Event()

    def hold() -> None:
        loading.set()
        released.wait()

    async def main() -> None:
        async with aw.InstancePool(module, max_instances=1) as pool:
            engine._core.compilers.submit(hold)
            assert loading.wait(30)
            async with anyio.create_task_group() as group:

                async def use() -> None:
                    async with pool.acquire():
                        pytest.fail("cancelled before")

                group.start_soon(use)
                await anyio.wait_all_tasks_blocked()
                assert pool.statistics().in_use == 1
                group.cancel_scope.cancel()
            assert pool.statistics().in_use == 0
            released.set()
            async with pool.acquire() as instance:
                assert is_pooled(instance)
                assert instance.exports.f() == 3

    anyio.run(main)

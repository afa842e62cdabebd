"""Limits: what the guests of a store may take, and how they and their host are told."""

from __future__ import annotations

import asyncio
import dataclasses
import platform
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import asyncwasm as aw

from .support import wasm

PAGE = 65_536

MEMORY = """(module (memory (export "memory") 1)
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))"""
TABLE = """(module (table $t (export "table") 1 externref)
  (func (export "grow") (param i32) (result i32)
    (table.grow $t (ref.null extern) (local.get 0))))"""
WORK = """(module
  (import "host" "f" (func $f (param i32) (result i32)))
  (func (export "work") (param $n i32)
    (loop (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1))))))
  (func (export "ask") (param $n i32) (result i32)
    (loop (result i32) (call $f (local.get $n))
      (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1))))))
  (func (export "spin") (loop (br 0))))"""
PLAIN_WORK = """(module
  (func (export "work") (param $n i32)
    (loop (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1))))))
  (func (export "spin") (loop (br 0))))"""

# The baseline compiler is for x86-64 only.
TIERS: list[Any] = ["optimized"]
if platform.machine().lower() in ("x86_64", "amd64"):
    TIERS.append("baseline")
ENGINES = {tier: aw.Engine(aw.EngineConfig(tier=tier)) for tier in TIERS}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> aw.Engine:
    """An engine of each tier."""
    return ENGINES[request.param]


Way = Callable[..., Coroutine[Any, Any, aw.Instance]]


async def _synchronously(module: aw.Module, *arguments: Any, **options: Any) -> aw.Instance:
    return aw.Instance(module, *arguments, **options)


async def _awaited(module: aw.Module, *arguments: Any, **options: Any) -> aw.Instance:
    return await aw.instantiate(module, *arguments, **options)


in_every_way = pytest.mark.parametrize(
    "way", [_synchronously, _awaited], ids=["Instance", "instantiate"]
)


def compiled(text: str, engine: aw.Engine) -> aw.Module:
    return aw.Module(wasm(text), engine=engine)


# memory


def test_guest_that_asks_for_more_memory_sees_minus_one(engine: aw.Engine) -> None:
    limits = aw.Limits(memory_bytes=3 * PAGE)
    exports = aw.Instance(compiled(MEMORY, engine), limits=limits).exports

    assert exports.grow(2) == 1
    assert exports.grow(1) == -1
    assert exports.memory.byte_length == 3 * PAGE


def test_limit_between_two_pages_rounds_down(engine: aw.Engine) -> None:
    limits = aw.Limits(memory_bytes=3 * PAGE - 1)
    exports = aw.Instance(compiled(MEMORY, engine), limits=limits).exports

    assert (exports.grow(2), exports.grow(1)) == (-1, 1)


def test_memory_limit_is_for_each_memory() -> None:
    text = """(module (memory 1) (memory 1)
      (func (export "first") (result i32) (memory.grow 0 (i32.const 1)))
      (func (export "second") (result i32) (memory.grow 1 (i32.const 1))))"""
    exports = aw.Instance(
        compiled(text, ENGINES["optimized"]), limits=aw.Limits(memory_bytes=2 * PAGE)
    ).exports

    assert (exports.first(), exports.second()) == (1, 1)
    assert (exports.first(), exports.second()) == (-1, -1)


def test_host_that_asks_for_more_memory_gets_a_range_error(engine: aw.Engine) -> None:
    limits = aw.Limits(memory_bytes=PAGE)
    memory = aw.Instance(compiled(MEMORY, engine), limits=limits).exports.memory

    with pytest.raises(aw.RangeError, match="cannot grow a memory of 1 pages by 1"):
        memory.grow(1)

    assert memory.byte_length == PAGE


async def test_awaited_guest_sees_minus_one_too(engine: aw.Engine) -> None:
    instance = await aw.instantiate(compiled(MEMORY, engine), limits=aw.Limits(memory_bytes=PAGE))

    assert await instance.exports.grow.call_async(1) == -1


@pytest.mark.parametrize("count", [1, 2])
def test_module_with_a_shared_memory_that_can_grow_too_far_is_refused(count: int) -> None:
    """The library holds shared memories to no store's limits."""
    text = f"(module {'(memory 1)' * (count - 1)} (memory 1 100 shared))"
    module = compiled(text, ENGINES["optimized"])

    with pytest.raises(aw.RangeError, match=r"6553600 bytes.*Limits\(memory_bytes=6553599\)"):
        aw.Instance(module, limits=aw.Limits(memory_bytes=100 * PAGE - 1))

    aw.Instance(module, limits=aw.Limits(memory_bytes=100 * PAGE))
    aw.Instance(module)


def test_shared_memory_of_the_host_is_the_hosts_to_size() -> None:
    text = """(module (import "m" "m" (memory 1 100 shared))
      (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))"""
    memory = aw.Memory(1, 100, shared=True)
    guest = aw.Instance(
        compiled(text, ENGINES["optimized"]),
        {"m": {"m": memory}},
        limits=aw.Limits(memory_bytes=PAGE),
    )

    assert guest.exports.grow(99) == 1


START = "(func $start) (start $start)"
TOO_MUCH = {
    "memory_bytes": ("(memory 2)", 2 * PAGE - 1, "memory_bytes=131071"),
    "table_elements": ("(table 10 funcref)", 9, "table_elements=9"),
    "tables": ("(table 1 funcref) (table 1 funcref)", 1, "tables=1"),
    "memories": ("(memory 1) (memory 1)", 1, "memories=1"),
    "instances": ("(func)", 0, "instances=0"),
}


@in_every_way
@pytest.mark.parametrize("start", ["", START], ids=["plain", "start"])
@pytest.mark.parametrize(("text", "limit", "hint"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
async def test_module_that_needs_more_is_a_range_error(
    way: Way, start: str, text: str, limit: int, hint: str
) -> None:
    """Its imports are in order, so that it is no LinkError; the message names the limit."""
    module = compiled(f"(module {text} {start})", ENGINES["optimized"])
    limits = aw.Limits(**{hint.partition("=")[0]: limit})

    with pytest.raises(aw.RangeError) as caught:
        await way(module, limits=limits)

    assert not isinstance(caught.value, aw.LinkError)
    assert f"Limits({hint})" in str(caught.value)


@in_every_way
@pytest.mark.parametrize(("text", "limit", "hint"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
async def test_module_that_needs_just_as_much_is_instantiated(
    way: Way, text: str, limit: int, hint: str
) -> None:
    limits = aw.Limits(**{hint.partition("=")[0]: limit + 1})

    instance = await way(compiled(f"(module {text})", ENGINES["optimized"]), limits=limits)

    assert instance.store.limits == limits


def test_module_that_needs_more_is_refused_in_every_engine(engine: aw.Engine) -> None:
    module = compiled("(module (memory 2))", engine)

    with pytest.raises(aw.RangeError, match=r"Limits\(memory_bytes=65536\)"):
        aw.Instance(module, limits=aw.Limits(memory_bytes=PAGE))


@in_every_way
async def test_refused_module_leaves_the_store_usable(way: Way) -> None:
    with aw.Store(limits=aw.Limits(memory_bytes=PAGE)) as store:
        with pytest.raises(aw.RangeError):
            await way(compiled("(module (memory 2))", ENGINES["optimized"]), store=store)
        instance = await way(compiled(MEMORY, ENGINES["optimized"]), store=store)

        assert instance.exports.grow(0) == 1


@in_every_way
async def test_import_of_the_wrong_type_is_still_a_link_error(way: Way) -> None:
    text = '(module (import "m" "f" (func (param i32))) (memory 2))'
    wrong = aw.Function(((), ()), lambda: None)

    with pytest.raises(aw.LinkError) as caught:
        await way(
            compiled(text, ENGINES["optimized"]),
            {"m": {"f": wrong}},
            limits=aw.Limits(memory_bytes=PAGE),
        )

    assert (caught.value.module, caught.value.name) == ("m", "f")


@pytest.mark.parametrize("raised", [aw.LinkError, aw.RangeError])
@in_every_way
async def test_error_that_an_import_raises_is_left_alone(way: Way, raised: type[Exception]) -> None:
    mine = raised("memory minimum size of 2 pages exceeds memory limits")

    def fail() -> None:
        raise mine

    module = compiled('(module (import "m" "f" (func $f)) (start $f))', ENGINES["optimized"])
    with pytest.raises(raised) as caught:
        await way(module, {"m": {"f": fail}}, limits=aw.Limits(memory_bytes=PAGE))

    assert caught.value is mine


def test_memory_made_by_the_host_counts_when_it_is_bound() -> None:
    text = '(module (import "m" "memory" (memory 1)))'

    with pytest.raises(aw.RangeError):
        aw.Instance(
            compiled(text, ENGINES["optimized"]),
            {"m": {"memory": aw.Memory(3)}},
            limits=aw.Limits(memory_bytes=2 * PAGE),
        )


def test_collected_objects_of_the_guest_are_held_to_the_memory_limit() -> None:
    """What a guest allocates in the collector's heap is memory as well."""
    text = """(module (type $a (array i8)) (global $g (mut (ref null $a)) (ref.null $a))
      (func (export "new") (param i32)
        (global.set $g (array.new_default $a (local.get 0)))))"""
    new = aw.Instance(
        compiled(text, ENGINES["optimized"]), limits=aw.Limits(memory_bytes=4 * PAGE)
    ).exports.new

    new(1_000)
    with pytest.raises(aw.Trap):
        new(100 * PAGE)


# tables


def test_guest_that_asks_for_more_entries_sees_minus_one() -> None:
    exports = aw.Instance(
        compiled(TABLE, ENGINES["optimized"]), limits=aw.Limits(table_elements=3)
    ).exports

    assert (exports.grow(2), exports.grow(1)) == (1, -1)
    assert len(exports.table) == 3


def test_host_that_asks_for_more_entries_gets_a_range_error() -> None:
    table = aw.Instance(
        compiled(TABLE, ENGINES["optimized"]), limits=aw.Limits(table_elements=3)
    ).exports.table

    with pytest.raises(aw.RangeError):
        table.grow(3)

    assert len(table) == 1


@pytest.mark.xfail(strict=True, reason="a table with 64-bit addresses is made by an instance")
def test_table_made_by_the_host_is_no_instance() -> None:
    text = '(module (import "m" "table" (table i64 1 funcref)))'

    aw.Instance(
        compiled(text, ENGINES["optimized"]),
        {"m": {"table": aw.Table("anyfunc", 1, address="i64")}},
        limits=aw.Limits(instances=1),
    )


# how many


def test_store_holds_as_many_instances_as_it_may() -> None:
    module = compiled("(module)", ENGINES["optimized"])

    with aw.Store(engine=module.engine, limits=aw.Limits(instances=3)):
        for _ in range(3):
            aw.Instance(module)
        with pytest.raises(aw.RangeError, match="instance"):
            aw.Instance(module)


@pytest.mark.parametrize("kind", ["memories", "tables"])
def test_store_counts_what_all_its_instances_have(kind: str) -> None:
    text = {"memories": "(module (memory 1))", "tables": "(module (table 1 funcref))"}[kind]
    module = compiled(text, ENGINES["optimized"])

    with aw.Store(engine=module.engine, limits=aw.Limits(**{kind: 2})):
        aw.Instance(module)
        aw.Instance(module)
        with pytest.raises(aw.RangeError, match=rf"Limits\({kind}=2\)"):
            aw.Instance(module)


def test_imports_of_the_host_are_no_instances() -> None:
    text = '(module (import "m" "f" (func)) (import "m" "g" (global i32)))'

    aw.Instance(
        compiled(text, ENGINES["optimized"]),
        {"m": {"f": lambda: None, "g": 1}},
        limits=aw.Limits(instances=1, memories=0, tables=0),
    )


# fuel


def _worker(engine: aw.Engine, fuel: int, text: str = PLAIN_WORK) -> aw.Instance:
    module = compiled(text, engine)
    imports = {"host": {"f": lambda x: x}} if module.imports() else None
    return aw.Instance(module, imports, limits=aw.Limits(fuel=fuel))


def _fuel(instance: aw.Instance) -> int:
    amount = instance.store.fuel
    assert amount is not None
    return amount


async def test_same_work_takes_the_same_fuel_in_every_way(engine: aw.Engine) -> None:
    """To the unit: whether it is called or awaited, in one go or in slices on other threads."""
    used = set()
    for text in (PLAIN_WORK, WORK):
        for _ in range(2):
            instance = _worker(engine, 10**9, text)
            work = instance.exports.work
            before = _fuel(instance)
            work(100_000)
            used.add(before - _fuel(instance))
            before = _fuel(instance)
            await work.call_async(100_000)
            used.add(before - _fuel(instance))
            instance.close()

    assert len(used) == 1
    assert used.pop() > 100_000


@pytest.mark.slow
async def test_long_work_takes_the_same_fuel_in_slices(engine: aw.Engine) -> None:
    aw.configure_sync_guard(action="ignore")
    instance = _worker(engine, 10**12)
    work = instance.exports.work

    work(30_000_000)
    first = 10**12 - _fuel(instance)
    await work.call_async(30_000_000)

    assert 10**12 - _fuel(instance) == 2 * first


async def test_both_tiers_take_the_same_fuel() -> None:
    left = set()
    for engine in ENGINES.values():
        instance = _worker(engine, 10**6)
        instance.exports.work(1_000)
        left.add(_fuel(instance))

    assert len(left) == 1


async def test_imports_take_the_same_fuel_in_every_way(engine: aw.Engine) -> None:
    """What Python does costs nothing; the calls do."""

    async def answer(x: int) -> int:
        await asyncio.sleep(0)
        return x

    left = set()
    for function, awaited in (
        (lambda x: x, False),
        (lambda x: sum(range(1_000)), False),
        (lambda x: x, True),
        (answer, True),
    ):
        instance = aw.Instance(
            compiled(WORK, engine), {"host": {"f": function}}, limits=aw.Limits(fuel=10**6)
        )
        ask = instance.exports.ask
        await ask.call_async(50) if awaited else ask(50)
        left.add(_fuel(instance))

    assert len(left) == 1


@pytest.mark.parametrize("text", [PLAIN_WORK, WORK], ids=["plain", "with imports"])
async def test_guest_without_fuel_is_interrupted(engine: aw.Engine, text: str) -> None:
    for awaited in (False, True):
        instance = _worker(engine, 1_000, text)
        spin = instance.exports.spin

        with pytest.raises(aw.Interrupted) as caught:
            await spin.call_async() if awaited else spin()

        assert caught.value.reason == "fuel"
        assert caught.value.code is aw.TrapCode.OUT_OF_FUEL
        assert "store.fuel" in str(caught.value)
        assert caught.value.frames[0].function == ("3" if text is WORK else "1")
        assert instance.store.fuel == 0


async def test_interrupted_store_works_on_when_it_gets_fuel(engine: aw.Engine) -> None:
    instance = _worker(engine, 100)
    exports = instance.exports
    with pytest.raises(aw.Interrupted):
        exports.spin()
    with pytest.raises(aw.Interrupted):
        exports.work(1)

    instance.store.fuel = 10_000
    exports.work(10)
    after = _fuel(instance)
    await exports.work.call_async(10)

    assert 0 < _fuel(instance) < after < 10_000
    assert 10_000 - after == after - _fuel(instance)


def test_fuel_just_enough_is_enough(engine: aw.Engine) -> None:
    instance = _worker(engine, 10**6)
    instance.exports.work(10)
    needed = 10**6 - _fuel(instance)

    instance.store.fuel = needed
    instance.exports.work(10)
    left = instance.store.fuel
    instance.store.fuel = needed - 10
    with pytest.raises(aw.Interrupted):
        instance.exports.work(10)

    assert left == 0


@pytest.mark.parametrize("amount", [0, 1, 2**32, 2**63 - 1])
def test_fuel_that_is_set_is_read(engine: aw.Engine, amount: int) -> None:
    instance = _worker(engine, 5)

    instance.store.fuel = amount

    assert instance.store.fuel == amount


def test_fuel_of_a_store_that_is_not_bound_can_be_read_and_set(engine: aw.Engine) -> None:
    store = aw.Store(limits=aw.Limits(fuel=7))
    first = store.fuel

    store.fuel = 10_000

    assert (first, store.fuel) == (7, 10_000)
    instance = aw.Instance(compiled(PLAIN_WORK, engine), store=store)
    instance.exports.work(10)
    assert 0 < _fuel(instance) < 10_000


def test_setting_fuel_does_not_tie_a_store_to_an_engine(engine: aw.Engine) -> None:
    store = aw.Store(limits=aw.Limits(fuel=7))

    store.fuel = 8

    assert aw.Instance(compiled(PLAIN_WORK, engine), store=store).store is store


def test_store_without_a_limit_counts_no_fuel() -> None:
    store = aw.Store()

    assert store.fuel is None
    with pytest.raises(ValueError, match=r"Limits\(fuel=\.\.\.\)"):
        store.fuel = 1


@pytest.mark.parametrize(
    ("amount", "error"),
    [(-1, ValueError), (2**63, ValueError), (1.5, TypeError), ("1", TypeError), (None, TypeError)],
)
def test_fuel_that_is_none_is_refused(amount: Any, error: type[Exception]) -> None:
    store = aw.Store(limits=aw.Limits(fuel=7))

    with pytest.raises(error):
        store.fuel = amount

    assert store.fuel == 7


@in_every_way
async def test_start_function_takes_fuel(way: Way, engine: aw.Engine) -> None:
    module = compiled("(module (func $f (loop (br 0))) (start $f))", engine)

    with pytest.raises(aw.Interrupted) as caught:
        await way(module, limits=aw.Limits(fuel=1_000))

    assert caught.value.reason == "fuel"


@in_every_way
async def test_module_made_without_fuel_is_compiled_again_for_it(
    way: Way, engine: aw.Engine
) -> None:
    module = compiled(PLAIN_WORK, engine)
    plain = await way(module)
    plain.exports.work(10)

    counted = await way(module, limits=aw.Limits(fuel=1_000))
    counted.exports.work(10)

    assert plain.store.fuel is None
    assert 0 < _fuel(counted) < 1_000
    assert counted.module is module
    plain.exports.work(10)


async def test_ten_tasks_that_need_fuel_share_the_new_code(engine: aw.Engine) -> None:
    module = compiled("(module (func) " + PLAIN_WORK.removeprefix("(module"), engine)

    instances = await asyncio.gather(
        *(aw.instantiate(module, limits=aw.Limits(fuel=1_000)) for _ in range(10))
    )
    for instance in instances:
        instance.exports.work(10)

    assert len({_fuel(instance) for instance in instances}) == 1


def test_nested_calls_share_the_stores_fuel(engine: aw.Engine) -> None:
    def nested(x: int) -> int:
        instance.exports.work(100)
        return x

    instance = aw.Instance(
        compiled(WORK, engine), {"host": {"f": nested}}, limits=aw.Limits(fuel=10**6)
    )
    instance.exports.work(100)
    alone = 10**6 - _fuel(instance)
    instance.store.fuel = 10**6

    instance.exports.ask(10)

    assert 10**6 - _fuel(instance) > 10 * alone


def test_interruption_in_a_nested_call_ends_the_outer_one(engine: aw.Engine) -> None:
    """A trap cannot be caught by the guest, even when it passes through Python."""

    def nested(x: int) -> None:
        instance.exports.spin()

    instance = aw.Instance(
        compiled(WORK, engine), {"host": {"f": nested}}, limits=aw.Limits(fuel=10**5)
    )

    with pytest.raises(aw.Interrupted) as caught:
        instance.exports.ask(1)

    assert caught.value.reason == "fuel"
    assert instance.store.fuel == 0


# the object


NAMES = [field.name for field in dataclasses.fields(aw.Limits)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-1, 2**63])
def test_limit_out_of_range_is_a_value_error(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        aw.Limits(**{name: value})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [1.5, "1", b"1", [1]])
def test_limit_of_another_type_is_a_type_error(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name):
        aw.Limits(**{name: value})


def test_limits_are_optional_and_named() -> None:
    wrong: Any = (1,)

    assert dataclasses.astuple(aw.Limits()) == (None,) * 6
    assert {"memory_bytes", "table_elements", "instances", "tables", "memories", "fuel"} == set(
        NAMES
    )
    with pytest.raises(TypeError):
        aw.Limits(*wrong)


def test_limits_are_values() -> None:
    limits = aw.Limits(fuel=1)
    name: Any = "fuel"

    assert limits == aw.Limits(fuel=1)
    assert len({limits, aw.Limits(fuel=1), aw.Limits(fuel=2)}) == 2
    assert dataclasses.replace(limits, tables=2) == aw.Limits(fuel=1, tables=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(limits, name, 2)


@pytest.mark.parametrize("make", [aw.Store, lambda limits: _limited(limits)])
def test_something_else_than_limits_is_a_type_error(make: Any) -> None:
    with pytest.raises(TypeError, match="Limits"):
        make(limits={"fuel": 1})


def _limited(limits: Any) -> aw.Instance:
    return aw.Instance(compiled("(module)", ENGINES["optimized"]), limits=limits)


def test_limits_of_a_store_that_is_joined_must_be_its_own() -> None:
    module = compiled("(module)", ENGINES["optimized"])
    own = aw.Limits(fuel=100)
    store = aw.Store(engine=module.engine, limits=own)

    assert aw.Instance(module, store=store, limits=aw.Limits(fuel=100)).store is store
    with pytest.raises(aw.LinkError, match=r"Store\(limits="):
        aw.Instance(module, store=store, limits=aw.Limits(fuel=200))


def test_limits_can_be_read_back() -> None:
    limits = aw.Limits(tables=3)

    assert aw.Store(limits=limits).limits is limits
    assert aw.Store().limits == aw.Limits()

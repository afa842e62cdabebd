"""Stores: whose is whose, who joins whom, and what can never meet."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

import asyncwasm as aw

from .support import ADD, instance, module, wasm

PAGE = 65_536

# Exports one of each kind, and imports one of each kind.
EXPORTER = """(module
  (memory (export "memory") 1) (table (export "table") 1 funcref)
  (global (export "global") (mut i32) (i32.const 7)) (tag (export "tag") (param i32))
  (func (export "function") (result i32) (i32.const 5)))"""
KINDS = {
    "memory": '(module (import "m" "x" (memory 1)) (export "x" (memory 0)))',
    "table": '(module (import "m" "x" (table 1 funcref)) (export "x" (table 0)))',
    "global": '(module (import "m" "x" (global (mut i32))) (export "x" (global 0)))',
    "tag": '(module (import "m" "x" (tag (param i32))) (export "x" (tag 0)))',
    "function": '(module (import "m" "x" (func (result i32))) (export "x" (func 0)))',
}
FRESH: dict[str, Callable[[], Any]] = {
    "memory": lambda: aw.Memory(1),
    "table": lambda: aw.Table("anyfunc", 1),
    "global": lambda: aw.Global("i32", 7, mutable=True),
    "tag": lambda: aw.Tag(["i32"]),
    "function": lambda: aw.Function(((), ("i32",)), lambda: 5),
}
in_every_kind = pytest.mark.parametrize("kind", KINDS)

MEMORY = KINDS["memory"]
TWO = """(module (import "m" "x" (memory 1)) (import "m" "y" (memory 1))
  (func (export "peek") (param i32) (result i32)
    (i32.add (i32.load8_u 0 (local.get 0)) (i32.load8_u 1 (local.get 0)))))"""
TRAPS = '(module (import "m" "x" (memory 1)) (func $f unreachable) (start $f))'

Way = Callable[..., Coroutine[Any, Any, aw.Instance]]


async def _constructor(text: str, *arguments: Any, **options: Any) -> aw.Instance:
    return instance(text, *arguments, **options)


async def _module(text: str, *arguments: Any, **options: Any) -> aw.Instance:
    return await aw.instantiate(module(text), *arguments, **options)


async def _bytes(text: str, *arguments: Any, **options: Any) -> aw.Instance:
    return (await aw.instantiate(wasm(text), *arguments, **options)).instance


WAYS = {"Instance": _constructor, "instantiate-Module": _module, "instantiate-bytes": _bytes}
in_every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


# joining


@in_every_way
async def test_instances_without_common_imports_have_stores_of_their_own(way: Way) -> None:
    first, second = await way(ADD), await way(ADD)

    assert first.store is not second.store
    first.close()
    assert second.exports.add(1, 2) == 3


@in_every_way
@in_every_kind
async def test_instance_joins_the_store_of_an_imported_object(way: Way, kind: str) -> None:
    exporter = await way(EXPORTER)
    shared = exporter.exports[kind]

    joined = await way(KINDS[kind], {"m": {"x": shared}})

    assert joined.store is exporter.store
    assert joined.exports.x is shared


@in_every_way
@in_every_kind
async def test_objects_of_the_host_join_their_first_instance(way: Way, kind: str) -> None:
    made = FRESH[kind]()

    first = await way(KINDS[kind], {"m": {"x": made}})
    second = await way(KINDS[kind], {"m": {"x": made}})

    assert first.store is second.store
    assert first.exports.x is second.exports.x is made


async def test_chain_of_instances_ends_in_one_store() -> None:
    previous = instance(EXPORTER)
    store = previous.store
    value = previous.exports.memory
    for _ in range(10):
        joined = await aw.instantiate(module(MEMORY), {"m": {"x": value}})
        value = joined.exports.x

    assert joined.store is store
    assert value is previous.exports.memory


def test_import_brings_unbound_objects_into_its_store() -> None:
    exporter = instance(EXPORTER)
    unbound = aw.Memory(1)

    joined = instance(TWO, {"m": {"x": exporter.exports.memory, "y": unbound}})
    exporter.exports.memory.write(3, b"\x04")
    unbound.write(3, b"\x05")

    assert joined.store is exporter.store
    assert joined.exports.peek(3) == 9


@pytest.mark.parametrize("kind", ["global", "table"])
def test_object_is_bound_when_it_meets_a_function_of_a_store(kind: str) -> None:
    exporter = instance(EXPORTER)
    function = exporter.exports.function
    text = {
        "global": '(module (import "m" "x" (global (mut funcref))))',
        "table": '(module (import "m" "x" (table 1 funcref)))',
    }[kind]
    if kind == "global":
        met: Any = aw.Global("anyfunc", mutable=True)
        met.value = function
    else:
        met = aw.Table("anyfunc", 1)
        met[0] = function

    assert instance(text, {"m": {"x": met}}).store is exporter.store


@pytest.mark.parametrize("used", ["read", "written", "grown"])
def test_using_an_unbound_object_does_not_tie_it(used: str) -> None:
    engine = aw.Engine()
    memory, table, variable = (
        aw.Memory(1, 9),
        aw.Table("anyfunc", 1),
        aw.Global("i32", mutable=True),
    )
    for _ in range(2):
        if used == "read":
            memory.read(0, 1), table.get(0), variable.value, memory.type, len(table)
        elif used == "written":
            memory.write(0, b"x")
            table.set(0, None)
            variable.value = 1
        else:
            memory.grow(1)
            table.grow(1)

    for made, kind in ((memory, "memory"), (table, "table"), (variable, "global")):
        text = KINDS[kind].replace("(memory 1)", "(memory 1 9)")
        compiled = aw.Module(wasm(text), engine=engine)
        assert aw.Instance(compiled, {"m": {"x": made}}).store.engine is engine


def test_contents_come_along_when_a_memory_is_bound() -> None:
    memory = aw.Memory(1, 4)
    memory.write(10, b"before")
    memory.grow(1)
    memory.write(PAGE, b"grown")
    joined = instance('(module (import "m" "x" (memory 2 4)) (export "x" (memory 0)))',
                      {"m": {"x": memory}})  # fmt: skip

    assert joined.exports.x.read(10, 6) == b"before"
    assert joined.exports.x.read(PAGE, 5) == b"grown"


# at once


@pytest.mark.parametrize("number", [2, 10])
async def test_instantiations_that_share_an_unbound_object_end_in_one_store(number: int) -> None:
    memory = aw.Memory(1)
    unique = aw.wat2wasm(
        f'(module (import "m" "x" (memory 1)) (func (result i32) i32.const {number}))'
    )

    instances = await asyncio.gather(
        *(aw.instantiate(unique, {"m": {"x": memory}}) for _ in range(number))
    )

    assert len({each.instance.store for each in instances}) == 1


async def test_instantiations_that_share_in_a_ring_end_in_one_store_or_say_so() -> None:
    """Each shares one memory with the next: whoever comes second finds one of them bound."""
    memories = [aw.Memory(1) for _ in range(6)]

    results = await asyncio.gather(
        *(
            aw.instantiate(
                module(TWO), {"m": {"x": memories[index], "y": memories[(index + 1) % 6]}}
            )
            for index in range(6)
        ),
        return_exceptions=True,
    )

    stores = {each.store for each in results if isinstance(each, aw.Instance)}
    assert len(stores) == 1
    assert not [each for each in results if isinstance(each, BaseException)]


@pytest.mark.slow
def test_threads_that_share_unbound_objects_end_in_one_store() -> None:
    """The imports come in two orders: a lock taken object by object would end in two stores."""
    parts = [
        '(import "m" "a" (memory 1))',
        '(import "m" "b" (table 1 funcref))',
        '(import "m" "c" (global (mut i32)))',
    ]
    texts = [f"(module {' '.join(order)})" for order in (parts, parts[::-1])]
    for text in texts:
        module(text)
    for _ in range(50):
        objects = {
            "a": aw.Memory(1),
            "b": aw.Table("anyfunc", 1),
            "c": aw.Global("i32", mutable=True),
        }

        assert len(_linked_at_once(texts * 2, objects)) == 1


def _linked_at_once(texts: list[str], objects: dict[str, Any]) -> set[aw.Store]:
    """Instantiate each module on a thread of its own, and return their stores."""
    barrier = threading.Barrier(len(texts))
    stores: list[aw.Store] = []

    def link(text: str) -> None:
        barrier.wait()
        while True:
            try:
                stores.append(instance(text, {"m": objects}).store)
            except anyio.BusyResourceError:  # another thread is inside
                continue
            return

    threads = [threading.Thread(target=link, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == len(texts)
    return set(stores)


# two stores


@in_every_way
@in_every_kind
async def test_objects_of_two_stores_never_meet(way: Way, kind: str) -> None:
    one, two = (await way(EXPORTER)).exports[kind], (await way(EXPORTER)).exports[kind]
    first = KINDS[kind].partition("(export")[0].removeprefix("(module").strip()
    second = first.replace('"x"', '"y"')
    text = f"(module {first} {second})"

    with pytest.raises(aw.LinkError) as caught:
        await way(text, {"m": {"x": one, "y": two}})

    assert "asyncwasm.Store" in str(caught.value)
    assert "store=" in str(caught.value)
    assert (caught.value.module, caught.value.name) == ("m", "y")


@in_every_way
async def test_object_of_another_store_than_the_given_one_is_a_link_error(way: Way) -> None:
    memory = instance(EXPORTER).exports.memory

    with pytest.raises(aw.LinkError, match=r"asyncwasm\.Store"):
        await way(MEMORY, {"m": {"x": memory}}, store=aw.Store())


def test_failure_to_meet_binds_nothing() -> None:
    """Else trying again with other imports would fail for what is left of the first attempt."""
    text = """(module (import "m" "fresh" (memory 1)) (import "m" "x" (memory 1))
      (import "m" "y" (memory 1)))"""
    fresh = aw.Memory(1)
    one, two = instance(EXPORTER).exports.memory, instance(EXPORTER).exports.memory
    with pytest.raises(aw.LinkError):
        instance(text, {"m": {"fresh": fresh, "x": one, "y": two}})

    joined = instance(TWO, {"m": {"x": fresh, "y": two}})

    assert joined.store is not instance(MEMORY, {"m": {"x": one}}).store


FAILURES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "of another type": (TWO, {"y": aw.Table("anyfunc", 1)}, {}),
    "missing": (TWO, {}, {}),
    "too large": (TWO, {"y": aw.Memory(3)}, {"limits": aw.Limits(memory_bytes=2 * PAGE)}),
    "too many entries": (
        '(module (import "m" "x" (memory 1)) (import "m" "y" (table 1 funcref)))',
        {"y": aw.Table("anyfunc", 3)},
        {"limits": aw.Limits(table_elements=2)},
    ),
    "other limits": (TWO, {"y": aw.Memory(1, store=aw.Store())}, {"limits": aw.Limits(fuel=9)}),
    "closed store": (MEMORY, {}, {"store": "closed"}),
}


@pytest.mark.parametrize(("text", "rest", "options"), FAILURES.values(), ids=FAILURES.keys())
@in_every_way
async def test_failed_link_leaves_unbound_objects_unbound(
    way: Way, text: str, rest: dict[str, Any], options: dict[str, Any]
) -> None:
    memory = aw.Memory(1)
    if "store" in options:
        options = {"store": aw.Store()}
        options["store"].close()
    errors = aw.LinkError, aw.RangeError, anyio.ClosedResourceError
    with pytest.raises(errors):
        await way(text, {"m": {"x": memory, **rest}}, **options)

    other = instance(EXPORTER)
    joined = await way(TWO, {"m": {"x": memory, "y": other.exports.memory}})

    assert joined.store is other.store


@in_every_way
async def test_objects_live_on_after_a_start_function_that_traps(way: Way) -> None:
    memory = aw.Memory(1)
    memory.write(0, b"kept")
    with pytest.raises(aw.Trap):
        await way(TRAPS, {"m": {"x": memory}})

    assert memory.read(0, 4) == b"kept"
    assert (await way(MEMORY, {"m": {"x": memory}})).exports.x is memory


# with, and store=


@in_every_way
async def test_everything_made_in_a_with_block_shares_the_store(way: Way) -> None:
    with aw.Store() as store:
        first, second = await way(EXPORTER), await way(EXPORTER)
        joined = await way(TWO, {"m": {"x": first.exports.memory, "y": second.exports.memory}})
        made = [make() for make in FRESH.values()]

        assert first.store is second.store is joined.store is store
        for value, text in zip(made, KINDS.values(), strict=True):
            assert (await way(text, {"m": {"x": value}})).store is store


@in_every_way
async def test_store_argument_wins_over_the_with_block(way: Way) -> None:
    other = aw.Store()
    with aw.Store() as store:
        inside, outside = await way(ADD), await way(ADD, store=other)

    assert (inside.store, outside.store) == (store, other)
    assert outside.exports.add(1, 1) == 2
    with pytest.raises(anyio.ClosedResourceError):
        inside.exports.add(1, 1)


@pytest.mark.parametrize("kind", ["memory", "table", "global", "tag"])
def test_objects_take_a_store_argument(kind: str) -> None:
    store = aw.Store()
    make: dict[str, Any] = {
        "memory": lambda: aw.Memory(1, store=store),
        "table": lambda: aw.Table("anyfunc", 1, store=store),
        "global": lambda: aw.Global("i32", 7, mutable=True, store=store),
        "tag": lambda: aw.Tag(["i32"], store=store),
    }

    assert instance(KINDS[kind], {"m": {"x": make[kind]()}}).store is store


def test_with_block_of_a_store_can_be_nested_in_another() -> None:
    with aw.Store() as outer:
        with aw.Store() as inner:
            assert instance(ADD).store is inner
        assert instance(ADD).store is outer
    assert instance(ADD).store not in (outer, inner)


def test_store_entered_twice_is_left_twice() -> None:
    """The first end closes it, the second leaves nothing behind."""
    store = aw.Store()
    with store, store:
        assert instance(ADD).store is store

    assert store.closed
    assert instance(ADD).store is not store


def test_store_may_be_left_in_another_context_than_it_was_entered_in() -> None:
    """As a fixture is that enters in one task and leaves in another."""
    store = aw.Store()
    contextvars.copy_context().run(store.__enter__)

    store.__exit__(None, None, None)

    assert store.closed
    assert instance(ADD).store is not store


async def test_store_may_be_left_in_another_task() -> None:
    store = aw.Store()
    await asyncio.create_task(store.__aenter__())

    await asyncio.create_task(store.__aexit__())

    assert store.closed
    assert instance(ADD).store is not store


async def test_with_block_is_the_tasks_own() -> None:
    entered = asyncio.Event()
    leave = asyncio.Event()

    async def other() -> aw.Store:
        with aw.Store() as store:
            entered.set()
            await leave.wait()
            return store

    task = asyncio.create_task(other())
    await entered.wait()
    mine = instance(ADD)
    leave.set()

    assert mine.store is not await task
    assert mine.exports.add(1, 1) == 2


async def test_task_started_in_a_with_block_shares_its_store() -> None:
    async with aw.Store() as store:
        one = await asyncio.create_task(aw.instantiate(module(ADD)))
        two = await asyncio.to_thread(instance, ADD)

        assert one.store is two.store is store


def test_error_in_a_with_block_closes_the_store() -> None:
    with pytest.raises(KeyError), aw.Store() as store:
        raise KeyError

    assert store.closed
    assert instance(ADD).store is not store


def test_closed_store_cannot_be_entered() -> None:
    store = aw.Store()
    store.close()
    store.close()

    with pytest.raises(anyio.ClosedResourceError), store:
        pass
    assert instance(ADD).store is not store


@pytest.mark.parametrize("wrong", [1, "store", aw.Engine(), object()])
def test_something_else_than_a_store_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError, match="expected a Store"):
        instance(ADD, store=wrong)
    with pytest.raises(TypeError, match="expected a Store"):
        aw.Memory(1, store=wrong)


# who owns


async def test_closing_an_instance_that_joined_leaves_the_others_alone() -> None:
    exporter = instance(EXPORTER)
    async with await aw.instantiate(module(MEMORY), {"m": {"x": exporter.exports.memory}}):
        pass

    assert exporter.exports.function() == 5
    exporter.close()
    with pytest.raises(anyio.ClosedResourceError):
        exporter.exports.function()


def test_closing_an_instance_in_a_given_store_leaves_the_store_open() -> None:
    store = aw.Store()
    instance(ADD, store=store).close()

    assert not store.closed
    assert instance(ADD, store=store).exports.add(1, 2) == 3


# shared memory


SHARED = """(module (import "m" "x" (memory 1 4 shared))
  (func (export "add") (param i32) (result i32)
    (i32.atomic.rmw.add (i32.const 0) (local.get 0)))
  (func (export "grow") (result i32) (memory.grow (i32.const 1))))"""


@in_every_way
async def test_shared_memory_is_used_by_two_stores(way: Way) -> None:
    memory = aw.Memory(1, 4, shared=True)
    first = await way(SHARED, {"m": {"x": memory}})
    second = await way(SHARED, {"m": {"x": memory}})

    assert first.store is not second.store
    assert (first.exports.add(3), second.exports.add(4), first.exports.add(0)) == (0, 3, 7)
    assert memory.read(0, 1) == b"\x07"
    assert second.exports.grow() == 1
    assert (memory.byte_length, first.exports.grow()) == (2 * PAGE, 2)


@in_every_way
async def test_shared_memory_that_a_guest_exports_goes_to_another_store(way: Way) -> None:
    exporter = await way('(module (memory (export "x") 1 4 shared))')

    other = await way(SHARED, {"m": {"x": exporter.exports.x}})
    other.exports.add(9)

    assert other.store is not exporter.store
    assert exporter.exports.x.read(0, 1) == b"\x09"
    exporter.close()
    assert other.exports.add(0) == 9


@pytest.mark.slow
def test_two_threads_add_to_a_shared_memory_at_once() -> None:
    text = """(module (import "m" "x" (memory 1 4 shared))
      (func (export "many") (param $n i32)
        (loop (drop (i32.atomic.rmw.add (i32.const 0) (i32.const 1)))
          (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))"""
    memory = aw.Memory(1, 4, shared=True)
    guests = [instance(text, {"m": {"x": memory}}) for _ in range(2)]
    threads = [threading.Thread(target=guest.exports.many, args=(100_000,)) for guest in guests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert int.from_bytes(memory.read(0, 4), "little") == 200_000


def test_memory_that_is_not_shared_is_refused_where_a_shared_one_is_wanted() -> None:
    with pytest.raises(aw.LinkError):
        instance(SHARED, {"m": {"x": aw.Memory(1, 4)}})
    with pytest.raises(aw.LinkError):
        instance(
            '(module (import "m" "x" (memory 1 4)))', {"m": {"x": aw.Memory(1, 4, shared=True)}}
        )


# engines


def test_module_of_one_engine_is_refused_in_a_store_of_another() -> None:
    store = aw.Store(engine=aw.Engine())

    with pytest.raises(aw.LinkError, match=r"engine=store\.engine"):
        instance(ADD, store=store)

    assert aw.Instance(aw.Module(wasm(ADD), engine=store.engine), store=store).store is store


@in_every_kind
def test_objects_of_one_engine_are_refused_by_modules_of_another(kind: str) -> None:
    shared = instance(EXPORTER).exports[kind]
    foreign = aw.Module(wasm(KINDS[kind]), engine=aw.Engine())

    with pytest.raises(aw.LinkError, match="another engine"):
        aw.Instance(foreign, {"m": {"x": shared}})


@pytest.mark.parametrize("fuel", [None, 1_000])
def test_shared_memory_is_for_the_engine_that_it_meets_first(fuel: int | None) -> None:
    """Its type and its size can be read, and it can be grown, before it meets one."""
    memory = aw.Memory(1, 4, shared=True)
    before = memory.type, memory.byte_length, memory.grow(1), repr(memory)
    module = aw.Module(wasm(SHARED), engine=aw.Engine())

    guest = aw.Instance(module, {"m": {"x": memory}}, limits=aw.Limits(fuel=fuel))

    assert before[:3] == (aw.MemoryType(1, 4, True), PAGE, 1)
    assert memory.type == aw.MemoryType(2, 4, True)
    assert guest.exports.grow() == 2
    assert memory.byte_length == 3 * PAGE


def test_shared_memory_belongs_to_one_engine() -> None:
    memory = aw.Memory(1, 4, shared=True)
    instance(SHARED, {"m": {"x": memory}})
    foreign = aw.Module(wasm(SHARED), engine=aw.Engine())

    with pytest.raises(aw.LinkError, match="another engine"):
        aw.Instance(foreign, {"m": {"x": memory}})


async def test_bytes_are_compiled_for_the_engine_of_the_given_store() -> None:
    store = aw.Store(engine=aw.Engine())

    made, one = await aw.instantiate(wasm(ADD), store=store)

    assert made.engine is one.store.engine is store.engine


async def test_engine_of_a_store_and_another_engine_are_refused() -> None:
    store = aw.Store(engine=aw.Engine())

    with pytest.raises(aw.LinkError, match="another engine"):
        await aw.instantiate(wasm(ADD), store=store, engine=aw.Engine())


def test_store_takes_the_engine_of_its_first_module() -> None:
    engine = aw.Engine()
    store = aw.Store()

    aw.Instance(aw.Module(wasm(ADD), engine=engine), store=store)

    assert store.engine is engine


def test_repr_of_a_store_does_not_choose_an_engine() -> None:
    store = aw.Store()
    repr(store), store.limits, store.closed, store.interleave, store.fuel

    aw.Instance(aw.Module(wasm(ADD), engine=aw.Engine()), store=store)

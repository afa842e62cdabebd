"""
What lives how long: instances, host values, guest objects, exceptions, views.

Most tests give the guest's heap a limit that what leaks soon exceeds, so that they count
nothing and wait for nothing; `test_detector_notices_a_leak` shows that they would notice.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import asyncwasm as aw

from .support import ADD, CALLER, as_many, instance, module, resident_bytes, run_script

PAGE = 65_536
SMALL_HEAP = aw.Limits(memory_bytes=PAGE)
# One host value takes 32 bytes of the heap: more than it has room for.
TOO_MANY = 5_000

IDENTITY = """(module
  (func (export "same") (param externref) (result externref) (local.get 0))
  (func (export "any") (param anyref) (result anyref) (local.get 0))
  (func (export "drop") (param externref)))"""
STRUCTS = """(module (type $s (struct (field i64 i64 i64 i64)))
  (func (export "new") (result (ref $s)) (struct.new_default $s))
  (func (export "same") (param anyref) (result anyref) (local.get 0)))"""
THROWER = """(module
  (import "host" "f" (func $f))
  (tag $e (export "e") (param externref))
  (func (export "throw") (param externref) (throw $e (local.get 0)))
  (func (export "call") (call $f))
  (func (export "trap") unreachable)
  (func (export "catch") (block $b (try_table (catch_all $b) (call $f)))))"""


PLAIN_THROWER = """(module (tag $e) (func (export "throw") (throw $e))
  (func (export "one") (result i32) (i32.const 1)))"""


class Thing:
    """A host value whose life can be watched."""


def flat(
    work: Callable[[], object],
    *,
    warm_up: Callable[[], object] | None = None,
    growth: float = 0.1,
) -> bool:
    """Return whether *work* takes no more memory after *warm_up*, or itself, than before."""
    (warm_up or work)()
    gc.collect()
    before = resident_bytes()
    work()
    gc.collect()
    return resident_bytes() <= before * (1 + growth)


# instances


def _cycle() -> weakref.ref[aw.Instance]:
    """Make an instance whose import refers to it, use it and forget it."""
    box: dict[str, aw.Instance] = {}
    box["instance"] = instance(CALLER, {"host": {"f": lambda x: box["instance"].exports.plain(x)}})
    assert box["instance"].exports.call(1) == 2
    return weakref.ref(box["instance"])


def test_instance_that_its_imports_refer_to_is_freed() -> None:
    dead = [_cycle() for _ in range(20)]
    gc.collect()

    assert [each() for each in dead] == [None] * 20


@pytest.mark.slow
def test_ten_thousand_instances_in_cycles_keep_memory_flat() -> None:
    def work() -> None:
        for _ in range(as_many(5_000)):
            _cycle()

    assert flat(work)


def test_function_keeps_what_it_needs() -> None:
    function = instance(CALLER, {"host": {"f": lambda x: x + 1}}).exports.call
    gc.collect()

    assert function(1) == 2


def test_imports_are_freed_with_their_instance() -> None:
    thing = Thing()
    dead = weakref.ref(thing)
    one = instance(CALLER, {"host": {"f": lambda x, thing=thing: x}})
    del thing
    gc.collect()
    kept = dead() is not None
    del one
    gc.collect()

    assert kept
    assert dead() is None


@pytest.mark.slow
def test_closed_stores_are_freed_even_if_their_objects_are_kept() -> None:
    text = '(module (memory (export "m") 16) (func (export "f")))'
    kept: list[Any] = []

    def work() -> None:
        for _ in range(100):
            one = instance(text)
            one.exports.m.write(0, bytes(16 * PAGE))
            kept.append((one, one.exports.m, one.exports.f, one.store))
            one.close()

    assert flat(work)


def test_failed_instantiation_leaves_nothing() -> None:
    thing = Thing()
    dead = weakref.ref(thing)
    text = '(module (import "m" "f" (func $f)) (start $f))'

    def fail(thing: Thing = thing) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        instance(text, {"m": {"f": fail}})
    del fail, thing
    gc.collect()

    assert dead() is None


# host values


@pytest.mark.slow
def test_externref_round_trips_keep_memory_flat() -> None:
    """
    60,000 of them: a million take half a minute, and show no more than these.

    With the small heap, a reference that is kept shows after 2,047 already; what this adds is
    memory outside of the heap.
    """
    same = instance(IDENTITY, limits=SMALL_HEAP).exports.same

    def work(count: int = 50_000) -> None:
        for _ in range(as_many(count)):
            thing = Thing()
            assert same(thing) is thing

    assert flat(work, warm_up=lambda: work(10_000), growth=0.05)


@pytest.mark.slow
def test_host_values_die_while_their_guest_runs_on() -> None:
    same = instance(IDENTITY, limits=SMALL_HEAP).exports.same
    living: weakref.WeakSet[Thing] = weakref.WeakSet()
    most = 0

    for _ in range(TOO_MANY):
        thing = Thing()
        living.add(thing)
        same(thing)
        most = max(most, len(living))

    assert most < TOO_MANY  # some have died before the last was made


@pytest.mark.slow
@pytest.mark.parametrize("name", ["same", "any", "drop"])
async def test_host_values_are_let_go(name: str) -> None:
    exports = instance(IDENTITY, limits=SMALL_HEAP).exports
    function = exports[name]

    for _ in range(TOO_MANY):
        function(Thing())
    for _ in range(TOO_MANY):
        await function.call_async(Thing())


@pytest.mark.slow
@pytest.mark.parametrize("awaited", [False, True], ids=["called", "awaited"])
async def test_host_values_that_pass_through_imports_are_let_go(awaited: bool) -> None:
    text = """(module (import "m" "f" (func $f (param externref) (result externref)))
      (func (export "many") (param $n i32)
        (loop (drop (call $f (ref.null extern)))
          (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))"""
    one = instance(text, {"m": {"f": lambda _: Thing()}}, limits=SMALL_HEAP)

    if awaited:
        await one.exports.many.call_async(TOO_MANY)
    else:
        aw.configure_sync_guard(action="ignore")
        one.exports.many(TOO_MANY)


@pytest.mark.slow
def test_host_values_in_tables_and_globals_are_let_go() -> None:
    store = aw.Store(limits=SMALL_HEAP)
    table = aw.Table("externref", 4, store=store)
    variable = aw.Global("externref", mutable=True, store=store)

    for index in range(TOO_MANY):
        table[index % 4] = Thing()
        variable.value = Thing()
    dead = weakref.ref(table[0])
    table[0] = variable.value = None
    for _ in range(TOO_MANY):
        variable.value = None

    assert isinstance(table[1], Thing)
    store.close()
    del store, table, variable
    gc.collect()
    assert dead() is None


def test_host_value_in_a_table_lives_as_long_as_its_store() -> None:
    thing = Thing()
    dead = weakref.ref(thing)
    store = aw.Store()
    table = aw.Table("externref", 1, value=thing, store=store)
    del thing
    gc.collect()
    kept = dead() is not None
    del store, table
    gc.collect()

    assert kept
    assert dead() is None


def test_host_value_that_refers_to_its_store_is_freed_with_it() -> None:
    thing: Any = Thing()
    dead = weakref.ref(thing)
    thing.table = aw.Table("externref", 1, value=thing, store=aw.Store())
    del thing
    gc.collect()

    assert dead() is None


def test_detector_notices_a_leak() -> None:
    """What the guest really keeps does not fit."""
    text = """(module (table $t 0 externref)
      (func (export "keep") (param externref)
        (drop (table.grow $t (local.get 0) (i32.const 1)))))"""
    keep = instance(text, limits=SMALL_HEAP).exports.keep

    def work() -> None:
        for _ in range(TOO_MANY):
            keep(Thing())

    with pytest.raises(MemoryError):
        work()


# objects of the guest


@pytest.mark.slow
async def test_guest_objects_are_freed() -> None:
    exports = instance(STRUCTS, limits=SMALL_HEAP).exports

    for _ in range(TOO_MANY):
        assert isinstance(exports.new(), aw.GCObject)
    for _ in range(TOO_MANY):
        await exports.new.call_async()


def test_guest_objects_that_python_keeps_are_kept() -> None:
    exports = instance(STRUCTS, limits=SMALL_HEAP).exports
    kept: list[aw.GCObject] = []

    def work() -> None:
        while len(kept) < TOO_MANY:
            kept.append(exports.new())

    with pytest.raises(aw.Trap, match="GC heap out of memory"):
        work()

    assert len(set(kept)) == len(kept) > 100
    assert exports.same(kept[0]) is kept[0]


def test_guest_object_may_be_dropped_after_its_store() -> None:
    one = instance(STRUCTS)
    exports = one.exports
    first, second = exports.new(), exports.new()
    one.close()
    del one, exports, first
    gc.collect()

    assert isinstance(second, aw.GCObject)
    del second
    gc.collect()


# exceptions


@pytest.mark.slow
@pytest.mark.parametrize("awaited", [False, True], ids=["called", "awaited"])
async def test_wasm_exceptions_are_freed(awaited: bool) -> None:
    throw = instance(THROWER, {"host": {"f": print}}, limits=SMALL_HEAP).exports.throw

    for _ in range(TOO_MANY):
        with pytest.raises(aw.WasmException):
            await throw.call_async(Thing()) if awaited else throw(Thing())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["call", "catch"])
def test_python_exceptions_that_pass_through_a_guest_are_freed(name: str) -> None:
    def fail() -> None:
        raise KeyError(Thing())

    call = instance(THROWER, {"host": {"f": fail}}, limits=SMALL_HEAP).exports[name]

    for _ in range(TOO_MANY):
        try:
            call()
        except KeyError:
            assert name == "call"


@pytest.mark.parametrize("name", ["throw", "call"])
async def test_store_works_on_in_every_way_after_an_exception(name: str) -> None:
    """Taking an exception out of a store needs a fiber, which changes what the store demands."""

    def fail() -> None:
        raise KeyError

    store = aw.Store()
    exports = instance(THROWER, {"host": {"f": fail}}, store=store).exports
    alone = instance(PLAIN_THROWER, store=store).exports
    for _ in range(3):
        for function in (exports[name], alone.throw):
            arguments = [Thing()] * len(function.type.parameters)
            with pytest.raises((aw.WasmException, KeyError)):
                function(*arguments)
            with pytest.raises((aw.WasmException, KeyError)):
                await function.call_async(*arguments)

        assert instance(ADD, store=store).exports.add(1, 2) == 3
        awaited = await aw.instantiate(module(ADD), store=store)
        assert await awaited.exports.add.call_async(1, 2) == 3
        assert alone.one() == await alone.one.call_async() == 1


def test_wasm_exception_keeps_its_payload_and_nothing_else_does() -> None:
    exports = instance(THROWER, {"host": {"f": print}}).exports
    thing = Thing()
    dead = weakref.ref(thing)

    with pytest.raises(aw.WasmException) as caught:
        exports.throw(thing)
    del thing

    assert caught.value.payload == (dead(),)
    assert caught.value.get_arg(exports.e, 0) is dead()


def _raises(how: str) -> None:
    raise {"error": KeyError, "base": KeyboardInterrupt}[how](how)


@pytest.mark.parametrize("awaited", [False, True], ids=["called", "awaited"])
@pytest.mark.parametrize("how", ["error", "base", "trap"])
async def test_exception_does_not_keep_frames_alive(how: str, awaited: bool) -> None:
    """Whatever a guest lets out is gone, with its traceback, when its catcher is done with it."""
    one = instance(THROWER, {"host": {"f": lambda: _raises(how)}})
    function = one.exports["trap" if how == "trap" else "call"]

    async def fail() -> weakref.ref[Thing]:
        local = Thing()
        try:
            await function.call_async() if awaited else function()
        except (KeyError, KeyboardInterrupt, aw.Trap):
            pass
        return weakref.ref(local)

    gc.disable()
    try:
        dead = await fail()

        assert dead() is None
    finally:
        gc.enable()


async def test_cancellation_does_not_keep_frames_alive() -> None:
    waiting = asyncio.Event()

    async def wait(x: int) -> int:
        local = Thing()
        refs.append(weakref.ref(local))
        waiting.set()
        await asyncio.Event().wait()
        return x

    refs: list[weakref.ref[Thing]] = []
    one = instance(CALLER, {"host": {"f": wait}})
    task = asyncio.create_task(one.exports.call.call_async(1))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    await asyncio.sleep(0)  # asyncio itself holds the exception until then
    gc.collect()

    assert [each() for each in refs] == [None]
    assert one.exports.plain(1) == 2


# views


def _view(kind: str, memory: aw.Memory) -> Any:
    if kind == "numpy":
        numpy = pytest.importorskip("numpy")
        return numpy.frombuffer(memory.buffer, dtype=numpy.uint8)
    return memory.buffer[:] if kind == "slice" else memory.buffer


@pytest.mark.parametrize("kind", ["slice", "numpy"])
@pytest.mark.parametrize("end", ["drop", "close", "grow", "grow and close", "close in an import"])
def test_view_outlives_what_it_shows(kind: str, end: str) -> None:
    text = """(module (import "host" "f" (func $f)) (memory (export "m") 2 8)
      (func (export "grow") (drop (memory.grow (i32.const 2))))
      (func (export "call") (call $f)))"""

    def close() -> None:
        box[0].close()

    box = [instance(text, {"host": {"f": close}})]
    memory = box[0].exports.m
    memory.write(PAGE, b"still here")
    view = _view(kind, memory)

    if "grow" in end:
        box[0].exports.grow()
    if end == "close in an import":
        with pytest.raises(aw.Interrupted):
            box[0].exports.call()
    elif "close" in end:
        box[0].close()
    del memory
    box.clear()
    gc.collect()
    other = [instance(text, {"host": {"f": close}}) for _ in range(5)]

    assert bytes(view[PAGE : PAGE + 10]) == b"still here"
    view[0] = 7
    assert view[0] == 7
    assert [each.exports.m.read(PAGE, 10) for each in other] == [bytes(10)] * 5


@pytest.mark.slow
def test_memory_is_released_with_its_last_view() -> None:
    text = '(module (memory (export "m") 16))'
    views: list[memoryview] = []

    def fill() -> None:
        for _ in range(100):
            with instance(text) as one:
                one.exports.m.write(0, b"x" * (16 * PAGE))
                views.append(one.exports.m.buffer)

    gc.collect()
    empty = resident_bytes()
    fill()
    full = resident_bytes()
    assert all(view[16 * PAGE - 1] == ord("x") for view in views)
    views.clear()
    gc.collect()

    assert full - empty > 90 * 16 * PAGE
    assert resident_bytes() - empty < 20 * 16 * PAGE


def test_view_of_a_memory_that_was_linked_later_is_kept() -> None:
    memory = aw.Memory(1, 2)
    memory.write(0, b"before")
    view = memory.buffer[:]
    one = instance('(module (import "m" "m" (memory 1 2)))', {"m": {"m": memory}})
    memory.write(0, b"after!")
    del one, memory
    gc.collect()

    assert bytes(view[:6]) in (b"before", b"after!")


def test_view_of_a_shared_memory_outlives_both_of_its_stores() -> None:
    text = '(module (import "m" "m" (memory 1 2 shared)))'
    memory = aw.Memory(1, 2, shared=True)
    both = [instance(text, {"m": {"m": memory}}) for _ in range(2)]
    view = memory.buffer[:]
    memory.write(0, b"shared")
    for one in both:
        one.close()
    del both, one, memory
    gc.collect()

    assert bytes(view[:6]) == b"shared"


# suspended calls


async def _suspended() -> list[weakref.ref[Any]]:
    """Leave a task behind that waits for ever for an import of an instance that refers to it."""
    thing = Thing()
    box: list[Any] = []
    waiting = asyncio.Event()

    async def wait(x: int, thing: Thing = thing) -> int:
        waiting.set()
        await asyncio.get_running_loop().create_future()
        return x + len(box)

    box.append(instance(CALLER, {"host": {"f": wait}}))
    box.append(asyncio.create_task(box[0].exports.call.call_async(1)))
    await waiting.wait()
    return [weakref.ref(each) for each in (*box, box[0].store, thing)]


async def test_store_in_a_cycle_with_a_suspended_call_is_freed() -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: told.append(context["message"])
    )

    dead = [each for _ in range(5) for each in await _suspended()]
    gc.collect()

    assert [each() for each in dead] == [None] * 20
    assert told == ["Task was destroyed but it is pending!"] * 5


def test_call_that_was_never_awaited_is_freed() -> None:
    one = instance(CALLER, {"host": {"f": abs}})
    coroutine = one.exports.call.call_async(1)
    dead = weakref.ref(one)
    coroutine.close()
    del coroutine, one
    gc.collect()

    assert dead() is None


async def test_suspended_call_that_is_dropped_leaves_its_store_usable() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    waiting = asyncio.Event()

    async def wait(x: int) -> int:
        if not waiting.is_set():
            waiting.set()
            await asyncio.get_running_loop().create_future()
        return x

    one = instance(CALLER, {"host": {"f": wait}})
    task = asyncio.create_task(one.exports.call.call_async(1))
    await waiting.wait()
    with pytest.raises(anyio.BusyResourceError):
        one.exports.plain(1)
    del task
    gc.collect()

    assert one.exports.plain(1) == 2
    assert await one.exports.call.call_async(5) == 5


@pytest.mark.parametrize("suspends", [False, True], ids=["plain", "suspending"])
async def test_everything_may_be_deleted_in_the_middle_of_a_call(suspends: bool) -> None:
    box: dict[str, Any] = {}
    seen: list[int] = []

    def plain(x: int) -> int:
        box.clear()
        gc.collect()
        seen.append(x)
        return x + 1

    async def suspending(x: int) -> int:
        await asyncio.sleep(0)
        result = plain(x)
        await asyncio.sleep(0)
        return result

    box["instance"] = instance(CALLER, {"host": {"f": suspending if suspends else plain}})
    box["exports"] = box["instance"].exports
    dead = weakref.ref(box["instance"])

    assert await box["exports"].sum.call_async(3) == 4 + 3 + 2
    assert seen == [3, 2, 1]
    gc.collect()
    assert dead() is None


def test_everything_may_be_deleted_while_its_memory_is_read() -> None:
    box = [instance(CALLER, {"host": {"f": abs}})]
    box[0].exports.memory.write(0, b"abc")

    class Index:
        def __index__(self) -> int:
            box.clear()
            gc.collect()
            return 0

    assert box[0].exports.memory.read(Index(), 3) == b"abc"


def test_store_may_be_closed_while_a_value_is_converted() -> None:
    one = instance(CALLER, {"host": {"f": abs}})

    class Index:
        def __index__(self) -> int:
            one.close()
            return 1

    with pytest.raises(anyio.ClosedResourceError):
        one.exports.plain(Index())
    with pytest.raises(anyio.ClosedResourceError):
        one.exports.call(Index())


# modules


def test_module_is_freed_with_its_last_instance() -> None:
    compiled = aw.Module(aw.wat2wasm('(module (@custom "one" "of its kind") (func (export "f")))'))
    dead = weakref.ref(compiled)
    one = aw.Instance(compiled)
    del compiled
    gc.collect()
    kept = dead() is not None
    function = one.exports.f
    del one
    gc.collect()
    function()
    del function
    gc.collect()

    assert kept
    assert dead() is None


@pytest.mark.slow
def test_modules_that_are_dropped_keep_memory_flat() -> None:
    numbers = iter(range(10**6))

    def work() -> None:
        for _ in range(150):
            text = f'(func (export "f") (result i32) (i32.const {next(numbers)}))'
            aw.Module(
                aw.wat2wasm(f'(module {text} (memory 1) (data (i32.const 0) "{"x" * 4000}"))')
            )

    assert flat(work)


def test_cached_module_of_the_tests_is_not_kept_by_its_instances() -> None:
    """The registry of known binaries holds them weakly."""
    binary = aw.wat2wasm('(module (@custom "another" "of its kind"))')
    first = weakref.ref(aw.Module(binary))
    gc.collect()

    assert first() is None
    assert aw.Module(binary).digest == aw.Module(binary).digest
    assert module(CALLER) is module(CALLER)


async def test_closing_a_store_wakes_the_calls_that_wait_for_their_turn() -> None:
    """The one that has its turn waits for an import, and may do so for ever."""
    started, never = asyncio.Event(), asyncio.Event()

    async def wait(x: int) -> int:
        started.set()
        await never.wait()
        return x

    one = instance(CALLER, {"host": {"f": wait}})
    first = asyncio.create_task(one.exports.call.call_async(1))
    await started.wait()
    others = [asyncio.create_task(one.exports.plain.call_async(each)) for each in range(3)]
    await asyncio.sleep(0)
    one.close()
    ended = await asyncio.gather(*others, return_exceptions=True)

    assert [getattr(each, "reason", each) for each in ended] == ["closed"] * 3
    assert not first.done()
    never.set()
    with pytest.raises(aw.Interrupted) as caught:
        await first
    assert caught.value.reason == "closed"


def test_interpreter_without_the_gil_is_refused() -> None:
    done = run_script("""
        import sys
        sys._is_gil_enabled = lambda: False
        try:
            import asyncwasm
        except ImportError as exc:
            print(exc.name, "PYTHON_GIL=1" in str(exc))
    """)

    assert (done.stdout, done.returncode) == ("asyncwasm True\n", 0), done.stderr

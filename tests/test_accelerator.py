"""The accelerator and the Python path do the same; what only one of them has is tested here."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any

import pytest

import asyncwasm as aw
from asyncwasm._ffi.accelerator import speedups

from .support import ADD, CALLER, instance, run_script

compiled = pytest.mark.skipif(speedups is None, reason="the accelerator was not built")

BOTH = {
    "accelerated": {"ASYNCWASM_PURE": ""},
    "pure": {"ASYNCWASM_PURE": "1"},
}

REPORT = """
import asyncio, math, struct
import asyncwasm as aw

def seen(action):
    try:
        return repr(action())
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"

values = [0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, -2**31, -2**31 - 1, 2**63, 2**64, -2**63 - 1,
          0.5, -0.0, 1e40, math.inf, math.nan, 10**400, True, None, "1", b"1", [], 1j]
for kind in ("i32", "i64", "f32", "f64", "v128"):
    text = f'''(module (import "h" "f" (func $f (param {kind}) (result {kind})))
      (func (export "direct") (param {kind}) (result {kind}) (local.get 0))
      (func (export "import") (param {kind}) (result {kind}) (call $f (local.get 0))))'''
    plain = aw.Instance(aw.Module(aw.wat2wasm(
        f'(module (func (export "f") (param {kind}) (result {kind}) (local.get 0)))'))).exports.f
    for value in values + [bytes(range(16))]:
        held = []
        exports = aw.Instance(aw.Module(aw.wat2wasm(text)), {"h": {"f": lambda x: held[0]}}).exports
        print(kind, repr(value)[:20], seen(lambda: plain(value)))
        for _ in range(3):  # only the first finds nothing prepared
            print(kind, repr(value)[:20], seen(lambda: asyncio.run(plain.call_async(value))))
        held.append(value)
        zero = bytes(16) if kind == "v128" else 0
        print(kind, repr(value)[:20], seen(lambda: exports["import"](zero)))
        print(kind, repr(value)[:20], seen(lambda: asyncio.run(exports["import"].call_async(zero))))
print(seen(lambda: plain()), seen(lambda: plain(1, 2)))
"""


def test_accelerator_built_from_other_sources_is_left_out() -> None:
    done = run_script(
        """
        import sys, types, warnings
        stale = types.ModuleType("asyncwasm._speedups")
        sys.modules["asyncwasm._speedups"] = stale
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import asyncwasm as aw
            add = aw.Instance(aw.Module(aw.wat2wasm('''(module
              (func (export "add") (param i32 i32) (result i32)
                (i32.add (local.get 0) (local.get 1))))'''))).exports.add
        print(add(1, 2), [f"{each.category.__name__}: {each.message}" for each in caught])
        """,
        environment={"ASYNCWASM_PURE": ""},
    )

    assert done.stdout.startswith("3 ["), done.stdout + done.stderr
    assert "RuntimeWarning: asyncwasm's accelerator was built from other sources" in done.stdout


@pytest.mark.slow
@compiled
def test_both_paths_convert_and_refuse_the_same() -> None:
    """Every numeric type, every way in and out, values and error texts."""
    reports = {name: run_script(REPORT, environment=each) for name, each in BOTH.items()}

    assert reports["pure"].returncode == 0, reports["pure"].stderr
    assert reports["accelerated"].stdout == reports["pure"].stdout
    assert len(reports["pure"].stdout.splitlines()) > 400


def test_environment_switches_the_accelerator_off() -> None:
    done = run_script(
        "from asyncwasm._ffi.accelerator import speedups; print(speedups)",
        environment=BOTH["pure"],
    )

    assert done.stdout.split() == ["None"]


@compiled
def test_direct_calls_leak_no_references() -> None:
    add = instance(ADD).exports.add
    big = 2**31 - 1
    before = sys.getrefcount(big), sys.getrefcount(add)

    for _ in range(10_000):
        add(big, -big)
        with pytest.raises(TypeError):
            add("x", 1)

    after = sys.getrefcount(big), sys.getrefcount(add)
    assert all(abs(late - early) < 8 for late, early in zip(after, before, strict=True))


@compiled
def test_host_functions_leak_no_references() -> None:
    answers: list[Any] = [2**30, None, ValueError("mine")]

    def host(value: int) -> Any:
        answer = answers[value]
        if isinstance(answer, Exception):
            raise answer
        return answer

    call = instance(CALLER, {"host": {"f": host}}).exports.call
    before = [sys.getrefcount(each) for each in answers[::2]] + [sys.getrefcount(host)]

    for _ in range(2_000):
        assert call(0) == 2**30
        with pytest.raises(TypeError):
            call(1)
        with pytest.raises(ValueError, match="mine"):
            call(2)
    answers[2].__traceback__ = None
    gc.collect()

    after = [sys.getrefcount(each) for each in answers[::2]] + [sys.getrefcount(host)]
    assert all(late - early < 8 for late, early in zip(after, before, strict=True)), (before, after)


@compiled
async def test_awaited_calls_leak_no_references() -> None:
    async def host(value: int) -> int:
        await asyncio.sleep(0)
        if value:
            raise ValueError("mine")
        return 2**30

    exports = instance(CALLER, {"host": {"f": host}}).exports
    plain, call, trap = exports.plain, exports.call, exports.trap
    big = 2**31 - 2
    await plain.call_async(big)  # makes its quick way
    held = (big, plain, call, trap, host, plain._quick, exports)
    before = [sys.getrefcount(each) for each in held]
    sizes: list[int] = []

    for turn in range(2_000):
        assert await plain.call_async(big) == big + 1
        assert await call.call_async(0) == 2**30
        with pytest.raises(ValueError, match="mine"):
            await call.call_async(1)
        with pytest.raises(aw.Trap):
            await trap.call_async()
        with pytest.raises(TypeError):
            await plain.call_async("x")
        if turn in (1_000, 1_999):
            gc.collect()
            sizes.append(sys.getallocatedblocks())

    after = [sys.getrefcount(each) for each in held]
    assert all(late - early < 8 for late, early in zip(after, before, strict=True)), (before, after)
    assert sizes[1] - sizes[0] < 500, sizes


def test_keyword_arguments_are_refused() -> None:
    add = instance(ADD).exports.add

    with pytest.raises(TypeError):
        add(1, b=2)


def test_eager_import_that_leaves_a_call_suspended_does_not_corrupt_the_order() -> None:
    """A call that an import has started and left runs on top of the guest."""
    order: list[str] = []

    async def main() -> None:
        async def slow(value: int) -> int:
            order.append("inner waits")
            await asyncio.sleep(0)
            order.append("inner is done")
            return value

        inner = instance(CALLER, {"host": {"f": slow}}, store=store)
        tasks = []

        def start(value: int) -> int:
            tasks.append(asyncio.ensure_future(inner.exports.call.call_async(value)))
            return value

        outer = instance(CALLER, {"host": {"f": start}}, store=store)
        assert await outer.exports.call.call_async(3) == 3
        assert await tasks[0] == 3

    store = aw.Store()
    asyncio.run(main())

    assert order == ["inner waits", "inner is done"]


def test_nested_call_in_a_store_whose_guests_hold_objects_comes_back() -> None:
    """There the nested fiber is polled by the continuation of the outer one."""
    text = CALLER.replace("(memory", "(type $s (struct)) (memory", 1)

    def host(value: int) -> Any:
        return exports.call(2) + 1 if value == 1 else value

    exports: Any = instance(text, {"host": {"f": host}}).exports

    assert exports.call(1) == 3
    assert asyncio.run(exports.call.call_async(1)) == 3


@compiled
async def test_call_that_is_collected_while_its_store_is_entered_is_freed_afterwards() -> None:
    """A collection can run anywhere, and end a call that nobody drives any more."""

    async def wait(value: int) -> int:
        await asyncio.sleep(0)
        return value

    made = instance(CALLER, {"host": {"f": wait}})
    call = made.exports.call.call_async(1)
    assert call.send(None) is None

    with made._store.entered():
        call.close()

    assert await made.exports.call.call_async(2) == 2
    assert not made._store.handle.futures

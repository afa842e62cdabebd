"""The main paths on trio; what cancels a call there is in test_cancellation."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import trio

import asyncwasm as aw

from .guests import STARTER, Gate, check_stopped, guest, not_measured, watching_offload
from .support import ADD, module, wasm

pytestmark = not_measured
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run *main* on trio, for at most half a minute."""

    async def limited() -> Any:
        with trio.fail_after(30):
            return await main()

    return trio.run(limited)


def test_compile_instantiate_and_call() -> None:
    async def main() -> int:
        compiled, made = await aw.instantiate(wasm(ADD))
        assert isinstance(compiled, aw.Module)
        again = await aw.instantiate(await aw.compile(wasm(ADD)))
        return int(await made.exports.add.call_async(1, await again.exports.add.call_async(2, 3)))

    assert run(main) == 6


def test_promising_function_can_be_started_in_a_nursery() -> None:
    results: list[int] = []

    async def main() -> None:
        made = guest()
        plain = aw.promising(made.exports.plain)

        async def call(value: int) -> None:
            results.append(await plain(value))

        async with trio.open_nursery() as nursery:
            for value in range(5):
                nursery.start_soon(call, value)
        await check_stopped(made)

    run(main)

    assert sorted(results) == [1, 2, 3, 4, 5]


def test_async_import_runs_in_the_callers_task_and_context() -> None:
    seen: list[tuple[object, int, str]] = []

    async def main() -> None:
        async def look(value: int) -> int:
            seen.append((trio.lowlevel.current_task(), threading.get_ident(), variable.get()))
            await trio.lowlevel.checkpoint()
            variable.set("import")
            return value * 2

        variable.set("caller")
        assert await guest(look).exports.call.call_async(21) == 42

        assert seen == [(trio.lowlevel.current_task(), threading.get_ident(), "caller")]
        assert variable.get() == "import"

    run(main)


def test_short_calls_wait_for_coroutines_on_trio() -> None:
    async def f(value: int) -> int:
        for _ in range(value % 3):
            await trio.lowlevel.checkpoint()
        with trio.move_on_after(0 if value == 4 else 30):
            await trio.sleep(0 if value < 4 else 30)
        return value

    async def main() -> None:
        made = guest(f)
        for value in range(5):
            assert await made.exports.call.call_async(value) == value
        assert not made._store._alive()

    run(main)


def test_imports_run_on_trios_thread_after_the_guest_has_moved() -> None:
    seen: list[int] = []

    async def main() -> None:
        def look(value: int) -> int:
            seen.append(threading.get_ident())
            return value

        made = guest(look)
        view = made.exports.memory.buffer
        with watching_offload(made.store.engine) as offload:

            async def release() -> None:
                await offload.happened()
                view[0] = 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(release)
                assert await made.exports.call_until_call.call_async() == 2

    run(main)

    assert seen == [threading.get_ident()] * 2


def test_exception_of_an_import_arrives_as_the_same_object() -> None:
    error = LookupError("mine")

    async def main() -> None:
        async def fail(value: int) -> int:
            await trio.lowlevel.checkpoint()
            raise error

        made = guest(fail)
        with pytest.raises(LookupError) as caught:
            await made.exports.call.call_async(1)
        assert caught.value is error
        await check_stopped(made)

    run(main)


def test_exception_group_of_a_nursery_passes_through() -> None:
    async def main() -> None:
        async def fail(value: int) -> int:
            async def broken() -> None:
                raise LookupError

            async with trio.open_nursery() as nursery:
                nursery.start_soon(broken)
            return value

        with pytest.raises(ExceptionGroup) as caught:
            await guest(fail).exports.call.call_async(1)
        assert caught.group_contains(LookupError)

    run(main)


def test_calls_queue_and_nested_ones_do_not_wait() -> None:
    order: list[int] = []

    async def main() -> None:
        gate = Gate()

        async def work(value: int) -> int:
            order.append(value)
            await gate(value)
            nested = await made.exports.plain.call_async(value)
            assert order[-1] == value
            return int(nested)

        made = guest(work)
        async with trio.open_nursery() as nursery:
            for value in range(5):
                nursery.start_soon(made.exports.call.call_async, value)
                await gate.reached.wait()
                while len(made._store.root.waiting) < value:
                    await trio.lowlevel.checkpoint()
            gate.opened.set()
        await check_stopped(made)

    run(main)

    assert order == [0, 1, 2, 3, 4]


def test_start_function_can_await_an_import() -> None:
    async def main() -> list[int]:
        gate = Gate()
        gate.opened.set()
        await aw.instantiate(module(STARTER), {"host": {"f": gate}})
        return gate.seen

    assert run(main) == [0]


def test_sync_call_beside_a_suspended_one_is_busy() -> None:
    async def main() -> None:
        gate = Gate()
        made = guest(gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.exports.call.call_async, 1)
            await gate.reached.wait()
            with pytest.raises(anyio.BusyResourceError):
                made.exports.plain(1)
            gate.opened.set()
        await check_stopped(made)

    run(main)


def test_others_run_during_a_call_that_makes_many_imports() -> None:
    imports = 0

    async def main() -> None:
        async def count(value: int) -> int:
            nonlocal imports
            imports += 1
            if imports == 2_000_000:
                raise AssertionError("nobody else gets to run")
            return 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest(count).exports.sum.call_async, 2**31)
            turns = 0
            while turns < 30 or not imports:
                await trio.lowlevel.checkpoint()
                turns += 1
            nursery.cancel_scope.cancel()

    run(main)


def test_one_store_can_be_used_on_trio_and_on_asyncio_in_turn() -> None:
    made = guest(_double)

    async def main() -> int:
        return int(await made.exports.call.call_async(4))

    for backend in ("trio", "asyncio", "trio"):
        assert anyio.run(main, backend=backend) == 8


async def _double(value: int) -> int:
    await anyio.lowlevel.checkpoint()
    return value * 2


def test_trio_as_a_guest_of_asyncio() -> None:
    """Both loops are there; the task's own one counts."""
    import asyncio

    made = guest(_double)
    view = made.exports.memory.buffer

    async def on_trio() -> int:
        with watching_offload(made.store.engine) as offload:
            async with trio.open_nursery() as nursery:

                async def release() -> None:
                    await offload.happened()
                    view[0] = 1

                nursery.start_soon(release)
                assert await made.exports.until.call_async() == 1
        return int(await made.exports.call.call_async(1))

    async def on_asyncio() -> tuple[int, int]:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        trio.lowlevel.start_guest_run(
            on_trio,
            run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
            done_callback=done.set_result,
        )
        own = int(await guest(_double).exports.call.call_async(2))
        return own, (await done).unwrap()

    assert asyncio.run(on_asyncio()) == (4, 2)

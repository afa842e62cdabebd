"""Many at once, on one thread."""

from __future__ import annotations

import asyncio
import logging

import pytest

import asyncwasm as aw

from .support import CALLER, SPIN, wasm


async def test_thousand_instantiations_of_the_same_bytes_compile_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = aw.Engine()
    binary = bytes(bytearray(wasm(CALLER)))
    imports = {"host": {"f": abs}}

    with caplog.at_level(logging.INFO, "asyncwasm"):
        made = await asyncio.gather(
            *(aw.instantiate(bytearray(binary), imports, engine=engine) for _ in range(1_000))
        )

    assert [each.message for each in caplog.records].count("asyncwasm.module_compiled") == 1
    assert len({each.module.digest for each in made}) == 1
    assert [each.instance.exports.plain(1) for each in made[::99]] == [2] * 11
    for each in made:
        each.instance.close()


@pytest.mark.slow
@pytest.mark.every_loop
async def test_calls_that_stand_in_line_for_a_turn_can_be_cancelled_and_nobody_else_is() -> None:
    """More than may look in each turn whether there is time left."""
    module = aw.Module(wasm(SPIN))
    made = [aw.Instance(module) for _ in range(300)]
    calls = [asyncio.create_task(each.exports.work.call_async(200_000)) for each in made]
    for _ in range(3):
        await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)

    assert {type(each) for each in results[1::2]} == {type(None)}
    assert {type(each) for each in results[::2]} <= {type(None), asyncio.CancelledError}
    assert asyncio.CancelledError in {type(each) for each in results[::2]}
    assert await made[0].exports.one.call_async() == 1
    for each in made:
        each.close()


def test_trio_tasks_stand_in_line_for_a_turn_as_well() -> None:
    trio = pytest.importorskip("trio")

    async def call(instance: aw.Instance) -> None:
        await instance.exports.work.call_async(200_000)
        ended.append(instance)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for each in made:
                nursery.start_soon(call, each)

    ended: list[aw.Instance] = []
    module = aw.Module(wasm(SPIN))
    made = [aw.Instance(module) for _ in range(150)]
    trio.run(main)

    assert len(ended) == len(made)
    for each in made:
        each.close()

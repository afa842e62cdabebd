"""Many at once, on one thread."""

from __future__ import annotations

import asyncio
import logging

import pytest

import asyncwasm as aw

from .support import CALLER, wasm


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

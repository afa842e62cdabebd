"""What every test relies on: loops, leak checks, small modules."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from hypothesis import settings

os.environ["ASYNCWASM_CACHE_DIR"] = "off"  # before the package makes its default engine

import asyncwasm as aw

settings.register_profile("quick", max_examples=20, derandomize=True, deadline=None)
settings.register_profile("nightly", max_examples=1_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--core-suite", default=None, help="test/core of WebAssembly/spec")


def pytest_configure(config: pytest.Config) -> None:
    """
    Let the processes that tests start keep bytecode for each other, where Python keeps none.

    There are hundreds, and to compile the package takes most of them longer than what they do.
    """
    if sys.pycache_prefix is None and os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        directory = tempfile.TemporaryDirectory(prefix="asyncwasm-tests-")
        config.add_cleanup(directory.cleanup)
        os.environ["PYTHONPYCACHEPREFIX"] = directory.name


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect thousands of tests without looking again and again for garbage among them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def _new_eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    return loop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every async test that asks for it on each loop this interpreter has."""
    factories: dict[str, Callable[[], Any]] = {"asyncio": asyncio.new_event_loop}
    if item.get_closest_marker("every_loop") is None:
        return factories
    if sys.version_info >= (3, 12):
        factories["eager"] = _new_eager_loop
    try:
        import uvloop
    except ImportError:
        pass
    else:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> None:
    """
    Spare the collector what is there before a module's first test.

    Tests call it often, and to look through thousands of tests and reports takes it half a
    second. What is frozen still dies with its last reference.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _guard_defaults() -> Iterator[None]:
    """Give each test the guard's defaults."""
    aw.configure_sync_guard()
    yield
    aw.configure_sync_guard()


@pytest.fixture
def our_threads() -> Callable[[], list[str]]:
    """Return the names of the package's threads."""

    def names() -> list[str]:
        return [each.name for each in threading.enumerate() if each.name.startswith("asyncwasm")]

    return names

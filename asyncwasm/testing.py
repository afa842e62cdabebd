"""
Helpers for the test suites of those who use asyncwasm; no test framework is needed.

Rule 1: nothing is recorded, and nothing costs time, unless a `leak_check` is going on.
"""

from __future__ import annotations

import functools
import gc
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ._api import wat2wasm
from ._ffi.handles import StoreHandle
from ._ffi.references import References, drain
from ._objects.engine import Engine, core_or_default
from ._objects.module import Module
from ._runtime.engine import EngineCore
from ._runtime.operation import Operation
from ._runtime.threads import Threads

__all__ = ("Tick", "leak_check", "manual_ticks", "wat")

_SETTLE_SECONDS = 2.0  # for threads to end what has been given up
_FRAMES = 3
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARY = os.path.dirname(os.path.abspath(threading.__file__)) + os.sep


@functools.cache
def wat(text: str) -> Module:
    """
    Return a module made from *text*, compiled once for all who ask for the same text.

    Args:
        text: A module in the text format.
    Returns:
        The module, for the default engine.
    Raises:
        CompileError: If *text* is no valid module.
    """
    return Module(wat2wasm(text))


class Tick(Protocol):
    """Let *count* ticks happen: what `manual_ticks` gives."""

    def __call__(self, count: int = 1) -> None: ...


@contextmanager
def manual_ticks(engine: Engine | None = None) -> Iterator[Tick]:
    """
    Let the clock of an engine tick only when told.

    An awaited guest runs until the clock ticks. At each of the first two ticks of a call the
    event loop gets to run; the third moves the call to a worker thread. Without a tick, nothing
    of this happens, however long a guest takes: so a test can say what happens when.

    A tick is for the guest that runs, or for the next that does; so ticks may be given before a
    call, or by another task or thread during it. A tick counts as time enough for the slices and
    for `Store.sync_deadline_seconds` of guests that have imports, 1/128 of a second; several
    that pass while a guest calls one import after the other may count as one. A guest that does
    not end by itself can be stopped by a tick only, or when the block ends.

    Args:
        engine: The engine whose clock it is. The default one if omitted.
    Returns:
        A context manager; what it gives lets *count* ticks happen, and may be called on any
        thread.
    Example:
        async def test_fib_lets_others_run():
            with asyncwasm.testing.manual_ticks() as tick:
                tick()
                await fib.call_async(30)
    """
    ticker = core_or_default(engine).ticker

    def tick(count: int = 1) -> None:
        for _ in range(count):
            ticker.tick()

    ticker.take_over()
    try:
        yield tick
    finally:
        ticker.give_back()


@contextmanager
def leak_check() -> Iterator[None]:
    """
    Assert that what a block makes has been freed when it ends, and nothing of it still runs.

    Looked for are native stores that are open, or kept by a view of a memory; calls that are
    suspended; host values that older stores still refer to; and threads: those of an engine that
    was made in the block and not closed, and any that are at work. The garbage collectors run
    first. What the names of the block's function still refer to counts as leaked, so close it,
    or make it in a function of its own.

    Idle threads of an engine that was there before are no leak; they end by themselves.

    Raises:
        AssertionError: If something is left; the text says what, and where it was made.
    Example:
        with asyncwasm.testing.leak_check():
            with asyncwasm.Instance(module) as instance:
                instance.exports.run()
    """
    check = _Check()
    _Recorder.begin(check)
    try:
        yield
    finally:
        _Recorder.finish(check)
    found = check.leaks()
    if found:
        plural = "s" * (len(found) > 1)
        raise AssertionError(f"{len(found)} leak{plural}:\n" + "\n".join(found))


class _Check:
    """What was there before a block, and what has been made in it."""

    def __init__(self) -> None:
        self.stores: weakref.WeakKeyDictionary[StoreHandle, str] = weakref.WeakKeyDictionary()
        self.operations: weakref.WeakKeyDictionary[Operation, str] = weakref.WeakKeyDictionary()
        self.engines: weakref.WeakKeyDictionary[EngineCore, str] = weakref.WeakKeyDictionary()
        self.values: dict[int, str] = {}  # by identifier
        self.threads = set(threading.enumerate())

    def leaks(self) -> list[str]:
        """Return a line, and where it was made, for each leak."""
        _collect()
        if any(thread.is_alive() for thread in self._threads()):
            _wait_until(lambda: not self._threads())
            _collect()
        stores = [handle for handle in list(self.stores) if handle.pointer]
        found = [_store_line(handle) + self.stores[handle] for handle in stores]
        for operation, made in list(self.operations.items()):
            if operation.fiber is not None and operation.fiber.future and operation.begun:
                found.append(f"- a suspended call: {operation.describe()}, made{made}")
        for table in _tables():
            if table._handle not in stores:
                found += [
                    f"- a host value: {_shown(table._values[each])}, handed over{self.values[each]}"
                    for each in list(table._values)
                    if each in self.values
                ]
        found += [f"- a thread: {thread.name}{self._made(thread)}" for thread in self._threads()]
        found += ["- a clock that ticks for a call" for each in _engines() if each.ticker.held]
        return found

    def _threads(self) -> list[threading.Thread]:
        """Return the threads that should not be there."""
        return [
            thread
            for thread in threading.enumerate()
            if thread.name.startswith("asyncwasm") and self._is_leak(thread)
        ]

    def _is_leak(self, thread: threading.Thread) -> bool:
        owner = _owner(thread)
        if isinstance(owner, Threads) and owner._running:
            return True
        return thread not in self.threads and (
            self._engine(thread) is not None or _engine_of(owner) is None
        )

    def _engine(self, thread: threading.Thread) -> EngineCore | None:
        """Return the engine of *thread* if it was made in the block."""
        engine = _engine_of(_owner(thread))
        return engine if engine in self.engines else None

    def _made(self, thread: threading.Thread) -> str:
        engine = self._engine(thread)
        return "" if engine is None else f", of an engine made{self.engines[engine]}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _store_line(handle: StoreHandle) -> str:
    if not handle.open:
        return "- a closed store, kept by a view of its memory, made"
    for table in _tables():
        if table._handle is handle and len(table):
            return f"- a store with {len(table):,} host values, made"
    return "- a store, made"


def _tables() -> list[References]:
    from ._ffi.references import _tables as tables

    return list(tables.values())


def _collect() -> None:
    """Run the collectors: Python's, and that of each store that can be entered."""
    _collect_cycles()
    for table in _tables():
        handle = table._handle
        if handle.open and handle.ours and not handle.lock.locked() and not handle.futures:
            with handle.lock:
                if handle.open:
                    table._collect()
            if handle.closing:
                handle.close()
    drain()
    _collect_cycles()  # what the host values held


def _collect_cycles() -> None:
    """Run Python's collector; asked while another thread collects, it would do nothing."""
    ran = False
    caller = threading.get_ident()

    def note(phase: str, info: object) -> None:
        nonlocal ran
        ran = ran or threading.get_ident() == caller

    def collect() -> bool:
        gc.collect()
        return ran

    gc.callbacks.append(note)
    try:
        _wait_until(collect)
    finally:
        gc.callbacks.remove(note)


def _owner(thread: threading.Thread) -> object:
    return getattr(getattr(thread, "_target", None), "__self__", None)


def _engines() -> list[EngineCore]:
    from ._runtime.engine import _engines as engines

    return [engine for engine in list(engines) if not engine.closed]


def _engine_of(owner: object) -> EngineCore | None:
    if owner is not None:
        for engine in _engines():
            if owner is engine.ticker.clock or any(each is owner for each in vars(engine).values()):
                return engine
    return None


def _wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + _SETTLE_SECONDS
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)


def _where() -> str:
    """Return the innermost lines of the caller that are not ours, as text."""
    frames = [
        frame
        for frame in traceback.extract_stack()
        if not frame.filename.startswith((_PACKAGE, _LIBRARY, "<"))
    ]
    return "".join(
        f"\n    {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"
        for frame in reversed(frames[-_FRAMES:])
    )


class _Recorder:
    """Notes where things are made, for the checks that are going on."""

    lock = threading.Lock()
    checks: list[_Check] = []
    originals: list[tuple[type[Any], str, Any]] = []

    @classmethod
    def begin(cls, check: _Check) -> None:
        with cls.lock:
            cls.checks.append(check)
            if not cls.originals:
                cls._wrap(StoreHandle, "__init__", lambda each, handle: each.stores, False)
                cls._wrap(Operation, "__init__", lambda each, operation: each.operations, False)
                cls._wrap(EngineCore, "__init__", lambda each, engine: each.engines, False)
                cls._wrap(References, "_write_extern", lambda each, table: each.values, True)

    @classmethod
    def finish(cls, check: _Check) -> None:
        with cls.lock:
            cls.checks.remove(check)
            if not cls.checks:
                while cls.originals:
                    setattr(*cls.originals.pop())

    @classmethod
    def _wrap(
        cls, kind: type[Any], name: str, book: Callable[[_Check, Any], Any], is_value: bool
    ) -> None:
        original = getattr(kind, name)
        cls.originals.append((kind, name, original))

        @functools.wraps(original)
        def recording(self: Any, *arguments: Any, **options: Any) -> Any:
            result = original(self, *arguments, **options)
            key = next(reversed(self._values), None) if is_value else self
            if key is not None:
                where = " at" + _where()
                for check in list(cls.checks):
                    book(check, self).setdefault(key, where)
            return result

        setattr(kind, name, recording)

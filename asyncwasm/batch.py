"""
Loading many modules at once.

Rule 1: no task of the batch is the consumer's, and no cancel scope of the batch is ever open
while the consumer's own code runs.
Rule 2: the tasks know what they share with the iterator, not the iterator itself. So it is
collected when the consumer drops it, and stops them.
Rule 3: an item counts as being loaded until a consumer has taken it. As many as there is room for
are begun together, and what the cache has of them is found in one go.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import anyio
from anyio.abc import TaskGroup

from . import _api
from ._driver.checkpoints import checkpoint_if_cancelled
from ._driver.compiling import find_modules
from ._driver.detached import Post, is_being_cancelled, start
from ._objects.conversions import Source
from ._objects.engine import Engine, core_or_default
from ._objects.instance import Instance
from ._objects.module import Module
from ._runtime.source import FileReader

__all__ = ("Batch", "Loaded", "load_many")

AnySource: TypeAlias = "Source | Module"
Named: TypeAlias = "tuple[str, Any]"
Sources: TypeAlias = "os.PathLike[str] | Mapping[str, AnySource] | Iterable[AnySource]"

_CLOSING_SECONDS = 5.0  # that leaving waits for imports which do not end when cancelled


class Loaded(NamedTuple):
    """
    One module of a batch, loaded or not.

    `name` tells which it is. If `error` is None, `module` is the module, and `instance` an
    instance of it if one was asked for; otherwise both are None. `seconds` is the time it took,
    and `cached` says whether the code came from the cache.
    """

    name: str
    module: Module | None
    instance: Instance | None
    error: BaseException | None
    seconds: float
    cached: bool


class _Work:
    """What the iterator shares with its tasks."""

    def __init__(self, sources: Iterator[Named] | os.PathLike[str], imports: Any) -> None:
        self.sources = sources
        self.imports = imports
        self.engine: Engine | None = None
        self.instantiate = True
        self.concurrency = 1
        self.begun = 0  # items that no consumer has taken yet
        self.ready: deque[Loaded] = deque()
        self.arrival: anyio.Event | None = None  # that consumers wait for
        self.failure: BaseException | None = None  # what ends the batch
        self.post: Post | None = None  # None until it has begun

    def begin(self) -> None:
        """Start the tasks."""
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self.departure = anyio.Event()  # that the supervisor waits for
        self.post = start(partial(_supervise, self))

    def announce(self) -> None:
        """Wake whoever waits for something to happen."""
        arrival, self.arrival = self.arrival, None
        if arrival is not None:
            arrival.set()

    async def receive(self) -> Loaded | None:
        """Wait for the next item; None if there is none."""
        while not self.ready:
            if self.ended.is_set():
                failure, self.failure = self.failure, None
                if failure is not None:
                    raise failure
                return None
            if self.arrival is None:
                self.arrival = anyio.Event()
            await self.arrival.wait()
        item = self.ready.popleft()
        self.begun -= 1
        self.departure.set()
        return item

    def deliver(self, item: Loaded) -> None:
        """Have *item* taken by a consumer."""
        self.ready.append(item)
        self.announce()

    async def wait_begun(self, most: int) -> None:
        """Wait until at most *most* items are begun, so that nothing runs too far ahead."""
        while self.begun > most:
            self.departure = anyio.Event()
            await self.departure.wait()

    def fail(self, exc: BaseException) -> None:
        """End the batch with *exc*."""
        self.failure = self.failure or exc
        self.scope.cancel()


async def _supervise(work: _Work) -> None:
    try:
        with work.scope:
            if not isinstance(work.sources, Iterator):
                try:
                    found = await anyio.to_thread.run_sync(
                        _scan, work.sources, abandon_on_cancel=True
                    )
                except OSError as exc:
                    work.fail(exc)
                    return
                work.sources = iter(found)
            async with anyio.create_task_group() as group:
                await _do(_load_all, work, work.sources, group)
    finally:
        while work.ready:
            item = work.ready.popleft()
            if item.instance is not None:
                item.instance.close()
        work.ended.set()
        work.announce()


async def _do(part: Callable[..., Awaitable[None]], work: _Work, *about: Any) -> None:
    """Do a *part* of the work; what it raises ends the batch."""
    try:
        await part(work, *about)
    except BaseException as exc:
        if isinstance(exc, anyio.get_cancelled_exc_class()) and is_being_cancelled():
            raise
        work.fail(exc)


async def _load_all(work: _Work, sources: Iterator[Named], group: TaskGroup) -> None:
    while True:
        await work.wait_begun(work.concurrency - 1)
        some = list(islice(sources, work.concurrency - work.begun))
        if not some:
            break
        work.begun += len(some)
        started = perf_counter()
        for (name, source), module in zip(some, await _find(work, some), strict=True):
            if module is None:
                group.start_soon(_do, _load, work, name, source, started)
            elif work.instantiate:
                group.start_soon(_do, _load, work, name, module, started)
            else:
                work.deliver(_loaded(name, module, None, started))
    await work.wait_begun(0)


async def _find(work: _Work, some: list[Named]) -> list[Module | None]:
    """Return the modules that need no compiling."""
    modules = [source if isinstance(source, Module) else None for _, source in some]
    paths = [at for at, (_, source) in enumerate(some) if isinstance(source, os.PathLike)]
    try:
        reads = [FileReader(os.fspath(some[at][1])) for at in paths]
        found = await find_modules(core_or_default(work.engine), reads)
    except Exception:  # compiling them will tell what is wrong
        return modules
    for at, module in zip(paths, found, strict=True):
        modules[at] = module
    return modules


async def _load(work: _Work, name: str, source: Any, started: float) -> None:
    instance: Instance | None = None
    try:
        if isinstance(source, Module):
            module = source
        else:
            module = await _api.compile(source, engine=work.engine)
        if work.instantiate:
            instance = await _api.instantiate(module, work.imports)
    except Exception as exc:
        work.deliver(_failed(name, exc, started))
    except anyio.get_cancelled_exc_class() as exc:
        if is_being_cancelled():
            raise
        work.deliver(_failed(name, exc, started))
    else:
        work.deliver(_loaded(name, module, instance, started))


def _loaded(name: str, module: Module, instance: Instance | None, started: float) -> Loaded:
    return Loaded(name, module, instance, None, perf_counter() - started, module._artifact.cached)


def _failed(name: str, exc: BaseException, started: float) -> Loaded:
    return Loaded(name, None, None, exc, perf_counter() - started, False)


class Batch(AsyncIterator[Loaded]):
    """
    What `load_many` returns: an async iterator of what has been loaded, as it finishes.

    Several tasks may take from it; each item goes to one of them.
    """

    _work: _Work | None = None

    def __init__(self) -> None:
        raise TypeError("a Batch comes from asyncwasm.load_many()")

    @classmethod
    def _of(cls, work: _Work) -> Batch:
        self = cls.__new__(cls)
        self._work = work
        return self

    def __aiter__(self) -> Batch:
        return self

    async def __anext__(self) -> Loaded:
        work = self._work
        if work is None:
            raise StopAsyncIteration
        await checkpoint_if_cancelled()
        try:
            if work.post is None:
                work.begin()
            item = await work.receive()
        except BaseException:
            await self.aclose()
            raise
        if item is None:
            self._work = None
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """
        Stop loading, and wait until everything has stopped; idempotent.

        Instances that have been handed out stay open.

        Cancellation: Does not keep it from stopping, nor from waiting, for some seconds at most.
        """
        work, self._work = self._work, None
        if work is None or work.post is None:
            return
        work.scope.cancel()
        with anyio.move_on_after(_CLOSING_SECONDS, shield=True):
            await work.ended.wait()

    def __del__(self) -> None:
        work = self._work
        if work is not None and work.post is not None:
            with suppress(RuntimeError):  # the loop has gone, and the tasks with it
                work.post(work.scope.cancel)


def load_many(
    sources: Sources,
    imports: Any = None,
    *,
    concurrency: int | None = None,
    instantiate: bool = True,
    engine: Engine | None = None,
) -> Batch:
    """
    Compile and instantiate many modules side by side, and give each as it is done.

    What is wrong with one module is in its item's `error`, and does not disturb the others.
    Loading begins when the first item is asked for, and goes on while items are dealt with, by
    at most *concurrency* items ahead. Start functions and their imports run in tasks of the
    batch, in the context of whoever asked for the first item.

    Leaving the loop early stops the rest, soon after the iterator has been dropped. With
    `contextlib.aclosing` it has stopped when the block is left.

    Args:
        sources: A directory, for every ``*.wasm`` below it, named by its path from there; a
            mapping of names to sources; or an iterable of sources, named by their paths or
            else their positions. A source is what `compile` takes, or a module. The path of a
            file is a batch of one. Mappings and sequences are read at the call, other iterables
            as their items are needed.
        imports: The imports of every instance, as for `instantiate`. If it holds objects that
            live in a store, all instances join that.
        concurrency: How many modules are loaded at a time; as many as the engine has compile
            threads, and two, if omitted.
        instantiate: Whether to make an instance of each.
        engine: Engine to compile for; the process-wide default if omitted.
    Returns:
        An async iterator of `Loaded`, with a method `aclose`.
    Raises:
        TypeError: If *sources* is nothing of the kind, or another argument has the wrong type.
        ValueError: If *concurrency* is not positive.
        OSError: From the iterator: if the directory, or one below it, cannot be read.
        Exception: From the iterator: whatever going through *sources* raises.
    Cancellation: Stops the rest, and waits until it has stopped.
    Example:
        async with contextlib.aclosing(asyncwasm.load_many(pathlib.Path("plugins"))) as batch:
            async for item in batch:
                print(item.name, item.error or item.instance.exports)
    """
    work = _Work(_named(sources), imports)
    work.engine = Engine._of(core_or_default(engine))
    work.instantiate = bool(instantiate)
    if concurrency is None:
        concurrency = work.engine.config.threads_to_compile + 2
    elif not isinstance(concurrency, int) or isinstance(concurrency, bool):
        raise TypeError(f"expected an int for concurrency, got {type(concurrency).__name__}")
    elif concurrency < 1:
        raise ValueError(f"expected a positive concurrency, got {concurrency}")
    work.concurrency = concurrency
    return Batch._of(work)


Loaded.__module__ = load_many.__module__ = "asyncwasm"


def _named(sources: Any) -> Iterator[Named] | os.PathLike[str]:
    """Return each source with its name; or the path to look for them."""
    if isinstance(sources, os.PathLike):
        return sources
    if isinstance(sources, Mapping):
        return iter(list(sources.items()))
    if not isinstance(sources, (str, bytes, bytearray, memoryview)):
        if isinstance(sources, Sequence):
            return iter([_name(index, each) for index, each in enumerate(sources)])
        if isinstance(sources, Iterable):
            return (_name(index, each) for index, each in enumerate(sources))
    hint = ""
    if isinstance(sources, str):
        hint = "; for a directory use pathlib.Path(...)"
    elif isinstance(sources, (bytes, bytearray, memoryview, Module)):
        hint = "; for a single source use [source]"
    raise TypeError(
        "expected a directory, an iterable of sources or a mapping, "
        f"got {type(sources).__name__}{hint}"
    )


def _name(index: int, source: Any) -> Named:
    return (os.fsdecode(source) if isinstance(source, os.PathLike) else str(index)), source


def _scan(path: os.PathLike[str]) -> list[tuple[str, Path]]:
    """Return the modules below *path*, or the one that it is, with their names."""
    root = Path(path)
    if not stat.S_ISDIR(os.stat(root).st_mode):
        return [(root.name, root)]
    found: list[PurePath] = []
    for directory, _, names in os.walk(root, onerror=_raise):
        below = PurePath(directory).relative_to(root)
        found.extend(below / name for name in names if name.endswith(".wasm"))
    return [(each.as_posix(), root / each) for each in sorted(found)]


def _raise(exc: OSError) -> None:
    raise exc

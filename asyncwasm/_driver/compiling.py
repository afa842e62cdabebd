"""Compiling and instantiating without holding the event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .._objects.instance import Instance, Preparation
from .._objects.module import Module
from .._objects.options import NO_OPTIONS, CompileOptions
from .._objects.store import Store
from .._runtime.config import Limits
from .._runtime.engine import EngineCore
from .._runtime.source import FileReader
from .checkpoints import checkpoint_if_cancelled
from .drive import drive
from .signal import new_signal

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")


class Instantiated(NamedTuple):
    """
    A module and an instance of it.

    Args:
        module: The module.
        instance: The instance.
    Spec: https://webassembly.github.io/spec/js-api/#dictdef-webassemblyinstantiatedsource
    """

    module: Module
    instance: Instance


async def result_of(job: Future[T]) -> T:
    """Wait for *job*; being cancelled leaves it alone, unless nobody else waits for its turn."""
    try:
        if not job.done():
            signal = new_signal()
            job.add_done_callback(lambda _: signal.wake())
            await signal.wait()
    except BaseException:
        from .._runtime.jobs import Job

        if isinstance(job, Job):
            job.abandon()
        raise
    try:
        return job.result()
    finally:
        del job  # an error's traceback would hold what holds it


async def wait_optimized(module: Module) -> Module:
    """Wait until the background work on *module* is done."""
    await checkpoint_if_cancelled()
    artifact = module._artifact
    future = artifact.engine.optimization(artifact)
    if future is not None:
        await result_of(future)
    return module


async def compile_module(
    engine: EngineCore,
    read: Callable[[], bytes],
    identity: object,
    options: CompileOptions = NO_OPTIONS,
) -> Module:
    """Compile on the engine's threads."""
    return Module._from_artifact(await result_of(engine.compile_soon(read, identity)), options)


async def find_modules(engine: EngineCore, reads: Sequence[FileReader]) -> list[Module | None]:
    """Return the modules of the files that the cache knows, None for those to be compiled."""
    if engine.cache is None or not reads:
        return [None] * len(reads)
    found = await result_of(engine.find_soon(reads))
    return [None if each is None else Module._from_artifact(each) for each in found]


async def instantiate_source(
    engine: EngineCore,
    read: Callable[[], bytes],
    identity: object,
    imports: Any,
    store: Store | None,
    limits: Limits | None,
    options: CompileOptions = NO_OPTIONS,
) -> Instantiated:
    """Compile, then read the imports, then instantiate."""
    module = await compile_module(engine, read, identity, options)
    instance = await instantiate_prepared(Preparation(module, imports, store, limits))
    return Instantiated(module, instance)


async def instantiate_prepared(preparation: Preparation) -> Instance:
    """Instantiate with imports that have been read."""
    try:
        if not preparation.ready:
            await _compile_variant(preparation)
        if preparation.immediate:
            await checkpoint_if_cancelled()
            raw = preparation.now()
        else:
            raw = await drive(preparation.operation)
    except BaseException:
        preparation.failed()
        raise
    return Instance._from_preparation(preparation, raw)


async def _compile_variant(preparation: Preparation) -> None:
    """Compile the code for a store that needs another variant than the module was made for."""
    artifact, variant = preparation.module._artifact, preparation.variant
    await result_of(artifact.engine.soon((artifact.digest, variant), preparation.compile))


async def failing(exc: BaseException) -> Any:
    """Raise *exc* when awaited."""
    raise exc


def at_await(function: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
    """Call *function* now; if it raises, return a coroutine that does."""
    try:
        return function()
    except Exception as exc:
        return failing(exc)


Module._wait_optimized = staticmethod(wait_optimized)

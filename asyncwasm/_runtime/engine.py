"""
EngineCore: one configuration, its native engines, its threads and its clock.

Rule 1: nothing native is made before it is needed. An engine that exists when faulthandler
is enabled later would let the first trap kill the process.
Rule 2: a native engine has one variant (compiler, fuel); a store and its modules share one.
Rule 3: what was made before a fork is never used after it: variants are made again.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from .. import _log
from .._binary import declared_bytes, decode, holds_references
from .._errors import CompileError, LinkError, RangeError
from .._ffi import compiling, pooling
from .._ffi.handles import Handle
from .._hashes import sha256
from .._reader import Binary
from .artifact import Artifact, Variant, linkable
from .cache import Cache, Configuration, Loaded, configuration, open_cache
from .config import DIRECT_STACK_BYTES, HOST_STACK_BYTES, EngineConfig, Pooling
from .copies import Recognized
from .source import FileReader
from .threads import Threads
from .ticker import Ticker

if "concurrent.futures" in sys.modules:  # asyncio has loaded it, so that this takes no time
    from . import jobs  # noqa: F401
if TYPE_CHECKING:
    from concurrent.futures import Future

    from .jobs import Job

T = TypeVar("T")

# Up to this size the optimizing compiler takes less than a tenth of a second.
_SMALL_BYTES = 256 << 10
# From this size on hashing takes longer than starting a thread.
_LARGE_BYTES = 1 << 20
_MAX_SLEEPERS = 1000
# Up to this size, what a module declares is decoded in a few milliseconds.
_FEW_BYTES = 64 << 10


class EngineCore:
    """What the public `Engine` stands for: it compiles and runs modules with one configuration."""

    face: weakref.ref[Any] | None = None  # to what users see of it

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._start()
        _engines.add(self)

    def _start(self) -> None:
        from .jobs import Flights, Jobs  # these load concurrent.futures, and that much else

        self._lock = threading.Lock()
        self._natives: dict[Variant, Handle] = {}
        self._pooled: dict[Variant, Variant] = {}  # what instance pools use instead
        self._closed = False
        self._cache: Cache | None = None
        self._cache_opened = False
        self._cache_lock = threading.Lock()  # its own: the library may be loaded meanwhile
        self._facts: dict[Variant, Configuration] = {}
        # whether guests may run on a thread's own stack
        self.fits_threads = self._config.max_wasm_stack_bytes <= DIRECT_STACK_BYTES
        # That a call on a thread's own stack needs there, with the host functions it calls.
        self.direct_stack_bytes = self._config.max_wasm_stack_bytes + HOST_STACK_BYTES
        self.leaving = False  # whether the process ends: nothing is polled on threads any more
        self._strict: Handle | None = None  # validates only; knows no exceptions and no objects
        self._artifacts: weakref.WeakValueDictionary[str, Artifact] = weakref.WeakValueDictionary()
        self._background: Handle | None = None  # compiles on the calling thread only
        self._artifact_flights: Flights[Artifact] = Flights()
        self._code_flights: Flights[Handle] = Flights()
        self._optimizations: weakref.WeakKeyDictionary[Artifact, Future[None]] = (
            weakref.WeakKeyDictionary()
        )
        self.ticker = Ticker()
        self.compilers = Threads(
            "asyncwasm compiler",
            self._config.threads_to_compile,
            max_waiting=self._config.max_queued_compilations,
        )
        self.optimizer = Threads("asyncwasm optimizer", 1, low_priority=True)
        self._jobs = Jobs(self.compilers)
        self.finder = Threads("asyncwasm finder", 1)
        self._finds = Jobs(self.finder)
        self.runners = Threads("asyncwasm runner", os.cpu_count() or 1)
        # For guests that wait for each other: one more has to find a thread, or nobody goes on.
        self.sleepers = Threads("asyncwasm sleeper", _MAX_SLEEPERS)

    @property
    def config(self) -> EngineConfig:
        """The configuration."""
        return self._config

    @property
    def closed(self) -> bool:
        """Whether the engine has been closed."""
        return self._closed

    def close(self) -> None:
        """End the threads, but the clock's."""
        self._closed = True
        self.compilers.close()
        self.finder.close()
        self.optimizer.close()
        self.runners.close()
        self.sleepers.close()
        if self._cache is not None:
            self._cache.close()

    def __del__(self) -> None:
        if "ticker" in self.__dict__ and not sys.is_finalizing():
            self.close()
            self.ticker.close()

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError("the engine has been closed")

    def variant(self, fuel: bool) -> Variant:
        """
        Return the variant of a store that is made before any module is known.

        Baseline code can neither use references and tags nor threads; what will join is unknown.
        """
        return Variant(False, fuel, self._config.pools_everything)

    def native(self, variant: Variant) -> Handle:
        """Return the native engine of *variant*."""
        known = self._natives.get(variant)
        if known is not None:
            return known
        with self._lock:
            handle = self._natives.get(variant)
            if handle is None:
                handle = self._natives[variant] = self._new_native(variant)
                self.ticker.add(handle)
            return handle

    def _new_native(self, variant: Variant, *, parallel: bool = True) -> Handle:
        return compiling.new_engine(
            strategy=compiling.BASELINE if variant.baseline else compiling.OPTIMIZING,
            fuel=variant.fuel,
            max_wasm_stack_bytes=self._config.max_wasm_stack_bytes,
            features=self._config.features,
            parallel=parallel,
            pool=_sizes(self._config.pool) if variant.pooled else None,
        )

    def pooled(self, variant: Variant) -> Variant:
        """
        Return *variant* with a pool, if that is what the engine is to have for an instance pool.

        It is not if the configuration says so, or the system has no room.
        """
        known = self._pooled.get(variant)
        if known is not None:
            return known
        chosen = variant
        if self._config.pooling is None:  # otherwise all are, or none
            pooled = variant._replace(pooled=True)
            try:
                self.native(pooled)
            except RangeError as exc:
                _log.event("pool_not_made", _log.WARNING, error=str(exc))
            else:
                chosen = pooled
        self._pooled[variant] = chosen
        return chosen

    def _validate(self, binary: bytes) -> bool:
        """Raise CompileError unless *binary* is valid; return whether it needs a collector."""
        with self._lock:
            if self._strict is None:
                features = {**self._config.features, "exceptions": False, "gc": False}
                self._strict = compiling.new_engine(
                    strategy=compiling.OPTIMIZING,
                    fuel=False,
                    max_wasm_stack_bytes=self._config.max_wasm_stack_bytes,
                    features=features,
                )
        if compiling.is_valid(self._strict, binary):
            return False
        compiling.validate(self.native(Variant()), binary)
        return True

    def _validated(self, source: Binary, digest: str) -> tuple[bytes, bool]:
        """Return *source* in memory, and what `_validate` does; the cache keeps long verdicts."""
        cache = self.cache if len(source) >= _LARGE_BYTES else None
        if cache is None:
            binary = source[:]
            return binary, self._validate(binary)
        facts = self._code_facts(Variant())
        refusal = cache.find_refusal(digest, facts)
        if refusal is not None:
            raise refusal
        binary = source[:]
        try:
            return binary, self._validate(binary)
        except CompileError as exc:
            cache.store_refusal(digest, facts, exc)
            raise

    @property
    def cache(self) -> Cache | None:
        """What keeps optimized code for the next process."""
        if not self._cache_opened:
            with self._cache_lock:
                if not self._cache_opened:
                    self._cache = open_cache(self._config)
                    self._cache_opened = True
        return self._cache

    def compile_now(self, read: Callable[[], bytes]) -> Artifact:
        """Compile what *read* returns on this thread."""
        from .jobs import waited_for

        self._check_open()
        return waited_for(lambda: self._compile(read))

    def compile_soon(self, read: Callable[[], bytes], identity: object) -> Job[Artifact]:
        """
        Compile what *read* returns on a compile thread.

        Requests with the same *identity*, and requests for the same bytes, compile once.
        """
        return self.soon(identity, lambda: self._compile(read))

    def soon(self, identity: object, make: Callable[[], T | Future[T]]) -> Job[T]:
        """Call *make* on a compile thread, once for all who ask with the same *identity*."""
        self._check_open()
        return self._jobs.submit(identity, make)

    def find_soon(self, reads: Sequence[FileReader]) -> Job[list[Artifact | None]]:
        """
        Look for what the cache has of files, None for what it has not, whatever compiles meanwhile.

        One thread for all of them: several would do little but wait for each other's GIL.
        """
        self._check_open()
        return self._finds.submit(object(), lambda: [self._find(read) for read in reads])

    def _find(self, read: FileReader) -> Artifact | None:
        try:
            known = self._recognize(read)
        except OSError:  # as whoever compiles it will find out
            return None
        if known is None:
            return None
        return self._artifacts.get(known.digest) or self._find_code(known.binary, known.digest)

    def _compile(self, read: Callable[[], bytes]) -> Artifact | Future[Artifact]:
        """Return the artifact of what *read* returns, or the future of whoever compiles it."""
        if isinstance(read, FileReader):
            known = self._recognize(read)
            if known is not None:
                return self._compile_once(known.binary, known.digest)
        binary = read()
        if len(binary) > self._config.max_module_bytes:
            raise CompileError(
                f"the module has {len(binary):,} bytes, the engine takes at most "
                f"{self._config.max_module_bytes:,}; raise EngineConfig.max_module_bytes"
            )
        large = len(binary) >= _LARGE_BYTES
        if large and not self._natives:
            with suppress(anyio.ClosedResourceError):  # meanwhile; what has begun is finished
                self.runners.submit(self._load_library)
        if large and self.cache is not None and not isinstance(read, FileReader):
            known = self.cache.find_bytes(binary)
            if known is not None:
                _log.event("cache_bytes_known", digest=known.digest)
                return self._compile_once(known.binary, known.digest)
        digest = sha256(binary)
        try:
            made = self._compile_once(binary, digest)
        except CompileError:
            if large:
                self._remember(read, digest, binary)
            raise
        if isinstance(made, Artifact):
            self._remember(read, digest, binary)
        return made

    def _load_library(self) -> None:
        """Make the first native engine meanwhile: hashing does not hold the GIL."""
        with suppress(Exception):  # whoever needs it tries again
            self.native(Variant())

    def _compile_once(self, binary: Binary, digest: str) -> Artifact | Future[Artifact]:
        def make() -> Artifact:
            return self._artifacts.get(digest) or self._compile_alone(binary, digest)

        return self._artifacts.get(digest) or self._artifact_flights.join(digest, make)

    def _recognize(self, read: FileReader) -> Recognized | None:
        """Return what the cache knows of a file that has not changed, which is not read."""
        cache = self.cache
        if cache is None:
            return None
        with read.glance() as glance:
            if glance is None or glance.identity.size > self._config.max_module_bytes:
                return None
            known = cache.find_file(glance)
        if known is not None:
            _log.event("cache_file_unchanged", digest=known.digest)
        return known

    def _remember(self, read: Callable[[], bytes], digest: str, binary: bytes) -> None:
        """Let the cache know what *read* has read: a file that held still, or many bytes."""
        if self.cache is None:
            return
        if not isinstance(read, FileReader):
            if len(binary) >= _LARGE_BYTES:
                self.cache.remember_bytes(digest, binary)
        elif read.identity is not None:
            self.cache.remember_file(read.identity, digest, binary)

    def _find_code(self, source: Binary, digest: str) -> Artifact | None:
        """Return the artifact of *source*, if the cache has code for it."""
        if self._config.tier == "baseline":
            return None
        loaded = self._load(digest, Variant())
        if loaded is not None:
            return self._artifact_from(loaded, source, digest, Variant())
        if self._config.tier == "auto" and len(source) > _SMALL_BYTES:
            # Left by a process that ended before it had optimized the module.
            loaded = self._load(digest, Variant(True))
            if loaded is not None:
                artifact = self._artifact_from(loaded, source, digest, Variant(True))
                self._optimize_later(artifact)
                return artifact
        return None

    def _compile_alone(self, source: Binary, digest: str) -> Artifact:
        found = self._find_code(source, digest)
        if found is not None:
            return found
        started = perf_counter()
        binary, collected = self._validated(source, digest)
        # Only what is valid is decoded.
        info = decode(binary)
        variant, handle = self._compile_first(linkable(binary, info))
        artifact = Artifact(
            self,
            binary,
            digest,
            holds_references=collected or holds_references(info),
            starts_baseline=variant.baseline,
            cached=False,
        )
        artifact.info = info
        artifact.add(variant, handle)
        self._artifacts[digest] = artifact
        _log.event(
            "module_compiled",
            _log.INFO,
            bytes=len(binary),
            seconds=round(perf_counter() - started, 6),
            tier="baseline" if variant.baseline else "optimized",
            digest=digest,
        )
        if variant.baseline:
            self._optimize_later(artifact)
        else:
            self._keep(artifact, variant)
        return artifact

    def _artifact_from(
        self, loaded: Loaded, source: Binary, digest: str, variant: Variant
    ) -> Artifact:
        """Return the artifact of *source* with code from the cache."""
        artifact = Artifact(
            self,
            source,
            digest,
            holds_references=loaded.holds_references,
            starts_baseline=variant.baseline,
            cached=True,
        )
        if loaded.declared_bytes > _FEW_BYTES:
            artifact.info  # noqa: B018  # now, on this thread
        artifact.add(variant, loaded.handle)
        return self._artifacts.setdefault(digest, artifact)  # another thread may have been faster

    def _load(self, digest: str, variant: Variant) -> Loaded | None:
        """Return what the cache has."""
        cache = self._cache_for(variant)
        if cache is None:
            return None
        return cache.load(self.native(variant), digest, self._code_facts(variant))

    def _keep(self, artifact: Artifact, variant: Variant, code: bytes | None = None) -> bool:
        """Put code into the cache; return whether it is there."""
        cache = self._cache_for(variant)
        if cache is None:
            return False
        return cache.store(
            compiling.serialize(artifact.native(variant)) if code is None else code,
            artifact.digest,
            self._code_facts(variant),
            holds_references=artifact.holds_references,
            declared_bytes=declared_bytes(artifact.source),
        )

    def _cache_for(self, variant: Variant) -> Cache | None:
        """Return the cache, if it keeps code of *variant*: of the baseline compiler in between only."""
        return self.cache if not variant.baseline or self._config.tier == "auto" else None

    def _code_facts(self, variant: Variant) -> Configuration:
        """Return everything that code of *variant* depends on, besides the binary."""
        facts = self._facts.get(variant)
        if facts is None:
            facts = configuration(self._config, fuel=variant.fuel, baseline=variant.baseline)
            self._facts[variant] = facts
        return facts

    def _compile_first(self, linked: bytes) -> tuple[Variant, Handle]:
        """Compile a valid module with the compiler that comes first for its size."""
        tier = self._config.tier
        if compiling.has_baseline() and (
            tier == "baseline" or (tier == "auto" and len(linked) > _SMALL_BYTES)
        ):
            variant = Variant(True)
            with suppress(CompileError):  # it uses something that the baseline compiler lacks
                return variant, compiling.new_module(self.native(variant), linked)
        return Variant(), compiling.new_module(self.native(Variant()), linked)

    def compile_variant(self, artifact: Artifact, variant: Variant) -> Handle:
        """Compile *artifact* on this thread, or wait for whoever does it already."""

        def make() -> Handle:
            if artifact.has(variant):
                return artifact.native(variant)
            handle, new = self._compile_variant(artifact, variant)
            artifact.add(variant, handle)
            if new:
                self._keep(artifact, variant)
            return handle

        return self._code_flights.run((artifact.digest, variant), make)

    def _compile_variant(self, artifact: Artifact, variant: Variant) -> tuple[Handle, bool]:
        """Return code, and whether it is new to the cache."""
        if variant.pooled:
            return self._load_pooled(artifact, variant), False
        loaded = self._load(artifact.digest, variant)
        if loaded is not None:
            if variant.baseline and artifact.starts_baseline:
                self._optimize_later(artifact)
            return loaded.handle, False
        native = self.native(variant)
        try:
            handle = compiling.new_module(native, artifact.linked)
        except CompileError as exc:
            if not variant.baseline:
                raise
            raise LinkError(
                "the store runs baseline code, and the baseline compiler lacks what this module "
                "uses; await optimized() of the module that the store was made for before it is "
                "instantiated, or use EngineConfig(tier='optimized')"
            ) from exc
        if variant.baseline and artifact.starts_baseline:
            self._optimize_later(artifact)
        return handle, True

    def _load_pooled(self, artifact: Artifact, variant: Variant) -> Handle:
        """Return the code of *artifact* for a native engine with a pool: the same, loaded again."""
        native = self.native(variant)
        code = artifact.native(variant._replace(pooled=False))
        try:
            # Not from the cache, which would take what does not fit for broken.
            return compiling.deserialize(native, compiling.serialize(code))
        except CompileError as exc:
            artifact.unpoolable = True
            raise RangeError(pooling.unfit(str(exc))) from None

    # optimizing in the background

    def optimization(self, artifact: Artifact) -> Future[None] | None:
        """Return the future of optimizing *artifact*; None if there is nothing to wait for."""
        if not artifact.variant(False).baseline:
            return None
        return self._optimize_later(artifact)

    def _optimize_later(self, artifact: Artifact) -> Future[None] | None:
        """Compile *artifact* with the optimizing compiler when nobody needs the processor."""
        if self._config.tier != "auto":
            return None
        from concurrent.futures import Future

        with self._lock:
            future = self._optimizations.get(artifact)
            if future is not None:
                return future
            future = self._optimizations[artifact] = Future()
        # The cache wants the code even if nobody else does any more.
        waiting = weakref.ref(artifact) if self.cache is None else lambda: artifact
        done = future

        def work() -> None:
            found = waiting()
            try:
                if self._closed:
                    raise anyio.ClosedResourceError("the engine has been closed")
                if found is not None:
                    self._optimize(found)
            except BaseException as exc:
                _log.event("module_not_optimized", _log.WARNING, error=repr(exc))
                done.set_exception(exc)
            else:
                done.set_result(None)

        try:
            self.optimizer.submit(work)
        except Exception as exc:
            future.set_exception(exc)
        return future

    def _optimize(self, artifact: Artifact) -> None:
        started = perf_counter()
        variant = Variant()

        def make() -> Handle:
            if artifact.has(variant):
                return artifact.native(variant)
            if not artifact.cached and artifact.has(Variant(True)):
                self._keep(artifact, Variant(True))  # for whoever starts before this is over
            with self._lock:
                if self._background is None:
                    self._background = self._new_native(variant, parallel=False)
                background = self._background
            # Code belongs to the native engine that made it, so it is made again for the one
            # that stores use, which takes a copy.
            code = compiling.serialize(compiling.new_module(background, artifact.linked))
            kept = self._keep(artifact, variant, code)
            if kept and self.cache is not None:
                self.cache.forget(artifact.digest, self._code_facts(Variant(True)))
            loaded = self._load(artifact.digest, variant) if kept else None
            if loaded is not None:  # what is mapped need not be in memory twice
                handle = loaded.handle
            else:
                handle = compiling.deserialize(self.native(variant), code)
            artifact.add(variant, handle)
            return handle

        self._code_flights.run((artifact.digest, variant), make)
        _log.event(
            "module_optimized",
            _log.INFO,
            bytes=len(artifact.source),
            seconds=round(perf_counter() - started, 6),
            digest=artifact.digest,
        )


def _sizes(bounds: Pooling) -> pooling.Sizes:
    return pooling.Sizes(
        **bounds.counts(),
        memory_bytes=bounds.memory_bytes,
        table_elements=bounds.table_elements,
        keep_resident_bytes=bounds.keep_resident_bytes,
    )


_engines: weakref.WeakSet[EngineCore] = weakref.WeakSet()
_by_config: weakref.WeakValueDictionary[EngineConfig, EngineCore] = weakref.WeakValueDictionary()
_default: EngineCore | None = None
_default_lock = threading.Lock()


def default_engine() -> EngineCore:
    """Return the engine of this process."""
    global _default
    with _default_lock:
        if _default is None:
            _default = EngineCore(EngineConfig(cache="default"))
        return _default


def engine_for(config: EngineConfig) -> EngineCore:
    """Return the default engine, if *config* is its own, or one for all who come with *config*."""
    engine = default_engine()
    if engine.config == config:
        return engine
    with _default_lock:
        found = _by_config.get(config)
        if found is None or found.closed:
            found = _by_config[config] = EngineCore(config)
        return found


def _leave_process() -> None:
    """
    Stop polling on threads, then the clocks, while that is still possible.

    A thread that comes back from native code into a finalizing interpreter is ended there and
    then, and with guest frames below it that aborts the process.
    """
    engines = list(_engines)
    for engine in engines:
        engine.leaving = True
    for engine in engines:
        engine.runners.settle(1.0)
        engine.sleepers.settle(0.1)  # those asleep cannot be told, and do not come back
        engine.ticker.close()


atexit.register(_leave_process)


def _forked() -> None:
    global _default, _default_lock
    _default = None
    _default_lock = threading.Lock()
    for engine in list(_engines):
        engine._start()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)

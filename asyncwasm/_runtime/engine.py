"""
Engine: one configuration, its native engines, its threads and its clock.

Rule 1: nothing native is made before it is needed. An engine that exists when faulthandler
is enabled later would let the first trap kill the process.
Rule 2: a native engine has one variant (compiler, fuel); a store and its modules share one.
Rule 3: what was made before a fork is never used after it: variants are made again.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from time import perf_counter
from typing import NamedTuple

import anyio

from .. import _log
from .._binary import ModuleInfo, decode
from .._errors import CompileError
from .._ffi import compiling
from .._ffi.handles import Handle
from .._types import GlobalType, TableType
from .config import EngineConfig
from .threads import Threads
from .ticker import Ticker


class Variant(NamedTuple):
    """What code a native engine makes."""

    baseline: bool = False
    fuel: bool = False


class Artifact:
    """
    A compiled binary: its bytes, what they say, and its code for each variant that was needed.

    One artifact serves every `Module` of the same bytes.
    """

    __slots__ = (
        "__weakref__",
        "_function_types",
        "_lock",
        "_natives",
        "binary",
        "digest",
        "engine",
        "holds_references",
        "info",
        "linked",
        "renamed",
    )

    def __init__(
        self, engine: Engine, binary: bytes, digest: str, info: ModuleInfo, linked: bytes
    ) -> None:
        self.engine = engine
        self.binary = binary
        self.digest = digest
        self.info = info
        self.linked = linked  # the binary as it is compiled
        self.renamed = linked is not binary
        self.holds_references = engine.holds_references(binary, info)
        self._lock = threading.Lock()
        self._natives: dict[Variant, Handle] = {}
        self._function_types: dict[Variant, list[Handle | None]] = {}

    def native(self, variant: Variant) -> Handle:
        """Return the code of *variant*, compiled now on this thread if need be."""
        with self._lock:
            handle = self._natives.get(variant)
            if handle is None or not handle.ours:
                handle = compiling.new_module(self.engine.native(variant), self.linked)
                self._natives[variant] = handle
                self._function_types.pop(variant, None)
            return handle

    def has(self, variant: Variant) -> bool:
        """Whether the code of *variant* is there."""
        handle = self._natives.get(variant)
        return handle is not None and handle.ours

    def function_types(self, variant: Variant) -> list[Handle | None]:
        """Return the native types of the imported functions, by import."""
        types = self._function_types.get(variant)
        if types is None:
            types = compiling.imported_function_types(self.native(variant))
            self._function_types[variant] = types
        return types


class Engine:
    """
    Compile and run modules with one configuration.

    There is a default engine for the process; make another to compile differently or to
    keep tenants apart. An engine may be used from any thread and any event loop.

    Args:
        config: How to compile; the default configuration if omitted.
    """

    def __init__(self, config: EngineConfig | None = None) -> None:
        if config is not None and not isinstance(config, EngineConfig):
            raise TypeError(f"expected an EngineConfig, got {type(config).__name__}")
        self._config = config or EngineConfig()
        self._start()
        _engines.add(self)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._natives: dict[Variant, Handle] = {}
        self._closed = False
        self.leaving = False  # whether the process ends: nothing is polled on threads any more
        self._strict: Handle | None = None  # validates only; knows no exceptions and no objects
        self._artifacts: weakref.WeakValueDictionary[str, Artifact] = (
            weakref.WeakValueDictionary()
        )
        self._jobs: dict[object, Future[Artifact]] = {}
        self.ticker = Ticker()
        self.compilers = Threads("asyncwasm compiler", self._config.threads_to_compile)
        self.runners = Threads("asyncwasm runner", os.cpu_count() or 1)

    @property
    def config(self) -> EngineConfig:
        """The configuration."""
        return self._config

    @property
    def closed(self) -> bool:
        """Whether the engine has been closed."""
        return self._closed

    def close(self) -> None:
        """
        End the engine's threads; nothing new can be compiled or instantiated with it.

        Stores that exist go on to work, except that long awaited calls hold the event loop.
        """
        self._closed = True
        self.compilers.close()
        self.runners.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "ticker" in self.__dict__ and not sys.is_finalizing():
            self.compilers.close()
            self.runners.close()
            self.ticker.close()

    def __repr__(self) -> str:
        return f"<asyncwasm.Engine tier={self._config.tier!r}{' closed' * self._closed}>"

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError("the engine has been closed")

    def variant(self, fuel: bool) -> Variant:
        """Return the variant that the configuration asks for."""
        return Variant(self._config.tier == "baseline", fuel)

    def native(self, variant: Variant) -> Handle:
        """Return the native engine of *variant*."""
        with self._lock:
            handle = self._natives.get(variant)
            if handle is None:
                handle = self._natives[variant] = compiling.new_engine(
                    strategy=compiling.BASELINE if variant.baseline else compiling.OPTIMIZING,
                    fuel=variant.fuel,
                    max_wasm_stack_bytes=self._config.max_wasm_stack_bytes,
                    features=self._config.features,
                )
                self.ticker.add(handle)
            return handle

    def holds_references(self, binary: bytes, info: ModuleInfo) -> bool:
        """Return whether guests made of *binary* can hold references to objects on their stacks."""
        if any(type.kind != "func" for type in info.types) or _refers(info):
            return True
        # What is left is `catch_all_ref`, which needs no type.
        with self._lock:
            if self._strict is None:
                features = {**self._config.features, "exceptions": False, "gc": False}
                self._strict = compiling.new_engine(
                    strategy=compiling.OPTIMIZING,
                    fuel=False,
                    max_wasm_stack_bytes=self._config.max_wasm_stack_bytes,
                    features=features,
                )
        return not compiling.is_valid(self._strict, binary)

    def compile_now(self, binary: bytes) -> Artifact:
        """Compile on this thread."""
        self._check_open()
        return self._compile(binary)

    def compile_soon(self, read: Callable[[], bytes], identity: object) -> Future[Artifact]:
        """
        Compile what *read* returns on a compile thread.

        Requests with the same *identity*, and requests for the same bytes, compile once.
        """
        with self._lock:
            self._check_open()
            job = self._jobs.get(identity)
            if job is not None:
                return job
            job = self._jobs[identity] = Future()

        def work() -> None:
            try:
                job.set_result(self._compile(read()))
            except BaseException as exc:
                job.set_exception(exc)
            finally:
                with self._lock:
                    self._jobs.pop(identity, None)

        try:
            self.compilers.submit(work)
        except BaseException:
            with self._lock:
                self._jobs.pop(identity, None)
            raise
        return job

    def _compile(self, binary: bytes) -> Artifact:
        if len(binary) > self._config.max_module_bytes:
            raise CompileError(
                f"the module has {len(binary):,} bytes, the engine takes at most "
                f"{self._config.max_module_bytes:,}; raise EngineConfig.max_module_bytes"
            )
        digest = hashlib.sha256(binary).hexdigest()
        with self._lock:
            artifact = self._artifacts.get(digest)
            if artifact is not None:
                return artifact
            flight = self._jobs.get(digest)
            if flight is None:
                mine: Future[Artifact] = Future()
                self._jobs[digest] = mine
        if flight is not None:
            return flight.result()
        try:
            artifact = self._compile_alone(binary, digest)
        except BaseException as exc:
            mine.set_exception(exc)
            raise
        else:
            mine.set_result(artifact)
            return artifact
        finally:
            with self._lock:
                del self._jobs[digest]

    def _compile_alone(self, binary: bytes, digest: str) -> Artifact:
        started = perf_counter()
        variant = self.variant(fuel=False)
        # The compiler validates; only what is valid is decoded.
        handle = compiling.new_module(self.native(variant), binary)
        info = decode(binary)
        linked = _linkable(binary, info)
        artifact = Artifact(self, binary, digest, info, linked)
        if artifact.renamed:
            artifact.native(variant)
        else:
            artifact._natives[variant] = handle
        with self._lock:
            self._artifacts[digest] = artifact
        _log.event(
            "module_compiled",
            logging.INFO,
            bytes=len(binary),
            seconds=round(perf_counter() - started, 6),
            tier="baseline" if variant.baseline else "optimized",
            digest=digest,
        )
        return artifact


def _refers(info: ModuleInfo) -> bool:
    """Return whether a reference to an object can come into a module from outside."""
    types = [
        each
        for type in info.types
        if type.function is not None
        for each in (*type.function.parameters, *type.function.results)
    ]
    for declared in info.imports:
        if isinstance(declared.type, GlobalType):
            types.append(declared.type.value)
        elif isinstance(declared.type, TableType):
            types.append(declared.type.element)
    return any(type.is_reference and type.heap not in ("func", "nofunc") for type in types)


def _linkable(binary: bytes, info: ModuleInfo) -> bytes:
    """
    Return *binary* with unique import names where a name is imported more than once.

    The native linker holds one definition a name; in JS each import is read on its own.
    """
    names = [(each.module, each.name) for each in info.imports]
    if len(set(names)) == len(names):
        return binary
    from .._binary import rename_imports

    return rename_imports(binary, [("", str(index)) for index in range(len(names))])[0]


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_default: Engine | None = None
_default_lock = threading.Lock()


def default_engine() -> Engine:
    """Return the engine of this process."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Engine()
        return _default


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

"""Instantiation as an operation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter

from .. import _log
from .._errors import LinkError, RangeError, WasmError
from .._ffi.externs import Extern
from .._ffi.fiber import DONE, Fiber, State
from .._ffi.handles import Handle
from .._ffi.linking import Linker, instantiate_directly, instantiate_linked
from .._ffi.pooling import POOL_EMPTY
from .artifact import Artifact
from .host import HostFunction
from .operation import Operation
from .store import Store

# What the library says when a guest wants more than a store may hold, and the limit.
_LIMITS = {
    "exceeds memory limits": "memory_bytes",
    "exceeds table limits": "table_elements",
    "instance count too high": "instances",
    "table count too high": "tables",
    "memory count too high": "memories",
}


def instantiate_now(store: Store, artifact: Artifact) -> bytes | tuple[int, int]:
    """
    Instantiate what imports nothing and has no start function: nothing can run long or wait.

    Returns:
        The instance, or the error and the trap it has failed with.
    """
    started = perf_counter()
    native = artifact.native(store.variant)
    handle = store.handle
    with handle.lock:  # nobody else has met the store
        store.opened()
        store.admit(artifact)
        error, trap, instance = instantiate_directly(handle, native, ())
    if handle.pending:
        handle.close()
    if error or trap:
        return error, trap
    _created(artifact, started)
    return instance


def _created(artifact: Artifact, started: float) -> None:
    if not _log.heard():
        return
    _log.event(
        "instance_created",
        logging.DEBUG,
        digest=artifact.digest,
        seconds=round(perf_counter() - started, 6),
    )


class Instantiation(Operation):
    """
    Instantiate an artifact with one definition an import, and run its start function.

    Goes the direct way, in one poll, where nothing can run long or wait.
    """

    __slots__ = (
        "_artifact",
        "_definitions",
        "_instance",
        "_started",
        "found_pool_empty",
    )

    def __init__(
        self,
        store: Store,
        artifact: Artifact,
        definitions: Sequence[Extern | HostFunction],
    ) -> None:
        super().__init__(store)
        self._artifact = artifact
        self._definitions = definitions
        self._instance = b""
        self.found_pool_empty = False
        self._started = perf_counter()
        store.admit(artifact)

    def poll(self) -> State:
        store = self.store
        externs = [each for each in self._definitions if isinstance(each, Extern)]
        if (
            self.fiber is not None
            or store.asynchronous
            or self._artifact.info.start is not None
            or len(externs) != len(self._definitions)
        ):
            return super().poll()
        native = self._artifact.native(store.variant)
        with store.entered(self):
            handle = store.opened(self)
            error, trap, self._instance = instantiate_directly(handle, native, externs)
        if error or trap:
            raise self.failed(error, trap)
        return DONE

    def at_once(self) -> bytes:
        """
        Instantiate without taking turns; there is no start function, and nobody else in the store.

        So no import is called, and nothing can run long: it takes one step, or one poll.
        """
        store = self.store
        with store.entered():
            handle = store.opened()
            linked = self._linked()
            if linked is not None and store.direct and not handle.waitable:
                error, trap, self._instance = instantiate_linked(handle, linked[1])
            else:
                fiber = self._begin(linked)
                try:
                    while not fiber.poll(False):
                        pass
                    trap, error = fiber.outcome()
                    self._instance = fiber.payload(16)
                finally:
                    self.fiber = None
                    fiber.delete()
        if handle.pending:
            handle.close()
        if trap or error:
            raise self.failed(error, trap)
        return self.result()

    def start(self) -> Fiber:
        return self._begin(self._linked())

    def _begin(self, linked: tuple[Handle, Handle] | None) -> Fiber:
        store = self.store
        fiber = self.fiber = Fiber(store.handle, 16)
        if linked is not None:
            fiber.start_linked_instantiation(linked[1].pointer, linked)
        else:
            native = self._artifact.native(store.variant)
            linker = self._linker()
            fiber.start_instantiation(linker.pointer, native.pointer, (linker, native))
        if self._artifact.info.start is not None:
            store.make_waitable()
        return fiber

    def _linked(self) -> tuple[Handle, Handle] | None:
        """
        Return the code, and the same linked with its imports, which are known to the store then.

        None if it cannot be shared: unless they are host functions, numbered from 0.
        """
        store, artifact = self.store, self._artifact
        hosts = [each for each in self._definitions if isinstance(each, HostFunction)]
        if store.hosts or len(hosts) != len(self._definitions):
            return None
        native = artifact.native(store.variant)
        linked = artifact.links.get(store.variant)
        if linked is None or linked[0] is not native:
            linked = artifact.links[store.variant] = native, self._linker().link(native)
        else:
            for host in hosts:
                store.add_host(host)
        return linked

    def _linker(self) -> Linker:
        store, artifact = self.store, self._artifact
        types = artifact.function_types(store.variant)
        linker = Linker(store.handle.engine)
        for index, definition in enumerate(self._definitions):
            declared = artifact.info.imports[index]
            module, name = (
                ("", str(index)) if artifact.renamed else (declared.module, declared.name)
            )
            if isinstance(definition, Extern):
                linker.define(module, name, store.handle, definition)
            else:
                native_type = types[index]
                assert native_type is not None
                number, plain = store.add_host(definition), definition.plain is not None
                linker.define_host(module, name, native_type, number, plain=plain)
        return linker

    def outcome(self) -> None:
        assert self.fiber is not None
        trap, error = self.fiber.outcome()
        if trap or error:
            raise self.failed(error, trap)

    def failed(self, error: int, trap: int) -> BaseException:
        """Return the exception for what the library has failed with."""
        return self.store.failure(error, trap, self.describe(), self._refused)

    def _refused(self, message: str) -> WasmError:
        """Return the error for what the library has refused to instantiate."""
        if message.startswith(POOL_EMPTY):
            self.found_pool_empty = True
            return RangeError(message)
        for index, declared in enumerate(self._artifact.info.imports):
            names = ("", str(index)) if self._artifact.renamed else declared[:2]
            if message.startswith("incompatible import type for `{}::{}`".format(*names)):
                return LinkError(
                    message, module=declared.module, name=declared.name, expected=declared.type
                )
        if "import" in message:
            return LinkError(message)
        limits = self.store.limits
        for text, name in _LIMITS.items():
            if text in message and getattr(limits, name) is not None:
                message += f"; the store has Limits({name}={getattr(limits, name)})"
        return RangeError(message)

    def result(self) -> bytes:
        if self.fiber is not None:
            self.outcome()
            self._instance = self.fiber.payload(16)
        _created(self._artifact, self._started)
        return self._instance

    def describe(self) -> str:
        return "instantiation"

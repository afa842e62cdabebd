"""Instantiation as an operation."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from .. import _log
from .._errors import LinkError, RangeError, WasmError
from .._ffi.externs import Extern
from .._ffi.fiber import DONE, Fiber, State
from .._ffi.handles import FAR, Handle
from .._ffi.linking import Linker, instantiate_directly, instantiate_linked
from .._ffi.pooling import POOL_EMPTY
from .artifact import Artifact
from .exceptions import failure
from .host import HostFunction
from .operation import Operation
from .store import StoreCore

# What the library says when a guest wants more than a store may hold, and the limit.
_LIMITS = {
    "exceeds memory limits": "memory_bytes",
    "exceeds table limits": "table_elements",
    "instance count too high": "instances",
    "table count too high": "tables",
    "memory count too high": "memories",
}


def instantiate_now(
    store: StoreCore, artifact: Artifact, hosts: Sequence[HostFunction] = ()
) -> bytes | tuple[int, int]:
    """
    Instantiate what has no start function, and imports only *hosts*, which are plain, in a new store.

    Nothing can run long or wait, nobody else has met the store, and no stack is needed.

    Returns:
        The instance, or the error and the trap it has failed with.
    """
    started = perf_counter()
    handle = store.handle
    with handle.lock:
        store.opened()
        store.admit(artifact)
        if hosts:
            error, trap, instance = instantiate_linked(handle, _linked(store, artifact, hosts)[1])
        else:
            native = artifact.native(store.variant)
            error, trap, instance = instantiate_directly(handle, native, ())
    if handle.pending:
        handle.close()
    if error or trap:
        return error, trap
    created(artifact, started)
    return instance


def _linked(
    store: StoreCore, artifact: Artifact, hosts: Sequence[HostFunction]
) -> tuple[Handle, Handle]:
    """
    Return the code, and the same linked with its imports: *hosts*, which are given to the store.

    It is the same for every store that has had none, in which they are numbered from 0.
    """
    native = artifact.native(store.variant)
    linked = artifact.links.get(store.variant)
    store.add_hosts(hosts)
    if linked is None or linked[0] is not native:
        linker = Linker(store.handle.engine)
        for number, host in enumerate(hosts):
            _define(linker, store, artifact, number, host, number)
        linked = artifact.links[store.variant] = native, linker.link(native)
    return linked


def _define(
    linker: Linker,
    store: StoreCore,
    artifact: Artifact,
    index: int,
    definition: Extern | HostFunction,
    number: int,
) -> None:
    """Define import *index*, with the *number* that it has if it is a host function."""
    declared = artifact.info.imports[index]
    module, name = ("", str(index)) if artifact.renamed else (declared.module, declared.name)
    if isinstance(definition, Extern):
        linker.define(module, name, store.handle, definition)
        return
    type = artifact.function_types(store.variant)[index]
    assert type is not None
    linker.define_host(module, name, type, number, plain=definition.plain is not None)


def created(artifact: Artifact, started: float) -> None:
    """Say that an instance of *artifact* has been made, to whoever listens."""
    if not _log.heard():
        return
    _log.event(
        "instance_created",
        _log.DEBUG,
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
        store: StoreCore,
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
            if handle.soon:  # on no fiber, it could not yield
                handle.set_deadline(FAR)
            error, trap, self._instance = instantiate_directly(handle, native, externs)
        if error or trap:
            raise self.failed(error, trap)
        return DONE

    def at_once(self) -> bytes:
        """
        Instantiate without taking turns; there is no start function, and nobody else in the store.

        So no import is called, and nothing can run long: it takes one poll.
        """
        store = self.store
        with store.entered():
            handle = store.opened()
            fiber = self.start()
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
        store, artifact = self.store, self._artifact
        hosts = [each for each in self._definitions if isinstance(each, HostFunction)]
        fiber = self.fiber = Fiber(store.handle, 16)
        if not store.hosts and len(hosts) == len(self._definitions):
            linked = _linked(store, artifact, hosts)
            fiber.start_linked_instantiation(linked[1].pointer, linked)
        else:
            number = store.add_hosts(hosts)
            linker = Linker(store.handle.engine)
            for index, definition in enumerate(self._definitions):
                _define(linker, store, artifact, index, definition, number)
                if not isinstance(definition, Extern):
                    number += 1
            native = artifact.native(store.variant)
            fiber.start_instantiation(linker.pointer, native.pointer, (linker, native))
        if artifact.info.start is not None:
            store.make_waitable()
        return fiber

    def outcome(self) -> None:
        assert self.fiber is not None
        trap, error = self.fiber.outcome()
        if trap or error:
            raise self.failed(error, trap)

    def failed(self, error: int, trap: int) -> BaseException:
        """Return the exception for what the library has failed with."""
        return failure(self.store, error, trap, self.describe(), self._refused)

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
        created(self._artifact, self._started)
        return self._instance

    def describe(self) -> str:
        return "instantiation"

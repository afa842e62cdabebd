"""Instantiation as an operation."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from time import perf_counter

from .. import _log
from .._errors import LinkError
from .._ffi.externs import Extern
from .._ffi.fiber import ARGUMENTS, Fiber
from .._ffi.linking import Linker, instantiate_directly
from .engine import Artifact
from .operation import DONE, Operation, State
from .store import HostFunction, Store


_INCOMPATIBLE = re.compile(r"incompatible import type for `(.*?)::(.*?)`", re.DOTALL)


class Instantiation(Operation):
    """
    Instantiate an artifact with one definition an import, and run its start function.

    Goes the direct way, in one poll, where nothing can run long or wait.
    """

    __slots__ = ("_artifact", "_definitions", "_instance", "_started")

    def __init__(
        self, store: Store, artifact: Artifact, definitions: Sequence[Extern | HostFunction]
    ) -> None:
        super().__init__(store)
        self._artifact = artifact
        self._definitions = definitions
        self._instance = b""
        self._started = perf_counter()
        if artifact.holds_references:
            store.handle.guarded = True

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
        with store.entered(self) as handle:
            error, trap, self._instance = instantiate_directly(handle, native, externs)
        if error or trap:
            raise self._failure(error, trap)
        return DONE

    def start(self) -> Fiber:
        store, artifact = self.store, self._artifact
        native = artifact.native(store.variant)
        types = artifact.function_types(store.variant)
        linker = Linker(store.handle)
        for index, definition in enumerate(self._definitions):
            declared = artifact.info.imports[index]
            module, name = (
                ("", str(index)) if artifact.renamed else (declared.module, declared.name)
            )
            if isinstance(definition, Extern):
                linker.define(module, name, definition)
            else:
                native_type = types[index]
                assert native_type is not None
                linker.define_host(module, name, native_type, store.add_host(definition))
        fiber = Fiber(store.handle, 16)
        fiber.start_instantiation(linker.pointer, native.pointer, (linker, native))
        self.fiber = fiber
        return fiber

    def outcome(self) -> None:
        assert self.fiber is not None
        trap, error = self.fiber.outcome()
        if trap or error:
            raise self._failure(error, trap)

    def _failure(self, error: int, trap: int) -> BaseException:
        exc = self.store.failure(error, trap, self.describe(), LinkError)
        if isinstance(exc, LinkError):
            found = _INCOMPATIBLE.match(str(exc))
            for index, declared in enumerate(self._artifact.info.imports):
                names = ("", str(index)) if self._artifact.renamed else declared[:2]
                if found is not None and found.groups() == names:
                    exc.module, exc.name, exc.expected = declared.module, declared.name, declared.type
        return exc

    def result(self) -> bytes:
        if self.fiber is not None:
            self.outcome()
            self._instance = bytes(self.fiber.memory[ARGUMENTS : ARGUMENTS + 16])
        _log.event(
            "instance_created",
            logging.DEBUG,
            digest=self._artifact.digest,
            seconds=round(perf_counter() - self._started, 6),
        )
        return self._instance

    def describe(self) -> str:
        return "instantiation"

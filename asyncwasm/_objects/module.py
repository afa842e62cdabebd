"""Modules: compiled once, used everywhere."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from .._binary import custom_sections
from .._runtime.artifact import Artifact
from .._runtime.blueprint import Blueprint
from .._runtime.engine import engine_for
from .._types import ExportDescriptor, ImportDescriptor
from . import guard
from .builtins import Builtin
from .conversions import Source, measured, source_reader
from .engine import Engine, core_or_default
from .options import NO_OPTIONS, CompileOptions


class Module:
    """
    A compiled module.

    This constructor compiles on the calling thread; it is for scripts, and for when
    synchronous work is absolutely required. Otherwise use ``await asyncwasm.compile(source)``.
    A module is immutable, usable from any thread and event loop, and pickles as its bytes.

    Args:
        source: A complete wasm binary, or the path of one.
        engine: Engine to compile for; the process-wide default if omitted.
        builtins: Names of the builtin sets to import from, such as ``"js-string"``; names of
            unknown sets are ignored.
        imported_string_constants: The import module whose globals are strings, each with its
            own name as its value.
    Raises:
        CompileError: If *source* is not a valid module; `offset` tells where. If a set is named
            twice, or an import has another type than the builtin or constant that is there for it.
        LargeModuleError: If it is above the guard's limit, and the guard is set to "error".
        TypeError: If *source* is neither bytes-like nor a path, or an option has the wrong type.
        ClosedResourceError: If the engine has been closed.
    Spec: https://webassembly.github.io/spec/js-api/#dom-module-module
    """

    __slots__ = ("__dict__", "__weakref__", "_artifact", "_blueprint", "_options", "_provided")

    _artifact: Artifact
    _blueprint: Blueprint | None  # of the instances made last
    _options: CompileOptions
    _provided: Mapping[int, Builtin | str]  # what the options satisfy, by the import's position

    def __init__(
        self,
        source: Source,
        /,
        *,
        engine: Engine | None = None,
        builtins: Iterable[str] = (),
        imported_string_constants: str | None = None,
    ) -> None:
        read, _ = source_reader(source)
        read, size = measured(read)
        options = CompileOptions.read(builtins, imported_string_constants)
        chosen = core_or_default(engine)
        guard.check_module(size, "Module()", "`await asyncwasm.compile(...)`")
        self._setup(chosen.compile_now(read), options)

    @classmethod
    def _from_artifact(cls, artifact: Artifact, options: CompileOptions = NO_OPTIONS) -> Module:
        self = cls.__new__(cls)
        self._setup(artifact, options)
        return self

    def _setup(self, artifact: Artifact, options: CompileOptions) -> None:
        self._artifact = artifact
        self._blueprint = None
        self._options = options
        self._provided = {} if options == NO_OPTIONS else options.provide(artifact.info)

    @property
    def byte_length(self) -> int:
        """Size of the binary in bytes."""
        return len(self._artifact.source)

    @property
    def digest(self) -> str:
        """SHA-256 of the binary, in hexadecimal digits."""
        return self._artifact.digest

    @property
    def tier(self) -> str:
        """``"baseline"`` or ``"optimized"``: which compiler makes the code for new instances."""
        return "baseline" if self._artifact.variant(False).baseline else "optimized"

    def optimized(self) -> Coroutine[Any, Any, Module]:
        """
        Wait until new instances get optimized code.

        Done at once if they do already, and if the engine's tier is ``"baseline"``: such an
        engine optimizes nothing.

        Returns:
            The module itself.
        Raises:
            CompileError: If optimizing has failed; instances go on to get baseline code.
            ClosedResourceError: If the engine was closed before optimizing began.
        Cancellation: The wait ends at once; optimizing goes on.
        """
        return self._wait_optimized(self)

    _wait_optimized: Callable[[Module], Coroutine[Any, Any, Module]]

    @property
    def engine(self) -> Engine:
        """The engine that the module was compiled for."""
        return Engine._of(self._artifact.engine)

    def exports(self) -> list[ExportDescriptor]:
        """
        Return what the module exports, in declaration order.

        Returns:
            A new list at each call.
        Spec: https://webassembly.github.io/spec/js-api/#dom-module-exports
        """
        _check(self)
        return [
            ExportDescriptor(each.name, each.kind, each.type)
            for each in self._artifact.info.exports
        ]

    def imports(self) -> list[ImportDescriptor]:
        """
        Return what the module imports, in declaration order.

        What builtins and string constants satisfy is left out.

        Returns:
            A new list at each call.
        Spec: https://webassembly.github.io/spec/js-api/#dom-module-imports
        """
        _check(self)
        return [
            ImportDescriptor(each.module, each.name, each.kind, each.type)
            for index, each in enumerate(self._artifact.info.imports)
            if index not in self._provided
        ]

    def custom_sections(self, name: str, /) -> list[bytes]:
        """
        Return the contents of the custom sections called *name*, in order.

        Raises:
            TypeError: If *name* is no str.
        Spec: https://webassembly.github.io/spec/js-api/#dom-module-customsections
        """
        _check(self)
        if not isinstance(name, str):
            raise TypeError(f"expected a str, got {type(name).__name__}")
        return custom_sections(self._artifact.source, name)

    def __repr__(self) -> str:
        name = self._artifact.info.name
        shown = "" if name is None else f" {name!r}"
        return f"<asyncwasm.Module{shown} {self.byte_length:,} bytes {self.digest[:12]}>"

    def __reduce__(self) -> Any:
        artifact = self._artifact
        return _unpickle, (
            type(self),
            artifact.binary,
            artifact.engine.config,
            tuple(self._options),
        )

    def __copy__(self) -> Module:
        return self  # immutable

    def __deepcopy__(self, memo: object) -> Module:
        return self


def _check(module: object) -> None:
    if not isinstance(module, Module):
        raise TypeError(f"expected a Module, got {type(module).__name__}")


def _unpickle(
    cls: type[Module], binary: bytes, config: Any, options: tuple[Any, ...] = ()
) -> Module:
    return cls._from_artifact(
        engine_for(config).compile_now(lambda: binary), CompileOptions(*options)
    )

"""Compile options: what a module's imports are satisfied with, besides the import object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .._binary import Import, ModuleInfo
from .._errors import CompileError
from .._types import GlobalType, ValueType
from .builtins import SETS, Builtin


class CompileOptions(NamedTuple):
    """
    The options of one module, read but not yet checked against its imports.

    Spec: https://webassembly.github.io/spec/js-api/#dictdef-webassemblycompileoptions
    """

    builtins: tuple[str, ...] = ()
    imported_string_constants: str | None = None

    @classmethod
    def read(cls, builtins: Iterable[str], imported_string_constants: str | None) -> CompileOptions:
        """
        Return the options, or raise TypeError where one is not what it should be.

        *builtins* is gone through now, once.
        """
        if isinstance(builtins, (str, bytes)) or not isinstance(builtins, Iterable):
            raise TypeError(f"expected an iterable of names for builtins, got {builtins!r}")
        names = tuple(builtins)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"expected names for builtins, got {type(name).__name__}")
        if not isinstance(imported_string_constants, (str, type(None))):
            raise TypeError(
                "expected the name of a module or None for imported_string_constants, "
                f"got {type(imported_string_constants).__name__}"
            )
        return cls(names, imported_string_constants)

    def fit(self, info: ModuleInfo) -> bool:
        """Return whether the imports of a module can take what the options provide."""
        try:
            self.provide(info)
        except CompileError:
            return False
        return True

    def provide(self, info: ModuleInfo) -> Mapping[int, Builtin | str]:
        """
        Return what satisfies imports, by their position: a builtin, or a constant's text.

        Raises:
            CompileError: If a set is named twice, or an import cannot take what is there for it.
        Spec: https://webassembly.github.io/spec/js-api/#validate-builtins-and-imported-string-for-a-webassembly-module
        """
        if len(set(self.builtins)) != len(self.builtins):
            raise CompileError(f"a builtin set is named twice in {', '.join(self.builtins)}")
        sets = {f"wasm:{name}": SETS.get(f"wasm:{name}", {}) for name in self.builtins}
        provided: dict[int, Any] = {}
        for index, declared in enumerate(info.imports):
            if declared.module == self.imported_string_constants:
                type = declared.type
                if not isinstance(type, GlobalType) or type not in _CONSTANTS:
                    raise _mismatch(declared, "a constant global of type (ref extern)")
                provided[index] = declared.name
                continue
            builtin = sets.get(declared.module, {}).get(declared.name)
            if builtin is not None:
                if not builtin.matches(info, declared):
                    raise _mismatch(
                        declared,
                        f"a function of type {builtin}, final and in a recursion group of its own",
                    )
                provided[index] = builtin
        return provided


NO_OPTIONS = CompileOptions()

_CONSTANTS = (GlobalType(ValueType("externref")), GlobalType(ValueType("(ref extern)")))


def _mismatch(declared: Import, expected: str) -> CompileError:
    name = declared.name if len(declared.name) <= 40 else declared.name[:37] + "..."
    return CompileError(
        f"import {declared.module!r} {name!r}: expected {expected}, "
        f"got a {declared.kind} of type {declared.type}"
    )

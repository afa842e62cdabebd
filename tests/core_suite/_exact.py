"""
Looks at values from inside wasm, where Python cannot see them.

An f32 signalling NaN becomes a quiet one as a Python float, and an exnref does not cross at
all. Calls that have one among their arguments or results go through a small module that
passes f32 as the i32 with the same bits, and a null exnref as the number 1. Which kind of
object a `GCObject` is, is asked of wasm in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncwasm as aw

from ._values import (
    Constant,
    Either,
    HostReference,
    Lane,
    Null,
    Number,
    Pattern,
    to_python,
)

_PROBE: Final = """
(module
  (func (export "struct") (param anyref) (result i32)
    (ref.test (ref struct) (local.get 0)))
  (func (export "array") (param anyref) (result i32)
    (ref.test (ref array) (local.get 0))))
"""


def is_exception(type: str) -> bool:
    """Whether values of *type* are exception references, null ones included."""
    return type in ("exnref", "nullexnref") or type.endswith((" exn)", " noexn)"))


def needs_wasm(patterns: Sequence[Pattern]) -> bool:
    """Whether there is one among *patterns* that can only be seen from inside wasm."""
    return any(
        needs_wasm(pattern.patterns)
        if isinstance(pattern, Either)
        else isinstance(pattern, Number) and pattern.hidden
        for pattern in patterns
    )


def wrap(type: aw.FunctionType) -> str:
    """
    Return the text of a module that imports a function of *type* as ``"" "f"``.

    Its export ``"f"`` takes and gives i32 for f32, takes nothing for an exception reference
    (and passes null), and gives whether it is null.
    """
    parameters, results = type.parameters, type.results
    body: list[str] = []
    taken: list[str] = []
    for kind in parameters:
        if is_exception(kind):
            body.append("ref.null noexn")
            continue
        body.append(f"local.get {len(taken)}")
        taken.append("i32" if kind == "f32" else str(kind))
        if kind == "f32":
            body.append("f32.reinterpret_i32")
    body.append("call $f")
    body += [f"local.set {len(taken) + index}" for index in reversed(range(len(results)))]
    given: list[str] = []
    for index, kind in enumerate(results):
        body.append(f"local.get {len(taken) + index}")
        plain = not (kind == "f32" or is_exception(kind))
        given.append(str(kind) if plain else "i32")
        if not plain:
            body.append("i32.reinterpret_f32" if kind == "f32" else "ref.is_null")
    return f"""
(module
  (import "" "f" (func $f {_group("param", parameters)} {_group("result", results)}))
  (func (export "f") {_group("param", taken)} {_group("result", given)} {_group("local", results)}
    {" ".join(body)}))
"""


def _group(keyword: str, types: Sequence[str]) -> str:
    return f"({keyword} {' '.join(types)})"


def arguments(constants: Sequence[Constant], type: aw.FunctionType) -> list[object]:
    """Return the arguments that a wrapped function of *type* takes for *constants*."""
    given: list[object] = []
    for constant, kind in zip(constants, type.parameters, strict=True):
        if is_exception(kind):
            continue
        if isinstance(constant, Number) and constant.type == "f32":
            constant = Number("i32", constant.lanes)
        given.append(to_python(constant))
    return given


def translate(pattern: Pattern, type: str) -> Pattern:
    """
    Return what *pattern*, of a result of *type*, is for the wrapped function.

    Raises:
        ValueError: If no result of *type* can match it.
    """
    if isinstance(pattern, Either):
        return Either(tuple(translate(choice, type) for choice in pattern.patterns))
    if isinstance(pattern, Number):
        if pattern.type != type:
            raise ValueError(f"expected {pattern}, the function gives {type}")
        return Number("i32", pattern.lanes) if type == "f32" else pattern
    if is_exception(type):
        return Number("i32", (Lane(32, isinstance(pattern, Null)),))
    return pattern


class Probe:
    """Tells what references are; the wasm it needs lives in *store*."""

    def __init__(self, store: aw.Store, engine: aw.Engine) -> None:
        self._store = store
        self._engine = engine
        self._instance: aw.Instance | None = None

    def kind_of(self, value: object) -> str:
        """Return ``i31``, ``struct``, ``array``, ``func`` or ``host``."""
        if isinstance(value, aw.ExportedFunction):
            return "func"
        if isinstance(value, int) and not isinstance(value, bool):
            return "i31" if -(2**30) <= value < 2**30 else "out of range for i31"
        if isinstance(value, HostReference):
            return "host"
        if not isinstance(value, aw.GCObject):
            return type(value).__name__
        if self._instance is None:
            module = aw.Module(aw.wat2wasm(_PROBE), engine=self._engine)
            self._instance = aw.Instance(module, store=self._store)
        tests = self._instance.exports
        kinds = [name for name, test in tests.items() if callable(test) and test(value)]
        return " and ".join(kinds) or "GCObject"

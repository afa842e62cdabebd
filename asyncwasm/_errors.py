"""
The exception tree. Constructors take facts, and keep them as attributes.

Guarantee: every error here survives pickling with its attributes and notes.
"""

from __future__ import annotations

import enum
from typing import Any, Literal, NamedTuple


class TrapCode(enum.IntEnum):
    """Why a guest trapped, with wasmtime's names and numbers."""

    STACK_OVERFLOW = 0
    MEMORY_OUT_OF_BOUNDS = 1
    HEAP_MISALIGNED = 2
    TABLE_OUT_OF_BOUNDS = 3
    INDIRECT_CALL_TO_NULL = 4
    BAD_SIGNATURE = 5
    INTEGER_OVERFLOW = 6
    INTEGER_DIVISION_BY_ZERO = 7
    BAD_CONVERSION_TO_INTEGER = 8
    UNREACHABLE = 9
    INTERRUPT = 10
    OUT_OF_FUEL = 11
    ATOMIC_WAIT_NON_SHARED_MEMORY = 12
    NULL_REFERENCE = 13
    ARRAY_OUT_OF_BOUNDS = 14
    ALLOCATION_TOO_LARGE = 15
    CAST_FAILURE = 16
    UNHANDLED_TAG = 19
    CONTINUATION_ALREADY_CONSUMED = 20
    DISABLED_OPCODE = 21
    UNCAUGHT_EXCEPTION = 49


class Frame(NamedTuple):
    """
    One wasm frame of a backtrace, innermost first.

    `module` is the module's own name or None; `function` its name from the name section,
    else its index as text; `offset` counts bytes from the start of the binary, None if unknown.
    """

    module: str | None
    function: str
    offset: int | None

    def __str__(self) -> str:
        where = "" if self.offset is None else f" at 0x{self.offset:x}"
        return f"{self.module or 'wasm'}.{self.function}{where}"


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], facts: dict[str, Any]) -> Any:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(facts)
    return error


class WasmError(Exception):
    """
    Base of everything asyncwasm raises about a module or a guest.

    Spec: https://webassembly.github.io/spec/js-api/#error-objects
    """

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.args, self.__dict__)


class CompileError(WasmError):
    """
    The bytes are no valid WebAssembly module, or the text no valid text.

    `offset` is the position in the binary where validation failed, or None.

    Spec: https://webassembly.github.io/spec/js-api/#exceptiondef-compileerror
    """

    def __init__(self, message: str = "", offset: int | None = None) -> None:
        super().__init__(message)
        self.offset = offset


class LinkError(WasmError):
    """
    An import has the wrong kind or type, is missing, or lives in another store.

    `module` and `name` say which import, `expected` and `actual` what was declared and given.

    Spec: https://webassembly.github.io/spec/js-api/#exceptiondef-linkerror
    """

    def __init__(
        self,
        message: str = "",
        *,
        module: str | None = None,
        name: str | None = None,
        expected: object = None,
        actual: object = None,
    ) -> None:
        super().__init__(message)
        self.module = module
        self.name = name
        self.expected = expected
        self.actual = actual


class RangeError(WasmError, ValueError):
    """A size or a limit is out of the range that the API, a type or the engine allows."""


class TableIndexError(RangeError, IndexError):
    """An index is not below the length of the table."""


class Trap(WasmError, RuntimeError):
    """
    The guest trapped; the counterpart of ``WebAssembly.RuntimeError``.

    `code` is a `TrapCode`, or None for a trap the host made; `frames` the wasm backtrace,
    innermost first. A guest can never catch a trap.

    Spec: https://webassembly.github.io/spec/js-api/#exceptiondef-runtimeerror
    """

    def __init__(
        self, message: str = "", code: TrapCode | None = None, frames: tuple[Frame, ...] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.frames = tuple(frames)


class StackOverflow(Trap, RecursionError):
    """The guest's calls nested too deeply for its stack."""

    def __init__(
        self,
        message: str = "call stack exhausted",
        code: TrapCode | None = TrapCode.STACK_OVERFLOW,
        frames: tuple[Frame, ...] = (),
    ) -> None:
        super().__init__(message, code, frames)


InterruptReason = Literal["fuel", "deadline", "closed"]


class Interrupted(Trap):
    """The guest was stopped from outside: `reason` is "fuel", "deadline" or "closed"."""

    def __init__(
        self,
        reason: InterruptReason,
        message: str = "",
        code: TrapCode | None = TrapCode.INTERRUPT,
        frames: tuple[Frame, ...] = (),
    ) -> None:
        super().__init__(message or _INTERRUPTIONS[reason], code, frames)
        self.reason: InterruptReason = reason


_INTERRUPTIONS = {
    "fuel": "all fuel consumed; give the store more with `store.fuel = ...`",
    "deadline": "the guest ran longer than the store's sync_deadline_seconds",
    "closed": "the store was closed while the guest ran",
}


class SuspendError(WasmError):
    """
    A Suspending import was reached from a call that cannot wait.

    Await the export with ``call_async`` instead of calling it.

    Spec: https://webassembly.github.io/js-promise-integration/js-api/#exceptiondef-suspenderror
    """


class LargeModuleError(WasmError):
    """A synchronous constructor was given a module above the guard's limit."""


class LargeModuleWarning(UserWarning):
    """A synchronous constructor was given a module above the guard's limit."""


class BlockingCallWarning(UserWarning):
    """A synchronous call of an export held a running event loop for too long."""

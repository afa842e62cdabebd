"""Host functions: Python callables that guests can call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from .._errors import SuspendError
from .._ffi.codec import Row, row
from .._ffi.direct import plain_host
from .._types import FunctionType


def crosses_not(type: FunctionType) -> bool:
    """Return whether a value of the function's type cannot cross between wasm and Python."""
    return any(each.heap in ("exn", "noexn") for each in (*type.parameters, *type.results))


def cannot_cross(type: FunctionType) -> TypeError:
    """Return the error for a call of such a function."""
    return TypeError(f"exception references cannot cross between wasm and Python: {type}")


class HostShape:
    """What the host functions of one import, or of one type, have in common."""

    __slots__ = ("concrete_results", "name", "numeric", "parameters", "refused", "results")

    def __init__(self, type: FunctionType, name: str, concrete_results: Sequence[int] = ()) -> None:
        self.name = name
        self.parameters: Row = row(type.parameters)
        self.results: Row = row(type.results)
        self.numeric = self.parameters.numeric and self.results.numeric
        self.refused = crosses_not(type)
        self.concrete_results = concrete_results  # kinds of concrete references among the results


class HostFunction:
    """A Python callable that guests can call."""

    __slots__ = (
        "callable",
        "concrete_results",
        "name",
        "numeric",
        "parameters",
        "plain",
        "refused",
        "results",
        "suspending",
    )

    def __init__(self, callable: Callable[..., Any], shape: HostShape, suspending: bool) -> None:
        self.callable = callable
        self.parameters = shape.parameters
        self.results = shape.results
        self.suspending = suspending
        self.name = shape.name
        self.numeric = shape.numeric
        self.refused = shape.refused
        self.concrete_results = shape.concrete_results
        # The accelerator's form, None if it has none.
        self.plain: Any = plain_host(callable, shape.parameters, shape.results, suspending)

    def reached(self) -> SuspendError:
        """Return the error for a suspending function that a synchronous call has reached."""
        return SuspendError(
            f"{self.name} suspends, and was reached from a synchronous call; "
            "await the export with call_async, or use `await asyncwasm.instantiate(...)` "
            "if it was the start function"
        )

    def result_values(self, value: Any) -> Sequence[Any]:
        """Return *value* as one value a result type."""
        wanted = len(self.results.types)
        if wanted == 1:
            return (value,)
        try:
            values = tuple(value)
        except TypeError:
            raise TypeError(
                f"{self.name} has {wanted} results, so it must return an iterable, "
                f"got {type(value).__name__}"
            ) from None
        if len(values) != wanted:
            raise TypeError(f"{self.name} has {wanted} results, got {len(values)}")
        return values

    def checked(self, value: Any) -> Any:
        """Return the result of a function that is not suspending; a coroutine is an error."""
        if inspect.iscoroutine(value):
            value.close()
            raise TypeError(
                f"{self.name} returned a coroutine; wrap the callable with asyncwasm.Suspending, "
                "or define it with `async def`"
            )
        return value

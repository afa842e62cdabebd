"""
Functions: what instances export, and Python callables as wasm functions.

Rule 1: one Python object for one wasm function of a store; the store's cache decides.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from time import perf_counter
from typing import Any

from .._errors import Interrupted, SuspendError, Trap
from .._ffi.accelerator import speedups
from .._ffi.codec import KIND_ANY, KIND_FUNC, NUMBERS, Row, row, wrong_count
from .._ffi.direct import (
    Direct,
    call_prepared,
    greenlets_switch,
    has_stack,
    opening,
)
from .._ffi.externs import Extern, function_identity
from .._ffi.fiber import Fiber, Request
from .._ffi.quick import Quick, not_quick, quick_call, quick_reference_call
from .._runtime import exceptions
from .._runtime.host import HostFunction, HostShape, cannot_cross, crosses_not
from .._runtime.hostcall import HostCall, innermost
from .._runtime.operation import Call
from .._runtime.running import run
from .._runtime.store import StoreCore
from .._types import FunctionType, ValueType, function_type
from . import guard
from .store import Store, ambient_or
from .storeobject import StoreObject


class Suspending:
    """
    Mark an import whose result is awaited while the guest is suspended.

    Functions defined with ``async def`` are suspending by themselves; use this for callables
    that return an awaitable without looking like it.

    Args:
        callable: What the guest calls.
    Raises:
        TypeError: If *callable* is not callable, or is an exported function.
    Spec: https://webassembly.github.io/js-promise-integration/js-api/#suspending-objects
    """

    __slots__ = ("callable",)

    def __init__(self, callable: Callable[..., Any], /) -> None:
        if not _is_callable(callable) or isinstance(callable, ExportedFunction):
            raise TypeError(f"expected a Python callable, got {type(callable).__name__}")
        self.callable = callable

    def __repr__(self) -> str:
        return f"asyncwasm.Suspending({self.callable!r})"


def _is_callable(value: object) -> bool:
    return callable(value)


def is_suspending(callable: Callable[..., Any]) -> bool:
    """Return whether *callable*, or what it wraps, is defined with ``async def``."""
    if callable.__class__ is types.FunctionType and not callable.__dict__:  # wrapped, or marked
        return bool(callable.__code__.co_flags & inspect.CO_COROUTINE)
    while isinstance(callable, partial):
        callable = callable.func
    if inspect.iscoroutinefunction(callable) or isinstance(callable, PromisingFunction):
        return True
    if isinstance(getattr(callable, "__self__", None), ExportedFunction):
        return getattr(callable, "__name__", "") == "call_async"
    return not inspect.isroutine(callable) and inspect.iscoroutinefunction(
        getattr(type(callable), "__call__", None)
    )


def host_function(value: Any, shape: HostShape) -> HostFunction:
    """Return the host function for an imported callable or Suspending."""
    if isinstance(value, Suspending):
        return HostFunction(value.callable, shape, True)
    return HostFunction(value, shape, is_suspending(value))


class Shape:
    """What all functions of one type have in common; worth keeping where many are made."""

    __slots__ = (
        "concrete",
        "direct",
        "export",
        "lengthy",
        "name",
        "opening",
        "parameters",
        "refused",
        "results",
        "type",
    )

    def __init__(
        self,
        type: FunctionType,
        concrete: Sequence[int] = (),
        name: str = "",
        exported_as: str | None = None,
    ) -> None:
        self.type = type
        self.name = name  # that they begin with
        self.concrete = concrete  # kinds of concrete references among the parameters
        self.refused = crosses_not(type)
        self.parameters: Row = row(type.parameters)
        self.results: Row = row(type.results)
        self.direct = self.parameters.numeric and self.results.numeric
        self.opening = opening(self.parameters, self.results) if self.direct else None
        self.lengthy = 0  # above it while awaited calls of the function take long
        # What `Direct._exported` takes; None if there is nothing to take it.
        self.export: tuple[Any, ...] | None = None
        if exported_as is not None and speedups is not None and self.opening is not None:
            self.export = (exported_as.encode(), *self.opening, self, name)

    def quick(self, store: StoreCore, raw: tuple[int, int], name: str) -> Quick:
        """Return what runs the first slice of a call of such a function."""
        if self.refused:
            return not_quick
        handle, clock = store.handle, store.engine.ticker.clock
        # Nothing in it holds the function, or both were a cycle.
        failed = partial(_failure, store, name)
        if self.direct:
            return quick_call(
                handle, raw, self.parameters, self.results, clock, failed, store.plain_hosts
            )
        return quick_reference_call(
            handle,
            raw,
            self.parameters,
            self.results,
            self.concrete,
            clock,
            failed,
            store.references,
        )


class ExportedFunction(Direct, StoreObject):  # type: ignore[misc,valid-type]  # may be in C
    """
    A WebAssembly function.

    Call it, or await `call_async`. Arguments and results are converted as the table in the
    documentation says; several results are a tuple.

    Spec: https://webassembly.github.io/spec/js-api/#exported-function-exotic-objects
    """

    __slots__ = ("__dict__", "__weakref__")

    _name: str
    _quick: Quick | None
    _shape: Shape

    def __init__(self) -> None:
        raise TypeError(
            "an ExportedFunction comes from an instance; use asyncwasm.Function to wrap a callable"
        )

    @classmethod
    def _from_raw(
        cls,
        store: StoreCore,
        raw: tuple[int, int],
        type: FunctionType,
        name: str = "",
        concrete: Sequence[int] = (),
    ) -> ExportedFunction:
        return cls._from_shape(store, raw, Shape(type, concrete, name))

    @classmethod
    def _from_shape(cls, store: StoreCore, raw: tuple[int, int], shape: Shape) -> ExportedFunction:
        if shape.opening is not None:
            made: ExportedFunction = cls._new(
                store.handle, raw, *shape.opening, guard.BLOCKING_SECONDS, store, shape, shape.name
            )
            if store.hosts:
                made._hosts = store.plain_hosts
            return made
        self = cls.__new__(cls)
        self._store = store
        self._extern = Extern.function(raw)
        self._shape = shape
        self._name = shape.name
        self._quick = None
        return self

    @classmethod
    def _of_export(cls, store: StoreCore, instance: bytes, shape: Shape) -> ExportedFunction | None:
        """Return the function that *instance* exports, None if it has to be looked up with care."""
        if shape.export is None:
            return None
        known = store.own_known()
        hosts = store.plain_hosts if store.hosts else None
        made: ExportedFunction | None = cls._exported(
            store.handle,
            instance,
            shape.export,
            guard.BLOCKING_SECONDS,
            store,
            hosts,
            known.references,
        )
        known.sweep()
        return made

    def _quick_way(self) -> Quick:
        """Make what runs the first slice of a call; when first wanted: many are never awaited."""
        store = self._store
        assert store is not None and self._extern is not None
        store.be_waitable()
        quick = self._quick = self._shape.quick(store, self._extern.raw, self._name)
        return quick

    @property
    def name(self) -> str:
        """The function's index in its defining module, as text; empty if unknown."""
        return self._name

    @property
    def type(self) -> FunctionType:
        """The function's type."""
        return self._shape.type

    @property
    def __name__(self) -> str:
        return self._name

    @property
    def __signature__(self) -> inspect.Signature:
        kind = inspect.Parameter.POSITIONAL_ONLY
        results = self.type.results
        returned: Any = str(results[0]) if len(results) == 1 else tuple(map(str, results))
        return inspect.Signature(
            [
                inspect.Parameter(f"p{index}", kind, annotation=str(type))
                for index, type in enumerate(self.type.parameters)
            ],
            return_annotation=returned or None,
        )

    def __repr__(self) -> str:
        return f"<asyncwasm.{type(self).__name__} {self._name!r} {self.type}>"

    def __reduce__(self) -> Any:
        raise TypeError("a wasm function cannot be pickled; pickle its module and instantiate it")

    def call_async(self, *arguments: Any) -> Coroutine[Any, Any, Any]:
        """
        Call the function without holding the event loop.

        Short calls finish before anything else gets to run; longer ones let the loop run, and
        move to a worker thread. Imports, sync or async, run in the awaiting task.

        Args:
            arguments: As many as the function has parameters.
        Returns:
            None, a value, or a tuple of values.
        Raises:
            TypeError: If the number of arguments or a type is wrong.
            OverflowError: If an int is out of range.
            Trap: If the guest traps.
            ClosedResourceError: If the store has been closed.
        Cancellation: Stops the guest wherever it is, and unwinds it; an instruction that fills or
            copies much memory, or that waits at a shared one, ends first. The store stays usable;
            the guest's own state may be half done.
        Spec: https://webassembly.github.io/js-promise-integration/js-api/#promising-functions
        """
        return self._drive(self, arguments)

    _drive: Callable[[ExportedFunction, tuple[Any, ...]], Coroutine[Any, Any, Any]]

    # what the two ways in share

    def _raw_in(self, store: StoreCore) -> tuple[int, int]:
        return self._bind(store).raw

    def _operation(self, arguments: Sequence[Any], fiber: Fiber | None = None) -> Call:
        shape, store = self._shape, self._store
        if shape.refused:
            raise cannot_cross(shape.type)
        parameters = shape.parameters
        if len(arguments) != len(parameters.types):
            raise wrong_count(len(arguments), shape.type, self._name)
        assert store is not None and self._extern is not None
        if fiber is None and not parameters.numeric:
            arguments = store.references.prepare_row(parameters, arguments, shape.concrete)
        return Call(
            store,
            self._extern.raw,
            self._name,
            parameters,
            shape.results,
            arguments,
            shape.concrete,
            fiber,
        )

    def _detour(self, arguments: tuple[Any, ...]) -> Any:
        """Call with more care than the direct way takes."""
        started = perf_counter()
        shape, store = self._shape, self._store
        assert store is not None and self._extern is not None
        if store.closed:
            raise store.unavailable(None)
        if not (shape.direct and store.direct and has_stack(store.handle)):
            value = self._run(arguments)
        elif store.hosts:
            outer = innermost()
            ends = outer is not None and outer.ends is not None
            if shape.opening is None or ends or greenlets_switch():
                value = self._run(arguments)
            else:
                return self._call_hosted(arguments)
        else:
            if len(arguments) != len(shape.parameters.types):
                raise wrong_count(len(arguments), shape.type, self._name)
            values = shape.parameters.converted(arguments)
            store.check_turn()
            if store.sync_deadline_seconds is not None:
                store.engine.ticker.wake()
            with store.entered(to_call=True):
                handle = store.opened()
                try:
                    store.prepare_direct()
                    error, trap, results = call_prepared(
                        handle, self._extern.raw, shape.parameters, shape.results, values
                    )
                finally:
                    store.finish_direct()
            if error or trap:
                raise self._failed(error, trap)
            value = results[0] if len(results) == 1 else results or None
        seconds = perf_counter() - started
        if seconds > guard.BLOCKING_SECONDS:
            self._held(seconds)
        return value

    def _call_hosted(self, arguments: tuple[Any, ...]) -> Any:
        """Call on this thread's own stack, in a store with host functions."""
        shape, store = self._shape, self._store
        assert store is not None
        if len(arguments) != len(shape.parameters.types):
            raise wrong_count(len(arguments), shape.type, self._name)
        values = tuple(shape.parameters.converted(arguments))
        if not store.outwait():
            raise store.unavailable(None)
        store.check_turn()
        with store.entered(to_call=True):
            store.opened()
        self._hosts = store.plain_hosts
        value = self._through(values)
        if value is NotImplemented:
            raise store.unavailable(None)
        return value

    def _settle(self, number: int, address: int, value: Any, raised: BaseException | None) -> int:
        """
        Answer the guest, which has called host function *number* on this thread's own stack.

        Writes what that has returned to *address* and returns 0, or returns the trap of what it
        has *raised*. Raises what the guest must not see.
        """
        store = self._store
        assert store is not None
        host = store.hosts[number]
        try:
            if raised is not None:
                raise raised
            if host.suspending:
                raise host.reached()
            value = host.checked(value)
            if host.results.types:
                packed = host.results.packed_raw(host.result_values(value))
                Request(number, address, address, 0).write(packed)
            return 0
        except Trap:
            raise
        except Exception as exc:
            return exceptions.throw_on_stack(store, exc)
        finally:
            del raised  # its traceback holds this frame

    def _gone(self) -> BaseException:
        store = self._store
        assert store is not None
        return Interrupted("closed") if store.handle.ours else store.unavailable(None)

    def _stopped(self) -> None:
        assert self._store is not None
        self._store.disturb()

    def _run(self, arguments: tuple[Any, ...]) -> Any:
        """Call on a fiber, and wait for its end."""
        assert self._store is not None
        if self._store.sync_deadline_seconds is None:
            outcome = (self._quick or self._quick_way())(self, arguments, False)
            if outcome.__class__ is Fiber:
                return run(self._operation(arguments, outcome))
            if outcome.__class__ is HostCall:
                operation = outcome.operation
                try:
                    return run(operation, outcome.take_outcome())
                finally:
                    if operation.fiber is not None:  # there was not even room for that call
                        operation.leave()
            if outcome is not NotImplemented:
                return outcome
        return run(self._operation(arguments))

    def _failed(self, error: int, trap: int) -> BaseException:
        assert self._store is not None
        return exceptions.failure_on_stack(self._store, error, trap, f"function {self._name!r}")

    def _held(self, seconds: float) -> None:
        guard.blocking_call(seconds, self._name)


class Function(ExportedFunction):
    """
    A Python callable as a wasm function, for tables and wherever a funcref is wanted.

    It is bound to a store when it first meets one. A callable defined with ``async def`` (or
    wrapped in `Suspending`) suspends the guest that calls it.

    Args:
        type: A `FunctionType`, a mapping with ``parameters`` and ``results``, or a pair.
        callable: What is called, with one argument a parameter.
        store: The store to bind to at once.
    Raises:
        TypeError: If *type* is no function type, or *callable* is not callable.
    Spec: https://webassembly.github.io/js-types/js-api/#functions
    """

    __slots__ = ("_callable", "_host")

    def __new__(cls, type: Any, callable: Any = None, /, *, store: Store | None = None) -> Any:
        if isinstance(callable, ExportedFunction):
            wanted = function_type(type)
            if callable.type == wanted:
                return callable
            raise TypeError(f"expected a function of type {wanted}, got {callable.type}")
        return super().__new__(cls)

    def __init__(
        self,
        type: Any,
        callable: Callable[..., Any] | Suspending,
        /,
        *,
        store: Store | None = None,
    ) -> None:
        if not _is_callable(callable) and not isinstance(callable, Suspending):
            raise TypeError(f"expected a callable, got {callable.__class__.__name__}")
        self._shape = Shape(function_type(type))
        self._name = "0"
        self._quick = not_quick
        self._store = None
        self._extern = None
        target = callable.callable if isinstance(callable, Suspending) else callable
        self._callable = target
        shape = HostShape(self.type, getattr(target, "__name__", "function"))
        self._host = host_function(callable, shape)
        chosen = ambient_or(store)
        if chosen is not None:
            self._bind(chosen)

    def _make(self, store: StoreCore) -> Extern:
        return Extern.function(store.define_function(self.type, self._host))

    def _bind(self, store: StoreCore) -> Extern:
        extern = super()._bind(store)
        store.remember(function_identity(extern.raw), self)
        return extern

    # A call from Python needs no wasm in between: the conversions are all there is to see.

    def _convert(self, types: Sequence[ValueType], values: Sequence[Any]) -> list[Any]:
        return [_through(type, value) for type, value in zip(types, values, strict=True)]

    def _begin(self, arguments: tuple[Any, ...]) -> Any:
        if len(arguments) != len(self._shape.parameters.types):
            raise wrong_count(len(arguments), self.type, self._name)
        return self._callable(*self._convert(self.type.parameters, arguments))

    def _finish(self, value: Any) -> Any:
        if not self._shape.results.types:
            return None
        values = self._convert(self.type.results, self._host.result_values(value))
        return values[0] if len(values) == 1 else tuple(values)

    def _detour(self, arguments: tuple[Any, ...]) -> Any:
        if self._host.suspending:
            raise SuspendError(f"{self._host.name} suspends; await call_async instead")
        return self._finish(self._host.checked(self._begin(arguments)))

    def call_async(self, *arguments: Any) -> Coroutine[Any, Any, Any]:
        """
        Call the callable with converted arguments, awaiting its result if it suspends.

        Args:
            arguments: As many as the function has parameters.
        Returns:
            None, a value, or a tuple of values.
        Raises:
            TypeError: If the number of arguments or a type is wrong.
        Cancellation: Reaches the callable, if it is awaited.
        """
        return self._drive(self, arguments)


def _through(type: ValueType, value: Any) -> Any:
    """Return what *value* is after a trip through a wasm value of *type*."""
    import struct

    if type in NUMBERS:
        number = NUMBERS[type](value)
        return struct.unpack("<f", struct.pack("<f", number))[0] if type == "f32" else number
    if value is None and not type.nullable:
        raise TypeError(f"expected a reference for {type}, got None; this type has no null")
    if type.heap == "func" and value is not None and not isinstance(value, ExportedFunction):
        raise TypeError(f"expected an exported function or None for {type}, got {value!r}")
    return value


def _failure(store: StoreCore, name: str, error: int, trap: int) -> BaseException:
    return exceptions.failure(store, error, trap, f"function {name!r}")


class PromisingFunction:
    """What `promising` returns: call it to get a coroutine."""

    __slots__ = ("__weakref__", "_function")

    def __init__(self, function: ExportedFunction) -> None:
        self._function = function

    @property
    def __name__(self) -> str:
        return self._function.name

    @property
    def __signature__(self) -> inspect.Signature:
        return self._function.__signature__

    def __call__(self, *arguments: Any) -> Coroutine[Any, Any, Any]:
        return self._function.call_async(*arguments)

    def __repr__(self) -> str:
        return f"asyncwasm.promising({self._function!r})"


def promising(function: ExportedFunction, /) -> PromisingFunction:
    """
    Return an async callable that calls an exported function without holding the event loop.

    The same as the method `ExportedFunction.call_async`.

    Args:
        function: An exported function.
    Returns:
        A callable that returns a coroutine.
    Raises:
        TypeError: If *function* is not an exported function.
    Spec: https://webassembly.github.io/js-promise-integration/js-api/#dom-webassembly-promising
    """
    if not isinstance(function, ExportedFunction):
        raise TypeError(f"expected an exported function, got {type(function).__name__}")
    return PromisingFunction(function)


def concrete_kinds(types: Sequence[ValueType], kinds: Sequence[str]) -> tuple[int, ...]:
    """Return the kind of each type's values; *kinds* are those of the module's types."""
    if not any(type.heap.isdecimal() for type in types):
        return ()
    return tuple(
        KIND_FUNC if type.heap.isdecimal() and kinds[int(type.heap)] == "func" else KIND_ANY
        for type in types
    )


StoreCore.function_class = ExportedFunction
StoreCore.function_maker = staticmethod(ExportedFunction._from_raw)

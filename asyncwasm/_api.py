"""The functions of the namespace."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Iterable
from typing import Any, overload

from ._binary import decode
from ._driver.compiling import (
    Instantiated,
    at_await,
    compile_module,
    instantiate_prepared,
    instantiate_source,
)
from ._driver.streaming import StreamingSource, compile_streamed, instantiate_streamed
from ._ffi import compiling
from ._objects.conversions import Source, read_now, source_reader
from ._objects.engine import Engine, core_or_default
from ._objects.instance import Instance, Preparation
from ._objects.module import Module
from ._objects.options import NO_OPTIONS, CompileOptions
from ._objects.store import Store
from ._runtime.artifact import Variant
from ._runtime.config import Limits


def compile(
    source: Source,
    /,
    *,
    engine: Engine | None = None,
    builtins: Iterable[str] = (),
    imported_string_constants: str | None = None,
) -> Coroutine[Any, Any, Module]:
    """
    Compile *source* on the engine's worker threads and return a module.

    Identical bytes requested at the same time are compiled once.

    Args:
        source: A complete wasm binary, read at the call, so that it may change afterwards; or
            a path, read on a worker thread.
        engine: Engine to compile for; the process-wide default if omitted.
        builtins: Names of the builtin sets to import from, such as ``"js-string"``; names of
            unknown sets are ignored.
        imported_string_constants: The import module whose globals are strings, each with its
            own name as its value.
    Returns:
        The module. It may be instantiated any number of times, in any store of the same engine.
    Raises:
        CompileError: If *source* is not a valid module; `offset` tells where. If a set is named
            twice, or an import has another type than the builtin or constant that is there for it.
        TypeError: If *source* is neither bytes-like nor a path, or an option has the wrong type.
        OSError: If the file cannot be read.
        ClosedResourceError: If the engine has been closed.
    Cancellation: The wait ends at once; a compilation already running finishes unseen and is
        kept for others who wait for it.
    Spec: https://webassembly.github.io/spec/js-api/#dom-webassembly-compile
    """

    def begin() -> Coroutine[Any, Any, Module]:
        options = CompileOptions.read(builtins, imported_string_constants)
        return compile_module(core_or_default(engine), *source_reader(source), options)

    return at_await(begin)


@overload
def instantiate(
    source: Module,
    imports: Any = None,
    /,
    *,
    store: Store | None = None,
    limits: Limits | None = None,
) -> Coroutine[Any, Any, Instance]: ...


@overload
def instantiate(
    source: bytes | bytearray | memoryview | os.PathLike[str],
    imports: Any = None,
    /,
    *,
    store: Store | None = None,
    limits: Limits | None = None,
    engine: Engine | None = None,
    builtins: Iterable[str] = (),
    imported_string_constants: str | None = None,
) -> Coroutine[Any, Any, Instantiated]: ...


def instantiate(
    source: Module | Source,
    imports: Any = None,
    /,
    *,
    store: Store | None = None,
    limits: Limits | None = None,
    engine: Engine | None = None,
    builtins: Iterable[str] = (),
    imported_string_constants: str | None = None,
) -> Coroutine[Any, Any, Any]:
    """
    Instantiate a module, compiling it first if *source* is bytes or a path.

    The start function may await imports, and does not hold the event loop.

    Args:
        source: A module; or a wasm binary or its path, treated as by `compile`.
        imports: A mapping (or object) of mappings (or objects) with what the module imports. It
            is read at the call if *source* is a module, otherwise when that has been compiled.
        store: Store to instantiate in; that of the imports, or a new one, if omitted.
        limits: What the guest may take, for a new store.
        engine: Engine to compile for, if *source* is not a module.
        builtins: Builtin sets, as for `compile`, if *source* is not a module.
        imported_string_constants: The module of string constants, likewise.
    Returns:
        The instance if *source* is a module, otherwise ``Instantiated(module, instance)``.
    Raises:
        CompileError: If *source* is not a valid module, or the options do not fit its imports.
        TypeError: If *source* is nothing of the kind, or *imports* has the wrong shape. If
            options are given with a module, which has its own.
        LinkError: If an import is missing, has the wrong type, or lives in another store.
        RangeError: If the module needs more memory, or more of anything, than it can have.
        Trap: If the start function traps, or a segment does not fit.
        ClosedResourceError: If the engine or the store has been closed.
    Cancellation: Stops the start function and unwinds it; there is no instance then. A
        compilation already running is kept for others who wait for it.
    Spec: https://webassembly.github.io/spec/js-api/#dom-webassembly-instantiate
    """

    def begin() -> Coroutine[Any, Any, Any]:
        options = CompileOptions.read(builtins, imported_string_constants)
        if isinstance(source, Module):
            if engine is not None:
                raise TypeError("a Module has its engine; give engine= to compile it")
            if options != NO_OPTIONS:
                raise TypeError("a Module has its options; give them to compile it")
            return instantiate_prepared(Preparation(source, imports, store, limits))
        chosen = engine
        if chosen is None and store is not None:
            chosen = store.engine
        return instantiate_source(
            core_or_default(chosen), *source_reader(source), imports, store, limits, options
        )

    return at_await(begin)


def compile_streaming(
    source: StreamingSource,
    /,
    *,
    engine: Engine | None = None,
    builtins: Iterable[str] = (),
    imported_string_constants: str | None = None,
) -> Coroutine[Any, Any, Module]:
    """
    Compile the body of an HTTP response and return a module.

    The response must have a status from 200 to 299 and the type ``application/wasm``, without
    parameters; otherwise its body is left unread. The body is read on the event loop and
    compiled as by `compile` when it is complete.

    Args:
        source: A response of httpx or aiohttp, or an awaitable of one, which is closed when it
            has been read; one that is given as such is not. Or an async iterable of bytes.
        engine: Engine to compile for; the process-wide default if omitted.
        builtins: Builtin sets, as for `compile`.
        imported_string_constants: The module of string constants, likewise.
    Returns:
        The module.
    Raises:
        CompileError: If the body is not a valid module, or larger than the engine takes; if the
            options do not fit its imports.
        TypeError: If *source* is nothing of the kind; if the status (then there is an attribute
            `status`) or the type of the response is another, or its body has been consumed; if
            a chunk is not bytes-like.
        ClosedResourceError: If the engine has been closed.
        Exception: Whatever *source* raises, unchanged.
    Cancellation: Reading ends at once, with the body consumed in part; for compiling, as with
        `compile`. A response that was awaited is closed first, within seconds.
    Example:
        async with httpx.AsyncClient() as client:
            module = await asyncwasm.compile_streaming(client.get(url))
    Spec: https://webassembly.github.io/spec/web-api/#dom-webassembly-compilestreaming
    """

    def begin() -> Coroutine[Any, Any, Module]:
        options = CompileOptions.read(builtins, imported_string_constants)
        return compile_streamed(core_or_default(engine), source, options)

    return at_await(begin)


def instantiate_streaming(
    source: StreamingSource,
    imports: Any = None,
    /,
    *,
    store: Store | None = None,
    limits: Limits | None = None,
    engine: Engine | None = None,
    builtins: Iterable[str] = (),
    imported_string_constants: str | None = None,
) -> Coroutine[Any, Any, Instantiated]:
    """
    Compile the body of an HTTP response and instantiate the module.

    The start function may await imports, and does not hold the event loop.

    Args:
        source: A response, an awaitable of one, or an async iterable of bytes, treated as by
            `compile_streaming`.
        imports: A mapping (or object) of mappings (or objects) with what the module imports,
            read when the module has been compiled.
        store: Store to instantiate in; that of the imports, or a new one, if omitted.
        limits: What the guest may take, for a new store.
        engine: Engine to compile for; that of *store*, or the process-wide default, if omitted.
        builtins: Builtin sets, as for `compile`.
        imported_string_constants: The module of string constants, likewise.
    Returns:
        ``Instantiated(module, instance)``.
    Raises:
        CompileError: As by `compile_streaming`.
        TypeError: As by `compile_streaming`, or if *imports* has the wrong shape.
        LinkError: If an import is missing, has the wrong type, or lives in another store.
        RangeError: If the module needs more memory, or more of anything, than it can have.
        Trap: If the start function traps, or a segment does not fit.
        ClosedResourceError: If the engine or the store has been closed.
        Exception: Whatever *source* raises, unchanged.
    Cancellation: As with `compile_streaming` and `instantiate`; there is no instance then.
    Spec: https://webassembly.github.io/spec/web-api/#dom-webassembly-instantiatestreaming
    """

    def begin() -> Coroutine[Any, Any, Instantiated]:
        chosen = engine
        if chosen is None and store is not None:
            chosen = store.engine
        options = CompileOptions.read(builtins, imported_string_constants)
        return instantiate_streamed(
            core_or_default(chosen), source, imports, store=store, limits=limits, options=options
        )

    return at_await(begin)


def validate(
    source: Source,
    /,
    *,
    engine: Engine | None = None,
    builtins: Iterable[str] = (),
    imported_string_constants: str | None = None,
) -> bool:
    """
    Return whether *source* is a valid module.

    Works on the calling thread; validating takes a small part of the time of compiling.

    Args:
        source: A complete wasm binary, or the path of one.
        engine: Engine whose proposals count; the process-wide default if omitted.
        builtins: Builtin sets, as for `compile`; the imports must fit them.
        imported_string_constants: The module of string constants, likewise.
    Raises:
        TypeError: If *source* is neither bytes-like nor a path, or an option has the wrong type.
    Spec: https://webassembly.github.io/spec/js-api/#dom-webassembly-validate
    """
    binary = read_now(source)
    options = CompileOptions.read(builtins, imported_string_constants)
    chosen = core_or_default(engine)
    if len(binary) > chosen.config.max_module_bytes:
        return False
    if not compiling.is_valid(chosen.native(Variant()), binary):
        return False
    return options == NO_OPTIONS or options.fit(decode(binary))


def wat2wasm(text: str, /) -> bytes:
    """
    Return the binary of a module in the text format.

    Args:
        text: The module.
    Raises:
        CompileError: If *text* is not valid; its message points at the place.
        TypeError: If *text* is no str.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected a str, got {type(text).__name__}")
    return compiling.wat2wasm(text)

"""
Reading a module from a response, or from any stream of bytes.

Rule 1: no HTTP library is imported; a response is recognized by its attributes.
Rule 2: status and headers are checked when the response is awaited, before the body is touched.
Rule 3: a response that was awaited here is closed however the read ends; one that was handed in
is its owner's to close.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from time import perf_counter
from typing import Any, ClassVar, Protocol, TypeAlias

import anyio

from .. import _log
from .._errors import CompileError
from .._objects.conversions import BytesLike
from .._objects.module import Module
from .._objects.options import CompileOptions
from .._objects.store import Store
from .._runtime.config import Limits
from .._runtime.engine import EngineCore
from .checkpoints import checkpoint
from .compiling import Instantiated, compile_module, instantiate_source
from .drive import SLICE_SECONDS

CLOSE_SECONDS = 5.0  # that closing a response may take; it holds up a cancellation


class Headers(Protocol):
    """The headers of a response."""

    def items(self) -> Iterable[tuple[str, str]]: ...


class HttpxResponse(Protocol):
    """What tells a response of httpx."""

    @property
    def headers(self) -> Headers: ...

    def aiter_bytes(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


class AiohttpContent(Protocol):
    """The body of a response of aiohttp."""

    def iter_any(self) -> AsyncIterable[bytes]: ...


class AiohttpResponse(Protocol):
    """What tells a response of aiohttp."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Headers: ...

    @property
    def content(self) -> AiohttpContent: ...

    def close(self) -> None: ...


Response: TypeAlias = HttpxResponse | AiohttpResponse
StreamingSource: TypeAlias = Response | Awaitable[Response] | AsyncIterable[BytesLike]


class StatusError(TypeError):
    """
    A response has a status other than 200 to 299; `status` says which.

    Spec: https://webassembly.github.io/spec/web-api/#compile-a-potential-webassembly-response
    """

    def __init__(self, status: Any) -> None:
        super().__init__(f"expected a response with a status from 200 to 299, got {status}")
        self.status = status

    def __reduce__(self) -> Any:
        return type(self), (self.status,), self.__dict__


class _Httpx:
    """A response of httpx; one of the synchronous client too, once it has been read."""

    status_name: ClassVar[str] = "status_code"

    def __init__(self, response: Any) -> None:
        self.response = response

    @staticmethod
    def fits(source: Any) -> bool:
        return callable(getattr(source, "aiter_bytes", None))

    @property
    def _is_synchronous(self) -> bool:
        stream = getattr(self.response, "stream", None)
        return stream is not None and not isinstance(stream, AsyncIterable)

    def chunks(self) -> AsyncIterable[Any]:
        response = self.response
        if getattr(response, "is_stream_consumed", False) or getattr(response, "is_closed", False):
            try:
                return _once(response.content)
            except (AttributeError, RuntimeError) as exc:  # httpx.ResponseNotRead is the latter
                raise TypeError("the body of the response has been consumed or closed") from exc
        if self._is_synchronous:
            raise TypeError("expected a response that can be awaited; read a synchronous one first")
        iterator: AsyncIterable[Any] = response.aiter_bytes()
        return iterator

    def check_complete(self, received: int) -> None:
        pass  # one that has been read in part counts as consumed

    async def close(self) -> None:
        if self._is_synchronous:
            self.response.close()  # aclose() refuses
        else:
            await self.response.aclose()


class _Aiohttp:
    """A response of aiohttp."""

    status_name: ClassVar[str] = "status"

    def __init__(self, response: Any) -> None:
        self.response = response

    @staticmethod
    def fits(source: Any) -> bool:
        return callable(getattr(getattr(source, "content", None), "iter_any", None))

    def chunks(self) -> AsyncIterable[Any]:
        content = self.response.content
        # An empty body is at its end from the start. `closed` tells nothing: it is set as soon
        # as the body has arrived, read or not.
        if hasattr(content, "at_eof") and content.at_eof() and getattr(content, "total_bytes", 0):
            raise TypeError(
                "the body of the response has been read; use "
                "asyncwasm.compile(await response.read()) if that was by read()"
            )
        iterable: AsyncIterable[Any] = content.iter_any()
        return iterable

    def check_complete(self, received: int) -> None:
        total = getattr(self.response.content, "total_bytes", received)
        if total != received:
            raise TypeError(
                f"the body of the response has been read in part: "
                f"{received:,} of {total:,} bytes were left"
            )

    async def close(self) -> None:
        self.response.close()


_View: TypeAlias = _Httpx | _Aiohttp


async def compile_streamed(engine: EngineCore, source: object, options: CompileOptions) -> Module:
    """Read, then compile."""
    return await compile_module(engine, *await stream_reader(source, engine), options)


async def instantiate_streamed(
    engine: EngineCore,
    source: object,
    imports: Any,
    *,
    store: Store | None,
    limits: Limits | None,
    options: CompileOptions,
) -> Instantiated:
    """Read, compile, then read the imports, then instantiate."""
    reader = await stream_reader(source, engine)
    return await instantiate_source(engine, *reader, imports, store, limits, options)


async def stream_reader(source: object, engine: EngineCore) -> tuple[Callable[[], bytes], object]:
    """
    Read *source* to its end, and return what `source_reader` does for bytes.

    Spec: https://webassembly.github.io/spec/web-api/#compile-a-potential-webassembly-response
    """
    body = await _read_source(source, engine.config.max_module_bytes)

    def read() -> bytes:
        binary = bytes(body)
        body.clear()  # the module is large, and compiling takes long
        return binary

    return read, object()


async def _read_source(source: object, limit: int) -> bytearray:
    view = _view(source)
    if view is not None:
        return await _read_response(view, limit)
    if inspect.isawaitable(source):
        awaited = await source
        view = _view(awaited)
        if view is None:
            raise TypeError(
                f"expected a response of httpx or aiohttp, got an awaitable of "
                f"{type(awaited).__name__}"
            )
        try:
            body = await _read_response(view, limit)
        except GeneratorExit:
            raise  # the loop is gone, nothing can be awaited
        except BaseException:
            await _close(view)
            raise
        await _close(view)
        return body
    if isinstance(source, AsyncIterable):
        return await _read(source, source, limit)
    raise _no_response(source)


def _view(source: Any) -> _View | None:
    """Return a view of *source* if it is a response."""
    for view in (_Httpx, _Aiohttp):
        if (
            hasattr(source, view.status_name)
            and hasattr(getattr(source, "headers", None), "items")
            and view.fits(source)
        ):
            return view(source)
    return None


def _no_response(source: object) -> TypeError:
    hint = ""
    if isinstance(source, str):
        hint = (
            "; for a file use asyncwasm.compile(pathlib.Path(...)), "
            "for text asyncwasm.compile(asyncwasm.wat2wasm(...))"
        )
    elif isinstance(source, (bytes, bytearray, memoryview, os.PathLike)):
        hint = "; use asyncwasm.compile(...)"
    elif hasattr(source, "__aenter__"):
        hint = "; enter it first: async with ... as response"
    return TypeError(
        f"expected a response of httpx or aiohttp, an awaitable of one, or an async iterable of "
        f"bytes, got {type(source).__name__}{hint}"
    )


async def _read_response(view: _View, limit: int) -> bytearray:
    """Check the head of a response, and return its body."""
    status = getattr(view.response, view.status_name)
    if not isinstance(status, int) or not 200 <= status < 300:
        raise StatusError(status)
    headers = view.response.headers
    content_type = _header(headers, "content-type")
    if content_type is None:
        raise TypeError("expected a response of type application/wasm, got one without a type")
    # Nothing else is stripped, and no parameter taken: the bytes are to be served on purpose.
    if content_type.strip("\t ").lower() != "application/wasm":
        raise TypeError(f"expected a response of type application/wasm, got {content_type!r}")
    length = _header(headers, "content-length")
    # The length of an encoded body says nothing about that of the module.
    if length is not None and _header(headers, "content-encoding") is None:
        try:
            too_large = int(length) > limit
        except ValueError:
            too_large = False  # the limit holds all the same
        if too_large:
            raise _too_large(limit)
    body = await _read(view.chunks(), view.response, limit)
    view.check_complete(len(body))
    return body


def _header(headers: Any, name: str) -> str | None:
    """Return the values of a header, joined as fetch does, or None if there is none."""
    values = [value for key, value in headers.items() if key.lower() == name]
    return ", ".join(values) if values else None


async def _read(chunks: AsyncIterable[Any], source: object, limit: int) -> bytearray:
    """Return all bytes of *chunks*; their iterator is closed unless it is *source* itself."""
    body = bytearray()
    iterator = aiter(chunks)
    started = perf_counter()
    try:
        async for chunk in iterator:
            try:
                view = memoryview(chunk)
            except TypeError:
                raise TypeError(
                    f"expected bytes-like chunks of a module, got {type(chunk).__name__}"
                ) from None
            with view:  # let go of it before the next one: the source may use the buffer again
                if len(body) + view.nbytes > limit:
                    raise _too_large(limit)
                body += view.tobytes()
            if perf_counter() - started >= SLICE_SECONDS:
                # A source that has everything at hand never lets the loop run.
                await checkpoint()
                started = perf_counter()
    except GeneratorExit:
        raise  # the loop is gone, nothing can be awaited
    except BaseException:
        if iterator is not source and hasattr(iterator, "aclose"):
            await iterator.aclose()
        raise
    return body


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _too_large(limit: int) -> CompileError:
    return CompileError(
        f"the module has more than the {limit:,} bytes that the engine takes; "
        f"raise EngineConfig.max_module_bytes"
    )


async def _close(view: _View) -> None:
    """Close a response, whatever happens; what went wrong with it is no error of the module."""
    with anyio.move_on_after(CLOSE_SECONDS, shield=True) as scope:
        try:
            await view.close()
        except Exception as exc:
            _log.event("response_not_closed", _log.WARNING, error=repr(exc))
    if scope.cancelled_caught:
        _log.event("response_not_closed", _log.WARNING, seconds=CLOSE_SECONDS)

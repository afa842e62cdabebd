"""`compile_streaming` and `instantiate_streaming`: responses, their headers, and byte streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

import asyncwasm as aw

from .helpers import EMPTY, Recorder, readable

WASM = aw.wat2wasm('(module (func (export "f") (result i32) (i32.const 7)))')
IMPORTING = aw.wat2wasm('(module (import "m" "g" (global $g i32)) (export "g" (global $g)))')

VALID_TYPES = [
    "application/wasm",
    "APPLICATION/wasm",
    "APPLICATION/WASM",
    "application/wasm ",
    "application/wasm\t",
    " application/wasm",
    "\tapplication/wasm",
    "\tAPPLICATION/WASM\t",
]
INVALID_TYPES = [
    "",
    "application/octet-stream",
    "text/wasm",
    "text/plain",
    "application/wasm;",
    "application/wasm;x",
    "application/wasm; charset=utf-8",
    "application/wasm ; charset=utf-8",
    "application/wasm,application/wasm",
    "application/wasm/",
    "application/was",
    "application/wasmx",
    "application /wasm",
    '"application/wasm"',
    "'application/wasm'",
    "\fapplication/wasm\f",
    "\u00a0application/wasm",
    "x/x;application/wasm",
]
BAD_STATUS = [0, 100, 199, 300, 304, 400, 404, 500, 600, 700, 999]


class Headers(Mapping[str, str]):
    """Headers as the HTTP libraries have them: names in any case."""

    def __init__(self, items: Mapping[str, str]) -> None:
        self._items = {name.lower(): value for name, value in items.items()}

    def __getitem__(self, name: str) -> str:
        return self._items[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class _Body:
    """The part that both shapes of response share."""

    def __init__(
        self,
        chunks: list[Any] | None = None,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        error: BaseException | None = None,
    ) -> None:
        self.headers = Headers({"Content-Type": "application/wasm"} if headers is None else headers)
        self.touched = False
        self.closed_by_us = False
        self._status = status
        self._chunks = [WASM] if chunks is None else chunks
        self._error = error

    async def _iterate(self) -> AsyncIterator[Any]:
        self.touched = True
        for chunk in self._chunks:
            yield chunk
        if self._error is not None:
            raise self._error

    async def _whole(self) -> bytes:
        return b"".join([chunk async for chunk in self._iterate()])


class HttpxResponse(_Body):
    """A streamed response with the attributes of `httpx.Response`."""

    is_closed = False
    is_stream_consumed = False

    @property
    def status_code(self) -> int:
        return self._status

    def aiter_bytes(self, chunk_size: int | None = None) -> AsyncIterator[Any]:
        return self._iterate()

    def aiter_raw(self, chunk_size: int | None = None) -> AsyncIterator[Any]:
        return self._iterate()

    async def aread(self) -> bytes:
        return await self._whole()

    async def aclose(self) -> None:
        self.closed_by_us = True


class _AiohttpContent:
    def __init__(self, body: _Body) -> None:
        self._body = body

    def iter_any(self) -> AsyncIterator[Any]:
        return self._body._iterate()

    def iter_chunked(self, size: int) -> AsyncIterator[Any]:
        return self._body._iterate()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._body._iterate()

    async def read(self, size: int = -1) -> bytes:
        return await self._body._whole()


class AiohttpResponse(_Body):
    """A response with the attributes of `aiohttp.ClientResponse`."""

    closed = False

    @property
    def status(self) -> int:
        return self._status

    @property
    def content(self) -> _AiohttpContent:
        return _AiohttpContent(self)

    async def read(self) -> bytes:
        return await self._whole()

    def close(self) -> None:
        self.closed_by_us = True

    def release(self) -> None:
        self.closed_by_us = True


in_both_shapes = pytest.mark.parametrize(
    "shape", [HttpxResponse, AiohttpResponse], ids=["httpx", "aiohttp"]
)
Shape = Callable[..., Any]


async def _compile(source: Any) -> aw.Module:
    return await aw.compile_streaming(source)


async def _instantiate(source: Any) -> aw.Module:
    return (await aw.instantiate_streaming(source)).module


in_both_functions = pytest.mark.parametrize(
    "consume", [_compile, _instantiate], ids=["compile", "instantiate"]
)
Consume = Callable[[Any], Awaitable[aw.Module]]


async def _soon(value: Any) -> Any:
    return value


async def _stream(*chunks: Any) -> AsyncIterator[Any]:
    for chunk in chunks:
        yield chunk


@in_both_shapes
@in_both_functions
async def test_response_is_compiled(consume: Consume, shape: Shape) -> None:
    """SR1."""
    module = await consume(shape())

    assert [export.name for export in module.exports()] == ["f"]


@in_both_shapes
@in_both_functions
async def test_awaitable_of_a_response_is_compiled(consume: Consume, shape: Shape) -> None:
    """SR1."""
    module = await consume(_soon(shape()))

    assert module.byte_length == len(WASM)


async def test_instantiate_streaming_gives_module_and_instance() -> None:
    """SR1, IN1."""
    result = await aw.instantiate_streaming(HttpxResponse())

    assert type(result) is aw.Instantiated
    assert result.instance.exports.f() == 7
    assert result.instance.module is result.module


@in_both_functions
async def test_rejected_awaitable_is_raised_unchanged(consume: Consume) -> None:
    """SR1."""
    error = ConnectionError("refused")

    async def fail() -> Any:
        raise error

    with pytest.raises(ConnectionError) as caught:
        await consume(fail())

    assert caught.value is error


NO_RESPONSES = [None, True, "test", 0, float("nan"), {}, object(), HttpxResponse, WASM, [WASM]]


@in_both_functions
@pytest.mark.parametrize("source", NO_RESPONSES, ids=readable)
async def test_something_else_than_a_response_is_a_type_error(
    consume: Consume, source: Any
) -> None:
    """SR2."""
    with pytest.raises(TypeError):
        await consume(source)


@in_both_functions
@pytest.mark.parametrize("source", NO_RESPONSES, ids=readable)
async def test_awaitable_of_something_else_is_a_type_error(consume: Consume, source: Any) -> None:
    """SR2."""
    with pytest.raises(TypeError):
        await consume(_soon(source))


@pytest.mark.parametrize("name", ["compile_streaming", "instantiate_streaming"])
async def test_source_is_required(name: str) -> None:
    """SR2."""
    with pytest.raises(TypeError):
        await getattr(aw, name)()


@in_both_shapes
@pytest.mark.parametrize("value", VALID_TYPES, ids=ascii)
async def test_content_type_is_accepted(shape: Shape, value: str) -> None:
    """SR3."""
    module = await aw.compile_streaming(shape(headers={"content-type": value}))

    assert module.byte_length == len(WASM)


@in_both_shapes
@in_both_functions
@pytest.mark.parametrize("value", INVALID_TYPES, ids=ascii)
async def test_content_type_is_refused_and_the_body_not_touched(
    consume: Consume, shape: Shape, value: str
) -> None:
    """SR3, SR6."""
    response = shape(headers={"Content-Type": value})

    with pytest.raises(TypeError):
        await consume(response)

    assert not response.touched


@in_both_shapes
@in_both_functions
async def test_missing_content_type_is_refused_and_the_body_not_touched(
    consume: Consume, shape: Shape
) -> None:
    """SR3, SR6."""
    response = shape(headers={})

    with pytest.raises(TypeError):
        await consume(response)

    assert not response.touched


@in_both_shapes
@pytest.mark.parametrize("status", [200, 201, 206, 226, 299])
async def test_status_is_accepted(shape: Shape, status: int) -> None:
    """SR5."""
    module = await aw.compile_streaming(shape(status=status))

    assert module.byte_length == len(WASM)


@in_both_shapes
@in_both_functions
@pytest.mark.parametrize("status", BAD_STATUS)
async def test_status_is_refused_and_the_body_not_touched(
    consume: Consume, shape: Shape, status: int
) -> None:
    """SR5, SR6."""
    response = shape(status=status)

    with pytest.raises(TypeError):
        await consume(response)

    assert not response.touched


@in_both_shapes
async def test_body_comes_in_chunks(shape: Shape) -> None:
    """SR7."""
    chunks = [WASM[:3], b"", bytearray(WASM[3:9]), memoryview(WASM[9:])]

    module = await aw.compile_streaming(shape(chunks))

    assert module.byte_length == len(WASM)


@in_both_shapes
@in_both_functions
async def test_error_of_the_body_is_raised_unchanged(consume: Consume, shape: Shape) -> None:
    """SR7."""
    error = ConnectionResetError("half way")

    with pytest.raises(ConnectionResetError) as caught:
        await consume(shape([WASM[:5]], error=error))

    assert caught.value is error


@pytest.mark.parametrize("chunk", ["text", 5, None, [0]], ids=readable)
@in_both_functions
async def test_chunk_that_is_not_bytes_like_is_a_type_error(consume: Consume, chunk: Any) -> None:
    """SR8."""
    with pytest.raises(TypeError):
        await consume(_stream(EMPTY, chunk))


@in_both_shapes
@in_both_functions
@pytest.mark.parametrize(
    "body", [b"", EMPTY[:4], EMPTY + b"\0\0"], ids=["empty", "cut", "trailing"]
)
async def test_bad_wasm_is_a_compile_error(consume: Consume, shape: Shape, body: bytes) -> None:
    """SR8, BS4."""
    with pytest.raises(aw.CompileError):
        await consume(shape([body]))


@in_both_functions
async def test_async_iterable_of_bytes_needs_no_headers(consume: Consume) -> None:
    """SR1."""
    module = await consume(_stream(WASM[:1], WASM[1:]))

    assert module.byte_length == len(WASM)


async def test_imports_are_read_after_the_module_is_ready() -> None:
    """SR9."""
    order: list[str] = []
    imports = Recorder(order, {"m": Recorder(order, {"g": 5})})
    response = HttpxResponse([IMPORTING])

    coroutine = aw.instantiate_streaming(response, imports)
    before = list(order)
    _, instance = await coroutine

    assert before == []
    assert order == ["m", "g"]
    assert instance.exports.g.value == 5


@pytest.mark.parametrize("arguments", [(), (None,)], ids=["omitted", "None"])
async def test_imports_that_are_needed_and_omitted_are_a_type_error(
    arguments: tuple[Any, ...],
) -> None:
    """SR9, RI1."""
    with pytest.raises(TypeError):
        await aw.instantiate_streaming(HttpxResponse([IMPORTING]), *arguments)


async def test_bad_import_is_a_link_error() -> None:
    """SR9."""
    with pytest.raises(aw.LinkError):
        await aw.instantiate_streaming(HttpxResponse([IMPORTING]), {"m": {"g": "no"}})


async def test_compile_options_are_taken() -> None:
    """OP2."""
    text = '(module (import "strings" "hello" (global $g externref)) (export "g" (global $g)))'
    response = HttpxResponse([aw.wat2wasm(text)])

    _, instance = await aw.instantiate_streaming(response, imported_string_constants="strings")

    assert instance.exports.g.value == "hello"


CLOSING: dict[str, tuple[dict[str, Any], type[Exception] | None]] = {
    "success": ({}, None),
    "type": ({"headers": {}}, TypeError),
    "status": ({"status": 404}, TypeError),
    "wasm": ({"chunks": [b"no"]}, aw.CompileError),
    "body": ({"error": ConnectionResetError()}, ConnectionResetError),
}


@in_both_shapes
@pytest.mark.parametrize(("options", "error"), CLOSING.values(), ids=CLOSING.keys())
async def test_response_that_we_awaited_is_closed_on_every_path(
    shape: Shape, options: dict[str, Any], error: type[Exception] | None
) -> None:
    """SR6."""
    response = shape(**options)

    with contextlib.nullcontext() if error is None else pytest.raises(error):
        await aw.compile_streaming(_soon(response))

    assert response.closed_by_us


RESPONSES = {
    "/ok": (200, "application/wasm", WASM),
    "/type": (200, "text/html", WASM),
    "/missing": (404, "application/wasm", WASM),
    "/bad": (200, "application/wasm", b"no wasm"),
    "/untyped": (200, None, WASM),
}


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = await reader.readuntil(b"\r\n\r\n")
    status, content_type, body = RESPONSES[request.split()[1].decode()]
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    if content_type is not None:
        head += f"Content-Type: {content_type}\r\n"
    writer.write(head.encode() + b"\r\n" + body)
    await writer.drain()
    writer.close()
    await writer.wait_closed()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[str]:
    """Run an HTTP server on the loopback interface and return its address."""
    running = await asyncio.start_server(_serve, "127.0.0.1", 0)
    async with running:
        host, port = running.sockets[0].getsockname()
        yield f"http://{host}:{port}"


class _Httpx:
    """Ask with httpx: `get` is awaited, `stream` a context manager."""

    def __init__(self, httpx: Any) -> None:
        self.client = httpx.AsyncClient(trust_env=False, verify=False)

    def get(self, address: str) -> Any:
        return self.client.get(address)

    def stream(self, address: str) -> Any:
        return self.client.stream("GET", address)

    async def aclose(self) -> None:
        await self.client.aclose()


class _Aiohttp:
    """Ask with aiohttp: `get` is both."""

    def __init__(self, aiohttp: Any) -> None:
        self.client = aiohttp.ClientSession()

    def get(self, address: str) -> Any:
        return self.client.get(address)

    def stream(self, address: str) -> Any:
        return self.client.get(address)

    async def aclose(self) -> None:
        await self.client.close()


@pytest_asyncio.fixture(params=["httpx", "aiohttp"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """Return a client of each HTTP library that is installed."""
    library = pytest.importorskip(request.param)
    client = _Httpx(library) if request.param == "httpx" else _Aiohttp(library)
    async with contextlib.aclosing(client):
        yield client


@in_both_functions
async def test_real_response_is_compiled(consume: Consume, client: Any, server: str) -> None:
    """SR1."""
    async with client.stream(f"{server}/ok") as response:
        module = await consume(response)

    assert module.byte_length == len(WASM)


@in_both_functions
async def test_real_awaitable_of_a_response_is_compiled(
    consume: Consume, client: Any, server: str
) -> None:
    """SR1."""
    module = await consume(client.get(f"{server}/ok"))

    assert module.byte_length == len(WASM)


@pytest.mark.parametrize("path", ["/type", "/missing", "/untyped"])
async def test_real_response_is_refused(client: Any, server: str, path: str) -> None:
    """SR3, SR5."""
    with pytest.raises(TypeError):
        await aw.compile_streaming(client.get(f"{server}{path}"))


@pytest.mark.parametrize("path", ["/type", "/missing"])
async def test_real_response_that_is_refused_can_still_be_read(
    client: Any, server: str, path: str
) -> None:
    """SR6."""
    async with client.stream(f"{server}{path}") as response:
        with pytest.raises(TypeError):
            await aw.compile_streaming(response)
        read = response.aread if hasattr(response, "aread") else response.read

        assert await read() == WASM


async def test_real_response_with_bad_wasm_is_a_compile_error(client: Any, server: str) -> None:
    """SR8."""
    with pytest.raises(aw.CompileError):
        await aw.compile_streaming(client.get(f"{server}/bad"))


async def test_fully_read_httpx_response_is_accepted(server: str) -> None:
    """SR6, where Python differs: the body is still there."""
    httpx = pytest.importorskip("httpx")
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        response = await client.get(f"{server}/ok")

        module = await aw.compile_streaming(response)

    assert module.byte_length == len(WASM)


async def test_httpx_response_whose_stream_was_consumed_is_a_type_error(server: str) -> None:
    """SR6."""
    httpx = pytest.importorskip("httpx")
    async with (
        httpx.AsyncClient(trust_env=False, verify=False) as client,
        client.stream("GET", f"{server}/ok") as response,
    ):
        async for _ in response.aiter_bytes():
            pass

        with pytest.raises(TypeError):
            await aw.compile_streaming(response)

"""`compile_streaming` and `instantiate_streaming`: responses, their headers, and byte streams."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import pathlib
import pickle
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from typing import Any

import anyio
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


async def test_compile_options_are_kept_in_the_module() -> None:
    """OP3."""
    text = '(module (import "strings" "hello" (global $g externref)) (export "g" (global $g)))'

    module = await aw.compile_streaming(
        HttpxResponse([aw.wat2wasm(text)]), imported_string_constants="strings"
    )

    assert (await aw.instantiate(module)).exports.g.value == "hello"


@pytest.mark.parametrize(
    ("options", "error", "touched"),
    [
        ({"builtins": "js-string"}, TypeError, False),
        ({"imported_string_constants": 5}, TypeError, False),
        ({"builtins": ["js-string", "js-string"]}, aw.CompileError, True),
    ],
    ids=["text", "number", "duplicate"],
)
async def test_bad_compile_options_are_raised_when_awaited(
    options: dict[str, Any], error: type[Exception], touched: bool
) -> None:
    """OP1."""
    for function in (aw.compile_streaming, aw.instantiate_streaming):
        response = HttpxResponse()
        coroutine: Any = function(response, **options)

        with pytest.raises(error):
            await coroutine

        assert response.touched is touched


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


@in_both_shapes
@pytest.mark.parametrize(("options", "error"), CLOSING.values(), ids=CLOSING.keys())
async def test_response_that_is_handed_in_is_left_open(
    shape: Shape, options: dict[str, Any], error: type[Exception] | None
) -> None:
    """SR6."""
    response = shape(**options)

    with contextlib.nullcontext() if error is None else pytest.raises(error):
        await aw.compile_streaming(response)

    assert not response.closed_by_us


class _Waiting:
    """Chunks of which the second never comes."""

    def __init__(self) -> None:
        self.asked = anyio.Event()
        self.ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            yield WASM[:5]
            self.asked.set()
            await anyio.sleep_forever()
        finally:
            self.ended = True


def _waiting(shape: Shape) -> tuple[Any, _Waiting]:
    """Return a response whose body never ends, and its body."""
    body = _Waiting()
    response = shape()
    response._iterate = body.__aiter__
    return response, body


@in_both_shapes
@in_both_functions
@pytest.mark.parametrize("ours", [True, False], ids=["awaited", "handed-in"])
async def test_cancelled_read_closes_the_response_that_we_awaited(
    consume: Consume, shape: Shape, ours: bool
) -> None:
    """CO4, SR6."""
    response, body = _waiting(shape)
    task = asyncio.ensure_future(consume(_soon(response) if ours else response))
    await body.asked.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert body.ended
    assert response.closed_by_us is ours


async def _cancelled_while_closing(response: Any, body: _Waiting) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(_compile, _soon(response))
        await body.asked.wait()
        group.cancel_scope.cancel()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_closing_is_shielded_from_the_cancellation(backend: str) -> None:
    """SR6: saying goodbye takes a turn of the loop."""

    async def main() -> bool:
        response, body = _waiting(HttpxResponse)
        closed = False

        async def aclose() -> None:
            nonlocal closed
            await anyio.lowlevel.checkpoint()
            closed = True

        response.aclose = aclose
        await _cancelled_while_closing(response, body)
        return closed

    assert anyio.run(main, backend=backend)


def test_closing_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """The clock is trio's, and jumps when everybody waits."""
    trio = pytest.importorskip("trio")
    testing = pytest.importorskip("trio.testing")
    waited = None

    async def main() -> None:
        nonlocal waited
        response, body = _waiting(HttpxResponse)
        response.aclose = anyio.sleep_forever
        started = trio.current_time()
        await _cancelled_while_closing(response, body)
        waited = trio.current_time() - started

    with caplog.at_level(logging.WARNING, "asyncwasm"):
        trio.run(main, clock=testing.MockClock(autojump_threshold=0))

    assert waited == 5
    assert [record.__dict__["seconds"] for record in caplog.records] == [5]


async def test_error_of_closing_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def aclose() -> None:
        raise OSError("no goodbye")

    good, bad = HttpxResponse(), HttpxResponse([b"no"], error=KeyError("read"))
    good.aclose = bad.aclose = aclose  # type: ignore[method-assign]  # fails

    with caplog.at_level(logging.WARNING, "asyncwasm"):
        module = await aw.compile_streaming(_soon(good))
        with pytest.raises(KeyError):
            await aw.compile_streaming(_soon(bad))

    assert module.byte_length == len(WASM)
    assert {record.__dict__["error"] for record in caplog.records} == {"OSError('no goodbye')"}


def test_coroutine_that_is_closed_while_reading_ends_at_once() -> None:
    """Without a loop nothing can be awaited, a goodbye neither."""

    @types.coroutine
    def pause() -> Generator[None, None, None]:
        yield

    async def chunks() -> AsyncIterator[bytes]:
        await pause()
        yield WASM

    response: Any = HttpxResponse()
    response._iterate = chunks
    coroutine = aw.compile_streaming(_soon(response))
    coroutine.send(None)

    coroutine.close()

    assert not response.closed_by_us


async def test_stream_that_never_lets_the_loop_run_can_be_cancelled() -> None:
    started = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            started.set()
            yield b""

    async with anyio.create_task_group() as group:
        group.start_soon(_compile, endless())
        await started.wait()
        group.cancel_scope.cancel()


async def test_stream_that_has_everything_at_hand_lets_the_loop_run() -> None:
    others_ran = False

    async def until_others_ran() -> AsyncIterator[bytes]:
        while not others_ran:
            yield b""
        yield WASM

    def run() -> None:
        nonlocal others_ran
        others_ran = True

    asyncio.get_running_loop().call_soon(run)
    module = await aw.compile_streaming(until_others_ran())

    assert module.byte_length == len(WASM)


class _Counted:
    """Chunks of eight bytes, counted; the iterator notes its end."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0
        self.ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for _ in range(self.count):
                self.taken += 1
                yield EMPTY
        finally:
            self.ended = True


def _small_engine(limit: int) -> aw.Engine:
    return aw.Engine(aw.EngineConfig(max_module_bytes=limit))


def _described(shape: Shape, body: _Counted, **headers: str) -> Any:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    response = shape(headers={"content-type": "application/wasm", **names})
    response._iterate = body.__aiter__
    return response


@in_both_shapes
async def test_body_above_the_limit_is_not_read_on(shape: Shape) -> None:
    body = _Counted(100)

    with _small_engine(20) as engine, pytest.raises(aw.CompileError, match="max_module_bytes"):
        await aw.compile_streaming(_described(shape, body), engine=engine)

    assert body.taken == 3
    assert body.ended


async def test_stream_above_the_limit_is_not_read_on_and_its_iterator_closed() -> None:
    stream = _Counted(100)

    with _small_engine(20) as engine, pytest.raises(aw.CompileError):
        await aw.instantiate_streaming(stream, engine=engine)

    assert stream.taken == 3
    assert stream.ended


async def test_stream_that_is_its_own_iterator_is_left_to_its_owner() -> None:
    stream = aiter(_Counted(100))

    with _small_engine(20) as engine, pytest.raises(aw.CompileError):
        await aw.compile_streaming(stream, engine=engine)

    assert [chunk async for chunk in stream] == [EMPTY] * 97


async def test_body_of_the_size_of_the_limit_is_compiled() -> None:
    with _small_engine(len(WASM)) as engine:
        module = await aw.compile_streaming(_stream(WASM[:9], WASM[9:]), engine=engine)

    assert module.byte_length == len(WASM)


@in_both_shapes
@pytest.mark.parametrize(
    ("headers", "taken"),
    [
        ({"content_length": "21"}, 0),
        ({"content_length": "20"}, 3),
        ({"content_length": "many"}, 3),
        ({"content_length": "21", "content_encoding": "gzip"}, 3),
    ],
    ids=["above", "lying", "nonsense", "encoded"],
)
async def test_content_length_above_the_limit_leaves_the_body_untouched(
    shape: Shape, headers: dict[str, str], taken: int
) -> None:
    body = _Counted(100)

    with _small_engine(20) as engine, pytest.raises(aw.CompileError):
        await aw.compile_streaming(_described(shape, body, **headers), engine=engine)

    assert body.taken == taken


async def test_engine_of_the_store_bounds_the_body() -> None:
    with (
        _small_engine(20) as engine,
        aw.Store(engine=engine) as store,
        pytest.raises(aw.CompileError),
    ):
        await aw.instantiate_streaming(_stream(WASM), store=store)


async def test_closed_engine_compiles_no_stream() -> None:
    engine = aw.Engine()
    engine.close()

    with pytest.raises(anyio.ClosedResourceError):
        await aw.compile_streaming(_stream(WASM), engine=engine)


@in_both_shapes
async def test_headers_are_read_when_awaited(shape: Shape) -> None:
    """SR6: a type that is set late counts, one that is removed late does not."""
    late, gone = shape(headers={}), shape()
    compiling, failing = aw.compile_streaming(late), aw.compile_streaming(gone)

    late.headers, gone.headers = gone.headers, late.headers
    module = await compiling
    with pytest.raises(TypeError):
        await failing

    assert module.byte_length == len(WASM)
    assert not gone.touched


@in_both_shapes
async def test_status_of_a_refused_response_is_told(shape: Shape) -> None:
    """SR5."""
    with pytest.raises(TypeError, match="got 404") as caught:
        await aw.compile_streaming(shape(status=404))

    again = pickle.loads(pickle.dumps(caught.value))
    assert again.status == caught.value.status == 404  # type: ignore[attr-defined]
    assert str(again) == str(caught.value)


HINTS = [
    ("module.wasm", "pathlib.Path"),
    ("(module)", "wat2wasm"),
    (WASM, "asyncwasm.compile"),
    (pathlib.Path("module.wasm"), "asyncwasm.compile"),
    (contextlib.aclosing(HttpxResponse()), "async with"),
]


@in_both_functions
@pytest.mark.parametrize(
    ("source", "hint"), HINTS, ids=["file", "text", "bytes", "path", "context"]
)
async def test_refused_source_comes_with_a_hint(consume: Consume, source: Any, hint: str) -> None:
    """SR2."""
    with pytest.raises(TypeError, match=hint):
        await consume(source)


async def test_source_may_use_its_buffer_again() -> None:
    """A chunk is copied, and let go of, before the next one is asked for."""

    async def reuse() -> AsyncIterator[bytearray]:
        buffer = bytearray()
        for byte in WASM:
            buffer.clear()
            buffer.append(byte)
            yield buffer

    module = await aw.compile_streaming(reuse())

    assert module.byte_length == len(WASM)


def test_no_http_library_is_imported() -> None:
    """Both are recognized by their attributes."""
    code = "import sys, asyncwasm; sys.exit(bool({'httpx', 'aiohttp'} & sys.modules.keys()))"

    finished = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)

    assert finished.returncode == 0


RESPONSES = {
    "/ok": (200, "application/wasm", WASM),
    "/type": (200, "text/html", WASM),
    "/missing": (404, "application/wasm", WASM),
    "/bad": (200, "application/wasm", b"no wasm"),
    "/untyped": (200, None, WASM),
    "/gzip": (200, "application/wasm", gzip.compress(WASM)),
    "/cut": (200, "application/wasm", WASM),
}


def _answer(path: str) -> bytes:
    status, content_type, body = RESPONSES[path]
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    if content_type is not None:
        head += f"Content-Type: {content_type}\r\n"
    if path == "/gzip":
        head += "Content-Encoding: gzip\r\n"
    return head.encode() + b"\r\n" + (body[:-10] if path == "/cut" else body)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = await reader.readuntil(b"\r\n\r\n")
    writer.write(_answer(request.split()[1].decode()))
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

    def unread(self, address: str) -> Any:
        return self.client.send(self.client.build_request("GET", address), stream=True)

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

    def unread(self, address: str) -> Any:
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


@in_both_functions
async def test_real_response_is_decoded(consume: Consume, client: Any, server: str) -> None:
    """The limit and the module are those of the decoded body."""
    module = await consume(client.unread(f"{server}/gzip"))

    assert module.byte_length == len(WASM)


async def test_real_response_above_the_limit_is_refused(client: Any, server: str) -> None:
    with _small_engine(20) as engine:
        for path in ("/ok", "/gzip"):
            async with client.stream(server + path) as response:
                with pytest.raises(aw.CompileError, match="max_module_bytes"):
                    await aw.compile_streaming(response, engine=engine)


async def test_error_of_a_real_body_is_raised(client: Any, server: str) -> None:
    """SR7."""
    with pytest.raises(Exception, match=r"(?i)complete|closed") as caught:
        await aw.compile_streaming(client.unread(f"{server}/cut"))

    assert type(caught.value).__module__.partition(".")[0] in ("httpx", "aiohttp")


async def test_error_of_the_stream_of_httpx_is_the_same_object() -> None:
    """SR7."""
    httpx = pytest.importorskip("httpx")
    error = ConnectionResetError("half way")

    async def content() -> AsyncIterator[bytes]:
        yield WASM[:5]
        raise error

    headers = {"Content-Type": "application/wasm"}
    with pytest.raises(ConnectionResetError) as caught:
        await aw.compile_streaming(httpx.Response(200, headers=headers, content=content()))

    assert caught.value is error


async def test_error_of_the_content_of_aiohttp_is_the_same_object(server: str) -> None:
    """SR7."""
    aiohttp = pytest.importorskip("aiohttp")
    error = ConnectionResetError("half way")

    async with aiohttp.ClientSession() as session, session.get(f"{server}/ok") as response:
        response.content.set_exception(error)
        with pytest.raises(ConnectionResetError) as caught:
            await aw.compile_streaming(response)

    assert caught.value is error


async def test_cancelled_read_ends_the_connection(client: Any) -> None:
    """CO4: the server, which waits with the second half, sees the client go."""
    sent, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_answer("/cut"))
        await writer.drain()
        sent.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        gone.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as running:
        host, port = running.sockets[0].getsockname()
        task = asyncio.ensure_future(_compile(client.unread(f"http://{host}:{port}/")))
        await sent.wait()

        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with anyio.fail_after(10):
            await gone.wait()


@pytest.mark.parametrize("part", [-1, 5], ids=["whole", "part"])
async def test_aiohttp_response_that_was_read_is_a_type_error(server: str, part: int) -> None:
    """SR6."""
    aiohttp = pytest.importorskip("aiohttp")
    async with aiohttp.ClientSession() as session, session.get(f"{server}/ok") as response:
        await response.content.read(part)

        with pytest.raises(TypeError, match="has been read"):
            await aw.compile_streaming(response)


async def test_httpx_response_that_was_closed_is_a_type_error(server: str) -> None:
    """SR6."""
    httpx = pytest.importorskip("httpx")
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        async with client.stream("GET", f"{server}/ok") as response:
            pass

        with pytest.raises(TypeError, match="closed"):
            await aw.compile_streaming(response)


def _synchronous(httpx: Any) -> Any:
    """Return a synchronous client whose server is a function."""

    def serve(_: Any) -> Any:
        return httpx.Response(
            200, headers={"Content-Type": "application/wasm"}, stream=stream(WASM)
        )

    stream: Any = type(
        "Stream",
        (httpx.SyncByteStream,),
        {
            "__init__": lambda self, body: setattr(self, "body", body),
            "__iter__": lambda self: iter([self.body]),
        },
    )
    return httpx.Client(transport=httpx.MockTransport(serve))


@in_both_functions
async def test_response_of_the_synchronous_client_is_accepted_when_read(consume: Consume) -> None:
    """SR1."""
    with _synchronous(pytest.importorskip("httpx")) as client:
        first = await consume(client.get("http://test"))
        second = await consume(asyncio.to_thread(client.get, "http://test"))

    assert first.digest == second.digest


async def test_unread_response_of_the_synchronous_client_is_a_type_error() -> None:
    """SR2: its body cannot be awaited."""
    with _synchronous(pytest.importorskip("httpx")) as client:
        with client.stream("GET", "http://test") as response:
            with pytest.raises(TypeError, match="synchronous"):
                await aw.compile_streaming(response)
            assert not response.is_closed
            assert response.read() == WASM

        request = client.build_request("GET", "http://test")
        response = client.send(request, stream=True)
        with pytest.raises(TypeError, match="synchronous"):
            await aw.compile_streaming(_soon(response))
        assert response.is_closed


@pytest.mark.parametrize("library", ["httpx", "aiohttp"])
async def test_several_content_types_are_refused(library: str) -> None:
    """SR3: joined, as fetch joins them."""
    headers = [("Content-Type", "application/wasm")] * 2
    response: Any
    if library == "httpx":
        response = pytest.importorskip("httpx").Response(200, headers=headers, content=WASM)
    else:
        response = AiohttpResponse()
        response.headers = pytest.importorskip("multidict").CIMultiDict(headers)

    with pytest.raises(TypeError, match="application/wasm, application/wasm"):
        await aw.compile_streaming(response)


def test_httpx_works_under_trio() -> None:
    """SR1, SR3, SR5: with a real server, read whole and streamed."""
    trio = pytest.importorskip("trio")
    httpx = pytest.importorskip("httpx")
    results: list[Any] = []

    async def serve(stream: Any) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some()
        await stream.send_all(_answer(request.split()[1].decode()))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            host, port = listener.socket.getsockname()
            address = f"http://{host}:{port}"
            async with httpx.AsyncClient(trust_env=False, verify=False) as client:
                request = client.build_request("GET", f"{address}/ok")
                results.append(await aw.compile_streaming(client.get(f"{address}/gzip")))
                results.append(await aw.compile_streaming(client.send(request, stream=True)))
                async with client.stream("GET", f"{address}/ok") as response:
                    _, instance = await aw.instantiate_streaming(response)
                    results.append(await instance.exports.f.call_async())
                with pytest.raises(TypeError):
                    await aw.compile_streaming(client.get(f"{address}/missing"))
            nursery.cancel_scope.cancel()

    trio.run(main)

    assert [module.digest for module in results[:2]] == [aw.Module(WASM).digest] * 2
    assert results[2] == 7

"""
Requests to a web service whose handlers run guests: ``python -m benchmarks.http``.

The service is the application of ``examples/web_backend.py`` under uvicorn, in a process of its
own, asked through the loopback interface by a client that has a bounded number of requests
under way. The other side is the same handler with wasmtime-py: a store and an instance for
each request, in a worker thread. "Short" asks for as little work as scrypt can be asked for,
so that the handler's own cost shows; "work" is what the example asks for, mostly the guest's time.

    python -m benchmarks.http --serve asyncwasm        serves until it is told to stop
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import importlib.util
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wasmtime

from ._measure import Figure, Options, quantile, run_alone

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("uvicorn", "starlette", "httpx", "aiohttp")
CONCURRENCY = 8
JOBS = {
    "short": {"password": "password", "salt": b"salt".hex(), "n": 2, "p": 1},
    "work": {"password": "password", "salt": b"salt".hex(), "n": 1024, "p": 1},
}


def example() -> Any:
    """Return the module of the example."""
    spec = importlib.util.spec_from_file_location(
        "web_backend", ROOT / "examples" / "web_backend.py"
    )
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def peer_application() -> Any:
    """Return the same service over wasmtime-py: an instance a request, in a thread."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    backend = example()
    engine = wasmtime.Engine()
    module = wasmtime.Module.from_file(engine, str(backend.MODULE))

    def scrypt(job: dict[str, Any]) -> tuple[int, dict[str, str]]:
        store = wasmtime.Store(engine)
        store.set_limits(memory_size=backend.LIMITS.memory_bytes)
        guest: Any = wasmtime.Instance(store, module, []).exports(store)
        memory = guest["memory"]
        arguments = []
        for value in (job["password"].encode(), bytes.fromhex(job["salt"])):
            address = guest["alloc"](store, len(value))
            memory.write(store, value, address)
            arguments += [address, len(value)]
        key = guest["alloc"](store, backend.KEY_BYTES)
        refusal = guest["scrypt"](store, *arguments, job["n"], 8, job["p"], key, backend.KEY_BYTES)
        if refusal:
            return 422, {"error": backend.REFUSALS[refusal]}
        return 200, {"key": bytes(memory.read(store, key, key + backend.KEY_BYTES)).hex()}

    async def hash_password(request: Request) -> JSONResponse:
        status, answer = await asyncio.to_thread(scrypt, await request.json())
        return JSONResponse(answer, status)

    return Starlette(routes=[Route("/scrypt", hash_password, methods=["POST"])])


async def serve(side: str) -> None:
    """Serve on a free port, which is printed, until somebody interrupts."""
    import uvicorn

    application = example().app if side == "asyncwasm" else peer_application()
    # asyncio turns off Nagle's algorithm only where the protocol is named; else small answers
    # wait 40 ms for an acknowledgement.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        print(listening.getsockname()[1], flush=True)
        configuration = uvicorn.Config(
            application, log_level="warning", access_log=False, ws="none", lifespan="auto"
        )
        await uvicorn.Server(configuration).serve([listening])


@contextlib.contextmanager
def service(side: str) -> Iterator[str]:
    """Yield the address of a service in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.http", "--serve", side],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.send_signal(signal.SIGINT if sys.platform != "win32" else signal.SIGTERM)
        process.wait()
        process.stdout.close()


async def ask(url: str, job: dict[str, Any], requests: int) -> tuple[float, list[float]]:
    """Return the seconds that so many requests take, and each one's own, in ms."""
    import aiohttp

    salt, password = bytes.fromhex(job["salt"]), job["password"].encode()
    key = hashlib.scrypt(password, salt=salt, n=job["n"], r=8, p=job["p"], dklen=32).hex()
    taken: list[float] = []
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            before = time.perf_counter()
            async with session.post(f"{url}/scrypt", json=job) as response:
                answer = await response.json()
            taken.append((time.perf_counter() - before) * 1000)
            assert answer == {"key": key}, (response.status, answer)

    async with aiohttp.ClientSession() as session:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(client())
        return time.perf_counter() - started, taken


async def asked(options: Options, urls: tuple[str, str]) -> list[Figure]:
    """Return the figures of both services."""
    requests = 20 if options.quick else 400
    rounds = 1 if options.quick else 5
    figures = []
    for name, job in JOBS.items():
        for url in urls:
            await ask(url, job, CONCURRENCY * 2)
        sides: tuple[list[float], list[float]] = ([], [])
        seconds: list[tuple[float, float]] = []
        for _ in range(rounds):
            pair = []
            for url, taken in zip(urls, sides, strict=True):
                whole, each = await ask(url, job, requests)
                pair.append(whole / requests)
                taken.extend(each)
            seconds.append((pair[0], pair[1]))
        ours, theirs = (statistics.median(side) for side in zip(*seconds, strict=True))
        what = f"{name}, {CONCURRENCY} at once"
        other = "wasmtime-py in threads"
        figures.append(
            Figure.pair(
                f"{what}: time per request",
                "ms",
                other,
                seconds,
                details={"requests per second": 1 / ours, "other requests per second": 1 / theirs},
                note=f"{1 / ours:,.0f} and {1 / theirs:,.0f} requests a second",
            )
        )
        for percent in (50, 99):
            mine, others = (quantile(side, percent) for side in sides)
            figures.append(
                Figure(
                    name=f"{what}: p{percent}",
                    unit="ms",
                    ours=mine,
                    other=other,
                    theirs=others,
                    ratio=others / mine,
                )
            )
    return figures


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        yield Figure(name="requests", unit="ms", note=f"not installed: {', '.join(missing)}")
        return
    with service("asyncwasm") as ours, service("wasmtime-py") as theirs:
        yield from asyncio.run(asked(options, (ours, theirs)))


def main() -> None:
    """Measure, or serve."""
    sides = argparse.ArgumentParser(add_help=False)
    sides.add_argument("--serve", choices=["asyncwasm", "wasmtime-py"])
    arguments, _ = sides.parse_known_args()
    if arguments.serve is None:
        run_alone("http", measure, __doc__)
    else:
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn passes on how it was stopped
            asyncio.run(serve(arguments.serve))


if __name__ == "__main__":
    main()

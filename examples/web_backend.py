"""
A web backend whose requests run in guests: each in an instance of its own, from a pool.

The service hashes passwords with the scrypt guest. A client can ask for more work than anybody
should get, so a request has three bounds: the memory of its instance (`Limits`), a deadline
(`anyio.fail_after`), and the client's own patience: when it hangs up, its guest is stopped. The
pool bounds all the requests together. Who comes when all instances are in use waits in line,
which counts against the deadline; who comes when the line is full, too, is sent away.

    python examples/web_backend.py                      serves on a free port, and visits itself
    uvicorn --app-dir examples web_backend:app          just serves

Needs ``pip install starlette uvicorn httpx``.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import pathlib
import socket
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import asyncwasm as aw

MODULE = pathlib.Path(__file__).resolve().parent / "modules" / "scrypt.wasm"
INSTANCES, WAITING = 4, 100
DEADLINE_SECONDS = 2.0
LIMITS = aw.Limits(memory_bytes=64 << 20)
KEY_BYTES = 32
REFUSALS = {1: "bad parameters", 2: "more memory than a request may have"}


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """Compile the guest once; the pool ends with the application."""
    module = await aw.compile(MODULE)
    async with aw.InstancePool(
        module, max_instances=INSTANCES, max_waiting=WAITING, limits=LIMITS
    ) as pool:
        yield {"pool": pool, "outcomes": Counter()}


async def hash_password(request: Request) -> JSONResponse:
    """Answer ``POST /scrypt``; stop working on it when the client has gone."""
    job = await request.json()
    status, answer = 499, {"error": "the client has gone"}
    async with anyio.create_task_group() as group:
        group.start_soon(cancel_on_disconnect, request, group.cancel_scope)
        status, answer = await scrypt_or_why_not(request.state.pool, job)
        group.cancel_scope.cancel()
    request.state.outcomes[str(status)] += 1
    return JSONResponse(answer, status)


async def cancel_on_disconnect(request: Request, scope: anyio.CancelScope) -> None:
    """Cancel *scope* when the client hangs up; the request's body has been read by now."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def scrypt_or_why_not(
    pool: aw.InstancePool, job: dict[str, Any]
) -> tuple[int, dict[str, str]]:
    """Return the status of the response, and its content."""
    try:
        with anyio.fail_after(DEADLINE_SECONDS):
            async with pool.acquire() as instance:
                return await scrypt(instance, job)
    except TimeoutError:
        return 504, {"error": f"not done within {DEADLINE_SECONDS:g} s"}
    except anyio.WouldBlock:
        return 503, {"error": "too many requests at once"}
    except (KeyError, TypeError, ValueError, OverflowError):
        return 400, {"error": "expected password, salt, n and p"}


async def scrypt(instance: aw.Instance, job: dict[str, Any]) -> tuple[int, dict[str, str]]:
    """Run the guest. It need not clean up: nobody else gets this instance."""
    guest = instance.exports
    arguments = []
    for value in (job["password"].encode(), bytes.fromhex(job["salt"])):
        address = guest.alloc(len(value))
        guest.memory.write(address, value)
        arguments += [address, len(value)]
    key = guest.alloc(KEY_BYTES)
    refusal = await guest.scrypt.call_async(*arguments, job["n"], 8, job["p"], key, KEY_BYTES)
    if refusal:
        return 422, {"error": REFUSALS[refusal]}
    return 200, {"key": guest.memory.read(key, KEY_BYTES).hex()}


async def statistics(request: Request) -> JSONResponse:
    """Answer ``GET /statistics``."""
    pool = dataclasses.asdict(request.state.pool.statistics())
    return JSONResponse({"outcomes": request.state.outcomes, "pool": pool})


app = Starlette(
    routes=[
        Route("/scrypt", hash_password, methods=["POST"]),
        Route("/statistics", statistics),
    ],
    lifespan=lifespan,
)


async def visit(url: str) -> None:
    """Be a client of the service: an honest one first, then three who ask for too much."""
    salt = b"salt"
    modest = {"salt": salt.hex(), "n": 1024, "p": 1}
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        passwords = [f"password {number}" for number in range(12)]
        responses = await asyncio.gather(
            *(client.post("/scrypt", json={**modest, "password": each}) for each in passwords)
        )
        agreeing = 0
        for password, response in zip(passwords, responses, strict=True):
            key = hashlib.scrypt(password.encode(), salt=salt, n=1024, r=8, p=1, dklen=KEY_BYTES)
            agreeing += response.json() == {"key": key.hex()}
        print(f"{agreeing} of {len(passwords)} hashes agree with hashlib.scrypt")

        greedy = {**modest, "password": "", "n": 2**20}  # 1 GiB
        response = await client.post("/scrypt", json=greedy)
        print(response.status_code, response.json()["error"])

        endless = {**modest, "password": "", "n": 2**14, "p": 20_000}  # many minutes
        response = await client.post("/scrypt", json=endless)
        print(response.status_code, response.json()["error"])

        with contextlib.suppress(httpx.ReadTimeout):
            await client.post("/scrypt", json=endless, timeout=0.2)
        seen = await statistics_at_rest(client)
        print("a client hung up, and its guest was stopped:", seen["outcomes"].get("499") == 1)
        print(f"{seen['pool']['created']} instances, {seen['pool']['discarded']} of them closed")


async def statistics_at_rest(client: httpx.AsyncClient) -> dict[str, Any]:
    """Return the statistics of the service once no instance is in use."""
    async with asyncio.timeout(60):
        while True:
            seen: dict[str, Any] = (await client.get("/statistics")).json()
            if not seen["pool"]["in_use"]:
                return seen
            await asyncio.sleep(0.01)


async def main() -> None:
    """Serve on a free port, and visit."""
    # The protocol is named, so that the loop sends small answers at once.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve([listening]))
            try:
                await visit(f"http://127.0.0.1:{listening.getsockname()[1]}")
            finally:
                server.should_exit = True


if __name__ == "__main__":
    asyncio.run(main())

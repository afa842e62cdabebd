"""
Async imports: twenty guests fetch documents through one ``async def``.

The guest is sequential C: it calls ``fetch``, uses the answer, calls ``fetch`` again. Here
``fetch`` is a coroutine that speaks HTTP with a server of this program, and while one guest
waits, the other nineteen run, all in one thread. The server proves it: it answers nobody
before twenty requests are waiting.

Imports run in the context of the task that awaits the call. So one pair of functions serves
all the guests, and a context variable tells them which guest is calling.
"""

import asyncio
import contextvars
import pathlib

import asyncwasm as aw

GUESTS = 20
MODULE = pathlib.Path(__file__).resolve().parent / "modules" / "fetch.wasm"

port = contextvars.ContextVar[int]("port")
current = contextvars.ContextVar[aw.Instance]("current")
reports: list[str] = []


async def fetch(url: int, url_size: int, buffer: int, capacity: int) -> int:
    """Import: put the document at *url* into the guest's buffer, and return its size."""
    memory = current.get().exports.memory
    body = await http_get(port.get(), memory.read(url, url_size).decode())
    if len(body) > capacity:
        return -1
    memory.write(buffer, body)
    return len(body)


def log(address: int, size: int) -> None:
    """Import: keep the guest's report. Imports need not be async."""
    reports.append(current.get().exports.memory.read(address, size).decode())


async def http_get(port: int, path: str) -> bytes:
    """Return the body of the document at *path*: HTTP/1.0, so that it ends at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if b" 200 " not in head.splitlines()[0]:
        raise OSError(f"no document at {path}")
    return body


async def run_guest(module: aw.Module, number: int) -> int:
    """Run one guest on two documents, and return how many lines it counted."""
    instance = await aw.instantiate(module, {"env": {"fetch": fetch, "log": log}})
    current.set(instance)
    guest = instance.exports
    arguments = []
    for path in (f"/lines/{number}", f"/lines/{10 * number}"):
        address = guest.alloc(len(path))
        guest.memory.write(address, path.encode())
        arguments += [address, len(path)]
    total: int = await guest.run.call_async(*arguments)
    return total


async def main() -> None:
    """Start the server, run all the guests at once, and print what came of it."""
    everybody = asyncio.Barrier(GUESTS)
    served = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        await everybody.wait()
        served += 1
        lines = int(path.removeprefix("/lines/"))
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"another line\n" * lines)
        writer.close()

    module = await aw.compile(MODULE)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port.set(server.sockets[0].getsockname()[1])
        # Only a guest that held up the others could ever reach this limit.
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            tasks = [group.create_task(run_guest(module, n)) for n in range(GUESTS)]

    print(f"{GUESTS} guests fetched {served} documents, {GUESTS} at a time")
    print(f"the last one reported {max(reports, key=lambda r: int(r.split()[0]))!r}")
    print(f"together they counted {sum(task.result() for task in tasks)} lines")


if __name__ == "__main__":
    asyncio.run(main())

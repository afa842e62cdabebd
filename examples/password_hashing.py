"""
Password hashing: scrypt in wasm, several at once, with the event loop awake throughout.

scrypt is slow on purpose. Called the ordinary way it would hold the event loop for as long,
and everybody connected would wait for one person's login. Here every hash runs in an
instance of its own through ``call_async``, while a heartbeat measures how late the event
loop gets. The timings are printed, not promised: on a busy machine they are the machine's.
"""

import asyncio
import hashlib
import hmac
import pathlib
import secrets
import statistics
import time

import asyncwasm as aw

MODULE = pathlib.Path(__file__).resolve().parent / "modules" / "scrypt.wasm"
PASSWORDS = (
    "correct horse battery staple",
    "hunter2",
    "pässwörd",
    "0123456789" * 10,
    "",
    "trustno1",
)
N, R, P, SIZE = 2**14, 8, 1, 32  # 16 MiB for each hash.


async def scrypt(module: aw.Module, password: bytes, salt: bytes) -> bytes:
    """Hash *password* in a fresh instance, whose memory is freed afterwards."""
    async with await aw.instantiate(module) as instance:
        guest = instance.exports
        arguments = []
        for value in (password, salt):
            address = guest.alloc(len(value))
            guest.memory.write(address, value)
            arguments += [address, len(value)]
        key = guest.alloc(SIZE)
        status = await guest.scrypt.call_async(*arguments, N, R, P, key, SIZE)
        if status != 0:
            raise ValueError(f"the guest returned {status}")
        result: bytes = guest.memory.read(key, SIZE)
        return result


async def heartbeat(lateness: list[float], period_seconds: float = 0.002) -> None:
    """Append to *lateness* by how many seconds each beat is late, until cancelled."""
    while True:
        due = time.perf_counter() + period_seconds
        await asyncio.sleep(period_seconds)
        lateness.append(time.perf_counter() - due)


async def main() -> None:
    """Hash all the passwords at once, then check them one by one."""
    module = await aw.compile(MODULE)
    salts = [secrets.token_bytes(16) for _ in PASSWORDS]

    lateness: list[float] = []
    beating = asyncio.create_task(heartbeat(lateness))
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(scrypt(module, password.encode(), salt))
            for password, salt in zip(PASSWORDS, salts, strict=True)
        ]
    seconds = time.perf_counter() - start
    beating.cancel()

    # hashlib holds the loop, which has nobody else to serve by now.
    agreeing = 0
    for password, salt, task in zip(PASSWORDS, salts, tasks, strict=True):
        key = hashlib.scrypt(password.encode(), salt=salt, n=N, r=R, p=P, dklen=SIZE)
        agreeing += hmac.compare_digest(key, task.result())
    print(f"{agreeing} of {len(PASSWORDS)} hashes agree with hashlib.scrypt")

    wrong = await scrypt(module, b"a guess", salts[0])
    print("a wrong password is refused:", not hmac.compare_digest(wrong, tasks[0].result()))
    print(
        f"{seconds * 1000:.0f} ms for all, {len(lateness)} heartbeats meanwhile,"
        f" late by {statistics.median(lateness) * 1000:.1f} ms (median),"
        f" {max(lateness) * 1000:.1f} ms (worst)"
    )


if __name__ == "__main__":
    asyncio.run(main())

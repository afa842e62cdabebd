"""
The examples run and print what they promise; their guests are what the sources build.

Nothing here asserts on a time: the examples print timings, the tests look past them.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import asyncwasm as aw

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MODULES = EXAMPLES / "modules"
PROGRAMS = ("quickstart", "imports", "password_hashing")


def run(name: str) -> list[str]:
    """Run an example with the asyncwasm under test and return the lines it prints."""
    paths = [str(Path(aw.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # An example must work for a user with no cache yet, and leave none behind here.
        "ASYNCWASM_CACHE_DIR": "off",
        # A machine that stalls for 100 ms would make a short call look like a blocking one.
        "ASYNCWASM_SYNC_GUARD": "ignore:65536",
        "PYTHONUTF8": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_every_example_is_run_here() -> None:
    assert sorted(PROGRAMS) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.slow
def test_quickstart_calls_awaits_and_cancels() -> None:
    lines = run("quickstart")

    words, slug, *picture, ticked, stopped, added = lines
    assert words == "133 words, 27 of them 'the'"
    assert slug == "the-tide-clock-of-aland-point"
    assert len(picture) == 18
    assert picture == picture[::-1]
    assert "@@@@@@@@@@" in picture[9]
    assert ticked == "the loop ticked while the guest computed: True"
    assert stopped == "the spinning guest was stopped"
    assert added == "2 + 3 = 5"


@pytest.mark.slow
def test_imports_serves_twenty_guests_at_once() -> None:
    lines = run("imports")

    assert lines == [
        "20 guests fetched 40 documents, 20 at a time",
        "the last one reported '19 + 190 lines'",
        "together they counted 2090 lines",
    ]


@pytest.mark.slow
def test_password_hashing_agrees_with_hashlib() -> None:
    agree, refused, timings = run("password_hashing")

    assert agree == "6 of 6 hashes agree with hashlib.scrypt"
    assert refused == "a wrong password is refused: True"
    assert re.fullmatch(
        r"\d+ ms for all, \d+ heartbeats meanwhile,"
        r" late by \d+\.\d ms \(median\), \d+\.\d ms \(worst\)",
        timings,
    )


@pytest.mark.slow
def test_guests_are_what_their_sources_build() -> None:
    """A guest without its source is a blob that nobody can check or change."""
    pytest.importorskip("ziglang", reason="the compiler is not installed")
    wanted = runpy.run_path(str(MODULES / "build.py"))["ZIGLANG"]
    if importlib.metadata.version("ziglang") != wanted:  # pragma: no cover - by machine
        pytest.skip(f"only ziglang {wanted} writes the same bytes")

    done = subprocess.run(
        [sys.executable, str(MODULES / "build.py"), "--check"],
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    built = {line.split()[0] for line in done.stdout.splitlines()}
    assert built == {path.name for path in MODULES.glob("*.wasm")}


async def hash_in_guest(
    password: bytes, salt: bytes, n: int, r: int, p: int, size: int
) -> tuple[int, bytes]:
    """Return the status of the scrypt guest and what it left where the key goes."""
    _, instance = await aw.instantiate(MODULES / "scrypt.wasm")
    with instance:
        guest = instance.exports
        at = [guest.alloc(length) for length in (len(password), len(salt), size)]
        guest.memory.write(at[0], password)
        guest.memory.write(at[1], salt)
        status = await guest.scrypt.call_async(
            at[0], len(password), at[1], len(salt), n, r, p, at[2], size
        )
        return status, guest.memory.read(at[2], size)


@pytest.mark.parametrize(
    ("password", "salt", "n", "r", "p", "size"),
    [
        pytest.param(b"", b"", 16, 1, 1, 64, id="rfc-7914-first"),
        pytest.param(b"password", b"NaCl", 1024, 8, 16, 64, id="rfc-7914-second"),
        pytest.param(b"k" * 64, b"s", 2, 1, 1, 1, id="smallest"),
        pytest.param(b"k" * 65, b"s" * 119, 64, 7, 3, 33, id="key-longer-than-a-block"),
        pytest.param("pässwörd".encode(), bytes(1000), 32768, 1, 2, 200, id="long-key"),
    ],
)
def test_scrypt_guest_agrees_with_hashlib(
    password: bytes, salt: bytes, n: int, r: int, p: int, size: int
) -> None:
    status, key = asyncio.run(hash_in_guest(password, salt, n, r, p, size))

    assert status == 0
    assert key == hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, dklen=size)


@pytest.mark.parametrize(
    ("n", "r", "p", "expected"),
    [
        pytest.param(1, 8, 1, 1, id="n-too-small"),
        pytest.param(15, 8, 1, 1, id="n-no-power-of-two"),
        pytest.param(16, 0, 1, 1, id="no-blocks"),
        pytest.param(16, 2**15, 2**15, 1, id="r-times-p-too-large"),
        pytest.param(2**16, 1, 1, 1, id="n-too-large-for-r"),
        pytest.param(2**30, 8, 1, 2, id="more-than-the-address-space"),
    ],
)
def test_scrypt_guest_refuses_bad_parameters(n: int, r: int, p: int, expected: int) -> None:
    status, key = asyncio.run(hash_in_guest(b"password", b"NaCl", n, r, p, 32))

    assert status == expected
    assert key == bytes(32)


async def digest_in_guest(pieces: list[bytes]) -> bytes:
    """Return what the sha256 guest makes of the pieces."""
    _, instance = await aw.instantiate(MODULES / "sha256.wasm")
    with instance:
        guest = instance.exports
        state, digest = guest.alloc(guest.sha256_size()), guest.alloc(32)
        guest.init(state)
        for piece in pieces:
            address = guest.alloc(len(piece))
            guest.memory.write(address, piece)
            guest.update(state, address, len(piece))
        guest.final(state, digest)
        result: bytes = guest.memory.read(digest, 32)
        return result


@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000])
def test_sha256_guest_agrees_with_hashlib(length: int) -> None:
    message = bytes(i % 251 for i in range(length))
    pieces = [message[: length // 3], b"", message[length // 3 :]]

    assert asyncio.run(digest_in_guest(pieces)) == hashlib.sha256(message).digest()


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 1), (2, 1), (10, 55), (20, 6765)])
def test_numbers_guest_computes_fibonacci(n: int, expected: int) -> None:
    wasm = aw.wat2wasm((MODULES / "numbers.wat").read_text(encoding="utf-8"))
    instance = aw.Instance(aw.Module(wasm))

    assert instance.exports.fib(n) == expected
    instance.close()

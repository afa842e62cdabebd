"""
The examples run and print what they promise; their guests are what the sources build.

Nothing here asserts on a time: the examples print timings, the tests look past them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import random
import re
import runpy
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncwasm as aw

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MODULES = EXAMPLES / "modules"
PROGRAMS = (
    "imports",
    "numpy_arrays",
    "password_hashing",
    "process_pool",
    "quickstart",
    "web_backend",
)


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
def test_process_pool_corrects_with_the_module_of_its_parent() -> None:
    lines = run("process_pool")

    assert lines == [
        "lighthose: lighthouse",
        "kepper: keeper",
        "evning: evening",
        "wintre: winter",
        "missd: missed",
        "ålandd: åland",
        "found in other processes: True",
        "with the module from here: True",
    ]


@pytest.mark.slow
def test_numpy_arrays_agree_with_numpy_before_and_after_growing() -> None:
    pytest.importorskip("numpy")
    lines = run("numpy_arrays")

    assert lines == [
        "300 x 400 numbers agree with numpy: True",
        "and after growing by 1,048,576 bytes: True",
        "a row that was copied out: 1600 bytes, owned by numpy: True",
    ]


@pytest.mark.slow
def test_web_backend_answers_and_bounds_its_guests() -> None:
    lines = run("web_backend")

    assert lines == [
        "12 of 12 hashes agree with hashlib.scrypt",
        "422 more memory than a request may have",
        "504 not done within 2 s",
        "a client hung up, and its guest was stopped: True",
        "15 instances, 15 of them closed",
    ]


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


@contextlib.contextmanager
def guest(name: str, imports: Any = None) -> Iterator[Any]:
    """Yield the exports of a guest, compiled from its text if there is no binary of it."""
    binary = MODULES / f"{name}.wasm"
    if not binary.exists():
        module = aw.Module(aw.wat2wasm((MODULES / f"{name}.wat").read_text(encoding="utf-8")))
    else:
        module = aw.Module(binary)
    with aw.Instance(module, imports) as instance:
        yield instance.exports


def put(exports: Any, data: bytes) -> tuple[int, int]:
    """Write *data* to memory that the guest gives, and return where it is and its size."""
    address = exports.alloc(len(data))
    exports.memory.write(address, data)
    return address, len(data)


def test_there_is_a_dozen_guests_each_with_its_source() -> None:
    """A guest whose source is another file than its name says would be hard to find."""
    sources = {path.stem for path in MODULES.iterdir() if path.suffix in (".c", ".zig", ".wat")}
    binaries = {path.stem for path in MODULES.glob("*.wasm")}
    texts = {path.stem for path in MODULES.glob("*.wat")}

    assert binaries <= sources - texts
    assert len(binaries | texts) >= 12


@pytest.mark.parametrize("data", [b"", b"a", b"123456789", bytes(range(256)) * 17])
def test_crc32_guest_agrees_with_zlib(data: bytes) -> None:
    with guest("crc32") as exports:
        whole = exports.crc32(0, *put(exports, data)) & 0xFFFFFFFF
        half = exports.crc32(0, *put(exports, data[: len(data) // 2]))
        rest = exports.crc32(half, *put(exports, data[len(data) // 2 :])) & 0xFFFFFFFF

    assert whole == rest == zlib.crc32(data)


def edit_distance(a: str, b: str) -> int:
    """Return the Levenshtein distance, straight from its definition."""

    @functools.cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        replaced = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(replaced, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(a), len(b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("", ""),
        ("", "tide"),
        ("tide", ""),
        ("kitten", "sitting"),
        ("flaw", "lawn"),
        ("pässwörd", "passwords"),
        ("naïve 🌊", "native 🌋"),
        ("a" * 40, "ba" * 25),
    ],
)
def test_levenshtein_guest_agrees_with_the_definition(a: str, b: str) -> None:
    with guest("levenshtein") as exports:
        distance = exports.distance(*put(exports, a.encode()), *put(exports, b.encode()))

    assert distance == edit_distance(a, b)


def next_generation(living: set[tuple[int, int]], width: int, height: int) -> set[tuple[int, int]]:
    """Return the cells that live after *living*, on a torus."""
    neighbours = Counter(
        ((x + dx) % width, (y + dy) % height)
        for x, y in living
        for dx in (-1, 0, 1)
        for dy in (-1, 0, 1)
        if dx or dy
    )
    return {cell for cell, n in neighbours.items() if n == 3 or (n == 2 and cell in living)}


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 3), (2, 7), (16, 9)])
def test_life_guest_agrees_with_python(width: int, height: int) -> None:
    chance = random.Random(width * height)
    cells = [(x, y) for y in range(height) for x in range(width)]
    living = {cell for cell in cells if chance.random() < 0.4}
    with guest("life") as exports:
        board, _ = put(exports, bytes(cell in living for cell in cells))
        after = exports.alloc(len(cells))
        for _ in range(10):
            count = exports.step(board, after, width, height)
            board, after = after, board
            living = next_generation(living, width, height)

            assert exports.memory.read(board, len(cells)) == bytes(cell in living for cell in cells)
            assert count == len(living)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 100])
def test_sort_guest_orders_python_objects_stably(count: int) -> None:
    chance = random.Random(count)
    words = ["".join(chance.choices("abc", k=chance.randint(0, 3))) for _ in range(count)]

    def compare(a: int, b: int) -> int:
        return (words[a] > words[b]) - (words[a] < words[b])

    with guest("sort", {"env": {"compare": compare}}) as exports:
        address, size = put(exports, struct.pack(f"<{count}I", *range(count)))
        status = exports.sort(address, count)
        order = struct.unpack(f"<{count}I", exports.memory.read(address, size))

    assert status == 0
    assert list(order) == sorted(range(count), key=words.__getitem__)


def test_sort_guest_lets_errors_of_the_order_through() -> None:
    def compare(a: int, b: int) -> int:
        raise LookupError("no order")

    with guest("sort", {"env": {"compare": compare}}) as exports:
        address, _ = put(exports, struct.pack("<2I", 1, 2))
        with pytest.raises(LookupError, match="no order"):
            exports.sort(address, 2)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (2, 3, 4), (3, 2, 7), (9, 16, 13), (2, 0, 5)])
def test_matrix_guest_multiplies(m: int, k: int, n: int) -> None:
    chance = random.Random(m * k * n)
    a = [[chance.randint(-9, 9) for _ in range(k)] for _ in range(m)]
    b = [[chance.randint(-9, 9) for _ in range(n)] for _ in range(k)]
    expected = [sum(a[i][x] * b[x][j] for x in range(k)) for i in range(m) for j in range(n)]
    with guest("matrix") as exports:
        first, _ = put(exports, struct.pack(f"<{m * k}f", *itertools.chain(*a)))
        second, _ = put(exports, struct.pack(f"<{k * n}f", *itertools.chain(*b)))
        # Behind one more number, so that nothing in it starts at a multiple of 16.
        product = exports.alloc(4 + 4 * m * n) + 4
        exports.multiply(first, second, product, m, k, n)
        result = struct.unpack(f"<{m * n}f", exports.memory.read(product, 4 * m * n))

    assert list(result) == expected


@pytest.mark.parametrize("size", [*range(8), 300])
def test_base64_guest_agrees_with_base64(size: int) -> None:
    data = bytes(i * 7 % 256 for i in range(size))
    text = base64.b64encode(data)
    with guest("base64") as exports:
        out = exports.alloc(len(text))
        assert exports.encode(*put(exports, data), out) == len(text)
        assert exports.memory.read(out, len(text)) == text

        assert exports.decode(*put(exports, text), out) == size
        assert exports.memory.read(out, size) == data


@pytest.mark.parametrize(
    "text",
    [b"A", b"AAA", b"====", b"A===", b"AA=A", b"AB==", b"AAB=", b"AA==AAAA", b"AA\nA", b"-_--"],
)
def test_base64_guest_refuses_what_is_none(text: bytes) -> None:
    with guest("base64") as exports:
        assert exports.decode(*put(exports, text), exports.alloc(8)) == -1


@pytest.mark.parametrize(
    "value",
    [{}, [1, 2.5, None], {"a b": [{}, " \t\n", '"', "\\", 'x\\" y'], "é": "\\\\"}, " ", "\\ "],
)
def test_json_minify_guest_keeps_nothing_but_the_value(value: object) -> None:
    with guest("json_minify") as exports:
        address, size = put(exports, json.dumps(value, indent=3).encode())
        length = exports.minify(address, size)

        assert json.loads(exports.memory.read(address, length)) == value
        assert length == len(json.dumps(value, separators=(",", ":")))


def test_json_minify_guest_refuses_a_string_without_an_end() -> None:
    with guest("json_minify") as exports:
        assert exports.minify(*put(exports, b'{"a": "b\\"}')) == -1


def xoshiro(seed: int) -> Iterator[int]:
    """Yield what xoshiro256** gives for *seed*."""
    mask = 2**64 - 1

    def rotate(value: int, by: int) -> int:
        return (value << by | value >> (64 - by)) & mask

    state = []
    for _ in range(4):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        mixed = ((seed ^ seed >> 30) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & mask
        state.append(mixed ^ mixed >> 31)
    while True:
        yield rotate(state[1] * 5 & mask, 7) * 9 & mask
        shifted = state[1] << 17 & mask
        state[2] ^= state[0]
        state[3] ^= state[1]
        state[1] ^= state[2]
        state[0] ^= state[3]
        state[2] ^= shifted
        state[3] = rotate(state[3], 45)


@pytest.mark.parametrize("seed", [0, 1, 42, 2**64 - 1])
def test_prng_guest_follows_xoshiro(seed: int) -> None:
    expected = xoshiro(seed)
    with guest("prng") as exports:
        exports.seed(seed - 2**64 if seed >> 63 else seed)
        assert [exports.next() % 2**64 for _ in range(5)] == list(itertools.islice(expected, 5))
        assert exports.random() == (next(expected) >> 11) * 2**-53

        out = exports.alloc(20)
        exports.fill(out, 20)
        numbers = b"".join(next(expected).to_bytes(8, "little") for _ in range(3))
        assert exports.memory.read(out, 20) == numbers[:20]


MALFORMED = (b"\x80", b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xf0\x8f\xbf\xbf")
CUT_OFF = (b"\xc3", b"\xe2\x82", b"\xf0\x9f\x8c", b"\xf4\x90\x80\x80", b"\xf5\x80", b"\xff")
WELL_FORMED = ("", "tide", "é߿ࠀ\ud7ff\uffff", "\U00010000🌊\U0010ffff")


@pytest.mark.parametrize("before", WELL_FORMED)
@pytest.mark.parametrize("data", [b"", *MALFORMED, *CUT_OFF], ids=bytes.hex)
@pytest.mark.parametrize("after", [b"", b"a"], ids=["", "a"])
def test_utf8_guest_agrees_with_python(before: str, data: bytes, after: bytes) -> None:
    text = before.encode() + data + after
    try:
        text.decode()
    except UnicodeDecodeError as exc:
        expected = exc.start
    else:
        expected = -1
    with guest("utf8") as exports:
        exports.memory.write(100, text)

        assert exports.check(100, len(text)) == expected

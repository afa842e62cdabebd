"""
Copies of binaries in a cache directory, by which what somebody comes with is recognized.

Rule 1: the binary that goes with cached code is our copy, never the file it came from: that can
change at any time.
Rule 2: bytes are recognized by comparing all of them with the copy, in a fifth of the time that
hashing them takes. So what the copy is found by need be no more than usually right.
"""

from __future__ import annotations

import io
import mmap
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from .._hashes import blake2b
from .place import Place
from .source import Identity

_SAMPLES = 4096
_TAIL_BYTES = 1024  # where tools write what they are, and when
_CHUNK_BYTES = 256 << 10  # so that it is still in the processor's cache when it is compared
# The mapping needs no descriptor of its own; before 3.13 there was no way to say so.
_NO_DESCRIPTOR: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


class Recognized(NamedTuple):
    """What a source was found to contain."""

    digest: str
    binary: mmap.mmap


def sample(binary: bytes) -> str:
    """Return a digest of some bytes from all over *binary*."""
    some = binary[:: max(1, len(binary) // _SAMPLES)] + binary[-_TAIL_BYTES:]
    return blake2b(some, digest_size=32).hexdigest()


def find_copy(
    place: Place, header: Mapping[str, str], binary: bytes | None = None
) -> Recognized | None:
    """Return the copy that *header* tells of; None if there is a *binary* that it is not."""
    with place.opened_same(header["binary"], header["copied"], "the copy") as descriptor:
        if binary is not None and not _contains(descriptor, binary):
            return None
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ, **_NO_DESCRIPTOR)
        return Recognized(header["digest"], mapped)


def write_copy(
    place: Place, name: str, kind: str, digest: str, binary: bytes, **facts: str
) -> None:
    """Write a copy of *binary*, and the header NAME.KIND with *facts* that tells of it."""
    file = f"{name}.{os.urandom(8).hex()}.wasm"
    place.write(file, binary)
    copied = Identity.of(place.stat(file)).text
    header = {**facts, "digest": digest, "binary": file, "copied": copied}
    place.write_header(f"{name}.{kind}", kind, header)


def _contains(descriptor: int, binary: bytes) -> bool:
    """Return whether an open file contains *binary* and nothing else."""
    wanted = memoryview(binary)
    chunk = bytearray(_CHUNK_BYTES)
    with io.FileIO(descriptor, closefd=False) as file:
        for start in range(0, len(binary), _CHUNK_BYTES):
            size = file.readinto(chunk)
            if size < _CHUNK_BYTES:
                del chunk[size:]
            # Not the view on the left: it would compare number by number.
            if chunk != wanted[start : start + _CHUNK_BYTES]:
                return False
        return not file.read(1)

"""
The hashes: BLAKE2b for keys, names and outlines, SHA-256 for the digests of modules.

`hashlib` and `hmac` load OpenSSL, which takes longer than everything else up to the first module
of a warm cache together. Their own BLAKE2b and comparison come from modules without it.
"""

from __future__ import annotations

try:
    from _blake2 import blake2b
    from _operator import _compare_digest as compare_digest
except ImportError:  # pragma: no cover  # another Python than CPython
    from hashlib import blake2b
    from hmac import compare_digest  # type: ignore[no-redef]  # one or the other

__all__ = ("blake2b", "compare_digest", "sha256")


def sha256(binary: bytes) -> str:
    """Return the SHA-256 of *binary*, in hexadecimal digits."""
    import hashlib  # OpenSSL's is several times as fast as one that would not load it

    return hashlib.sha256(binary).hexdigest()

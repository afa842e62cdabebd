"""Source files: read once, and told apart without reading them again."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Identity(NamedTuple):
    """What tells a file from any other, and from itself after a change."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int  # nobody can set it, as they can the one before

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        """Return the identity of the file with these facts."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    @property
    def text(self) -> str:
        """The identity as it is written down."""
        return " ".join(map(str, self))


class Glance:
    """
    An open file, of which only what is asked for is read.

    It may change meanwhile: what is read is what is there, and too little where it ends early.
    """

    __slots__ = ("_descriptor", "identity")

    def __init__(self, descriptor: int, identity: Identity) -> None:
        self._descriptor = descriptor
        self.identity = identity

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from *start* to *end*."""
        return os.pread(self._descriptor, end - start, start)


class FileReader:
    """Reads a file, and knows afterwards which one it was, if that held still."""

    __slots__ = ("_path", "identity")

    def __init__(self, path: str | bytes) -> None:
        self._path = path
        self.identity: Identity | None = None

    def __call__(self) -> bytes:
        with open(self._path, "rb") as file:
            before = os.fstat(file.fileno())
            binary = file.read()
            after = Identity.of(os.fstat(file.fileno()))
        if (
            stat.S_ISREG(before.st_mode)
            and Identity.of(before) == after
            and len(binary) == after.size
        ):
            self.identity = after
        return binary

    @contextmanager
    def glance(self) -> Iterator[Glance | None]:
        """Open the file without reading it; None if it is no plain file, or that cannot be done."""
        if not hasattr(os, "pread"):  # pragma: no cover  # Windows
            yield None
            return
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            facts = os.fstat(descriptor)
            plain = stat.S_ISREG(facts.st_mode)
            yield Glance(descriptor, Identity.of(facts)) if plain else None
        finally:
            os.close(descriptor)

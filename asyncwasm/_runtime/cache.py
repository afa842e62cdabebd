"""
The artifact cache: native code on disk, for the next process.

Whom to believe is told in `place`. What is stored there:

Rule 1: in a directory of our own, an entry vouches for the very file that holds its code: device,
inode, size and times, the one of change included, which nobody can set. So no megabytes are read.
Rule 2: in a directory that others can write, an entry vouches for the content. The file is opened
once, read, checked, and the bytes that were checked are loaded; its name is not used again.
Rule 3: the binary that goes with the code of a known source file is our copy of it, never the
file itself: that can change at any time.
Rule 4: what does not check out is deleted and compiled again. No error of the cache is an error
of the caller.

Files: NAME.entry (header) and NAME.RANDOM.code; NAME.file (what a source file contains) and
NAME.RANDOM.wasm; and `key`. NAME is derived with the key, so that users of one directory do not
meet.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

from .. import _log
from .._errors import CompileError
from .._ffi import compiling
from .._ffi.handles import Handle
from .._ffi.library import machine
from .._hashes import blake2b, compare_digest
from .config import EngineConfig
from .place import Place, Rejected, Unusable, open_place, read_all, user_directory
from .source import Identity

ENVIRONMENT = "ASYNCWASM_CACHE_DIR"
EVICTION_SECONDS = 60.0  # between evictions of one process

_SETTLED_NS = 2_000_000_000  # what changed later than that may change again in the same tick
_LINKS = "/proc/self/fd"  # names that open the very file of a descriptor
# The mapping needs no descriptor of its own; before 3.13 there was no way to say so.
_NO_DESCRIPTOR: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}

_evicted: dict[str, float] = {}  # when this process last looked at a directory


class Known(NamedTuple):
    """What a source file was found to contain."""

    digest: str
    outline: str  # so that a wrong digest can never bring code of another shape
    binary: mmap.mmap


class Loaded(NamedTuple):
    """Code from the cache, and what its header says."""

    handle: Handle
    holds_references: bool


def open_cache(config: EngineConfig) -> Cache | None:
    """Return the cache that *config* asks for."""
    if config.cache is None:
        return None
    if config.cache != "default":
        return Cache(os.path.abspath(config.cache), config.cache_bytes, chosen=True)
    named = os.environ.get(ENVIRONMENT)
    if named == "off":
        return None
    if named:
        return Cache(os.path.abspath(named), config.cache_bytes, chosen=True)
    try:
        return Cache(user_directory(), config.cache_bytes, chosen=False)
    except Exception as exc:  # there is no home directory
        _log.event("cache_unusable", logging.WARNING, reason=str(exc))
        return None


class Cache:
    """
    A directory of compiled modules.

    Its methods raise nothing. They may be called on any thread, and by any number of processes.

    Args:
        directory: Where.
        limit_bytes: Size above which what was not used for longest is removed.
        chosen: Whether somebody has named the directory; then others may be able to write it.
    """

    def __init__(
        self, directory: str | os.PathLike[str], limit_bytes: int, *, chosen: bool
    ) -> None:
        self.directory = os.fspath(directory)
        self.limit_bytes = limit_bytes
        self._chosen = chosen
        self._reported: set[str] = set()

    # what engines ask

    def load(self, engine: Handle, digest: str, configuration: Mapping[str, Any]) -> Loaded | None:
        """Return the code of the module with *digest*, or None if it is not here."""
        started = perf_counter()
        with self._guarded("load"), self.opened() as place:
            name = _entry_name(place, digest, configuration)
            try:
                header = place.read(name + ".entry", "entry")
                if header is None:
                    return None
                handle = (_load_content if place.shared else _load_file)(place, engine, header)
            except Rejected as exc:
                self._reject(place, name, ".entry", exc)
                return None
            place.touch(name + ".entry")
            _log.event(
                "cache_hit",
                digest=digest,
                code_bytes=int(header["size"]),
                seconds=round(perf_counter() - started, 6),
            )
            return Loaded(handle, header["holds_references"] == "True")
        return None

    def store(
        self,
        code: bytes,
        digest: str,
        configuration: Mapping[str, Any],
        *,
        holds_references: bool,
    ) -> bool:
        """Keep *code*; return whether that has worked."""
        started = perf_counter()
        if len(code) > self.limit_bytes:
            return False
        with self._guarded("store"), self.opened() as place:
            name = _entry_name(place, digest, configuration)
            file = f"{name}.{os.urandom(8).hex()}.code"
            place.write(file, code)
            vouched = (
                {"content": _content(code)}
                if place.shared
                else {"identity": Identity.of(place.stat(file)).text}
            )
            place.write_header(
                name + ".entry",
                "entry",
                {
                    "digest": digest,
                    "engine": configuration["engine"],
                    "holds_references": holds_references,
                    "code": file,
                    "size": len(code),
                    **vouched,
                },
            )
            _log.event(
                "cache_stored",
                digest=digest,
                code_bytes=len(code),
                seconds=round(perf_counter() - started, 6),
            )
            self._evict_sometimes(place)
            return True
        return False

    def forget(self, digest: str, configuration: Mapping[str, Any]) -> None:
        """Delete the code of the module with *digest*, if it is here."""
        with self._guarded("forget"), self.opened() as place:
            place.remove(_entry_name(place, digest, configuration))

    def find_file(self, identity: Identity) -> Known | None:
        """Return what the source file with *identity* contains, if it has not changed since."""
        with self._guarded("find_file"), self.opened() as place:
            if place.shared:
                return None
            name = place.name("file", *identity[:2])
            try:
                header = place.read(name + ".file", "file")
                if header is None or header["identity"] != identity.text:
                    return None
                with place.opened_same(header["binary"], header["copied"], "the copy") as file:
                    binary = mmap.mmap(file, 0, access=mmap.ACCESS_READ, **_NO_DESCRIPTOR)
            except Rejected as exc:
                self._reject(place, name, ".file", exc)
                return None
            place.touch(name + ".file")
            return Known(header["digest"], header["outline"], binary)
        return None

    def remember_file(self, identity: Identity, digest: str, outline: str, binary: bytes) -> None:
        """Keep a copy of the source file with *identity*."""
        settled = time.time_ns() - _SETTLED_NS
        if max(identity.modified_ns, identity.changed_ns) > settled:
            return
        if len(binary) > self.limit_bytes:
            return
        with self._guarded("remember_file"), self.opened() as place:
            if place.shared:
                return
            name = place.name("file", *identity[:2])
            file = f"{name}.{os.urandom(8).hex()}.wasm"
            place.write(file, binary)
            place.write_header(
                name + ".file",
                "file",
                {
                    "identity": identity.text,
                    "digest": digest,
                    "outline": outline,
                    "binary": file,
                    "copied": Identity.of(place.stat(file)).text,
                },
            )
            self._evict_sometimes(place)

    def evict(self) -> None:
        """Remove what was not used for longest, until the rest is small enough."""
        from .eviction import evict

        with self._guarded("evict"), self.opened() as place:
            evict(place, self.limit_bytes)

    # how

    @contextmanager
    def opened(self) -> Iterator[Place]:
        """Open the directory; raise Unusable if it does not check out."""
        with open_place(self.directory, chosen=self._chosen) as place:
            yield place

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Turn errors into events."""
        try:
            yield
        except Unusable as exc:
            if str(exc) not in self._reported:
                self._reported.add(str(exc))
                _log.event(
                    "cache_unusable", logging.WARNING, directory=self.directory, reason=str(exc)
                )
        except Exception as exc:
            _log.event(
                "cache_failed",
                logging.WARNING,
                directory=self.directory,
                operation=what,
                error=repr(exc),
            )

    def _reject(self, place: Place, name: str, ending: str, reason: Rejected) -> None:
        place.remove(name)
        _log.event(
            "cache_rejected",
            logging.WARNING,
            directory=self.directory,
            file=name + ending,
            reason=str(reason),
        )

    def _evict_sometimes(self, place: Place) -> None:
        now = time.monotonic()
        last = _evicted.get(self.directory)
        if last is None or now - last >= EVICTION_SECONDS:
            from .eviction import evict

            _evicted[self.directory] = now
            evict(place, self.limit_bytes)


def configuration(config: EngineConfig, *, fuel: bool, baseline: bool) -> dict[str, Any]:
    """Return everything that code depends on, besides the binary."""
    return {
        "engine": compiling.engine_version(),
        "features": sorted(config.features.items()),
        "fuel": fuel,
        "machine": machine(),
        "max_wasm_stack_bytes": config.max_wasm_stack_bytes,
        "system": sys.platform,
        "tier": "baseline" if baseline else "optimized",
    }


def _entry_name(place: Place, digest: str, configuration: Mapping[str, Any]) -> str:
    return place.name("entry", digest, *sorted(configuration.items()))


def _load_file(place: Place, engine: Handle, header: Mapping[str, str]) -> Handle:
    """Map the file that holds the code, if it is the very one that was written."""
    with place.opened_same(header["code"], header["identity"], "the code") as descriptor:
        path = f"{_LINKS}/{descriptor}"
        if not os.path.exists(path):
            path = place.path(header["code"])
        try:
            return compiling.deserialize_file(engine, path)
        except CompileError as exc:
            raise Rejected(f"the engine does not take the code: {exc}") from None


def _load_content(place: Place, engine: Handle, header: Mapping[str, str]) -> Handle:
    """Load the code from bytes that have been checked."""
    try:
        with place.opened(header["code"]) as (descriptor, facts):
            if facts.st_size != int(header["size"]):
                raise Rejected("the code has a wrong size")
            content = read_all(descriptor, facts.st_size)
    except FileNotFoundError:
        raise Rejected("the code is missing") from None
    if not compare_digest(_content(content), header["content"]):
        raise Rejected("the code has been changed")
    try:
        return compiling.deserialize(engine, content)
    except CompileError as exc:
        raise Rejected(f"the engine does not take the code: {exc}") from None


def _content(code: bytes) -> str:
    return blake2b(code, digest_size=32).hexdigest()

"""
The artifact cache: native code on disk, for the next process.

Whom to believe is told in `place`. What is stored there:

Rule 1: in a directory of our own, an entry vouches for the very file that holds its code: device,
inode, size and times, the one of change included, which nobody can set. So no megabytes are read.
Rule 2: in a directory that others can write, an entry vouches for the content. The file is opened
once, read, checked, and the bytes that were checked are loaded; its name is not used again.
Rule 3: what does not check out is deleted and compiled again. No error of the cache is an error
of the caller.

Files: NAME.entry (header) and NAME.RANDOM.code; NAME.refusal (why a binary is not valid);
NAME.file (what a source file contains) or NAME.bytes (what large bytes are), and
NAME.RANDOM.wasm; and `key`. NAME is derived with the key, so that users of one directory do not
meet.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple

from .. import _log
from .._binary import spans_of
from .._errors import CompileError
from .._ffi import compiling
from .._ffi.handles import Handle
from .._ffi.library import machine
from .._hashes import blake2b, compare_digest
from .config import EngineConfig
from .copies import Recognized, find_copy, sample, write_copy
from .place import Place, Rejected, Unusable, read_all, user_directory
from .source import Glance, Identity

ENVIRONMENT = "ASYNCWASM_CACHE_DIR"
EVICTION_SECONDS = 60.0  # between evictions of one process

_SETTLED_NS = 2_000_000_000  # what changed later than that may change again in the same tick
_MAX_SPANS = 1000  # so that a header stays one
_LINKS = "/proc/self/fd"  # names that open the very file of a descriptor

_evicted: dict[str, float] = {}  # when this process last looked at a directory


class Configuration(NamedTuple):
    """What code depends on, besides the binary: the version of the engine, and all of it."""

    engine: str
    text: str


class Loaded(NamedTuple):
    """Code from the cache, and what its header says."""

    handle: Handle
    holds_references: bool
    declared_bytes: int


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
        _log.event("cache_unusable", _log.WARNING, reason=str(exc))
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
        self._place: Place | None = None  # as it was last used

    # what engines ask

    def load(self, engine: Handle, digest: str, configuration: Configuration) -> Loaded | None:
        """Return the code of the module with *digest*, or None if it is not here."""
        started = perf_counter()
        with self._guarded("load"):
            place = self.opened()
            name = place.name("entry", digest, configuration.text)
            with self._checked(place, name + ".entry"):
                header = place.read(name + ".entry", "entry")
                if header is None:
                    return None
                handle = (_load_content if place.shared else _load_file)(place, engine, header)
                place.touch(name + ".entry")
                _log.event(
                    "cache_hit",
                    digest=digest,
                    code_bytes=int(header["size"]),
                    seconds=round(perf_counter() - started, 6),
                )
                return Loaded(
                    handle, header["holds_references"] == "True", int(header["declared_bytes"])
                )
        return None

    def store(
        self,
        code: bytes,
        digest: str,
        configuration: Configuration,
        *,
        holds_references: bool,
        declared_bytes: int,
    ) -> bool:
        """Keep *code*; return whether that has worked."""
        started = perf_counter()
        if len(code) > self.limit_bytes:
            return False
        with self._guarded("store"):
            place = self.opened()
            name = place.name("entry", digest, configuration.text)
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
                    "engine": configuration.engine,
                    "holds_references": holds_references,
                    "declared_bytes": declared_bytes,
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

    def forget(self, digest: str, configuration: Configuration) -> None:
        """Delete the code of the module with *digest*, if it is here."""
        with self._guarded("forget"):
            place = self.opened()
            place.remove(place.name("entry", digest, configuration.text))

    def find_refusal(self, digest: str, configuration: Configuration) -> CompileError | None:
        """Return why the binary with *digest* is not valid, if that is known."""
        with self._guarded("find_refusal"):
            place = self.opened()
            name = place.name("refusal", digest, configuration.text)
            with self._checked(place, name + ".refusal"):
                header = place.read(name + ".refusal", "refusal")
                if header is None:
                    return None
                place.touch(name + ".refusal")
                message = header["message"].encode("ascii").decode("unicode_escape")
                offset = int(header["offset"]) if header["offset"] else None
                _log.event("cache_refused", digest=digest, error=message)
                return CompileError(message, offset)
        return None

    def store_refusal(self, digest: str, configuration: Configuration, error: CompileError) -> None:
        """Keep why the binary with *digest* is not valid."""
        with self._guarded("store_refusal"):
            place = self.opened()
            name = place.name("refusal", digest, configuration.text)
            place.write_header(
                name + ".refusal",
                "refusal",
                {
                    "engine": configuration.engine,
                    "message": str(error).encode("unicode_escape").decode("ascii"),
                    "offset": "" if error.offset is None else error.offset,
                },
            )
            self._evict_sometimes(place)

    def find_file(self, glance: Glance) -> Recognized | None:
        """
        Return what a source file contains, if it has not changed since.

        Even on a file system that says a file has not changed when it has, nobody gets a module
        of another outline.
        """
        with self._guarded("find_file"):
            place = self.opened()
            if place.shared:
                return None
            identity = glance.identity
            name = place.name("file", *identity[:2])
            with self._checked(place, name + ".file"):
                header = place.read(name + ".file", "file")
                if header is None or header["identity"] != identity.text:
                    return None
                if header["outline"] != _outline(glance.read, _spans(header["spans"])):
                    return None
                found = find_copy(place, header)
                place.touch(name + ".file")
                return found
        return None

    def remember_file(self, identity: Identity, digest: str, binary: bytes) -> None:
        """Keep a copy of the source file with *identity*, if it is divided into sections at all."""
        settled = time.time_ns() - _SETTLED_NS
        if max(identity.modified_ns, identity.changed_ns) > settled:
            return
        if len(binary) > self.limit_bytes:
            return
        with self._guarded("remember_file"):
            place = self.opened()
            if place.shared:
                return
            try:
                spans = spans_of(binary)
            except ValueError:
                return
            if len(spans) > _MAX_SPANS:
                return
            name = place.name("file", *identity[:2])
            facts = {
                "identity": identity.text,
                "spans": " ".join(f"{start}:{end}" for start, end in spans),
                "outline": _outline(lambda start, end: binary[start:end], spans),
            }
            write_copy(place, name, "file", digest, binary, **facts)
            self._evict_sometimes(place)

    def find_bytes(self, binary: bytes) -> Recognized | None:
        """Return what *binary* is, if there is a copy of it."""
        with self._guarded("find_bytes"):
            place = self.opened()
            if place.shared:
                return None
            name = place.name("bytes", len(binary), sample(binary))
            with self._checked(place, name + ".bytes"):
                header = place.read(name + ".bytes", "bytes")
                found = None if header is None else find_copy(place, header, binary)
                if found is not None:
                    place.touch(name + ".bytes")
                return found
        return None

    def remember_bytes(self, digest: str, binary: bytes) -> None:
        """Keep a copy of *binary*, if there is none of something so similar that it is in the way."""
        if len(binary) > self.limit_bytes:
            return
        with self._guarded("remember_bytes"):
            place = self.opened()
            name = place.name("bytes", len(binary), sample(binary))
            if place.shared or place.has(name + ".bytes"):
                return
            write_copy(place, name, "bytes", digest, binary)
            self._evict_sometimes(place)

    def evict(self) -> None:
        """Remove what was not used for longest, until the rest is small enough."""
        from .eviction import evict

        with self._guarded("evict"):
            place = self.opened()
            evict(place, self.limit_bytes)

    # how

    def opened(self) -> Place:
        """Return the directory, which stays open; raise Unusable if it does not check out."""
        place = self._place
        if place is None or not place.current:
            place = self._place = Place(self.directory, chosen=self._chosen)
        return place

    def close(self) -> None:
        """Let go of the directory; it is opened again when it is needed."""
        self._place = None

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Turn errors into events."""
        try:
            yield
        except Unusable as exc:
            if str(exc) not in self._reported:
                self._reported.add(str(exc))
                _log.event(
                    "cache_unusable", _log.WARNING, directory=self.directory, reason=str(exc)
                )
        except Exception as exc:
            _log.event(
                "cache_failed",
                _log.WARNING,
                directory=self.directory,
                operation=what,
                error=repr(exc),
            )

    @contextmanager
    def _checked(self, place: Place, file: str) -> Iterator[None]:
        """Delete what belongs to the header *file* if it is found not to check out."""
        try:
            yield
        except Rejected as exc:
            place.remove(file.partition(".")[0])
            _log.event(
                "cache_rejected",
                _log.WARNING,
                directory=self.directory,
                file=file,
                reason=str(exc),
            )

    def _evict_sometimes(self, place: Place) -> None:
        now = time.monotonic()
        last = _evicted.get(self.directory)
        if last is None or now - last >= EVICTION_SECONDS:
            from .eviction import evict

            _evicted[self.directory] = now
            evict(place, self.limit_bytes)


def configuration(config: EngineConfig, *, fuel: bool, baseline: bool) -> Configuration:
    """Return everything that code depends on, besides the binary."""
    engine = compiling.engine_version()
    facts = {
        "engine": engine,
        "features": sorted(config.features.items()),
        "fuel": fuel,
        "machine": machine(),
        "max_wasm_stack_bytes": config.max_wasm_stack_bytes,
        "system": sys.platform,
        "tier": "baseline" if baseline else "optimized",
    }
    return Configuration(engine, repr(facts))


def _outline(read: Callable[[int, int], bytes], spans: Iterable[tuple[int, int]]) -> str:
    """Return a digest of what *read* returns for *spans*."""
    digest = blake2b(digest_size=32)
    for start, end in spans:
        digest.update(read(start, end))
    return digest.hexdigest()


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Read spans as they are written down."""
    for span in text.split():
        start, _, end = span.partition(":")
        yield int(start), int(end)


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

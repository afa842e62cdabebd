"""
The artifact cache: native code on disk, for the next process.

Whoever can change an entry runs code as us. Therefore:

Rule 1: a directory of our own must be 0700, ours and no symbolic link. That is checked each time
and never repaired; where it does not hold, there is no cache.
Rule 2: nothing is believed before its MAC has been checked. The key is in a file of our own. The
MAC covers the file's name, so that an entry cannot be passed off as another one.
Rule 3: in a directory of our own, an entry vouches for the very file that holds its code: device,
inode, size and times, the one of change included, which nobody can set. So no megabytes are read.
Rule 4: in a directory that others can write, an entry vouches for the content. The file is opened
once, read, checked, and the bytes that were checked are loaded; its name is not used again.
Rule 5: what does not check out is deleted and compiled again. No error of the cache is an error
of the caller.

Files: NAME.entry (header), NAME.RANDOM.code (code), NAME.file (what a source file contains), and
`key`. NAME is derived with the key, so that users of one directory do not meet.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import logging
import os
import platform
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from .. import _log
from .._errors import CompileError
from .._ffi import compiling
from .._ffi.handles import Handle
from .config import EngineConfig
from .source import Identity

FORMAT = 1  # raise it when what is stored, or the code made from the same binary, changes
ENVIRONMENT = "ASYNCWASM_CACHE_DIR"
EVICTION_SECONDS = 60.0  # between evictions of one process

_KEY_BYTES = 32
_MAC_BYTES = 32
_MAX_HEADER_BYTES = 1 << 16
_STALE_SECONDS = 3600.0  # after which what is left of an interrupted writer is removed
_SETTLED_NS = 2_000_000_000  # what changed later than that may change again in the same tick
_NAMES = re.compile(r"([0-9a-f]{64})\.(entry|file|[0-9a-f]{16}\.code)|tmp-[0-9a-f]{16}")

_OWNERS = hasattr(os, "getuid")  # not on Windows: every directory counts as one that others write
_AT = os.open in os.supports_dir_fd
_OPEN = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)
_CREATE = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)
_LINKS = "/proc/self/fd"  # names that open the very file of a descriptor

_evicted: dict[str, float] = {}  # when this process last looked at a directory


class Known(NamedTuple):
    """What a source file was found to contain."""

    digest: str
    outline: str  # so that a wrong digest can never bring code of another shape


class Loaded(NamedTuple):
    """Code from the cache, and what its header says."""

    handle: Handle
    holds_references: bool


class Unusable(Exception):
    """The directory or the key does not check out; the text says why."""


class Rejected(Exception):
    """An entry does not check out; the text says why."""


def open_cache(config: EngineConfig) -> Cache | None:
    """Return the cache that *config* asks for."""
    if config.cache is None:
        return None
    if config.cache != "default":
        return Cache(Path(os.path.abspath(config.cache)), config.cache_bytes, chosen=True)
    named = os.environ.get(ENVIRONMENT)
    if named == "off":
        return None
    if named:
        return Cache(Path(os.path.abspath(named)), config.cache_bytes, chosen=True)
    try:
        return Cache(user_directory(), config.cache_bytes, chosen=False)
    except Exception as exc:  # there is no home directory
        _log.event("cache_unusable", logging.WARNING, reason=str(exc))
        return None


def user_directory() -> Path:
    """Return the user's own cache directory."""
    import platformdirs

    return platformdirs.user_cache_path("asyncwasm")


class Cache:
    """
    A directory of compiled modules.

    Its methods raise nothing. They may be called on any thread, and by any number of processes.

    Args:
        directory: Where.
        limit_bytes: Size above which what was not used for longest is removed.
        chosen: Whether somebody has named the directory; then others may be able to write it.
    """

    def __init__(self, directory: Path, limit_bytes: int, *, chosen: bool) -> None:
        self.directory = directory
        self.limit_bytes = limit_bytes
        self._chosen = chosen
        self._reported: set[str] = set()

    # what engines ask

    def load(self, engine: Handle, digest: str, configuration: Mapping[str, Any]) -> Loaded | None:
        """Return the code of the module with *digest*, or None if it is not here."""
        started = perf_counter()
        with self._guarded("load"), self._opened() as place:
            name = place.name(f"entry {digest}", configuration)
            try:
                header = place.read(name + ".entry", "entry")
                if header is None:
                    return None
                code = header["code"]
                handle = (
                    _load_content(place, engine, code)
                    if place.shared
                    else _load_file(place, engine, code)
                )
            except Rejected as exc:
                place.remove(name)
                self._rejected(name + ".entry", str(exc))
                return None
            place.touch(name + ".entry")
            _log.event(
                "cache_hit",
                digest=digest,
                code_bytes=code["size"],
                seconds=round(perf_counter() - started, 6),
            )
            return Loaded(handle, header["holds_references"])
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
        with self._guarded("store"), self._opened() as place:
            name = place.name(f"entry {digest}", configuration)
            file = f"{name}.{secrets.token_hex(8)}.code"
            place.write(file, code)
            described = {"file": file, "size": len(code)}
            if place.shared:
                described["content"] = _content(code)
            else:
                described["identity"] = Identity.of(place.stat(file))
            place.write_header(
                name + ".entry",
                "entry",
                {
                    "digest": digest,
                    "configuration": configuration,
                    "holds_references": holds_references,
                    "code": described,
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

    def find_file(self, identity: Identity) -> Known | None:
        """Return what the source file with *identity* contains, if it has not changed since."""
        with self._guarded("find_file"), self._opened() as place:
            name = place.name("file", identity[:2])
            try:
                header = place.read(name + ".file", "file")
            except Rejected as exc:
                place.remove(name)
                self._rejected(name + ".file", str(exc))
                return None
            if header is None or tuple(header["identity"]) != identity:
                return None
            place.touch(name + ".file")
            _log.event("cache_file_unchanged", digest=header["digest"])
            return Known(header["digest"], header["outline"])
        return None

    def remember_file(self, identity: Identity, known: Known) -> None:
        """Note what the source file with *identity* contains."""
        if time.time_ns() - max(identity.modified_ns, identity.changed_ns) < _SETTLED_NS:
            return
        with self._guarded("remember_file"), self._opened() as place:
            place.write_header(
                place.name("file", identity[:2]) + ".file",
                "file",
                {"identity": identity, "digest": known.digest, "outline": known.outline},
            )

    def evict(self) -> None:
        """Remove what was not used for longest, until the rest is small enough."""
        with self._guarded("evict"), self._opened() as place:
            self._evict(place)

    # how

    @contextmanager
    def _opened(self) -> Iterator[Place]:
        with _open_directory(self.directory, chosen=self._chosen) as (descriptor, shared):
            if not shared:
                yield Place(self.directory, descriptor, _key(self.directory, descriptor), False)
                return
            private = user_directory()
            with _open_directory(private, chosen=False) as (own, _):
                key = _key(private, own)
            yield Place(self.directory, descriptor, key, True)

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Turn errors into events."""
        try:
            yield
        except Unusable as exc:
            if str(exc) not in self._reported:
                self._reported.add(str(exc))
                _log.event(
                    "cache_unusable",
                    logging.WARNING,
                    directory=str(self.directory),
                    reason=str(exc),
                )
        except Exception as exc:
            _log.event(
                "cache_failed",
                logging.WARNING,
                directory=str(self.directory),
                operation=what,
                error=repr(exc),
            )

    def _rejected(self, file: str, reason: str) -> None:
        _log.event(
            "cache_rejected",
            logging.WARNING,
            directory=str(self.directory),
            file=file,
            reason=reason,
        )

    def _evict_sometimes(self, place: Place) -> None:
        now = time.monotonic()
        last = _evicted.get(str(self.directory))
        if last is None or now - last >= EVICTION_SECONDS:
            _evicted[str(self.directory)] = now
            self._evict(place)

    def _evict(self, place: Place) -> None:
        groups: dict[str, list[tuple[str, os.stat_result]]] = {}
        now = time.time()
        for file in place.files():
            found = _NAMES.fullmatch(file)
            if found is None:
                continue
            with suppress(OSError):
                facts = place.stat(file)
                if found[1] is None:
                    if now - facts.st_mtime > _STALE_SECONDS:
                        place.unlink(file)
                else:
                    groups.setdefault(found[1], []).append((file, facts))
        total = 0
        by_use: list[tuple[float, int, str]] = []
        for name, members in groups.items():
            headers = [facts.st_mtime for file, facts in members if not file.endswith(".code")]
            codes = sorted(
                (facts.st_mtime, file) for file, facts in members if file.endswith(".code")
            )
            # Code that no header names: of two processes that stored at the same time, or of
            # one that was ended in between.
            for modified, file in codes[:-1] if headers else codes:
                if now - modified > _STALE_SECONDS:
                    place.unlink(file)
            size = sum(facts.st_size for _, facts in members)
            total += size
            by_use.append((max(headers, default=codes[-1][0] if codes else now), size, name))
        removed = 0
        for _, size, name in sorted(by_use):
            if total <= self.limit_bytes:
                break
            place.remove(name)
            total -= size
            removed += 1
        if removed:
            _log.event("cache_evicted", entries=removed, left_bytes=total)


class Place:
    """A directory that has been checked, open, and the key for what is in it."""

    def __init__(self, directory: Path, descriptor: int | None, key: bytes, shared: bool) -> None:
        self._directory = directory
        self._descriptor = descriptor
        self._key = key
        self.shared = shared

    def _at(self, file: str) -> tuple[str, int | None]:
        if self._descriptor is None:
            return str(self._directory / file), None
        return file, self._descriptor

    def path(self, file: str) -> str:
        """Return the path of *file*."""
        return str(self._directory / file)

    def name(self, kind: str, about: object) -> str:
        """Return the name of the files about something."""
        return self._keyed(b"name", json.dumps([FORMAT, kind, about], sort_keys=True).encode())

    def _keyed(self, purpose: bytes, content: bytes) -> str:
        return hashlib.blake2b(
            content, key=self._key, digest_size=_MAC_BYTES, person=b"asyncwasm " + purpose
        ).hexdigest()

    def _mac(self, file: str, payload: bytes) -> bytes:
        return bytes.fromhex(self._keyed(b"mac", file.encode() + b"\0" + payload))

    def read(self, file: str, kind: str) -> dict[str, Any] | None:
        """Return the header in *file*, None if there is none; raise Rejected if it is not ours."""
        try:
            with self.opened(file) as (descriptor, facts):
                if not _MAC_BYTES < facts.st_size <= _MAX_HEADER_BYTES:
                    raise Rejected("the header has a wrong size")
                content = _read(descriptor, facts.st_size)
        except FileNotFoundError:
            return None
        mac, payload = content[:_MAC_BYTES], content[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(file, payload)):
            raise Rejected("the header's MAC is wrong")
        header: dict[str, Any] = json.loads(payload)
        if header["format"] != FORMAT or header["kind"] != kind:
            raise Rejected("the header has another format")
        return header

    def write_header(self, file: str, kind: str, header: Mapping[str, Any]) -> None:
        """Write a header atomically."""
        payload = json.dumps({"format": FORMAT, "kind": kind, **header}).encode()
        self.write(file, self._mac(file, payload) + payload)

    @contextmanager
    def opened(self, file: str) -> Iterator[tuple[int, os.stat_result]]:
        """Open *file* for reading; raise Rejected if it is not a plain file."""
        path, at = self._at(file)
        try:
            descriptor = os.open(path, _OPEN, dir_fd=at)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, getattr(errno, "EMLINK", errno.ELOOP)):
                raise Rejected("a symbolic link") from None
            raise
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise Rejected("not a plain file")
            yield descriptor, facts
        finally:
            os.close(descriptor)

    def write(self, file: str, content: bytes) -> None:
        """Write *file* atomically, readable for us only."""
        temporary = f"tmp-{secrets.token_hex(8)}"
        path, at = self._at(temporary)
        _create(path, at, content)
        try:
            os.replace(path, self._at(file)[0], src_dir_fd=at, dst_dir_fd=at)
        except BaseException:
            self.unlink(temporary)
            raise

    def stat(self, file: str) -> os.stat_result:
        """Return the facts about *file*, which is not followed."""
        path, at = self._at(file)
        return os.stat(path, dir_fd=at, follow_symlinks=False)

    def touch(self, file: str) -> None:
        """Note that *file* has been used."""
        path, at = self._at(file)
        with suppress(OSError, NotImplementedError):
            os.utime(path, dir_fd=at)

    def unlink(self, file: str) -> None:
        """Remove *file*, if that is possible."""
        path, at = self._at(file)
        with suppress(OSError):
            os.unlink(path, dir_fd=at)

    def files(self) -> list[str]:
        """Return the names of everything in the directory."""
        return os.listdir(self._directory if self._descriptor is None else self._descriptor)

    def remove(self, name: str) -> None:
        """Remove the files called *name*, the headers first."""
        for file in sorted(self.files(), key=lambda file: file.endswith(".code")):
            if file.startswith(name + "."):
                self.unlink(file)


def configuration(config: EngineConfig, *, fuel: bool) -> dict[str, Any]:
    """Return everything that code depends on, besides the binary."""
    return {
        "engine": compiling.engine_version(),
        "features": config.features,
        "fuel": fuel,
        "machine": platform.machine(),
        "max_wasm_stack_bytes": config.max_wasm_stack_bytes,
        "system": sys.platform,
        "tier": "optimized",
    }


def _load_file(place: Place, engine: Handle, code: Mapping[str, Any]) -> Handle:
    """Map the file that holds the code, if it is the very one that was written."""
    try:
        with place.opened(code["file"]) as (descriptor, facts):
            if Identity.of(facts) != tuple(code["identity"]):
                raise Rejected("the code is not in the file that was written")
            path = f"{_LINKS}/{descriptor}"
            if not os.path.exists(path):
                path = place.path(code["file"])
            return compiling.deserialize_file(engine, path)
    except FileNotFoundError:
        raise Rejected("the code is missing") from None
    except CompileError as exc:
        raise Rejected(f"the engine does not take the code: {exc}") from None


def _load_content(place: Place, engine: Handle, code: Mapping[str, Any]) -> Handle:
    """Load the code from bytes that have been checked."""
    try:
        with place.opened(code["file"]) as (descriptor, facts):
            if facts.st_size != code["size"]:
                raise Rejected("the code has a wrong size")
            content = _read(descriptor, facts.st_size)
    except FileNotFoundError:
        raise Rejected("the code is missing") from None
    if not hmac.compare_digest(_content(content), str(code.get("content"))):
        raise Rejected("the code has been changed")
    try:
        return compiling.deserialize(engine, content)
    except CompileError as exc:
        raise Rejected(f"the engine does not take the code: {exc}") from None


def _content(code: bytes) -> str:
    return hashlib.blake2b(code, digest_size=_MAC_BYTES).hexdigest()


def _read(descriptor: int, size: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(size)


def _create(path: str, at: int | None, content: bytes) -> None:
    """Create a file that is readable for us only, whatever the umask says."""
    descriptor = os.open(path, _CREATE, 0o600, dir_fd=at)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, 0o600)
            file.write(content)
    except BaseException:
        with suppress(OSError):
            os.unlink(path, dir_fd=at)
        raise
    finally:
        os.close(descriptor)


# directories and keys


@contextmanager
def _open_directory(directory: Path, *, chosen: bool) -> Iterator[tuple[int | None, bool]]:
    """Open *directory*, made if it is missing; say whether others can write it."""
    try:
        facts = os.lstat(directory)
    except FileNotFoundError:
        _make(directory)
        facts = os.lstat(directory)
    shared = _check(directory, facts, chosen=chosen)
    if not _AT:
        yield None, shared
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        # It may have been exchanged meanwhile; from here on its name is not used any more.
        yield descriptor, _check(directory, os.fstat(descriptor), chosen=chosen)
    finally:
        os.close(descriptor)


def _make(directory: Path) -> None:
    """Make *directory* and what is above it, for us only whatever the umask says."""
    if not directory.parent.exists():
        _make(directory.parent)
    with suppress(FileExistsError):
        os.mkdir(directory, 0o700)


def _check(directory: Path, facts: os.stat_result, *, chosen: bool) -> bool:
    """Raise Unusable if *directory* cannot hold a cache; return whether others can write it."""
    if stat.S_ISLNK(facts.st_mode):
        raise Unusable(f"{directory} is a symbolic link")
    if not stat.S_ISDIR(facts.st_mode):
        raise Unusable(f"{directory} is not a directory")
    if not _OWNERS:
        return chosen
    mode = stat.S_IMODE(facts.st_mode)
    if chosen and mode & 0o022:
        return True
    if facts.st_uid != os.getuid():
        raise Unusable(f"{directory} belongs to user {facts.st_uid}, we are {os.getuid()}")
    if mode != 0o700:
        raise Unusable(f"{directory} has mode {mode:04o}, expected 0700")
    return False


def _key(directory: Path, descriptor: int | None) -> bytes:
    """Return the key in *directory*, made if there is none."""
    place = Place(directory, descriptor, b"", False)
    for _ in range(3):
        try:
            with place.opened("key") as (file, facts):
                _check_key(facts)
                return _read(file, _KEY_BYTES)
        except FileNotFoundError:
            _make_key(place)
        except Rejected as exc:
            raise Unusable(f"the key: {exc}") from None
    raise Unusable("the key cannot be made")


def _check_key(facts: os.stat_result) -> None:
    if _OWNERS:
        if facts.st_uid != os.getuid():
            raise Unusable(f"the key belongs to user {facts.st_uid}, we are {os.getuid()}")
        mode = stat.S_IMODE(facts.st_mode)
        if mode != 0o600:
            raise Unusable(f"the key has mode {mode:04o}, expected 0600")
    if facts.st_size != _KEY_BYTES:
        raise Unusable(f"the key has {facts.st_size} bytes, expected {_KEY_BYTES}")


def _make_key(place: Place) -> None:
    """Make a key, unless somebody else is faster; nobody ever sees half of one."""
    temporary = f"tmp-{secrets.token_hex(8)}"
    path, at = place._at(temporary)
    _create(path, at, secrets.token_bytes(_KEY_BYTES))
    name = place._at("key")[0]
    try:
        with suppress(FileExistsError):
            try:
                os.link(path, name, src_dir_fd=at, dst_dir_fd=at)
            except FileExistsError:
                raise
            except OSError:  # there are no links; a reader may find a short key, and go without
                _create(name, at, secrets.token_bytes(_KEY_BYTES))
    finally:
        place.unlink(temporary)

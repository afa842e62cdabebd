"""
A directory of cache entries that has been checked: who may write it, and which files are ours.

Whoever can change an entry runs code as us. Therefore:

Rule 1: a directory of our own must be 0700, ours and no symbolic link. That is checked each time
and never repaired; where it does not hold, there is no cache.
Rule 2: nothing is believed before its MAC has been checked. The key is in a file of our own. The
MAC covers the file's name, so that an entry cannot be passed off as another one.
Rule 3: after the check, files are reached through the directory's descriptor, where the system
has that: its name may mean another directory meanwhile.
Rule 4: a directory that stays open is checked each time it is used all the same, by its name, and
so is its key. If the name means another one by then, or the key is another, it is opened again.

Headers are text, a name and a value a line: that takes no library to read, which would cost
more than everything else up to the first instance of a warm cache.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

from .._hashes import blake2b, compare_digest
from .source import Identity

FORMAT = 3  # raise it when what is stored, or the code made from the same binary, changes

_KEY_BYTES = 32
_MAC_BYTES = 32
_MAX_HEADER_BYTES = 1 << 16

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


class Unusable(Exception):
    """The directory or the key does not check out; the text says why."""


class Rejected(Exception):
    """A file does not check out; the text says why."""


class Key(NamedTuple):
    """What vouches for entries, and which file it was read from."""

    secret: bytes
    identity: Identity


class Place:
    """
    A directory that has been checked, and the key for what is in it.

    It is open until nobody has it any more: several threads may be using it when it is exchanged.

    Args:
        directory: Where; made if it is missing.
        chosen: Whether somebody has named it. Then others may be able to write it, and its key is
            elsewhere.
    Raises:
        Unusable: If it does not check out.
    """

    def __init__(self, directory: str, *, chosen: bool) -> None:
        self._descriptor: int | None = None
        self._directory = directory
        self._chosen = chosen
        self._open()
        self._key: Key = (
            Place(user_directory(), chosen=False)._key if self.shared else self._find_key()
        )

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _open(self) -> None:
        """Open the directory, made if it is missing, and tell whether others can write it."""
        facts = _facts(self._directory)
        self.shared = _check(self._directory, facts, chosen=self._chosen)
        if _AT:
            self._descriptor = os.open(self._directory, _OPEN | os.O_DIRECTORY)
            # It may have been exchanged meanwhile; from here on its name is not used any more.
            facts = os.fstat(self._descriptor)
            self.shared = _check(self._directory, facts, chosen=self._chosen)
        self._node = facts.st_dev, facts.st_ino

    @property
    def current(self) -> bool:
        """Whether it is still what its name means, and what opening it again would give."""
        if self.shared or self._descriptor is None:
            return False
        try:
            facts = os.lstat(self._directory)
            return (
                not _check(self._directory, facts, chosen=self._chosen)
                and self._node == (facts.st_dev, facts.st_ino)
                and self._key.identity == Identity.of(self.stat("key"))
            )
        except FileNotFoundError:
            return False

    def _at(self, file: str) -> tuple[str, int | None]:
        if self._descriptor is None:
            return self.path(file), None
        return file, self._descriptor

    def path(self, file: str) -> str:
        """Return the path of *file*."""
        return os.path.join(self._directory, file)

    def name(self, kind: str, *about: object) -> str:
        """Return the name of the files about something, which is told by plain values."""
        return self._keyed(b"name", repr((FORMAT, kind, *about)).encode()).hex()

    def _keyed(self, purpose: bytes, content: bytes) -> bytes:
        return blake2b(
            content, key=self._key.secret, digest_size=_MAC_BYTES, person=b"asyncwasm " + purpose
        ).digest()

    def _mac(self, file: str, payload: bytes) -> bytes:
        return self._keyed(b"mac", file.encode() + b"\0" + payload)

    def read(self, file: str, kind: str) -> dict[str, str] | None:
        """Return the header in *file*, None if there is none; raise Rejected if it is not ours."""
        try:
            with self.opened(file) as (descriptor, facts):
                if not _MAC_BYTES < facts.st_size <= _MAX_HEADER_BYTES:
                    raise Rejected("the header has a wrong size")
                content = read_all(descriptor, facts.st_size)
        except FileNotFoundError:
            return None
        mac, payload = content[:_MAC_BYTES], content[_MAC_BYTES:]
        if not compare_digest(mac, self._mac(file, payload)):
            raise Rejected("the header's MAC is wrong")
        header = dict(line.split("=", 1) for line in payload.decode().split("\n") if "=" in line)
        if header.get("format") != str(FORMAT) or header.get("kind") != kind:
            raise Rejected("the header has another format")
        return header

    def write_header(self, file: str, kind: str, header: Mapping[str, object]) -> None:
        """Write a header atomically. Its values are read again as text, of one line each."""
        facts = {"format": FORMAT, "kind": kind, **header}
        payload = "".join(f"{name}={value}\n" for name, value in facts.items()).encode()
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

    @contextmanager
    def opened_same(self, file: str, identity: str, what: str) -> Iterator[int]:
        """Open *file* if it is the very one that *identity* tells; raise Rejected if it is not."""
        try:
            with self.opened(file) as (descriptor, facts):
                if Identity.of(facts).text != identity:
                    raise Rejected(f"{what} is not in the file that was written")
                yield descriptor
        except FileNotFoundError:
            raise Rejected(f"{what} is missing") from None

    def write(self, file: str, content: bytes) -> None:
        """Write *file* atomically, readable for us only."""
        temporary = _temporary()
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

    def has(self, file: str) -> bool:
        """Return whether there is a *file*."""
        try:
            self.stat(file)
        except FileNotFoundError:
            return False
        return True

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
        for file in sorted(self.files(), key=lambda file: not file.endswith(HEADERS)):
            if file.startswith(name + "."):
                self.unlink(file)

    def _find_key(self) -> Key:
        """Return the key in the directory, made if there is none."""
        for _ in range(3):
            try:
                with self.opened("key") as (file, facts):
                    _check_key(facts)
                    return Key(read_all(file, _KEY_BYTES), Identity.of(facts))
            except FileNotFoundError:
                self._make_key()
            except Rejected as exc:
                raise Unusable(f"the key: {exc}") from None
        raise Unusable("the key cannot be made")

    def _make_key(self) -> None:
        """Make a key, unless somebody else is faster; nobody ever sees half of one."""
        temporary = _temporary()
        path, at = self._at(temporary)
        _create(path, at, os.urandom(_KEY_BYTES))
        name = self._at("key")[0]
        try:
            with suppress(FileExistsError):
                try:
                    os.link(path, name, src_dir_fd=at, dst_dir_fd=at)
                except FileExistsError:
                    raise
                except OSError:  # there are no links; a reader may find a short key: no cache
                    _create(name, at, os.urandom(_KEY_BYTES))
        finally:
            self.unlink(temporary)


# How names of files end that `Place.read` reads.
HEADERS = (".entry", ".refusal", ".file", ".bytes")


def user_directory() -> str:
    """
    Return the user's own cache directory.

    Raises:
        RuntimeError: If there is no home directory.
    """
    if sys.platform != "linux":  # pragma: no cover
        import platformdirs

        return platformdirs.user_cache_dir("asyncwasm")
    # What platformdirs says too; but importing it takes 15 ms.
    above = os.environ.get("XDG_CACHE_HOME", "").strip() or os.path.expanduser("~/.cache")
    if not os.path.isabs(above):
        raise RuntimeError(f"the user's cache directory {above!r} is no absolute path")
    return os.path.join(above, "asyncwasm")


def read_all(descriptor: int, size: int) -> bytes:
    """Return the first *size* bytes of an open file, or all that there are."""
    parts: list[bytes] = []
    while size and (part := os.read(descriptor, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _temporary() -> str:
    return f"tmp-{os.urandom(8).hex()}"


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


def _facts(directory: str) -> os.stat_result:
    """Return the facts about *directory*, which is not followed, and made if it is missing."""
    with suppress(FileNotFoundError):
        return os.lstat(directory)
    _make(directory)
    return os.lstat(directory)


def _make(directory: str) -> None:
    """Make *directory* and what is above it, for us only whatever the umask says."""
    above = os.path.dirname(directory)
    if not os.path.exists(above):
        _make(above)
    with suppress(FileExistsError):
        os.mkdir(directory, 0o700)


def _check(directory: str, facts: os.stat_result, *, chosen: bool) -> bool:
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


def _check_key(facts: os.stat_result) -> None:
    if _OWNERS:
        if facts.st_uid != os.getuid():
            raise Unusable(f"the key belongs to user {facts.st_uid}, we are {os.getuid()}")
        mode = stat.S_IMODE(facts.st_mode)
        if mode != 0o600:
            raise Unusable(f"the key has mode {mode:04o}, expected 0600")
    if facts.st_size != _KEY_BYTES:
        raise Unusable(f"the key has {facts.st_size} bytes, expected {_KEY_BYTES}")

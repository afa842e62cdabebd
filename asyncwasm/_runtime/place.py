"""
A directory of cache entries that has been checked: who may write it, and which files are ours.

Whoever can change an entry runs code as us. Therefore:

Rule 1: a directory of our own must be 0700, ours and no symbolic link. That is checked each time
and never repaired; where it does not hold, there is no cache.
Rule 2: nothing is believed before its MAC has been checked. The key is in a file of our own. The
MAC covers the file's name, so that an entry cannot be passed off as another one.
Rule 3: after the check, files are reached through the directory's descriptor, where the system
has that: its name may mean another directory meanwhile.

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

from .._hashes import blake2b, compare_digest
from .source import Identity

FORMAT = 2  # raise it when what is stored, or the code made from the same binary, changes

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


class Place:
    """A directory that has been checked, open, and the key for what is in it."""

    def __init__(self, directory: str, descriptor: int | None, key: bytes, shared: bool) -> None:
        self._directory = directory
        self._descriptor = descriptor
        self._key = key
        self.shared = shared

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
            content, key=self._key, digest_size=_MAC_BYTES, person=b"asyncwasm " + purpose
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

    def key(self) -> bytes:
        """Return the key in the directory, made if there is none."""
        for _ in range(3):
            try:
                with self.opened("key") as (file, facts):
                    _check_key(facts)
                    return read_all(file, _KEY_BYTES)
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


@contextmanager
def open_place(directory: str, *, chosen: bool) -> Iterator[Place]:
    """
    Open *directory*, made if it is missing.

    If somebody has *chosen* it, others may be able to write it; then its key is elsewhere.

    Raises:
        Unusable: If it does not check out.
    """
    with _open_directory(directory, chosen=chosen) as (descriptor, shared):
        if shared:
            with open_place(user_directory(), chosen=False) as private:
                key = private._key
        else:
            key = Place(directory, descriptor, b"", False).key()
        yield Place(directory, descriptor, key, shared)


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
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(size)


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


@contextmanager
def _open_directory(directory: str, *, chosen: bool) -> Iterator[tuple[int | None, bool]]:
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

"""
The cache of compiled modules: what is in it, and how to empty it.

Engines fill and use it by themselves (see `EngineConfig`); nothing here is needed for that.

Rule 1: only files of our own are counted or removed, also in a directory that others can write.
Rule 2: a directory that does not check out is described, and never touched.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ._ffi.compiling import engine_version
from ._runtime.cache import Cache, open_cache
from ._runtime.config import EngineConfig
from ._runtime.eviction import NAMES
from ._runtime.place import Place, Rejected, Unusable

__all__ = ("CacheInfo", "Removed", "clear", "info", "prune")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """
    Say where a cache is, and what is in it.

    `directory` is None if the cache is off. `problem` says why the directory cannot be used,
    and is None if it can. `entries` counts compiled modules, `size_bytes` is that of all files;
    above `limit_bytes`, what was not used for longest goes.
    """

    directory: Path | None
    problem: str | None = None
    entries: int = 0
    size_bytes: int = 0
    limit_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """
    Say what was removed.

    Args:
        entries: Compiled modules.
        size_bytes: Bytes of files.
    """

    entries: int = 0
    size_bytes: int = 0


def info(directory: str | os.PathLike[str] = "default") -> CacheInfo:
    """
    Return where the cache is and what is in it.

    Args:
        directory: A directory, or ``"default"`` as for `EngineConfig`.
    """
    cache = _cache(directory)
    if cache is None:
        return CacheInfo(directory=None)
    try:
        entries, size_bytes = _measure(_opened(cache))
    except OSError as exc:
        return CacheInfo(
            directory=Path(cache.directory), problem=_reason(exc), limit_bytes=cache.limit_bytes
        )
    return CacheInfo(
        directory=Path(cache.directory),
        entries=entries,
        size_bytes=size_bytes,
        limit_bytes=cache.limit_bytes,
    )


def prune(
    directory: str | os.PathLike[str] = "default", *, limit_bytes: int | None = None
) -> Removed:
    """
    Remove what is of no use any more, and what was not used for longest above the limit.

    Of no use is what another version of the engine made, and what does not check out.

    Args:
        directory: A directory, or ``"default"`` as for `EngineConfig`.
        limit_bytes: Size to prune to; the limit of engines if omitted.
    Raises:
        OSError: If the directory cannot be used.
        ValueError: If *limit_bytes* is not positive.
    """
    cache = _cache(directory, limit_bytes)
    if cache is None:
        return Removed()
    place = _opened(cache)
    before = _measure(place)
    for file, _ in _own_files(place):
        if file.endswith((".entry", ".refusal")) and not _is_current(place, file):
            place.remove(file.partition(".")[0])
    cache.evict()
    return _difference(before, _measure(place))


def clear(directory: str | os.PathLike[str] = "default") -> Removed:
    """
    Remove everything; modules that are in use stay usable.

    Args:
        directory: A directory, or ``"default"`` as for `EngineConfig`.
    Raises:
        OSError: If the directory cannot be used.
    """
    cache = _cache(directory)
    if cache is None:
        return Removed()
    place = _opened(cache)
    before = _measure(place)
    for file, _ in _own_files(place):
        place.unlink(file)
    return _difference(before, _measure(place))


def _cache(directory: str | os.PathLike[str], limit_bytes: int | None = None) -> Cache | None:
    config = EngineConfig(cache=directory)
    if limit_bytes is not None:
        config = EngineConfig(cache=directory, cache_bytes=limit_bytes)
    return open_cache(config)


def _opened(cache: Cache) -> Place:
    try:
        return cache.opened()
    except Unusable as exc:
        raise PermissionError(str(exc)) from exc


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _own_files(place: Place) -> list[tuple[str, int]]:
    """Return the names and sizes of the files that are a cache's, and ours."""
    found: list[tuple[str, int]] = []
    for file in place.files():
        if NAMES.fullmatch(file):
            try:
                facts = place.stat(file)
            except OSError:  # removed meanwhile
                continue
            ours = not hasattr(os, "getuid") or facts.st_uid == os.getuid()
            if ours and stat.S_ISREG(facts.st_mode):
                found.append((file, facts.st_size))
    return found


def _measure(place: Place) -> tuple[int, int]:
    """Return the number of entries and the size of all files."""
    files = _own_files(place)
    return sum(file.endswith(".entry") for file, _ in files), sum(size for _, size in files)


def _is_current(place: Place, file: str) -> bool:
    """Return whether this version of the engine could use an entry or a refusal."""
    try:
        header = place.read(file, file.partition(".")[2])
    except Rejected:
        return False
    return header is None or header["engine"] == engine_version()


def _difference(before: tuple[int, int], after: tuple[int, int]) -> Removed:
    return Removed(entries=max(0, before[0] - after[0]), size_bytes=max(0, before[1] - after[1]))

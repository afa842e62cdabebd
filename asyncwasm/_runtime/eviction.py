"""Which files of a cache go when it is full, and what interrupted writers have left."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress

from .. import _log
from .place import HEADERS, Place

_ENDINGS = "|".join((*map(re.escape, HEADERS), r"\.[0-9a-f]{16}\.(?:code|wasm)"))
NAMES = re.compile(rf"([0-9a-f]{{64}})(?:{_ENDINGS})|tmp-[0-9a-f]{{16}}")

_STALE_SECONDS = 3600.0  # after which what is left of an interrupted writer is removed


def evict(place: Place, limit_bytes: int) -> None:
    """Remove what was not used for longest, until the rest has at most *limit_bytes*."""
    groups: dict[str, list[tuple[str, os.stat_result]]] = {}
    now = time.time()
    for file in place.files():
        found = NAMES.fullmatch(file)
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
        headers = [facts.st_mtime for file, facts in members if file.endswith(HEADERS)]
        contents = sorted(
            (facts.st_mtime, file) for file, facts in members if not file.endswith(HEADERS)
        )
        # Content that no header names: of two processes that stored at the same time, or of
        # one that was ended in between.
        for modified, file in contents[:-1] if headers else contents:
            if now - modified > _STALE_SECONDS:
                place.unlink(file)
        size = sum(facts.st_size for _, facts in members)
        total += size
        by_use.append((max(headers, default=contents[-1][0] if contents else now), size, name))
    removed = 0
    for _, size, name in sorted(by_use):
        if total <= limit_bytes:
            break
        place.remove(name)
        total -= size
        removed += 1
    if removed:
        _log.event("cache_evicted", entries=removed, left_bytes=total)

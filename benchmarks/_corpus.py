"""The modules that are measured: real ones, out of npm packages, fetched once with `npm pack`."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

LIST = Path(__file__).with_name("corpus.json")
_SETTLED_SECONDS = 2.5  # before which the cache does not remember a file that has changed


class Entry(NamedTuple):
    """A module of the corpus, and where it has been put."""

    name: str
    path: Path
    size_bytes: int


def corpus(directory: Path, *, only: str | None = None, limit: int | None = None) -> list[Entry]:
    """
    Return the modules, fetched into *directory* if they are not there.

    Args:
        directory: Where they are kept.
        only: Part of the name of those that are wanted.
        limit: How many are wanted.
    Raises:
        SystemExit: If something must be fetched and npm is missing, or has failed.
        ValueError: If what was fetched has another digest than the list says.
    """
    entries: list[Entry] = []
    seen: set[str] = set()
    for row in json.loads(LIST.read_text(encoding="utf-8")):
        name = f"{row['package']}/{row['file'].removeprefix('package/')}"
        if row["sha256"] in seen or (only is not None and only not in name):
            continue
        if limit is not None and len(entries) >= limit:
            break
        seen.add(row["sha256"])  # the same bytes would be compiled once
        path = directory / row["sha256"][:16] / Path(row["file"]).name
        if not path.exists():
            _fetch(directory, f"{row['package']}@{row['version']}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
            raise ValueError(f"{path} is not the file of the list; delete it")
        entries.append(Entry(name, path, row["bytes"]))
    if entries:
        changed = max(entry.path.stat().st_ctime for entry in entries)
        time.sleep(max(0.0, changed + _SETTLED_SECONDS - time.time()))
    return entries


def _fetch(directory: Path, package: str) -> None:
    """Put the modules of *package*, a name and a version, into *directory*."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(f"npm is needed to fetch {package}; install Node.js, or fill {directory}")
    print(f"fetching {package}", flush=True)
    wanted = {
        row["file"]: row
        for row in json.loads(LIST.read_text(encoding="utf-8"))
        if f"{row['package']}@{row['version']}" == package
    }
    with tempfile.TemporaryDirectory() as temporary:
        done = subprocess.run(
            [npm, "pack", "--silent", "--pack-destination", temporary, package],
            capture_output=True,
            text=True,
            check=False,
        )
        archives = list(Path(temporary).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            raise SystemExit(f"npm pack {package} has failed: {done.stderr.strip()}")
        with tarfile.open(archives[0]) as archive:
            for file, row in wanted.items():
                content = archive.extractfile(file)
                assert content is not None
                path = directory / row["sha256"][:16] / Path(file).name
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".part")
                partial.write_bytes(content.read())
                partial.replace(path)

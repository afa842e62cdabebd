"""Finding the native library without importing what costs more than loading it."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import sys
from pathlib import Path

import pytest

from asyncwasm._ffi import library


def test_version_is_the_installers() -> None:
    assert library._version(library._package()) == importlib.metadata.version("wasmtime")


def test_version_is_asked_for_where_no_directory_tells_it(tmp_path: Path) -> None:
    (tmp_path / "wasmtime").mkdir()

    assert library._version(str(tmp_path / "wasmtime")) == importlib.metadata.version("wasmtime")


def test_version_is_asked_for_where_two_directories_tell_it(tmp_path: Path) -> None:
    """An interrupted upgrade leaves that behind."""
    for name in ("wasmtime", "wasmtime-1.0.0.dist-info", "wasmtime-2.0.0.dist-info"):
        (tmp_path / name).mkdir()

    assert library._version(str(tmp_path / "wasmtime")) == importlib.metadata.version("wasmtime")


def test_version_that_we_do_not_know_is_refused(tmp_path: Path) -> None:
    for name in ("wasmtime", "wasmtime-49.0.0.dist-info"):
        (tmp_path / name).mkdir()

    with pytest.raises(ImportError, match=r"found wasmtime 49\.0\.0; asyncwasm needs wasmtime >="):
        library._version(str(tmp_path / "wasmtime"))


def test_machine_without_a_library_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=f"no library for .*{library.machine()}"):
        library._path(str(tmp_path))


def test_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wasmtime", raising=False)
    monkeypatch.setattr(
        importlib.machinery.PathFinder, "find_spec", lambda name, path=None, target=None: None
    )

    with pytest.raises(ImportError, match="wasmtime is not installed; asyncwasm needs wasmtime"):
        library._package()


def test_package_without_a_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.machinery.ModuleSpec("wasmtime", None)
    monkeypatch.setattr(
        importlib.machinery.PathFinder, "find_spec", lambda name, path=None, target=None: spec
    )

    with pytest.raises(ImportError, match="has no directory"):
        library._package()


def test_missing_metadata_is_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    (tmp_path / "wasmtime").mkdir()

    with pytest.raises(ImportError, match="wasmtime is not installed"):
        library._version(str(tmp_path / "wasmtime"))

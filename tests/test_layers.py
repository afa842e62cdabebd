"""Imports point down: a module imports its own layer or a lower one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path, PurePath

import pytest

from .support import ROOT

PACKAGE = ROOT / "asyncwasm"
FACES = {"cache", "batch", "pool", "wasi", "asgi", "testing"}
LAYERS = [
    {
        "_errors",
        "_types",
        "_record",
        "_log",
        "_hashes",
        "_binary",
        "_reader",
        "_writer",
        "_version",
    },
    {"_ffi", "_speedups"},  # the latter is its accelerator, in C
    {"_runtime"},
    {"_objects"},
    {"_driver"},
    {"_api"},
    {"__init__"},
    FACES,
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
NATIVE = {"ctypes", "_ctypes", "wasmtime"}
# Outside name -> the only unit that may know it.
OWNERS = {**dict.fromkeys(NATIVE, "_ffi"), "structlog": "_log"}


class Source:
    """One file of the package: where it is, and what it says."""

    def __init__(self, path: PurePath, text: str) -> None:
        self.path = path  # inside of the package
        self.unit = path.with_suffix("").parts[0]
        self.tree = ast.parse(text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """
        Every node that counts.

        The package's `__init__` may name faces for type checkers, and load them on demand.
        """
        found = []
        waiting: list[ast.AST] = [self.tree]
        while waiting:
            node = waiting.pop()
            if self.unit == "__init__" and _is_lazy(node):
                continue
            found.append(node)
            waiting.extend(ast.iter_child_nodes(node))
        return found

    def imports(self) -> Iterator[tuple[str, bool]]:
        """Yield (own unit or outside name, whether it is ours) for each import."""
        depth = len(self.path.parts) - 1
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from ((alias.name.split(".")[0], False) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from self._imports_from(node, depth)

    def _imports_from(self, node: ast.ImportFrom, depth: int) -> Iterator[tuple[str, bool]]:
        if not node.level:
            assert node.module is not None
            yield node.module.split(".")[0], False
        elif node.level <= depth:  # stays inside of this sub-package
            yield self.unit, True
        elif node.module:
            yield node.module.split(".")[0], True
        else:  # from .. import x: a module, or a name of __init__
            for alias in node.names:
                yield (alias.name if alias.name in RANK else "__init__"), True

    def borrowed(self) -> Iterator[str]:
        """Yield the outside names that are reached through another module, or by text."""
        for node in self.nodes:
            if isinstance(node, ast.Attribute) and node.attr in OWNERS:
                yield node.attr
            elif isinstance(node, ast.ImportFrom):
                yield from (alias.name for alias in node.names if alias.name in OWNERS)
            elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
                texts = [each.value for each in node.args if isinstance(each, ast.Constant)]
                yield from (str(text).split(".")[0] for text in texts)


def _is_lazy(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name == "__getattr__"
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def upward(source: Source) -> set[str]:
    """Return what *source* imports from above, or from beside if it is a face."""
    own = source.unit
    ours = {name for name, is_ours in source.imports() if is_ours}
    found = {name for name in ours if RANK.get(name, len(LAYERS)) > RANK[own]}
    if own in FACES - {"testing"}:
        found |= ours & (FACES - {own})
    if ("asyncwasm", False) in source.imports():
        found.add("asyncwasm")
    return found


def foreign(source: Source) -> set[str]:
    """Return the outside names that *source* uses, and may not."""
    outside = {name for name, is_ours in source.imports() if not is_ours}
    used = outside | set(source.borrowed())
    return {name for name in used & set(OWNERS) if OWNERS[name] != source.unit}


def awaits(source: Source) -> list[int]:
    """Return the lines of *source* that wait, and may not."""
    if RANK[source.unit] >= RANK["_driver"]:
        return []
    return sorted(node.lineno for node in source.nodes if isinstance(node, _WAITING)) + [
        node.iter.lineno
        for node in source.nodes
        if isinstance(node, ast.comprehension) and node.is_async
    ]


_WAITING = (ast.Await, ast.AsyncFor, ast.AsyncWith)


@cache
def _read(path: Path) -> Source:
    return Source(path.relative_to(PACKAGE), path.read_text(encoding="utf-8"))


every_module = pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)


@every_module
def test_module_has_a_layer(path: Path) -> None:
    assert _read(path).unit in RANK, "new module: give it a layer in LAYERS"


@every_module
def test_imports_point_down(path: Path) -> None:
    """A lower layer that knew a higher one could not be understood, or replaced, without it."""
    assert upward(_read(path)) == set()


@every_module
def test_outside_names_stay_with_their_owner(path: Path) -> None:
    """Whoever uses ctypes can crash the process, and structlog is to be imported late."""
    assert foreign(_read(path)) == set()


@every_module
def test_only_the_driver_and_what_is_above_awaits(path: Path) -> None:
    """Below it, everything works without an event loop."""
    assert awaits(_read(path)) == []


UPWARD = {
    "next layer": ("_ffi/x.py", "from .._runtime.store import Store"),
    "inside of a function": ("_types.py", "def f():\n    from ._ffi import library"),
    "package root": ("_objects/x.py", "from .. import Module"),
    "module of the root": ("_objects/x.py", "from .. import _api"),
    "absolute": ("_objects/x.py", "import asyncwasm._errors"),
    "absolute from": ("_objects/x.py", "from asyncwasm._errors import WasmError"),
    "face to face": ("batch.py", "from .pool import InstancePool"),
    "face in a directory": ("asgi/x.py", "from ..wasi import WASI"),
    "face to the command line": ("wasi.py", "from .cli import main"),
    "root to a face": ("__init__.py", "from .batch import load_many"),
    "for type checkers": ("_ffi/x.py", "if TYPE_CHECKING:\n    from .._api import compile"),
}
DOWNWARD = {
    "lower layer": ("_driver/x.py", "from .._objects.module import Module"),
    "own layer": ("_objects/x.py", "from . import guard\nfrom .module import Module"),
    "module of the root": ("_runtime/x.py", "from .. import _log"),
    "testing to a face": ("testing.py", "from .pool import InstancePool"),
    "face to the root": ("asgi/x.py", "from .. import Module"),
    "root to a lazy face": (
        "__init__.py",
        "if TYPE_CHECKING:\n    from .batch import load_many\n"
        "def __getattr__(name):\n    from . import batch",
    ),
}


@pytest.mark.parametrize(("path", "text"), UPWARD.values(), ids=UPWARD.keys())
def test_detector_finds_an_upward_import(path: str, text: str) -> None:
    assert upward(Source(PurePath(path), text))


@pytest.mark.parametrize(("path", "text"), DOWNWARD.values(), ids=DOWNWARD.keys())
def test_detector_accepts_a_downward_import(path: str, text: str) -> None:
    assert upward(Source(PurePath(path), text)) == set()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("_runtime/x.py", "import ctypes"),
        ("_runtime/x.py", "import ctypes.util"),
        ("_runtime/x.py", "from wasmtime import Store"),
        ("_runtime/x.py", "from .._ffi import externs\nexterns.ctypes.c_int()"),
        ("_runtime/x.py", "from .._ffi.externs import ctypes"),
        ("_runtime/x.py", "import importlib\nimportlib.import_module('wasmtime.loader')"),
        ("_ffi/x.py", "import structlog"),
    ],
)
def test_detector_finds_an_outside_name(path: str, text: str) -> None:
    assert foreign(Source(PurePath(path), text))


@pytest.mark.parametrize(
    ("path", "text"), [("_ffi/x.py", "import ctypes"), ("_log.py", "import structlog")]
)
def test_detector_leaves_an_outside_name_to_its_owner(path: str, text: str) -> None:
    assert foreign(Source(PurePath(path), text)) == set()


@pytest.mark.parametrize(
    "text", ["await x", "async for x in y: pass", "async with x: pass", "[x async for x in y]"]
)
def test_detector_finds_what_waits(text: str) -> None:
    source = f"async def f():\n    {text}"

    assert awaits(Source(PurePath("_objects/x.py"), source)) == [2]
    assert awaits(Source(PurePath("_driver/x.py"), source)) == []

"""What the package exports: names, homes, docstrings, and what importing it costs."""

from __future__ import annotations

import ast
import builtins
import enum
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import anyio
import pytest

import asyncwasm as aw

from .support import ROOT, run_script

PACKAGE = ROOT / "asyncwasm"
FACES = sorted(
    path.stem
    for path in [*PACKAGE.glob("*.py"), *(each.parent for each in PACKAGE.glob("*/__init__.py"))]
    if not path.stem.startswith("_")
)


def _importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError as exc:  # a face whose extra is not installed
        return exc.name is None or exc.name.startswith("asyncwasm")
    return True


MODULES = [
    "asyncwasm",
    *filter(_importable, (f"asyncwasm.{name}" for name in FACES if name != "cli")),
]
in_every_module = pytest.mark.parametrize("module", MODULES)

# What the JS API's documents describe by an algorithm, an interface or a dictionary.
SPECIFIED = {
    "compile": [],
    "compile_streaming": [],
    "instantiate": [],
    "instantiate_streaming": [],
    "promising": [],
    "validate": [],
    "FunctionType": [],
    "MemoryType": [],
    "TableType": [],
    "GlobalType": [],
    "TagType": [],
    "ExportDescriptor": [],
    "ImportDescriptor": [],
    "Module": ["exports", "imports", "custom_sections"],
    "Instance": ["exports"],
    "Instantiated": [],
    "ExportedFunction": ["call_async"],
    "Function": [],
    "Memory": ["buffer", "grow", "to_fixed_length_buffer", "to_resizable_buffer"],
    "Table": ["get", "set", "grow"],
    "Global": ["value"],
    "Tag": [],
    "GCObject": [],
    "Suspending": [],
    "WasmError": [],
    "CompileError": [],
    "LinkError": [],
    "Trap": [],
    "SuspendError": [],
    "WasmException": ["is_tag", "get_arg"],
}

# Classes that keep more than their users' names in the open, and their users' names.
MEMBERS = {
    "Store": {
        "close",
        "closed",
        "engine",
        "fuel",
        "interleave",
        "limits",
        "sync_deadline_seconds",
    },
    "Engine": {"close", "closed", "config"},
}


def _exported(module: str) -> list[str]:
    return list(getattr(importlib.import_module(module), "__all__", ()))


def _order(name: str) -> tuple[bool, bool, str]:
    """Sort constants before classes before functions, as ruff does."""
    return not name.isupper(), not name[0].isupper(), name


def _described() -> Iterator[tuple[str, Any]]:
    """Yield the name of every public object that can have a docstring, and the object."""
    for module in MODULES:
        for name in _exported(module):
            value = getattr(importlib.import_module(module), name)
            if not (isinstance(value, type) or inspect.isroutine(value)):
                continue
            shown = name if module == "asyncwasm" else f"{module.partition('.')[2]}.{name}"
            yield shown, value
            if isinstance(value, type):
                yield from _members(shown, value)


def _members(owner: str, cls: type) -> Iterator[tuple[str, Any]]:
    if issubclass(cls, enum.Enum):
        return
    for name, value in vars(cls).items():
        if name.startswith("_") or name not in MEMBERS.get(cls.__name__, {name}):
            continue
        if inspect.isfunction(value) or isinstance(value, (classmethod, staticmethod, property)):
            yield f"{owner}.{name}", value


DESCRIBED = dict(_described())
in_every_docstring = pytest.mark.parametrize("name", DESCRIBED)


def _doc(name: str) -> str:
    """Return the docstring of a public object as it was written."""
    text = DESCRIBED[name].__doc__
    assert text, f"{name} has no docstring"
    return str(text)


def _sections(name: str) -> dict[str, str]:
    """Return what each section of a docstring says."""
    text = inspect.cleandoc(_doc(name))
    parts = re.split(r"(?m)^(Args|Returns|Raises|Cancellation|Example|Spec):", text)
    return dict(zip(parts[1::2], map(textwrap.dedent, parts[2::2]), strict=True))


def _listed(name: str) -> list[str]:
    """Return the parameters in the section Args."""
    text = _sections(name).get("Args", "")
    entries = re.findall(r"(?m)^((?:\w+,\s+)*\w+):", textwrap.dedent(text.lstrip("\n")))
    return [each for entry in entries for each in re.split(r",\s+", entry)]


def _parameters(name: str) -> list[str]:
    value = DESCRIBED[name]
    if isinstance(value, property):
        return []
    function = getattr(value, "__func__", value)
    if isinstance(value, type):
        if issubclass(value, enum.Enum) or not {"__init__", "__new__"} & set(vars(value)):
            return []
        function = value.__init__ if "__init__" in vars(value) else value.__new__
    try:
        parameters = list(inspect.signature(function).parameters)
    except ValueError:
        return []
    return [each for each in parameters if each not in ("self", "cls", "_cls")]


# names


@in_every_module
def test_all_is_a_sorted_tuple_of_what_there_is(module: str) -> None:
    found: ModuleType = importlib.import_module(module)
    names = found.__all__

    assert isinstance(names, tuple)
    assert list(names) == sorted(set(names), key=_order)
    assert [name for name in names if not hasattr(found, name)] == []


def test_all_is_what_the_package_reexports() -> None:
    """A name that is imported and not in `__all__`, or the other way round, is an accident."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    reexported = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
        if alias.asname == alias.name
    }

    assert reexported - {"__version__"} == set(aw.__all__)


def test_package_has_no_other_public_names() -> None:
    modules = {*FACES, "annotations"}

    assert {name for name in vars(aw) if not name.startswith("_")} <= set(aw.__all__) | modules


def test_star_import_gives_exactly_the_public_names() -> None:
    namespace: dict[str, Any] = {}
    exec("from asyncwasm import *", namespace)

    assert set(namespace) - {"__builtins__"} == set(aw.__all__)


@pytest.mark.parametrize("name", aw.__all__)
def test_public_object_is_at_home_in_the_package(name: str) -> None:
    """Tracebacks, pickles and documentation name the place that users import from."""
    value = getattr(aw, name)
    named = value if hasattr(value, "__qualname__") else type(value)

    if named is value:
        assert named.__module__ == "asyncwasm"
        assert named.__qualname__ == name


def test_version_is_text() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", aw.__version__)


@pytest.mark.parametrize(("name", "members"), MEMBERS.items(), ids=MEMBERS.keys())
def test_public_class_shows_only_what_is_meant_for_users(name: str, members: set[str]) -> None:
    shown = {each for each in dir(getattr(aw, name)) if not each.startswith("_")}

    assert shown == members


# docstrings


@in_every_docstring
def test_docstring_starts_with_one_sentence_on_its_own_line(name: str) -> None:
    text = _doc(name)
    first, *rest = inspect.cleandoc(text).splitlines()

    assert re.fullmatch(r"\S.*[^ .]\.", first), "expected a sentence"
    assert ". " not in first.replace("e.g. ", ""), "expected one sentence"
    assert rest[:1] in ([], [""]), "expected an empty line after the sentence"
    if rest:
        assert text.startswith("\n"), "expected the text to begin on the line after the quotes"


@in_every_docstring
def test_docstring_names_every_parameter(name: str) -> None:
    """In Args; a method with little to say may mention it in a sentence, as in *index*."""
    named = set(_listed(name))
    value = DESCRIBED[name]
    if isinstance(value, type):  # errors and the like describe the attribute
        for cls in value.__mro__:
            named.update(re.findall(r"`(\w+)`", cls.__doc__ or ""))
        if issubclass(value, BaseException):
            named.add("message")
    elif not named:
        named.update(re.findall(r"\*(\w+)\*", _doc(name)))

    if not getattr(value, "_is_protocol", False):  # what it is called with is no parameter of it
        assert [each for each in _parameters(name) if each not in named] == []


@in_every_docstring
def test_docstring_lists_no_parameter_that_is_none(name: str) -> None:
    assert [each for each in _listed(name) if each not in _parameters(name)] == []


@in_every_docstring
def test_docstring_raises_what_there_is(name: str) -> None:
    text = _sections(name).get("Raises", "")

    for each in re.findall(r"(?m)^(\w+): ", textwrap.dedent(text.lstrip("\n"))):
        homes = [home for home in (aw, builtins, anyio) if hasattr(home, each)]
        assert homes, f"there is no {each}"
        assert issubclass(getattr(homes[0], each), BaseException)


@pytest.mark.parametrize(
    "name", [*SPECIFIED, *(f"{cls}.{name}" for cls, names in SPECIFIED.items() for name in names)]
)
def test_docstring_points_at_the_specification(name: str) -> None:
    spec = _sections(name).get("Spec", "")

    assert re.fullmatch(r"\s*https://webassembly\.github\.io/[\w/.-]+#[\w-]+\s*", spec)


def _examples() -> Iterator[Any]:
    for name, value in DESCRIBED.items():
        if value.__doc__ and "Example" in _sections(name):
            yield pytest.param(_sections(name)["Example"], id=name)
    for module in MODULES:
        text = importlib.import_module(module).__doc__ or ""
        code = re.findall(r"(?:^ {4}.*\n|^\n)+", inspect.cleandoc(text) + "\n", re.MULTILINE)
        for block in code:
            if block.strip():
                yield pytest.param(block, id=module)


@pytest.mark.parametrize("text", list(_examples()))
def test_example_is_python(text: str) -> None:
    builtins.compile(
        textwrap.dedent(text).strip(), "example", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    )


# importing


def test_import_loads_neither_the_engine_nor_logging_libraries() -> None:
    """Each costs more than the whole package, and many who import it never need them."""
    done = run_script("""
        import sys
        import anyio
        before = set(sys.modules)
        import asyncwasm
        heavy = {"wasmtime", "structlog", "asyncio", "concurrent.futures", "logging", "signal",
                 "anyio.lowlevel", "textwrap", "traceback", "hashlib", "random",
                 "json", "platform", "pathlib", "platformdirs", "importlib.metadata"}
        print(sorted(heavy & (set(sys.modules) - before)))
    """)

    assert done.stdout == "[]\n", done.stderr
    assert done.stderr == ""


def test_using_the_package_does_not_import_wasmtime() -> None:
    """The library is found beside the package; its Python code alone takes a tenth of a second."""
    done = run_script("""
        import sys
        import asyncwasm
        asyncwasm.Module(asyncwasm.wat2wasm("(module)"))
        print("wasmtime" in sys.modules, "structlog" in sys.modules)
    """)

    assert done.stdout == "False False\n", done.stderr


def test_import_can_be_timed() -> None:
    done = run_script("""
        import subprocess, sys
        done = subprocess.run([sys.executable, "-X", "importtime", "-c", "import asyncwasm"],
                              capture_output=True, text=True, check=True)
        names = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
        print("asyncwasm" in names, "wasmtime" in names)
    """)

    assert done.stdout == "True False\n", done.stderr


@in_every_module
def test_module_can_be_imported_alone(module: str) -> None:
    done = run_script(f"import {module}")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

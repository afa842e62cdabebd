"""What pickles, with everything it says; and what refuses, with a reason."""

from __future__ import annotations

import asyncio
import copy
import inspect
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import asyncwasm as aw

from .support import ROOT, instance, wasm

FRAMES = (aw.Frame("m", "inner", 17), aw.Frame(None, "3", None))

# Facts that the constructors take. Those of classes that are not listed take a message.
FACTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "CompileError": (("bad", 12), {}),
    "LinkError": (
        ("wrong",),
        {"module": "env", "name": "f", "expected": aw.FunctionType(["i32"]), "actual": "int 1"},
    ),
    "Trap": (("boom", aw.TrapCode.UNREACHABLE, FRAMES), {}),
    "StackOverflow": ((), {"frames": FRAMES}),
    "Interrupted": (("deadline",), {"frames": FRAMES}),
    "WasmException": ((aw.Tag(["i32", "externref"]), [1, "two"]), {}),
}


def _below(cls: type[BaseException]) -> Iterator[type[BaseException]]:
    for each in cls.__subclasses__():
        yield each
        yield from _below(each)


def _classes() -> list[type[BaseException]]:
    """Return every error of the package, found by looking for them."""
    found: set[type[BaseException]] = {aw.WasmError}
    found.update(each for each in aw.__dict__.values() if _is_error(each))
    for base in (aw.WasmError, TypeError, AttributeError, RuntimeError, UserWarning):
        found.update(each for each in _below(base) if each.__module__.startswith("asyncwasm"))
    return sorted(found, key=lambda each: each.__name__)


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


CLASSES = _classes()
in_every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


def made(cls: type[BaseException]) -> BaseException:
    """Return an error of the class with all its facts, a note and one more attribute."""
    arguments, options = FACTS.get(cls.__name__, (("something",), {}))
    error: Any = cls(*arguments, **options)
    error.add_note("first")
    error.add_note("second")
    error.more = {"of": "the user's"}
    return error  # type: ignore[no-any-return]


def facts(error: BaseException) -> dict[str, Any]:
    """Return what an error says, apart from its identity."""
    kept = {name: value for name, value in vars(error).items() if not name.startswith("_r")}
    if isinstance(error, aw.WasmException):
        kept["tag"] = error.tag.type
        return {**kept, "str": str(error)}
    return {**kept, "args": error.args, "str": str(error), "repr": repr(error)}


def test_every_class_was_found() -> None:
    public = {name for name in aw.__all__ if _is_error(getattr(aw, name))}

    assert public <= {each.__name__ for each in CLASSES}
    assert len(public) >= 13


@in_every_class
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_error_pickles_with_all_it_says(cls: type[BaseException], protocol: int) -> None:
    error = made(cls)

    again = pickle.loads(pickle.dumps(error, protocol))

    assert type(again) is cls
    assert facts(again) == facts(error)
    assert again.__notes__ == ["first", "second"]


@in_every_class
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_error_can_be_copied(
    cls: type[BaseException], copied: Callable[[BaseException], BaseException]
) -> None:
    error = made(cls)

    again = copied(error)

    assert again is not error
    assert type(again) is cls
    assert facts(again) == facts(error)


@in_every_class
def test_unpickled_error_can_be_raised_and_noted(cls: type[BaseException]) -> None:
    again = pickle.loads(pickle.dumps(made(cls)))

    with pytest.raises(cls) as caught:
        raise again
    again.add_note("third")

    assert caught.value is again
    assert again.__notes__[-1] == "third"


@pytest.mark.parametrize("name", sorted({each.__name__ for each in CLASSES} - {*FACTS}))
def test_class_that_takes_facts_is_listed_here(name: str) -> None:
    """A new constructor has to say which facts are to survive."""
    (cls,) = [each for each in CLASSES if each.__name__ == name]
    own = next(base for base in cls.__mro__ if "__init__" in vars(base))

    if own.__module__.startswith("asyncwasm"):
        assert list(inspect.signature(own).parameters) in (["status"], ["message"])


def test_subclass_of_a_user_pickles() -> None:
    error = UsersTrap("mine", "fact")

    again = pickle.loads(pickle.dumps(error))

    assert (again.fact, again.code, str(again)) == ("fact", aw.TrapCode.UNREACHABLE, "mine")


class UsersTrap(aw.Trap):
    """An error with another constructor."""

    def __init__(self, message: str, fact: str) -> None:
        super().__init__(message, aw.TrapCode.UNREACHABLE)
        self.fact = fact


# errors as they are raised


def _of_another_store() -> None:
    memory = aw.Memory(1, store=aw.Store())
    instance('(module (import "m" "m" (memory 1)))', {"m": {"m": memory}}, store=aw.Store())


def _shared_of_another_engine() -> None:
    memory = aw.Memory(1, 2, shared=True)
    memory.write(0, b"x")
    module = aw.Module(wasm('(module (import "m" "m" (memory 1 2 shared)))'), engine=aw.Engine())
    aw.Instance(module, {"m": {"m": memory}})


def _limits_of_another_store() -> None:
    instance("(module)", store=aw.Store(limits=aw.Limits(fuel=1)), limits=aw.Limits(fuel=2))


def _import(value: object) -> Callable[[], object]:
    return lambda: instance('(module (import "m" "f" (func (param i32))))', {"m": {"f": value}})


def _import_of_the_wrong_kind() -> None:
    exports = instance('(module (memory (export "m") 1))').exports
    _import(exports.m)()


def _suspend() -> None:
    async def wait() -> None: ...

    text = '(module (import "m" "f" (func $f)) (func (export "g") (call $f)))'
    instance(text, {"m": {"f": wait}}).exports.g()


def _through_an_import() -> None:
    def fail() -> None:
        raise LookupError("mine")

    text = '(module (import "m" "f" (func $f)) (func (export "g") (call $f)))'
    instance(text, {"m": {"f": fail}}).exports.g()


def _call(text: str) -> Callable[[], object]:
    return lambda: instance(f'(module (func $f (export "f") {text}))').exports.f()


def _awaited(text: str) -> Callable[[], object]:
    return lambda: asyncio.run(
        instance(f'(module (func $f (export "f") {text}))').exports.f.call_async()
    )


RAISERS: dict[str, Callable[[], object]] = {
    "compile": lambda: aw.Module(b"\0asm\1\0\0\0\xff"),
    "text": lambda: aw.wat2wasm("(module (func"),
    "missing import": lambda: instance('(module (import "m" "f" (func)))', {"m": {}}),
    "import": _import(1),
    "import of another type": _import(aw.Function(((), ()), print)),
    "import of the wrong kind": _import_of_the_wrong_kind,
    "import of another store": _of_another_store,
    "memory of another engine": _shared_of_another_engine,
    "limits of another store": _limits_of_another_store,
    "size": lambda: aw.Memory(1, 1).grow(1),
    "address": lambda: aw.Memory(-1),
    "index": lambda: aw.Table("anyfunc", 1).get(1),
    "negative index": lambda: aw.Table("anyfunc", 1).get(-1),
    "constant": lambda: setattr(aw.Global("i32"), "value", 1),
    "trap": _call("unreachable"),
    "awaited trap": _awaited("unreachable"),
    "stack overflow": _call("(call $f)"),
    "awaited stack overflow": _awaited("(call $f)"),
    "suspend": _suspend,
    "through an import": _through_an_import,
}


@pytest.mark.parametrize("raiser", RAISERS.values(), ids=RAISERS.keys())
def test_error_that_was_raised_pickles(raiser: Callable[[], object]) -> None:
    """Whatever it was made with, and whatever its traceback refers to."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # of many kinds
        raiser()
    error = caught.value

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is type(error)
    assert facts(again) == facts(error)
    assert getattr(again, "__notes__", []) == getattr(error, "__notes__", [])


def test_wasm_exception_of_a_guest_pickles_with_its_tag() -> None:
    exports = instance(
        """(module (tag $e (export "e") (param i32 externref))
          (func (export "throw") (throw $e (i32.const 7) (ref.null extern))))"""
    ).exports
    with pytest.raises(aw.WasmException) as caught:
        exports.throw()
    error = caught.value

    again = pickle.loads(pickle.dumps(error))
    same = copy.deepcopy(error)

    assert again.payload == (7, None)
    assert again.tag.type == exports.e.type
    assert again.is_tag(again.tag)
    assert not again.is_tag(exports.e)  # another process has another tag
    assert same.is_tag(exports.e)


def test_python_tag_is_itself_in_every_process() -> None:
    assert pickle.loads(pickle.dumps(aw.PYTHON_TAG)) is aw.PYTHON_TAG
    assert copy.deepcopy(aw.PYTHON_TAG) is aw.PYTHON_TAG
    assert copy.copy(aw.PYTHON_TAG) is aw.PYTHON_TAG


# values


VALUES = {
    "FunctionType": aw.FunctionType(["i32", "externref"], ["f64"]),
    "MemoryType": aw.MemoryType(1, 2, True, "i64"),
    "TableType": aw.TableType("anyfunc", 1),  # type: ignore[arg-type]  # as users write it
    "GlobalType": aw.GlobalType("(ref extern)", True),  # type: ignore[arg-type]
    "TagType": aw.TagType(["i32"]),
    "Limits": aw.Limits(fuel=1, tables=2),
    "EngineConfig": aw.EngineConfig(tier="baseline", simd=False),
    "Frame": FRAMES[0],
    "TrapCode": aw.TrapCode.UNREACHABLE,
    "ExportDescriptor": aw.ExportDescriptor("e", "memory", aw.MemoryType(1)),
    "ImportDescriptor": aw.ImportDescriptor("m", "e", "tag", aw.TagType(["i32"])),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_value_pickles_to_an_equal_one(value: Any) -> None:
    again = pickle.loads(pickle.dumps(value))

    assert again == value
    assert type(again) is type(value)
    assert (repr(again), hash(again)) == (repr(value), hash(value))
    assert copy.deepcopy(value) == value


# modules

ANSWER = wasm('(module (func (export "answer") (param i32) (result i32) (i32.add (local.get 0) '
              "(i32.const 40))))")  # fmt: skip


def answer(module: aw.Module) -> tuple[int, str, str]:
    """Use a module that came from another process; called there, so it is importable."""
    value: int = aw.Instance(module).exports.answer(2)
    return value, module.digest, module.engine.config.tier


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["auto", "optimized"])
def test_module_crosses_to_a_spawned_process(tier: Any) -> None:
    module = aw.Module(ANSWER, engine=aw.Engine(aw.EngineConfig(tier=tier)))

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(answer, (module,))

    assert result == (42, module.digest, tier)


@pytest.mark.slow
def test_module_crosses_to_a_process_that_knows_nothing() -> None:
    """The pickle says itself what to import."""
    data = pickle.dumps(aw.Module(ANSWER))
    code = "import pickle, sys; m = pickle.load(sys.stdin.buffer); print(type(m), m.digest)"

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        input=data,
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert done.stdout.decode().split() == [
        "<class", "'asyncwasm.Module'>", aw.Module(ANSWER).digest,
    ]  # fmt: skip


def test_error_crosses_to_a_process_that_knows_nothing() -> None:
    data = pickle.dumps(made(aw.Trap))
    code = "import pickle, sys; e = pickle.load(sys.stdin.buffer); print(e.code.name, *e.frames)"

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        input=data,
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert done.stdout.decode().strip() == "UNREACHABLE m.inner at 0x11 wasm.3"


def test_pickle_of_a_module_is_its_bytes_and_no_native_code() -> None:
    data = pickle.dumps(aw.Module(ANSWER))

    assert ANSWER in data
    assert len(data) < len(ANSWER) + 1_000
    assert b"\x7fELF" not in data


def test_module_that_was_unpickled_is_as_good() -> None:
    module = aw.Module(ANSWER)

    again = pickle.loads(pickle.dumps(module))

    assert again.digest == module.digest
    assert again.exports() == module.exports()
    assert again.engine is module.engine
    assert answer(again)[0] == 42


def test_modules_of_one_engine_are_of_one_engine_again() -> None:
    """Else their instances could not share a store."""
    engine = aw.Engine(aw.EngineConfig(tier="optimized", max_wasm_stack_bytes=1 << 19))
    pair = [aw.Module(ANSWER, engine=engine), aw.Module(wasm("(module)"), engine=engine)]

    first, second = pickle.loads(pickle.dumps(pair))

    assert first.engine is second.engine
    assert first.engine.config == engine.config


def test_copied_module_is_the_module() -> None:
    module = aw.Module(ANSWER)

    assert copy.copy(module) is module
    assert copy.deepcopy([module])[0] is module


# what belongs to a process


def _belongings() -> dict[str, Any]:
    one = instance("""(module (type $s (struct)) (memory (export "memory") 1 2)
      (table (export "table") 1 funcref) (global (export "global") (mut i32) (i32.const 1))
      (func (export "function")) (func (export "new") (result (ref $s)) (struct.new $s)))""")
    exports = one.exports
    return {
        "Instance": one,
        "exports": exports,
        "Instantiated": aw.Instantiated(one.module, one),
        "ExportedFunction": exports.function,
        "Function": aw.Function(((), ()), print),
        "promising": aw.promising(exports.function),
        "call_async": exports.function.call_async,
        "Memory": exports.memory,
        "resizable buffer": exports.memory.to_resizable_buffer(),
        "Table": exports.table,
        "Global": exports["global"],
        "GCObject": exports.new(),
        "Store": one.store,
        "Engine": one.module.engine,
        "unbound Memory": aw.Memory(1),
        "unbound Table": aw.Table("anyfunc", 1),
        "unbound Global": aw.Global("i32"),
        "unbound Store": aw.Store(),
    }


BELONGINGS = _belongings()
in_every_belonging = pytest.mark.parametrize("name", BELONGINGS)


@in_every_belonging
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_belongs_to_a_process_refuses_to_be_pickled(name: str, protocol: int) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(BELONGINGS[name], protocol)


@in_every_belonging
def test_what_belongs_to_a_process_refuses_to_be_copied_deeply(name: str) -> None:
    """A copy would share native memory without owning it."""
    with pytest.raises(TypeError, match="cannot be pickled"):
        copy.deepcopy(BELONGINGS[name])


@pytest.mark.parametrize(
    "name",
    [name for name in BELONGINGS if name not in ("Instantiated", "promising", "call_async")],
)
def test_what_belongs_to_a_process_refuses_to_be_copied(name: str) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        copy.copy(BELONGINGS[name])


def test_refusal_says_what_to_pickle_instead() -> None:
    for name in ("Instance", "exports", "ExportedFunction"):
        with pytest.raises(TypeError, match="pickle its module and instantiate it"):
            pickle.dumps(BELONGINGS[name])
    with pytest.raises(TypeError, match="pickle its config"):
        pickle.dumps(BELONGINGS["Engine"])

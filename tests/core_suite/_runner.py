"""
Runs scripts of the official test suite through the public API.

Rule 1: one store for each script. Everything a script makes lives in it, and is freed with it.
Rule 2: nothing but the public API is used, so what fails here fails for a user.
Rule 3: only the outcome that a command asks for counts. Any other, an error of another class
included, is a failure.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import asyncwasm as aw

from . import _exact
from ._script import Action, Command, InstanceForm, ModuleForm, Registration
from ._shortfalls import KNOWN_SHORTFALLS, Shortfall
from ._spectest import Spectest
from ._values import Pattern, mismatch, to_python

Tier: TypeAlias = Literal["baseline", "optimized"]
Face: TypeAlias = Literal["sync", "async"]
Status: TypeAlias = Literal["passed", "failed", "known"]

# The suite's texts for traps, and the TrapCode of each. "undefined element" is an index
# outside the table of an indirect call, "uninitialized element" a null found there. Texts
# that begin with one of these mean the same, more exactly.
_TRAPS: Final = {
    "unreachable": "UNREACHABLE",
    "integer divide by zero": "INTEGER_DIVISION_BY_ZERO",
    "integer overflow": "INTEGER_OVERFLOW",
    "invalid conversion to integer": "BAD_CONVERSION_TO_INTEGER",
    "out of bounds memory access": "MEMORY_OUT_OF_BOUNDS",
    "out of bounds table access": "TABLE_OUT_OF_BOUNDS",
    "out of bounds array access": "ARRAY_OUT_OF_BOUNDS",
    "undefined element": "TABLE_OUT_OF_BOUNDS",
    "uninitialized element": "INDIRECT_CALL_TO_NULL",
    "indirect call type mismatch": "BAD_SIGNATURE",
    "cast failure": "CAST_FAILURE",
    "null reference": "NULL_REFERENCE",
    "null function reference": "NULL_REFERENCE",
    "null structure reference": "NULL_REFERENCE",
    "null array reference": "NULL_REFERENCE",
    "null i31 reference": "NULL_REFERENCE",
    "unaligned atomic": "HEAP_MISALIGNED",
    "expected shared memory": "ATOMIC_WAIT_NON_SHARED_MEMORY",
}


class Failure(Exception):
    """A command that did not come out as the script says."""


class Consequence(Failure):
    """A command that cannot run, because the one on *line* failed."""

    def __init__(self, line: int) -> None:
        super().__init__(f"the module of line {line} is not there")
        self.line = line


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one command."""

    keyword: str
    line: int
    status: Status
    detail: str = ""


@dataclass(slots=True)
class Report:
    """What became of one script."""

    file: str
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failures(self) -> list[Outcome]:
        """The outcomes that are wrong."""
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]

    def lines(self) -> list[str]:
        """Return one line of text for each failure."""
        return [
            f"{self.file}:{failure.line}: {failure.keyword}: {failure.detail}"
            for failure in self.failures
        ]


@dataclass(frozen=True, slots=True)
class _Broken:
    """Stands where a module or instance would be, had the command on *line* not failed."""

    line: int


class Session:
    """Runs the commands of one script, one after the other."""

    def __init__(self, engine: aw.Engine, store: aw.Store, face: Face = "sync") -> None:
        self.spectest = Spectest()
        self._engine = engine
        self._store = store
        self._probe = _exact.Probe(store, engine)
        self._loop = asyncio.new_event_loop() if face == "async" else None
        self._modules: dict[str | None, aw.Module | _Broken] = {}
        self._instances: dict[str | None, aw.Instance | _Broken] = {}
        self._registry: dict[str, Mapping[str, object] | _Broken] = {"spectest": self.spectest}
        # Keyed by identity, which holds while the function is kept here.
        self._wrapped: dict[int, tuple[object, aw.ExportedFunction]] = {}

    def close(self) -> None:
        """Close the session's event loop, if it has one."""
        if self._loop is not None:
            self._loop.close()

    def execute(self, command: Command) -> None:
        """
        Run *command*.

        Raises:
            Failure: If it does not come out as it says.
        """
        try:
            self._execute(command)
        except Failure:
            raise
        except Exception as exc:
            raise Failure(f"unexpected {_describe(exc)}") from exc

    def _execute(self, command: Command) -> None:
        subject, keyword = command.subject, command.keyword
        if keyword == "assert_return":
            assert isinstance(subject, Action)
            self._check(subject, command.expected)
        elif keyword in ("module", "instance"):
            assert isinstance(subject, (ModuleForm, InstanceForm))
            self._define(subject, command.line)
        elif isinstance(subject, Registration):
            self._registry[subject.name] = _Broken(command.line)
            self._registry[subject.name] = self._instance(subject.instance).exports
        elif keyword in ("invoke", "get"):
            assert isinstance(subject, Action)
            self._perform(subject)
        else:
            self._refuse(command)

    def _refuse(self, command: Command) -> None:
        """Run a command that must raise, and look at what it raises."""
        subject, keyword = command.subject, command.keyword
        try:
            if isinstance(subject, Action):
                result: object = self._perform(subject)
            elif keyword in ("assert_trap", "assert_unlinkable"):
                assert isinstance(subject, (ModuleForm, InstanceForm))
                try:
                    module = self._module(subject)
                except aw.CompileError as exc:
                    raise Failure(f"does not compile: {exc}") from exc
                result = self._instantiate(module)
            else:
                assert isinstance(subject, ModuleForm)
                binary = subject.assemble(aw.wat2wasm)
                if aw.validate(binary, engine=self._engine):
                    raise Failure(f"validate() accepts it; expected {command.message!r}")
                result = self._compile(binary)
        except Failure:
            raise
        except Exception as exc:
            problem = _unlike(command, exc)
            if problem:
                raise Failure(problem) from exc
        else:
            raise Failure(f"expected {command.message or 'an exception'!r}, got {result!r}")

    # Modules and instances.

    def _define(self, subject: ModuleForm | InstanceForm, line: int) -> None:
        """Make what *subject* says; what fails leaves its line in its place."""
        defines = isinstance(subject, ModuleForm)
        instantiates = not (isinstance(subject, ModuleForm) and subject.definition)
        for name in (subject.name, None):
            if defines:
                self._modules[name] = _Broken(line)
            if instantiates:
                self._instances[name] = _Broken(line)
        module = self._module(subject)
        if defines:
            self._modules[subject.name] = self._modules[None] = module
        if instantiates:
            instance = self._instantiate(module)
            self._instances[subject.name] = self._instances[None] = instance

    def _module(self, subject: ModuleForm | InstanceForm) -> aw.Module:
        if isinstance(subject, ModuleForm):
            return self._compile(subject.assemble(aw.wat2wasm))
        module = self._modules.get(subject.module)
        if module is None:
            raise Failure(f"there is no module {subject.module or ''}")
        if isinstance(module, _Broken):
            raise Consequence(module.line)
        return module

    def _instance(self, name: str | None) -> aw.Instance:
        instance = self._instances.get(name)
        if instance is None:
            raise Failure(f"there is no instance {name or ''}")
        if isinstance(instance, _Broken):
            raise Consequence(instance.line)
        return instance

    def _compile(self, binary: bytes) -> aw.Module:
        if self._loop is None:
            return aw.Module(binary, engine=self._engine)
        return self._loop.run_until_complete(aw.compile(binary, engine=self._engine))

    def _instantiate(self, module: aw.Module) -> aw.Instance:
        imports: dict[str, Mapping[str, object]] = {}
        for descriptor in module.imports():
            # A name nobody registered is an empty module: in the API, no module at all is
            # an error of its own.
            part = self._registry.get(descriptor.module, {})
            if isinstance(part, _Broken):
                raise Consequence(part.line)
            imports[descriptor.module] = part
        if self._loop is None:
            return aw.Instance(module, imports, store=self._store)
        return self._loop.run_until_complete(aw.instantiate(module, imports, store=self._store))

    # Actions.

    def _perform(self, action: Action) -> object:
        if action.kind == "get":
            exported = self._export(action)
            if not isinstance(exported, aw.Global):
                raise Failure(f"export {action.export!r} is no global: {exported!r}")
            return exported.value
        function = self._function(action)
        return self._invoke(function, action, self._is_hidden(function, action))

    def _is_hidden(
        self, function: aw.ExportedFunction, action: Action, expected: Sequence[Pattern] = ()
    ) -> bool:
        """Whether something crosses that Python cannot see."""
        types = function.type
        return _exact.needs_wasm((*action.arguments, *expected)) or any(
            map(_exact.is_exception, (*types.parameters, *types.results))
        )

    def _invoke(self, function: aw.ExportedFunction, action: Action, hidden: bool) -> object:
        """Call *function*: from inside wasm if *hidden*, and f32 results are i32 then."""
        if hidden:
            arguments = _exact.arguments(action.arguments, function.type)
            return self._call(self._wrap(function), arguments)
        return self._call(function, list(map(to_python, action.arguments)))

    def _export(self, action: Action) -> object:
        exports = self._instance(action.instance).exports
        if action.export not in exports:
            raise Failure(f"there is no export {action.export!r}")
        return exports[action.export]

    def _function(self, action: Action) -> aw.ExportedFunction:
        exported = self._export(action)
        if not isinstance(exported, aw.ExportedFunction):
            raise Failure(f"export {action.export!r} is no function: {exported!r}")
        return exported

    def _call(self, function: aw.ExportedFunction, arguments: list[object]) -> object:
        if self._loop is None:
            return function(*arguments)
        return self._loop.run_until_complete(function.call_async(*arguments))

    def _wrap(self, function: aw.ExportedFunction) -> aw.ExportedFunction:
        if id(function) not in self._wrapped:
            module = self._compile(aw.wat2wasm(_exact.wrap(function.type)))
            instance = aw.Instance(module, {"": {"f": function}}, store=self._store)
            wrapped = instance.exports["f"]
            assert isinstance(wrapped, aw.ExportedFunction)
            self._wrapped[id(function)] = (function, wrapped)
        return self._wrapped[id(function)][1]

    def _check(self, action: Action, expected: Sequence[Pattern]) -> None:
        """Perform *action* and compare its results with those *expected*."""
        if action.kind == "get":
            values: tuple[object, ...] = (self._perform(action),)
        else:
            function = self._function(action)
            types = function.type.results
            if len(types) != len(expected):
                raise Failure(f"expected {len(expected)} results, the function has {types}")
            hidden = self._is_hidden(function, action, expected)
            if hidden:
                expected = list(map(_exact.translate, expected, types))
            result = self._invoke(function, action, hidden)
            values = _as_tuple(result, len(types))
        if len(values) != len(expected):
            raise Failure(f"expected {len(expected)} results, got {values!r}")
        for pattern, value in zip(expected, values, strict=True):
            problem = mismatch(pattern, value, self._probe.kind_of)
            if problem:
                raise Failure(problem)


def _as_tuple(result: object, count: int) -> tuple[object, ...]:
    """Return the *count* values that *result* is: None is no result as well as one null."""
    if isinstance(result, tuple):
        return result
    return () if count == 0 and result is None else (result,)


def _describe(exc: BaseException) -> str:
    text = " | ".join(line.strip() for line in str(exc).splitlines() if line.strip())
    return f"{type(exc).__name__}: {text}"


def _unlike(command: Command, exc: Exception) -> str:
    """Return how *exc* differs from what *command* expects: nothing if it does not."""
    keyword = command.keyword
    wanted: type[Exception] = aw.CompileError
    if keyword == "assert_trap":
        wanted = aw.Trap
    elif keyword == "assert_exhaustion":
        wanted = aw.StackOverflow
    elif keyword == "assert_unlinkable":
        wanted = aw.LinkError
    elif keyword == "assert_exception":
        # Nothing that scripts import raises in Python, so only the guest's own are due.
        wanted = aw.WasmException
    if not isinstance(exc, wanted):
        return f"expected {wanted.__name__} ({command.message!r}), got {_describe(exc)}"
    if isinstance(exc, aw.Trap) and keyword == "assert_trap":
        codes = {code for text, code in _TRAPS.items() if command.message.startswith(text)}
        if not codes:
            return f"the trap {command.message!r} is not known to the runner"
        name = getattr(exc.code, "name", None)
        if name not in codes:
            expected = " or ".join(sorted(codes))
            return f"expected {expected} ({command.message!r}), got {name}: {exc}"
    return ""


def run_script(
    commands: Sequence[Command],
    *,
    file: str = "script.wast",
    tier: Tier | None = None,
    face: Face = "sync",
    shortfalls: Sequence[Shortfall] = KNOWN_SHORTFALLS,
) -> Report:
    """
    Run *commands* in a store of their own and report on every one of them.

    Args:
        file: The script's name, for the report and to find its *shortfalls*.
        tier: The compiler to use; the library's own choice when omitted.
        face: ``"async"`` compiles, instantiates and calls through the awaitable forms.
    """
    report = Report(file)
    started = time.monotonic()
    relevant = [entry for entry in shortfalls if entry.concerns(file, tier)]
    unused = dict.fromkeys(relevant)
    known_lines: set[int] = set()
    with ExitStack() as stack:
        # Large modules and long calls are what the suite is made of.
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", aw.LargeModuleWarning)
        warnings.simplefilter("ignore", aw.BlockingCallWarning)
        engine = aw.Engine(aw.EngineConfig(tier=tier or "auto"))
        stack.callback(engine.close)
        store = aw.Store(engine=engine)
        stack.callback(store.close)
        session = Session(engine, store, face)
        stack.callback(session.close)
        for command in commands:
            known = [entry for entry in relevant if entry.covers(command)]
            status: Status = "passed"
            detail = ""
            try:
                session.execute(command)
            except Failure as exc:
                consequence = isinstance(exc, Consequence) and exc.line in known_lines
                status = "known" if known or consequence else "failed"
                detail = str(exc)
                for entry in known:
                    unused.pop(entry, None)
                if status == "known":
                    known_lines.add(command.line)
            else:
                if known:
                    status = "failed"
                    detail = f"passes, but is listed as a shortfall: {known[0].reason}"
                    unused.pop(known[0], None)
            report.outcomes.append(Outcome(command.keyword, command.line, status, detail))
    for entry in unused:
        detail = f"no command is {entry.where!r}; listed as a shortfall: {entry.reason}"
        report.outcomes.append(Outcome("shortfall", 0, "failed", detail))
    report.seconds = time.monotonic() - started
    return report

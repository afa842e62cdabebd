"""
Commands of a ``.wast`` script.

Rule 1: a module is kept as it was written. Its text goes through the library's assembler;
only the bytes of ``(module binary ...)`` are put together here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from ._reader import Atom, Form, Node, ScriptError, String, Text, Unreadable, read
from ._values import Constant, Pattern, parse_constant, parse_pattern

# Invisible marks, of text direction above all. The assembler refuses source that contains
# them, as it could read other than it looks; in strings (names are where the suite has them)
# an escape says the same.
_CONFUSING: Final = re.compile("[\u202a-\u202e\u2066-\u2069\u206c]")
# What a module that is written without "(module" can begin with.
_FIELDS: Final = frozenset(
    {"type", "rec", "import", "func", "table", "memory", "global", "export", "start", "elem"}
    | {"data", "tag"}
)
_OF_MODULES: Final = frozenset(
    {
        "assert_invalid",
        "assert_malformed",
        "assert_invalid_custom",
        "assert_malformed_custom",
        "assert_unlinkable",
    }
)
_OF_ACTIONS: Final = frozenset(
    {"assert_return", "assert_trap", "assert_exhaustion", "assert_exception"}
)


@dataclass(frozen=True, slots=True)
class ModuleForm:
    """A module as the script gives it: `text` for the assembler, or `binary` ready to use."""

    name: str | None = None
    text: str | None = None
    binary: bytes = b""
    quoted: bool = False
    definition: bool = False

    def assemble(self, wat2wasm: Callable[[str], bytes]) -> bytes:
        """Return the module's bytes; errors are those of *wat2wasm*."""
        if self.text is None:
            return self.binary
        text = _CONFUSING.sub(lambda mark: f"\\u{{{ord(mark.group()):x}}}", self.text)
        return wat2wasm(text)


@dataclass(frozen=True, slots=True)
class InstanceForm:
    """``(module instance $name $module)``."""

    name: str | None = None
    module: str | None = None


@dataclass(frozen=True, slots=True)
class Registration:
    """``(register "name" $instance)``."""

    name: str
    instance: str | None = None


@dataclass(frozen=True, slots=True)
class Action:
    """``(invoke $instance "export" constant*)`` or ``(get $instance "export")``."""

    kind: Literal["invoke", "get"]
    export: str
    instance: str | None = None
    arguments: tuple[Constant, ...] = ()


Subject: TypeAlias = ModuleForm | InstanceForm | Registration | Action


@dataclass(frozen=True, slots=True)
class Command:
    """
    One command: its keyword, what it is about, and what is expected of that.

    Attributes:
        source: The command as it is written.
    """

    keyword: str
    subject: Subject
    line: int
    source: str = field(repr=False)
    expected: tuple[Pattern, ...] = ()
    message: str = ""


def parse_script(content: str | bytes) -> list[Command]:
    """
    Read a script.

    Raises:
        ScriptError: If it is none: with the line, where that is known.
    """
    if isinstance(content, bytes):
        try:
            content = content.decode()
        except UnicodeDecodeError as exc:
            line = exc.object.count(b"\n", 0, exc.start) + 1
            raise ScriptError("not UTF-8", line) from exc
    text = Text(content)
    forms = read(text)
    first = forms[0] if forms else None
    if isinstance(first, Form) and first.head in _FIELDS:
        return [Command("module", ModuleForm(text=content), text.line(first.start), content)]
    return list(_commands(text, forms))


def _commands(text: Text, forms: list[Node]) -> Iterator[Command]:
    for form in forms:
        line = text.line(form.start)
        if not isinstance(form, Form):
            raise ScriptError(f"expected a command, got {form!r}", line)
        try:
            yield _Parser(text, form).command(line)
        except ValueError as exc:
            raise ScriptError(str(exc), line) from exc


class _Parser:
    """Takes one form apart, from its first item to its last."""

    def __init__(self, text: Text, form: Form) -> None:
        self._text = text
        self._form = form
        self._next = 1

    def command(self, line: int) -> Command:
        keyword = self._form.head
        source = self._text.cut(self._form)
        subject: Subject
        if keyword == "module":
            subject = self._module()
            if isinstance(subject, InstanceForm):
                keyword = "instance"
            return Command(keyword, subject, line, source)
        if keyword == "register":
            subject = Registration(self._string().decode(), self._name())
            self._end()
            return Command(keyword, subject, line, source)
        if keyword in ("invoke", "get"):
            return Command(keyword, self._action(), line, source)
        if keyword not in _OF_MODULES | _OF_ACTIONS:
            raise Unreadable(f"unknown command {keyword!r}")
        inner = _Parser(self._text, self._inner())
        of_module = keyword in _OF_MODULES or (
            keyword == "assert_trap" and inner._form.head == "module"
        )
        subject = inner._module() if of_module else inner._action()
        expected: list[Pattern] = []
        message = ""
        if keyword == "assert_return":
            expected = [parse_pattern(node) for node in self._rest()]
        elif keyword != "assert_exception":
            message = self._string().decode()
        self._end()
        return Command(keyword, subject, line, source, tuple(expected), message)

    def _module(self) -> ModuleForm | InstanceForm:
        form = self._form
        if form.head != "module":
            raise Unreadable(f"expected a module, got {form!r}")
        if self._word("instance"):
            names = [self._name(), self._name()]
            self._end()
            # A single name is the module's.
            return InstanceForm(*(names if names[1] else names[::-1]))
        position = self._next
        definition = self._word("definition")
        name = self._name()
        if self._word("binary"):
            return ModuleForm(name, binary=self._strings(), definition=definition)
        if self._word("quote"):
            try:
                quoted = self._strings().decode()
            except UnicodeDecodeError as exc:
                # No string of Python holds such text, so none can be assembled. Its bytes
                # stand in: no module begins with them.
                return ModuleForm(name, binary=exc.object, quoted=True, definition=definition)
            return ModuleForm(name, quoted, quoted=True, definition=definition)
        source = self._text.cut(form)
        if definition:
            # The keyword belongs to scripts; blanks keep every other position.
            start = form.items[position].start - form.start
            end = start + len("definition")
            source = source[:start] + " " * (end - start) + source[end:]
        return ModuleForm(name, source, definition=definition)

    def _action(self) -> Action:
        name, export = self._name(), self._string().decode()
        if self._form.head == "get":
            self._end()
            return Action("get", export, name)
        if self._form.head != "invoke":
            raise Unreadable(f"expected an action, got {self._form!r}")
        return Action("invoke", export, name, tuple(map(parse_constant, self._rest())))

    def _peek(self) -> Node | None:
        items = self._form.items
        return items[self._next] if self._next < len(items) else None

    def _word(self, word: str) -> bool:
        """Take *word* if it comes next."""
        node = self._peek()
        found = isinstance(node, Atom) and node.text == word
        self._next += found
        return found

    def _name(self) -> str | None:
        """Take a ``$name`` if one comes next."""
        node = self._peek()
        if isinstance(node, Atom) and node.text.startswith("$"):
            self._next += 1
            return node.text
        return None

    def _string(self) -> bytes:
        node = self._peek()
        if not isinstance(node, String):
            raise Unreadable(f"expected a string, got {node!r}")
        self._next += 1
        return node.data

    def _strings(self) -> bytes:
        parts = []
        while self._peek() is not None:
            parts.append(self._string())
        return b"".join(parts)

    def _inner(self) -> Form:
        node = self._peek()
        if not isinstance(node, Form):
            raise Unreadable(f"expected a module or an action, got {node!r}")
        self._next += 1
        return node

    def _rest(self) -> list[Node]:
        rest = self._form.items[self._next :]
        self._next = len(self._form.items)
        return rest

    def _end(self) -> None:
        node = self._peek()
        if node is not None:
            raise Unreadable(f"unexpected {node!r}")

"""
Reads S-expressions of the text format, as far as a script needs them.

Rule 1: positions are offsets into the text that was read, so that the source of any form
can be cut out exactly as it was written.
Rule 2: the reader is lenient. Whether a module's text is well formed is for the assembler
to say; a script is refused only where its own structure cannot be seen.
Rule 3: comments and annotations are space.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TypeAlias

_TOKEN = re.compile(
    r"""
      (?P<space>   [ \t\r\n]+ | ;;[^\r\n]* )
    | (?P<comment> \(; )
    | (?P<note>    \(@ )
    | (?P<open>    \( )
    | (?P<close>   \) )
    | (?P<string>  "(?:[^"\\\n]|\\.)*" )
    | (?P<atom>    (?:[^ \t\r\n()";]|;(?!;))+ )
    """,
    re.VERBOSE,
)
_COMMENT_EDGE = re.compile(r"\(;|;\)")
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F_]+)\}|([0-9a-fA-F]{2})|(.))", re.DOTALL)
_NAMED = {"t": "\t", "n": "\n", "r": "\r", '"': '"', "'": "'", "\\": "\\"}


class ScriptError(Exception):
    """A script that cannot be read: what is wrong, and the line where it is."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(f"line {line}: {problem}")
        self.problem = problem
        self.line = line


class Unreadable(ValueError):
    """A form that is none of a script's; its reader adds the line."""


class Atom:
    """A word: a keyword, a number, an identifier."""

    __slots__ = ("start", "text")

    def __init__(self, text: str, start: int) -> None:
        self.text = text
        self.start = start

    def __repr__(self) -> str:
        return self.text


class String:
    """A string literal, as the bytes that it stands for."""

    __slots__ = ("data", "start")

    def __init__(self, data: bytes, start: int) -> None:
        self.data = data
        self.start = start

    def __repr__(self) -> str:
        return repr(self.data)


class Form:
    """A parenthesized list, from its `start` to its `end` in the text."""

    __slots__ = ("end", "items", "start")

    def __init__(self, items: list[Node], start: int, end: int) -> None:
        self.items = items
        self.start = start
        self.end = end

    @property
    def head(self) -> str:
        """The first word; empty when there is none."""
        first = self.items[0] if self.items else None
        return first.text if isinstance(first, Atom) else ""

    def __repr__(self) -> str:
        return f"({' '.join(map(repr, self.items))})"


Node: TypeAlias = Atom | String | Form


class Text:
    """The text of a script, and which line of its file an offset is on."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._ends = [match.start() for match in re.finditer("\n", text)]

    def line(self, offset: int) -> int:
        """Return the number of the line that *offset* is on, counting from 1."""
        return bisect_right(self._ends, offset - 1) + 1

    def cut(self, form: Form) -> str:
        """Return the source of *form*."""
        return self.text[form.start : form.end]


def string_bytes(literal: str) -> bytes:
    """
    Return the bytes that the string *literal* (without its quotes) stands for.

    Raises:
        Unreadable: If an escape is none of the text format's.
    """
    if "\\" not in literal:
        return literal.encode()
    parts: list[bytes] = []
    position = 0
    for match in _ESCAPE.finditer(literal):
        parts.append(literal[position : match.start()].encode())
        position = match.end()
        code_point, byte, name = match.groups()
        if code_point is not None:
            parts.append(chr(int(code_point, 16)).encode())
        elif byte is not None:
            parts.append(bytes((int(byte, 16),)))
        elif name in _NAMED:
            parts.append(_NAMED[name].encode())
        else:
            raise Unreadable(f"unknown escape {match.group()!r}")
    parts.append(literal[position:].encode())
    return b"".join(parts)


def read(source: Text) -> list[Node]:
    """
    Read *source* whole and return what stands at its top level.

    Raises:
        ScriptError: If parentheses, a string, a comment or an annotation do not close.
    """
    text = source.text
    top: list[Node] = []
    items = top
    # One entry for each open parenthesis. An annotation is read like a form, so that its
    # end is found, and dropped when it closes.
    stack: list[tuple[list[Node], int, bool]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            problem = "unclosed string" if text[position] == '"' else "illegal character"
            raise ScriptError(problem, source.line(position))
        kind = match.lastgroup
        start, position = position, match.end()
        if kind == "space":
            continue
        if kind == "comment":
            position = _comment_end(source, start)
        elif kind == "open" or kind == "note":
            stack.append((items, start, kind == "note"))
            items = []
        elif kind == "close":
            if not stack:
                raise ScriptError("unexpected )", source.line(start))
            inner, (items, begin, dropped) = items, stack.pop()
            if not dropped:
                items.append(Form(inner, begin, position))
        elif kind == "string":
            try:
                items.append(String(string_bytes(text[start + 1 : position - 1]), start))
            except ValueError as exc:
                raise ScriptError(str(exc), source.line(start)) from exc
        else:
            items.append(Atom(match.group(), start))
    if stack:
        raise ScriptError("unclosed parenthesis", source.line(stack[-1][1]))
    return top


def _comment_end(source: Text, start: int) -> int:
    """Return where the block comment that begins at *start* ends; they nest."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(source.text, start):
        depth += 1 if edge.group() == "(;" else -1
        if depth == 0:
            return edge.end()
    raise ScriptError("unclosed comment", source.line(start))

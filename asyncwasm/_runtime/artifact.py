"""A compiled binary and its code."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from .._binary import Export, ModuleInfo, decode, defined_memories
from .._ffi import compiling
from .._ffi.handles import Handle
from .._reader import Binary
from .._types import PAGE_BYTES, MemoryType
from .._writer import rename_imports

if TYPE_CHECKING:
    from .engine import EngineCore
    from .host import HostShape


_SCANNED_BYTES = 256 << 10
# Their second part is a number, which may be written in more bytes than it needs.
_WAIT_INSTRUCTION = rb"\xfe[\x01\x02\x81\x82]"
_LENGTHY_INSTRUCTION = rb"\xfc[\x08\x0a-\x0c\x0e\x0f\x11\x88\x8a-\x8c\x8e\x8f\x91]"


class Variant(NamedTuple):
    """What code a native engine makes."""

    baseline: bool = False
    fuel: bool = False
    pooled: bool = False


class Artifact:
    """
    A compiled binary: its bytes, what they say, and its code for each variant that was needed.

    The bytes need not be in memory: *source* may be a mapped file that never changes.

    One artifact serves every `Module` of the same bytes.
    """

    def __init__(
        self,
        engine: EngineCore,
        source: Binary,
        digest: str,
        *,
        holds_references: bool,
        starts_baseline: bool,
        cached: bool,
    ) -> None:
        self.engine = engine
        self.source = source
        self.digest = digest
        # The module's code, and that linked, where all imports are host functions: the same for
        # every new store, because it numbers its functions from 0.
        self.links: dict[Variant, tuple[Handle, Handle]] = {}
        self.shapes: dict[str, Any] = {}  # of exported functions, by name
        self.host_shapes: dict[int, HostShape] = {}  # of imported ones, by position
        self.holds_references = holds_references
        self.starts_baseline = starts_baseline  # whether the baseline compiler serves it at all
        self.cached = cached  # whether its first code came from the cache
        self.unpoolable = False  # whether it has turned out not to fit its engine's pool
        self._natives: dict[Variant, Handle] = {}
        pooled = engine.config.pools_everything
        self._optimized = Variant(False, False, pooled)
        self._fueled = Variant(False, True, pooled)
        self._function_types: dict[Variant, tuple[Handle, list[Handle | None]]] = {}

    # What follows is read when somebody wants to know: a batch of modules may only be compiled.

    @cached_property
    def info(self) -> ModuleInfo:
        """What the binary declares."""
        return decode(self.source)

    @cached_property
    def exports(self) -> dict[str, Export]:
        """The exports by name."""
        return {each.name: each for each in self.info.exports}

    @cached_property
    def kinds(self) -> list[str]:
        """What each type is one of, by its index."""
        return [type.kind for type in self.info.types]

    @cached_property
    def renamed(self) -> bool:
        """Whether imports are told apart by position, because two have one name."""
        return _has_twins(self.info)

    @cached_property
    def imports_shared_memory(self) -> bool:
        """Whether it imports a memory that others can write meanwhile."""
        return any(
            isinstance(each.type, MemoryType) and each.type.shared for each in self.info.imports
        )

    @cached_property
    def shared_bytes(self) -> int:
        """Bytes that the largest shared memory which the module defines can grow to."""
        pages = [each.maximum or 0 for each in defined_memories(self.source) if each.shared]
        return max(pages, default=0) * PAGE_BYTES

    @cached_property
    def lingers(self) -> bool:
        """
        Whether an instruction of it may take long, so that nobody sees the clock meanwhile.

        Those fill or copy memories and tables. Bytes that look like one are taken for one, and a
        large module for one that has some.
        """
        return self._has(_LENGTHY_INSTRUCTION)

    def _has(self, instruction: bytes) -> bool:
        if len(self.source) > _SCANNED_BYTES:
            return True
        return re.search(instruction, self.source[:]) is not None

    @cached_property
    def stands_alone(self) -> bool:
        """Whether nothing that runs long or is shared comes with it, but what it imports."""
        return self.info.start is None and not self.shares_memory

    @cached_property
    def shares_memory(self) -> bool:
        """Whether guests can wait for each other at a shared memory."""
        return self.imports_shared_memory or self.shared_bytes > 0

    @cached_property
    def sleeps(self) -> bool:
        """
        Whether they can do so in an instruction, in which they do not yield.

        Found as for `lingers`.
        """
        return self.shares_memory and self._has(_WAIT_INSTRUCTION)

    @property
    def binary(self) -> bytes:
        """The whole binary, which may have to be read from the cache's copy."""
        return self.source[:]

    @property
    def linked(self) -> bytes:
        """The binary as it is compiled."""
        return linkable(self.binary, self.info)

    def variant(self, fuel: bool) -> Variant:
        """Return the variant for an instance that gets a store of its own."""
        if self.starts_baseline and not (
            # Fuel is counted by one compiler, or it would not be the same fuel.
            self.engine.config.tier == "auto" and (fuel or self.has(Variant()))
        ):
            return Variant(True, fuel, self._optimized.pooled)
        return self._fueled if fuel else self._optimized

    def native(self, variant: Variant) -> Handle:
        """Return the code of *variant*, compiled now on this thread if need be."""
        handle = self._natives.get(variant)
        if handle is None or not handle.ours:
            handle = self.engine.compile_variant(self, variant)
        return handle

    def add(self, variant: Variant, handle: Handle) -> None:
        """Keep the code of *variant*."""
        self._natives[variant] = handle

    def has(self, variant: Variant) -> bool:
        """Whether the code of *variant* is there."""
        handle = self._natives.get(variant)
        return handle is not None and handle.ours

    def function_types(self, variant: Variant) -> list[Handle | None]:
        """Return the native types of the imported functions, by import."""
        native = self.native(variant)
        known = self._function_types.get(variant)
        if known is None or known[0] is not native:
            known = (native, compiling.imported_function_types(native))
            self._function_types[variant] = known
        return known[1]


def _has_twins(info: ModuleInfo) -> bool:
    """Return whether a name is imported more than once."""
    names = {(each.module, each.name) for each in info.imports}
    return len(names) != len(info.imports)


def linkable(binary: bytes, info: ModuleInfo) -> bytes:
    """
    Return *binary* with unique import names where a name is imported more than once.

    The native linker holds one definition a name; in JS each import is read on its own.
    """
    if not _has_twins(info):
        return binary
    names = [("", str(index)) for index in range(len(info.imports))]
    return rename_imports(binary, names)[0]

"""How an engine compiles, and what a store may use."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

from .._record import Record

Tier: TypeAlias = Literal["auto", "baseline", "optimized"]

MIN_STACK_BYTES, MAX_STACK_BYTES = 16 << 10, 64 << 20
DIRECT_STACK_BYTES = 1 << 20  # what every thread's own stack has room for
HOST_STACK_BYTES = 256 << 10  # beside the guest's, for what is called in between
_TIERS = ("auto", "baseline", "optimized")
_MAX_POOLED = 100_000  # of a kind: the library keeps a note about each, in use or not
MAX_POOLED_MEMORY_BYTES = 4 << 30  # the address space that every memory reserves
# The JS API's limits at run time.
_MAX_TABLE_ELEMENTS = 10_000_000
_MAX_MEMORY_BYTES = 1 << 34
_FEATURES = (
    "simd",
    "relaxed_simd",
    "threads",
    "tail_call",
    "memory64",
    "multi_memory",
    "function_references",
    "gc",
    "exceptions",
    "wide_arithmetic",
    "custom_page_sizes",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Pooling(Record):
    """
    Bound the pool that the stores of an engine take their memory from.

    Instances, memories, tables and stacks are reserved beforehand and used again, which makes
    an instance several times cheaper. What an instance leaves behind is erased before the next
    gets it. The pool takes address space, not memory: 4 GiB for each memory, and what tables
    and stacks can grow to. Each kind of native code (optimized or baseline, with or without
    fuel) that an engine runs has such a pool, made when it is first needed.

    Args:
        instances: Instances at a time.
        memories: Memories at a time, host-made ones not counted. A store whose guests use
            references to objects, or exceptions, takes one more. As many as instances if omitted.
        tables: Tables at a time; as many as instances if omitted.
        stacks: Stacks for awaited calls and imports at a time. A store keeps one from its first
            such call until it is closed, and a suspended call on behalf of which another is made
            takes one more. Twice as many as instances if omitted.
        memory_bytes: Size up to which each memory can grow, at most 4 GiB.
        table_elements: Entries up to which each table can grow.
        keep_resident_bytes: What is erased by hand of each memory, and stays with the process
            for the next instance; the rest is given back to the system.
    Raises:
        ValueError: If a number is out of range.
        TypeError: If a number is no int.
    """

    instances: int = 1000
    memories: int | None = None
    tables: int | None = None
    stacks: int | None = None
    memory_bytes: int = MAX_POOLED_MEMORY_BYTES
    table_elements: int = _MAX_TABLE_ELEMENTS
    keep_resident_bytes: int = 64 << 10

    def __post_init__(self) -> None:
        for name, least, most in (
            ("instances", 1, _MAX_POOLED),
            ("memories", 1, _MAX_POOLED),
            ("tables", 1, _MAX_POOLED),
            ("stacks", 1, _MAX_POOLED),
            ("memory_bytes", 1, MAX_POOLED_MEMORY_BYTES),
            ("table_elements", 1, _MAX_TABLE_ELEMENTS),
            ("keep_resident_bytes", 0, MAX_POOLED_MEMORY_BYTES),
        ):
            value = getattr(self, name)
            if value is None and name in ("memories", "tables", "stacks"):
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"expected an int for {name}, got {type(value).__name__}")
            if not least <= value <= most:
                raise ValueError(f"expected {name} from {least:,} to {most:,}, got {value:,}")

    def counts(self) -> dict[str, int]:
        """Return how many there can be of each kind, the defaults filled in."""
        return {
            "instances": self.instances,
            "memories": self.memories or self.instances,
            "tables": self.tables or self.instances,
            "stacks": self.stacks or min(2 * self.instances, _MAX_POOLED),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class EngineConfig(Record):
    """
    Say how an engine compiles, and which proposals it accepts.

    Args:
        tier: ``"optimized"`` compiles with the optimizing compiler; ``"baseline"`` several
            times faster, to slower code; ``"auto"`` small modules with the optimizing compiler,
            large ones with the baseline compiler first, and with the optimizing one in the
            background. What the baseline compiler lacks (references to objects, exceptions,
            threads, tail calls; any machine but x86-64) is optimized at once.
        compile_threads: Threads that compile for awaiting callers; the number of processors
            if omitted. The compiler's own helper threads come on top.
        max_queued_compilations: Compilations that may wait for a thread; one more is refused.
        cache: Directory that keeps optimized code for the next process, which must be ours alone;
            or ``"default"``: the user's cache directory, or what ``ASYNCWASM_CACHE_DIR`` names
            (``off``: none). None keeps nothing. See docs/compiling.md.
        cache_bytes: Size above which the cache forgets what was not used for longest.
        max_module_bytes: Size from which on a module is refused.
        max_wasm_stack_bytes: Stack that guest frames may take before `StackOverflow`, at most
            64 MiB. Above 1 MiB every call runs on a stack of its own.
        pooling: Where stores take their memory from. A `Pooling`, or True for one with its
            defaults: from a pool; what does not fit it is refused with RangeError. False: each
            from the system. None: those of an `InstancePool` from a pool with the defaults, as
            long as they fit and there is room; all others from the system.
        simd, relaxed_simd, threads, tail_call, memory64, multi_memory, function_references, gc,
        exceptions, wide_arithmetic, custom_page_sizes: Whether modules may use the proposal of
            WebAssembly that is called so.
    Raises:
        ValueError: If a number is not positive or the tier has no such name.
        TypeError: If the cache is neither a path nor None, or *pooling* nothing of the kind.
    """

    tier: Tier = "auto"
    compile_threads: int | None = None
    max_queued_compilations: int = 1000
    cache: str | os.PathLike[str] | None = None
    cache_bytes: int = 1 << 30
    max_module_bytes: int = 1 << 30
    max_wasm_stack_bytes: int = 512 << 10
    pooling: Pooling | bool | None = None
    simd: bool = True
    relaxed_simd: bool = True
    threads: bool = True
    tail_call: bool = True
    memory64: bool = True
    multi_memory: bool = True
    function_references: bool = True
    gc: bool = True
    exceptions: bool = True
    wide_arithmetic: bool = False
    custom_page_sizes: bool = False

    def __post_init__(self) -> None:
        if self.tier not in _TIERS:
            raise ValueError(f"expected a tier of {', '.join(_TIERS)}, got {self.tier!r}")
        if self.cache is not None and not isinstance(self.cache, (str, os.PathLike)):
            raise TypeError(f"expected a directory for cache, got {type(self.cache).__name__}")
        if self.pooling is not None and not isinstance(self.pooling, (Pooling, bool)):
            raise TypeError(
                f"expected a Pooling, a bool or None for pooling, got {type(self.pooling).__name__}"
            )
        for name in (
            "compile_threads",
            "max_queued_compilations",
            "cache_bytes",
            "max_module_bytes",
            "max_wasm_stack_bytes",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"expected a positive {name}, got {value}")
        if not MIN_STACK_BYTES <= self.max_wasm_stack_bytes <= MAX_STACK_BYTES:
            raise ValueError(
                f"expected max_wasm_stack_bytes from {MIN_STACK_BYTES:,} to {MAX_STACK_BYTES:,}, "
                f"got {self.max_wasm_stack_bytes:,}"
            )

    @property
    def features(self) -> dict[str, bool]:
        """The proposals and whether they are on."""
        features = {name: bool(getattr(self, name)) for name in _FEATURES}
        features["relaxed_simd"] &= features["simd"]  # the library aborts on one without the other
        return features

    @property
    def pool(self) -> Pooling:
        """The bounds of the pool, if there is one."""
        return self.pooling if isinstance(self.pooling, Pooling) else _POOLING

    @property
    def pools_everything(self) -> bool:
        """Whether every store takes its memory from a pool."""
        return bool(self.pooling)  # a Pooling is true

    @property
    def threads_to_compile(self) -> int:
        """The number of compile threads, the default filled in."""
        return self.compile_threads or os.cpu_count() or 1


_POOLING = Pooling()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Limits(Record):
    """
    Bound what the guests of one store may take; what is omitted is unlimited.

    Args:
        memory_bytes: Size up to which each memory can grow. A guest that asks for more sees -1.
            It also bounds how long one instruction can take that fills or copies memory, and
            that nothing can interrupt: some 50 ms for 64 MiB, where they are touched first.
            A module whose own shared memory has a larger maximum is refused.
        table_elements: Entries up to which each table can grow, likewise.
        instances: Instances the store can hold.
        tables: Tables the store can hold.
        memories: Memories the store can hold.
        fuel: Units of work before the guest is interrupted, about one an instruction. The same
            program with the same input always takes the same amount.
    Raises:
        ValueError: If a number is negative.
        TypeError: If a number is no int.
    """

    memory_bytes: int | None = None
    table_elements: int | None = None
    instances: int | None = None
    tables: int | None = None
    memories: int | None = None
    fuel: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if not isinstance(value, int):
                raise TypeError(f"expected an int for {field.name}, got {type(value).__name__}")
            if not 0 <= value < 1 << 63:
                raise ValueError(f"expected {field.name} from 0 to 2**63 - 1, got {value}")


def native_limits(limits: Limits) -> tuple[int, int, int, int, int]:
    """Return *limits* as the library takes them: -1 is unlimited."""
    memory, table = limits.memory_bytes, limits.table_elements
    return (
        _MAX_MEMORY_BYTES if memory is None else memory,
        _MAX_TABLE_ELEMENTS if table is None else min(table, _MAX_TABLE_ELEMENTS),
        -1 if limits.instances is None else limits.instances,
        -1 if limits.tables is None else limits.tables,
        -1 if limits.memories is None else limits.memories,
    )


UNLIMITED = Limits()

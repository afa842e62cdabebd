"""
The pooling allocator: what it reserves, and what it says when there is no more.

Rule 1: the library aborts the process when it cannot reserve a pool. So whatever it will
reserve is reserved by ourselves first, and let go of again.
Rule 2: code does not depend on the allocator: what an engine without a pool has compiled, one
with a pool and otherwise the same configuration can load.
"""

from __future__ import annotations

import errno
import mmap
import re
import sys
from contextlib import ExitStack
from typing import NamedTuple

from .._errors import RangeError
from .library import lib

_MEMORY_BYTES = 4 << 30  # the address space of a memory, and what guards it
_GUARD_BYTES = 32 << 20
_TABLE_ELEMENT_BYTES = 8
# Only looked at, never reserved: what the JS API and the library's parser allow to a module.
_PER_MODULE = 100
_INSTANCE_BYTES = 1 << 30
_MAPPINGS_LEFT = 8192  # for everything else that the process does
_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # older versions of Python lack it


class Sizes(NamedTuple):
    """What a pool has room for."""

    instances: int
    memories: int
    tables: int
    stacks: int
    memory_bytes: int
    table_elements: int
    keep_resident_bytes: int


def check_room(sizes: Sizes, stack_bytes: int) -> None:
    """
    Make sure that the system has room for a pool.

    Raises:
        RangeError: If it has not; the message says how much was asked for.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):
        raise RangeError("pools need a POSIX system; use EngineConfig(pooling=False) here")
    page = mmap.PAGESIZE
    parts = {
        f"memories={sizes.memories:,}": (
            sizes.memories * (_MEMORY_BYTES + _GUARD_BYTES) + 2 * _GUARD_BYTES,
            0,
        ),
        f"tables={sizes.tables:,} of table_elements={sizes.table_elements:,}": (
            sizes.tables * (_TABLE_ELEMENT_BYTES * sizes.table_elements + page),
            mmap.PROT_READ | mmap.PROT_WRITE,
        ),
        f"stacks={sizes.stacks:,}": (
            sizes.stacks * (stack_bytes + 2 * page),
            mmap.PROT_READ | mmap.PROT_WRITE,
        ),
    }
    with ExitStack() as held:
        for what, (size, protection) in parts.items():
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
            try:
                held.enter_context(mmap.mmap(-1, size, flags=flags, prot=protection))
            except (OSError, OverflowError, ValueError) as exc:
                name = errno.errorcode.get(getattr(exc, "errno", None) or 0, str(exc))
                raise RangeError(
                    f"the pool needs {size:,} bytes of address space for {what}, and the system "
                    f"refuses them ({name}); lower EngineConfig(pooling=Pooling(...)), or what "
                    "limits the process (ulimit -v, vm.overcommit_memory)"
                ) from None
    most = _mappings_limit()
    if most is None:
        return
    # Each stack has a page that guards it, each memory an end, and an image of its data.
    needed = 2 * sizes.stacks + 4 * sizes.memories
    left = most - _mappings() - _MAPPINGS_LEFT
    if needed > left:
        raise RangeError(
            f"the pool needs up to {needed:,} mappings for stacks={sizes.stacks:,} and "
            f"memories={sizes.memories:,}, and the process has {max(left, 0):,} left; lower "
            f"EngineConfig(pooling=Pooling(...)) or raise vm.max_map_count, which is {most:,}"
        )


def _mappings_limit() -> int | None:
    try:
        with open("/proc/sys/vm/max_map_count") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None  # not Linux: there is no such limit


def _mappings() -> int:
    try:
        with open("/proc/self/maps", "rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0


def configure(config: int, sizes: Sizes) -> None:
    """Let *config* allocate from a pool."""
    pool = lib.wasmtime_pooling_allocation_config_new()
    for name, value in (
        ("total_core_instances", sizes.instances),
        ("total_memories", sizes.memories),
        ("total_gc_heaps", sizes.memories),  # each takes a memory
        ("total_tables", sizes.tables),
        ("total_stacks", sizes.stacks),
        ("max_memory_size", sizes.memory_bytes),
        ("table_elements", sizes.table_elements),
        ("max_memories_per_module", _PER_MODULE),
        ("max_tables_per_module", _PER_MODULE),
        ("max_core_instance_size", _INSTANCE_BYTES),
        ("linear_memory_keep_resident", sizes.keep_resident_bytes),
        ("table_keep_resident", sizes.keep_resident_bytes),
    ):
        getattr(lib, f"wasmtime_pooling_allocation_config_{name}_set")(pool, value)
    lib.wasmtime_pooling_allocation_strategy_set(config, pool)
    lib.wasmtime_pooling_allocation_config_delete(pool)


_EXHAUSTED = r"maximum concurrent limit of (\d+) for (.+?) reached"
_KINDS = {
    "core instances": "instances",
    "memory stripe 0": "memories",
    "GC heaps": "memories",
    "tables": "tables",
    "fibers": "stacks",
}
_BOUNDS = {"memory has a minimum": "memory_bytes", "minimum element size": "table_elements"}
_CONTEXT = r"(?s).*pooling allocator (configuration|requirements): "

POOL_EMPTY = "the engine's pool has no room"


def explained(message: str) -> str:
    """Return *message*, or what to say instead if it is that the pool has nothing left."""
    found = re.search(_EXHAUSTED, message)
    if found is None:
        return message
    kind = _KINDS.get(found[2], "instances")
    return (
        f"{POOL_EMPTY} for one more of its {kind}: all {int(found[1]):,} are in use; "
        f"close stores and instances, or raise EngineConfig(pooling=Pooling({kind}=...))"
    )


def unfit(message: str) -> str:
    """Return what to say about a module that does not fit a pool, as *message* says."""
    reason = re.sub(_CONTEXT, "", message)
    reason = re.sub(r"0x[0-9a-f]+", lambda found: str(int(found[0], 16)), reason)
    hint = ""
    for text, name in _BOUNDS.items():
        if text in reason and str(_MEMORY_BYTES) not in reason:  # no pool has larger memories
            hint = f"raise EngineConfig(pooling=Pooling({name}=...)), or "
    return (
        f"the module does not fit the engine's pool: {reason}; {hint}use an engine without a pool"
    )

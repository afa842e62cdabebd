"""
One measurement in a process of its own, for `benchmarks.compile`.

``python -m benchmarks._loading KIND [FILE...]`` prints JSON. Times are in seconds, and begin when
all packages have been imported and the event loop runs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What can be called without running a program, for the time to the first call.
FIRST_CALLS = ("getsp",)


def stubs(module: Any) -> dict[str, dict[str, Any]]:
    """Return something for everything that *module* imports."""
    import asyncwasm as aw

    def stub(kind: str, type: Any) -> Any:
        if kind == "memory":
            return aw.Memory(type.minimum, type.maximum, shared=type.shared, address=type.address)
        if kind == "table":
            return aw.Table(type.element, type.minimum, type.maximum, address=type.address)
        if kind == "global":
            value = 0 if type.value in ("i32", "i64", "f32", "f64") else None
            return aw.Global(type.value, value, mutable=type.mutable)
        if kind == "tag":
            return aw.Tag(type.parameters)
        return lambda *arguments: 0

    imports: dict[str, dict[str, Any]] = {}
    for each in module.imports():
        imports.setdefault(each.module, {})[each.name] = stub(each.kind, each.type)
    return imports


def first_call(exports: Any) -> Callable[[], Any] | None:
    """Return the export to call, if there is one."""
    return next((exports[name] for name in FIRST_CALLS if name in exports), None)


async def ours(file: str, *, as_bytes: bool, fill: bool) -> dict[str, Any]:
    """Compile and instantiate with asyncwasm."""
    import asyncwasm as aw

    path = Path(file)
    source: Any = path.read_bytes() if as_bytes else path
    started = time.perf_counter()
    module = await aw.compile(source)
    compiled = time.perf_counter() - started
    tier = module.tier
    times: dict[str, Any] = {"compile": compiled, "tier": tier}
    try:
        imports = stubs(module)
        started = time.perf_counter()
        instance = await aw.instantiate(module, imports)
        times["instance"] = compiled + time.perf_counter() - started
        call = first_call(instance.exports)
        if call is not None:
            call()
            times["call"] = compiled + time.perf_counter() - started
    except (aw.WasmError, TypeError) as exc:  # some want more of their imports than being there
        times["error"] = repr(exc)
    if as_bytes:
        import hashlib  # only now: loading it belongs to what is measured

        started = time.perf_counter()
        hashlib.sha256(source).digest()
        times["sha256"] = time.perf_counter() - started
    if fill:
        await module.optimized()
    return times


def peer(file: str) -> dict[str, Any]:
    """Compile and instantiate with wasmtime-py."""
    import wasmtime

    binary = Path(file).read_bytes()
    started = time.perf_counter()
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, binary)
    times = {"compile": time.perf_counter() - started}
    store = wasmtime.Store(engine)
    types = [each.type for each in module.imports]
    if all(isinstance(type, wasmtime.FuncType) for type in types):
        functions = [wasmtime.Func(store, type, lambda *arguments: 0) for type in types]
        exports = wasmtime.Instance(store, module, functions).exports(store)
        times["instance"] = time.perf_counter() - started
        names = [each.name for each in module.exports]
        for name in FIRST_CALLS:
            if name in names:
                exports[name](store)
                times["call"] = time.perf_counter() - started
    return times


async def many(files: list[str], *, as_bytes: bool, fill: bool) -> dict[str, Any]:
    """Load all of them with `load_many`, without instances: their imports are not ours to know."""
    import asyncwasm as aw

    paths = [Path(file) for file in files]
    started = time.perf_counter()
    sources: list[Any] = [path.read_bytes() for path in paths] if as_bytes else list(paths)
    modules, cached, failed = [], 0, 0
    async for item in aw.load_many(sources, instantiate=False):
        modules.append(item.module)
        cached += item.cached
        failed += item.error is not None
    seconds = time.perf_counter() - started
    peak = peak_bytes()
    if fill:
        for module in modules:
            if module is not None:
                await module.optimized()
    return {"seconds": seconds, "peak": peak, "cached": cached, "failed": failed}


def read_and_hash(files: list[str]) -> dict[str, Any]:
    """Read and hash the files, and do nothing else."""
    import hashlib

    started = time.perf_counter()
    kept = []
    for file in files:
        kept.append(Path(file).read_bytes())
        hashlib.sha256(kept[-1]).hexdigest()
    return {"seconds": time.perf_counter() - started, "peak": peak_bytes()}


def peak_bytes() -> int | None:
    """Return the most memory that this process has had at a time."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measured(kind: str, files: list[str]) -> dict[str, Any]:
    """Return the measurement called *kind*."""
    if kind == "wasmtime-py":
        return peer(files[0])
    if kind == "read":
        return read_and_hash(files)
    if kind in ("cold", "path", "bytes"):
        import anyio._backends._asyncio  # what anyio itself imports on first use

        import asyncwasm

        return asyncio.run(ours(files[0], as_bytes=kind == "bytes", fill=kind == "cold"))
    import anyio._backends._asyncio  # noqa: F401

    import asyncwasm.batch  # noqa: F401

    return asyncio.run(many(files, as_bytes=kind == "many-bytes", fill=kind == "many-cold"))


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], sys.argv[2:])))

"""
How long modules take to be there, cold and from the cache: ``python -m benchmarks.compile``.

The modules are those of corpus.json, fetched once with ``npm pack`` into a directory of the
user's. Each number is measured in a process of its own, with all packages imported before; times
of asyncwasm include an instance where its imports can be made up. Node's is that of
``WebAssembly.compile``, which has no cache on disk. What is not installed leaves its column empty.

    python -m benchmarks.compile --only esbuild
    python -m benchmarks.compile --modules 5 --repeat 3
    python -m benchmarks.compile --json compile.json --plot compile   # compile.svg, compile.png
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ._corpus import Entry, corpus
from ._measure import WASMTIME, Figure, Options

NODE = """
const bytes = require("fs").readFileSync(process.argv[1]);
const started = process.hrtime.bigint();
WebAssembly.compile(bytes).then(
  () => console.log(JSON.stringify({compile: Number(process.hrtime.bigint() - started) / 1e9})),
  (error) => console.log(JSON.stringify({error: String(error)})));
"""
IMPORT = """
import time
started = time.perf_counter()
import anyio.lowlevel
between = time.perf_counter()
import asyncwasm
ended = time.perf_counter()
print('{"anyio": %f, "asyncwasm": %f}' % (between - started, ended - between))
"""
LARGE_BYTES = 5_000_000  # from which on compiling alone is shown, too: there it matters
NODE_COMPILES = "Node, compiling"
COLUMNS = {  # in the order of the table: what each is called, and in JSON
    "cold": "cold asyncwasm",
    "wasmtime_py": "cold wasmtime-py",
    "node": "Node",
    "path": "warm from path",
    "bytes": "warm from bytes",
}


class Bench:
    """Runs measurements against one cache directory."""

    def __init__(self, cache: Path, repeat: int) -> None:
        self.repeat = repeat
        # A cache that only its owner can write, and bytecode even where none is wanted beside
        # the sources: importing is not what is measured.
        self._environment = {
            **os.environ,
            "ASYNCWASM_CACHE_DIR": str(cache / "asyncwasm"),
            "PYTHONPYCACHEPREFIX": str(cache / "bytecode"),
        }
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.cache = cache / "asyncwasm"
        self.node = shutil.which("node")

    def forget(self) -> None:
        """Empty the cache."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def once(self, kind: str, *files: Path) -> dict[str, Any]:
        """Return one measurement."""
        if kind == "import":
            return self._run(sys.executable, "-c", IMPORT)
        return self._run(sys.executable, "-m", "benchmarks._loading", kind, *map(str, files))

    def median(self, kind: str, *files: Path) -> dict[str, Any]:
        """Return the measurement whose time is the median."""
        rows = [self.once(kind, *files) for _ in range(self.repeat)]
        return sorted(rows, key=_seconds)[len(rows) // 2]

    def with_node(self, file: Path) -> dict[str, Any] | None:
        """Return the median of what Node takes; None without Node."""
        if self.node is None:
            return None
        rows = [self._run(self.node, "-e", NODE, str(file)) for _ in range(self.repeat)]
        return sorted(rows, key=_seconds)[len(rows) // 2]

    def _run(self, *command: str) -> dict[str, Any]:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=self._environment,
            cwd=Path(__file__).parents[1],
        )
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["it has failed"])[-1]}
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


def _seconds(row: dict[str, Any] | None) -> float:
    """Return the time up to an instance, or as far as it went."""
    for name in ("instance", "compile", "seconds", "asyncwasm"):
        if row is not None and name in row:
            return float(row[name])
    return float("inf")


def _compiled(row: dict[str, Any] | None) -> float:
    """Return the time up to a module."""
    return float("inf") if row is None else float(row.get("compile", "inf"))


def one(bench: Bench, entry: Entry) -> dict[str, Any]:
    """Measure one module."""
    bench.forget()
    return {
        "name": entry.name,
        "size_bytes": entry.size_bytes,
        "cold": bench.once("cold", entry.path),  # waits for the cache to be filled
        "wasmtime_py": bench.once("wasmtime-py", entry.path),
        "node": bench.with_node(entry.path),
        "path": bench.median("path", entry.path),
        "bytes": bench.median("bytes", entry.path),
    }


def all_at_once(bench: Bench, paths: Sequence[Path]) -> dict[str, Any]:
    """Measure `load_many`, with its memory."""
    bench.forget()
    return {
        "cold": bench.once("many-cold", *paths),
        "read and hash": bench.median("read", *paths),
        "warm from bytes": bench.median("many-bytes", *paths),
        "warm from paths": bench.median("many-paths", *paths),
    }


def milliseconds(row: dict[str, Any] | None) -> str:
    """Return how long it took, for the table."""
    seconds = _seconds(row)
    if seconds == float("inf"):
        return "-"
    return f"{seconds * 1000:,.1f}{'' if row is None or 'error' not in row else '*'}"


def ratio(over: dict[str, Any] | None, under: dict[str, Any] | None) -> str:
    """Return how many times as long as *under* it took."""
    above, below = _seconds(over), _seconds(under)
    return "-" if float("inf") in (above, below) else f"{above / below:.1f}"


def show_modules(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of modules."""
    print(f"{'ms':63} {'MB':>6}", *(f"{name:>16}" for name in COLUMNS.values()), sep=" ")
    for row in rows:
        cells = (f"{milliseconds(row[column]):>16}" for column in COLUMNS)
        print(f"{row['name']:63} {row['size_bytes'] / 1e6:6.2f}", *cells, sep=" ")
    if any("error" in (row[column] or ()) for row in rows for column in ("cold", "path", "bytes")):
        print("* without an instance: it needs more of its imports than made-up ones")
    for row in rows:
        facts = [f"{row['name']}:"]
        if "compile" not in row["cold"]:
            print(*facts, row["cold"].get("error", "no result"))
            continue
        for label, over, under in (
            ("wasmtime-py / cold", "wasmtime_py", "cold"),
            ("Node / warm from path", "node", "path"),
            ("Node / warm from bytes", "node", "bytes"),
        ):
            facts.append(f"{label} {ratio(row[over], row[under])},")
        for kind in ("path", "bytes"):
            alone = _seconds(row["node"]) / _compiled(row[kind])
            facts.append(f"compile() alone from {kind} {alone:.1f},")
        hashing = row["bytes"].get("sha256")
        if hashing is not None:
            beyond = (_seconds(row["bytes"]) - hashing) * 1000
            facts.append(f"warm from bytes beyond one sha256 {beyond:.1f} ms,")
        calls = [row[column].get("call") for column in ("cold", "wasmtime_py")]
        if None not in calls:
            facts.append(
                f"first call {calls[0] * 1000:,.0f} ms, wasmtime-py / asyncwasm "
                f"{calls[1] / calls[0]:.1f}"
            )
        print(*facts)


def show_all(rows: dict[str, dict[str, Any]]) -> None:
    """Print the table of `load_many`."""
    print(f"{'load_many':63} {'ms':>10} {'times reading':>14} {'peak MB':>8} {'cached':>7}")
    for name, row in rows.items():
        peak = row.get("peak")
        print(
            f"{name:63} {milliseconds(row):>10} {ratio(row, rows['read and hash']):>14} "
            f"{'-' if peak is None else f'{peak / 1e6:,.0f}':>8} {row.get('cached', '-'):>7}"
        )


def plot(rows: Sequence[dict[str, Any]], stem: Path) -> None:
    """Write a plot of the table as SVG and as PNG."""
    try:
        from matplotlib import figure as plots
    except ImportError:
        raise SystemExit(
            "the plot needs matplotlib: python -m pip install 'asyncwasm[bench]'"
        ) from None
    rows = sorted(rows, key=lambda row: int(row["size_bytes"]))
    figure = plots.Figure(figsize=(11, 1.5 + 0.6 * len(rows)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(COLUMNS)
    for index, (column, label) in enumerate(COLUMNS.items()):
        seconds = [_seconds(row[column]) for row in rows]
        axes.barh(
            [place + 0.4 - (index + 0.5) * height for place in range(len(rows))],
            [0.0 if each == float("inf") else each * 1000 for each in seconds],
            height,
            label=label,
        )
    axes.set_yticks(
        range(len(rows)), [f"{row['name']}\n{row['size_bytes'] / 1e6:.2f} MB" for row in rows]
    )
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds until the module can be used")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(COLUMNS), frameon=False)
    for ending in (".svg", ".png"):
        figure.savefig(stem.with_suffix(ending), dpi=150)
        print(f"wrote {stem.with_suffix(ending)}")


def figures(
    rows: Sequence[dict[str, Any]], together: dict[str, dict[str, Any]]
) -> Iterator[Figure]:
    """Yield what the suite shows of the tables."""
    for row in rows:
        name = f"{row['name']} ({row['size_bytes'] / 1e6:.2f} MB)"
        for what, ours, other, theirs, until in (
            ("cold, until it can be used", "cold", WASMTIME, "wasmtime_py", _seconds),
            ("warm from a path", "path", NODE_COMPILES, "node", _seconds),
            ("warm from a path, compile() alone", "path", NODE_COMPILES, "node", _compiled),
            ("warm from bytes", "bytes", NODE_COMPILES, "node", _seconds),
            ("warm from bytes, compile() alone", "bytes", NODE_COMPILES, "node", _compiled),
        ):
            if until is _compiled and row["size_bytes"] < LARGE_BYTES:
                continue
            mine, beside = until(row[ours]), _seconds(row[theirs])
            measured = float("inf") not in (mine, beside)
            yield Figure(
                name=f"{name}: {what}",
                unit="ms",
                ours=None if mine == float("inf") else mine * 1000,
                other=other,
                theirs=None if beside == float("inf") else beside * 1000,
                ratio=beside / mine if measured else None,
                note="" if measured else "could not be measured on both sides",
            )
    reading = _seconds(together["read and hash"])
    for name, row in together.items():
        seconds = _seconds(row)
        yield Figure(
            name=f"load_many: {name}",
            unit="ms",
            ours=seconds * 1000,
            other="reading and hashing the files",
            theirs=reading * 1000,
            ratio=reading / seconds,
            note=f"peak {row['peak'] / 1e6:,.0f} MB" if row.get("peak") else "",
        )


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures of all modules; of the largest only, if it has to be quick."""
    import platformdirs

    directory = options.directory or platformdirs.user_cache_path("asyncwasm-benchmarks")
    entries = corpus(directory, only="esbuild" if options.quick else None, limit=None)
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary), 3 if options.quick else 5)
        bench.once("import")  # writes the bytecode
        imports = bench.median("import")
        yield Figure(
            name="import asyncwasm, beyond anyio",
            unit="ms",
            ours=imports["asyncwasm"] * 1000,
            other="import anyio",
            theirs=imports["anyio"] * 1000,
            ratio=imports["anyio"] / imports["asyncwasm"],
            at_most=30.0,
        )
        rows = [one(bench, entry) for entry in entries]
        usable = [
            entry.path for entry, row in zip(entries, rows, strict=True) if "compile" in row["cold"]
        ]
        yield from figures(rows, all_at_once(bench, usable))


def main() -> None:
    """Measure, and print the tables."""
    import platformdirs

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--modules", type=int, metavar="N", help="measure the first N only")
    parser.add_argument("--only", metavar="NAME", help="measure those with NAME in their names")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="repeats when warm")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE")
    parser.add_argument("--plot", type=Path, metavar="STEM", help="write STEM.svg and STEM.png")
    parser.add_argument(
        "--corpus",
        type=Path,
        metavar="DIRECTORY",
        default=platformdirs.user_cache_path("asyncwasm-benchmarks"),
        help="where the modules are kept (%(default)s)",
    )
    options = parser.parse_args()
    entries = corpus(options.corpus, only=options.only, limit=options.modules)
    if not entries:
        parser.error("no module has such a name")
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary), options.repeat)
        node = "no node"
        if bench.node is not None:
            node = "Node " + subprocess.check_output([bench.node, "--version"], text=True).strip()
        about = (
            f"CPython {platform.python_version()}, {os.cpu_count()} processors, "
            f"wasmtime {version('wasmtime')}, {node}"
        )
        print(about)
        if bench.node is None:
            print("node was not found: its column stays empty")
        bench.once("import")  # writes the bytecode
        imports = bench.median("import")
        print(
            f"import asyncwasm {imports['asyncwasm'] * 1000:.1f} ms, beyond "
            f"{imports['anyio'] * 1000:.1f} ms of anyio"
        )
        rows = []
        for entry in entries:
            print(f"\r{entry.name:60}", end="", file=sys.stderr, flush=True)
            rows.append(one(bench, entry))
        print("\r" + " " * 60, end="\r", file=sys.stderr, flush=True)
        show_modules(rows)
        # What cannot be compiled is not in any cache.
        together = all_at_once(
            bench,
            [
                entry.path
                for entry, row in zip(entries, rows, strict=True)
                if "compile" in row["cold"]
            ],
        )
        show_all(together)
    if options.json is not None:
        result = {"about": about, "import": imports, "modules": rows, "load_many": together}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {options.json}")
    if options.plot is not None:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()

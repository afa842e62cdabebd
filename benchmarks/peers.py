"""
The same tasks in other packages, and in Node: ``python -m benchmarks.peers``.

Each Python package is installed with pip into a virtual environment of its own, in a temporary
directory or in ``--directory``, and run there by a script of ``benchmarks/workers``. What cannot
be installed or run is listed with the reason. Different processes cannot be measured in turn
as finely as the other benchmarks do it, so look at the orders of magnitude here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncwasm as aw

from ._guests import CALLER, generated
from ._measure import Figure, Options, run_alone

WORKERS = Path(__file__).parent / "workers"
PLAIN = """(module
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func $fib (export "fib") (param $n i32) (result i32)
    (if (result i32) (i32.lt_u (local.get $n) (i32.const 2))
      (then (local.get $n))
      (else (i32.add (call $fib (i32.sub (local.get $n) (i32.const 1)))
                     (call $fib (i32.sub (local.get $n) (i32.const 2)))))))
  (func (export "nothing") (result i32) (i32.const 0))
  (func (export "fib_16") (result i32) (drop (call $fib (i32.const 16))) (i32.const 0)))"""
TASKS = {
    "call": ("a call of add(1, 2)", "us", 1e6),
    "import": ("an import, in a loop of 1,000", "us", 1e6),
    "fib": ("fib(16), 1,597 calls in the guest", "us", 1e6),
    "instantiate": ("instantiating a small module", "us", 1e6),
    "compile": ("compiling {:.1f} MB", "ms", 1e3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Something that runs wasm, too."""

    name: str
    worker: str
    requirement: str | None = None
    note: str = ""


PEERS = (
    Peer(name="wasmtime-py", worker="wasmtime_py.py", requirement="wasmtime"),
    Peer(name="wasmhost", worker="wasmhost_wasmtime.py", requirement="wasmhost[wasmtime]"),
    Peer(
        name="pywasm3",
        worker="pywasm3_wasm3.py",
        requirement="pywasm3",
        note="an interpreter: it compiles functions when they are called first",
    ),
    Peer(
        name="extism",
        worker="extism_plugin.py",
        requirement="extism",
        note="passes bytes: without arguments",
    ),
    Peer(name="pywasm", worker="pywasm_python.py", requirement="pywasm", note="interprets"),
    Peer(name="Node", worker="node.mjs", note="compiles functions when they are called first"),
)


class UnavailableError(Exception):
    """A peer cannot be installed or run; says why."""


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Return what a command prints, or raise with the last thing that it complained about."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            env=None if environment is None else {**os.environ, **environment},
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise UnavailableError(str(exc)) from exc
    if done.returncode:
        complaints = (done.stderr or done.stdout).strip().splitlines()
        last = complaints[-1] if complaints else "it said nothing"
        raise UnavailableError(f"exit status {done.returncode}: {last}")
    return done.stdout


def interpreter(peer: Peer, directory: Path) -> tuple[str, str]:
    """Return a Python that has *peer* installed, and the version of that."""
    assert peer.requirement is not None
    home = directory / peer.name
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        run([sys.executable, "-m", "venv", str(home)])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", peer.requirement])
    package = peer.requirement.partition("[")[0]
    version = run(
        [str(python), "-c", f"import importlib.metadata as m; print(m.version({package!r}))"]
    )
    return str(python), version.strip()


def results(peer: Peer, directory: Path, arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the version of *peer* and what its worker measured."""
    worker = str(WORKERS / peer.worker)
    if peer.requirement is None:
        node = shutil.which("node")
        if node is None:
            raise UnavailableError("node is not installed")
        found: dict[str, Any] = json.loads(run([node, worker, *arguments]))
        return found.pop("version"), found
    python, version = interpreter(peer, directory)
    # Extism would take compiled code from a cache on disk; nobody else here does.
    environment = {"EXTISM_CACHE_CONFIG": ""}
    return version, json.loads(run([python, worker, *arguments], environment))


def measure_in(directory: Path, options: Options) -> Iterator[Figure]:
    """Yield the figures; the peers are installed in *directory*."""
    large = generated(20 if options.quick else 100)
    guests = directory / "guests"
    guests.mkdir(parents=True, exist_ok=True)
    # Extism's functions take no arguments.
    end = CALLER.rindex(")")
    caller = (
        f'{CALLER[:end]} (func (export "loop_1000") (result i32) (local $n i32) (local $sum i32)'
        "(local.set $n (i32.const 1000)) (loop $again "
        "(local.set $sum (i32.add (local.get $sum) (call $f (local.get $n))))"
        "(br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1))))) (i32.const 0)))"
    )
    (guests / "plain.wasm").write_bytes(aw.wat2wasm(PLAIN))
    (guests / "caller.wasm").write_bytes(aw.wat2wasm(caller))
    (guests / "large.wasm").write_bytes(large)
    arguments = [str(guests), str(0.01 if options.quick else 0.2)]

    root = str(WORKERS.parents[1])
    environment = {"PYTHONPATH": root, "ASYNCWASM_SYNC_GUARD": "ignore:65536"}
    ours: dict[str, float] = json.loads(
        run([sys.executable, str(WORKERS / "ours.py"), *arguments], environment)
    )
    for peer in PEERS:
        try:
            version, theirs = results(peer, directory, arguments)
        except UnavailableError as exc:
            yield Figure(name=peer.name, unit="us", note=f"not measured: {exc}")
            continue
        for name, (text, unit, scale) in TASKS.items():
            value = theirs[name]
            measured = not isinstance(value, str)
            yield Figure(
                name=text.format(len(large) / 1e6),
                unit=unit,
                ours=ours[name] * scale,
                other=f"{peer.name} {version}",
                theirs=value * scale if measured else None,
                ratio=value / ours[name] if measured else None,
                note=peer.note if measured else f"not measured: {value}",
            )


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    with ExitStack() as stack:
        directory = options.directory
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield from measure_in(directory.resolve(), options)


if __name__ == "__main__":
    run_alone("peers", measure, __doc__)

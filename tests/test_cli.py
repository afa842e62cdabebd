"""The command line: what it prints where, and how it exits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import asyncwasm as aw
from asyncwasm import cache as cache_face
from asyncwasm._runtime import engine
from asyncwasm.cli import commands

from .support import ADD, ROOT, SPIN, wasm

MODULES = ROOT / "examples" / "modules"
TEXT = MODULES / "text.wasm"

VALUES = """(module
  (func (export "i32") (param i32) (result i32) (local.get 0))
  (func (export "i64") (param i64) (result i64) (local.get 0))
  (func (export "f32") (param f32) (result f32) (local.get 0))
  (func (export "f64") (param f64) (result f64) (local.get 0))
  (func (export "v128") (param v128) (result v128) (local.get 0))
  (func (export "extern") (param externref) (result externref) (local.get 0))
  (func (export "func") (param funcref) (result funcref) (local.get 0))
  (func (export "two") (result i32 f64) (i32.const 1) (f64.const 2.5))
  (func (export "none"))
  (func (export "strange \\1b[31m name"))
  (memory (export "memory") 1))"""
TRAPS = """(module $guest
  (func $inner unreachable)
  (func (export "main") (call $inner)))"""
NEEDS = """(module (import "env" "log" (func (param i32 i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32))))"""


def use_new_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the default engine be a new one, as in a process that has just begun."""
    monkeypatch.setattr(engine, "_default", None)


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the user's cache alone, also if other tests have begun to use it."""
    monkeypatch.setenv("ASYNCWASM_CACHE_DIR", "off")
    use_new_engine(monkeypatch)


@pytest.fixture
def guests(tmp_path: Path) -> Path:
    """Return a directory with modules in it."""
    for name, text in {
        "values": VALUES,
        "add": ADD,
        "spin": SPIN,
        "traps": TRAPS,
        "needs": NEEDS,
    }.items():
        (tmp_path / f"{name}.wasm").write_bytes(wasm(text))
    (tmp_path / "text.wat").write_text(ADD)
    return tmp_path


def run(*arguments: str | Path, data: bytes | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(commands, list(map(str, arguments)), input=data)


def document(*arguments: str | Path, code: int = 0, data: bytes | None = None) -> Any:
    """Run a command in this process, and return the JSON that it writes."""
    result = run(*arguments, "--json", data=data)

    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start the command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if (
        sys.platform != "win32"
    ):  # a shell's background job ignores Ctrl-C, and so would its children
        options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "asyncwasm", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        **options,
    )


# the command line as such


COMMANDS = ("inspect", "run", "load", "compile", "cache", "bench", "validate", "wat2wasm")
NESTED = tuple(("cache", name) for name in ("info", "prune", "clear"))


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS), *NESTED], ids=" ".join)
def test_every_command_has_help(words: tuple[str, ...]) -> None:
    result = run(*words, "--help")

    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    assert words in [(), ("cache",)] or "--json" in result.stdout


def test_group_lists_every_command() -> None:
    assert sorted(commands.commands) == sorted(COMMANDS)


def test_version_is_the_packages() -> None:
    assert run("--version").stdout == f"asyncwasm, version {aw.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["inspect"], ["load"], ["bench", "-n", "0", "x"]]
)
def test_command_line_that_makes_no_sense_exits_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.slow
def test_process_runs_and_exits_0(guests: Path) -> None:
    process = start("run", guests / "add.wasm", "--invoke", "add", "2", "-3")
    out, error = process.communicate(timeout=60)

    assert (process.returncode, out, error) == (0, b"-1\n", b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"), [(["run", "traps.wasm"], 1), (["nothing"], 2), (["inspect", "no"], 1)]
)
def test_process_exits_with_the_code(guests: Path, arguments: list[str], code: int) -> None:
    process = start(*arguments, cwd=guests)
    out, error = process.communicate(timeout=60)

    assert process.returncode == code
    assert out == b""
    assert b"Error: " in error
    assert b"Traceback" not in error


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_stops_the_guest_and_exits_130(guests: Path) -> None:
    process = start("run", guests / "spin.wasm", "--invoke", "spin", "--timeout", "60")
    try:
        # A thread of the engine shows that the event loop runs, which handles Ctrl-C.
        threads = Path(f"/proc/{process.pid}/task")
        while len(list(threads.iterdir())) < 2:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 130
    assert out == b""
    assert error.strip() == b""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="pipes of Unix")
@pytest.mark.parametrize("arguments", [["inspect", TEXT], ["load", MODULES, "--json"]])
def test_broken_pipe_is_quiet(arguments: list[str | Path]) -> None:
    process = start(*arguments)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stderr:
        error = stderr.read()

    assert process.wait(timeout=60) == 1
    assert b"Traceback" not in error
    assert b"Broken" not in error


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["click", "rich"])
def test_missing_extra_is_named(missing: str) -> None:
    script = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = ['--help'];"
        "from asyncwasm.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert "asyncwasm[cli]" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# inspect


def test_inspect_tells_what_a_module_consists_of() -> None:
    result = run("inspect", TEXT)

    assert result.exit_code == 0
    assert result.stderr == ""
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "env.word function (i32, i32) -> ()" in lines
    assert "slugify function (i32, i32, i32) -> (i32)" in lines
    assert "memory memory 2 pages" in lines
    assert f"digest {aw.Module(TEXT).digest}" in lines


PARTS = """(module $parts
  (import "env" "memory" (memory 1 3))
  (import "env" "g" (global i64))
  (memory i64 2 5)
  (table 3 9 funcref)
  (global (mut f32) (f32.const 1))
  (func $f (export "f") (param i32) (result f64) (f64.const 1))
  (func $start)
  (start $start)
  (data (i32.const 0) "hello")
  (@custom "notes" "12345"))"""


def test_inspect_json_has_every_part() -> None:
    binary = wasm(PARTS)
    found = document("inspect", "-", data=binary)

    sections = {each["name"]: each["bytes"] for each in found.pop("sections")}
    assert list(sections) == [
        *("type", "import", "function", "table", "memory", "global", "export", "start"),
        *("code", "data"),
    ]
    assert found.pop("code_bytes") == sections["code"]
    assert found.pop("data_bytes") == sections["data"]
    custom = {each["name"]: each["bytes"] for each in found.pop("custom_sections")}
    assert custom["notes"] == 5
    limits = {"shared": False, "address": "i32"}
    assert found == {
        "file": "-",
        "name": "parts",
        "bytes": len(binary),
        "digest": aw.Module(binary).digest,
        "has_start": True,
        "imports": [
            {
                "module": "env",
                "name": "memory",
                "kind": "memory",
                "type": {"minimum": 1, "maximum": 3, **limits},
            },
            {
                "module": "env",
                "name": "g",
                "kind": "global",
                "type": {"value": "i64", "mutable": False},
            },
        ],
        "exports": [
            {
                "name": "f",
                "kind": "function",
                "type": {"parameters": ["i32"], "results": ["f64"]},
            }
        ],
        "functions": {"imported": 0, "defined": 2},
        "memories": [
            {"minimum": 1, "maximum": 3, **limits, "imported": True},
            {"minimum": 2, "maximum": 5, "shared": False, "address": "i64", "imported": False},
        ],
        "tables": [
            {"element": "funcref", "minimum": 3, "maximum": 9, "address": "i32", "imported": False}
        ],
        "globals": [
            {"value": "i64", "mutable": False, "imported": True},
            {"value": "f32", "mutable": True, "imported": False},
        ],
        "producers": {},
    }


def test_inspect_shows_every_part() -> None:
    lines = [
        " ".join(line.split()) for line in run("inspect", "-", data=wasm(PARTS)).stdout.splitlines()
    ]

    assert "name parts" in lines
    assert "functions 2, one runs at the start" in lines
    assert "0 1 page, at most 3, imported" in lines
    assert "1 2 pages, at most 5, 64-bit" in lines
    assert "0 funcref, 3 entries, at most 9" in lines
    assert "1 mut f32" in lines
    assert "notes 5 bytes" in lines


def custom_section(name: bytes, payload: bytes) -> bytes:
    """Return a custom section, of less than 128 bytes."""
    content = bytes([len(name)]) + name + payload
    return b"\0" + bytes([len(content)]) + content


PRODUCERS = b"\2\x08language\1\x03C11\0\x0cprocessed-by\1\x05clang\x0417.0"


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        pytest.param(
            PRODUCERS,
            {
                "language": [{"name": "C11", "version": ""}],
                "processed-by": [{"name": "clang", "version": "17.0"}],
            },
            id="well-formed",
        ),
        pytest.param(
            PRODUCERS[:-3],
            {"language": [{"name": "C11", "version": ""}], "processed-by": []},
            id="cut-off",
        ),
        pytest.param(b"\xff\xff", {}, id="nonsense"),
    ],
)
def test_inspect_decodes_producers(payload: bytes, expected: object) -> None:
    binary = wasm(ADD) + custom_section(b"producers", payload)

    assert document("inspect", "-", data=binary)["producers"] == expected


def test_inspect_shows_producers() -> None:
    binary = wasm(ADD) + custom_section(b"producers", PRODUCERS)

    assert re.search(r"processed-by +clang 17\.0\n", run("inspect", "-", data=binary).stdout)


def test_inspect_shows_the_first_of_many_globals() -> None:
    text = f"(module {'(global i32 (i32.const 0))' * 100})"

    assert "and 80 more" in run("inspect", "-", data=wasm(text)).stdout


def test_inspect_makes_names_printable(guests: Path) -> None:
    """A name with an escape sequence in it must not be obeyed by the terminal."""
    result = run("inspect", guests / "values.wasm")

    assert "\x1b" not in result.stdout
    assert r"strange \x1b[31m name" in result.stdout


def test_inspect_takes_the_text_format(guests: Path) -> None:
    assert document("inspect", guests / "text.wat")["exports"][0]["name"] == "add"
    assert document("inspect", "-", data=ADD.encode())["exports"][0]["name"] == "add"


@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_what_is_no_module_is_refused(tmp_path: Path, command: str) -> None:
    (tmp_path / "bad.wasm").write_bytes(wasm(ADD)[:-3])
    result = run(command, tmp_path / "bad.wasm")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")


@pytest.mark.parametrize("command", ["inspect", "run", "bench", "wat2wasm"])
def test_file_that_is_not_there_is_named(tmp_path: Path, command: str) -> None:
    result = run(command, tmp_path / "missing")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert re.fullmatch(r"Error: .*missing: No such file or directory\n", result.stderr)


# run


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("i32", "-2147483648", "-2147483648"),
        ("i32", "0xffffffff", "-1"),
        ("i32", "0b101", "5"),
        ("i64", "-1", "-1"),
        ("i64", "0xffffffffffffffff", "-1"),
        ("f32", "0.1", "0.10000000149011612"),
        ("f64", "-inf", "-inf"),
        ("f64", "nan", "nan"),
        ("f64", "0x1.8p3", "12.0"),
        ("f64", "3", "3.0"),
        ("v128", "000102030405060708090a0b0c0d0e0f", "000102030405060708090a0b0c0d0e0f"),
        ("extern", "some text", "some text"),
        ("extern", "--text", "--text"),
        ("extern", "null", "null"),
        ("func", "null", "null"),
    ],
)
def test_run_converts_by_the_type(guests: Path, name: str, argument: str, expected: str) -> None:
    result = run("run", guests / "values.wasm", "--invoke", name, "--", argument)

    assert result.exit_code == 0, result.stderr
    assert result.stdout == expected + "\n"


def test_run_prints_one_result_a_line(guests: Path) -> None:
    assert run("run", guests / "values.wasm", "--invoke", "two").stdout == "1\n2.5\n"
    assert run("run", guests / "values.wasm", "--invoke", "none").stdout == ""


def test_run_json_has_results_that_json_can_hold(guests: Path) -> None:
    file = str(guests / "values.wasm")

    assert document("run", file, "--invoke", "two") == {
        "file": file,
        "function": "two",
        "results": [1, 2.5],
        "error": None,
    }
    assert document("run", file, "--invoke", "f64", "nan")["results"] == ["nan"]
    assert document("run", file, "--invoke", "v128", "ff" * 16)["results"] == ["ff" * 16]
    assert document("run", file, "--invoke", "extern", "null")["results"] == [None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["i32", "2147483648000"], "expected i32, got '2147483648000'"),
        (["i32", "1.5"], "expected i32, got '1.5'"),
        (["f64", "x"], "expected f64, got 'x'"),
        (["f64", "0x1p99999"], "expected f64"),
        (["v128", "00"], "expected v128, got '00'"),
        (["func", "1"], "a value of funcref cannot be written, except for null"),
        (["i32"], "takes 1 argument, got 0"),
        (["two", "1", "2"], "takes 0 arguments, got 2"),
        (["i32", "--tiemout"], "--tiemout"),
        (["missing"], "no function called missing: it exports i32, i64"),
        (["memory"], "no function called memory"),
    ],
)
def test_run_explains_wrong_arguments(guests: Path, arguments: list[str], message: str) -> None:
    result = run("run", guests / "values.wasm", "--invoke", *arguments)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr


@pytest.mark.parametrize("name", ["_start", "main", "run"])
def test_run_has_a_default_export(name: str) -> None:
    text = f'(module (func (export "other")) (func (export "{name}") (result i32) (i32.const 7)))'

    assert run("run", "-", data=wasm(text)).stdout == "7\n"


def test_run_without_a_default_export_lists_what_there_is(guests: Path) -> None:
    result = run("run", guests / "add.wasm")

    assert result.exit_code == 2
    assert "no function called _start, main or run" in result.stderr
    assert "it exports add" in result.stderr


def test_run_explains_missing_imports(guests: Path) -> None:
    result = run("run", guests / "needs.wasm")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert "needs 2 imports" in result.stderr
    assert "env.log: function (i32, i32) -> ()" in result.stderr
    assert "WASI" in result.stderr


def test_run_tells_of_a_trap_with_its_frames(guests: Path) -> None:
    result = run("run", guests / "traps.wasm")

    assert result.exit_code == 1
    assert result.stdout == ""
    first, *frames = result.stderr.splitlines()
    assert first.startswith("Error: ")
    assert "unreachable" in first
    assert [line.split(" at ")[0] for line in frames] == ["  in guest.inner", "  in guest.1"]


def test_run_json_has_the_trap(guests: Path) -> None:
    found = document("run", guests / "traps.wasm", code=1)

    assert found["function"] == "main"
    assert found["results"] is None
    assert found["error"]["type"] == "Trap"
    assert found["error"]["code"] == "UNREACHABLE"
    assert found["error"]["frames"][0]["function"] == "inner"
    assert isinstance(found["error"]["frames"][0]["offset"], int)


@pytest.mark.slow
def test_run_stops_at_the_timeout(guests: Path) -> None:
    result = run("run", guests / "spin.wasm", "--invoke", "spin", "--timeout", "0.05")

    assert result.exit_code == 1
    assert result.stderr == "Error: stopped after 0.05 s\n"


def test_run_stops_without_fuel(guests: Path) -> None:
    found = document("run", guests / "spin.wasm", "--invoke", "spin", "--fuel", "1000", code=1)

    assert found["error"]["type"] == "Interrupted"
    assert found["error"]["message"] == "stopped after 1000 units of fuel"


# load


def test_load_loads_the_examples() -> None:
    result = run("load", MODULES)

    assert result.exit_code == 0, result.stdout
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["name", "size", "tier", "seconds", "cached", "note"]
    names = {Path(line.split()[0]).name for line in lines[1:]}
    wanted = {path.name for path in MODULES.iterdir() if path.suffix in (".wasm", ".wat")}
    assert names == wanted
    assert "compiled only: needs env.fetch, env.log" in result.stdout
    assert re.fullmatch(
        rf"{len(wanted)} modules, [\d,]+ bytes, [\d.]+ s, 0 failed\n", result.stderr
    )


def test_load_json_has_a_row_for_each(guests: Path) -> None:
    (guests / "below").mkdir()
    (guests / "below" / "add.wasm").write_bytes(wasm(ADD))
    found = document("load", guests)

    assert found["failed"] == 0
    assert found["seconds"] > 0
    rows = {os.path.relpath(row["name"], guests): row for row in found["modules"]}
    assert sorted(rows) == [
        *("add.wasm", os.path.join("below", "add.wasm"), "needs.wasm", "spin.wasm"),
        *("text.wat", "traps.wasm", "values.wasm"),
    ]
    row = rows["add.wasm"]
    assert row.pop("seconds") > 0
    assert row == {
        "name": str(guests / "add.wasm"),
        "bytes": len(wasm(ADD)),
        "tier": "optimized",
        "cached": False,
        "instantiated": True,
        "imports": [],
        "error": None,
    }
    assert rows["needs.wasm"]["imports"] == ["env.log", "wasi_snapshot_preview1.fd_write"]
    assert not rows["needs.wasm"]["instantiated"]


def test_load_goes_on_after_a_failure(guests: Path) -> None:
    (guests / "bad.wasm").write_bytes(b"\0asm\1\0\0\0\xff")
    (guests / "bad.wat").write_text("(module (nonsense))")
    (guests / "fails.wasm").write_bytes(wasm("(module (func $f unreachable) (start $f))"))
    found = document("load", guests, guests / "missing.wasm", "--concurrency", "1", code=1)

    assert found["failed"] == 4
    errors = {
        Path(row["name"]).name: row["error"]["type"] for row in found["modules"] if row["error"]
    }
    assert errors == {
        "bad.wasm": "CompileError",
        "bad.wat": "CompileError",
        "fails.wasm": "Trap",
        "missing.wasm": "FileNotFoundError",
    }


def test_load_shows_a_failure_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.wat").write_text("(module\n  (nonsense))")
    result = run("load", tmp_path)

    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    assert "1 failed" in result.stderr


def test_load_can_leave_out_instances(guests: Path) -> None:
    rows = document("load", guests, "--no-instantiate")["modules"]

    assert not any(row["instantiated"] for row in rows)
    assert "compiled only" in run("load", guests, "--no-instantiate").stdout


def test_load_of_an_empty_directory_fails(tmp_path: Path) -> None:
    result = run("load", tmp_path)

    assert result.exit_code == 1
    assert "no *.wasm" in result.stderr


# compile and cache


@pytest.fixture
def cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the commands a cache of their own, and an engine that uses it."""
    monkeypatch.setenv("ASYNCWASM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_compile_says_that_the_cache_is_off(guests: Path) -> None:
    result = run("compile", guests / "add.wasm")

    assert result.exit_code == 0
    assert result.stderr == "The cache is off: nothing was kept.\n"
    assert document("compile", guests / "add.wasm")["cache"] is None


def test_compile_fills_the_cache(guests: Path, cache_directory: Path) -> None:
    found = document("compile", guests / "add.wasm", guests / "text.wat", guests / "spin.wasm")

    assert found["cache"] == str(cache_directory)
    assert found["problem"] is None
    first = found["modules"][0]
    assert first.pop("seconds") > 0
    assert first == {
        "file": str(guests / "add.wasm"),
        "bytes": len(wasm(ADD)),
        "digest": aw.Module(wasm(ADD)).digest,
        "cached": False,
        "error": None,
    }
    # add.wasm and text.wat are the same module.
    assert document("cache", "info")["entries"] == 2


def test_compile_finds_what_is_in_the_cache(
    guests: Path, cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document("compile", guests / "add.wasm")
    use_new_engine(monkeypatch)

    assert "was in the cache" in run("compile", guests / "add.wasm").stdout


def test_compile_goes_on_after_a_failure(guests: Path, cache_directory: Path) -> None:
    (guests / "bad.wasm").write_bytes(b"\0asm\1\0\0\0\xff")
    found = document("compile", guests / "bad.wasm", guests / "no", guests / "add.wasm", code=1)

    types = [row["error"] and row["error"]["type"] for row in found["modules"]]
    assert types == ["CompileError", "FileNotFoundError", None]


@pytest.mark.skipif(sys.platform == "win32", reason="modes of Unix")
def test_cache_that_cannot_be_used_is_said(guests: Path, cache_directory: Path) -> None:
    cache_directory.mkdir(mode=0o750)
    cache_directory.chmod(0o750)

    assert run("compile", guests / "add.wasm").exit_code == 1
    assert "0750" in run("compile", guests / "add.wasm").stderr
    assert "0750" in document("cache", "info")["problem"]
    assert "0750" in run("cache", "info").stdout
    for command in ("prune", "clear"):
        result = run("cache", command)
        assert result.exit_code == 1
        assert "0750" in result.stderr


def test_cache_info_tells_how_much_there_is(guests: Path, cache_directory: Path) -> None:
    document("compile", guests / "add.wasm")
    found = document("cache", "info")

    assert found == {
        "directory": str(cache_directory),
        "problem": None,
        "entries": 1,
        "bytes": sum(
            path.stat().st_size for path in cache_directory.iterdir() if path.name != "key"
        ),
        "limit_bytes": aw.EngineConfig().cache_bytes,
    }
    assert str(cache_directory) in run("cache", "info").stdout


def test_cache_clear_removes_everything(guests: Path, cache_directory: Path) -> None:
    document("compile", guests / "add.wasm")
    size = document("cache", "info")["bytes"]

    assert document("cache", "clear") == {"removed_entries": 1, "removed_bytes": size}
    assert document("cache", "info")["entries"] == 0
    assert run("cache", "clear").stdout == "removed 0 compiled modules, 0 bytes\n"


def test_cache_prune_keeps_what_is_of_use(guests: Path, cache_directory: Path) -> None:
    document("compile", guests / "add.wasm")

    assert document("cache", "prune")["removed_entries"] == 0
    assert document("cache", "prune", "--limit-bytes", "1")["removed_entries"] == 1


def test_cache_prune_removes_what_another_engine_made(
    guests: Path, cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document("compile", guests / "add.wasm")
    (guests / "none.wasm").write_bytes(b"\0asm\1\0\0\0\xff" + bytes(2 << 20))
    assert run("compile", guests / "none.wasm").exit_code == 1  # the verdict is kept too
    monkeypatch.setattr(cache_face, "engine_version", lambda: "later")

    assert document("cache", "prune")["removed_entries"] == 1
    assert {path.suffix for path in cache_directory.iterdir()} == {""}  # the key is left


def test_cache_prune_removes_what_does_not_check_out(guests: Path, cache_directory: Path) -> None:
    document("compile", guests / "add.wasm")
    (entry,) = cache_directory.glob("*.entry")
    entry.write_bytes(entry.read_bytes() + b" ")

    assert document("cache", "prune")["removed_entries"] == 1


def test_cache_leaves_other_files_alone(guests: Path, cache_directory: Path) -> None:
    document("compile", guests / "add.wasm")
    (cache_directory / "letter.txt").write_text("dear reader")
    document("cache", "prune", "--limit-bytes", "1")
    document("cache", "clear")

    assert {path.name for path in cache_directory.iterdir()} == {"key", "letter.txt"}


def test_cache_that_is_off_is_empty() -> None:
    assert document("cache", "info")["directory"] is None
    assert run("cache", "info").stdout == "the cache is off\n"
    assert document("cache", "clear") == {"removed_entries": 0, "removed_bytes": 0}
    assert document("cache", "prune") == {"removed_entries": 0, "removed_bytes": 0}


# bench, validate, wat2wasm


def test_bench_measures_each_step(guests: Path) -> None:
    found = document("bench", guests / "add.wasm", "-n", "2")

    assert found.pop("repeat") == 2
    assert found.pop("tier") == "optimized"
    assert found.pop("bytes") == len(wasm(ADD))
    assert found.pop("file") == str(guests / "add.wasm")
    assert list(found) == ["validate", "compile", "instantiate"]
    for taken in found.values():
        assert 0 < taken["least_seconds"] <= taken["median_seconds"]


def test_bench_measures_the_baseline_compiler(guests: Path) -> None:
    result = run("bench", guests / "add.wasm", "-n", "1", "--tier", "baseline")

    assert result.exit_code == 0
    assert "baseline, median (least) of 1" in result.stdout


def test_bench_does_not_instantiate_what_needs_imports(guests: Path) -> None:
    assert document("bench", guests / "needs.wasm", "-n", "1")["instantiate"] is None
    assert "needs imports" in run("bench", guests / "needs.wasm", "-n", "1").stdout


def test_validate_tells_of_each_file(guests: Path) -> None:
    (guests / "bad.wasm").write_bytes(wasm(ADD)[:-3])
    files = [guests / "add.wasm", guests / "bad.wasm", guests / "text.wat", guests / "missing"]
    found = document("validate", *files, code=1)["files"]

    assert [row["file"] for row in found] == list(map(str, files))
    assert [row["valid"] for row in found] == [True, False, True, False]
    assert found[0]["error"] is None
    assert found[1]["error"]["type"] == "CompileError"
    assert found[1]["error"]["offset"] > 0
    assert found[3]["error"]["type"] == "FileNotFoundError"


def test_validate_prints_a_line_for_each_file(guests: Path) -> None:
    result = run("validate", guests / "add.wasm", guests / "spin.wasm")

    assert result.exit_code == 0
    assert result.stdout == "".join(
        f"{guests / name}: valid\n" for name in ("add.wasm", "spin.wasm")
    )


def test_wat2wasm_writes_beside_the_text(tmp_path: Path) -> None:
    (tmp_path / "add.wat").write_text(ADD)
    result = run("wat2wasm", tmp_path / "add.wat")

    assert result.exit_code == 0
    assert (tmp_path / "add.wasm").read_bytes() == wasm(ADD)
    assert result.stdout == f"{tmp_path / 'add.wasm'}: {len(wasm(ADD))} bytes\n"


def test_wat2wasm_writes_where_it_is_told(tmp_path: Path) -> None:
    found = document("wat2wasm", "-", "-o", tmp_path / "out", data=ADD.encode())

    assert (tmp_path / "out").read_bytes() == wasm(ADD)
    assert found == {
        "file": "-",
        "output": str(tmp_path / "out"),
        "bytes": len(wasm(ADD)),
        "digest": aw.Module(wasm(ADD)).digest,
    }


def test_wat2wasm_writes_to_standard_output() -> None:
    assert run("wat2wasm", "-", "-o", "-", data=ADD.encode()).stdout_bytes == wasm(ADD)


@pytest.mark.parametrize(
    "arguments", [["-"], ["-", "-o", "-", "--json"], ["here.wasm"], ["a.wat", "-o", "a.wat"]]
)
def test_wat2wasm_refuses_what_would_lose_something(arguments: list[str]) -> None:
    assert run("wat2wasm", *arguments, data=b"").exit_code == 2


def test_wat2wasm_points_at_the_mistake(tmp_path: Path) -> None:
    (tmp_path / "bad.wat").write_text("(module\n  (nonsense))")
    result = run("wat2wasm", tmp_path / "bad.wat")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert "nonsense" in result.stderr
    assert not (tmp_path / "bad.wasm").exists()

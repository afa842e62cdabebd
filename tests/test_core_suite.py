"""
Tests of the official suite's runner, and the official suite itself.

A runner that cannot fail is worthless: most of what follows are scripts with a wrong
expectation. With ``--core-suite PATH`` (the folder test/core of the specification's
repository) every script found there is a test.
"""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncwasm as aw
from tests.core_suite import (
    Face,
    Outcome,
    Report,
    ScriptError,
    Shortfall,
    Tier,
    find_scripts,
    parse_script,
    run_file,
    run_script,
)
from tests.core_suite.__main__ import main
from tests.core_suite._exact import Probe, wrap
from tests.core_suite._reader import Atom, Form, String, Text, read
from tests.core_suite._report import from_json, summary, table, to_json
from tests.core_suite._runner import Session
from tests.core_suite._samples import FUNCTIONS, GOOD, WRONG
from tests.core_suite._script import Action, InstanceForm, ModuleForm, Registration
from tests.core_suite._spectest import Spectest
from tests.core_suite._values import (
    Either,
    Host,
    Lane,
    Null,
    Number,
    Pattern,
    Reference,
    host_reference,
    mismatch,
    parse_constant,
    parse_float,
    parse_integer,
    parse_pattern,
    to_python,
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of every script of the suite, if there is one."""
    if "suite_script" not in metafunc.fixturenames:
        return
    # The option is the whole test suite's; without it, or before it exists, there is none.
    given_path = metafunc.config.getoption("--core-suite", default=None)
    if given_path is None:
        skip = pytest.mark.skip(reason="needs --core-suite PATH")
        metafunc.parametrize("suite_script", [pytest.param(None, marks=skip, id="none")])
        return
    path = Path(str(given_path)).resolve()
    metafunc.parametrize("suite_script", [(path, file) for file in find_scripts(path)], ids=_id)


def _id(value: tuple[Path, str]) -> str:
    return value[1]


def test_official_script(suite_script: tuple[Path, str]) -> None:
    report = run_file(*suite_script)

    assert report.outcomes
    assert report.lines() == []


def items(text: str) -> list[object]:
    """Return what the only form in *text* holds, as plain Python."""
    (form,) = read(Text(text))
    assert isinstance(form, Form)
    return [_plain(item) for item in form.items]


def _plain(node: Atom | String | Form) -> object:
    if isinstance(node, Form):
        return [_plain(item) for item in node.items]
    return node.text if isinstance(node, Atom) else node.data


def node(text: str) -> Form:
    """Return the only form in *text*."""
    (form,) = read(Text(text))
    assert isinstance(form, Form)
    return form


def run(
    text: str,
    *,
    tier: Tier | None = None,
    face: Face = "sync",
    shortfalls: tuple[Shortfall, ...] = (),
) -> Report:
    """Run the script *text*."""
    return run_script(parse_script(text), tier=tier, face=face, shortfalls=shortfalls)


# The reader.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("(a b 0x1_0)", ["a", "b", "0x1_0"], id="words"),
        pytest.param("(a;;b)\n c)", ["a", "c"], id="line-comment"),
        pytest.param("(a;;b)\r c)", ["a", "c"], id="line-comment-ends-at-return"),
        pytest.param('(a(; x (; ) ;) " ;)b)', ["a", "b"], id="nested-block-comment"),
        pytest.param("(a(;;)b)", ["a", "b"], id="empty-block-comment"),
        pytest.param("(a(;;;)b)", ["a", "b"], id="block-comment-with-semicolon"),
        pytest.param('(a "b" (c "d"e))', ["a", b"b", ["c", b"d", "e"]], id="nested"),
        pytest.param('((@x) a (@y ")" (z) ;[}) b (@"s" 1))', ["a", "b"], id="annotations"),
        pytest.param("(a \u00a0b)", ["a", "\u00a0b"], id="only-ascii-space-is-space"),
        pytest.param("()", [], id="empty"),
    ],
)
def test_reader_sees_forms(text: str, expected: list[object]) -> None:
    assert items(text) == expected


@pytest.mark.parametrize(
    ("literal", "expected"),
    [
        ("", b""),
        (r"\t\n\r\"\'\\", b"\t\n\r\"'\\"),
        (r"\00\fF\e2a", b"\x00\xff\xe2a"),
        (r"\u{20ac}\u{1_f600}", "\u20ac\U0001f600".encode()),
        ("\u20ac;;(;", b"\xe2\x82\xac;;(;"),
    ],
)
def test_string_is_bytes(literal: str, expected: bytes) -> None:
    assert items(f'("{literal}")') == [expected]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("(a)\n(b (c)", 2, "unclosed parenthesis"),
        ("\n\n(a))", 3, "unexpected )"),
        ("(a (; (; ;)", 1, "unclosed comment"),
        ('(a "b', 1, "unclosed string"),
        ('(a "b\n")', 1, "unclosed string"),
        ("(@a (b)", 1, "unclosed parenthesis"),
        (r'(a "\q")', 1, "unknown escape"),
        (r'(a "\u{110000}")', 1, "range"),
    ],
)
def test_reader_refuses_what_does_not_close(text: str, line: int, problem: str) -> None:
    with pytest.raises(ScriptError, match=re.escape(problem)) as caught:
        read(Text(text))

    assert caught.value.line == line


def test_a_form_keeps_its_exact_source() -> None:
    source = '(module (; c ;) (@a "x")\n  (func $f) ;; )\n)'
    text = Text(f"\n {source}\n")
    (form,) = read(text)
    assert isinstance(form, Form)

    assert text.cut(form) == source
    assert text.line(form.start) == 2
    assert text.line(form.end) == 4


def test_nodes_print_as_they_are_written() -> None:
    assert repr(read(Text('(a "b" (c))'))) == "[(a b'b' (c))]"


# Scripts.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(module)", ModuleForm(text="(module)")),
        ("(module $m (func))", ModuleForm("$m", "(module $m (func))")),
        ("((@a) module $m)", ModuleForm("$m", "((@a) module $m)")),
        (
            "(module definition $m (func))",
            ModuleForm("$m", "(module            $m (func))", definition=True),
        ),
        (r'(module binary "\00a" "sm")', ModuleForm(binary=b"\0asm")),
        (
            '(module definition $m binary "a")',
            ModuleForm("$m", binary=b"a", definition=True),
        ),
        ('(module quote "(func" ")")', ModuleForm(text="(func)", quoted=True)),
        (r'(module quote "(@a \ff)")', ModuleForm(binary=b"(@a \xff)", quoted=True)),
        ("(module instance $i $m)", InstanceForm("$i", "$m")),
        ("(module instance $m)", InstanceForm(None, "$m")),
        ("(module instance)", InstanceForm()),
        ('(register "a" $i)', Registration("a", "$i")),
        ('(register "a")', Registration("a")),
        ('(get $i "g")', Action("get", "g", "$i")),
        (
            '(invoke "f" (i32.const 1) (ref.null func))',
            Action("invoke", "f", None, (Number("i32", (Lane(32, 1),)), Null())),
        ),
    ],
)
def test_command_is_read(text: str, expected: object) -> None:
    (command,) = parse_script(text)

    assert command.subject == expected
    assert command.source == text


@pytest.mark.parametrize(
    "keyword", ["invalid", "malformed", "invalid_custom", "malformed_custom", "unlinkable", "trap"]
)
def test_assertion_of_a_module_is_read(keyword: str) -> None:
    (command,) = parse_script(f'\n(assert_{keyword} (module (func)) "why")')

    assert (command.keyword, command.line, command.message) == (f"assert_{keyword}", 2, "why")
    assert command.subject == ModuleForm(text="(module (func))")


def test_assertion_of_an_instance_is_read() -> None:
    (command,) = parse_script('(assert_unlinkable (module instance $m) "why")')

    assert command.subject == InstanceForm(None, "$m")


def test_expected_results_are_read() -> None:
    (command,) = parse_script('(assert_return (get "g") (either (ref.i31) (ref.null)) (ref))')

    assert command.expected == (Either((Reference("i31"), Null())), Reference("ref"))


def test_bare_fields_are_one_module() -> None:
    text = ';; fields\n(func) (memory 0) (func (export "f"))'
    (command,) = parse_script(text)

    assert command.subject == ModuleForm(text=text)
    assert command.line == 2


def test_comment_inside_a_command_is_read_over() -> None:
    (command,) = parse_script("( ;;c\nmodule;;c\n)")

    assert command.keyword == "module"


@pytest.mark.parametrize(
    "text",
    [
        "word",
        "()",
        "(frobnicate)",
        '(assert_frobnicate (module) "x")',
        "(assert_invalid (module))",
        '(assert_invalid (invoke "f") "x")',
        "(assert_return (module) (i32.const 1))",
        '(assert_return "f")',
        '(assert_return (call "f"))',
        '(assert_exception (invoke "f") "x")',
        '(get "g" (i32.const 1))',
        "(module instance $a $b $c)",
        '(module binary "a" b)',
        '(invoke "f" 1)',
        '(invoke "f" (i32.const nan))',
        '(invoke "f" (f32.const nan:canonical))',
        '(invoke "f" (ref.func))',
        '(invoke "f" (i32.const (i32.const 1)))',
        '(invoke "f" (v128.const i8x16 1 2))',
        '(invoke "f" (v128.const i9x9 1))',
        '(invoke "f" (i32 1))',
        '(invoke "f" (ref.extern 1 2))',
        '(register "a" $b "c")',
    ],
)
def test_script_is_refused(text: str) -> None:
    with pytest.raises(ScriptError, match=r"^line 3: "):
        parse_script(f";;\n\n{text}")


def test_script_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(ScriptError, match="line 2: not UTF-8"):
        parse_script(b"(module)\n;; \xff\n")


def test_the_assembler_still_refuses_confusing_text() -> None:
    """If it no longer does, the script reader need not escape such characters."""
    with pytest.raises(aw.CompileError):
        aw.wat2wasm('(module (func (export "\u202e")))')


def test_names_may_hold_confusing_text() -> None:
    report = run('(module (func (export "\u202e")))\n(assert_return (invoke "\u202e"))')

    assert report.lines() == []


# Values.


@pytest.mark.parametrize(
    ("word", "width", "bits"),
    [
        ("0", 8, 0),
        ("+1", 32, 1),
        ("-1", 8, 0xFF),
        ("255", 8, 0xFF),
        ("-0x8000_0000", 32, 0x8000_0000),
        ("0xffff_ffff_ffff_ffff", 64, 2**64 - 1),
        ("1_000", 16, 1000),
    ],
)
def test_integer_is_bits(word: str, width: int, bits: int) -> None:
    assert parse_integer(word, width) == bits


@pytest.mark.parametrize("word", ["", "-", "x", "256", "-129", "0x", "_1", "+ 1", "1.0", "0x_1"])
def test_no_integer_of_eight_bits(word: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_integer(word, 8)


@pytest.mark.parametrize(
    ("word", "width", "bits"),
    [
        ("0", 32, 0),
        ("-0.0", 32, 0x8000_0000),
        ("1", 32, 0x3F80_0000),
        ("-1.5e0", 32, 0xBFC0_0000),
        ("0x1.8p+0", 32, 0x3FC0_0000),
        ("0x1.fffffep127", 32, 0x7F7F_FFFF),
        ("1e38", 32, 0x7E96_7699),
        ("0x1p-149", 32, 1),
        ("0x1p-150", 32, 0),
        ("0x1.8p-150", 32, 1),
        ("0x1.fffffcp-127", 32, 0x007F_FFFF),
        ("0x1.fffffffp-127", 32, 0x0080_0000),
        # Rounded to a double first, this would be a tie and go the other way.
        ("0x1.00000100000000001p0", 32, 0x3F80_0001),
        ("0x1.000001p0", 32, 0x3F80_0000),
        ("0x1.000003p0", 32, 0x3F80_0002),
        ("inf", 32, 0x7F80_0000),
        ("-inf", 64, 0xFFF0_0000_0000_0000),
        ("nan", 32, 0x7FC0_0000),
        ("-nan:0x20_0000", 32, 0xFFA0_0000),
        ("nan:0x1", 64, 0x7FF0_0000_0000_0001),
        ("1_0.2_5e0_1", 64, 0x4059_A000_0000_0000),
        ("0xA.p0", 64, 0x4024_0000_0000_0000),
        ("4.9e-324", 64, 1),
    ],
)
def test_float_is_bits(word: str, width: int, bits: int) -> None:
    assert parse_float(word, width) == bits


@pytest.mark.parametrize(
    "word", ["", ".5", "x", "0x1p128", "3.5e38", "nan:0x0", "nan:0x80_0000", "0x1.ffffffp127"]
)
def test_no_float_of_32_bits(word: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_float(word, 32)


@given(st.floats(allow_nan=False))
def test_float_literals_agree_with_python(value: float) -> None:
    (bits,) = struct.unpack("<Q", struct.pack("<d", value))

    assert parse_float(repr(value), 64) == bits
    assert parse_float(value.hex(), 64) == bits


@given(st.floats(allow_nan=False, width=32))
def test_single_float_literals_agree_with_python(value: float) -> None:
    (bits,) = struct.unpack("<I", struct.pack("<f", value))

    assert parse_float(repr(value), 32) == bits
    assert parse_float(value.hex(), 32) == bits


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(i32.const 0xffff_ffff)", -1),
        ("(i64.const 0x8000_0000_0000_0000)", -(2**63)),
        ("(f32.const 0.1)", 0.10000000149011612),
        ("(f64.const 0.1)", 0.1),
        ("(v128.const i8x16 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 -1)", bytes([*range(15), 255])),
        ("(v128.const i32x4 1 0x0200 -1 0)", bytes.fromhex("0100000000020000ffffffff00000000")),
        ("(v128.const f64x2 1.0 -0)", bytes.fromhex("000000000000f03f0000000000000080")),
        ("(v128.const f32x4 1 nan nan:0x1 0)", bytes.fromhex("0000803f0000c07f0100807f00000000")),
        ("(ref.null extern)", None),
        ("(ref.extern 3)", host_reference(3)),
        ("(ref.host 3)", host_reference(3)),
    ],
)
def test_constant_as_python(text: str, expected: object) -> None:
    value = to_python(parse_constant(node(text)))

    assert value == expected
    assert type(value) is type(expected)


def bits_of(value: object) -> int:
    """Return the bits of a Python float."""
    assert isinstance(value, float)
    (bits,) = struct.unpack("<Q", struct.pack("<d", value))
    assert isinstance(bits, int)
    return bits


def test_nan_keeps_sign_and_payload_as_python() -> None:
    single = to_python(parse_constant(node("(f32.const -nan:0x400001)")))
    double = to_python(parse_constant(node("(f64.const -nan:0x1)")))

    assert bits_of(single) == 0xFFF8_0000_2000_0000
    assert bits_of(double) == 0xFFF0_0000_0000_0001


def kind_of(value: object) -> str:
    """Stand in for the probe: references here are the names of their kinds."""
    return str(value)


NAN = float("nan")
SIGNALLING = struct.unpack("<d", struct.pack("<Q", 0x7FF0_0000_0000_0001))[0]
# A NaN whose payload needs more than the 23 bits of an f32.
LONG_NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_0001))[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(i32.const -1)", -1),
        ("(i32.const 0xffffffff)", -1),
        ("(i64.const 0x8000000000000000)", -(2**63)),
        ("(f32.const 0.1)", 0.10000000149011612),
        ("(f32.const inf)", float("inf")),
        ("(f32.const nan)", NAN),
        ("(f32.const nan:canonical)", -NAN),
        ("(f32.const nan:arithmetic)", NAN),
        ("(f64.const nan:canonical)", -NAN),
        ("(f64.const nan:arithmetic)", LONG_NAN),
        ("(f64.const nan:0x1)", SIGNALLING),
        ("(v128.const i64x2 1 -1)", b"\1" + bytes(7) + b"\xff" * 8),
        (
            "(v128.const f32x4 nan:canonical nan:arithmetic 0 -0)",
            bytes.fromhex("0000c0ff0100c07f0000000000000080"),
        ),
        ("(ref.null)", None),
        ("(ref.null func)", None),
        ("(ref.extern 7)", host_reference(7)),
        ("(ref)", "func"),
        ("(ref.eq)", "array"),
        ("(ref.i31)", "i31"),
        ("(ref.struct)", "struct"),
        ("(ref.array)", "array"),
        ("(ref.func)", "func"),
        ("(ref.extern)", "host"),
        ("(either (i32.const 1) (i32.const 2))", 2),
    ],
)
def test_result_matches(text: str, value: object) -> None:
    assert mismatch(parse_pattern(node(text)), value, kind_of) == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(i32.const 1)", 2),
        ("(i32.const 1)", True),
        ("(i32.const 1)", 1.0),
        ("(i32.const 1)", None),
        ("(i32.const 0xffffffff)", 0xFFFF_FFFF),
        ("(f64.const 0)", -0.0),
        ("(f64.const 1)", 1),
        ("(f64.const 0.1)", 0.10000000000000002),
        ("(f64.const nan:canonical)", LONG_NAN),
        ("(f64.const nan:arithmetic)", SIGNALLING),
        ("(f64.const nan:arithmetic)", float("inf")),
        ("(f64.const nan)", -NAN),
        ("(f32.const 0.1)", 0.1),
        ("(f32.const nan)", -NAN),
        ("(f32.const nan:canonical)", 1.0),
        ("(f32.const nan:arithmetic)", LONG_NAN),
        ("(f32.const inf)", float("-inf")),
        ("(v128.const i64x2 1 -1)", bytes(16)),
        ("(v128.const i64x2 0 0)", bytes(15)),
        ("(v128.const i64x2 0 0)", 0),
        ("(v128.const f64x2 nan:canonical 0)", bytes.fromhex("01") + bytes(15)),
        ("(ref.null)", 0),
        ("(ref.extern 7)", host_reference(8)),
        ("(ref.extern 7)", None),
        ("(ref)", None),
        ("(ref.eq)", "func"),
        ("(ref.i31)", "struct"),
        ("(ref.func)", "host"),
        ("(ref.extern)", "func"),
        ("(ref.exn)", "host"),
        ("(either (i32.const 1) (i32.const 2))", 3),
    ],
)
def test_result_does_not_match(text: str, value: object) -> None:
    assert mismatch(parse_pattern(node(text)), value, kind_of) != ""


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (Number("f32", (Lane(32, nan="canonical"),)), "f32 nan:canonical"),
        (Number("i32", (Lane(32, 10),)), "i32 0x0000000a"),
        (Either((Null(), Host(1), Reference("eq"))), "null or host reference 1 or reference (eq)"),
    ],
)
def test_pattern_prints(pattern: Pattern, text: str) -> None:
    assert str(pattern) == text


# The runner: scripts that pass.


@pytest.mark.parametrize("face", ["sync", "async"])
def test_good_script_passes(face: Face) -> None:
    report = run(GOOD, face=face)

    assert report.lines() == []
    assert {outcome.status for outcome in report.outcomes} == {"passed"}
    assert len(report.outcomes) == len(parse_script(GOOD))


def test_tier_can_be_chosen() -> None:
    report = run('(module (func (export "f")))(assert_return (invoke "f"))', tier="optimized")

    assert report.lines() == []


def test_host_functions_see_what_the_guest_passes() -> None:
    with aw.Engine(aw.EngineConfig()) as engine, aw.Store(engine=engine) as store:
        session = Session(engine, store)
        for command in parse_script(GOOD)[:2]:
            session.execute(command)
        session.close()

        assert session.spectest.printed == [(7, 0.10000000149011612)]


def test_bare_fields_run() -> None:
    assert run('(func (export "f"))').lines() == []


# The runner: scripts that must fail, each of them at its last command.


@pytest.mark.parametrize(("command", "detail"), WRONG)
@pytest.mark.parametrize("face", ["sync", "async"])
def test_wrong_expectation_fails(command: str, detail: str, face: Face) -> None:
    report = run(f"{FUNCTIONS}\n{command}", face=face)

    (failure,) = report.failures
    assert failure == report.outcomes[-1]
    assert detail in failure.detail


def test_failures_name_file_and_line() -> None:
    report = run('(module)\n\n(invoke "f")')

    assert report.lines() == ["script.wast:3: invoke: there is no export 'f'"]


def test_commands_on_a_module_that_failed_fail() -> None:
    report = run(
        """(module $good (func (export "f")))
           (module $bad (func (drop)))
           (invoke "f")
           (invoke $good "f")
           (register "bad" $bad)
           (module instance $bad)
           (module (import "bad" "f" (func)))"""
    )

    assert [outcome.line for outcome in report.failures] == [2, 3, 5, 6, 7]
    assert "the module of line 2 is not there" in report.failures[1].detail


# Shortfalls.

SHORT = Shortfall("script.wast", '"f"', "the engine cannot")


def test_known_shortfall_is_no_failure() -> None:
    report = run('(module)\n(invoke "f")', shortfalls=(SHORT,))

    assert [outcome.status for outcome in report.outcomes] == ["passed", "known"]
    assert report.failures == []


def test_what_follows_from_a_known_shortfall_is_known() -> None:
    short = Shortfall("script.wast", 1, "the engine cannot")
    report = run('(module (func (drop)))\n(invoke "f")\n(register "m")', shortfalls=(short,))

    assert [outcome.status for outcome in report.outcomes] == ["known", "known", "known"]


def test_shortfall_that_passes_is_a_failure() -> None:
    report = run('(module (func (export "f")))\n(module)', shortfalls=(SHORT,))

    (failure,) = report.failures
    assert failure.detail == "passes, but is listed as a shortfall: the engine cannot"


def test_shortfall_that_is_no_command_is_a_failure() -> None:
    report = run("(module)", shortfalls=(SHORT,))

    (failure,) = report.failures
    assert failure.keyword == "shortfall"
    assert "no command is" in failure.detail


@pytest.mark.parametrize(
    ("shortfall", "tier"),
    [
        (Shortfall("other.wast", '"f"', "x"), None),
        (Shortfall("ipt.wast", '"f"', "x"), None),
        (Shortfall("script.wast", '"f"', "x", ("baseline",)), "optimized"),
        (Shortfall("script.wast", '"f"', "x", ("baseline",)), None),
    ],
)
def test_shortfall_of_another_script_or_tier_does_not_count(
    shortfall: Shortfall, tier: Tier | None
) -> None:
    report = run('(module)\n(invoke "f")', tier=tier, shortfalls=(shortfall,))

    assert [outcome.line for outcome in report.failures] == [2]


# Looking from inside wasm.


@pytest.mark.parametrize(
    ("parameters", "results"),
    [
        ((), ()),
        (("f32", "i64", "exnref"), ("f32", "(ref func)", "(ref exn)", "v128")),
        (("nullexnref", "(ref null any)"), ("nullexnref", "externref")),
    ],
)
def test_wrapper_is_a_valid_module(parameters: tuple[str, ...], results: tuple[str, ...]) -> None:
    text = wrap(aw.FunctionType(parameters, results))

    assert aw.validate(aw.wat2wasm(text))


def test_probe_names_what_is_no_reference_of_the_guest() -> None:
    with aw.Engine(aw.EngineConfig()) as engine, aw.Store(engine=engine) as store:
        probe = Probe(store, engine)

        assert probe.kind_of(2**30) == "out of range for i31"
        assert probe.kind_of(True) == "bool"
        assert probe.kind_of(Path()) == type(Path()).__name__


def test_host_functions_refuse_other_types() -> None:
    keep = Spectest()["print_i32"]
    assert callable(keep)

    with pytest.raises(AssertionError, match="expected"):
        keep(1.0)


# Reports and the command line.

REPORTS = [
    Report("a.wast", [Outcome("module", 1, "passed"), Outcome("assert_trap", 2, "known", "x")], 1),
    Report("dir/b.wast", [Outcome("assert_trap", 7, "failed", "y"), Outcome("odd", 8, "passed")]),
]


def test_table_counts() -> None:
    assert table(REPORTS).splitlines() == [
        "file        module   trap  other    all  seconds",
        "a.wast           1    0~1      .    1~1      1.0",
        "dir/b.wast       .    0-1      1    1-1      0.0",
        "total            1  0-1~1      1  2-1~1      1.0",
    ]
    assert summary(REPORTS) == (
        "2 scripts, 4 commands: 2 passed, 1 failed in 1 scripts, 1 known shortfalls"
    )


def test_reports_travel_as_json() -> None:
    assert from_json(to_json(REPORTS)) == REPORTS


@pytest.mark.parametrize("text", ["", "1", "[1]", '[{"file": "a"}]', "[[]]"])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_json(text)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Return a suite of two scripts, one of which fails."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "good.wast").write_text("(module)")
    (tmp_path / "sub" / "bad.wast").write_text('(module)\n(invoke "f")')
    (tmp_path / "sub" / "notes.txt").write_text("no script")
    return tmp_path


def test_scripts_are_found(suite: Path) -> None:
    assert find_scripts(suite) == ["good.wast", "sub/bad.wast"]
    assert find_scripts(suite, ["sub/"]) == ["sub/bad.wast"]
    assert find_scripts(suite, ["nothing"]) == []
    assert find_scripts(suite / "good.wast") == ["good.wast"]


def test_script_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "broken.wast").write_text("(module)\n(module")

    assert run_file(tmp_path, "broken.wast").lines() == [
        "broken.wast:2: script: unclosed parenthesis"
    ]


def test_command_prints_failures(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(suite), "--jobs", "0", "-v"])
    output = capsys.readouterr()

    assert code == 1
    assert "sub/bad.wast:2: invoke: there is no export 'f'" in output.out.splitlines()
    assert output.out.splitlines()[-1].startswith("2 scripts, 3 commands: 2 passed, 1 failed")
    assert output.err.startswith("good.wast: ok (")
    assert "sub/bad.wast: 1 FAILED (" in output.err


def test_command_succeeds(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(suite), "good", "--jobs", "0"]) == 0
    assert main([str(suite / "good.wast"), "--jobs", "0", "--tier", "optimized"]) == 0
    assert "FAILED" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["missing"], [".", "no-such-script"]])
def test_command_without_scripts_is_misuse(
    suite: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(suite / arguments[0]), *arguments[1:]])

    assert caught.value.code == 2
    assert "script" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["baseline", "optimized"])
def test_command_runs_scripts_in_processes(
    suite: Path, tier: Tier, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([str(suite), "--jobs", "2", "--tier", tier, "--json"])
    reports = from_json(capsys.readouterr().out)

    assert code == 1
    assert [(report.file, len(report.failures)) for report in reports] == [
        ("good.wast", 0),
        ("sub/bad.wast", 1),
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="needs an executable script")
@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("echo first >&2; echo last >&2; exit 3", "the process ended with code 3: last"),
        ("kill -ABRT $$", "the process ended with code -6: nothing on stderr"),
        ("exec sleep 60", "did not end within 0.05 seconds"),
        ("echo []", "the process printed no report"),
    ],
    ids=["exit", "abort", "hang", "silent"],
)
def test_process_that_dies_costs_one_script(
    suite: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    body: str,
    detail: str,
) -> None:
    python = suite / "python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    timeout = "0.05" if "sleep" in body else "60"
    code = main([str(suite), "good", "--jobs", "1", "--timeout", timeout])

    assert code == 1
    assert f"good.wast:0: process: {detail}" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="needs an executable script")
def test_process_that_dies_after_its_report_keeps_it(
    suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python = suite / "python"
    python.write_text(f"#!/bin/sh\necho '{to_json(REPORTS[:1])}'; exit 7\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    main([str(suite), "good", "--jobs", "1", "--json"])
    (report,) = from_json(capsys.readouterr().out)

    assert report.outcomes[:-1] == REPORTS[0].outcomes
    assert "code 7" in report.failures[0].detail

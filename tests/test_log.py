"""Events: silent until the application listens, then with their facts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import asyncwasm as aw

from .support import run_script

# Makes every event happen once; a release of the same bytes is compiled for each run.
EVERYTHING = """
import warnings
warnings.simplefilter("ignore")
import asyncio
import asyncwasm as aw
from asyncwasm._objects import guard

aw.configure_sync_guard(limit_bytes=0)
guard.BLOCKING_SECONDS = -1.0
wasm = aw.wat2wasm('''(module (memory (export "m") 1) (data (i32.const 0) "the guest's secret")
  (func (export "boom") unreachable) (func $r (export "deep") (call $r)) (func (export "f")))''')
instance = aw.Instance(aw.Module(wasm))
for name in ("boom", "deep"):
    try:
        instance.exports[name]()
    except aw.Trap:
        pass
    try:
        asyncio.run(instance.exports[name].call_async())
    except aw.Trap:
        pass
async def main():
    await aw.instantiate(aw.wat2wasm("(module (func))"))
    instance.exports.f()
asyncio.run(main())
instance.close()
"""
NAMES = {"module_compiled", "instance_created", "guest_trapped", "large_module", "blocking_call"}


def listening(setup: str) -> str:
    """Return a script that says how to listen, and then makes every event happen."""
    lines = [line.strip() for line in setup.strip().splitlines()]
    return "\n".join(lines) + EVERYTHING


def test_nothing_is_written_by_default() -> None:
    done = run_script(EVERYTHING)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_is_imported_for_nobody() -> None:
    done = run_script(EVERYTHING + "import sys\nprint('structlog' in sys.modules)")

    assert done.stdout == "False\n", done.stderr


def test_importing_structlog_alone_stays_silent() -> None:
    """It prints to stdout until it is configured, and another library may have imported it."""
    done = run_script(listening("import structlog"))

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_events_go_to_structlog_when_it_is_configured() -> None:
    done = run_script(
        listening("""
            import structlog, sys
            structlog.configure(processors=[structlog.processors.JSONRenderer()],
                logger_factory=structlog.PrintLoggerFactory(file=sys.stderr))
        """)
    )

    assert done.stdout == ""
    for name in NAMES:
        assert f'"event": "asyncwasm.{name}"' in done.stderr


def test_structlog_decides_on_the_level() -> None:
    done = run_script(
        listening("""
            import logging, structlog
            structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
        """)
    )

    assert "asyncwasm.module_compiled" in done.stdout
    assert "asyncwasm.instance_created" not in done.stdout


def test_events_go_to_logging_when_it_is_configured() -> None:
    done = run_script(
        listening("""
            import logging
            logging.basicConfig(level=logging.DEBUG, format="%(name)s %(message)s")
        """)
    )

    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("asyncio")]
    assert {line.split()[-1] for line in lines} == {f"asyncwasm.{name}" for name in NAMES}
    assert {line.split()[0] for line in lines} == {"asyncwasm"}


def test_logging_that_is_configured_shows_warnings_only() -> None:
    done = run_script(listening("import logging\nlogging.basicConfig(format='%(message)s')"))

    assert set(done.stderr.split()) == {"asyncwasm.large_module", "asyncwasm.blocking_call"}


def test_an_event_is_sent_once_when_both_are_configured() -> None:
    """structlog has its own way to logging; whoever configures it has decided on that."""
    done = run_script(
        listening("""
            import logging, structlog, sys
            logging.basicConfig(level=logging.INFO, stream=sys.stderr)
            structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stdout))
        """)
    )

    assert done.stderr == ""
    assert done.stdout.count("asyncwasm.large_module") == 2  # Module() and Instance()


def test_bytes_of_the_guest_are_never_logged() -> None:
    done = run_script(
        listening("""
            import structlog
            structlog.configure(processors=[structlog.processors.JSONRenderer()])
        """)
    )

    assert "asyncwasm.module_compiled" in done.stdout
    assert "secret" not in done.stdout + done.stderr


# the facts

Records = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def records() -> Iterator[Records]:
    """Return the facts of the events of a name that were logged in the test."""
    kept: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record)

    logger = logging.getLogger("asyncwasm")
    handler, level = Handler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lambda name: [vars(each) for each in kept if each.msg == f"asyncwasm.{name}"]
    logger.removeHandler(handler)
    logger.setLevel(level)


def fresh(text: str) -> bytes:
    """Return a module that no other test has compiled."""
    fresh.count += 1  # type: ignore[attr-defined]  # a counter of the function
    mark = f'(@custom "fresh" "{fresh.count}")'  # type: ignore[attr-defined]
    return aw.wat2wasm(f"(module {mark} {text})")


fresh.count = 0  # type: ignore[attr-defined]


def test_module_compiled_tells_size_time_and_tier(records: Records) -> None:
    module = aw.Module(fresh(""))

    (facts,) = records("module_compiled")
    assert facts["levelno"] == logging.INFO
    assert facts["bytes"] == module.byte_length
    assert facts["digest"] == module.digest
    assert facts["tier"] == "optimized"
    assert facts["seconds"] > 0


def test_module_is_compiled_and_logged_once(records: Records) -> None:
    binary = fresh("")

    modules = [aw.Module(binary), aw.Module(binary)]

    assert len(records("module_compiled")) == 1
    assert modules[0].digest == modules[1].digest


@pytest.mark.parametrize(
    "text", ["", '(func (export "f"))', "(func $f) (start $f)"], ids=["", "exports", "start"]
)
async def test_instance_created_tells_which_and_how_long(text: str, records: Records) -> None:
    binary = fresh(text)

    module, _ = await aw.instantiate(binary)
    aw.Instance(module)

    events = records("instance_created")
    assert [each["levelno"] for each in events] == [logging.DEBUG] * 2
    assert [each["digest"] for each in events] == [module.digest] * 2
    assert all(each["seconds"] > 0 for each in events)


def test_failed_instantiation_is_not_logged_as_created(records: Records) -> None:
    with pytest.raises(aw.Trap):
        aw.Instance(aw.Module(fresh("(func $f unreachable) (start $f)")))

    assert records("instance_created") == []
    (facts,) = records("guest_trapped")
    assert facts["what"] == "instantiation"


async def test_guest_trapped_tells_what_and_why(records: Records) -> None:
    exports = aw.Instance(
        aw.Module(
            fresh("""(func (export "boom") unreachable) (func $deep (export "deep") (call $deep))
              (func (export "zero") (result i32) (i32.div_s (i32.const 1) (i32.const 0)))""")
        )
    ).exports

    for function in exports.values():
        for awaited in (False, True):
            with pytest.raises(aw.Trap):
                await function.call_async() if awaited else function()

    events = records("guest_trapped")
    assert [each["code"] for each in events] == [
        code
        for code in ("UNREACHABLE", "STACK_OVERFLOW", "INTEGER_DIVISION_BY_ZERO")
        for _ in range(2)
    ]
    assert [each["what"] for each in events] == [
        f"function '{index}'" for index in range(3) for _ in range(2)
    ]


def test_python_exception_that_passes_through_is_no_trap(records: Records) -> None:
    def fail() -> None:
        raise KeyError("mine")

    module = aw.Module(fresh('(import "m" "f" (func $f)) (func (export "g") (call $f))'))
    instance = aw.Instance(module, {"m": {"f": fail}})

    with pytest.raises(KeyError):
        instance.exports.g()

    assert records("guest_trapped") == []


def test_out_of_fuel_is_logged_as_a_trap(records: Records) -> None:
    module = aw.Module(fresh('(func (export "spin") (loop (br 0)))'))
    instance = aw.Instance(module, limits=aw.Limits(fuel=10))

    with pytest.raises(aw.Interrupted):
        instance.exports.spin()

    assert [each["code"] for each in records("guest_trapped")] == ["OUT_OF_FUEL"]

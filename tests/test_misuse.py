"""
What would crash the process, each in a process of its own: exit code 0 and an exception.

Each script prints what it saw; a native abort would leave a negative exit code.
"""

from __future__ import annotations

from functools import cache

import pytest

import asyncwasm as aw

from .support import CALLER, SPIN, run_script

PRELUDE = f"""
import asyncio, gc, os, sys, threading, time
import anyio
import asyncwasm as aw
CALLER = aw.wat2wasm('''{CALLER}''')
SPIN = aw.wat2wasm('''{SPIN}''')
def caller(f):
    return aw.Instance(aw.Module(CALLER), {{"host": {{"f": f}}}})
def raises(kind, action):
    try:
        action()
    except kind as exc:
        print(type(exc).__name__)
        return exc
    raise AssertionError("did not raise")
"""

SCRIPTS = {
    "call after close": (
        """
        instance = caller(lambda x: x)
        call, memory = instance.exports.call, instance.exports.memory
        instance.close()
        instance.close()
        raises(anyio.ClosedResourceError, lambda: call(1))
        raises(anyio.ClosedResourceError, lambda: asyncio.run(call.call_async(1)))
        raises(anyio.ClosedResourceError, lambda: memory.buffer)
        raises(anyio.ClosedResourceError, lambda: instance.exports.sum)
        """,
        ["ClosedResourceError"] * 4,
    ),
    "call from two threads": (
        """
        instance = aw.Instance(aw.Module(SPIN))
        work = instance.exports.work
        seen = set()
        barrier = threading.Barrier(2)
        def run():
            barrier.wait()
            for _ in range(200):
                try:
                    work(200_000)
                except anyio.BusyResourceError as exc:
                    seen.add(type(exc).__name__)
        threads = [threading.Thread(target=run) for _ in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(*seen)
        """,
        ["BusyResourceError"],
    ),
    "closing the store inside an import": (
        """
        def close(x):
            instance.close()
            return x
        instance = caller(close)
        call = instance.exports.call
        exc = raises(aw.Interrupted, lambda: call(1))
        assert exc.reason == "closed"
        async def close_async(x):
            await asyncio.sleep(0)
            instance.close()
            return x
        instance = caller(close_async)
        call = instance.exports.call
        raises(aw.Interrupted, lambda: asyncio.run(call.call_async(1)))
        """,
        ["Interrupted"] * 2,
    ),
    "base exceptions in an import": (
        """
        for kind in (KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit):
            def fail(x):
                raise error
            error = kind("mine")
            instance = caller(fail)
            assert raises(kind, lambda: instance.exports.call(1)) is error
            async def main():
                try:
                    await instance.exports.call.call_async(1)
                except BaseException as exc:
                    assert exc is error
                else:
                    raise AssertionError
            asyncio.run(main())
            assert instance.exports.plain(1) == 2
        """,
        ["KeyboardInterrupt", "SystemExit", "CancelledError", "GeneratorExit"],
    ),
    "collecting everything in the middle of a call": (
        """
        def collect(x):
            global instance
            instance = None
            gc.collect()
            return x
        instance = caller(collect)
        print(instance.exports.sum(5))
        """,
        ["15"],
    ),
    "faulthandler before the first engine": (
        """
        import faulthandler
        faulthandler.enable()
        raises(aw.Trap, caller(int).exports.trap)
        """,
        ["Trap"],
    ),
    "faulthandler after the import": (
        """
        aw.Engine()
        import faulthandler
        faulthandler.enable()
        raises(aw.Trap, caller(int).exports.trap)
        """,
        ["Trap"],
    ),
    "fork after use": (
        """
        module = aw.Module(CALLER)
        instance = aw.Instance(module, {"host": {"f": lambda x: x}})
        asyncio.run(instance.exports.call.call_async(1))
        child = os.fork()
        if child == 0:
            try:
                instance.exports.call(1)
            except anyio.ClosedResourceError:
                again = aw.Instance(module, {"host": {"f": lambda x: x}})
                async def main():
                    await aw.compile(SPIN)
                    return await again.exports.sum.call_async(3)
                os._exit(0 if asyncio.run(main()) == 6 else 2)
            os._exit(3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), instance.exports.call(7))
        """,
        ["0", "7"],
    ),
    "fork during a call": (
        """
        def fork(x):
            global child
            child = os.fork()
            return x
        instance = caller(fork)
        try:
            print(instance.exports.call(7), flush=True)
        except anyio.ClosedResourceError as exc:
            assert "parent process" in str(exc)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        ["7", "0"],
    ),
    "garbage bytes": (
        """
        import random
        source = random.Random(1)
        for length in range(0, 400, 7):
            data = bytearray(source.randbytes(length))
            assert not aw.validate(data)
            try:
                aw.Module(data)
            except aw.CompileError:
                pass
            data[:8] = b"\\0asm\\1\\0\\0\\0"
            try:
                aw.Module(data)
            except aw.CompileError:
                pass
        print("survived")
        """,
        ["survived"],
    ),
    "truncated modules": (
        """
        for end in range(len(CALLER)):
            if aw.validate(CALLER[:end]):
                aw.Module(CALLER[:end])
        for at in range(len(CALLER)):
            broken = bytearray(CALLER)
            broken[at] ^= 0x55
            try:
                aw.Instance(aw.Module(broken), {"host": {"f": int}})
            except (aw.WasmError, TypeError):
                pass
        print("survived")
        """,
        ["survived"],
    ),
    "memory with a limit of 1 GiB": (
        """
        memory = aw.Memory(0, 16384)
        aw.Instance(aw.Module(aw.wat2wasm('(module (import "m" "m" (memory 0 16384)))')),
                    {"m": {"m": memory}})
        print(memory.grow(16384))
        memory.write(memory.byte_length - 1, b"x")
        print(memory.read(memory.byte_length - 1, 1))
        raises(aw.RangeError, lambda: memory.grow(1))
        raises(aw.RangeError, lambda: memory.read(memory.byte_length, 1))
        """,
        ["0", "b'x'", "RangeError", "RangeError"],
    ),
    "vector and object types in signatures": (
        """
        text = '''(module (type $s (struct (field (mut i32)))) (type $a (array i8))
          (import "m" "f" (func $f (param v128 anyref (ref null $s)) (result eqref)))
          (func (export "v") (param v128) (result v128) (local.get 0))
          (func (export "any") (param anyref) (result anyref) (local.get 0))
          (func (export "new") (result (ref $s)) (struct.new $s (i32.const 1)))
          (func (export "own") (param (ref null $s)) (result (ref null $s)) (local.get 0))
          (func (export "array") (result (ref $a)) (array.new_default $a (i32.const 3)))
          (func (export "exn") (param exnref))
          (func (export "call") (param v128) (result eqref)
            (call $f (local.get 0) (ref.i31 (i32.const 5)) (ref.null $s))))'''
        exports = aw.Instance(aw.Module(aw.wat2wasm(text)), {"m": {"f": lambda v, i, s: i}}).exports
        print(exports.v(bytes(range(16))) == bytes(range(16)))
        thing = exports.new()
        print(exports.any(thing) is thing, exports.own(thing) is thing, exports.any(7))
        raises(TypeError, lambda: exports.own(exports.array()))
        raises(TypeError, lambda: exports.own(5))
        raises(TypeError, lambda: exports.exn(None))
        raises(TypeError, lambda: exports.v(b"short"))
        print(exports.call(bytes(16)), str(exports.v.type), repr(thing)[:10])
        """,
        ["True", "True", "True", "7"] + ["TypeError"] * 4 + ["5", "(v128)", "->", "(v128)"],
    ),
    "recursion until the stack ends": (
        """
        deep = aw.Instance(aw.Module(aw.wat2wasm(
            '(module (func $f (export "f") (call $f)))'))).exports.f
        raises(aw.StackOverflow, deep)
        raises(aw.StackOverflow, lambda: asyncio.run(deep.call_async()))
        raises(RecursionError, deep)
        def in_a_thread():
            raises(aw.StackOverflow, deep)
        thread = threading.Thread(target=in_a_thread)
        thread.start()
        thread.join()
        """,
        ["StackOverflow"] * 4,
    ),
    "engine collected by the thread of its own clock": (
        """
        import weakref
        aw.configure_sync_guard(action="ignore")
        work = aw.Instance(aw.Module(SPIN)).exports.work
        work(1)
        gone = []
        for _ in range(10):
            gc.collect()
            gc.disable()
            engine = aw.Engine(aw.EngineConfig(tier="optimized"))
            instance = aw.Instance(aw.Module(SPIN, engine=engine))
            for _ in range(2):
                asyncio.run(instance.exports.one.call_async())  # its clock ticks from now on
            instance.close()
            del instance
            engine.itself = engine
            reference = weakref.ref(engine)
            gc.set_threshold(1, 1, 1)
            gc.enable()
            del engine
            work(20_000_000)  # meanwhile only the clock's thread makes objects
            gc.collect()
            gone.append(reference() is None)
            gc.set_threshold(700, 10, 10)
        print(all(gone))
        """,
        ["True"],
    ),
    "store closed by a thread while its guest is about to call an import": (
        """
        module = aw.Module(aw.wat2wasm('''(module
          (import "host" "f" (func $f (param i32) (result i32)))
          (func (export "plain"))
          (func (export "run") (param $n i32) (result i32)
            (loop (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
            (call $f (i32.const 1234567))))'''))
        seen = set()
        def f(value):
            seen.add(value)
            return value
        def close(store, go):
            go.wait()
            store.close()
        async def main():
            for round in range(300):
                instance = aw.Instance(module, {"host": {"f": f}})
                await instance.exports.plain.call_async()
                go = threading.Event()
                thread = threading.Thread(target=close, args=(instance.store, go))
                thread.start()
                go.set()
                try:
                    await instance.exports.run.call_async(1 + 1000 * (round % 150))
                except (aw.Interrupted, anyio.ClosedResourceError, anyio.BusyResourceError):
                    pass
                thread.join()
        asyncio.run(main())
        print(seen == {1234567})  # nothing but what the guest has given
        """,
        ["True"],
    ),
    "recursion through an import": (
        """
        def again(x):
            return instance.exports.call(x + 1)
        instance = caller(again)
        try:
            instance.exports.call(0)
        except RecursionError:  # a StackOverflow, if the guest comes to the end first
            print("RecursionError")
        async def again_async(x):
            return await instance.exports.call.call_async(x + 1)
        instance = caller(again_async)
        raises(RecursionError, lambda: asyncio.run(instance.exports.call.call_async(0)))
        print(instance.exports.plain(1))
        """,
        ["RecursionError", "RecursionError", "2"],
    ),
    "deep recursion in an import": (
        """
        import json
        def parse(x):
            json.loads("[" * 50_000)
        def recurse(x):
            return recurse(x)
        for function in (parse, recurse):
            instance = caller(function)
            raises((RecursionError, ValueError), lambda: instance.exports.call(1))
            raises((RecursionError, ValueError),
                   lambda: asyncio.run(instance.exports.call.call_async(1)))
        """,
        None,
    ),
    "signals while a guest calls imports": (
        """
        import signal
        def raise_signal(x):
            if x == 2_000:  # the first call of the import: the signal meets one of the others
                signal.setitimer(signal.ITIMER_REAL, 0.0001)
            return x
        calling = False
        def alarm(number, frame):
            global calling
            if calling:
                calling = False
                raise TimeoutError
        signal.signal(signal.SIGALRM, alarm)
        instance = caller(raise_signal)
        for _ in range(300):
            try:
                calling = True
                instance.exports.sum(2_000)
                calling = False
            except TimeoutError:
                pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(instance.exports.plain(1))
        """,
        ["2"],
    ),
    "finalizers that look at the store in which they interrupt something": (
        """
        text = '''(module (memory (export "m") 1) (table (export "t") 1 externref)
          (global (export "g") (mut i32) (i32.const 1))
          (func (export "f") (param externref) (result externref) local.get 0))'''
        module = aw.Module(aw.wat2wasm(text))
        instance = aw.Instance(module)
        function, memory, table, glob = (instance.exports[name] for name in "fmtg")
        def look(phase, info):
            try:
                memory.read(0, 1)
            except anyio.BusyResourceError as exc:
                seen.add("finalizer" in str(exc))
        seen = set()
        gc.callbacks.append(look)
        gc.set_threshold(1)
        for turn in range(50):
            glob.value = turn
            table.set(0, [])
            function(table.get(0))
            aw.Instance(module, store=instance.store).exports.f([])
            memory.grow(0)
        gc.set_threshold(700)
        gc.callbacks.clear()
        print(*seen, glob.value, memory.read(0, 1))
        """,
        ["True", "49", r"b'\x00'"],
    ),
    "exit with calls in flight": (
        """
        instance = aw.Instance(aw.Module(SPIN))
        async def main():
            asyncio.create_task(instance.exports.spin.call_async())
            await asyncio.sleep(0.05)
            print("leaving", flush=True)
            os.environ["left"] = "yes"
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        sys.stderr = open(os.devnull, "w")
        """,
        ["leaving"],
    ),
    "exit with a guest on a daemon thread": (
        """
        instance = aw.Instance(aw.Module(SPIN))
        threading.Thread(target=instance.exports.spin, daemon=True).start()
        while not instance._store.handle.roomless:
            pass
        end = time.monotonic() + 0.3  # it looks for signals a few times
        while time.monotonic() < end:
            pass
        print("leaving")
        """,
        ["leaving"],
    ),
    "using an object after its store": (
        """
        text = '''(module (table (export "t") 1 funcref) (global (export "g") (mut i32) (i32.const 1))
          (tag (export "e")) (memory (export "m") 1) (func (export "f")))'''
        instance = aw.Instance(aw.Module(aw.wat2wasm(text)))
        table, glob, memory, tag, f = (instance.exports[n] for n in "tgmef")
        view = memory.buffer
        instance.close()
        view[0] = 1
        raises(anyio.ClosedResourceError, lambda: table.get(0))
        raises(anyio.ClosedResourceError, lambda: table.set(0, f))
        raises(anyio.ClosedResourceError, lambda: table.grow(1))
        raises(anyio.ClosedResourceError, lambda: glob.value)
        raises(anyio.ClosedResourceError, lambda: setattr(glob, "value", 1))
        raises(anyio.ClosedResourceError, lambda: memory.grow(1))
        raises(anyio.ClosedResourceError, lambda: memory.read(0, 1))
        raises(anyio.ClosedResourceError, f)
        del instance, table, glob, memory, tag, f
        gc.collect()
        print(view[0])
        """,
        ["ClosedResourceError"] * 8 + ["1"],
    ),
    "an object of another store": (
        """
        one, two = aw.Instance(aw.Module(SPIN)), aw.Instance(aw.Module(SPIN))
        table = aw.Table("anyfunc", 1, store=two.store)
        raises(aw.LinkError, lambda: table.set(0, one.exports.spin))
        module = aw.Module(aw.wat2wasm('(module (import "m" "a" (func)) (import "m" "b" (func)))'))
        exc = raises(aw.LinkError, lambda: aw.Instance(module, {
            "m": {"a": one.exports.spin, "b": two.exports.spin}}))
        print("aw.Store" in str(exc) or "asyncwasm.Store" in str(exc))
        """,
        ["LinkError", "LinkError", "True"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_misuse_is_an_exception_and_never_a_crash(name: str) -> None:
    """Each of these has aborted or corrupted some host."""
    source, expected = SCRIPTS[name]

    done = run_script(PRELUDE + "\n" + _dedent(source))

    assert done.returncode == 0, done.stderr[-3000:]
    if expected is not None:
        assert done.stdout.split()[: len(expected)] == expected, done.stdout + done.stderr


def _dedent(source: str) -> str:
    import textwrap

    return textwrap.dedent(source)


FEATURES = tuple(aw.EngineConfig().features)


@cache
def _complaints(tier: str) -> dict[str, str]:
    """Return what happened for each feature: nothing, or how its process ended."""
    found: dict[str, str] = {}
    while waiting := FEATURES[len(found) :]:  # one that aborts leaves the rest to another process
        script = f"""
            import asyncwasm as aw
            for feature in {waiting!r}:
                for value in (True, False):
                    engine = aw.Engine(aw.EngineConfig(tier={tier!r}, **{{feature: value}}))
                    aw.Module(aw.wat2wasm("(module)"), engine=engine)
                print(feature, flush=True)
            """
        done = run_script(script)
        passed = done.stdout.split()
        found.update(dict.fromkeys(passed, ""))
        if done.returncode != 0:
            culprit = FEATURES[min(len(found), len(FEATURES) - 1)]
            found[culprit] = f"exit code {done.returncode}: {done.stderr}"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["optimized", "baseline"])
@pytest.mark.parametrize("feature", FEATURES)
def test_every_switch_of_the_configuration_makes_an_engine(tier: str, feature: str) -> None:
    """The library aborts when it is asked for a combination that it does not have."""
    assert _complaints(tier)[feature] == ""

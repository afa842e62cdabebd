"""wasmtime-py."""

import wasmtime
from _timing import FIB, IMPORTS, guest, report, same, timed

engine = wasmtime.Engine()
store = wasmtime.Store(engine)
plain = wasmtime.Module(engine, guest("plain"))
exports = wasmtime.Instance(store, plain, []).exports(store)
kind = wasmtime.FuncType([wasmtime.ValType.i32()], [wasmtime.ValType.i32()])
imported = wasmtime.Func(store, kind, lambda x: x)
caller = wasmtime.Instance(store, wasmtime.Module(engine, guest("caller")), [imported])
add, fib, loop = exports["add"], exports["fib"], caller.exports(store)["loop"]
large = guest("large")

same(add(store, 1, 2), 3)
same(fib(store, FIB), 987)
report(
    call=lambda: timed(lambda: add(store, 1, 2)),
    **{"import": lambda: timed(lambda: loop(store, IMPORTS)) / IMPORTS},
    fib=lambda: timed(lambda: fib(store, FIB)),
    instantiate=lambda: timed(lambda: wasmtime.Instance(wasmtime.Store(engine), plain, [])),
    compile=lambda: timed(lambda: wasmtime.Module(wasmtime.Engine(), large)),
)

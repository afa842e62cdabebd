"""wasmhost, on wasmtime."""

import wasmhost
from _timing import FIB, IMPORTS, guest, report, same, timed

wasmhost.set_backend("wasmtime")
plain = wasmhost.Module(guest("plain"))
exports = wasmhost.Instance(plain).exports
caller = wasmhost.Instance(wasmhost.Module(guest("caller")), {"host": {"f": lambda x: x}}).exports
add, fib, loop = exports.add, exports.fib, caller.loop
large = guest("large")

same(add(1, 2), 3)
same(fib(FIB), 987)
report(
    call=lambda: timed(lambda: add(1, 2)),
    **{"import": lambda: timed(lambda: loop(IMPORTS)) / IMPORTS},
    fib=lambda: timed(lambda: fib(FIB)),
    instantiate=lambda: timed(lambda: wasmhost.Instance(plain)),
    compile=lambda: timed(lambda: wasmhost.Module(large)),
)

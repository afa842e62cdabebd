"""asyncwasm, in the same kind of worker as the others."""

from _timing import FIB, IMPORTS, guest, report, same, timed

import asyncwasm as aw

plain = aw.Module(guest("plain"))
exports = aw.Instance(plain).exports
caller = aw.Instance(aw.Module(guest("caller")), {"host": {"f": lambda x: x}}).exports
add, fib, loop = exports.add, exports.fib, caller.loop
large = guest("large")

same(add(1, 2), 3)
same(fib(FIB), 987)
report(
    call=lambda: timed(lambda: add(1, 2)),
    **{"import": lambda: timed(lambda: loop(IMPORTS)) / IMPORTS},
    fib=lambda: timed(lambda: fib(FIB)),
    instantiate=lambda: timed(lambda: aw.Instance(plain)),
    compile=lambda: timed(lambda: aw.Module(large, engine=aw.Engine())),
)

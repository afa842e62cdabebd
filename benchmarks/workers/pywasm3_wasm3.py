"""pywasm3: the interpreter wasm3, in C."""

import wasm3
from _timing import FIB, IMPORTS, guest, report, same, timed

STACK_BYTES = 64 << 10


def instantiated(name):
    """Return the runtime of a guest; parsing is part of it."""
    environment = wasm3.Environment()
    runtime = environment.new_runtime(STACK_BYTES)
    module = environment.parse_module(guests[name])
    runtime.load(module)
    if name == "caller":
        module.link_function("host", "f", "i(i)", lambda x: x)
    return environment, runtime


guests = {name: guest(name) for name in ("plain", "caller", "large")}
kept, caller = instantiated("plain"), instantiated("caller")
add, fib = kept[1].find_function("add"), kept[1].find_function("fib")
loop = caller[1].find_function("loop")

same(add(1, 2), 3)
same(fib(FIB), 987)
report(
    call=lambda: timed(lambda: add(1, 2)),
    **{"import": lambda: timed(lambda: loop(IMPORTS)) / IMPORTS},
    fib=lambda: timed(lambda: fib(FIB)),
    instantiate=lambda: timed(lambda: instantiated("plain")),
    compile=lambda: timed(lambda: wasm3.Environment().parse_module(guests["large"])),
)

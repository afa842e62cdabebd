"""pywasm: an interpreter in Python."""

import io

import pywasm
from _timing import FIB, IMPORTS, guest, report, same, timed

I32 = pywasm.core.ValType.i32()
guests = {name: guest(name) for name in ("plain", "caller", "large")}


def parsed(name):
    """Return a module."""
    return pywasm.core.ModuleDesc.from_reader(io.BytesIO(guests[name]))


runtime = pywasm.core.Runtime()
kind = pywasm.core.FuncType([I32], [I32])
runtime.imports = {"host": {"f": runtime.allocate_func_host(kind, lambda machine, args: args)}}
module = parsed("plain")
plain, caller = runtime.instance(module), runtime.instance(parsed("caller"))

same(runtime.invocate(plain, "add", [1, 2]), [3])
same(runtime.invocate(plain, "fib", [FIB]), [987])
report(
    call=lambda: timed(lambda: runtime.invocate(plain, "add", [1, 2])),
    **{"import": lambda: timed(lambda: runtime.invocate(caller, "loop", [IMPORTS])) / IMPORTS},
    fib=lambda: timed(lambda: runtime.invocate(plain, "fib", [FIB])),
    instantiate=lambda: timed(lambda: pywasm.core.Runtime().instance(module)),
    compile=lambda: timed(lambda: parsed("large")),
)

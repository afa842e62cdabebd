"""Extism: functions take bytes and return bytes, so these take none."""

import extism
from _timing import FIB, IMPORTS, guest, report, same, timed


@extism.host_fn(
    name="f",
    namespace="host",
    signature=([extism.ValType.I32], [extism.ValType.I32]),
)
def identity(plugin, inputs, outputs):
    """Be the import."""
    outputs[0] = inputs[0]


compiled = extism.extism.CompiledPlugin(guest("plain"), functions=[])
plain = extism.Plugin(compiled)
caller = extism.Plugin(guest("caller"), functions=[identity])
large = guest("large")

same(plain.call("nothing", b""), b"")
assert FIB == 16 and IMPORTS == 1_000  # what the guests' functions without arguments do
report(
    call=lambda: timed(lambda: plain.call("nothing", b"")),
    **{"import": lambda: timed(lambda: caller.call("loop_1000", b"")) / IMPORTS},
    fib=lambda: timed(lambda: plain.call("fib_16", b"")),
    instantiate=lambda: timed(lambda: extism.Plugin(compiled)),
    compile=lambda: timed(lambda: extism.extism.CompiledPlugin(large, functions=[])),
)

"""The only place that knows ctypes and wasmtime."""

import sys

if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError(
        "asyncwasm relies on the GIL to keep two threads from entering one store; run this "
        "free-threaded interpreter with PYTHON_GIL=1 or -X gil=1",
        name="asyncwasm",
    )

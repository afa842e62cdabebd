"""
What it costs to get bytes into a guest's memory and out: ``python -m benchmarks.memory``.

A copy of `bytes` is what the same transfer costs where no guest is: a new object for what is
read, and bytes copied over others for what is written. Target: 1 MiB in at most 1.3 times that.
"""

from __future__ import annotations

import importlib.util
from array import array
from collections.abc import Iterator
from typing import Any

import wasmtime

from ._guests import ours
from ._measure import WASMTIME, Figure, Options, in_turn, inline, run_alone

TEXT = '(module (memory (export "memory") 64))'
SIZES = {"64 B": 64, "4 KiB": 4096, "1 MiB": 1 << 20}


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures."""
    memory = ours(TEXT).memory
    store = wasmtime.Store()
    module = wasmtime.Module(store.engine, TEXT)
    exported = wasmtime.Instance(store, module, []).exports(store)["memory"]
    assert isinstance(exported, wasmtime.Memory)
    peer = exported

    for shown, size in SIZES.items():
        data = bytes(index % 251 for index in range(size))
        room = memoryview(bytearray(data))
        target = 1.3 if size == 1 << 20 else None
        read = inline("f(0, n)", f=memory.read, n=size)
        write = inline("f(0, d)", f=memory.write, d=data)
        yield Figure.pair(
            f"read {shown}",
            "us",
            "a copy into new bytes",
            in_turn(read, inline("b(d)", b=bytes, d=room), options),
            slower_at_most=target,
        )
        yield Figure.pair(
            f"read {shown}",
            "us",
            WASMTIME,
            in_turn(read, inline("f(s, 0, n)", f=peer.read, s=store, n=size), options),
        )
        yield Figure.pair(
            f"write {shown}",
            "us",
            "a copy over other bytes",
            in_turn(write, inline("r[0:n] = d", r=room, n=size, d=data), options),
            slower_at_most=target,
        )
        yield Figure.pair(
            f"write {shown}",
            "us",
            WASMTIME,
            in_turn(write, inline("f(s, d, 0)", f=peer.write, s=store, d=data), options),
        )
    yield Figure.pair(
        "memory.buffer[0]",
        "us",
        WASMTIME,
        in_turn(
            inline("m.buffer[0]", m=memory),
            inline("m.get_buffer_ptr(s)[0]", m=peer, s=store),
            options,
        ),
        note="there the pointer dangles when the memory or its store is gone",
    )

    text = "Ångström, 水, " * 64
    encoded = text.encode()
    yield Figure.pair(
        f"a string of {len(encoded)} bytes in",
        "us",
        WASMTIME,
        in_turn(
            inline("f(0, t.encode())", f=memory.write, t=text),
            inline("f(s, t.encode(), 0)", f=peer.write, s=store, t=text),
            options,
        ),
    )
    memory.write(0, encoded)
    peer.write(store, encoded, 0)
    yield Figure.pair(
        f"a string of {len(encoded)} bytes out",
        "us",
        WASMTIME,
        in_turn(
            inline("f(0, n).decode()", f=memory.read, n=len(encoded)),
            inline("f(s, 0, n).decode()", f=peer.read, s=store, n=len(encoded)),
            options,
        ),
    )
    numbers = array("d", range(512))
    yield Figure.pair(
        "an array('d') of 4 KiB in",
        "us",
        WASMTIME,
        in_turn(
            inline("f(0, a)", f=memory.write, a=numbers),
            inline("f(s, a.tobytes(), 0)", f=peer.write, s=store, a=numbers),
            options,
        ),
    )
    if importlib.util.find_spec("numpy") is None:
        yield Figure(name="numpy", unit="us", note="numpy is not installed")
        return
    import numpy

    for shown, size in (("4 KiB", 4096), ("1 MiB", 1 << 20)):
        values: Any = numpy.arange(size // 8, dtype=numpy.float64)
        yield Figure.pair(
            f"a numpy array of {shown} in",
            "us",
            WASMTIME,
            in_turn(
                inline(
                    "v(m.buffer, 'f8', n)[:] = a",
                    v=numpy.frombuffer,
                    m=memory,
                    n=size // 8,
                    a=values,
                ),
                inline("f(s, a.tobytes(), 0)", f=peer.write, s=store, a=values),
                options,
            ),
            note="there by way of bytes",
        )
        yield Figure.pair(
            f"a numpy array of {shown} out, as a copy",
            "us",
            WASMTIME,
            in_turn(
                inline("v(m.buffer, 'f8', n).copy()", v=numpy.frombuffer, m=memory, n=size // 8),
                inline("v(f(s, 0, n), 'f8')", v=numpy.frombuffer, f=peer.read, s=store, n=size),
                options,
            ),
        )
    yield Figure.pair(
        "a numpy array of 1 MiB summed where it is",
        "us",
        WASMTIME,
        in_turn(
            inline("v(m.buffer, 'f8', n).sum()", v=numpy.frombuffer, m=memory, n=1 << 17),
            inline(
                "v(f(s, 0, 8 * n), 'f8').sum()", v=numpy.frombuffer, f=peer.read, s=store, n=1 << 17
            ),
            options,
        ),
        note="there it is copied first",
    )


if __name__ == "__main__":
    run_alone("memory", measure, __doc__)

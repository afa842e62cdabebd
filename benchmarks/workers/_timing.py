"""
What the workers share: they run where only the peer is installed, so this imports nothing.

A worker takes the directory of the guests and how long to measure, and prints JSON: seconds for
each task, or the reason why there are none.
"""

import json
import sys
import time

IMPORTS = 1_000  # that the loop of the guest `caller` makes in one call
FIB = 16


def timed(action):
    """Return the seconds that *action* takes: the median of some runs."""
    seconds = float(sys.argv[2])
    count, taken = 1, 0.0
    while True:
        taken = _run(action, count)
        if taken >= seconds:
            break
        count *= 2
    return sorted([taken / count] + [_run(action, count) / count for _ in range(4)])[2]


def _run(action, count):
    started = time.perf_counter()
    for _ in range(count):
        action()
    return time.perf_counter() - started


def guest(name):
    """Return the binary of a guest."""
    with open(f"{sys.argv[1]}/{name}.wasm", "rb") as file:
        return file.read()


def report(**tasks):
    """Run the tasks and print what they return."""
    found = {}
    for name, task in tasks.items():
        try:
            found[name] = task() if callable(task) else task
        except Exception as exc:
            found[name] = f"{type(exc).__name__}: {exc}"
    print(json.dumps(found))


def same(value, expected):
    """Check a guest's answer: a peer that computes something else is not measured."""
    assert value == expected, (value, expected)

"""Run one subject the suite's way: ``python -m benchmarks._subject NAME [OPTION]...``."""

from __future__ import annotations

import importlib
import sys

from ._measure import run_alone

if __name__ == "__main__":
    subject = sys.argv.pop(1)
    module = importlib.import_module(f"benchmarks.{subject}")
    run_alone(subject, module.measure, module.__doc__)

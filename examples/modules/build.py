"""
Build the example guests from the sources beside this file.

The compiler is the one in the ``ziglang`` package (``pip install ziglang==0.17.1``), which
compiles C and Zig for wasm without anything else installed. The same version writes the same
bytes on every machine; other versions need not.

    python build.py            build all of them here
    python build.py --check    build into a temporary directory and compare
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tempfile

ZIGLANG = "0.17.1"
SOURCES = pathlib.Path(__file__).resolve().parent

# A stack of one page instead of sixteen: instances are cheap when their memory is.
STACK_BYTES = 65_536

# The examples measure responsiveness, not guests: small code wins, except where users want speed.
CFLAGS = {
    "crc32.c": ["-Oz"],
    "fetch.c": ["-Oz"],
    "levenshtein.c": ["-Oz"],
    "life.c": ["-Oz"],
    "matrix.c": ["-O2", "-msimd128"],
    "scrypt.c": ["-O2"],
    "sha256.c": ["-Oz"],
    "sort.c": ["-Oz"],
    "text.c": ["-Oz"],
}
ZIG_EXPORTS = {
    "base64.zig": ["alloc", "reset", "encode", "decode"],
    "json_minify.zig": ["alloc", "reset", "minify"],
    "mandelbrot.zig": ["render"],
    "prng.zig": ["alloc", "reset", "seed", "next", "random", "fill"],
}


def commands(output: pathlib.Path) -> dict[str, list[str]]:
    """Return the compiler's arguments for each module that goes to *output*."""
    found = {}
    for source, flags in CFLAGS.items():
        name = source.replace(".c", ".wasm")
        found[name] = [
            *("cc", "-target", "wasm32-freestanding", "-std=c17", *flags),
            *("-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-s"),
            *("-Wl,--no-entry", f"-Wl,-z,stack-size={STACK_BYTES}"),
            *("-o", str(output / name), source),
        ]
    for source, exports in ZIG_EXPORTS.items():
        name = source.replace(".zig", ".wasm")
        found[name] = [
            *("build-exe", source, "-target", "wasm32-freestanding"),
            *("-O", "ReleaseSmall", "-fstrip", "-fno-entry"),
            *(f"--export={export}" for export in exports),
            *("--stack", str(STACK_BYTES), f"-femit-bin={output / name}"),
        ]
    return found


def build(output: pathlib.Path) -> list[str]:
    """Build every module into *output* and return their file names."""
    with tempfile.TemporaryDirectory() as cache:
        # Without this, zig leaves its cache directory beside the sources.
        environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": cache}
        for name, arguments in commands(output).items():
            # Run among the sources, so that no path of this machine reaches the compiler.
            subprocess.run(
                [sys.executable, "-m", "ziglang", *arguments],
                cwd=SOURCES,
                env=environment,
                check=True,
            )
            (output / name).chmod(0o644)
    return list(commands(output))


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the example guests.")
    parser.add_argument(
        "--check", action="store_true", help="compare with what is here instead of replacing it"
    )
    check = parser.parse_args().check

    version = importlib.metadata.version("ziglang")
    if version != ZIGLANG:
        print(f"note: the modules here come from ziglang {ZIGLANG}, this is {version}")
    if not check:
        for name in build(SOURCES):
            print(f"{name:16} {(SOURCES / name).stat().st_size:6,} bytes")
        return 0

    failures = 0
    with tempfile.TemporaryDirectory() as directory:
        output = pathlib.Path(directory)
        for name in build(output):
            built, here = output / name, SOURCES / name
            same = here.exists() and built.read_bytes() == here.read_bytes()
            failures += not same
            print(f"{name:16} {built.stat().st_size:6,} bytes  {'same' if same else 'DIFFERENT'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

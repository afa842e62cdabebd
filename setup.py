"""Builds the accelerator where a compiler is; everything else is in pyproject.toml."""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "asyncwasm._speedups",
            ["asyncwasm/_speedups.c"],
            depends=sorted(glob("asyncwasm/_c/*.h")),
            optional=True,
        )
    ]
)

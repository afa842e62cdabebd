"""Builds the accelerator where a compiler is; everything else is in pyproject.toml."""

from setuptools import Extension, setup

setup(ext_modules=[Extension("asyncwasm._speedups", ["asyncwasm/_speedups.c"], optional=True)])

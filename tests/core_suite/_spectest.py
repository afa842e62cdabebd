"""
The host module ``spectest`` that scripts may import, made of public objects only.

Its print functions keep what they are given instead of printing it: the runner's own output
stays readable, and a test can see which values crossed.
"""

from __future__ import annotations

from collections.abc import Callable

import asyncwasm as aw

# The reference interpreter's value of every numeric global.
_INTEGER, _FLOAT = 666, 666.6


class Spectest(dict[str, object]):
    """One script's ``spectest``: its objects come to belong to the script's store."""

    def __init__(self) -> None:
        self.printed: list[tuple[object, ...]] = []
        super().__init__(
            global_i32=aw.Global("i32", _INTEGER),
            global_i64=aw.Global("i64", _INTEGER),
            global_f32=aw.Global("f32", _FLOAT),
            global_f64=aw.Global("f64", _FLOAT),
            table=aw.Table("funcref", 10, 20),
            table64=aw.Table("funcref", 10, 20, address="i64"),
            memory=aw.Memory(1, 2),
            print=self._print(),
            print_i32=self._print(int),
            print_i64=self._print(int),
            print_f32=self._print(float),
            print_f64=self._print(float),
            print_i32_f32=self._print(int, float),
            print_f64_f64=self._print(float, float),
        )

    def _print(self, *types: type) -> Callable[..., None]:
        """Return a function that takes values of exactly these Python *types*."""

        def keep(*values: object) -> None:
            if tuple(map(type, values)) != types:
                raise AssertionError(f"expected {types}, got {values}")
            self.printed.append(values)

        return keep

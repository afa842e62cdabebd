"""What new instances are made from where nothing runs long or waits: looked up once for many."""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

from .._ffi.handles import Handle, Process
from .._ffi.instances import build
from .artifact import Artifact, Variant
from .config import Limits, native_limits
from .host import HostFunction
from .instantiation import Instantiation, created
from .store import StoreCore


class _Parts(NamedTuple):
    generation: int  # of the process
    pooled: bool  # whether the stores' memory comes from the engine's pool, if there is one
    base: Variant  # that the artifact had when the rest was looked up
    variant: Variant  # that stores get
    kept: tuple[Handle, Handle | None]  # the code, and that with the host functions, if any
    arguments: tuple[Handle, tuple[int, int, int, int, int], int, int, bool]  # of `build`


class Blueprint:
    """
    An artifact that imports nothing but plain host functions: one step makes a store with its
    instance.

    Args:
        artifact: What stands alone.
        limits: Of the stores.
    """

    __slots__ = (
        "_artifact",
        "_careful",
        "_fits",
        "_fuel",
        "_limits",
        "_parts",
        "limits",
    )

    def __init__(self, artifact: Artifact, limits: Limits) -> None:
        self._artifact = artifact
        self.limits = limits
        self._limits = native_limits(limits)
        self._fuel = limits.fuel is not None
        self._fits = artifact.engine.fits_threads and not (
            artifact.info.imports and artifact.holds_references
        )
        self._parts: _Parts | None = None
        self._careful = artifact.holds_references or artifact.lingers

    def build(self, store: StoreCore, hosts: list[HostFunction]) -> bytes | None:
        """
        Make the native store of *store*, which is new and of the same limits, with an instance.

        Args:
            store: Where nothing is yet.
            hosts: What it imports, which is not changed afterwards.
        Returns:
            The instance; None if it takes longer, because some part has to be made first.
        Raises:
            Trap: If a segment does not fit.
            RangeError: If the module needs more of anything than it can have.
        """
        started = perf_counter()
        artifact, parts = self._artifact, self._parts
        if (
            parts is None
            or parts.generation != Process.generation
            or parts.pooled != store.pooled
            or artifact.starts_baseline
        ):
            parts = self._parts = self._find(parts, store.pooled)
            if parts is None:
                return None
        handle, error, trap, instance = build(*parts.arguments)
        store.adopt(handle, parts.variant)
        if hosts:
            store.take_hosts(hosts, [host.plain for host in hosts])
        if self._careful:
            store.admit(artifact)
        if error or trap:
            raise Instantiation(store, artifact, hosts).failed(error, trap)
        created(artifact, started)
        return instance

    def _find(self, known: _Parts | None, pooled: bool) -> _Parts | None:
        """Return what an instance is made from, None if something is not there yet."""
        artifact = self._artifact
        engine = artifact.engine
        base = artifact.variant(self._fuel)
        if known is not None and known[:3] == (Process.generation, pooled, base):
            return known
        if not self._fits:
            return None
        variant = engine.pooled(base) if pooled else base
        if not artifact.has(variant):
            return None
        code = artifact.native(variant)
        linked = artifact.links.get(variant) if artifact.info.imports else (code, None)
        if linked is None or linked[0] is not code:
            return None
        arguments = (
            engine.native(variant),
            self._limits,
            engine.direct_stack_bytes,
            (linked[1] or code).pointer,
            linked[1] is not None,
        )
        return _Parts(Process.generation, pooled, base, variant, linked, arguments)

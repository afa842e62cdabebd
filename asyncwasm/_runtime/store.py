"""
Store: what guests share, who may enter, and what is alive in it.

Rule 1: the native store is made when the first module or object is bound to it, because only
then its variant is known.
Rule 2: the store owns everything that its guests can reach (host functions, host values), by
plain Python references, so that a cycle through guest and host is collected as a whole.
Rule 3: identity is cached here: one Python object for one wasm object, as long as it lives.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from time import perf_counter, sleep
from typing import Any, TypeVar

import anyio

from .._errors import Interrupted, LinkError, RangeError
from .._ffi import errors, externs
from .._ffi.accelerator import speedups
from .._ffi.externs import Extern, Root
from .._ffi.fiber import Fiber, abandon
from .._ffi.handles import FAR, NEAR, Handle, StoreHandle
from .._ffi.library import lib
from .._ffi.linking import Linker, make_waiter
from .._ffi.references import References, drain, pending_drops, unroot
from .._ffi.types import function_type as native_function_type
from .._types import FunctionType
from . import exceptions
from .artifact import Artifact, Variant
from .config import UNLIMITED, Limits, native_limits
from .engine import EngineCore, default_engine
from .host import HostFunction
from .hostcall import HostCall, innermost
from .known import Known
from .ondemand import OnDemand
from .operation import Lane, Operation

T = TypeVar("T")

HANDED_SECONDS = 0.2  # that others wait for a call of which nobody knows yet
PAUSE_SECONDS = 0.0001

_NONE: list[Any] = []  # stays empty

ambient: ContextVar[StoreCore | None] = ContextVar("asyncwasm_store", default=None)


class StoreCore:
    """
    What the public `Store` stands for.

    Args:
        engine: Engine that its modules are compiled for; theirs if omitted.
        limits: What its guests may take.
        interleave: Whether suspended calls may interleave.
        sync_deadline_seconds: How long a synchronous call may run, None for ever.
        pooled: Whether its memory comes from the engine's pool, if there is one.
    """

    def __init__(
        self,
        engine: EngineCore | None,
        limits: Limits | None,
        *,
        interleave: bool = False,
        sync_deadline_seconds: float | None = None,
        pooled: bool = False,
    ) -> None:
        # What is the same for most is an attribute of the class.
        self._engine = engine
        if limits is not None:
            self._limits = limits
            self._fuel = limits.fuel
        if interleave:
            self.interleave = True
        if sync_deadline_seconds is not None:
            self.sync_deadline_seconds = sync_deadline_seconds
            if speedups is not None:
                speedups.note_deadlines()
        if pooled:
            self.pooled = True

    # to begin with
    _limits = UNLIMITED
    _fuel: int | None = None
    sync_deadline_seconds: float | None = None
    interleave = False
    _closed = False
    _native: StoreHandle | None = None
    _variant: Variant | None = None
    pooled = False
    face: weakref.ref[Any] | None = None  # to what users see of it
    python_tag: Extern | None = None  # its own tag for Python exceptions, see `exceptions`
    _stride = NEAR
    scope: tuple[int, int] | None = None  # a function, see `root_scope`
    raised = False  # whether a Python exception has come out of a guest
    _disturbed = False
    sleeps = False  # whether a guest may wait in an instruction, in which it does not yield
    _foreign = False  # whether a host function is not plain
    known = Known()  # by native name; functions by what they are. Stays empty: see `own_known`
    hosts: list[HostFunction] = _NONE

    # when they are first wanted; most stores live for one call or two, and need few of them
    _bind_lock: OnDemand[Any] = OnDemand(lambda _: threading.RLock())
    _operations: OnDemand[weakref.WeakKeyDictionary[Operation, None]] = OnDemand(
        lambda _: weakref.WeakKeyDictionary()
    )
    root: OnDemand[Lane] = OnDemand(lambda _: Lane())
    # of each host the accelerator's form, None if it has none. Not on the handle, which views keep
    plain_hosts: OnDemand[list[Any]] = OnDemand(lambda _: [])
    # the memories that hold a view, which keeps the native store
    viewed: OnDemand[Known] = OnDemand(lambda _: Known())
    # the host values; the store is bound
    references: OnDemand[References] = OnDemand(lambda store: References(store.handle, store))

    # life

    def close(self) -> None:
        """
        Free the store and everything in it; idempotent, and safe at any moment.

        A call that runs on another thread, or waits for its turn, ends with `Interrupted`, and
        so does one that is suspended, when the import that it waits for has ended. Views of a
        memory stay readable as long as they live.
        """
        self._closed = True
        made = self.__dict__  # most stores have been asked for none of these
        if "root" in made:
            self.root.dismiss()
        if "_operations" in made:
            for operation in self._alive():
                operation.interrupt("closed")
                operation.dismiss()
        if "viewed" in made:
            for memory in self.viewed.values():
                memory._store_closed()
        handle = self._native
        if handle is not None:
            handle.detour = True
            handle.close()

    @property
    def closed(self) -> bool:
        """Whether the store has been closed."""
        return self._closed

    @property
    def engine(self) -> EngineCore:
        """The engine that the store's modules are compiled for."""
        if self._engine is None:
            self._engine = default_engine()
        return self._engine

    @property
    def limits(self) -> Limits:
        """What guests may take."""
        return self._limits

    @property
    def fuel(self) -> int | None:
        """Fuel that is left, None if the store has no fuel limit; set it to give more."""
        if self._limits.fuel is None:
            return None
        if self._native is None:
            return self._fuel
        with self.entered():
            handle = self.opened()
            return externs.get_fuel(handle)

    @fuel.setter
    def fuel(self, amount: int) -> None:
        self.check_open()
        with self._bind_lock:
            self._fuel = amount
            if self._native is None:
                return
        with self.entered():
            handle = self.opened()
            errors.check(lib.wasmtime_context_set_fuel(handle.context, amount), RangeError)

    # entering

    def check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError("the store has been closed")

    def bind(self, engine: EngineCore, artifact: Artifact | None = None) -> StoreHandle:
        """Make the native store for *artifact*, or for modules of *engine*, if there is none."""
        self.check_open()
        if self._native is None:
            with self._bind_lock:
                if self._engine is None:
                    self._engine = engine
                if self._native is None and self._engine is engine:
                    self._open(engine, artifact)
        if self._engine is not engine:
            raise LinkError(
                "the module was compiled for another engine than the store's; "
                "compile it with engine=store.engine"
            )
        return self.handle

    def _open(self, engine: EngineCore, artifact: Artifact | None) -> None:
        """Make the native store. The caller holds the lock for that."""
        limits = self._limits
        fuel = limits.fuel is not None
        variant = (artifact or engine).variant(fuel)
        variant = engine.pooled(variant) if self.pooled else variant
        handle = StoreHandle(
            engine.native(variant),
            FAR,
            native_limits(limits),
            engine.direct_stack_bytes,
        )
        if self.sync_deadline_seconds is not None or not self.direct:
            handle.detour = True
        self.adopt(handle, variant)

    def adopt(self, handle: StoreHandle, variant: Variant) -> None:
        """Have *handle*, which is new, as the native store, for code of *variant*."""
        self._variant = variant
        if self._limits.fuel is not None:
            lib.wasmtime_context_set_fuel(handle.context, self._fuel)
        handle.quick = True
        handle.clock = self.engine.ticker.clock
        self._native = handle
        if self._closed:  # meanwhile, on another thread
            handle.close()
            self.check_open()

    @property
    def variant(self) -> Variant:
        """What code the store runs; it is bound."""
        assert self._variant is not None
        return self._variant

    @property
    def handle(self) -> StoreHandle:
        """The native store; it is bound."""
        assert self._native is not None
        return self._native

    @property
    def bound(self) -> bool:
        """Whether the native store has been made."""
        return self._native is not None

    @property
    def reusable(self) -> bool:
        """Whether whatever its guests were asked for has ended by returning."""
        handle = self._native
        return not (
            self._disturbed
            or self._closed
            or self._alive()
            or (handle is not None and (handle.lock.locked() or not handle.ours or _begun(handle)))
        )

    def disturb(self) -> None:
        """Note that a guest was stopped halfway: by an error, or by whoever awaited it."""
        self._disturbed = True

    @property
    def free(self) -> bool:
        """Whether the native store is there, and nobody is inside."""
        handle = self._native
        return not (handle is None or self._closed or handle.lock.locked()) and handle.ours

    def ready(self, operation: Operation) -> StoreHandle:
        """
        Return the native store if *operation* can enter it now; the caller takes its lock.

        It waits for those who only look at something; for an operation that has begun, nobody
        else is inside. The clock ticks from now on.
        """
        handle = self._native
        if handle is None or self._closed or not handle.ours:
            raise self.unavailable(operation)
        if handle.lock.locked() and (handle.mine() or (handle.roomless and not operation.goes_on)):
            raise self.unavailable(operation)
        self.engine.ticker.wake()
        return handle

    def entered(
        self, operation: Operation | None = None, *, to_call: bool = False
    ) -> AbstractContextManager[Any]:
        """
        Return the native store's lock, to be taken at once; then look at `opened`.

        The lock itself, and no context manager of ours: a signal handler that raises could come
        between the manager's taking it and the block that would let go of it.

        Whoever only looks at something is soon outside, and is waited for. So is a guest that runs
        on a thread, which is outside between two of its slices, unless it is *to_call* another.
        """
        handle = self._native
        if handle is None or self._closed or not handle.ours:
            raise self.unavailable(operation)
        # Looked at once: whoever comes in behind this look is waited for.
        if handle.lock.locked():
            if handle.mine():
                raise self.unavailable(operation)
            if operation is None or not operation.goes_on:
                if (handle.roomless and (to_call or not handle.near)) or (
                    handle.waits or self.engine.ticker.clock.manual
                ):
                    raise self.unavailable(operation)
                handle.awaited = True
        lock: AbstractContextManager[Any] = handle.lock
        return lock

    def opened(self, operation: Operation | None = None) -> StoreHandle:
        """Return the native store; the caller has its lock."""
        handle = self._native
        if handle is None or not handle.open:
            raise self.unavailable(operation)
        return handle

    def admit(self, artifact: Artifact) -> None:
        """Prepare for what guests of *artifact* can do. Before they are instantiated."""
        handle = self.handle
        if artifact.holds_references:
            handle.guarded = True
            if self.hosts:
                handle.detour = True
        if artifact.shares_memory:
            handle.waits = True
        if artifact.lingers:
            handle.lingers = True
        if artifact.sleeps:
            self.sleeps = True
            handle.quick = False

    def allocate(self, action: Callable[[StoreHandle], T]) -> T:
        """Enter the native store and run *action*, which may make references there."""
        with self.entered():
            handle = self.opened()
            results: list[T] = []
            self.allocate_inside(lambda: results.append(action(handle)))
            return results[0]

    def allocate_inside(self, action: Callable[[], None], newest: Operation | None = None) -> None:
        """
        Run *action*, which may collect, where the collector sees every stack.

        The caller is in the store; *newest* is an operation of its own that has not begun.
        """
        handle = self.handle
        if not handle.guarded:
            action()
            return
        suspended = [
            each
            for each in self._alive()
            if each is not newest and each.fiber is not None and each.fiber.future
        ]
        if not suspended:
            # On another thread, and nobody polls it right now.
            if _alive(handle.handed) or (
                handle.standing and handle.handed_by != threading.get_ident()
            ):
                raise anyio.BusyResourceError("making a reference while a guest runs in this store")
            action()
            return
        innermost = suspended[-1]
        assert innermost.fiber is not None
        if innermost.fiber.request is None or not innermost.fiber.dispatching:
            raise anyio.BusyResourceError("making a reference while a guest runs in this store")
        innermost.inject(action)

    def outwait(self) -> bool:
        """
        Wait until the call that another thread has begun in here, if any, is known or over.

        It runs host functions for a short time: return False if it takes longer than that.
        """
        handle = self._native
        if handle is None or not _begun(handle):
            return True
        end = perf_counter() + HANDED_SECONDS
        while _begun(handle) and handle.handed_by != threading.get_ident():
            if perf_counter() > end:
                return False
            sleep(PAUSE_SECONDS)
        return True

    def unavailable(self, operation: Operation | None) -> Exception:
        if self._native is not None and not self._native.ours:
            return anyio.ClosedResourceError(
                "the store belongs to the parent process; instantiate the module again"
            )
        if self._closed:
            if operation is not None:
                return Interrupted("closed")
            return anyio.ClosedResourceError("the store has been closed")
        if self._native is not None and self._native.mine():
            return anyio.BusyResourceError(
                "using this store: a finalizer or signal handler has interrupted its use"
            )
        return anyio.BusyResourceError("using this store: another thread runs its guest")

    def busy(self) -> Exception:
        """Return the error for a call that cannot wait for its turn."""
        return anyio.BusyResourceError(
            "calling synchronously into this store: another call is suspended in it; await "
            "call_async instead, or use Store(interleave=True)"
        )

    def lane(self, outer: HostCall | None) -> Lane | None:
        """Return the room that a call made on behalf of *outer* needs; None: it needs none."""
        if self.interleave and not (self._native is not None and self._native.guarded):
            return None
        while outer is not None:
            if outer.active and outer.store is self:
                return outer.operation.children
            outer = outer.outer
        return self.root

    def check_turn(self) -> None:
        """Raise BusyResourceError unless the caller may run something right now."""
        lane = self.lane(innermost())
        if lane is not None and lane.clear() is not None:
            raise self.busy()

    # what operations need

    def entering(self, operation: Operation) -> None:
        """Note that *operation* is alive."""
        if self._closed:
            raise self.unavailable(operation if operation.begun else None)
        handle = self._native
        if handle is not None and handle.handed is not None:
            if handle.handed() is not operation.fiber and not self.outwait():
                raise self.unavailable(operation)
            handed = None if handle.handed is None else handle.handed()
            if handed is not None and handed is not operation.fiber:
                if handle.answering is not None:  # its host function is what starts this one
                    handle.answering.begin()
                else:  # a signal handler has torn its call apart before it went on
                    abandon(handed)
                handle.handed = None
        if handle is not None and handle.standing and not operation.stands:
            if not self.outwait():
                raise self.unavailable(operation)
            known = speedups.stack_call(handle)
            if known is not None:  # its host function is what starts this one
                known.operation  # noqa: B018  # is made, and takes the room
        self._operations[operation] = None
        if handle is not None:
            handle.detour = True
            handle.quick = False

    def settled(self, operation: Operation) -> None:
        """Note that *operation* has the room, or stands in line, if it is one that had begun."""
        handle = self._native
        if handle is not None and handle.handed is not None and operation.fiber is not None:
            if handle.handed() is operation.fiber:
                handle.handed = None

    def stopped(self, operation: Operation) -> bool:
        """Return whether *operation* must not begin: another thread's call has, unknown to all."""
        handle = self.handle
        return not operation.begun and _begun(handle) and handle.handed_by != threading.get_ident()

    def _alive(self) -> list[Operation]:
        """Return the operations that are alive, oldest first."""
        if not self.__dict__.get("_operations"):  # for which looking into it costs too much
            return []
        while True:
            try:
                return list(self._operations)
            except RuntimeError:
                pass  # another thread has come or gone meanwhile

    def left(self, operation: Operation) -> None:
        """Note that *operation* is over."""
        self._operations.pop(operation, None)
        handle = self._native
        if handle is not None and not self._operations and not self._closed:
            handle.detour = not self.direct or self.sync_deadline_seconds is not None
            if handle.dropped:
                self.sweep()
            handle.quick = (
                self._stride == NEAR
                and not self.sleeps
                and (speedups is not None or not self.hosts)
                and not _alive(handle.handed)  # that has refused this one
            )
        if pending_drops():
            drain()

    def prepare_fiber(self) -> None:
        """Set the clock so that the guest yields at the next tick. The caller is inside."""
        handle = self._native
        assert handle is not None
        handle.begin_yielding()
        self.make_waitable()
        if not handle.near:
            handle.set_deadline(NEAR)
        ticker = self.engine.ticker
        ticker.need()
        if ticker.stride != self._stride:
            self._stride = ticker.stride
            handle.stride = self._stride

    def goes_on_ticking(self) -> bool:
        """Keep the clock ticking for a fiber that was prepared; False if that has to be done anew."""
        clock = self.engine.ticker.clock
        if clock.parked or clock.manual or self._stride != NEAR or not self.handle.near:
            return False
        clock.needed = True
        return True

    def prepare_direct(self) -> None:
        """
        Set the clock so that the guest never yields. The caller is inside.

        With a deadline the clock runs until `finish_direct`, and ends the guest when it is due.
        """
        assert self._native is not None
        self._native.roomless = True
        seconds = self.sync_deadline_seconds
        if seconds is not None:
            ticker = self.engine.ticker
            ticker.hold(self)
            self._native.set_deadline(min(ticker.ticks(seconds), FAR))
            return
        if self._native.soon:
            self._native.set_deadline(FAR)
        if not self._operations and self.direct:
            self._native.detour = False

    def finish_direct(self) -> None:
        """Note that the guest has ended, and undo what a deadline took. The caller is inside."""
        assert self._native is not None
        self._native.roomless = False
        if self.sync_deadline_seconds is not None:
            self.engine.ticker.release(self)
            self._native.set_deadline(FAR)

    @property
    def direct(self) -> bool:
        """
        Whether guests may run on the calling thread's own stack.

        If they reach host functions, those have to be plain; the collector has to find no
        references on a stack that another thread does not see; and deadlines are not watched there.
        """
        return self.engine.fits_threads and not (
            self.hosts
            and (
                self._foreign
                or speedups is None
                or self.handle.guarded
                or self.sync_deadline_seconds is not None
            )
        )

    @property
    def asynchronous(self) -> bool:
        """Whether the native store insists on fibers."""
        yields = speedups is None and self._native is not None and self._native.yields
        return yields or bool(self.hosts) or self.scope is not None

    def drop_fiber(self, fiber: Fiber, values: tuple[int, int] | None) -> None:
        """Unwind and free a fiber, and the roots it was given."""
        handle = self._native
        assert handle is not None
        if not handle.open or not handle.ours:
            return  # the store has deleted its futures
        if handle.mine():  # a collection in there has ended a call that nobody drives any more
            handle.dropped.append((fiber, values))
            return
        with handle.lock:
            if not handle.open:
                return  # closed while we waited
            if fiber.finished:
                exceptions.forget(self, *fiber.outcome())
            fiber.delete()
            if values is not None:
                unroot(*values)
            exceptions.let_go(self)
        if handle.pending:
            handle.close()

    def sweep(self) -> None:
        """Free the fibers that could not be freed from inside."""
        handle = self.handle
        while handle.dropped and not handle.mine():
            self.drop_fiber(*handle.dropped.pop())

    # host functions

    def make_waitable(self) -> None:
        """Prepare for plain host functions that are called on fibers. The caller is inside."""
        handle = self.handle
        if handle.hosted and not handle.waitable:
            make_waiter(handle)

    def be_waitable(self) -> None:
        """Do that now, unless somebody is inside. Not from inside."""
        handle = self.handle
        if handle.hosted and not handle.waitable and not handle.lock.locked():
            with handle.lock:
                if handle.open and handle.ours:
                    self.make_waitable()

    def add_hosts(self, hosts: Sequence[HostFunction]) -> int:
        """Give *hosts* numbers, and return the first one's."""
        first = len(self.hosts)
        plain = [host.plain for host in hosts]
        self.take_hosts([*self.hosts, *hosts], plain)
        handle = self.handle
        if None in plain:
            self._foreign = True
        if speedups is None:
            handle.quick = False
        if not self.direct:
            handle.detour = True
        return first

    def take_hosts(self, hosts: list[HostFunction], plain: list[Any]) -> None:
        """Have *hosts*, the newest of which are *plain* where the accelerator calls them."""
        self.hosts = hosts
        self.plain_hosts.extend(plain)
        handle = self.handle
        if speedups is not None:
            handle.hosted = True

    def define_function(self, type: FunctionType, host: HostFunction) -> tuple[int, int]:
        """Make *host* a function of the store, and return it raw."""
        with self._bind_lock, self.entered():
            handle = self.opened()
            native: Handle = native_function_type(handle.engine, type)
            linker = Linker(handle.engine)
            plain = host.plain is not None
            linker.define_host("", "", native, self.add_hosts([host]), plain=plain)
            return linker.get("", "", handle).raw

    # functions and exceptions; the classes live above, and say here how they are made

    function_class: type[Any]
    function_maker: staticmethod[[StoreCore, tuple[int, int], FunctionType], Any]
    exception_maker: staticmethod[[StoreCore, Extern, list[Any], Root], BaseException]

    def is_function(self, value: object) -> bool:
        return isinstance(value, self.function_class)

    def function_to_raw(self, function: Any) -> tuple[int, int]:
        raw: tuple[int, int] = function._raw_in(self)
        return raw

    def remember(self, identity: tuple[Any, ...], value: object) -> None:
        """Have *value* be known as long as it lives."""
        self.own_known()[identity] = value

    def own_known(self) -> Known:
        """Return what is `known`, to be added to."""
        known: Known | None = self.__dict__.get("known")
        if known is None:  # in one step: of several threads that ask at once all get the same
            known = self.__dict__.setdefault("known", Known())
        return known

    def function_from_raw(self, raw: tuple[int, int]) -> Any:
        identity = externs.function_identity(raw)
        known = self.known.get(identity)
        if known is None:
            known = self.function_maker(self, raw, externs.function_type(self.handle, raw))
            self.remember(identity, known)
        return known


def _alive(reference: weakref.ref[Any] | None) -> bool:
    return reference is not None and reference() is not None


def _begun(handle: StoreHandle) -> bool:
    """Return whether there is a call in the store of which nobody knows yet."""
    return bool(handle.standing) or _alive(handle.handed)

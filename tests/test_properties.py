"""
Whatever the values, the types, the graph: what goes in comes out.

20 examples of each, the same every time; 1,000 random ones with HYPOTHESIS_PROFILE=nightly.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import asyncwasm as aw

from .support import instance

NUMBERS = ("i32", "i64", "f32", "f64")
MOST = 50  # parameters, and results


class Thing:
    """A host value."""


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Await in an event loop of its own."""
    return asyncio.run(coroutine)


# values, and what becomes of them


def _integers(bits: int) -> st.SearchStrategy[int]:
    edges = [0, 1, -1, 1 << (bits - 1), (1 << bits) - 1, -(1 << (bits - 1)), (1 << (bits - 1)) - 1]
    inside = st.integers(-(1 << (bits - 1)), (1 << bits) - 1)
    return st.sampled_from(edges) | inside | st.booleans()


_SPECIAL = [math.nan, -math.nan, math.inf, -math.inf, -0.0, 5e-324, 1e-45, 3.4028235677973366e38]
_floats: st.SearchStrategy[Any] = (
    st.floats()
    | st.floats(width=32)
    | st.sampled_from(_SPECIAL)
    | st.integers(-(2**70), 2**70)
    | st.booleans()
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "i32": _integers(32),
    "i64": _integers(64),
    "f32": _floats,
    "f64": _floats,
    "v128": st.binary(min_size=16, max_size=16),
    "externref": st.none() | st.builds(Thing) | st.integers() | st.text() | st.builds(list),
    "anyref": st.none() | st.integers(-(2**30), 2**30 - 1) | st.builds(Thing),
    # Not bound to a store yet, so that they go wherever they are wanted.
    "funcref": st.none() | st.builds(lambda: aw.Function(((), ()), print)),
}
TYPES = [*VALUES]


def wanted(type_: str, value: Any) -> Any:
    """Return what *value* is once it has been a value of the type."""
    if type_ in ("i32", "i64"):
        bits = int(type_[1:])
        return (int(value) + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))
    if type_ == "f32":
        number = float(value)
        try:
            return struct.unpack("<f", struct.pack("<f", number))[0]
        except OverflowError:
            return math.copysign(math.inf, number)
    return float(value) if type_ == "f64" else value


def same(left: Any, right: Any) -> bool:
    """Compare as bits; any NaN is as good as another."""
    if isinstance(left, float) and isinstance(right, float):
        if math.isnan(left) or math.isnan(right):
            return math.isnan(left) and math.isnan(right)
        return struct.pack("<d", left) == struct.pack("<d", right)
    if isinstance(left, (Thing, list, aw.ExportedFunction)):
        return left is right
    return type(left) is type(right) and bool(left == right)


def fits(types: Sequence[str], values: Sequence[Any], results: Any) -> bool:
    """Return whether *results* is what a call with these results returns for *values*."""
    if len(types) < 2:
        results = (results,) if types else ()
    return len(results) == len(values) and all(
        same(result, wanted(type_, value))
        for type_, value, result in zip(types, values, results, strict=True)
    )


# one value, every way in and out


@cache
def _identity(type_: str) -> Any:
    return instance(f"""(module (global (export "g") (mut {type_}) ({type_}.const 0))
      (func (export "f") (param {type_}) (result {type_}) (local.get 0)))""").exports


@cache
def _caller(type_: str) -> tuple[Any, list[Any]]:
    seen: list[Any] = []

    def host(value: Any) -> Any:
        seen.append(value)
        return value

    text = f"""(module (import "m" "f" (func $f (param {type_}) (result {type_})))
      (func (export "f") (param {type_}) (result {type_}) (call $f (local.get 0))))"""
    return instance(text, {"m": {"f": host}}).exports.f, seen


def _call(type_: str, value: Any) -> Any:
    return _identity(type_).f(value)


def _call_async(type_: str, value: Any) -> Any:
    return run(_identity(type_).f.call_async(value))


def _imported(type_: str, value: Any) -> Any:
    function, seen = _caller(type_)
    result = function(value)
    assert same(seen[-1], result)
    return result


def _imported_async(type_: str, value: Any) -> Any:
    return run(_caller(type_)[0].call_async(value))


def _import_result(type_: str, value: Any) -> Any:
    text = f"""(module (import "m" "f" (func $f (result {type_})))
      (func (export "f") (result {type_}) (call $f)))"""
    return instance(text, {"m": {"f": lambda: value}}).exports.f()


def _unbound_global(type_: str, value: Any) -> Any:
    return aw.Global(type_, value).value


def _exported_global(type_: str, value: Any) -> Any:
    _identity(type_)["g"].value = value
    return _identity(type_)["g"].value


def _imported_global(type_: str, value: Any) -> Any:
    text = f"""(module (import "m" "g" (global {type_}))
      (func (export "f") (result {type_}) (global.get 0)))"""
    return instance(text, {"m": {"g": value}}).exports.f()


def _function(type_: str, value: Any) -> Any:
    return aw.Function(([type_], [type_]), lambda x: x)(value)


def _function_async(type_: str, value: Any) -> Any:
    async def host(x: Any) -> Any:
        return x

    return run(aw.Function(([type_], [type_]), host).call_async(value))


def _payload(type_: str, value: Any) -> Any:
    return aw.WasmException(aw.Tag([type_]), [value]).payload[0]


WAYS: dict[str, Callable[[str, Any], Any]] = {
    "call": _call,
    "call_async": _call_async,
    "import": _imported,
    "import-awaited": _imported_async,
    "import-result": _import_result,
    "Global": _unbound_global,
    "exported-Global": _exported_global,
    "imported-global": _imported_global,
    "Function": _function,
    "Function-awaited": _function_async,
    "WasmException": _payload,
}
in_every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
of_every_number = pytest.mark.parametrize("type_", NUMBERS)


@in_every_way
@of_every_number
@given(data=st.data())
def test_number_comes_back_as_the_nearest_of_its_type(
    way: Callable[[str, Any], Any], type_: str, data: st.DataObject
) -> None:
    value = data.draw(VALUES[type_])

    assert same(way(type_, value), wanted(type_, value))


@in_every_way
@pytest.mark.parametrize("type_", ["i32", "i64"])
@given(data=st.data())
def test_integer_out_of_range_never_gets_in(
    way: Callable[[str, Any], Any], type_: str, data: st.DataObject
) -> None:
    bits = int(type_[1:])
    value = data.draw(
        st.integers(min_value=1 << bits) | st.integers(max_value=-(1 << (bits - 1)) - 1)
    )

    # An import is checked when it is linked.
    errors = (OverflowError, aw.LinkError) if way is _imported_global else OverflowError
    with pytest.raises(errors):
        way(type_, value)


@pytest.mark.parametrize(
    ("type_", "integer", "layout"), [("f32", "i32", "<fi"), ("f64", "i64", "<dq")]
)
@given(value=_floats)
@example(value=-0.0)
def test_guest_sees_the_bits_of_a_float(type_: str, integer: str, layout: str, value: Any) -> None:
    bits = _reinterpreting(type_, integer)
    expected = wanted(type_, value)
    assume(not math.isnan(expected))

    seen = bits(value)

    assert struct.pack(layout[0] + layout[2], seen) == struct.pack(layout[:2], expected)
    assert run(bits.call_async(value)) == seen


@cache
def _reinterpreting(type_: str, integer: str) -> Any:
    return instance(f"""(module (func (export "f") (param {type_}) (result {integer})
      ({integer}.reinterpret_{type_} (local.get 0))))""").exports.f


@pytest.mark.parametrize("bits", [32, 64])
@given(payload=st.integers(1, 2**51), quiet=st.booleans(), negative=st.booleans())
def test_nan_of_a_guest_is_a_nan(bits: int, payload: int, quiet: bool, negative: bool) -> None:
    mantissa, exponent = (23, 0xFF) if bits == 32 else (52, 0x7FF)
    pattern = (
        negative << (bits - 1)
        | exponent << mantissa
        | quiet << (mantissa - 1)
        | (payload % ((1 << (mantissa - 1)) - 1) + 1)
    )
    make = _nan_maker(bits)

    assert math.isnan(make(pattern))
    assert math.isnan(run(make.call_async(pattern)))


@cache
def _nan_maker(bits: int) -> Any:
    return instance(f"""(module (func (export "f") (param i{bits}) (result f{bits})
      (f{bits}.reinterpret_i{bits} (local.get 0))))""").exports.f


# rows of values


class Signature:
    """A function type whose results are some of its parameters, in any order."""

    def __init__(self, parameters: list[str], picked: list[int]) -> None:
        self.parameters = parameters
        self.picked = picked if parameters else []
        self.results = [parameters[index] for index in self.picked]
        self.type = aw.FunctionType(parameters, self.results)

    def __repr__(self) -> str:
        return f"{self.type} of {self.picked}"

    @property
    def text(self) -> str:
        """The type in the text format."""
        parameters = "".join(f"(param {each})" for each in self.parameters)
        return parameters + "".join(f"(result {each})" for each in self.results)

    def answer(self, *values: Any) -> Any:
        """Do in Python what the function does."""
        picked = tuple(values[index] for index in self.picked)
        return None if not picked else picked[0] if len(picked) == 1 else picked


@st.composite
def signatures(draw: st.DrawFn, types: Sequence[str] = TYPES) -> Signature:
    least, most = draw(st.sampled_from([(0, 3), (0, MOST), (MOST, MOST)]))
    parameters = draw(st.lists(st.sampled_from(types), min_size=least, max_size=most))
    last = max(len(parameters) - 1, 0)
    picked = st.lists(st.integers(0, last), min_size=least, max_size=most)
    return Signature(parameters, draw(picked))


def _arguments(data: st.DataObject, signature: Signature) -> list[Any]:
    return [data.draw(VALUES[type_]) for type_ in signature.parameters]


def _check(signature: Signature, arguments: list[Any], results: Any) -> None:
    picked = [arguments[index] for index in signature.picked]
    assert fits(signature.results, picked, results)


@given(signature=signatures(), data=st.data())
def test_any_row_of_values_goes_through_a_guest(signature: Signature, data: st.DataObject) -> None:
    gets = "".join(f"(local.get {index})" for index in signature.picked)
    function = instance(f'(module (func (export "f") {signature.text} {gets}))').exports.f
    arguments = _arguments(data, signature)

    _check(signature, arguments, function(*arguments))
    _check(signature, arguments, run(function.call_async(*arguments)))
    assert function.type == signature.type


@given(signature=signatures(), data=st.data(), suspends=st.booleans())
def test_any_row_of_values_goes_through_an_import(
    signature: Signature, data: st.DataObject, suspends: bool
) -> None:
    async def suspending(*values: Any) -> Any:
        await asyncio.sleep(0)
        return signature.answer(*values)

    gets = "".join(f"(local.get {index})" for index in range(len(signature.parameters)))
    text = f"""(module (import "m" "f" (func $f {signature.text}))
      (func (export "f") {signature.text} {gets} (call $f)))"""
    imports = {"m": {"f": suspending if suspends else signature.answer}}
    function = instance(text, imports).exports.f
    arguments = _arguments(data, signature)

    _check(signature, arguments, run(function.call_async(*arguments)))
    if suspends:
        with pytest.raises(aw.SuspendError):
            function(*arguments)
    else:
        _check(signature, arguments, function(*arguments))


@given(signature=signatures(), data=st.data())
def test_any_row_of_values_goes_through_a_table(signature: Signature, data: st.DataObject) -> None:
    gets = "".join(f"(local.get {index})" for index in range(len(signature.parameters)))
    text = f"""(module (type $t (func {signature.text})) (table (export "t") 1 funcref)
      (func (export "f") {signature.text} {gets} (call_indirect (type $t) (i32.const 0))))"""
    exports = instance(text).exports
    function = aw.Function(signature.type, signature.answer)
    exports.t[0] = function
    arguments = _arguments(data, signature)

    assert exports.t[0] is function
    _check(signature, arguments, exports.f(*arguments))
    _check(signature, arguments, run(exports.f.call_async(*arguments)))
    _check(signature, arguments, function(*arguments))


@given(signature=signatures(types=NUMBERS), data=st.data())
def test_any_row_of_numbers_is_the_same_with_more_care(
    signature: Signature, data: st.DataObject
) -> None:
    """Once awaited, a store takes another way into the guest than before."""
    gets = "".join(f"(local.get {index})" for index in signature.picked)
    function = instance(f'(module (func (export "f") {signature.text} {gets}))').exports.f
    arguments = _arguments(data, signature)

    before = function(*arguments)
    run(function.call_async(*arguments))
    after = function(*arguments)

    _check(signature, arguments, before)
    _check(signature, arguments, after)


@given(signature=signatures(), data=st.data(), more=st.booleans())
def test_wrong_number_of_arguments_is_always_a_type_error(
    signature: Signature, data: st.DataObject, more: bool
) -> None:
    gets = "".join(f"(local.get {index})" for index in signature.picked)
    function = instance(f'(module (func (export "f") {signature.text} {gets}))').exports.f
    arguments = _arguments(data, signature)
    assume(more or arguments)
    wrong = [*arguments, 1] if more else arguments[:-1]

    with pytest.raises(TypeError, match="argument"):
        function(*wrong)
    with pytest.raises(TypeError, match="argument"):
        run(function.call_async(*wrong))


@given(signature=signatures(), data=st.data())
def test_any_exception_payload_goes_through_a_guest(
    signature: Signature, data: st.DataObject
) -> None:
    parameters = "".join(f"(param {each})" for each in signature.parameters)
    gets = "".join(f"(local.get {index})" for index in range(len(signature.parameters)))
    exports = instance(f"""(module (tag $e (export "e") {parameters})
      (func (export "throw") {parameters} {gets} (throw $e)))""").exports
    arguments = _arguments(data, signature)

    for awaited in (False, True):
        with pytest.raises(aw.WasmException) as caught:
            run(exports.throw.call_async(*arguments)) if awaited else exports.throw(*arguments)
        assert caught.value.is_tag(exports.e)
        assert len(caught.value.payload) == len(arguments)
        for type_, value, result in zip(
            signature.parameters, arguments, caught.value.payload, strict=True
        ):
            assert same(result, wanted(type_, value))


# graphs of modules

KINDS = ("function", "memory", "table", "global", "tag")
DECLARED = {
    "function": "(func {id} (param i32) (result i32))",
    "memory": "(memory {id} 1)",
    "table": "(table {id} 2 funcref)",
    "global": "(global {id} (mut i32))",
    "tag": "(tag {id} (param i32))",
}
DEFINED = {
    "function": "(func {id} (param i32) (result i32) (i32.add (local.get 0) (i32.const {n})))",
    "memory": "(memory {id} 1)",
    "table": "(table {id} 2 funcref)",
    "global": "(global {id} (mut i32) (i32.const {n}))",
    "tag": "(tag {id} (param i32))",
}
WORDS = {"function": "func"}
_names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


class Node:
    """A module of a graph: what it imports from others, what it defines, what it exports."""

    def __init__(
        self, imports: list[tuple[int, int]], own: list[str], awaited: bool, names: list[str]
    ) -> None:
        self.imports = imports  # (node, export) before it
        self.own = own  # kinds
        self.awaited = awaited
        self.names = names

    def __repr__(self) -> str:
        return f"Node({self.imports}, {self.own}, {self.awaited}, {self.names})"


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    nodes: list[Node] = []
    for index in range(draw(st.integers(1, 6))):
        choices = [
            (other, export)
            for other in range(index)
            for export in range(len(nodes[other].imports) + len(nodes[other].own))
        ]
        imports = draw(st.lists(st.sampled_from(choices), max_size=6)) if choices else []
        own = draw(st.lists(st.sampled_from(KINDS), max_size=5))
        count = len(imports) + len(own)
        names = draw(st.lists(_names, min_size=count, max_size=count, unique=True))
        nodes.append(Node(imports, own, draw(st.booleans()), names))
    return nodes


def _quoted(name: str) -> str:
    return '"' + "".join(f"\\{byte:02x}" for byte in name.encode()) + '"'


class Graph:
    """The modules of a graph as instances, and what each export must be."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.kinds: list[list[str]] = []  # of the exports of each node
        self.origins: list[list[tuple[int, int]]] = []  # which node has defined it, and where
        for index, node in enumerate(nodes):
            inherited = [self.kinds[other][export] for other, export in node.imports]
            self.kinds.append(inherited + node.own)
            origins = [self.origins[other][export] for other, export in node.imports]
            first = len(node.imports)
            self.origins.append(
                origins + [(index, first + position) for position in range(len(node.own))]
            )

    def text(self, index: int) -> str:
        """Return the module of a node; every name is its own, every import its exporter's."""
        node, parts = self.nodes[index], []
        for position, (other, export) in enumerate(node.imports):
            declared = DECLARED[self.kinds[index][position]].format(id=f"$x{position}")
            name = _quoted(self.nodes[other].names[export])
            parts.append(f'(import "{other}" {name} {declared})')
        for position, kind in enumerate(node.own, len(node.imports)):
            parts.append(DEFINED[kind].format(id=f"$x{position}", n=100 * index + position))
        for position, kind in enumerate(self.kinds[index]):
            word = WORDS.get(kind, kind)
            parts.append(f"(export {_quoted(node.names[position])} ({word} $x{position}))")
        return f"(module {' '.join(parts)})"

    async def link(self) -> list[aw.Instance]:
        """Instantiate every node with the exports of those before it."""
        made: list[aw.Instance] = []
        for index, node in enumerate(self.nodes):
            module = aw.Module(aw.wat2wasm(self.text(index)))
            imports = {str(other): each.exports for other, each in enumerate(made)}
            if node.awaited:
                made.append(await aw.instantiate(module, imports))
            else:
                made.append(aw.Instance(module, imports))
        return made

    def export(self, made: list[aw.Instance], index: int, position: int) -> Any:
        """Return an export of a node."""
        return made[index].exports[self.nodes[index].names[position]]

    def every(self) -> list[tuple[int, int, str]]:
        """Return (node, export, kind) of every export."""
        return [
            (index, position, kind)
            for index, kinds in enumerate(self.kinds)
            for position, kind in enumerate(kinds)
        ]


async def _check_graph(nodes: list[Node]) -> None:
    graph = Graph(nodes)
    with aw.Store() as store:
        made = await graph.link()

        assert {each.store for each in made} == {store}
        for index, position, kind in graph.every():
            value = graph.export(made, index, position)
            owner, place = graph.origins[index][position]
            assert value is graph.export(made, owner, place), "one thing, one object"
            if kind == "function":
                assert value(1) == await value.call_async(1) == 1 + 100 * owner + place
            elif kind == "global":
                assert value.value == 100 * owner + place
        for index, node in enumerate(nodes):
            assert list(made[index].exports) == node.names
        _change(graph, made)


def _change(graph: Graph, made: list[aw.Instance]) -> None:
    """Change everything through its last export, and look through its first."""
    functions = [value for each in made for value in each.exports.values() if callable(value)]
    for number, (index, position, kind) in enumerate(graph.every()):
        value = graph.export(made, index, position)
        origin = graph.export(made, *graph.origins[index][position])
        if kind == "global":
            value.value = number
            assert origin.value == number
        elif kind == "memory":
            value.write(number, b"\x2a")
            assert origin.read(number, 1) == b"\x2a"
        elif kind == "table" and functions:
            value[1] = functions[-1]
            assert origin[1] is functions[-1]
        elif kind == "tag":
            assert aw.WasmException(value, [number]).is_tag(origin)


@given(nodes=graphs())
def test_any_graph_of_modules_is_linked_in_one_store(nodes: list[Node]) -> None:
    run(_check_graph(nodes))


@given(nodes=graphs())
def test_any_connected_graph_finds_its_store_alone(nodes: list[Node]) -> None:
    """Without `with`, a module that imports nothing gets a store of its own."""
    assume(all(node.imports for node in nodes[1:]))

    made = run(Graph(nodes).link())

    assert len({each.store for each in made}) == 1

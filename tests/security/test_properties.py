"""What must hold for any input: the checks answer with a `SutureError` or a graph, and a graph survives its text."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.security.write_corpus import GOOD

from suture_contract.errors import SutureError
from suture_contract.model.format import PortableHeader, read_header
from suture_contract.model.graph import DType, Graph, Input, Node, Ref, SameDevice
from suture_contract.model.graph_json import graph_from_json, graph_to_json, leaves
from suture_contract.model.metadata import ModelMetadata
from suture_contract.model.operators import ATEN, DTYPES
from suture_stitching.portable.dry_run import Budget, measure
from suture_stitching.portable.program import Program

quick = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
TEXT = (GOOD / "cnn.safetensors").read_bytes()
LENGTH = int.from_bytes(TEXT[:8], "little")
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["n", "d", "f", "device", "x"]), inner),
    max_leaves=12,
)
specs = st.builds(
    Input,
    st.lists(st.none() | st.integers(0, 2**31 - 1), max_size=8).map(tuple),
    st.sampled_from(sorted(DTYPES)),
)


def read(content: bytes) -> PortableHeader:
    return read_header(lambda offset, length: content[offset : offset + length], len(content))


# What a strategy can draw is worked out when it is first asked for, which takes longer than to draw: each is made once.
@cache
def arguments(before: int) -> st.SearchStrategy[Any]:
    """Arguments of a node that `before` others come before."""
    plain = (
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False)
        | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
        | st.builds(Ref, st.integers(0, before - 1))
        | st.builds(DType, st.sampled_from(sorted(DTYPES)))
        | st.just(SameDevice())
    )
    return st.recursive(plain, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=6)


@cache
def node(before: int) -> st.SearchStrategy[Node]:
    """A node that `before` others come before, valid in form, with any operator on any arguments."""
    return st.builds(
        Node,
        st.sampled_from(sorted(ATEN)),
        st.lists(arguments(before), max_size=4).map(tuple),
        st.dictionaries(st.sampled_from(["dim", "dtype", "stride", "alpha"]), arguments(before), max_size=2),
        st.sampled_from(["", "block", "block.conv"]),
    )


@cache
def output(nodes: int) -> st.SearchStrategy[Any]:
    """What a graph of so many nodes may give."""
    leaf = st.builds(Ref, st.integers(0, nodes - 1))
    several = st.lists(leaf, min_size=1, max_size=3).map(tuple)
    return leaf | several | st.dictionaries(st.sampled_from(["y", "mask", "logits"]), leaf, min_size=1, max_size=3)


length = st.integers(2, 9)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Graphs valid in form, with any operators on any arguments."""
    nodes = [Node("input", (0,)), *(draw(node(before)) for before in range(1, draw(length)))]
    given = draw(output(len(nodes)))
    return Graph((draw(specs),), tuple(nodes), given, tuple(draw(specs) for _ in leaves(given)))


@quick
@given(graphs(), st.lists(st.integers(0, 64), max_size=6))
def test_any_graph_survives_its_text_and_is_refused_or_keeps_to_the_budget(graph, shape):
    assert graph_from_json(graph_to_json(graph)) == graph
    try:
        cost = measure(Program(graph), {}, [shape], Budget(10**12, 2**30)).cost
    except SutureError as error:
        found = error.code
    else:
        assert cost.bound_bytes >= cost.peak_bytes <= 2**30
        assert cost.flops <= 10**12
        return
    assert found in ("model.arguments", "model.run_failed", "model.outputs", "model.over_budget", "input.shape")


@quick
@given(st.binary(max_size=300))
def test_any_bytes(content):
    with pytest.raises(SutureError):
        read(content)


@quick
@given(st.integers(0, len(TEXT) - 1), st.binary(max_size=6), st.integers(0, 6))
def test_bytes_put_into_a_model(at, put, removed):
    try:
        header = read(TEXT[:at] + put + TEXT[at + removed :])
    except SutureError:
        return
    assert header.data_start + max(info.end for info in header.tensors.values()) == header.size


@quick
@given(st.integers(0, len(TEXT) - 1))
def test_no_part_of_a_model_is_a_model(length):
    with pytest.raises(SutureError):
        read(TEXT[:length])


@quick
@given(st.text(max_size=200))
def test_any_text(text):
    with pytest.raises(SutureError):
        graph_from_json(text)


@quick
@given(st.data())
def test_any_value_anywhere_in_a_graph(data):
    header = json.loads(TEXT[8 : 8 + LENGTH])
    graph = json.loads(header["__metadata__"]["graph"])
    container: Any = graph
    while True:
        keys = list(container) if isinstance(container, dict) else range(len(container))
        key = data.draw(st.sampled_from(list(keys)))
        inner = container[key]
        if not isinstance(inner, list | dict) or not inner or data.draw(st.booleans()):
            break
        container = inner
    container[key] = data.draw(json_values)
    try:
        found = graph_from_json(json.dumps(graph))
    except SutureError:
        return
    assert graph_from_json(graph_to_json(found)) == found or "nan" in json.dumps(graph).lower()


@quick
@given(json_values)
def test_any_metadata(value):
    with pytest.raises(SutureError):
        ModelMetadata.from_json(json.dumps(value))

"""Results that take the place of what nobody reads any more: the same bits, and nothing else is ever written to."""

from __future__ import annotations

import json

import pytest
import torch
from tests.security.calls import CALLS
from tests.security.mutants import call
from tests.stitching.outputs import flat
from torch import Tensor

from suture_contract.model.graph import TENSOR, Graph, Input, Node, Ref, Value
from suture_contract.model.graph_json import graph_from_json
from suture_stitching.portable import program
from suture_stitching.portable.in_place import _NEW, overwriting
from suture_stitching.portable.program import Program
from suture_stitching.portable.runtime import PortableModel

RELU, ADD, SUB, VIEW = "aten.relu.default", "aten.add.Tensor", "aten.sub.Tensor", "aten.flatten.using_ints"


def model_of(*nodes: tuple[str, tuple[Value, ...]], output: object = None) -> PortableModel:
    """Return a model that reads `n0` `(N, 3, 4)` and has the tensor `n1`, with these nodes from `n2` on."""
    every = (Node("input", (0,)), Node(TENSOR, ("t",)), *(Node(op, args) for op, args in nodes))
    graph = Graph((Input((None, 3, 4), "float32"),), every, Ref(len(every) - 1) if output is None else output)
    return PortableModel(graph, {"t": torch.linspace(-1, 1, 4)})


def overwritten(model: PortableModel) -> set[int]:
    plan = model.program.plan(model._output_nodes)
    return {step.node for step in plan.steps if step.run is not step.run_over}


def never_over(model: PortableModel, x: Tensor) -> list[Tensor]:
    """Return what the model gives when no result is written over another.

    Without gradients, as what it is compared with: with them, a recurrent network may run by other kernels.
    """
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(program, "overwriting", lambda *_: set())
        again = PortableModel(model.graph, model.tensors)
        found = flat(again(x))
    assert not overwritten(again)
    return found


def test_every_network_gives_the_same_bits(network):
    model, x = network.load(), network.batch(3)
    before = [x.clone(), *(tensor.clone() for tensor in model.tensors.values())]
    want = never_over(model, x)
    with torch.no_grad():
        for _ in range(2):
            assert all(torch.equal(one, other) for one, other in zip(flat(model(x)), want, strict=True))
    assert all(torch.equal(a, b) for a, b in zip([x, *model.tensors.values()], before, strict=True))


def test_with_gradients_every_network_gives_the_same_numbers(network):
    model, x = network.load(), network.batch(3)
    with torch.enable_grad():
        found = flat(model(x))
    for one, other in zip(found, never_over(model, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_modules_that_work_in_place_do_so_again(networks):
    model = networks("resnet").load()
    relus = {index for index, node in enumerate(model.graph.nodes) if node.op == RELU}
    assert relus <= overwritten(model)


@pytest.mark.parametrize(
    ("nodes", "may"),
    [
        ([(ADD, (Ref(0), Ref(1))), (RELU, (Ref(2),)), (SUB, (Ref(3), Ref(1)))], {3, 4}),
        # Also by another name, when that is all of it.
        ([(ADD, (Ref(0), 1)), (VIEW, (Ref(2), 1)), (RELU, (Ref(3),))], {4}),
        # What was given is not ours, and weights even less so.
        ([(RELU, (Ref(0),)), (ADD, (Ref(2), Ref(0)))], {3}),
        ([(RELU, (Ref(1),)), (ADD, (Ref(0), Ref(2)))], set()),
        ([(VIEW, (Ref(0), 1)), (RELU, (Ref(2),))], set()),
        # Somebody reads it later, itself or by another name.
        ([(ADD, (Ref(0), 1)), (RELU, (Ref(2),)), (SUB, (Ref(3), Ref(2)))], {4}),
        ([(ADD, (Ref(0), 1)), ("aten.select.int", (Ref(2), 1, 0)), (RELU, (Ref(2),)), (SUB, (Ref(4), 2))], {5, 4}),
        (
            [
                (ADD, (Ref(0), 1)),
                ("aten.slice.Tensor", (Ref(2), 1, 0, 1)),
                (RELU, (Ref(2),)),
                (SUB, (Ref(4), Ref(3))),
            ],
            {5},
        ),
        # Read and written at the same time, in another order.
        ([(ADD, (Ref(0), 1)), ("aten.flip.default", (Ref(2), (2,))), (ADD, (Ref(2), Ref(3)))], set()),
        ([(ADD, (Ref(0), 1)), (ADD, (Ref(2), Ref(2)))], set()),
        # A part of memory, or memory that several elements share, is left alone.
        ([(ADD, (Ref(0), 1)), ("aten.select.int", (Ref(2), 1, 0)), (RELU, (Ref(3),))], set()),
        (
            [
                ("aten.sum.dim_IntList", (Ref(0), (1,), True)),
                (ADD, (Ref(2), 1)),
                ("aten.expand.default", (Ref(3), (-1, 3, -1))),
                (RELU, (Ref(4),)),
            ],
            set(),
        ),
    ],
)
def test_only_own_memory_that_nobody_reads_again(nodes, may):
    model, x = model_of(*nodes), torch.randn(2, 3, 4)
    assert overwritten(model) == may
    before, weights = x.clone(), model.tensors["t"].clone()
    (want,) = never_over(model, x)
    with torch.no_grad():
        assert torch.equal(model(x), want)
    assert torch.equal(x, before)
    assert torch.equal(model.tensors["t"], weights)


def test_what_was_asked_for_outlives_the_pass():
    nodes = [(ADD, (Ref(0), 1)), (RELU, (Ref(2),)), (SUB, (Ref(3), 5.0))]
    model, x = model_of(*nodes), torch.randn(2, 3, 4)
    with torch.no_grad():
        found = model.features(["n2", "n3"], x)
        streamed = {node: value.clone() for node, value in model.stream([2, 3, 4], x)}
        kept = dict(model.stream([2, 3, 4], x))
        resumed = model.resume({"n2": found["n2"]}, x)
    assert torch.equal(found["n2"], x + 1)
    assert torch.equal(found["n3"], (x + 1).relu())
    assert torch.equal(resumed, (x + 1).relu() - 5)
    assert all(torch.equal(kept[node], streamed[node]) for node in kept)


@pytest.mark.parametrize(
    ("other", "dtype"), [(torch.randn(5, 2, 3, 4), torch.float32), (torch.randn(4).double(), torch.float64)]
)
def test_results_of_another_size_or_type_get_memory_of_their_own(other, dtype):
    graph = model_of((ADD, (Ref(0), 1)), (ADD, (Ref(2), Ref(1)))).graph
    model, x = PortableModel(graph, {"t": other}), torch.randn(2, 3, 4)
    assert overwritten(model) == {3}
    with torch.no_grad():
        assert torch.equal(model(x), (x + 1) + other)
        assert model(x).dtype == dtype


def test_gradients_are_those_of_the_values_that_were():
    model = model_of((ADD, (Ref(0), Ref(1))), ("aten.sigmoid.default", (Ref(2),)), ("aten.mul.Tensor", (Ref(3), 2.0)))
    assert overwritten(model) == {3, 4}
    x = torch.randn(2, 3, 4, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None
    inner = (x.detach() + model.tensors["t"]).sigmoid()
    assert torch.allclose(x.grad, 2 * inner * (1 - inner))


def test_operators_that_are_said_to_return_new_memory_do():
    tried = set()
    for op, tensors, args, kwargs in CALLS:
        if f"aten.{op}" not in _NEW:
            continue
        header, graph, _ = call(op, tensors, args, kwargs)
        graph["outputs"] = [{"shape": [], "dtype": "float32"}]  # whatever it is
        made = Program(graph_from_json(json.dumps(graph)))
        slots = made.slots(torch.device("cpu"))
        slots[0] = torch.rand(2, 3, 8, 8)
        for index, (name, info) in enumerate((n, i) for n, i in header.items() if n != "__metadata__"):
            assert name == f"t{index}"
            slots[1 + index] = torch.rand(info["shape"])
        held = {slot.untyped_storage().data_ptr() for slot in slots if isinstance(slot, Tensor)}
        plan = made.plan(frozenset({graph["output"]["n"]}))
        with torch.no_grad():
            for step in plan.steps:
                slots[step.node] = step.run(slots)
                assert slots[step.node].untyped_storage().data_ptr() not in held, op
        tried.add(f"aten.{op}")
    assert tried == _NEW


def test_sizes_hold_no_memory():
    nodes = [
        Node("input", (0,)),
        Node(RELU, (Ref(0),)),
        Node("aten.sym_size.int", (Ref(1), 0)),
        Node("aten.view.default", (Ref(1), (Ref(2), 12))),
        Node(RELU, (Ref(3),)),
    ]
    kinds = Program(Graph((Input((None, 3, 4), "float32"),), tuple(nodes), Ref(4))).kinds
    last = {0: 1, 1: 3, 2: 3, 3: 4}
    assert overwriting(nodes, kinds, range(5), last, {4}) == {4}

"""The dry run: costs are right, nothing is allocated, and what is too large or does not fit is refused."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from suture_contract.errors import SutureError
from suture_contract.model.format import check_file
from suture_contract.model.graph import DType, Graph, Input, Node, Ref, SameDevice
from suture_stitching.portable.dry_run import Budget, dry_run
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import PortableModel, load

ONE = (Input((None, 4), "float32"),)


def test_outputs_have_the_sizes_they_have(network):
    model, x = network.load(), network.batch(3)
    cost = dry_run(model.graph, check_file(network.path).tensors, [x.shape])
    output = model(x)
    leaves = [output]
    while any(not isinstance(leaf, torch.Tensor) for leaf in leaves):
        leaves = [
            item
            for leaf in leaves
            for item in (
                [leaf] if isinstance(leaf, torch.Tensor) else leaf.values() if isinstance(leaf, dict) else leaf
            )
        ]
    assert [spec.shape for spec in cost.outputs] == [tuple(leaf.shape) for leaf in leaves]
    assert cost.peak_bytes >= sum(t.numel() * t.element_size() for t in model.tensors.values())


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "unet", "transformer", "signal"])
def test_flops_agree_with_torchs_counter(networks, name):
    """Products must agree exactly; element by element work, which torch's counter leaves out, adds a little."""
    network = networks(name)
    model, x = network.load(), network.batch(2)
    with (
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH),
    ):
        model(x)
    counted = counter.get_total_flops()
    ours = dry_run(model.graph, model.tensors, [x.shape]).flops
    elementwise = sum(
        value.numel() * 8
        for value in model.features(
            [
                f"n{i}"
                for i, node in enumerate(model.graph.nodes)
                if node.op.startswith("aten.") and model.program.kinds[i] == "tensor"
            ],
            x,
        ).values()
    )
    assert counted <= ours <= counted + elementwise


def test_recurrent_flops():
    lstm = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)
    weights = sum(p.numel() for p in lstm.parameters() if p.dim() == 2)
    graph_nodes = [Node("input", (0,))]
    names = []
    for name, _ in lstm.named_parameters():
        names.append(name)
        graph_nodes.append(Node("tensor", (name,)))
    state = Node("aten.zeros.default", ((4, 3, 8),), {"dtype": DType("float32"), "device": SameDevice()})
    graph_nodes.append(state)
    zeros = Ref(len(graph_nodes) - 1)
    params = tuple(Ref(i + 1) for i in range(len(names)))
    graph_nodes.append(Node("aten.lstm.input", (Ref(0), (zeros, zeros), params, True, 2, 0.0, False, True, True)))
    graph_nodes.append(Node("getitem", (Ref(len(graph_nodes) - 1), 0)))
    graph = Graph((Input((None, 5, 6), "float32"),), tuple(graph_nodes), Ref(len(graph_nodes) - 1))
    tensors = dict(lstm.named_parameters())
    cost = dry_run(graph, tensors, [(3, 5, 6)])
    assert cost.outputs == (Input((3, 5, 16), "float32"),)
    assert 2 * 3 * 5 * weights <= cost.flops <= 2 * 3 * 5 * weights + 1000
    x = torch.randn(3, 5, 6)
    with torch.no_grad():
        assert torch.equal(PortableModel(graph, tensors)(x), lstm(x)[0])


def test_peak_memory_counts_what_is_alive_at_once():
    nodes = [Node("input", (0,))] + [Node("aten.relu.default", (Ref(i),)) for i in range(10)]
    graph = Graph(ONE, tuple(nodes), Ref(10))
    # The input, held by the caller in eager code too, dies after the first step here: two values at a time.
    assert dry_run(graph, {}, [(1000, 4)]).peak_bytes == 2 * 1000 * 4 * 4


def test_views_take_no_memory():
    nodes = (
        Node("input", (0,)),
        Node("aten.unsqueeze.default", (Ref(0), 1)),
        Node("aten.expand.default", (Ref(1), (-1, 10**6, -1))),
        Node("aten.select.int", (Ref(2), 1, 0)),
    )
    assert dry_run(Graph(ONE, nodes, Ref(3)), {}, [(1000, 4)]).peak_bytes == 1000 * 4 * 4


def bomb(*nodes: Node) -> Graph:
    return Graph(ONE, (Node("input", (0,)), *nodes), Ref(len(nodes)))


BOMBS = {
    "memory": bomb(Node("aten.repeat.default", (Ref(0), (10**5, 10**5)))),
    "factory": bomb(
        Node("aten.zeros.default", ((2**30, 2**20),), {"dtype": DType("float32"), "device": SameDevice()}),
    ),
    "overflow": bomb(
        Node("aten.zeros.default", ((2**31 - 1,) * 4,), {"dtype": DType("float32"), "device": SameDevice()}),
    ),
    "padding": bomb(Node("aten.pad.default", (Ref(0), (2**31 - 1, 2**31 - 1)))),
    "doubling": bomb(*(Node("aten.cat.default", ((Ref(i), Ref(i)), 0)) for i in range(60))),
    "arithmetic": bomb(
        Node("aten.unsqueeze.default", (Ref(0), 1)),
        Node("aten.expand.default", (Ref(1), (-1, 2**22, -1))),
        Node("aten.scaled_dot_product_attention.default", (Ref(2), Ref(2), Ref(2))),
    ),
    "many results": bomb(
        Node("aten.expand.default", (Ref(0), (-1, -1))),
        Node("aten.unsqueeze.default", (Ref(1), 0)),
        Node("aten.expand.default", (Ref(2), (2**31 - 1, -1, -1))),
        Node("aten.unbind.int", (Ref(3), 0)),
        Node("getitem", (Ref(4), 0)),
    ),
    "many pieces": bomb(
        Node("aten.unsqueeze.default", (Ref(0), 0)),
        Node("aten.expand.default", (Ref(1), (2**31 - 1, -1, -1))),
        Node("aten.split.Tensor", (Ref(2), 1)),
        Node("getitem", (Ref(3), 0)),
    ),
    "long sequence": bomb(
        Node("aten.unsqueeze.default", (Ref(0), 1)),
        Node("aten.expand.default", (Ref(1), (-1, 2**30, -1))),
        Node("aten.zeros.default", ((1, 4, 4),), {"dtype": DType("float32"), "device": SameDevice()}),
        Node("aten.zeros.default", ((16, 4),), {"dtype": DType("float32"), "device": SameDevice()}),
        Node("aten.lstm.input", (Ref(2), (Ref(3), Ref(3)), (Ref(4), Ref(4)), False, 1, 0.0, False, False, True)),
        Node("getitem", (Ref(5), 0)),
    ),
    "division by zero": bomb(
        Node("aten.sym_size.int", (Ref(0), 0)),
        Node("sym.floordiv", (Ref(1), 0)),
        Node("aten.zeros.default", ((Ref(2),),), {"dtype": DType("float32"), "device": SameDevice()}),
    ),
    "endless number": bomb(
        Node("aten.sym_size.int", (Ref(0), 0)),
        Node("sym.add", (Ref(1), 2**40)),
        *(Node("sym.mul", (Ref(i + 2), Ref(i + 2))) for i in range(60)),
        Node("aten.zeros.default", ((Ref(62),),), {"dtype": DType("float32"), "device": SameDevice()}),
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_model_that_asks_for_too_much_is_refused_quickly(name):
    start = time.monotonic()
    with pytest.raises(SutureError) as refused:
        dry_run(BOMBS[name], {}, [(4, 4)], Budget(flops=10**12, bytes=2**30))
    assert refused.value.code in ("model.over_budget", "model.run_failed")
    assert time.monotonic() - start < 60


def test_a_budget_is_kept_to(networks):
    network = networks("resnet")
    model = network.load()
    cost = dry_run(model.graph, model.tensors, [(2, 3, 16, 16)])
    dry_run(model.graph, model.tensors, [(2, 3, 16, 16)], Budget(cost.flops, cost.peak_bytes))
    for budget in (Budget(cost.flops - 1, cost.peak_bytes), Budget(cost.flops, cost.peak_bytes - 1)):
        with pytest.raises(SutureError) as refused:
            dry_run(model.graph, model.tensors, [(2, 3, 16, 16)], budget)
        assert refused.value.code == "model.over_budget"


def test_loading_runs_dry_before_reading_tensors(networks):
    path = networks("resnet").path
    load(path, input_shapes=[(2, 3, 16, 16)])
    with pytest.raises(SutureError) as refused:
        load(path, input_shapes=[(2, 3, 16, 16)], budget=Budget(flops=10))
    assert refused.value.code == "model.over_budget"


def test_outputs_other_than_stated_are_refused(networks):
    network = networks("mlp")
    graph = network.load().graph
    lying = Graph(graph.inputs, graph.nodes, graph.output, (Input((None, 3), "float32"),))
    with pytest.raises(SutureError) as refused:
        dry_run(lying, network.load().tensors, [(2, 13)])
    assert refused.value.code == "model.outputs"


def test_sizes_that_do_not_fit_name_the_node(tmp_path):
    exported = export(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.randn(2, 1, 8, 8), tmp_path / "m.safetensors")
    with pytest.raises(SutureError) as refused:
        dry_run(exported.graph, exported.header.tensors, [(2, 5, 8, 8)])
    assert refused.value.code == "model.run_failed"
    assert "conv2d" in refused.value.where

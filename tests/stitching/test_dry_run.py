"""The dry run: costs are right, nothing is allocated, and what is too large or does not fit is refused."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from suture_contract.errors import SutureError
from suture_contract.model.format import check_file
from suture_contract.model.graph import DType, Graph, Input, Node, Ref, SameDevice
from suture_stitching.portable.dry_run import OBJECT_BYTES, Budget, dry_run, stranger
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import PortableModel, load, save

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
    assert dry_run(graph, {}, [(1000, 4)]).peak_bytes == 2 * (1000 * 4 * 4 + OBJECT_BYTES)


def test_views_take_memory_for_themselves_alone():
    nodes = (
        Node("input", (0,)),
        Node("aten.unsqueeze.default", (Ref(0), 1)),
        Node("aten.expand.default", (Ref(1), (-1, 10**6, -1))),
        Node("aten.select.int", (Ref(2), 1, 0)),
    )
    assert dry_run(Graph(ONE, nodes, Ref(3)), {}, [(1000, 4)]).peak_bytes == 1000 * 4 * 4 + 2 * OBJECT_BYTES


def test_each_of_many_views_counts():
    """A hundred times 8,192 views that are all alive: nothing by their numbers, 773 MiB as measured in a process."""

    def alive(count: int) -> Graph:
        """All results of `count` splits, held until one of each is read."""
        splits = [Node("aten.split.Tensor", (Ref(1), 1)) for _ in range(count)]
        items = [Node("getitem", (Ref(2 + index), 0)) for index in range(count)]
        last = Node("aten.cat.default", (tuple(Ref(2 + count + index) for index in range(count)), 0))
        return bomb(Node("aten.expand.default", (Ref(0), (8192, 4))), *splits, *items, last)

    graph, few = alive(100), alive(20)
    with pytest.raises(SutureError, match="tensors at once") as refused:
        dry_run(graph, {}, [(1, 4)])
    assert refused.value.code == "model.over_budget"
    with pytest.raises(SutureError, match="MiB of memory"):
        dry_run(graph, {}, [(1, 4)], Budget(bytes=64 * 2**20))
    cost = dry_run(few, {}, [(1, 4)])
    assert cost.peak_bytes > 20 * 8192 * 900
    assert cost.flops > 20 * 8192 * 100


@pytest.mark.parametrize(
    ("operator", "given", "work"),
    [
        ("aten.avg_pool2d.default", ((999, 999), (1, 1)), 999**2 * 2**2),
        ("aten.max_pool2d.default", (1000, 1), 10**6),
        ("aten.avg_pool2d.default", ((500, 2), (500, 2)), 10**6),
        ("aten.adaptive_avg_pool2d.default", ((1, 1),), 10**6),
        ("aten.adaptive_avg_pool2d.default", ((1000, 1000),), 10**6),
        ("aten.adaptive_max_pool2d.default", ((3000, 3000),), 9 * 10**6 * 4),
    ],
)
def test_windows_count_as_work(operator, given, work):
    """As many additions or comparisons as windows times their size: far more than numbers come out."""
    nodes = [Node("input", (0,)), Node(operator, (Ref(0), *given))]
    if "max_pool2d" in operator and "adaptive" in operator:
        nodes.append(Node("getitem", (Ref(1), 0)))
    graph = Graph((Input((None, 1, 1000, 1000), "float32"),), tuple(nodes), Ref(len(nodes) - 1))
    assert work / 3 <= dry_run(graph, {}, [(1, 1, 1000, 1000)]).flops <= 3 * work


def test_a_product_of_several_counts_all_indices():
    tensors = {name: torch.empty(shape, device="meta") for name, shape in (("a", (50, 60)), ("b", (60, 70)))}
    nodes = (
        Node("input", (0,)),
        Node("tensor", ("a",)),
        Node("tensor", ("b",)),
        Node("aten.einsum.default", ("...i,ij,jk->...", (Ref(0), Ref(1), Ref(2)))),
    )
    graph = Graph((Input((None, 8, 50), "float32"),), nodes, Ref(3))
    assert dry_run(graph, tensors, [(4, 8, 50)]).flops == 2 * 4 * 8 * 50 * 60 * 70


def test_looking_ends_when_it_shall():
    graph = Graph(ONE, (Node("input", (0,)), Node("aten.relu.default", (Ref(0),))), Ref(1))
    with pytest.raises(SutureError, match="time") as refused:
        dry_run(graph, {}, [(4, 4)], Budget(until=time.monotonic()))
    assert refused.value.code == "model.over_budget"


def test_a_strangers_model_keeps_to_a_budget_in_each_pass(tmp_path, networks):
    """Some hundred bytes that ask for 1.5 GiB with one sample; and an honest network of the zoo."""
    zeros = Node("aten.zeros.default", ((2**20, 400),), {"dtype": DType("float32"), "device": SameDevice()})
    graph = bomb(zeros, Node("aten.sum.default", (Ref(1),)), Node("aten.add.Tensor", (Ref(0), Ref(2))))
    path = tmp_path / "bomb.safetensors"
    save(graph, {}, path)
    x = torch.zeros(2, 4)
    for run in (lambda m: m(x), lambda m: m.features(["n3"], x), lambda m: list(m.stream([3], x))):
        with pytest.raises(SutureError, match="allow it more memory") as refused:
            run(load(path, budget=stranger(path.stat().st_size)))
        assert refused.value.code == "model.over_budget"
    load(path, budget=stranger(path.stat().st_size, 4))._check_budget([x])
    network = networks("unet")
    honest = load(network.path, budget=stranger(network.path.stat().st_size))
    with torch.inference_mode():
        honest(network.batch(3))
    assert len(honest._allowed) == 1


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
def test_a_model_that_asks_for_too_much_is_refused(name):
    with pytest.raises(SutureError) as refused:
        dry_run(BOMBS[name], {}, [(4, 4)], Budget(flops=10**12, bytes=2**30))
    assert refused.value.code in ("model.over_budget", "model.run_failed")


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


def test_no_operator_needs_torchs_compiler_in_a_dry_run(networks):
    """Importing it takes half as long as torch itself, in each process that looks at a model."""
    code = f"""
import sys
from tests.security.calls import CALLS
from tests.security.mutants import call, stated
from suture_stitching.inspect import inspect
from suture_stitching.portable.runtime import load
for operator in CALLS:
    stated(*call(*operator)[:2])
load({str(networks("cnn").path)!r}, input_shapes=[(2, 1, 14, 14)])
inspect({str(networks("cnn").path)!r})
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=250)

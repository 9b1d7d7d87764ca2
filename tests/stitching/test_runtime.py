"""Running: features and resume are exact, values die early, bad inputs and bad arguments are named."""

from __future__ import annotations

import time
import weakref

import pytest
import torch
from torch import Tensor

from suture_contract.errors import SutureError
from suture_contract.model.format import check_file
from suture_contract.model.graph import DType, Graph, Input, Node, Ref, SameDevice, Value, prune, references
from suture_stitching.portable.program import Program
from suture_stitching.portable.runtime import PortableModel, load, save
from suture_stitching.portable.schemas import SIZE_KIND, TENSOR_KIND


def tensor_nodes(model: PortableModel) -> list[int]:
    return [
        index
        for index, node in enumerate(model.graph.nodes)
        if model.program.kinds[index] == TENSOR_KIND and node.op not in ("input", "tensor")
    ]


def equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return isinstance(b, tuple) and len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def test_features_and_resume_are_bit_equal_everywhere(network):
    model, x = network.load(), network.batch(3)
    want = model(x)
    points = [f"n{node}" for node in tensor_nodes(model)]
    features = model.features(points, x)
    for point in points:
        assert torch.equal(model.features([point], x)[point], features[point])
        assert equal(model.resume({point: features[point]}, x), want)


def test_resume_takes_the_given_value(networks):
    network = networks("cnn")
    model, x = network.load(), network.batch(3)
    relu = next(i for i, node in enumerate(model.graph.nodes) if node.op == "aten.relu.default")
    other = torch.rand(3, 4, 12, 12)
    want = network.module[2:](other)
    assert torch.equal(model.resume({f"n{relu}": other}, x), want)
    assert torch.equal(model.resume({f"n{relu}": other}), want)


def test_gradients_flow_through_resume(networks):
    network = networks("unet")
    model, x = network.load(), network.batch(2)
    point = next(f"n{i}" for i, node in enumerate(model.graph.nodes) if node.op == "aten.conv_transpose2d.input")
    value = model.features([point], x)[point].requires_grad_()
    model.resume({point: value}, x).square().sum().backward()
    assert value.grad is not None
    assert value.grad.abs().sum() > 0


def steps_of(model: PortableModel, targets: set[int], given: set[int]) -> set[int]:
    return {step.node for step in model.program.plan(frozenset(targets), frozenset(given)).steps}


def test_only_what_is_needed_runs(networks):
    model = networks("unet").load()
    nodes = tensor_nodes(model)
    up = next(i for i in nodes if model.graph.nodes[i].module == "up2")
    bottleneck = next(references(model.graph.nodes[up]))
    before = steps_of(model, {bottleneck}, set())
    assert max(before) == bottleneck
    output = model.graph.output.node
    after = steps_of(model, {output}, {bottleneck})
    modules = {model.graph.nodes[i].module.split(".")[0] for i in after}
    assert "bottleneck" not in modules
    assert {"encoder1", "encoder2", "decoder1", "head"} <= modules


def test_values_die_as_soon_as_they_are_not_needed():
    """Peak memory of a chain is a few values, not all of them."""
    nodes = [Node("input", (0,))]
    nodes += [Node("aten.relu.default", (Ref(i),)) for i in range(20)]
    program = Program(Graph((Input((None, 4), "float32"),), tuple(nodes), Ref(20)))
    slots = program.slots(torch.device("cpu"))
    slots[0] = torch.randn(2, 4)
    alive: list[weakref.ref[Tensor]] = []
    for step in program.plan(frozenset({20})).steps:
        value = step.run(slots)
        alive.append(weakref.ref(value))
        slots[step.node] = value
        del value
        for slot in step.dead:
            slots[slot] = None
        assert sum(ref() is not None for ref in alive) == 1


def test_moving_and_casting_reach_every_tensor(networks):
    network = networks("mlp")
    model = network.load().to(torch.float64)
    assert {tensor.dtype for tensor in model.tensors.values() if tensor.is_floating_point()} == {torch.float64}
    assert {tensor.device.type for tensor in model.to("meta").tensors.values()} == {"meta"}


def test_running_statistics_are_buffers_and_weights_are_parameters(networks):
    model = networks("mlp").load()
    tensors = model.tensors
    parameters = {id(parameter) for parameter in model.parameters()}
    assert {name for name in tensors if id(tensors[name]) in parameters} == {
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "4.weight",
        "4.bias",
    }
    assert {name for name in tensors if id(tensors[name]) not in parameters} == {"1.running_mean", "1.running_var"}


def test_names_in_the_file_are_no_names_in_the_process():
    graph = Graph(
        (Input((None, 2), "float32"),),
        (Node("input", (0,)), Node("tensor", ("__class__",)), Node("aten.add.Tensor", (Ref(0), Ref(1)))),
        Ref(2),
    )
    model = PortableModel(graph, {"__class__": torch.ones(2)})
    assert type(model) is PortableModel
    assert list(model.state_dict()) == ["t0"]


def test_training_mode_changes_nothing(networks):
    network = networks("resnet")
    model, x = network.load(), network.batch(4)
    want = model(x)
    before = {name: tensor.clone() for name, tensor in model.tensors.items()}
    assert torch.equal(model.train()(x), want)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors.items())


def test_a_loaded_model_can_be_saved_again(networks, tmp_path):
    network = networks("transformer")
    model, x = network.load(), network.batch(2)
    save(model.graph, model.tensors, tmp_path / "again.safetensors")
    assert check_file(tmp_path / "again.safetensors").graph == model.graph
    assert torch.equal(load(tmp_path / "again.safetensors")(x), model(x))


def test_the_same_model_has_the_same_bytes(networks, tmp_path):
    model = networks("transformer").load()
    contents = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        save(model.graph, model.tensors, path)
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_saving_states_the_outputs_sizes(tmp_path):
    graph = Graph(
        (Input((None, 2, None, None), "float32"),),
        (
            Node("input", (0,)),
            Node("aten.adaptive_avg_pool2d.default", (Ref(0), (1, 1))),
            Node("aten.flatten.using_ints", (Ref(1), 1)),
            Node("aten.max_pool2d.default", (Ref(0), (2, 2))),
        ),
        (Ref(2), Ref(3)),
    )
    header = save(graph, {}, tmp_path / "m.safetensors")
    assert header.graph.outputs == (Input((None, 2), "float32"), Input((None, 2, None, None), "float32"))


def test_saving_what_cannot_run_leaves_the_old_file(networks, tmp_path):
    model = networks("tied").load()
    path = tmp_path / "m.safetensors"
    save(model.graph, model.tensors, path)
    before = path.read_bytes()
    broken = Graph(model.graph.inputs, (*model.graph.nodes, Node("aten.rand.default", ((2, 2),))), Ref(0))
    with pytest.raises(SutureError):
        save(broken, model.tensors, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("x", "code"),
    [
        (torch.randn(2, 12), "input.shape"),
        (torch.randn(13), "input.shape"),
        (torch.randn(2, 13, 1), "input.shape"),
        (torch.zeros(2, 13, dtype=torch.int64), "input.dtype"),
    ],
)
def test_an_input_that_does_not_fit(networks, x, code):
    with pytest.raises(SutureError) as refused:
        networks("mlp").load()(x)
    assert refused.value.code == code


def test_too_few_inputs(networks):
    with pytest.raises(SutureError) as refused:
        networks("mlp").load()()
    assert refused.value.code == "input.count"


@pytest.mark.parametrize("point", ["n0x", "17", "n99999", "n-1", "", "nn1", "size"])
def test_a_point_that_is_none(networks, point):
    model = networks("lstm").load()
    if point == "size":
        point = f"n{model.program.kinds.index(SIZE_KIND)}"
    with pytest.raises(SutureError) as refused:
        model.features([point], torch.randn(2, 7, 6))
    assert refused.value.code == "point.unknown"


def test_an_operator_that_refuses_is_named(networks):
    model = networks("resnet").load()
    point = next(f"n{i}" for i, node in enumerate(model.graph.nodes) if node.module == "layer1.1.relu")
    with pytest.raises(SutureError) as refused:
        model.resume({point: torch.randn(2, 7, 8, 8)}, torch.randn(2, 3, 16, 16))
    assert refused.value.code == "model.run_failed"
    assert "layer1.1.conv2" in str(refused.value)


def one_node(node: Node, inputs: int = 1) -> Graph:
    specs = tuple(Input((None, 4), "float32") for _ in range(inputs))
    sources = tuple(Node("input", (index,)) for index in range(inputs))
    size = Node("aten.sym_size.int", (Ref(0), 0))
    return Graph(specs, (*sources, size, node), Ref(0))


X, SIZE = Ref(0), Ref(1)


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "says"),
    [
        ("relu.default", (), {}, "self is missing"),
        ("relu.default", (X, X), {}, "at most 1"),
        ("relu.default", (SIZE,), {}, "self must be Tensor"),
        ("relu.default", (1.0,), {}, "self must be Tensor"),
        ("relu.default", (X,), {"self": X}, "given twice"),
        ("relu.default", (X,), {"out": X}, "unknown argument out"),
        ("linear.default", (X, X, 2.0), {}, "bias must be"),
        ("add.Tensor", (2.0, X), {}, "self must be Tensor"),
        ("add.Tensor", (X, "2"), {}, "other must be"),
        ("matmul.default", (X, 2.0), {}, "other must be"),
        ("cat.default", ((),), {}, "tensors must be"),
        ("cat.default", (X,), {}, "tensors must be"),
        ("cat.default", ((X, None),), {}, "tensors must be"),
        ("cat.default", ((X, X), True), {}, "dim must be int"),
        ("cat.default", ((X, X), 2**40), {}, "out of bounds"),
        ("view.default", (X, (2, 2.5)), {}, "size must be"),
        ("to.dtype", (X, "float32"), {}, "dtype must be"),
        ("zeros.default", ((2, 2),), {}, "device must be the input's"),
        ("zeros.default", ((2, 2),), {"device": SameDevice(), "pin_memory": True, "layout": 1}, "layout must be"),
        ("conv2d.default", (X, X, None, (0, 1)), {}, "stride must be at least 1"),
        ("conv2d.default", (X, X, None, 1, -1), {}, "padding must not be negative"),
        ("conv2d.default", (X, X, None, 1, 1, 1, 0), {}, "groups must be at least 1"),
        ("max_pool2d.default", (X, (0, 0)), {}, "kernel_size must be at least 1"),
        ("clone.default", (X,), {"memory_format": "torch.os"}, "memory_format must be"),
        ("batch_norm.default", (X, None, None, X, X, True, 0.1, 1e-5, False), {}, "training"),
        ("instance_norm.default", (X, None, None, X, X, True, 0.1, 1e-5, False), {}, "use_input_stats"),
        ("scaled_dot_product_attention.default", (X, X, X, None, 0.5), {}, "dropout_p must be 0"),
        ("lstm.input", (X, (X, X), (X,), True, 1, 0.0, True, False, True), {}, "train must be False"),
        ("lstm.input", (X, (X, X), (X,), True, 0, 0.0, False, False, True), {}, "num_layers must be at least 1"),
        ("split.Tensor", (X, 0), {}, "split_size must be at least 1"),
    ],
)
def test_arguments_are_checked_against_the_operators_schema(op, args, kwargs, says):
    with pytest.raises(SutureError) as refused:
        Program(one_node(Node(f"aten.{op}", args, kwargs)))
    assert refused.value.code == "model.arguments"
    assert says in refused.value.message
    assert "n2" in refused.value.where


@pytest.mark.parametrize(
    "node",
    [Node("getitem", (X, 0)), Node("sym.add", (X, 1)), Node("sym.mul", (SIZE, X))],
)
def test_kinds_of_values_are_checked(node):
    with pytest.raises(SutureError) as refused:
        Program(one_node(node))
    assert refused.value.code == "model.arguments"


def test_a_size_is_no_output():
    graph = one_node(Node("sym.add", (SIZE, 1)))
    with pytest.raises(SutureError) as refused:
        Program(Graph(graph.inputs, graph.nodes, Ref(2)))
    assert refused.value.code == "model.arguments"


@pytest.mark.parametrize("op", ["lstm", "gru"])
@pytest.mark.parametrize("damage", ["hidden", "batch", "weight", "missing", "extra", "dtype", "empty", "projection"])
def test_recurrent_states_and_weights_are_checked_at_each_call(op, damage):
    """Their kernels trust the shapes: unchecked, some of these end the process."""
    gates, hidden = (4, 8) if op == "lstm" else (3, 8)
    tensors = {
        "w_ih": torch.randn(gates * hidden, 4),
        "w_hh": torch.randn(gates * hidden, hidden),
        "b_ih": torch.zeros(gates * hidden),
        "b_hh": torch.zeros(gates * hidden),
        "h": torch.zeros(1, 2, hidden),
    }
    weights: tuple[Value, ...] = (Ref(1), Ref(2), Ref(3), Ref(4))
    if damage == "hidden":
        tensors["h"] = torch.zeros(1, 2, 3)
    elif damage == "batch":
        tensors["h"] = torch.zeros(1, 9, hidden)
    elif damage == "weight":
        tensors["w_hh"] = torch.randn(gates * hidden, 2)
    elif damage == "missing":
        weights = weights[:3]
    elif damage == "extra":
        weights = (*weights, Ref(1))
    elif damage == "dtype":
        tensors["w_hh"] = tensors["w_hh"].double()
    elif damage == "projection":  # wider than the cell
        tensors |= {"w_hh": torch.randn(gates * hidden, 9), "h": torch.zeros(1, 2, 9)}
        tensors |= {"projection": torch.randn(9, hidden), "c": torch.zeros(1, 2, hidden)}
        weights = (*weights, Ref(6))
    nodes = [Node("input", (0,))] + [Node("tensor", (name,)) for name in tensors]
    state: Value = (Ref(5), Ref(7 if "c" in tensors else 5)) if op == "lstm" else Ref(5)
    last = len(nodes)
    nodes.append(Node(f"aten.{op}.input", (Ref(0), state, weights, True, 1, 0.0, False, False, True)))
    nodes.append(Node("getitem", (Ref(last), 0)))
    graph = Graph((Input((None, None, 4), "float32"),), tuple(nodes), Ref(last + 1))
    model = PortableModel(graph, tensors)
    with pytest.raises(SutureError) as refused:
        model(torch.randn(2, 0 if damage == "empty" else 5, 4))
    assert refused.value.code == "model.run_failed"


def test_factories_go_where_the_input_is():
    graph = Graph(
        (Input((None, 2), "float32"),),
        (
            Node("input", (0,)),
            Node("aten.zeros.default", ((3,),), {"dtype": DType("float32"), "device": SameDevice()}),
        ),
        Ref(1),
    )
    model = PortableModel(graph, {})
    assert model(torch.ones(1, 2)).device.type == "cpu"
    assert model(torch.ones(1, 2, device="meta")).device.type == "meta"


def test_a_boolean_tensor_holds_only_true_and_false(tmp_path):
    graph = Graph(
        (Input((None, 2), "float32"),),
        (Node("input", (0,)), Node("tensor", ("mask",)), Node("aten.masked_fill.Scalar", (Ref(0), Ref(1), 0.0))),
        Ref(2),
    )
    path = tmp_path / "m.safetensors"
    save(graph, {"mask": torch.tensor([True, False])}, path)
    content = path.read_bytes()
    path.write_bytes(content[:-2] + b"\x01\x07")
    with pytest.raises(SutureError) as refused:
        load(path)
    assert refused.value.code == "model.tensors"


def test_pruning_keeps_what_the_output_needs(networks):
    graph = networks("unet").load().graph
    half = prune(Graph(graph.inputs, graph.nodes, Ref(12)))
    assert len(half.nodes) <= 13
    assert half.nodes[-1].op == graph.nodes[12].op
    assert prune(graph) == graph


def test_running_costs_no_more_than_eager(networks):
    """Not a benchmark, a guard: the interpreter's own work stays small beside that of the operators."""
    network = networks("resnet")
    model, x = network.load(), network.batch(4)

    def seconds(net: torch.nn.Module) -> float:
        start = time.perf_counter()
        net(x)
        return time.perf_counter() - start

    with torch.no_grad():
        # In turn, so that whatever else the machine does meets both.
        pairs = [(seconds(model), seconds(network.module)) for _ in range(50)]
    assert min(ours for ours, _ in pairs) < 1.5 * min(eager for _, eager in pairs)

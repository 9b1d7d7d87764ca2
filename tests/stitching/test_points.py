"""Stitch points: where they are, what they look like, which of them are clean, and what bypasses the others."""

from __future__ import annotations

from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suture_contract.errors import SutureError
from suture_contract.model.graph import Graph, Input, Node, Ref
from suture_stitching.features import points as of_points
from suture_stitching.features import points as points_module
from suture_stitching.features.points import StitchPoint, _Finder, find_points, stitchable
from suture_stitching.portable.dry_run import UNLIMITED
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import PortableModel, load


def points_of(module: nn.Module, example: Tensor, tmp_path) -> tuple[PortableModel, list[StitchPoint]]:
    export(module, example, tmp_path / "m.safetensors")
    model = load(tmp_path / "m.safetensors")
    return model, find_points(model)


def test_points_follow_layers_with_what_belongs_to_them(networks):
    network = networks("resnet")
    points = {point.module: point for point in find_points(network.load())}
    assert points["stem.2"].shape == (8, 16, 16)
    assert "stem.0" not in points
    assert "stem.1" not in points
    assert points["layer2.0.shortcut.1"].shape == (16, 8, 8)
    assert "fc" not in points


def test_clean_cuts_of_a_residual_network_lie_between_its_blocks(networks):
    points = find_points(networks("resnet").load())
    clean = [(point.module, point.block) for point in points if point.clean]
    assert clean == [
        ("stem.2", True),
        ("layer1.0.relu", True),
        ("layer1.1.relu", True),
        ("layer2.0.relu", True),
        ("layer2.1.relu", True),
        ("", True),
    ]
    assert all(not point.bypassed for point in points if point.clean)
    inside = next(point for point in points if point.module == "layer1.1.bn2")
    assert not inside.clean
    assert not inside.block
    before = next(point for point in points if point.module == "layer1.0.relu" and point.clean)
    assert inside.bypassed == (before.name,)


def test_skips_of_a_unet_bypass_its_bottleneck(networks):
    model = networks("unet").load()
    points = {point.module: point for point in find_points(model)}
    bottleneck = points["bottleneck.5"]
    assert not bottleneck.clean
    assert bottleneck.bypassed == (points["encoder1.5"].name, points["encoder2.5"].name)
    assert points["encoder1.5"].clean
    assert points["decoder1.5"].clean
    assert points["decoder2.5"].bypassed == (points["encoder1.5"].name,)


def test_a_point_and_what_bypasses_it_are_all_the_output_needs(network):
    """With their values given, it makes no difference what the input is."""
    model, x, other = network.load(), network.batch(2, seed=1), network.batch(2, seed=2)
    want = model(x)
    for point in find_points(model):
        values = model.features([point.name, *point.bypassed], x)
        assert _equal(model.resume(values, other), want)
        assert point.clean or not _equal(model.resume({point.name: values[point.name]}, other), want)


def _equal(a, b) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    keys = a.keys() if isinstance(a, dict) else range(len(a))
    return all(_equal(a[key], b[key]) for key in keys)


def test_depth_grows_from_input_to_output(network):
    model = network.load()
    points = find_points(model)
    assert all(0 <= point.depth <= 1 for point in points)
    depth = {int(point.name[1:]): point.depth for point in points}
    clean = [point.depth for point in points if point.clean]
    assert clean == sorted(clean)
    assert list(depth) == sorted(depth)


def test_shapes_are_those_of_the_features(network):
    model, x = network.load(), network.batch(3)
    points = find_points(model)
    features = model.features([point.name for point in points], x)
    for point in points:
        value = features[point.name]
        assert value.shape[0] == 3
        assert tuple(value.movedim(point.channel_axis, 1).shape[1:]) == point.shape


def test_token_sequences_have_their_channels_last(networks):
    points = find_points(networks("transformer").load())
    sequences = [point for point in points if len(point.shape) == 2]
    assert sequences
    assert all(point.channel_axis == 2 and point.shape[0] in (16, 32) for point in sequences)
    blocks = [point.module for point in points if point.clean and point.block and "encoder" in point.module]
    assert blocks == ["encoder.layers.0.norm2", "encoder.layers.1.norm2"]


def test_blocks_that_end_in_an_addition(networks):
    points = find_points(networks("prenorm").load())
    blocks = [point.module for point in points if point.clean and point.block and "encoder" in point.module]
    assert blocks == ["encoder.layers.0", "encoder.layers.1"]


def test_tensors_that_are_not_batch_first_are_left_out(tmp_path):
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.a(x.reshape(-1, 4))  # samples times positions
            return self.b(F.relu(rows)).reshape(x.shape[0], -1)

    _, points = points_of(Mixing(), torch.randn(2, 3, 4), tmp_path)
    assert points == []


def test_channels_of_a_flattened_map_are_no_channels(tmp_path):
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    _, points = points_of(module, torch.randn(2, 1, 8, 8), tmp_path)
    assert [(point.module, point.shape) for point in points] == [("1", (3, 6, 6)), ("4", (5,))]


def test_a_pooled_map_is_a_vector(tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    _, points = points_of(module, torch.randn(2, 1, 8, 8), tmp_path)
    assert [point.shape for point in points] == [(3, 6, 6), (3,)]


def test_channels_last_maps(tmp_path):
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, 6, 2, 2)
            self.norm, self.mix = nn.LayerNorm(6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.patch(x).permute(0, 2, 3, 1))
            y = (y + F.gelu(self.mix(y))).permute(0, 3, 1, 2)
            return self.head(y.mean((2, 3)))

    _, points = points_of(Last(), torch.randn(2, 1, 8, 12), tmp_path)
    assert [(point.shape, point.channel_axis) for point in points] == [
        ((6, 4, 6), 3),
        ((6, 4, 6), 3),
        ((6, 4, 6), 1),
        ((6,), 1),
    ]


def test_edges_that_carry_sizes_are_no_bypass(tmp_path):
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.a(x))
            return self.b(y + torch.zeros(x.shape[0], 6))

    _, points = points_of(Sized(), torch.randn(2, 4), tmp_path)
    assert points
    assert all(point.clean for point in points)


def test_a_free_size_must_be_given(tmp_path, networks):
    module = networks("unet").module
    export(module, torch.randn(2, 1, 16, 16), tmp_path / "m.safetensors", dynamic_spatial=True)
    model = load(tmp_path / "m.safetensors")
    with pytest.raises(SutureError) as refused:
        find_points(model)
    assert refused.value.code == "points.shape"
    without, with_batch = find_points(model, (1, 32, 32)), find_points(model, (8, 1, 32, 32))
    assert without == with_batch
    assert without[0].shape == (4, 32, 32)
    fixed = find_points(networks("unet").load())
    assert [point.module for point in fixed] == [point.module for point in without]


def test_a_size_the_model_cannot_take(networks):
    with pytest.raises(SutureError):
        find_points(networks("cnn").load(), (1, 20, 20))


class Patches(nn.Module):
    """Patches of `side`, by convolution or by a linear layer, with `prefix` tokens in front."""

    def __init__(self, side: tuple[int, int], prefix: int, linear: bool) -> None:
        super().__init__()
        self.side, self.linear = side, linear
        self.conv, self.dense = nn.Conv2d(1, 6, side, side), nn.Linear(side[0] * side[1], 6)
        self.prefix = nn.Parameter(torch.randn(1, prefix, 6)) if prefix else None
        self.block, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        (n, _, height, width), (a, b) = x.shape, self.side
        if self.linear:
            cut = x.reshape(n, height // a, a, width // b, b).permute(0, 1, 3, 2, 4)
            tokens = self.dense(cut.reshape(n, -1, a * b))
        else:
            tokens = self.conv(x).flatten(2).transpose(1, 2)
        if self.prefix is not None:
            tokens = torch.cat([self.prefix.expand(n, -1, -1), tokens], 1)
        return self.head(torch.tanh(self.block(tokens)).mean(1))


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(
    ("size", "side", "prefix", "grid"),
    [
        ((16, 16), (4, 4), 0, (4, 4)),
        ((16, 16), (4, 4), 1, (4, 4)),
        ((16, 16), (4, 4), 5, (4, 4)),
        ((8, 12), (2, 2), 1, (4, 6)),
        ((24, 12), (2, 2), 2, (12, 6)),
    ],
)
def test_patches_lie_on_a_grid(tmp_path, linear, size, side, prefix, grid):
    _, points = points_of(Patches(side, prefix, linear), torch.randn(2, 1, *size), tmp_path)
    point = next(point for point in points if point.module == "block" or point.shape[1:] == (prefix + prod(grid),))
    assert point.grid == grid
    parts = point.parts()
    assert [part.shape for part in parts] == [(6, *grid), (6,)][: 1 + bool(prefix)]
    assert parts[0].tokens == (prefix, prefix + prod(grid))
    assert parts[0].node == parts[-1].node == point.node
    assert not prefix or not parts[0].clean


def test_uneven_patches_are_known_by_the_map_they_come_from(tmp_path):
    _, points = points_of(Patches((8, 2), 1, False), torch.randn(2, 1, 16, 16), tmp_path)
    assert {point.grid for point in points if point.channel_axis == 2} == {(2, 8)}


def test_sequences_in_time_have_no_grid(networks):
    for name in ("lstm", "gru", "signal"):
        assert not any(point.grid for point in find_points(networks(name).load()))


def test_a_class_token_that_is_taken_out_is_there_once(networks):
    model = networks("transformer").load()
    points = stitchable(model, (3, 16, 16))
    assert len({point.name for point in points}) == len(points)
    last = max(point.node for point in points if point.tokens)
    assert f"n{last}.0" not in {point.name for point in points}
    assert sum(point.name.endswith(".0") for point in points) >= 1
    assert points[-1].shape == (16,)


def _wired(count: int, sources) -> PortableModel:
    """A network of additions: `sources(i)` are the two values that the i-th one adds."""
    nodes = [Node("input", (0,)), Node("tensor", ("w",))]
    nodes.append(Node("aten.linear.default", (Ref(0), Ref(1))))
    for index in range(count):
        left, right = sources(index)
        nodes.append(Node("aten.linear.default", (Ref(left), Ref(1))))
        nodes.append(Node("aten.add.Tensor", (Ref(len(nodes) - 1), Ref(right))))
    graph = Graph((Input((None, 4), "float32"),), tuple(nodes), Ref(len(nodes) - 1))
    return PortableModel(graph, {"w": torch.eye(4)})


def test_a_models_points_are_found_once_for_a_shape(networks, monkeypatch):
    found = []
    whole = points_module.find_points
    monkeypatch.setattr(points_module, "find_points", lambda *given: found.append(given[1]) or whole(*given))
    model = networks("resnet").load()
    first = stitchable(model, (3, 16, 16))
    first.pop()  # it is the caller's own
    assert len(stitchable(model, [3, 16, 16])) == len(first) + 1
    assert found == [(3, 16, 16)]
    stitchable(networks("resnet").load(), (3, 16, 16))
    stitchable(model, (3, 32, 32))
    assert found == [(3, 16, 16), (3, 16, 16), (3, 32, 32)]


def test_the_work_grows_with_the_network_and_ends_where_it_would_not(monkeypatch):
    steps = {}
    for count in (100, 400):  # residual blocks
        finder = _Finder(_wired(count, lambda i: (2 * i + 2, 2 * i + 2)), None, UNLIMITED)
        assert len(finder.points()) == 2 * count
        steps[count] = finder._steps
    assert steps[400] < 5 * steps[100]
    monkeypatch.setattr(of_points, "MAX_STEPS", 100_000)
    # Everything is read by the last values: nothing is a cut, and each point has all others around it.
    crossed = _wired(400, lambda i: (2 * i + 2, 2 * (i // 2) + 2))
    with pytest.raises(SutureError, match="too many to compare") as refused:
        find_points(crossed)
    assert refused.value.code == "points.too_many"


def test_an_image_of_any_size_has_few_candidates_for_its_patches():
    """A grid is looked for among sides up to the image's own, which a file may state as millions."""
    side = 2**24
    nodes = (
        Node("input", (0,)),
        Node("tensor", ("w",)),
        Node("aten.select.int", (Ref(0), 3, 0)),
        Node("aten.slice.Tensor", (Ref(2), 2, 0, 4)),
        Node("aten.permute.default", (Ref(3), (0, 2, 1))),
        Node("aten.linear.default", (Ref(4), Ref(1))),
        Node("aten.linear.default", (Ref(5), Ref(1))),
    )
    graph = Graph((Input((None, 3, side, side), "float32"),), nodes, Ref(6))
    model = PortableModel(graph, {"w": torch.eye(3)})
    assert [point.grid for point in find_points(model) if point.name == "n5"] == [(2, 2)]

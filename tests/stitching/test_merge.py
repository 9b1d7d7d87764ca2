"""The merged graph against the same computation piece by piece, by the members' own `features` and `resume`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.stitching.networks import LABELS, SHAPE, Tokens, UNet, deep, member, plain
from torch import Tensor

from suture_contract.errors import SutureError
from suture_stitching.ensemble.members import Member
from suture_stitching.ensemble.merge import GateTensors, Join, Merge
from suture_stitching.ensemble.ood_gate import Whitening
from suture_stitching.features.moments import channels_second, rows, to_grid
from suture_stitching.features.points import StitchPoint
from suture_stitching.objectives import objective_of
from suture_stitching.portable.runtime import PortableModel


def _random(points: dict[int, StitchPoint], seed: int = 0) -> tuple[dict[tuple[int, int], tuple[str, str]], dict]:
    generator = torch.Generator().manual_seed(seed)
    names, tensors = {}, {}
    for source in points:
        for target in points:
            if source != target:
                name = f"s.{source}_{target}"
                names[source, target] = (f"{name}.weight", f"{name}.bias")
                out, into = points[target].shape[0], points[source].shape[0]
                tensors[f"{name}.weight"] = torch.randn(out, into, generator=generator) / into**0.5
                tensors[f"{name}.bias"] = torch.randn(out, generator=generator)
    return names, tensors


def _read(member: Member, point: StitchPoint, x: Tensor) -> Tensor:
    """Return a point's features as `(N, C, *spatial)`."""
    value = member.model.features([f"n{point.node}"], x)[f"n{point.node}"]
    if point.tokens is None:
        return channels_second(value, point.channel_axis)
    if len(point.shape) == 1:
        return value[:, point.tokens[0]]
    return value[:, slice(*point.tokens)].movedim(2, 1).unflatten(2, point.shape[1:])


def _resume(member: Member, point: StitchPoint, mixed: Tensor, x: Tensor) -> Tensor:
    """Return the member's output with these features at the point."""
    name = f"n{point.node}"
    if point.tokens is None:
        return member.model.resume({name: mixed.movedim(1, point.channel_axis)}, x)
    value = member.model.features([name], x)[name].clone()
    tokens = mixed.unsqueeze(1) if len(point.shape) == 1 else mixed.flatten(2).movedim(1, 2)
    value[:, slice(*point.tokens)] = tokens
    return member.model.resume({name: value}, x)


def _piecewise(members: list[Member], join: Join, tensors: dict[str, Tensor], x: Tensor, weight: Tensor) -> list:
    """Return the members' outputs with plain torch code: read, translate, mix, go on."""
    maps = {m: _read(members[m], p, x) for m, p in join.points.items()}
    outputs = []
    for target, point in join.points.items():
        grid = point.shape[1:]
        translated = []
        for source in join.points:
            if source != target:
                w, b = (tensors[name] for name in join.stitches[source, target])
                there = to_grid(maps[source], grid).movedim(1, -1) @ w.T + b
                translated.append(there.movedim(-1, 1))
        own = maps[target]
        factor = weight.reshape(-1, *(1 for _ in own.shape[1:]))
        mixed = (1 - factor) * own + factor * torch.stack(translated).mean(0)
        outputs.append(_resume(members[target], point, mixed, x))
    return outputs


def _run(merge: Merge, output: object, x: Tensor) -> Tensor:
    return PortableModel(merge.graph(output), merge.tensors)(x)


def _points(*members: Member) -> list[list[StitchPoint]]:
    return [m.points(SHAPE) for m in members]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_any_two_points_merge_like_the_pieces(pair: list[Member], alpha: float) -> None:
    task = objective_of([m.metadata for m in pair], ())
    x = torch.randn(5, *SHAPE)
    tried = set()
    for first in _points(*pair)[0]:
        for second in _points(*pair)[1]:
            points = {0: first, 1: second}
            names, tensors = _random(points)
            join = Join(points, alpha, names)
            merge = Merge(pair, task, tensors)
            merged = _run(merge, merge.ensemble(merge.join([join])), x)
            pieces = _piecewise(pair, join, tensors, x, torch.full((5,), alpha))
            expected = torch.stack([piece.softmax(1) for piece in pieces]).mean(0)
            assert torch.allclose(merged, expected, atol=1e-5)
            tried.add((len(first.shape), len(second.shape)))
    assert {(3, 3), (1, 1), (3, 1), (1, 3)} <= tried  # maps and vectors, both ways


def test_token_sequences_and_three_members(tmp_path: Path) -> None:
    members = [
        member(plain(), tmp_path, seed=1),
        member(deep(), tmp_path, "south/net", seed=2),
        member(plain(width=4), tmp_path, "east/net", seed=3),
    ]
    points = [own[1] for own in _points(*members)]
    tokens = [member(Tokens(), tmp_path, "west/net", seed=4), member(Tokens(), tmp_path, "far/net", seed=5)]
    sequences = [next(p for p in own if p.tokens) for own in _points(*tokens)]
    vector = _points(members[0])[0][-1]
    cases = [(members, points), (tokens, sequences), ([tokens[0], members[0]], [sequences[0], vector])]
    x = torch.randn(3, *SHAPE)
    for chosen, at in cases:
        join = Join(dict(enumerate(at)), 0.5, _random(dict(enumerate(at)))[0])
        tensors = _random(dict(enumerate(at)))[1]
        merge = Merge(chosen, objective_of([m.metadata for m in chosen], ()), tensors)
        merged = _run(merge, merge.ensemble(merge.join([join])), x)
        pieces = _piecewise(chosen, join, tensors, x, torch.full((3,), 0.5))
        assert torch.allclose(merged, torch.stack([p.softmax(1) for p in pieces]).mean(0), atol=1e-5)


def test_free_sizes_follow_the_input(tmp_path: Path) -> None:
    nets = [UNet(), UNet(width=3)]
    members = [
        member(net, tmp_path, f"p{i}/net", task="segmentation", seed=i, spatial=True) for i, net in enumerate(nets)
    ]
    own = _points(*members)
    big, small = own[0][0], next(p for p in own[1] if p.shape[1:] == (2, 2))
    points = {0: big, 1: small}
    names, tensors = _random(points)
    merge = Merge(members, objective_of([m.metadata for m in members], ()), tensors)
    model = PortableModel(merge.graph(merge.ensemble(merge.join([Join(points, 0.5, names)]))), merge.tensors)
    for size in (8, 16):
        x = torch.randn(2, 2, size, size)
        merged = model(x)
        assert merged.shape == (2, 3, size, size)
        assert torch.allclose(merged.sum(1), torch.ones(2, size, size), atol=1e-5)
    tall = torch.randn(1, 2, 16, 8)
    scaled = {
        m: StitchPoint(p.name, p.module, (p.shape[0], p.shape[1] * 2, p.shape[2]), 0, True) for m, p in points.items()
    }
    pieces = _piecewise(members, Join(scaled, 0.5, names), tensors, tall, torch.full((1,), 0.5))
    assert torch.allclose(model(tall), torch.stack([p.softmax(1) for p in pieces]).mean(0), atol=1e-5)


def test_identity_stitches_reproduce_the_members(tmp_path: Path) -> None:
    twins = [member(plain(), tmp_path, seed=1), member(plain(), tmp_path, "south/net", seed=1)]
    task = objective_of([m.metadata for m in twins], ())
    x = torch.randn(4, *SHAPE)
    for index, point in enumerate(twins[0].points(SHAPE)):
        points = {0: point, 1: twins[1].points(SHAPE)[index]}
        names, _ = _random(points)
        width = point.shape[0]
        tensors = {}
        for weight, bias in names.values():
            tensors |= {weight: torch.eye(width), bias: torch.zeros(width)}
        merge = Merge(twins, task, tensors)
        merged = _run(merge, merge.ensemble(merge.join([Join(points, 0.75, names)])), x)
        assert torch.allclose(merged, twins[0].model(x).softmax(1), atol=1e-6)


def test_weight_zero_is_the_plain_ensemble(pair: list[Member]) -> None:
    first, second = _points(*pair)
    points = {0: first[-1], 1: second[-1]}
    names, tensors = _random(points)
    merge = Merge(pair, objective_of([m.metadata for m in pair], ()), tensors)
    x = torch.randn(6, *SHAPE)
    stitched = _run(merge, merge.ensemble(merge.join([Join(points, 0.0, names)])), x)
    ensemble = _run(merge, merge.ensemble(merge.native), x)
    assert torch.equal(stitched, ensemble)
    expected = torch.stack([m.model(x).softmax(1) for m in pair]).mean(0)
    assert torch.allclose(ensemble, expected, atol=1e-6)


def test_members_run_once_for_all_candidates(pair: list[Member]) -> None:
    first, second = _points(*pair)
    points = {0: first[-1], 1: second[-1]}
    names, tensors = _random(points)
    merge = Merge(pair, objective_of([m.metadata for m in pair], ()), tensors)
    native = len(merge.graph(()).nodes)
    merge.join([Join(points, 0.25, names)])
    once = len(merge.graph(()).nodes)
    merge.join([Join(points, 0.5, names)])
    twice = len(merge.graph(()).nodes)
    merge.join([Join(points, 0.5, names)])
    assert len(merge.graph(()).nodes) == twice  # the same again adds nothing
    assert twice - once < once - native  # another weight shares the translated features
    assert once - native < native / 2


def test_labels_are_averaged_by_name(tmp_path: Path) -> None:
    members = [
        member(plain(), tmp_path, labels=("a", "b", "c"), seed=1),
        member(deep(), tmp_path, "south/net", labels=("c", "d", "a"), seed=2),
    ]
    task = objective_of([m.metadata for m in members], ())
    merge = Merge(members, task)
    x = torch.randn(4, *SHAPE)
    merged = _run(merge, (merge.ensemble(merge.native), merge.ensemble(merge.native, [1])), x)
    one, two = (m.model(x).softmax(1).double() for m in members)
    expected = torch.stack([(one[:, 0] + two[:, 2]) / 2, one[:, 1], (one[:, 2] + two[:, 0]) / 2, two[:, 1]], 1)
    expected = expected / expected.sum(1, keepdim=True)
    assert torch.allclose(merged[0].double(), expected, atol=1e-6)
    assert torch.allclose(merged[0], task.combine([m.model(x) for m in members], [0, 1]), atol=1e-6)
    assert torch.allclose(
        merged[1].double(), torch.stack([two[:, 2], 0 * two[:, 0], two[:, 0], two[:, 1]], 1), atol=1e-6
    )


def test_preprocessing_and_value_ranges_are_compiled_in(tmp_path: Path) -> None:
    normal = {"mean": (0.5, 0.1), "std": (0.25, 2.0)}
    members = [
        member(plain(), tmp_path, seed=1, value_range=(0.0, 1.0), preprocessing=normal),
        member(deep(), tmp_path, "south/net", seed=2, value_range=(-10.0, 10.0)),
    ]
    merge = Merge(members, objective_of([m.metadata for m in members], ()))
    x = torch.rand(4, *SHAPE)
    merged = _run(merge, merge.ensemble(merge.native), x)
    mean, std = (torch.tensor(normal[k]).reshape(1, 2, 1, 1) for k in ("mean", "std"))
    first = members[0].model((x - mean) / std).softmax(1)
    second = members[1].model(x * 20 - 10).softmax(1)
    assert torch.allclose(merged, (first + second) / 2, atol=1e-5)


@pytest.mark.parametrize("kinds", ["maps", "vectors", "both"])
def test_gate_opens_for_the_near_and_closes_for_the_far(pair: list[Member], kinds: str) -> None:
    first, second = _points(*pair)
    at = {"maps": (first[0], second[2]), "vectors": (first[-1], second[-1]), "both": (first[0], second[-1])}[kinds]
    points = dict(enumerate(at))
    names, tensors = _random(points)
    width = sum(p.shape[0] for p in at)
    generator = torch.Generator().manual_seed(3)
    tensors |= {
        "g.weight": torch.randn(width, width, generator=generator) / width,
        "g.bias": torch.randn(width, generator=generator),
    }
    x = torch.randn(12, *SHAPE)
    # By plain code: means over positions side by side.
    side = torch.cat(
        [rows(pair[m].model.features([p.name], x)[p.name], (), p.channel_axis) for m, p in points.items()], 1
    )
    distance = Whitening(tensors["g.weight"], tensors["g.bias"]).distance(side)
    near, far = distance.quantile(0.3).item(), distance.quantile(0.7).item()
    gate = GateTensors(points, "g.weight", "g.bias", near, far)
    join = Join(points, 0.5, names)
    merge = Merge(pair, objective_of([m.metadata for m in pair], ()), tensors)
    found, merged = _run(merge, (merge.distance(gate), merge.candidate([join], gate)), x)
    assert torch.allclose(found.flatten(), distance, rtol=1e-4)
    opened = ((far - distance) / (far - near)).clamp(0, 1)
    assert opened.min() == 0
    assert opened.max() == 1
    pieces = _piecewise(pair, join, tensors, x, 0.5 * opened)
    assert torch.allclose(merged, torch.stack([p.softmax(1) for p in pieces]).mean(0), atol=1e-4)
    plain_ensemble = torch.stack([m.model(x).softmax(1) for m in pair]).mean(0)
    assert torch.allclose(merged[opened == 0], plain_ensemble[opened == 0], atol=1e-6)


def test_two_matches_mix_in_order(pair: list[Member]) -> None:
    first, second = _points(*pair)
    joins, tensors = [], {}
    for number, (one, two) in enumerate([(first[0], second[1]), (first[-1], second[-1])]):
        names, new = _random({0: one, 1: two}, seed=number)
        names = {key: tuple(f"j{number}.{name}" for name in own) for key, own in names.items()}
        tensors |= {f"j{number}.{name}": tensor for name, tensor in new.items()}
        joins.append(Join({0: one, 1: two}, 0.5, names))
    merge = Merge(pair, objective_of([m.metadata for m in pair], ()), tensors)
    x = torch.randn(4, *SHAPE)
    merged = _run(merge, merge.ensemble(merge.join(joins)), x)
    # Piece by piece: features at the second match, given what was mixed at the first.
    single = Merge(pair, objective_of([m.metadata for m in pair], ()), tensors)
    values = single.join(joins[:1])
    refs = tuple(single.point(values, m, p) for m, p in joins[1].points.items())
    h = dict(enumerate(_run(single, refs, x)))
    mixed_first = _run(single, tuple(single.point(values, m, p) for m, p in joins[0].points.items()), x)
    outputs = []
    for target in (0, 1):
        w, b = (tensors[name] for name in joins[1].stitches[1 - target, target])
        value = 0.5 * h[target] + 0.5 * (h[1 - target] @ w.T + b)
        given = {joins[0].points[target].name: mixed_first[target], joins[1].points[target].name: value}
        outputs.append(pair[target].model.resume(given, x).softmax(1))
    assert torch.allclose(merged, torch.stack(outputs).mean(0), atol=1e-5)


def test_slices_and_volumes_are_not_mixed(tmp_path: Path, pair: list[Member]) -> None:
    other = member(deep(), tmp_path, "east/net", seed=2)
    read = other.model.graph.inputs[0]
    other.model.graph = type(other.model.graph)(
        (type(read)((None, 2, 8, 8, 8), "float32"),), other.model.graph.nodes, other.model.graph.output
    )
    with pytest.raises(SutureError, match=r"north/net reads inputs with 2 spatial axes, east/net with 3"):
        Merge([pair[0], other], objective_of([m.metadata for m in pair], LABELS))

"""Members with few places in common, or none, and members that cannot be read together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.stitching.unlike import (
    GREY,
    QUICK,
    Net,
    ViT,
    cnn,
    findings,
    loaded,
    member,
    pictures,
    same_when_composed,
    volume,
    wave,
)
from torch import Tensor, nn

from suture_contract.errors import SutureError
from suture_contract.model.metadata import MemberRef
from suture_stitching.ensemble.members import batches, input_shape, number_of_batches
from suture_stitching.ensemble.merge import Join, Merge
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.fitting.fit import FitOptions, Member, fit
from suture_stitching.objectives import objective_of
from suture_stitching.portable.runtime import PortableModel


def test_a_class_token_is_stitched_on_its_own(tmp_path: Path) -> None:
    data = pictures()
    members = [member(Net(cnn, GREY), data, tmp_path, 0, 0), member(Net(ViT, GREY), data, tmp_path, 1, 0)]
    own = {point.name: point.shape for point in members[1].points(GREY)}
    tokens = [name for name in own if name.endswith(".0")]
    patches = [name.removesuffix(".0") for name in tokens]
    assert patches
    assert all(own[name] == (8,) and own[of] == (8, 4, 4) for name, of in zip(tokens, patches, strict=True))
    result = fit(members, data, options=FitOptions(refine=False, max_matches=16))
    matched = {m.points["1"] for c in result.candidates.candidates for m in c.matches}
    assert matched & set(patches)
    assert matched & (set(tokens) | {name for name in own if len(own[name]) == 1})


def test_points_that_are_one_value_are_taken_once(tmp_path: Path) -> None:
    data = pictures(n=60)
    members = [member(Net(ViT, GREY), data, tmp_path, index, 0) for index in range(2)]
    result = fit(members, data, options=FitOptions(refine=False, max_matches=16, alphas=(0.5,)))
    task = objective_of([m.metadata for m in members], ())

    def repeats(stitched: Member) -> bool:
        merge = Merge([stitched, members[1]], task)
        points = stitched.points(GREY)
        return len({merge.point(merge.native, 0, point) for point in points}) < len(points)

    ensembles = (
        loaded(members, result, c.id, data, tmp_path) for c in result.candidates.candidates if c.kind == "stitched"
    )
    repeated = next(filter(repeats, ensembles))
    again = fit([repeated, members[1]], data, options=QUICK.model_copy(update={"refine": False}))
    assert any(c.kind == "stitched" for c in again.candidates.candidates)


class Unlike(nn.Module):
    """Has no point at which it could be stitched: samples are mixed with positions throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 4), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x.reshape(-1, 8))).reshape(x.shape[0], -1))


def test_without_a_place_to_stitch_there_is_the_plain_ensemble(tmp_path: Path) -> None:
    data = pictures()
    members = [member(Net(cnn, GREY), data, tmp_path, 0), member(Net(Unlike, GREY), data, tmp_path, 1)]
    assert members[1].points(GREY) == []
    result = fit(members, data, options=QUICK)
    assert result.candidates.unstitched == "no_points"
    assert [c.kind for c in result.candidates.candidates] == ["single", "single", "ensemble"]
    score = evaluate(members, result, data, own=0).splits["test"].scores["c02"].value
    same_when_composed(members, result, "c02", data, score, tmp_path)


def test_features_that_never_change_are_like_nothing(tmp_path: Path) -> None:
    data = pictures()
    members = [member(Net(cnn, GREY), data, tmp_path, index) for index in range(2)]
    for name, tensor in members[1].model.tensors.items():
        if name.endswith("weight"):
            tensor.data.zero_()
    result = fit(members, data, options=QUICK)
    assert result.candidates.unstitched == "no_match"
    assert len(result.candidates.candidates) == 3


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (Net(cnn, GREY), Net(lambda: volume(4), (1, 6, 6, 6)), "p1/net reads 3-D inputs of size 6 x 6 x 6"),
        (Net(cnn, GREY), Net(lambda: cnn(2), (2, 8, 8)), "1 channel(s) cannot be made of 2"),
        (Net(cnn, GREY, value_range=(0.0, 1.0)), Net(cnn, GREY), "p1/net does not"),
        (Net(cnn, GREY), Net(wave, (2, 12), format="signal"), "p1/net reads signal"),
    ],
)
def test_what_cannot_be_read_together_is_named(first: Net, second: Net, says: str, tmp_path: Path) -> None:
    blank = [member(net, pictures(net.shape), tmp_path, index, 0) for index, net in enumerate((first, second))]
    with pytest.raises(SutureError) as caught:
        fit(blank, pictures(), options=QUICK)
    assert caught.value.code == "members.incompatible"
    assert "p0/net" in str(caught.value)
    assert says in str(caught.value)


def test_data_that_no_member_reads_are_named(tmp_path: Path) -> None:
    members = [member(Net(cnn, GREY), pictures(), tmp_path, index, 0) for index in range(2)]
    for data, code in (
        (pictures((2, 8, 8)), "dataset.wrong_shape"),
        (pictures((1, 6, 6, 6)), "dataset.wrong_shape"),
        (findings(), "dataset.wrong_task"),
    ):
        with pytest.raises(SutureError) as caught:
            fit(members, data, options=QUICK)
        assert caught.value.code == code


def test_a_member_without_places_leaves_the_others_to_each_other(tmp_path: Path) -> None:
    data = pictures()
    nets = (Net(Unlike, GREY), Net(cnn, GREY), Net(lambda: cnn(width=4), GREY))
    members = [member(net, data, tmp_path, index) for index, net in enumerate(nets)]
    result = fit(members, data, options=QUICK)
    stitched = [c for c in result.candidates.candidates if c.kind == "stitched"]
    assert {frozenset(match.points) for c in stitched for match in c.matches} == {frozenset("12")}
    scores = evaluate(members, result, data, own=0).splits["test"].scores
    assert all(c.members == (0, 1, 2) for c in stitched)
    same_when_composed(members, result, stitched[-1].id, data, scores[stitched[-1].id].value, tmp_path)


def test_small_images_for_a_network_of_large_ones_are_read_few_at_once(tmp_path: Path) -> None:
    data = pictures(n=60)
    large = member(Net(lambda: cnn(3, width=2), (3, 256, 256)), data, tmp_path, 0, 0)
    shape = input_shape([large], data)
    found = [(x.shape, y.shape) for x, y in batches([large], data, "train", "cpu")]
    assert len(found) == number_of_batches(data, "train", shape) > 1
    assert all(x == (len_y, *shape) for x, (len_y,) in found)
    assert sum(len_y for _, (len_y,) in found) == data.n("train")


def test_identity_stitches_between_twins_change_no_token(tmp_path: Path) -> None:
    first = member(Net(ViT, GREY), pictures(), tmp_path, 0, 0)
    twins = [first, replace(first, ref=MemberRef(repo="twin/net", revision="1" * 40, sha256="1" * 64))]
    points = first.points(GREY)
    assert {len(point.shape) for point in points if point.tokens} == {1, 3}
    x = torch.rand(5, *GREY)
    for point in points:
        width = point.shape[0]
        merge = Merge(
            twins, objective_of([m.metadata for m in twins], ()), {"w": torch.eye(width), "b": torch.zeros(width)}
        )
        join = Join({0: point, 1: point}, 0.5, {(0, 1): ("w", "b"), (1, 0): ("w", "b")})
        merged = PortableModel(merge.graph(merge.ensemble(merge.join([join]))), merge.tensors)(x)
        assert torch.allclose(merged, first.model(x).softmax(1), atol=1e-6)

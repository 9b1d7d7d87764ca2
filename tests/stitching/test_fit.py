"""The whole engine on tiny random models: fit, save, load, evaluate, choose, compose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.stitching.networks import LABELS, SHAPE, Tokens, UNet, dataset, deep, images, masks, member, plain
from torch import nn

from suture_contract.compatibility import ensemble_output
from suture_contract.documents import CandidateSet
from suture_contract.errors import Cancelled, SutureError
from suture_contract.model.format import check_against, check_file
from suture_contract.model.metadata import ModelMetadata, TrainingData
from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble.compose import compose
from suture_stitching.ensemble.members import shared_input
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting import refine
from suture_stitching.fitting.fit import FitOptions, FitResult, Member, fit
from suture_stitching.portable.runtime import load, save
from suture_stitching.running.progress import Progress

QUICK = FitOptions(refine_steps=6, refine_candidates=3)


@pytest.fixture(scope="module")
def fitted(pair: list[Member]) -> FitResult:
    return fit(pair, dataset(), own=0, options=QUICK)


def _state(members: list[Member]) -> list[dict[str, torch.Tensor]]:
    return [{name: tensor.clone() for name, tensor in m.model.tensors.items()} for m in members]


def test_candidates_come_from_the_simplest_to_the_most_elaborate(fitted: FitResult) -> None:
    candidates = fitted.candidates
    assert [c.kind for c in candidates.candidates[:3]] == ["single", "single", "ensemble"]
    stitched = [c for c in candidates.candidates[3:] if c.kind == "stitched"]
    assert {c.kind for c in candidates.candidates[3:]} == {"routed", "stitched"}
    assert 0.5 in {match.alpha for c in stitched for match in c.matches} <= {0.25, 0.5, 0.75}
    assert any(len(c.matches) == 2 for c in stitched)
    assert any(c.refined for c in stitched)
    assert any(c.gate for c in stitched)
    assert [c.id for c in candidates.candidates] == [f"c{i:02d}" for i in range(len(candidates.candidates))]
    r2 = [stitch.r2 for c in stitched for match in c.matches for stitch in match.stitches if not c.refined]
    assert all(value is not None and value <= 1 for value in r2)


def test_every_tensor_is_named_finite_and_used(fitted: FitResult) -> None:
    matches = [match for c in fitted.candidates.candidates for match in c.matches]
    named = {name for match in matches for s in match.stitches for name in (s.weight, s.bias)}
    named |= {name for c in fitted.candidates.candidates if c.gate for name in (c.gate.weight, c.gate.bias)}
    assert named == fitted.stitches.keys()
    assert all(torch.isfinite(tensor).all() for tensor in fitted.stitches.values())
    assert all(tensor.dtype == torch.float32 for tensor in fitted.stitches.values())


def test_members_are_bit_equal_after_a_fit(pair: list[Member]) -> None:
    before = _state(pair)
    fit(pair, dataset(), own=0, options=QUICK)
    for old, new in zip(before, _state(pair), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert not any(p.requires_grad for m in pair for p in m.model.parameters())


def test_refinement_needs_no_memory_for_features(pair: list[Member], monkeypatch: pytest.MonkeyPatch) -> None:
    options = FitOptions(refine_steps=8, refine_candidates=1, max_matches=1)
    monkeypatch.setattr(refine, "_CACHE_BYTES", 0)
    assert any(name.startswith("r00") for name in fit(pair, dataset(), own=0, options=options).stitches)


def test_refinement_moves_the_stitches_and_lowers_the_loss(pair: list[Member], fitted: FitResult) -> None:
    refined = [c for c in fitted.candidates.candidates if c.refined and not c.gate]
    for candidate in refined:
        for match in candidate.matches:
            for stitch in match.stitches:
                closed = fitted.stitches.get(stitch.weight.split(".", 1)[1])
                assert closed is None or not torch.equal(fitted.stitches[stitch.weight], closed)
    long = fit(pair, dataset(n=200), options=FitOptions(refine_candidates=1))
    scores = evaluate(pair, long, dataset(n=200), splits=("validation",)).splits["validation"].scores
    best = next(c for c in long.candidates.candidates if c.refined)
    same = next(c for c in long.candidates.candidates if c.matches and c.matches[0].points == best.matches[0].points)
    assert scores[best.id].value > scores[same.id].value
    assert scores[best.id].value > scores["c02"].value


def test_the_same_seed_gives_the_same_bytes(pair: list[Member], fitted: FitResult, tmp_path: Path) -> None:
    again = fit(pair, dataset(), own=0, options=QUICK)
    for result, name in ((fitted, "one"), (again, "two")):
        (tmp_path / name).mkdir()
        result.save(tmp_path / name)
    for file in ("candidates.json", "stitches.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_saved_and_loaded_it_is_the_same(fitted: FitResult, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    loaded = FitResult.load(tmp_path)
    assert loaded.candidates == fitted.candidates
    assert loaded.input_shape == fitted.input_shape == SHAPE
    assert all(torch.equal(loaded.stitches[name], tensor) for name, tensor in fitted.stitches.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["candidates.json", "stitches.safetensors"]


def test_every_candidate_composed_equals_the_one_evaluated(
    pair: list[Member], fitted: FitResult, tmp_path: Path
) -> None:
    data = dataset()
    split = evaluate(pair, fitted, data, own=0).splits["test"]
    scores = split.scores
    x, y = next(data.batches("test", 256))
    assert {label: one.n for label, one in split.classes.items()} == {
        str(label): int((y == label).sum()) for label in y.unique().tolist()
    }
    for candidate in fitted.candidates.candidates:
        composed = compose(pair, fitted, candidate.id)
        path = tmp_path / "composed.safetensors"
        save(composed.graph, composed.tensors, path)
        output = load(path)(x)
        assert torch.equal(output, composed(x))
        assert torch.allclose(output.sum(1), torch.ones(len(x)), atol=1e-5)
        right = (output.argmax(1) == y).double()
        assert scores[candidate.id].value == pytest.approx(right.mean().item())
        for label, one in split.classes.items():
            assert one.scores[candidate.id] == pytest.approx(right[y == int(label)].mean().item())
        calibration = scores[candidate.id].calibration
        assert calibration is not None
        brier = (output - torch.eye(output.shape[1])[y]).square().sum(1).mean().item()
        assert calibration.brier == pytest.approx(brier, abs=1e-4)
    alone = compose(pair, fitted, "c01")(x)
    assert torch.allclose(alone, pair[1].model(x).softmax(1), atol=1e-6)
    header = check_file(path)
    metadata = ModelMetadata(
        schema_="suture.model/1",
        task="classification",
        inputs={"x": shared_input(pair)},
        outputs={"y": ensemble_output([member.metadata for member in pair], fitted.candidates.labels)},
        labels=fitted.candidates.labels,
        license="Apache-2.0",
    )
    check_against(header, metadata)


def test_a_composed_model_is_stitched_again(pair: list[Member], fitted: FitResult, tmp_path: Path) -> None:
    chosen = fitted.candidates.candidates[-1]
    composed = compose(pair, fitted, chosen.id)
    outputs = {"y": ensemble_output([member.metadata for member in pair], fitted.candidates.labels)}
    metadata = pair[0].metadata.model_copy(update={"outputs": outputs, "inputs": {"x": shared_input(pair)}})
    save(composed.graph, composed.tensors, tmp_path / "stitched.safetensors")
    again = Member(load(tmp_path / "stitched.safetensors"), metadata, pair[0].ref.model_copy(update={"repo": "a/b"}))
    third = member(plain(width=4), tmp_path, "east/net", seed=5)
    result = fit([again, third], dataset(), own=0, options=FitOptions(refine=False, max_matches=2))
    x = next(dataset().batches("test", 8))[0]
    assert any(c.kind == "stitched" for c in result.candidates.candidates)
    assert torch.isfinite(compose([again, third], result, result.candidates.candidates[-1].id)(x)).all()


def test_choice_over_two_parties(pair: list[Member], fitted: FitResult) -> None:
    evaluations = {
        "north": evaluate(pair, fitted, dataset(), own=0),
        "south": evaluate(pair, fitted, dataset(seed=9), own=1),
    }
    choice = choose(fitted.candidates, evaluations, requester="north")
    assert choice.chosen in {c.id for c in fitted.candidates.candidates}
    assert choice.verdicts.keys() == {"north", "south"}
    own = evaluations["north"].splits["test"].scores["c00"]
    assert own.difference is not None
    assert (own.difference.value, own.difference.low, own.difference.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (None, "undeclared"),
        ({"n": 3}, "undeclared"),
        ({"split": "all"}, "all"),
        ({"split": "train"}, "no_digest"),
        ({"split": "train", "split_digest": "0" * 64}, "differs"),
        ({"split": "train", "split_digest": None}, "matches"),
    ],
)
def test_what_is_declared_of_training_is_held_against_the_sites_own_split(
    pair: list[Member], fitted: FitResult, said: dict[str, Any] | None, found: str
) -> None:
    data = dataset()
    if said is not None and found == "matches":
        said = {**said, "split_digest": data.split_digest()}
    declared = None if said is None else TrainingData.model_validate(said)
    own = replace(pair[0], metadata=pair[0].metadata.model_copy(update={"training_data": declared}))
    assert evaluate([own, pair[1]], fitted, data, own=0).training == found
    assert evaluate([own, pair[1]], fitted, data, own=None).training is None


def test_the_own_model_is_measured_on_the_train_split_too(pair: list[Member], fitted: FitResult) -> None:
    data = dataset()
    train = evaluate(pair, fitted, data, own=1).train
    assert train is not None
    right = torch.cat([pair[1].model(x).argmax(1) == y for x, y in data.batches("train", 64)]).double()
    assert train.n == len(right) == data.n("train")
    assert train.value == pytest.approx(right.mean().item())
    assert train.low <= train.value <= train.high
    assert evaluate(pair, fitted, data, own=None).train is None


def test_candidates_are_compared_with_the_plain_and_routed_ones_on_the_same_samples(
    pair: list[Member], fitted: FitResult
) -> None:
    plain = {one.id for one in fitted.candidates.candidates if one.kind in ("ensemble", "routed")}
    assert len(plain) > 1
    scores = evaluate(pair, fitted, dataset(), own=0).splits["test"].scores
    for id, score in scores.items():
        assert score.against.keys() == plain - {id}
        for other, difference in score.against.items():
            assert difference.value == pytest.approx(score.value - scores[other].value)
            assert difference.low <= difference.value <= difference.high


def test_three_members_with_other_label_sets(tmp_path: Path) -> None:
    members = [
        member(plain(), tmp_path, seed=1),
        member(deep(2), tmp_path, "south/net", seed=2, labels=("b", "c")),
        member(Tokens(4), tmp_path, "east/net", seed=3, labels=("d", "a", "b", "c")),
    ]
    data = dataset(("d", "b", "a"))
    result = fit(members, data, options=QUICK)
    assert result.candidates.labels == ("a", "b", "c", "d")
    stitched = [c for c in result.candidates.candidates if c.kind == "stitched"]
    assert any(len(match.points) == 3 for c in stitched for match in c.matches)
    scores = evaluate(members, result, data, own=None).splits["test"].scores
    x, y = next(data.batches("test", 256))
    wanted = torch.tensor([3, 1, 0])[y]
    for candidate in (result.candidates.candidates[3], stitched[-1]):
        output = compose(members, result, candidate.id)(x)
        assert output.shape == (len(x), 4)
        assert scores[candidate.id].value == pytest.approx((output.argmax(1) == wanted).double().mean().item())
        assert scores[candidate.id].difference is None


def test_segmentation(tmp_path: Path) -> None:
    members = [
        member(UNet(), tmp_path, seed=1, task="segmentation"),
        member(UNet(width=3), tmp_path, "south/net", seed=2, task="segmentation", spatial=True),
    ]
    data = masks()
    result = fit(members, data, options=FitOptions(refine_steps=150, refine_candidates=5))
    evaluation = evaluate(members, result, data, own=0)
    assert evaluation.metric == "dice"
    validation = evaluation.splits["validation"].scores
    refined = max(validation[c.id].value for c in result.candidates.candidates if c.refined)
    assert refined > validation["c02"].value
    x, _ = next(data.batches("test", 4))
    output = compose(members, result, result.candidates.candidates[-1].id)(x)
    assert output.shape == (4, 3, *SHAPE[1:])
    assert torch.isfinite(output).all()


def test_regression(tmp_path: Path) -> None:
    given = {"task": "regression", "labels": None}
    members = [
        member(plain(2), tmp_path, seed=1, **given),
        member(deep(2), tmp_path, "south/net", seed=2, **given),
    ]
    x, _ = images()
    data = ArrayDataset(x, np.stack([x[:, 0].mean((1, 2)), x[:, 1].max((1, 2))], 1), task="regression")
    result = fit(members, data, options=QUICK)
    assert result.candidates.labels is None
    evaluation = evaluate(members, result, data, own=1)
    assert (evaluation.metric, evaluation.higher_is_better) == ("mae", False)
    inputs, _ = next(data.batches("test", 4))
    expected = (members[0].model(inputs) + members[1].model(inputs)) / 2
    assert torch.allclose(compose(members, result, "c02")(inputs), expected, atol=1e-6)


def test_progress_goes_up_and_can_cancel(pair: list[Member]) -> None:
    seen: list[Progress] = []
    fit(pair, dataset(), own=0, options=QUICK, progress=seen.append)
    assert list(dict.fromkeys(p.step for p in seen)) == [
        "match",
        "solve",
        "stitch",
        "double",
        "refine",
        "compare",
        "fit",
    ]
    for step in ("match", "solve", "stitch", "double", "refine", "compare"):
        done = [p.done for p in seen if p.step == step]
        assert done == sorted(done)
        assert all(p.done <= p.total for p in seen if p.step == step)
        assert done[-1] == next(p.total for p in reversed(seen) if p.step == step)
    assert seen[-1] == Progress("fit", 1, 1, 0.0)
    assert any(p.seconds_left is not None and p.seconds_left > 0 for p in seen)
    for stop in ("match", "solve", "stitch", "double", "refine", "compare"):

        def cancel(progress: Progress, stop: str = stop) -> None:
            if progress.step == stop:
                raise Cancelled

        with pytest.raises(Cancelled):
            fit(pair, dataset(), own=0, options=QUICK, progress=cancel)


class _Breaks(nn.Module):
    """Gives NaN where its input is large."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(torch.sqrt(5.0 - x))


def test_a_member_that_gives_nan_is_named(pair: list[Member], tmp_path: Path) -> None:
    broken = member(_Breaks(), tmp_path, "east/net", seed=4)
    x, y = images()
    tame = ArrayDataset(x.clip(max=4.9), y, LABELS)
    x[::3] += 20
    data = ArrayDataset(x, y, LABELS)
    with pytest.raises(SutureError, match=r"east/net.*NaN or infinity at n") as caught:
        fit([pair[0], broken], data, options=FitOptions(refine=False))
    assert caught.value.code == "features.not_finite"
    fine = fit([pair[0], broken], tame, options=FitOptions(refine=False, alphas=(0.5,), max_matches=1))
    with pytest.raises(SutureError, match="east/net: candidate c01 gives NaN") as caught:
        evaluate([pair[0], broken], fine, data)
    assert caught.value.code == "output.not_finite"


def test_one_class_and_constant_features(pair: list[Member], tmp_path: Path) -> None:
    x, _ = images(60)
    one = ArrayDataset(x, np.arange(60) % 3, LABELS)
    one._targets = np.zeros(60, dtype=np.int64)  # a reader that did not look
    with pytest.raises(SutureError) as caught:
        fit(pair, one)
    assert caught.value.code == "dataset.one_class"
    declared = ArrayDataset(x, np.zeros(60, dtype=np.int64), LABELS, one_class=True)
    closed = fit(pair, declared, own=0, options=QUICK).candidates.candidates
    assert any(candidate.kind == "stitched" for candidate in closed)
    assert not any(candidate.refined for candidate in closed)
    dead = plain()
    still = member(dead, tmp_path, "dead/net", seed=6)
    for name, tensor in still.model.tensors.items():
        if name.startswith("0."):
            tensor.data.zero_()  # the first convolution says nothing, so all its features are constant
    result = fit([pair[0], still], dataset(), own=0, options=QUICK)
    evaluation = evaluate([pair[0], still], result, dataset(), own=0)
    assert all(np.isfinite(score.value) for score in evaluation.splits["test"].scores.values())


def test_what_does_not_fit_is_refused(pair: list[Member], fitted: FitResult, tmp_path: Path) -> None:
    with pytest.raises(SutureError) as caught:
        fit(pair[:1], dataset())
    assert caught.value.code == "members.too_few"
    grey = ArrayDataset(images(60)[0][:, :1], np.arange(60) % 3, LABELS)
    with pytest.raises(SutureError, match=r"\(1, 8, 8\).*\(2, 8, 8\)"):
        fit(pair, grey)
    with pytest.raises(SutureError) as caught:
        evaluate(pair[::-1], fitted, dataset())
    assert caught.value.code == "candidates.members"
    with pytest.raises(SutureError) as caught:
        compose(pair, fitted, "c99")
    assert caught.value.code == "candidate.unknown"


def _broken(fitted: FitResult, change: str) -> FitResult:
    """Return what a hostile site could send instead."""
    content = fitted.candidates.model_dump(mode="json", by_alias=True)
    stitches = dict(fitted.stitches)
    match = next(c for c in content["candidates"] if c["matches"])["matches"][0]
    stitch = match["stitches"][0]
    if change == "nan":
        stitches[stitch["weight"]] = stitches[stitch["weight"]] * float("nan")
    elif change == "shape":
        stitches[stitch["weight"]] = stitches[stitch["weight"]][:, :-1]
    elif change == "missing":
        del stitches[stitch["bias"]]
    elif change == "point":
        match["points"]["0"] = "n9999"
    elif change == "stitch":
        match["stitches"] = match["stitches"][:1]
    return FitResult(CandidateSet.model_validate(content), stitches, fitted.input_shape)


@pytest.mark.parametrize("change", ["nan", "shape", "missing", "point", "stitch"])
def test_hostile_candidates_are_refused(pair: list[Member], fitted: FitResult, change: str) -> None:
    with pytest.raises(SutureError) as caught:
        evaluate(pair, _broken(fitted, change), dataset())
    assert caught.value.code in ("candidates.tensors", "candidates.points")


@pytest.mark.parametrize("file", ["candidates.json", "stitches.safetensors"])
def test_damaged_files_are_refused(fitted: FitResult, tmp_path: Path, file: str) -> None:
    fitted.save(tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(SutureError) as caught:
        FitResult.load(tmp_path)
    assert caught.value.code in ("candidates.invalid", "candidates.tensors")


def test_the_recipe_of_the_paper_has_one_pair_or_two_and_nothing_else(pair, fitted):
    options = FitOptions.read({"recipe": "paper"})
    paper = fit(pair, dataset(), own=0, options=options)
    stitched = [one for one in paper.candidates.candidates if one.kind == "stitched"]
    assert {len(one.matches) for one in stitched} == {1, 2}
    assert [one.kind for one in paper.candidates.candidates if one not in stitched] == ["single", "single", "ensemble"]
    assert not any(one.gate or one.refined or one.site_prior for one in stitched)
    closed = [one.matches for one in fitted.candidates.candidates if one.kind == "stitched"]
    assert any(one.matches in closed for one in stitched), "the closed forms are the same"


def test_the_recipe_of_the_paper_trains_nothing():
    assert not FitOptions.read({"recipe": "paper"}).refine
    with pytest.raises(SutureError, match="trains no stitches"):
        FitOptions.read({"recipe": "paper", "refine": True})


def test_test_samples_take_no_part_in_the_choice(pair: list[Member], fitted: FitResult) -> None:
    """So the report, which tells of test data alone, looks no better than what comes later."""
    whole = dataset()
    x, y = images(classes=len(LABELS))
    tested = np.array(whole.split_of()) == "test"
    x[tested], y[tested] = 1 - x[tested], (y[tested] + 1) % len(LABELS)
    changed = ArrayDataset(x, y, LABELS, split=whole.split_of())
    again = fit(pair, changed, own=0, options=QUICK)
    assert again.candidates == fitted.candidates
    assert all(torch.equal(again.stitches[name], tensor) for name, tensor in fitted.stitches.items())
    before, after = evaluate(pair, fitted, whole, own=0), evaluate(pair, again, changed, own=0)
    assert before.splits["test"] != after.splits["test"]
    chosen = [choose(fitted.candidates, {"north": own}, requester="north").chosen for own in (before, after)]
    assert chosen[0] == chosen[1]

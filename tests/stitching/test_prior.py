"""Shares of labels: divided out of the members' outputs, and each place's own put in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.stitching.networks import LABELS, deep, images, member, plain
from torch import Tensor

from suture_contract.compatibility import site_prior
from suture_contract.documents import Candidate
from suture_contract.errors import SutureError
from suture_contract.model.metadata import ModelMetadata
from suture_stitching.data.arrays import ArrayDataset
from suture_stitching.ensemble.compose import compose
from suture_stitching.ensemble.fitted import FitResult
from suture_stitching.ensemble.members import Member
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.fitting.fit import FitOptions, fit
from suture_stitching.formats.onnx import export_onnx
from suture_stitching.prior import LEAST_SHARE, AtPrior

PRIORS = ((0.5, 0.3, 0.2), (0.1, 0.1, 0.8))


def declared(one: Member, shares: tuple[float, ...] | None) -> Member:
    prior = None if shares is None else dict(zip(one.metadata.labels, shares, strict=True))
    return Member(one.model, one.metadata.model_copy(update={"label_prior": prior}), one.ref)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> list[Member]:
    folder = tmp_path_factory.mktemp("members")
    return [member(plain(), folder, seed=1), member(deep(), folder, "south/net", seed=2)]


@pytest.fixture(scope="module")
def pair(bare: list[Member]) -> list[Member]:
    return [declared(one, shares) for one, shares in zip(bare, PRIORS, strict=True)]


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    x, y = images(120)
    rare = np.flatnonzero(y == 2)[8:]  # the site has few of the third label
    keep = np.setdiff1d(np.arange(len(y)), rare)
    return ArrayDataset(x[keep], y[keep], LABELS)


@pytest.fixture(scope="module")
def fitted(pair: list[Member], data: ArrayDataset) -> FitResult:
    return fit(pair, data, own=0, options=FitOptions(refine=False))


def corrected(fitted: FitResult) -> Candidate:
    return next(one for one in fitted.candidates.candidates if one.kind == "corrected")


def by_hand(members: list[Member], x: Tensor, shares: list[float]) -> Tensor:
    total = torch.zeros(len(x), len(LABELS))
    for one in members:
        neutral = one.model(x).softmax(1) / torch.tensor(one.prior)
        total += neutral / neutral.sum(1, keepdim=True)
    weighed = total * torch.tensor(shares).clamp(min=LEAST_SHARE)
    return weighed / weighed.sum(1, keepdim=True)


def shares_of(data: ArrayDataset) -> list[float]:
    return list(data.label_shares().values())


def test_the_composed_model_holds_the_requesters_shares(pair, fitted):
    assert corrected(fitted).site_prior == PRIORS[0]
    x = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    composed = compose(pair, fitted, corrected(fitted).id)
    torch.testing.assert_close(composed(x), by_hand(pair, x, list(PRIORS[0])))


def test_an_evaluation_puts_in_the_shares_of_its_own_training_data(pair, fitted, data):
    found = evaluate(pair, fitted, data, own=0)
    x, y = next(data.batches("test", 1000))
    right = by_hand(pair, x, shares_of(data)).argmax(1) == y
    assert found.splits["test"].scores[corrected(fitted).id].value == pytest.approx(float(right.double().mean()))
    of_the_requester = by_hand(pair, x, list(PRIORS[0])).argmax(1)
    assert not bool((of_the_requester == by_hand(pair, x, shares_of(data)).argmax(1)).all())


def test_the_most_promising_candidates_are_corrected_too(fitted):
    kinds = [one.kind for one in fitted.candidates.candidates if one.site_prior is not None]
    assert kinds.count("corrected") == 1
    assert {"routed", "stitched"} & set(kinds)


@pytest.mark.parametrize("shares", [(PRIORS[0], None), (None, None)])
def test_nothing_is_corrected_where_a_member_declares_nothing(bare, data, shares):
    members = [declared(one, own) for one, own in zip(bare, shares, strict=True)]
    found = fit(members, data, own=0, options=FitOptions(refine=False)).candidates.candidates
    assert not any(one.site_prior for one in found)


def test_candidates_that_need_what_no_member_declares_are_refused(bare, fitted, data):
    """The document comes from a hub, which may have changed it."""
    with pytest.raises(SutureError) as error:
        evaluate(bare, fitted, data)
    assert error.value.code == "candidates.prior"
    with pytest.raises(SutureError) as error:
        compose(bare, fitted, corrected(fitted).id)
    assert error.value.code == "candidates.prior"


def test_nothing_is_corrected_for_a_requester_without_a_model(pair, data):
    assert site_prior([one.metadata for one in pair], None) is None
    found = fit(pair, data, options=FitOptions(refine=False)).candidates.candidates
    assert not any(one.site_prior for one in found)


def test_labels_that_a_member_does_not_know_have_no_share(pair):
    other = pair[1].metadata.model_copy(update={"labels": ("c", "d"), "label_prior": {"c": 0.25, "d": 0.75}})
    assert site_prior([pair[0].metadata, other], 1) == (0.0, 0.0, 0.25, 0.75)
    assert site_prior([pair[0].metadata, other], 0) == (*PRIORS[0], 0.0)


def neutral(classifier: Member, x: Tensor, labels: tuple[str, ...]) -> Tensor:
    """A member's probabilities of all `labels`, as if it had seen its own equally often."""
    output = classifier.model(x)
    own = output.softmax(1) if output.shape[1] > 1 else torch.cat([1 - output.sigmoid(), output.sigmoid()], 1)
    weighed = own / torch.tensor(classifier.prior)
    weighed = weighed / weighed.sum(1, keepdim=True)
    names = classifier.metadata.labels
    columns = [weighed[:, names.index(label)] if label in names else torch.zeros(len(x)) for label in labels]
    return torch.stack(columns, 1)


@pytest.mark.parametrize(
    ("named", "outputs"),
    [((LABELS, ("c", "d")), (3, 2)), ((("a", "b"), ("b", "a")), (1, 2)), ((("a", "b"), ("a", "b")), (1, 1))],
    ids=["other labels", "one channel, other order", "one channel each"],
)
def test_members_with_other_labels_and_one_channel_are_corrected(tmp_path, named, outputs):
    members = [
        declared(
            member(build(channels), tmp_path, name, labels=labels, seed=seed),
            (0.7, *((0.3 / (len(labels) - 1),) * (len(labels) - 1))),
        )
        for seed, (build, channels, name, labels) in enumerate(
            zip((plain, deep), outputs, ("north/net", "south/net"), named, strict=True)
        )
    ]
    labels = tuple(dict.fromkeys(label for own in named for label in own))
    x, y = images(90, len(labels))
    data = ArrayDataset(x, y, labels)
    fitted = fit(members, data, own=0, options=FitOptions(refine=False))
    knowing = torch.tensor([sum(label in own for own in named) for label in labels])
    x, y = next(data.batches("test", 1000))
    mean = sum(neutral(one, x, labels) for one in members) / knowing
    mean = mean / mean.sum(1, keepdim=True)

    def weighed(shares: Tensor) -> Tensor:
        total = mean * shares.clamp(min=LEAST_SHARE)
        return total / total.sum(1, keepdim=True)

    composed = compose(members, fitted, corrected(fitted).id)
    torch.testing.assert_close(composed(x), weighed(torch.tensor(corrected(fitted).site_prior)))
    measured = evaluate(members, fitted, data, own=0).splits["test"].scores[corrected(fitted).id]
    right = weighed(torch.tensor(list(data.label_shares().values()))).argmax(1).eq(y)
    assert measured.value == pytest.approx(float(right.double().mean()))


def test_a_gate_that_withdraws_passes_between_corrected_outputs(pair, fitted):
    """Familiar samples come from the home member alone, others from the others, both with the same shares put in."""
    every = [
        one.model_copy(update={"site_prior": PRIORS[0]}) if one.kind == "routed" else one
        for one in fitted.candidates.candidates
    ]
    routed = next(one for one in every if one.kind == "routed")
    candidates = fitted.candidates.model_copy(update={"candidates": tuple(every)})
    fitted = FitResult(candidates, fitted.stitches, fitted.input_shape)
    x = torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    x = x * torch.linspace(0.1, 4, 64)[:, None, None, None]
    home = routed.gate.withdraws
    ends = [by_hand([pair[home]], x, list(PRIORS[0])), by_hand([pair[1 - home]], x, list(PRIORS[0]))]
    neutrals = [neutral(pair[home], x, LABELS), neutral(pair[1 - home], x, LABELS)]
    got = compose(pair, fitted, routed.id)(x)
    near = [torch.isclose(got, end, atol=1e-5).all(1) for end in ends]
    assert bool(near[0].any())
    assert bool(near[1].any()), "some samples are as unfamiliar as can be"
    between = got / torch.tensor(PRIORS[0])
    between = between / between.sum(1, keepdim=True)
    low, high = torch.minimum(*neutrals), torch.maximum(*neutrals)
    assert bool(((between >= low - 1e-5) & (between <= high + 1e-5)).all())


def test_a_corrected_ensemble_is_the_same_in_onnx(pair, fitted, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    composed = compose(pair, fitted, corrected(fitted).id)
    export_onnx(composed, tmp_path / "corrected.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "corrected.onnx"), providers=["CPUExecutionProvider"])
    x = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    (probabilities,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(probabilities), composed(x), rtol=1e-4, atol=1e-5)


def test_members_that_cannot_be_joined_are_corrected_all_the_same(pair, data, monkeypatch):
    flat = [Member(one.model, one.metadata, one.ref) for one in pair]
    monkeypatch.setattr(Member, "points", lambda self, shape: [])
    unjoined = fit(flat, data, own=0, options=FitOptions(refine=False)).candidates
    assert unjoined.unstitched == "no_points"
    assert [one.kind for one in unjoined.candidates] == ["single", "single", "ensemble", "corrected"]


def test_a_look_at_the_train_split_is_taken_where_a_candidate_needs_it(bare, data, monkeypatch):
    plain_fit = fit(bare, data, own=0, options=FitOptions(refine=False))
    monkeypatch.setattr(ArrayDataset, "label_shares", lambda self: pytest.fail("nothing is corrected"))
    evaluate(bare, plain_fit, data, own=0)


@pytest.mark.parametrize("output", ["logits", "probabilities"])
@pytest.mark.parametrize("channels", [2, 1])
def test_probabilities_are_moved_to_other_shares(output, channels):
    metadata = ModelMetadata.model_validate(
        {
            "schema": "suture.model/1",
            "task": "classification",
            "inputs": {"x": {"format": "table", "num_channels": 2, "spatial_shape": []}},
            "outputs": {"y": {"num_channels": channels, "format": output}},
            "labels": ["no", "yes"],
            "label_prior": {"no": 0.8, "yes": 0.2},
            "license": "CC0-1.0",
        }
    )

    class Fixed(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            yes = torch.tensor([[0.2], [0.6]])
            both = torch.cat([1 - yes, yes], 1)
            if output == "probabilities":
                return yes if channels == 1 else both
            return yes.logit() if channels == 1 else both.log()

    moved = AtPrior(Fixed(), metadata, {"no": 0.5, "yes": 0.5})(torch.zeros(2, 2))
    if output == "logits":
        moved = moved.sigmoid() if channels == 1 else moved.softmax(1)
    odds = torch.tensor([0.2 / 0.8, 0.6 / 0.4]) * (0.8 / 0.2)
    torch.testing.assert_close(moved[:, -1], odds / (1 + odds))


@pytest.mark.parametrize(
    ("prior", "shares", "code"),
    [
        (None, {"a": 0.5, "b": 0.25, "c": 0.25}, "prior.unknown"),
        (PRIORS[0], {"a": 1.0}, "prior.invalid"),
        (PRIORS[0], {"a": 0.5, "b": 0.5, "c": 0.5}, "prior.invalid"),
        (PRIORS[0], {"a": 1.5, "b": -0.5, "c": 0.0}, "prior.invalid"),
    ],
)
def test_wrong_shares_are_refused(bare, prior, shares, code):
    classifier = declared(bare[0], prior)
    with pytest.raises(SutureError) as error:
        AtPrior(classifier.model, classifier.metadata, shares)
    assert error.value.code == code


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"label_prior": {"a": 0.5}}, "one share for each"),
        ({"label_prior": {"a": 0.5, "b": 0.6}}, "sum to 1.1"),
        ({"label_prior": {"a": -0.5, "b": 1.5}}, "greater than or equal"),
        ({"task": "multilabel", "label_prior": {"a": 0.5, "b": 0.5}}, "exclude each other"),
    ],
)
def test_what_suture_json_declares_is_checked(changes, problem):
    document = {
        "schema": "suture.model/1",
        "task": "classification",
        "inputs": {"x": {"format": "table", "num_channels": 2, "spatial_shape": []}},
        "outputs": {"y": {"num_channels": 2}},
        "labels": ["a", "b"],
        "license": "CC0-1.0",
    }
    with pytest.raises(ValueError, match=problem):
        ModelMetadata.model_validate({**document, **changes})

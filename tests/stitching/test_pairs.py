"""Members that differ in every way the engine is made for: each pair or triple is fitted from end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.stitching.unlike import (
    COLOUR,
    FINDINGS,
    GREY,
    MASK,
    QUICK,
    SCALED,
    Cells,
    Net,
    Recurrent,
    Residual,
    ViT,
    cells,
    cnn,
    columns,
    findings,
    loaded,
    member,
    mlp,
    pictures,
    same_when_composed,
    sums,
    volume,
    wave,
)
from torch import nn

from suture_stitching.data import ArrayDataset, Dataset
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.fitting.fit import FitOptions, FitResult, Member, fit


@dataclass(frozen=True)
class Case:
    """Members, the data they are fitted on, and the metric that mere chance would give."""

    nets: tuple[Net, ...]
    data: Callable[[], Dataset]
    chance: float
    #: The shape that the ensemble reads.
    shape: tuple[int, ...]


CASES = {
    "convolutions and patches with a class token": Case((Net(cnn, GREY), Net(ViT, GREY)), pictures, 0.4, GREY),
    "two sizes of patch grids": Case(
        (Net(ViT, GREY), Net(lambda: ViT(size=12, width=12), (1, 12, 12))), pictures, 0.4, (1, 12, 12)
    ),
    "perceptrons of other widths": Case(
        (
            Net(lambda: mlp(4, 8), (4,), format="table", channels=("age", "weight", "pulse", "noise")),
            Net(lambda: mlp(4, 20), (4,), format="table", channels=("age", "weight", "pulse", "noise")),
        ),
        columns,
        0.4,
        (4,),
    ),
    "columns by name": Case(
        (
            Net(lambda: mlp(3, 8), (3,), format="table", channels=("pulse", "age", "weight")),
            Net(lambda: mlp(3, 12), (3,), format="table", channels=("age", "noise", "pulse")),
        ),
        columns,
        0.4,
        (4,),
    ),
    "two segmentation networks": Case(
        (Net(Cells, (1, 16, 16), MASK), Net(Residual, (1, 16, 16), MASK)), cells, 0.6, (1, 16, 16)
    ),
    "masks of other sizes, one of a single channel": Case(
        (Net(lambda: Cells(outputs=1), (1, 16, 16), MASK), Net(Residual, (1, 8, 8), MASK)), cells, 0.6, (1, 16, 16)
    ),
    "grey and colour in other ranges": Case(
        (
            Net(cnn, GREY, value_range=(0.0, 1.0)),
            Net(lambda: cnn(3, width=4), COLOUR, value_range=(0.0, 255.0), preprocessing=SCALED),
        ),
        lambda: pictures(value_range=(0.0, 1.0)),
        0.4,
        COLOUR,
    ),
    "images of 8 and 16": Case(
        (Net(cnn, GREY), Net(lambda: cnn(width=4), (1, 16, 16))), lambda: pictures((1, 16, 16)), 0.4, (1, 16, 16)
    ),
    "volumes": Case(
        (Net(lambda: volume(4), (1, 6, 6, 6)), Net(lambda: volume(6), (1, 8, 8, 8))),
        lambda: pictures((1, 6, 6, 6)),
        0.4,
        (1, 8, 8, 8),
    ),
    "signals, recurrent and convolutional": Case(
        (Net(Recurrent, (2, 12), format="signal"), Net(wave, (2, 12), format="signal")),
        lambda: pictures((2, 12)),
        0.4,
        (2, 12),
    ),
    "three members whose labels overlap": Case(
        (
            Net(lambda: cnn(outputs=2), GREY, ("a", "b")),
            Net(lambda: ViT(outputs=2), GREY, ("c", "b")),
            Net(lambda: cnn(width=4, outputs=3), GREY, ("c", "a", "d")),
        ),
        pictures,
        0.4,
        GREY,
    ),
    "several labels at once": Case(
        (Net(cnn, GREY, FINDINGS), Net(lambda: ViT(outputs=2), GREY, ("three", "one"))), findings, 0.5, GREY
    ),
    "one logit for two labels": Case(
        (Net(lambda: cnn(outputs=1), GREY, ("a", "b")), Net(lambda: cnn(width=4, outputs=2), GREY, ("b", "a"))),
        lambda: pictures(labels=("a", "b")),
        0.6,
        GREY,
    ),
    "one probability for two labels": Case(
        (
            Net(lambda: nn.Sequential(cnn(outputs=1), nn.Sigmoid()), GREY, ("a", "b"), output="probabilities"),
            Net(lambda: cnn(width=4, outputs=2), GREY, ("a", "b")),
        ),
        lambda: pictures(labels=("a", "b")),
        0.6,
        GREY,
    ),
    "regression": Case(
        (Net(lambda: cnn(outputs=2), GREY, None), Net(lambda: ViT(outputs=2), GREY, None)), sums, 0.6, GREY
    ),
}


def known_to(net: Net, data: Dataset) -> Dataset:
    """Return the part of the data whose labels this network knows."""
    if net.labels is None or set(data.labels) <= set(net.labels):
        return data
    kept = [i for i, label in enumerate(data.labels) if label in net.labels]
    (x, y), labels = next(iter(data.batches("train", 10_000))), [data.labels[i] for i in kept]
    if data.task == "multilabel":
        return ArrayDataset(x.numpy(), y[:, kept].numpy(), labels, task="multilabel")
    chosen = torch.isin(y, torch.tensor(kept))
    return ArrayDataset(x[chosen].numpy(), np.array([kept.index(i) for i in y[chosen].tolist()]), labels)


@pytest.mark.parametrize("name", CASES)
def test_from_end_to_end(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    data = case.data()
    members = [member(net, known_to(net, data), tmp_path, index) for index, net in enumerate(case.nets)]
    result = fit(members, data, options=QUICK)
    result.save(tmp_path)
    result = FitResult.load(tmp_path)
    assert result.input_shape == case.shape
    assert result.candidates.unstitched is None
    stitched = [c for c in result.candidates.candidates if c.kind == "stitched"]
    assert stitched
    evaluation = evaluate(members, result, data, own=0)
    scores = evaluation.splits["test"].scores
    assert all(np.isfinite(score.value) for score in scores.values())
    sign = 1 if evaluation.higher_is_better else -1
    ensemble = result.candidates.candidates[len(members)]
    best = max(stitched, key=lambda c: sign * scores[c.id].value)
    for candidate in (ensemble, best, stitched[-1]):
        same_when_composed(members, result, candidate.id, data, scores[candidate.id].value, tmp_path)
    assert sign * scores[best.id].value > sign * case.chance
    # Training ends in other weights on other processors, and the samples are few: it is not surely worse.
    reach = scores[best.id].high if evaluation.higher_is_better else scores[best.id].low
    assert sign * reach >= sign * scores[ensemble.id].value - 0.1
    _stitched_again(members, result, best.id, data, tmp_path)


def _stitched_again(members: list[Member], result: FitResult, id: str, data: Dataset, folder: Path) -> None:
    """Check that a stitched ensemble is stitched to a member as any other network is."""
    stitched = loaded(members, result, id, data, folder)
    again = [stitched, members[-1]]
    fitted = fit(again, data, options=FitOptions(refine=False, max_matches=4, alphas=(0.5,)))
    assert fitted.candidates.unstitched is None
    candidate = [c for c in fitted.candidates.candidates if c.kind == "stitched"][-1]
    score = evaluate(again, fitted, data, own=0).splits["test"].scores[candidate.id].value
    assert np.isfinite(score)
    same_when_composed(again, fitted, candidate.id, data, score, folder)

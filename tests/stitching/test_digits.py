"""What stitching is for, on real images: two parties, other digits, other scanner, other networks; north asks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from suture_contract.model.metadata import Member as MemberRef
from suture_contract.model.metadata import ModelMetadata
from suture_local import digits
from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble.compose import compose
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.fit import Member, fit
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load, save


def _member(party: str, seed: int, data: digits.PartyData, folder: Path) -> Member:
    train = data.split == "train"
    module = digits.train(digits.network(party, seed), data.images[train], data.labels[train], seed=seed)
    path = folder / f"{party}.safetensors"
    export(module, torch.from_numpy(data.images[:2]), path)
    metadata = ModelMetadata.model_validate(
        {
            "schema": "suture.model/1",
            "task": "classification",
            "inputs": {"image": {"num_channels": 1, "spatial_shape": (8, 8), "value_range": (0, 1)}},
            "outputs": {"digit": {"num_channels": 10}},
            "labels": digits.LABELS,
            "license": "CC-BY-4.0",
        }
    )
    number = digits.PARTIES.index(party)
    ref = MemberRef(repo=f"{party}/digits", revision=f"{number:040x}", sha256=f"{number:064x}")
    return Member(load(path), metadata, ref)


@pytest.mark.parametrize("seed", [0, 1])
def test_north_keeps_its_own_and_gains_souths(seed: int, tmp_path: Path) -> None:
    parties = digits.parties(seed)
    members = [_member(party, seed, parties[party], tmp_path) for party in digits.PARTIES]
    datasets = {
        party: ArrayDataset(data.images, data.labels, digits.LABELS, split=list(data.split), value_range=(0.0, 1.0))
        for party, data in parties.items()
    }
    fitted = fit(members, datasets["north"])
    evaluations = {
        party: evaluate(members, fitted, datasets[party], own=index) for index, party in enumerate(digits.PARTIES)
    }
    choice = choose(fitted.candidates, evaluations, requester="north")
    validation = [evaluations[party].splits["validation"].scores for party in digits.PARTIES]
    stitched = max(
        (candidate.id for candidate in fitted.candidates.candidates if candidate.kind == "stitched"),
        key=lambda id: sum(scores[id].value for scores in validation),
    )
    north, south = (evaluations[party].splits["test"].scores for party in digits.PARTIES)
    for id in (choice.chosen, stitched):
        assert north[id].value >= north["c02"].value + 0.05  # than the plain ensemble
        assert north[id].value >= north["c00"].value - 0.04  # than its own model
        assert south[id].value >= south["c02"].value - 0.02
    assert choice.verdicts["north"] == "adopt"

    composed = compose(members, fitted, stitched)
    save(composed.graph, composed.tensors, tmp_path / "stitched.safetensors")
    test = parties["north"].split == "test"
    found = digits.accuracy(
        load(tmp_path / "stitched.safetensors"), parties["north"].images[test], parties["north"].labels[test]
    )
    assert found == pytest.approx(north[stitched].value)


def test_parties_share_no_image_and_are_the_same_for_a_seed() -> None:
    one, two = digits.parties(3), digits.parties(3)
    for party in digits.PARTIES:
        assert (one[party].images == two[party].images).all()
        assert (one[party].split == two[party].split).all()
        own = (one[party].labels < 5) == (party == "north")
        assert own.mean() == pytest.approx(digits.OWN_SHARE, abs=0.01)
        assert one[party].images.min() >= 0
        assert one[party].images.max() <= 1
    assert sum(len(data.labels) for data in one.values()) == 1797
    assert (digits.parties(4)["north"].images != one["north"].images).any()

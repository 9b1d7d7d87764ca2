"""The references of a study: what holds parties close, and what weighs their outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from suture_local.study import references, training
from suture_local.study.data import Part

CPU = training.machine_of(torch.device("cpu"), (2,))
RECIPE = training.recipe_of("classification", 0, False, 8)


def part(seed: int, flip: bool = False) -> Part:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 2, generator=generator)
    y = (x[:, 0] > 0).long()
    return Part(x, 1 - y if flip else y)


def federated(start: nn.Module, parts: list[Part], **options: float) -> nn.Module:
    ends: list[training.TrainingEnd] = []
    module = references.federated(
        start, parts, parts, RECIPE, CPU, seed=0, progress=lambda done: None, ended=ends.append, **options
    )
    assert len(ends) == 1
    return module


def linear() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(2, 2)


def apart(module: nn.Module) -> float:
    pairs = zip(module.parameters(), linear().parameters(), strict=True)
    return sum(float((trained - start).detach().square().sum()) for trained, start in pairs)


def test_a_proximal_term_holds_parties_to_the_common_network():
    parts = [part(0), part(1)]
    free = federated(linear(), parts)
    held = federated(linear(), parts, proximal=1000.0)
    assert apart(held) < 0.5 * apart(free)
    assert apart(federated(linear(), parts, proximal=0.0)) == pytest.approx(apart(free))


def test_own_shares_of_labels_take_the_place_of_learnt_ones():
    one = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    corrected = references.with_shares(lambda part: one, {"a": 0.5, "b": 0.5}, {"a": 0.2, "b": 0.8})(part(0))
    torch.testing.assert_close(corrected, torch.tensor([[0.2, 0.8], [0.18 / 0.26, 0.08 / 0.26]]))
    with pytest.raises(ValueError, match="other labels"):
        references.with_shares(lambda part: one, {"a": 1.0, "b": 0.0}, {"b": 0.5, "a": 0.5})


def test_more_epochs_between_averagings_make_fewer_rounds(monkeypatch):
    rounds = []
    real = references._mean
    monkeypatch.setattr(references, "_mean", lambda *given: rounds.append(1) or real(*given))
    federated(linear(), [part(0)])
    assert len(rounds) == RECIPE.epochs
    federated(linear(), [part(0)], local_epochs=4)
    assert len(rounds) == RECIPE.epochs + RECIPE.epochs // 4


def test_an_aggregator_learns_whom_to_believe():
    """One member is right and the other always wrong: their mean knows nothing, the aggregator does."""
    right, wrong = linear(), linear()
    with torch.no_grad():
        for module, sign in ((right, 4.0), (wrong, -4.0)):
            module.weight.copy_(torch.tensor([[-sign, 0.0], [sign, 0.0]]))
            module.bias.zero_()
    read = [references.side_by_side([right, wrong], own, CPU) for own in (part(0), part(1))]
    assert read[0].x.shape == (64, 4)
    start = references.Aggregated(2, 2, spatial=False, seed=0)
    network = federated(start, read)
    assert training.validated(network, read, "classification", CPU)[0] > 0.9
    plain = references.mean_of_probabilities([right, wrong], CPU)(part(0))
    torch.testing.assert_close(plain, torch.full((64, 2), 0.5))

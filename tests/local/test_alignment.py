"""Units of one network are put in the order of another's: what it computes stays, and averages mean something."""

from __future__ import annotations

import copy
from itertools import permutations

import numpy as np
import pytest
import torch
from benchmarks.networks import PlainNetwork
from torch import nn

from suture_local import digits
from suture_local.study import alignment, nets, references
from suture_local.training import untrained

NETWORKS = {
    "table": (lambda: nets.network("classification", 0, (9,), 3, seed=0), (9,)),
    "residual table": (lambda: nets.network("classification", 1, (9,), 3, seed=0), (9,)),
    "images": (lambda: nets.network("classification", 0, (1, 16, 16), 3, seed=0), (1, 16, 16)),
    "residual images": (lambda: nets.network("classification", 1, (3, 16, 16), 3, seed=0), (3, 16, 16)),
    "masks": (lambda: nets.network("segmentation", 0, (1, 32, 32), 2, seed=0), (1, 32, 32)),
    "large masks": (lambda: nets.network("segmentation", 1, (3, 96, 96), 2, seed=0), (3, 96, 96)),
    "digits": (lambda: untrained(PlainNetwork, 0), (1, 8, 8)),
    "residual digits": (lambda: untrained(digits.ResidualNetwork, 0), (1, 8, 8)),
}


def shuffled(module: nn.Module, seed: int) -> nn.Module:
    """Return a copy that computes the same, with every free set of units in another order."""
    layers, rng = alignment._layers(module), np.random.default_rng(seed)
    orders = [np.arange(size) for size in layers.sizes]
    for units in range(len(orders)):
        if units not in layers.same and units not in layers.fixed:
            orders[units] = rng.permutation(layers.sizes[units])
    result = copy.deepcopy(module)
    state = result.state_dict()
    for name, axis, channels in layers.axes:
        order = layers.order(channels, orders, state[name].shape[axis])
        state[name] = state[name].index_select(axis, torch.from_numpy(order))
    result.load_state_dict(state)
    return result


def lively(module: nn.Module) -> nn.Module:
    """Give batch normalisation statistics and weights that differ from unit to unit."""
    generator = torch.Generator().manual_seed(1)
    for own in module.modules():
        if isinstance(own, nn.BatchNorm2d):
            for value in (own.weight.data, own.running_var):
                value.uniform_(0.5, 2.0, generator=generator)
            for value in (own.bias.data, own.running_mean):
                value.normal_(generator=generator)
    return module.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_units_in_another_order_are_found_again(name: str) -> None:
    make, shape = NETWORKS[name]
    module = lively(make())
    other = shuffled(module, 3)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(other(x), module(x))
    assert any(not torch.equal(a, b) for a, b in zip(other.parameters(), module.parameters(), strict=True))
    found = alignment.aligned(other, module)
    torch.testing.assert_close(found(x), module(x))
    alike = [float((a - b).detach().abs().max()) for a, b in zip(found.parameters(), module.parameters(), strict=True)]
    if "residual" not in name and "large" not in name:  # where units are added up, the search may stop before
        assert max(alike) == 0
        torch.testing.assert_close(references.realigned([module, other], [1.0, 3.0])(x), module(x))


def test_an_assignment_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 6):
        worth = rng.normal(size=(n, n))
        best = max(sum(worth[row, column] for row, column in enumerate(order)) for order in permutations(range(n)))
        found = alignment.assignment(worth)
        assert sorted(found) == list(range(n))
        assert worth[np.arange(n), found].sum() == pytest.approx(best)


def test_statistics_are_those_of_all_that_is_put_through_layer_by_layer() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1

    def run(own: nn.Module) -> None:
        own(x[:20])
        own(x[20:])

    done: list[float] = []
    found = alignment.with_statistics(module, run, done.append)
    assert done == [0.5, 1.0]
    torch.testing.assert_close(found[0].running_mean, x.mean(0))
    torch.testing.assert_close(found[0].running_var, x.var(0, correction=0))
    given = found[1](found[0](x)).detach()
    torch.testing.assert_close(found[2].running_mean, given.mean(0))
    torch.testing.assert_close(module[0].running_mean, torch.zeros(2))


class Turned(nn.Module):
    """Does what no layer of the known kinds does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's values, turned."""
        return self.layer(x).flip(1)


def test_what_is_not_known_is_said() -> None:
    with pytest.raises(alignment.NotAligned, match="flip"):
        alignment.aligned(Turned(), Turned())


class Twice(nn.Module):
    """Has one layer at two places: called twice, or by weights that are shared."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.third = nn.Linear(8, 8) if tied else self.second
        self.third.weight = self.second.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return two values for each sample."""
        for layer in (self.first, self.second, self.third):
            x = layer(x).relu()
        return self.last(x)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_at_two_places_are_not_put_into_two_orders(tied: bool) -> None:
    with pytest.raises(alignment.NotAligned, match="used at two places"):
        alignment.aligned(Twice(tied=tied), Twice(tied=tied))

"""The methods that stitching is measured against, each from the members or from the parties' data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from suture_local.study.alignment import aligned, with_statistics
from suture_local.study.data import Part
from suture_local.study.training import Machine, OnEnd, OnShare, Recipe, Training, logits, run
from suture_stitching.prior import LEAST_SHARE

#: A method at work: the probabilities `(N, L, *spatial)` of a party's samples.
Predictor = Callable[[Part], Tensor]
#: Parts of the recipe's learning rate, passes over a party's data between two averagings, and what a step away from the
#: common weights costs (Li et al., "Federated optimization in heterogeneous networks", 2020): what is tried, one after
#: another, each with what was the best of those before on validation data.
LEARNING_RATES, LOCAL_EPOCHS, PROXIMAL = (1.0, 0.3, 3.0), (1, 4), (0.01, 0.1)
#: Units of the network that weighs the members' outputs.
AGGREGATOR = 32


def of_network(module: nn.Module, machine: Machine) -> Predictor:
    """Return a trained network as a method."""
    return lambda part: logits(module, part, machine).softmax(1)


def mean_of_probabilities(modules: Sequence[nn.Module], machine: Machine) -> Predictor:
    """Return the plain ensemble."""
    return lambda part: torch.stack([logits(module, part, machine).softmax(1) for module in modules]).mean(0)


def mean_of_logits(modules: Sequence[nn.Module], machine: Machine) -> Predictor:
    """Return the plain ensemble that averages before the softmax (a geometric mean of probabilities)."""
    return lambda part: torch.stack([logits(module, part, machine) for module in modules]).mean(0).softmax(1)


def with_shares(predict: Predictor, assumed: Mapping[str, float], own: Mapping[str, float]) -> Predictor:
    """Return a method with `own` shares of labels in the place of those that it learnt, `assumed`, in one order.

    Raises `ValueError` for other labels.
    """
    if list(assumed) != list(own):
        raise ValueError("shares of other labels")
    wanted, learnt = (torch.tensor(list(shares.values())).clamp(min=LEAST_SHARE) for shares in (own, assumed))

    def corrected(part: Part) -> Tensor:
        probabilities = predict(part)
        weighed = probabilities * (wanted / learnt).to(probabilities)
        return weighed / weighed.sum(1, keepdim=True)

    return corrected


def taught(part: Part, teacher: Predictor) -> Part:
    """Return the samples with the teacher's probabilities, from which a student is distilled."""
    return Part(part.x, part.y, teacher(part).to(torch.float16))


def averaged(modules: Sequence[nn.Module], weights: Sequence[float]) -> nn.Module:
    """Return the network whose parameters and running statistics are the weighted mean of those of `modules`."""
    result = copy.deepcopy(modules[0])
    result.load_state_dict(_mean([module.state_dict() for module in modules], weights))
    return result.eval()


def realigned(modules: Sequence[nn.Module], weights: Sequence[float]) -> nn.Module:
    """Return the same after every module's units were put in the order of the first one's.

    Raises `alignment.NotAligned`.
    """
    first, *others = modules
    return averaged([first, *(aligned(module, first) for module in others)], weights)


def remeasured(
    module: nn.Module, parts: Sequence[Part], machine: Machine, progress: OnShare = lambda done: None
) -> nn.Module:
    """Return a copy whose batch normalisation has the statistics of `parts`; no sample has to leave its party."""
    return with_statistics(module, lambda own: [logits(own, part, machine) for part in parts], progress)


def federated(
    start: nn.Module,
    parts: Sequence[Part],
    validation: Sequence[Part],
    recipe: Recipe,
    machine: Machine,
    *,
    seed: int,
    progress: OnShare,
    ended: OnEnd,
    local_epochs: int = 1,
    proximal: float = 0.0,
) -> nn.Module:
    """Return a network trained by synchronous federated averaging (McMahan et al., 2017) from `start`.

    In each round every party trains the common network on its own data, for `local_epochs`, and the results are
    averaged by numbers of samples. Each party keeps its optimizer's state from round to round. With `proximal` it is
    FedProx: weights are held to those of the round's beginning.
    """
    trainings = [Training(copy.deepcopy(start), recipe, machine, seed=seed + index) for index in range(len(parts))]
    common = trainings[0].module
    state = copy.deepcopy(common.state_dict())
    result = copy.deepcopy(common)
    weights = [float(len(part)) for part in parts]

    def round_of(done: float) -> None:
        nonlocal state
        states = []
        for training, part in zip(trainings, parts, strict=True):
            training.module.load_state_dict(state)
            if proximal:
                training.anchor = [weights.detach().clone() for weights in training.module.parameters()]
                training.proximal = proximal
            for _ in range(local_epochs * max(1, len(part) // recipe.batch)):
                training.step(part, done)
            states.append(copy.deepcopy(training.module.state_dict()))
        state = _mean(states, weights)
        result.load_state_dict(state)

    rounds = max(1, recipe.epochs // local_epochs)
    return run(result, round_of, validation, recipe, machine, steps=rounds, seed=seed, progress=progress, ended=ended)


class Aggregated(nn.Module):
    """A small network on the members' probabilities side by side: `(N, K * L, *spatial)` to logits `(N, L, *spatial)`.

    Trained by federated averaging it is the aggregator of FENS (Allouah et al., "Revisiting ensembling in one-shot
    federated learning", 2024).
    """

    def __init__(self, members: int, labels: int, *, spatial: bool, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layer: Any = (lambda a, b: nn.Conv2d(a, b, 1)) if spatial else nn.Linear
            self.layers = nn.Sequential(layer(members * labels, AGGREGATOR), nn.ReLU(), layer(AGGREGATOR, labels))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.layers(x)
        return logits


def side_by_side(modules: Sequence[nn.Module], part: Part, machine: Machine) -> Part:
    """Return the samples as an aggregator reads them: the members' probabilities."""
    outputs = [logits(module, part, machine).softmax(1) for module in modules]
    return Part(torch.cat(outputs, 1).clone(), part.y)


def _mean(states: Sequence[dict[str, Any]], weights: Sequence[float]) -> dict[str, Any]:
    """Return the weighted mean of states; variances of batch normalisation are those of the parties' pooled values."""
    shares = [weight / sum(weights) for weight in weights]

    def mean_of(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([value * share for value, share in zip(values, shares, strict=True)]).sum(0)

    mean = {
        name: mean_of([state[name] for state in states]) if first.is_floating_point() else first
        for name, first in states[0].items()
    }
    for name in mean:
        if name.endswith("running_var"):
            of = name.removesuffix("var") + "mean"
            mean[name] = mean[name] + mean_of([state[of].square() for state in states]) - mean[of].square()
    return mean

"""The methods that stitching is measured against, each from the members or from the parties' data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from suture_local.study.data import Part
from suture_local.study.training import Machine, OnEnd, OnShare, Recipe, Training, logits, run

#: A method at work: the probabilities `(N, L, *spatial)` of a party's samples.
Predictor = Callable[[Part], Tensor]
#: Passes over a party's data between two averagings.
LOCAL_EPOCHS = 1


def of_network(module: nn.Module, machine: Machine) -> Predictor:
    """Return a trained network as a method."""
    return lambda part: logits(module, part, machine).softmax(1)


def mean_of_probabilities(modules: Sequence[nn.Module], machine: Machine) -> Predictor:
    """Return the plain ensemble."""
    return lambda part: torch.stack([logits(module, part, machine).softmax(1) for module in modules]).mean(0)


def mean_of_logits(modules: Sequence[nn.Module], machine: Machine) -> Predictor:
    """Return the plain ensemble that averages before the softmax (a geometric mean of probabilities)."""
    return lambda part: torch.stack([logits(module, part, machine) for module in modules]).mean(0).softmax(1)


def taught(part: Part, teacher: Predictor) -> Part:
    """Return the samples with the teacher's probabilities, from which a student is distilled."""
    return Part(part.x, part.y, teacher(part).to(torch.float16))


def averaged(modules: Sequence[nn.Module], weights: Sequence[float]) -> nn.Module:
    """Return the network whose parameters and running statistics are the weighted mean of those of `modules`."""
    result = copy.deepcopy(modules[0])
    result.load_state_dict(_mean([module.state_dict() for module in modules], weights))
    return result.eval()


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
) -> nn.Module:
    """Return a network trained by synchronous federated averaging (McMahan et al., 2017) from `start`.

    In each round every party trains the common network on its own data, and the results are averaged by numbers of
    samples. Each party keeps its optimizer's state from round to round.
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
            for _ in range(LOCAL_EPOCHS * max(1, len(part) // recipe.batch)):
                training.step(part, done)
            states.append(copy.deepcopy(training.module.state_dict()))
        state = _mean(states, weights)
        result.load_state_dict(state)

    rounds = max(1, recipe.epochs // LOCAL_EPOCHS)
    return run(result, round_of, validation, recipe, machine, steps=rounds, seed=seed, progress=progress, ended=ended)


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

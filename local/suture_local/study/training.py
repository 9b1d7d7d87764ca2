"""Training for a number of epochs, over which the learning rate falls as a cosine.

The state with the best validation metric is kept. Nothing here is particular to stitching.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suture_contract.model.metadata import Task
from suture_local.study.data import Part
from suture_local.study.scores import sample_scores

#: Called with the part of a training that is done.
OnShare = Callable[[float], None]
#: A validation metric that rose by more than this in the last quarter of a training was still rising.
STILL_RISING = 0.02


@dataclass(frozen=True)
class TrainingEnd:
    """How a training ended: the part after which the kept state was, and what the last quarter added to the metric."""

    best: float
    late_gain: float

    @property
    def converged(self) -> bool:
        """Whether more epochs would hardly have helped."""
        return self.late_gain <= STILL_RISING


#: Called when a training has ended.
OnEnd = Callable[[TrainingEnd], None]


@dataclass(frozen=True)
class Recipe:
    """How networks of one study are trained."""

    task: Task
    learning_rate: float
    weight_decay: float
    batch: int
    epochs: int
    #: Looks at the validation split in the course of a training.
    looks: int
    augment: bool = False
    #: Batches that an epoch counts at least: a few images need more than a few steps.
    fewest: int = 1

    def steps(self, samples: int) -> int:
        """Return how many steps all epochs over `samples` have."""
        return self.epochs * max(self.fewest, samples // self.batch)


def recipe_of(task: Task, spatial: int, augment: bool, epochs: int | None = None) -> Recipe:
    """Return the recipe for inputs with `spatial` axes; `epochs` take the place of its own."""
    recipe = _recipe_of(task, spatial, augment)
    return recipe if epochs is None else replace(recipe, epochs=epochs)


def _recipe_of(task: Task, spatial: int, augment: bool) -> Recipe:
    if task == "segmentation":
        return Recipe(task, 3e-3, 1e-2, batch=8, epochs=120, looks=24, augment=augment, fewest=20)
    if spatial:
        return Recipe(
            task, 3e-3, 1e-2, batch=32 if augment else 64, epochs=100 if augment else 40, looks=20, augment=augment
        )
    return Recipe(task, 3e-3, 1e-2, batch=32, epochs=60, looks=20)


@dataclass(frozen=True)
class Machine:
    """Where to compute, and whether in bfloat16 with the channels last."""

    device: torch.device
    half: bool

    def run(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return the module's output as float32."""
        if not self.half:
            return module(x)  # type: ignore[no-any-return]
        with torch.autocast(self.device.type, torch.bfloat16):
            return module(x.contiguous(memory_format=torch.channels_last)).float()  # type: ignore[no-any-return]


def machine_of(device: torch.device, input_shape: Sequence[int]) -> Machine:
    """Return how to compute on `device`: a rule and no trial, so that the same data give the same figures."""
    large = len(input_shape) == 3 and min(input_shape[1:]) >= 32
    return Machine(device, half=device.type == "cuda" and large and torch.cuda.is_bf16_supported())


class Training:
    """One network being trained, step by step."""

    def __init__(self, module: nn.Module, recipe: Recipe, machine: Machine, *, seed: int) -> None:
        self.recipe, self.machine = recipe, machine
        self.module = module.to(machine.device)
        if machine.half:
            self.module = self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module.train()
        self._optimizer = torch.optim.AdamW(
            module.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        #: Weights to stay close to, and how much a squared distance from them costs.
        self.anchor: Sequence[Tensor] = ()
        self.proximal = 0.0
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long)

    def step(self, part: Part, done: float) -> None:
        """Take one step on samples of `part`, when the part `done` of the training lies behind."""
        warm = min(1.0, done / 0.05 + 0.05)
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        x, y, soft = self._batch(part)
        output = self.machine.run(self.module, x)
        value = loss(self.recipe.task, output, y)
        if soft is not None:
            value = 0.5 * value + 0.5 * soft_loss(self.recipe.task, output, soft)
        for own, common in zip(self.module.parameters(), self.anchor, strict=False):
            value = value + self.proximal / 2 * (own - common).square().sum()
        self._update(value)

    def _update(self, value: Tensor) -> None:
        self._optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), 5.0)
        self._optimizer.step()

    def _batch(self, part: Part) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the next samples; a rest that is smaller than a batch waits for the next shuffle."""
        size = min(self.recipe.batch, len(part))
        if len(self._order) < size:
            self._order = torch.randperm(len(part), generator=self._generator)
        index, self._order = self._order[:size].to(part.x.device), self._order[size:]
        if size == 1:  # batch normalisation needs two
            index = index.repeat(2)
        x, y = part.inputs(index), part.targets(index)
        soft = None if part.soft is None else part.soft[index].float()
        return augmented(x, y, soft, self._generator) if self.recipe.augment else (x, y, soft)


def train(
    module: nn.Module,
    part: Part,
    validation: Sequence[Part],
    recipe: Recipe,
    machine: Machine,
    *,
    seed: int,
    progress: OnShare = lambda done: None,
    ended: OnEnd = lambda end: None,
) -> nn.Module:
    """Train `module` in place on `part`; return it, in evaluation mode, as it was best on `validation`.

    Best is the highest mean metric over the parties' validation splits, and of equal ones the lowest loss.
    """
    training = Training(module, recipe, machine, seed=seed)
    steps = recipe.steps(len(part))
    return run(
        training.module,
        lambda done: training.step(part, done),
        validation,
        recipe,
        machine,
        steps=steps,
        seed=seed,
        progress=progress,
        ended=ended,
    )


def run(
    module: nn.Module,
    step: Callable[[float], None],
    validation: Sequence[Part],
    recipe: Recipe,
    machine: Machine,
    *,
    steps: int,
    seed: int,
    progress: OnShare,
    ended: OnEnd = lambda end: None,
) -> nn.Module:
    """Call `step` so many times; leave `module` in its best state on validation. `seed` decides what is dropped out."""
    looks, at, early = 0, 0.0, 0.0
    best: tuple[float, float] | None = None
    kept: dict[str, Any] = {}
    devices = [machine.device] if machine.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for taken in range(1, steps + 1):
            step((taken - 1) / steps)
            done = taken / steps
            # The first states are never the best ones.
            if taken == steps or (done * recipe.looks >= looks + 1 and done > 0.25):
                looks = int(done * recipe.looks)
                now = validated(module, validation, recipe.task, machine)
                if best is None or now > best:
                    best, kept, at = now, copy.deepcopy(module.state_dict()), done
                early = best[0] if done <= 0.75 else early
            progress(done)
    module.load_state_dict(kept)
    assert best is not None  # the last step is looked at
    ended(TrainingEnd(at, best[0] - early))
    return module.eval()


def validated(module: nn.Module, validation: Sequence[Part], task: Task, machine: Machine) -> tuple[float, float]:
    """Return mean metric and minus the mean loss over the parties' validation splits."""
    metrics, losses = [], []
    for part in validation:
        output = logits(module, part, machine)
        metrics.append(float(sample_scores(task, output.softmax(1), part.y.long()).mean()))
        losses.append(float(loss(task, output, part.y.long())))
    values = (sum(metrics) / len(metrics), -sum(losses) / len(losses))
    return values if all(map(math.isfinite, values)) else (-1.0, -math.inf)


def logits(module: nn.Module, part: Part, machine: Machine, batch: int = 32) -> Tensor:
    """Return the module's outputs for all samples, in evaluation mode; its mode is left as it was."""
    training = module.training
    module.eval()
    with torch.inference_mode():
        parts = [machine.run(module, part.inputs(slice(start, start + batch))) for start in range(0, len(part), batch)]
    module.train(training)
    return torch.cat(parts)


def loss(task: Task, output: Tensor, y: Tensor) -> Tensor:
    """Return cross-entropy, in segmentation plus soft Dice loss (Milletari, Navab and Ahmadi, "V-Net", 2016)."""
    entropy = F.cross_entropy(output, y)
    if task != "segmentation":
        return entropy
    return entropy + _dice_loss(output.softmax(1), F.one_hot(y, output.shape[1]).movedim(-1, 1).to(output.dtype))


def soft_loss(task: Task, output: Tensor, soft: Tensor) -> Tensor:
    """Return the same with a teacher's probabilities as the targets (Hinton, Vinyals and Dean, 2015)."""
    entropy = F.cross_entropy(output, soft)
    return entropy + _dice_loss(output.softmax(1), soft) if task == "segmentation" else entropy


def _dice_loss(output: Tensor, truth: Tensor) -> Tensor:
    overlap, size = (output * truth).sum((2, 3)), output.sum((2, 3)) + truth.sum((2, 3))
    return 1 - ((2 * overlap + 1) / (size + 1))[:, 1:].mean()


def augmented(
    x: Tensor, y: Tensor, soft: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Turn, mirror, scale and recolour each image at random; masks and soft masks go along."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(shape, generator=generator)).to(x.device)

    n = len(x)
    angle, scale = uniform(0, 2 * math.pi, n), uniform(0.8, 1.2, n)
    mirror = torch.where(uniform(-1, 1, n) < 0, -1.0, 1.0)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    moved = uniform(-0.1, 0.1, 2, n)
    # Only square images can be turned by any angle without being cut off more than the border.
    turn = torch.stack(
        [torch.stack([mirror * cosine, -sine, moved[0]], 1), torch.stack([mirror * sine, cosine, moved[1]], 1)], 1
    )
    grid = F.affine_grid(turn, [n, 1, *x.shape[2:]], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    if y.dim() > 1:
        y = F.grid_sample(y[:, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False)[
            :, 0
        ].long()
        if soft is not None:
            soft = F.grid_sample(soft, grid, padding_mode="reflection", align_corners=False)
    gain, contrast = uniform(0.85, 1.15, n, x.shape[1], 1, 1), uniform(0.8, 1.2, n, 1, 1, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    return ((x - mean) * contrast + mean * gain).clamp(0, 1), y, soft

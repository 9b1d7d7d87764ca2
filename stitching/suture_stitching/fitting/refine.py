"""Short training of a candidate's stitches on the objective's loss; the members stay as they are, bit for bit.

A closed-form stitch imitates the other member's features, its mistakes on this party's data included. Refinement lets
the stitches do what helps the objective instead. It starts at the closed form and is held to it, and it stops early on
validation data. The features are trained on with noise, and the closed form it starts from is the one for such noise:
least squares with noisy inputs is ridge regression with the noise's variance as the ridge (Bishop, "Training with Noise
is Equivalent to Tikhonov Regularization", 1995). That keeps the stitches small where this party's data say little,
which is where the others' data lie. Steps are taken in units of the features' own spread, so that one learning rate
serves every network and layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam

from suture_contract.model.graph import INPUT, TENSOR, Ref, references
from suture_stitching.data import Dataset, Split
from suture_stitching.ensemble.merge import Join, Merge, name_of
from suture_stitching.fitting.stitch import NOISE, FittedStitch
from suture_stitching.objectives import Objective
from suture_stitching.portable.runtime import PortableModel
from suture_stitching.portable.schemas import TENSOR_KIND
from suture_stitching.running.feature_pass import FeaturePass

#: Samples in a step of training, and how far a step goes.
BATCH, LEARNING_RATE = 64, 1e-2
#: The same where every position is a sample: about so many positions, in at least two images. Gradients are the
#: steadier for it, so that steps are longer and half as many do.
POSITIONS, FEWEST_IMAGES, LEARNING_RATE_OF_MASKS = 1 << 14, 2, 4e-2
#: Weight of the squared distance from the closed form, per output channel and in units of the features' spread.
ANCHOR = 1e-4
#: How often, in the course of the training, the validation split is looked at; it stops after `PATIENCE` looks in vain.
ROUNDS = 12
PATIENCE = 4
#: Images of the validation split that are looked at where every position is a sample.
LOOKED_AT = 32
#: Features in front of the stitches are kept in memory up to this size, else computed again in every epoch.
_CACHE_BYTES = 1 << 30
_SPLITS: tuple[Split, Split] = ("validation", "train")

#: Called between batches, with how often the validation split was looked at.
OnLook = Callable[[int], None]


@dataclass(frozen=True)
class TrainingLength:
    """How long a candidate is trained: `steps` of `batch` samples in `rounds`, on so many samples of each split."""

    steps: int
    rounds: int
    batch: int
    samples: Mapping[Split, int]

    @classmethod
    def of(cls, dataset: Dataset, shape: Sequence[int], steps: int) -> TrainingLength:
        """Return the training of `steps` steps on `dataset`, whose samples are read as `shape` `(C, *spatial)`."""
        samples = {split: dataset.n(split) * dataset.patches for split in _SPLITS}
        if dataset.task != "segmentation":
            return cls(steps, min(ROUNDS, steps), BATCH, samples)
        batch = min(BATCH, max(FEWEST_IMAGES, POSITIONS // math.prod(shape[1:])))
        samples["validation"] = min(LOOKED_AT, samples["validation"])
        steps = -(-steps // 2)
        return cls(steps, min(ROUNDS, steps), batch, samples)

    @property
    def looks(self) -> int:
        """How often the validation split is looked at: before the first round, and after each."""
        return self.rounds + 1

    def steps_of(self, number: int) -> int:
        """Return how many steps there are in a round, from 0 on."""
        return self.steps * (number + 1) // self.rounds - self.steps * number // self.rounds


def kept_splits(samples: Mapping[Split, int], size: int) -> list[Split]:
    """Return the splits whose values in front of the stitches, of `size` bytes per sample, are kept in memory.

    Validation data first: they are read in every round, training data hardly more than once if they are many.
    """
    kept, free = list[Split](), _CACHE_BYTES
    for split in _SPLITS:
        if size * samples[split] <= free:
            kept.append(split)
            free -= size * samples[split]
    return kept


def refine(
    passes: FeaturePass,
    objective: Objective,
    joins: Sequence[Join],
    stitches: Mapping[str, FittedStitch],
    training: TrainingLength,
    *,
    progress: OnLook = lambda done: None,
) -> dict[str, Tensor]:
    """Return new tensors for the stitches of `joins` by name; `stitches` are by the names of their weights.

    The loss is that of the ensemble's output plus the mean of the members' own, on the training split; the result is
    the one with the lowest loss on the validation split, which may be the closed form. The members run in the precision
    of the runner; losses and stitches are float32. Deterministic for the seed of `passes` on processors and devices of
    one kind with equally many threads.
    """
    trainer = _Trainer(passes, objective, joins, stitches)
    reader = _TrainingReader(trainer, passes, training)
    masks = passes.dataset.task == "segmentation"
    steps, rounds, seed = training.steps, training.rounds, passes.seed or 0
    descent = _Descent(trainer.parameters, LEARNING_RATE_OF_MASKS if masks else LEARNING_RATE, steps)
    noise = torch.Generator().manual_seed(seed)
    endless = reader.endless()
    best, best_round, kept = math.inf, 0, trainer.state()
    for number in range(rounds + 1):
        loss = trainer.mean_loss(reader.batches("validation"))
        if loss < best:
            best, best_round, kept = loss, number, trainer.state()
        progress(number + 1)
        if number == rounds or number - best_round >= PATIENCE or not math.isfinite(loss):
            break
        for _ in range(training.steps_of(number)):
            batch = trainer.with_noise(next(endless), noise)
            descent.step(trainer.loss(batch) + trainer.anchor())
            progress(number + 1)  # a round may take minutes, and whoever cancels does not wait for its end
    return kept


class _Descent:
    """Adam (Kingma and Ba, 2015) at a rate that falls from `rate` to 0 as half a cosine does over `steps` steps.

    By torch's function of it: its class imports torch's compiler, of which there is no need here.
    """

    def __init__(self, parameters: Sequence[Tensor], rate: float, steps: int) -> None:
        self._parameters, self._rate, self._steps = list(parameters), rate, steps
        self._done = 0
        self._means = [torch.zeros_like(parameter) for parameter in parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in parameters]
        self._counts = [torch.tensor(0.0) for _ in parameters]

    def step(self, loss: Tensor) -> None:
        """Move the parameters, in place, to where the loss is lower."""
        gradients = torch.autograd.grad(loss, self._parameters)
        with torch.no_grad():
            adam(
                self._parameters,
                list(gradients),
                self._means,
                self._squares,
                [],
                self._counts,
                lr=self._rate * (1 + math.cos(math.pi * self._done / self._steps)) / 2,
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                weight_decay=0.0,
                amsgrad=False,
                maximize=False,
            )
        self._done += 1


@dataclass(frozen=True)
class _Batch:
    """Inputs, targets, and the known values in front of the stitches, by node."""

    x: Tensor
    y: Tensor
    values: Mapping[str, Tensor]


class _Trainer:
    """The candidate with its stitches as `closed form + step`, where the steps are what is trained."""

    def __init__(
        self,
        passes: FeaturePass,
        objective: Objective,
        joins: Sequence[Join],
        stitches: Mapping[str, FittedStitch],
    ) -> None:
        self._objective, self._runner, device = objective, passes.runner, passes.runner.device
        self._pairs = sorted({names for join in joins for names in join.stitches.values()})
        start = {
            name: tensor
            for weight, bias in self._pairs
            for name, tensor in zip((weight, bias), stitches[weight].solved.start or (), strict=True)
        }
        merge = Merge(passes.members, objective, start)
        # Mixed without a gate: the stitches are for familiar samples, and these are what they learn from.
        values = merge.join(joins)
        mixed = sorted({member for join in joins for member in join.points})
        outputs = (merge.ensemble(values), *(merge.ensemble(values, [member]) for member in mixed))
        self.nodes = {name: name_of(merge.stitch_node(name)) for names in self._pairs for name in names}
        #: Where the members are mixed first: what lies behind is computed in every step.
        self.points = {name_of(merge.point(merge.native, m, point)) for m, point in joins[0].points.items()}
        self.model = PortableModel(merge.graph(outputs), merge.tensors).to(device)
        self._closed = {name: start[name].to(device) for name in self.nodes}
        self._spreads = {weight: stitches[weight].solved.spread for weight, _ in self._pairs}
        self._means = {weight: spread.mean_in.float().to(device) for weight, spread in self._spreads.items()}
        self._keeps = {
            weight: (spread.keep_in.to(self._means[weight]), spread.keep_out.to(self._means[weight]))
            for weight, spread in self._spreads.items()
        }
        self._steps = {name: torch.zeros_like(tensor, requires_grad=True) for name, tensor in self._closed.items()}
        self.parameters = list(self._steps.values())

    def loss(self, batch: _Batch) -> Tensor:
        """Return the loss of the ensemble plus the mean loss of its members."""
        tensors = {self.nodes[name]: tensor for name, tensor in self._tensors().items()}
        with self._runner.autocast():
            outputs = self.model.resume({**tensors, **batch.values}, batch.x)
        combined, *single = (output.float() for output in outputs)
        own = torch.stack([self._objective.loss(output, batch.y) for output in single]).mean()
        return self._objective.loss(combined, batch.y) + own

    def with_noise(self, batch: _Batch, generator: torch.Generator) -> _Batch:
        """Return the batch with noise on the features that are mixed first."""
        values = dict(batch.values)
        for name in sorted(self.points & values.keys()):
            value = values[name]
            noise = torch.randn(value.shape, generator=generator).to(value)
            values[name] = value + NOISE * value.std() * noise
        return _Batch(batch.x, batch.y, values)

    def anchor(self) -> Tensor:
        """Return the penalty for leaving the closed form."""
        return ANCHOR * torch.stack([step.square().sum() / step.shape[0] for step in self._steps.values()]).sum()

    def mean_loss(self, batches: Iterator[_Batch]) -> float:
        """Return the loss over all samples of `batches`."""
        total, n = 0.0, 0
        with torch.no_grad():
            for batch in batches:
                total += float(self.loss(batch)) * len(batch.y)
                n += len(batch.y)
        return total / max(n, 1)

    def state(self) -> dict[str, Tensor]:
        """Return the stitches as they are now."""
        with torch.no_grad():
            return {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for weight, bias in self._pairs:
            spread = self._spreads[weight]
            keep_in, keep_out = self._keeps[weight]
            step = self._steps[weight] * (spread.deviation_out / spread.deviation_in)
            turn = keep_in.before(keep_out.of(step))
            shift = keep_out.of(self._steps[bias][:, None] * spread.deviation_out)[:, 0] - turn @ self._means[weight]
            tensors[weight] = self._closed[weight] + turn
            tensors[bias] = self._closed[bias] + shift
        return tensors


class _TrainingReader:
    """Batches with everything that lies in front of the stitches computed once, as far as memory allows."""

    def __init__(self, trainer: _Trainer, passes: FeaturePass, training: TrainingLength) -> None:
        self._trainer, self._passes, self._seed = trainer, passes, passes.seed or 0
        self._batch, self._most = training.batch, training.samples
        probe, _ = next(passes.batches("validation"))
        self._front = _batch_first(trainer.model, _frontier(trainer), probe)
        self._kept = {split: self._all(split) for split in kept_splits(self._most, self._bytes_per_sample(probe))}

    def endless(self) -> Iterator[_Batch]:
        """Yield training batches without end, shuffled anew in every epoch."""
        for epoch in itertools.count():
            yield from self.batches("train", epoch)

    def batches(self, split: Split, epoch: int | None = None) -> Iterator[_Batch]:
        """Yield all samples of `split`, shuffled differently in every `epoch`, in order without one."""
        seed = None if epoch is None else self._seed * 100_003 + epoch
        kept = self._kept.get(split)
        if kept is None:
            yield from self._read(split, seed)
            return
        order = torch.arange(len(kept.y))
        if seed is not None:
            order = torch.randperm(len(kept.y), generator=torch.Generator().manual_seed(seed))
        for index in torch.split(order.to(kept.x.device), self._batch):
            yield _Batch(kept.x[index], kept.y[index], {name: value[index] for name, value in kept.values.items()})

    def _read(self, split: Split, seed: int | None) -> Iterator[_Batch]:
        left = self._most[split]
        if seed is None and left < self._passes.dataset.n(split) * self._passes.dataset.patches:
            seed = self._seed  # a part of the data is to be a fair sample
        for x, y in self._passes.shuffled(split, seed):
            for part_x, part_y in zip(torch.split(x, self._batch), torch.split(y, self._batch), strict=True):
                if left <= 0:
                    return
                left -= len(part_y)
                yield _Batch(part_x, part_y, self._features(part_x))

    def _all(self, split: Split) -> _Batch:
        parts = list(self._read(split, None))
        values = {name: torch.cat([part.values[name] for part in parts]) for name in self._front}
        return _Batch(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]), values)

    def _bytes_per_sample(self, probe: Tensor) -> int:
        return sum(value.nbytes for value in (probe[:1], *self._features(probe[:1]).values()))

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), self._passes.runner.autocast():
            return self._trainer.model.features(self._front, x)


def _frontier(trainer: _Trainer) -> list[str]:
    """Return the points that are mixed first, and what else comes from the input alone and is read behind them."""
    graph, kinds = trainer.model.graph, trainer.model.program.kinds
    points = {int(name[1:]) for name in trainer.points}
    moving = points | {int(name[1:]) for name in trainer.nodes.values()}
    needed = set(references(graph.output))
    for index in range(len(graph.nodes) - 1, -1, -1):
        if index in needed and index not in points:
            needed.update(references(graph.nodes[index]))
    from_input: set[int] = set()
    front = set(points)
    for index, node in enumerate(graph.nodes):
        sources = set(references(node))
        if sources & moving and index not in points:
            moving.add(index)
            if index in needed:
                front |= {source for source in sources - moving if kinds[source] == TENSOR_KIND}
        if node.op == INPUT or sources & from_input:
            from_input.add(index)
    return [name_of(Ref(index)) for index in sorted(front & from_input) if graph.nodes[index].op not in (INPUT, TENSOR)]


def _batch_first(model: PortableModel, names: Sequence[str], probe: Tensor) -> list[str]:
    """Return those of `names` whose values have one entry per sample; the others are computed again when needed."""
    two, three = (torch.cat([probe] * size)[:size] for size in (2, 3))
    with torch.no_grad():
        a, b = model.features(names, two), model.features(names, three)
    return [
        name
        for name in names
        if a[name].shape[:1] == (2,) and b[name].shape[:1] == (3,) and a[name].shape[1:] == b[name].shape[1:]
    ]

"""Gates of a fit: whether a sample is like those of the fit, and who answers alone where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from suture_stitching.ensemble.merge import GateTensors, Merge
from suture_stitching.ensemble.ood_gate import REACHES, bounds
from suture_stitching.fitting.reading import Points, Reading
from suture_stitching.objectives import Objective
from suture_stitching.running.feature_pass import FeaturePass

#: Samples on which members are compared.
_COMPARED = 64


def gates_of(
    matches: Sequence[Points], reading: Reading, own: int | None
) -> tuple[list[list[GateTensors]], dict[str, Tensor]]:
    """Return for each place a gate per strictness, and their tensors by name.

    How far is too far comes from the validation split.
    """
    gates: list[list[GateTensors]] = []
    tensors: dict[str, Tensor] = {}
    for index, whitening in reading.whitenings.items():
        assert own is not None, "gates look through nothing else"
        gate = GateTensors({own: matches[index][own]}, f"g{index:02d}.weight", f"g{index:02d}.bias", near=0.0, far=1.0)
        tensors |= {gate.weight: whitening.weight.cpu(), gate.bias: whitening.bias.cpu()}
        limits = [bounds(reading.distances[index], reach) for reach in REACHES]
        gates.append([replace(gate, near=near, far=far) for near, far in limits])
    return gates, tensors


def compared(sizes: Sequence[int]) -> int:
    """Return on how many samples members are compared, in batches of these sizes."""
    seen = 0
    for size in sizes:
        seen += size
        if seen >= _COMPARED:
            break
    return seen


def best_at_home(passes: FeaturePass, merge: Merge, objective: Objective) -> int:
    """Return the member that is best on a part of the validation split."""
    everyone = range(len(passes.members))
    outputs = tuple(merge.ensemble(merge.native, [member]) for member in everyone)
    model = passes.model(merge, outputs)
    sign, total, seen = 1 if objective.higher_is_better else -1, torch.zeros(len(everyone)), 0

    def scores(x: Tensor, y: Tensor) -> Tensor:
        values = dict(passes.runner.stream(model, [output.node for output in outputs], x))
        return torch.stack([objective.scores(values[output.node], y).sum() for output in outputs])

    for x, y in passes.shuffled("validation", passes.seed):
        for part in passes.runner.parts(scores, x, y):
            total += sign * part.cpu()
        seen += len(y)
        if seen >= _COMPARED:
            break
    return int(total.argmax())

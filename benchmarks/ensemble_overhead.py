"""What a stitched ensemble costs beside its members: `python benchmarks/ensemble_overhead.py`.

The composed model, read back from its file, may take 1.10 times what its members' own modules take one after the
other, on the same batch, in turns in the same run. Measured for two residual classifiers and two U-Nets, at each place
where a fit joins them, without a gate and with each one that it offers. Ends with an error where the limit is missed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import interleaved, median_ratio, write_json
from networks import PlainCNN, ResNet, as_member, classifiers, unets
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from suture_contract.documents import Candidate
from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble.compose import compose
from suture_stitching.ensemble.members import Member
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.fitting.fit import FitOptions, FitResult, fit
from suture_stitching.portable.runtime import PortableModel, load, save

ALLOWED = 1.10


def distinct(members: Sequence[Member], fitted: FitResult, input_shape: Sequence[int]) -> dict[str, Candidate]:
    """Return a candidate of every structure: of each kind, by where it joins and where its gate looks."""
    depth = {point.name: point.depth for point in members[0].points(input_shape)}
    found: dict[str, Candidate] = {}
    for candidate in fitted.candidates.candidates[len(members) :]:
        at = [f"{depth[match.points['0']]:.2f}" for match in candidate.matches]
        name = f"joined at {' and '.join(at)}" if at else candidate.kind
        if candidate.gate is not None:
            name += f", gate at {depth[candidate.gate.points['0']]:.2f}"
        found.setdefault(name, candidate)
    return found


def read_back(model: PortableModel) -> PortableModel:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(model.graph, model.tensors, path)
        return load(path)


def measure(nets: Sequence[nn.Module], dataset: ArrayDataset, batch: int, rounds: int) -> dict[str, dict[str, Any]]:
    members = [as_member(net, dataset, f"m{index}", index) for index, net in enumerate(nets)]
    fitted = fit(members, dataset, own=0, options=FitOptions(refine=False))
    scores = evaluate(members, fitted, dataset, splits=("test",)).splits["test"].scores
    candidates = distinct(members, fitted, dataset.input_shape)
    models = {name: read_back(compose(members, fitted, candidate.id)) for name, candidate in candidates.items()}
    (x, _), *_ = dataset.batches("test", batch)

    def run(model: nn.Module) -> Callable[[], Tensor]:
        return lambda: model(x)

    works = {f"m{index}": run(net) for index, net in enumerate(nets)}
    works |= {name: run(model) for name, model in models.items()}
    with torch.no_grad():
        times = interleaved(works, rounds, warm_up=2)
    return {
        name: {
            "times the members": median_ratio(times, name, *(f"m{index}" for index in range(len(nets)))),
            "score": scores[candidate.id].value,
        }
        for name, candidate in candidates.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="images of 32 x 32, five rounds")
    parser.add_argument("--json", type=Path, default=Path("ensemble_overhead.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size, rounds = (32, 5) if options.quick else (options.size, options.rounds)
    torch.manual_seed(0)
    cases = {
        "classifiers": classifiers(size, n=128, steps=40, nets=(PlainCNN(), ResNet())),
        "U-Nets": unets(size, n=128, steps=40),
    }
    found = {name: measure(nets, dataset, options.batch, rounds) for name, (nets, dataset) in cases.items()}
    table = Table("", "candidate", "times the members", "test score")
    for name, rows in found.items():
        for candidate, row in rows.items():
            over = row["times the members"] > ALLOWED
            table.add_row(
                name, candidate, f"{row['times the members']:.3f}", f"{row['score']:.3f}", style="red" if over else None
            )
        table.add_section()
    Console().print(table)
    missed = [
        f"{name}: {candidate}"
        for name, rows in found.items()
        for candidate, row in rows.items()
        if row["times the members"] > ALLOWED
    ]
    write_json(
        options.json,
        "ensemble_overhead",
        {"cases": found, "missed": missed},
        size=size,
        batch=options.batch,
        rounds=rounds,
        seed=0,
    )
    if missed:
        raise SystemExit(f"more than {ALLOWED} times the members: {'; '.join(missed)}")


if __name__ == "__main__":
    main()

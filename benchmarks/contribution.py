"""What moments of other parties add to a fit: `python benchmarks/contribution.py digits heart --seeds 5`.

Each party in turn asks for a stitched ensemble of all parties' models: as ever; with the moments that all other parties
contribute; and with noisy ones. Compared are, on test data, what is chosen, and the stitched ensemble without a gate
that is best on the mean of all parties' validation data: the one that all of them would use. Trains as `study.py` does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import write_json
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from studies import CARRIED

from suture_contract.documents import Evaluation
from suture_contract.errors import SutureError
from suture_contract.files import replacing
from suture_local.study.data import Study
from suture_local.study.run import member_of
from suture_local.study.training import machine_of, recipe_of, train
from suture_stitching.data import Dataset
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.contribute import ClippedPrivacy, Contribution, Placement, contribute, placements
from suture_stitching.fitting.fit import FitOptions, FitResult, Member, fit

#: With this delta, and the epsilons beside it, for the moments of one party.
DELTA, EPSILONS = 1e-3, (50.0, 8.0)
WITHOUT, WITH = "own moments only", "with the others' moments"
CHOSEN, JOINT = "chosen", "best for all"
CPU = torch.device("cpu")


def trained(study: Study, seed: int, folder: Path, epochs: int | None = None) -> list[Member]:
    """Return each party's model; those that were trained into this folder before are not trained again."""
    members = []
    for design, own in enumerate(study.divide(seed).values()):
        part, shape, at = own.part("train", CPU), own.inputs.shape[1:], folder / f"{design}-trained.safetensors"
        module = study.untrained(design, shape, seed)
        if at.is_file():
            module.load_state_dict(load_file(at))
        else:
            recipe = recipe_of(study.task, len(shape) - 1, study.augment, epochs)
            validation, machine = [own.part("validation", CPU)], machine_of(CPU, shape)
            module = train(module, part, validation, recipe, machine, seed=seed)
            with replacing(at) as temporary:
                save_file({name: value.contiguous() for name, value in module.state_dict().items()}, temporary)
        members.append(member_of(study, design, module.eval(), part, folder / f"{design}.safetensors"))
    return members


def measured(study: Study, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return by requester and way of fitting the chosen candidate's metric at each party, and whether it is weighed."""
    data = study.divide(seed)
    results: dict[str, dict[str, dict[str, float]]] = {}
    datasets = {party: study.dataset(party, own) for party, own in data.items()}
    with tempfile.TemporaryDirectory() as folder:
        members = trained(study, seed, Path(folder))
        for requester in study.parties:
            options, folder_of = FitOptions(seed=seed), Path(folder) / requester
            asking = study.parties.index(requester)
            try:
                first = fit(members, datasets[requester], own=asking, options=options, checkpoint=folder_of)
            except SutureError:  # too little to learn from: this hospital cannot ask
                continue
            asked = placements(first.candidates)
            others = [party for party in study.parties if party != requester]
            norms = contribute(members, datasets[requester], asked).norms() if asked else ()
            fits = {WITHOUT: first}
            for name, epsilon in {WITH: None, **{f"epsilon {e:g}": e for e in EPSILONS}}.items():
                privacy = None if epsilon is None else ClippedPrivacy(epsilon=epsilon, delta=DELTA, clips=norms)
                given = contributions(members, [datasets[party] for party in others], asked, privacy)
                fits[name] = fit(
                    members,
                    datasets[requester],
                    own=asking,
                    options=options,
                    checkpoint=folder_of,
                    contributions=given,
                )
            results[requester] = {}
            for name, fitted in fits.items():
                evaluations = {
                    party: evaluate(members, fitted, own, own=index, splits=("validation", "test"))
                    for index, (party, own) in enumerate(datasets.items())
                }
                for rule, id in {
                    CHOSEN: choose(fitted.candidates, evaluations, requester=requester).chosen,
                    JOINT: joint(fitted, list(evaluations.values())),
                }.items():
                    found = {party: one.splits["test"].scores[id].value for party, one in evaluations.items()}
                    found["weighed"] = float(bool(fitted.candidate(id).others))
                    results[requester][f"{rule}, {name}"] = found
    return results


def joint(fitted: FitResult, evaluations: Sequence[Evaluation]) -> str:
    """Return the stitched candidate without a gate that has the best mean over the parties' validation data."""
    plain = [one.id for one in fitted.candidates.candidates if one.kind == "stitched" and one.gate is None]
    return max(plain, key=lambda id: sum(one.splits["validation"].scores[id].value for one in evaluations))


def contributions(
    members: Sequence[Member], datasets: Sequence[Dataset], asked: Sequence[Placement], privacy: ClippedPrivacy | None
) -> list[Contribution]:
    """Return what the parties with enough samples contribute."""
    given = []
    for dataset in datasets:
        try:
            given.append(contribute(members, dataset, asked, privacy=privacy))
        except SutureError as error:
            if error.code != "moments.too_few_samples":
                raise
    return given


def summary(study: Study, runs: Sequence[dict[str, dict[str, dict[str, float]]]]) -> list[tuple[str, ...]]:
    """Return per way of fitting the mean at the requester, at the others, of both, and how often it was chosen."""
    at_home, away, weighed = (defaultdict[str, list[float]](list) for _ in range(3))
    for run in runs:
        for requester, ways in run.items():
            for name, found in ways.items():
                at_home[name].append(found[requester])
                away[name].append(float(np.mean([found[party] for party in study.parties if party != requester])))
                weighed[name].append(found["weighed"])
    lines: list[tuple[str, ...]] = []
    for name in sorted(at_home):
        before = f"{name.partition(', ')[0]}, {WITHOUT}"
        gain = np.array(away[name]) - np.array(away[before])
        rng = np.random.default_rng(0)
        means = rng.choice(gain, (10_000, len(gain))).mean(1)
        low, high = np.quantile(means, (0.025, 0.975))
        change = "" if name == before else f"{gain.mean():+.4f} ({low:+.4f} to {high:+.4f})"
        chosen = f"{int(sum(weighed[name]))} of {len(weighed[name])}"
        lines.append((name, f"{np.mean(at_home[name]):.3f}", f"{np.mean(away[name]):.3f}", change, chosen))
    return lines


def main() -> int:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=CARRIED)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the results here")
    asked = parser.parse_args()
    console, every = Console(width=120), {}
    for name in asked.studies:
        study = CARRIED[name]()
        runs = []
        for seed in range(asked.seeds):
            runs.append(measured(study, seed))
            console.print(f"{name}, seed {seed} done", style="dim")
        every[name] = runs
        table = Table(title=f"{name}, {asked.seeds} seeds: {study.parties}", title_justify="left")
        for column in ("fit", "at the requester", "at the others", "change there (95 %)", "weighed ones taken"):
            table.add_column(column)
        for line in summary(study, runs):
            table.add_row(*line)
        console.print(table)
    if asked.json is not None:
        write_json(asked.json, "contribution", every, seeds=asked.seeds, delta=DELTA, epsilons=EPSILONS)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Whether averaged weights should be a candidate: `python benchmarks/averaging.py heart --seeds 5 --kept FOLDER`.

All parties have networks of one design, which start from the same weights ("one start") or each from its own ("own
starts"). The units of each are put in the order of the first one's, then the weights are averaged, all parties alike
or by their numbers of training samples. The one network that comes of it is offered besides the fit's candidates, as
it is and with each site's own shares of labels in the place of the members' mean ones. The rule chooses among all, and
what it chose is compared on test data with what it chooses without it: means over seeds and requesters, in points,
with 95 % intervals over seeds.

What the parties measured of the fit's own candidates is kept in FOLDER. Trains as `study.py` does.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from choice import kept, kept_at
from common import write_json
from contribution import CPU, trained
from flamby import flamby_study
from members import MEASURED, NONE, Besides, Mixture, Outputs, add_rows, compare, with_besides
from rich.console import Console
from rich.table import Table
from studies import CARRIED
from torch import Tensor, nn

from suture_contract.documents import SplitName
from suture_local.study import references
from suture_local.study.data import PartySamples, Study
from suture_local.study.scores import auroc
from suture_stitching.ensemble.members import Member
from suture_stitching.prior import LEAST_SHARE

#: What is offered besides, by name: families, of which the second each has each site's own shares of labels.
ALIKE, BY_SAMPLES = "averaged weights", "averaged weights, by samples"
OFFERS = {NONE: (), **{name: (name,) for name in (ALIKE, BY_SAMPLES)}, "not aligned": ("not aligned",)}
STARTS = {"one start": 0, "own starts": 1000}


def of_one_design(study: Study, start: str) -> Study:
    """Return the study with networks of the first design for every party."""
    shape = next(iter(study.divide(0).values())).inputs.shape[1:]

    def networks(party: int, seed: int) -> nn.Module:
        return study.untrained(0, shape, seed + STARTS[start] * party)

    return replace(study, name=f"{study.name}-{start.replace(' ', '-')}", networks=networks)


def modules_of(study: Study, members: list[Member]) -> list[nn.Module]:
    """Return the members as the modules that they were exported from."""
    shape = next(iter(study.divide(0).values())).inputs.shape[1:]
    modules = []
    for member in members:
        module = study.untrained(0, shape, 0)
        state = module.state_dict()
        module.load_state_dict({**state, **{n: t for n, t in member.model.tensors.items() if n in state}})
        modules.append(module.eval())
        x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(modules[-1](x), member.model(x))
    return modules


def besides(study: Study, seed: int, members: list[Member], outputs: Outputs) -> list[Besides]:
    """Return the averaged networks, as they are and with each site's own shares of labels."""
    data, modules = study.divide(seed), modules_of(study, members)
    samples = [float((own.split == "train").sum()) for own in data.values()]
    even = [1.0] * len(samples)
    averages = {
        ALIKE: (references.realigned(modules, even), even),
        BY_SAMPLES: (references.realigned(modules, samples), samples),
        "not aligned": (references.averaged(modules, even), even),
    }
    found = []
    for family, (network, weights) in averages.items():
        share = torch.tensor(weights) / sum(weights)
        assumed = (share[:, None] * torch.tensor([member.prior for member in members])).sum(0).clamp(min=LEAST_SHARE)

        said, corrected = (
            functools.partial(_said, data, network),
            functools.partial(_own, data, network, outputs, assumed),
        )
        found += [Besides(family, said, corrected=False), Besides(family, corrected, corrected=True)]
    return found


def ensembles(outputs: Outputs) -> list[Besides]:
    """Return the members' ensemble, as it is and with each site's own shares of labels: what an average is held to."""
    count = len(outputs.priors)
    found = []
    for strength in (0.0, 1.0):
        mixture = Mixture("", torch.ones(count), torch.full((count,), 1 / count), strength)
        mixed = functools.partial(_mixed, outputs, mixture)
        found.append(Besides("the members' ensemble", mixed, corrected=bool(strength)))
    return found


def _mixed(outputs: Outputs, mixture: Mixture, party: str, split: SplitName) -> Tensor:
    return outputs.mixed(party, split, mixture)


def _said(data: Mapping[str, PartySamples], network: nn.Module, party: str, split: SplitName) -> Tensor:
    """Return the network's probabilities."""
    with torch.no_grad():
        said: Tensor = network(data[party].part(split, CPU).inputs(slice(None))).softmax(1)
    return said


def _own(
    data: Mapping[str, PartySamples],
    network: nn.Module,
    outputs: Outputs,
    assumed: Tensor,
    party: str,
    split: SplitName,
) -> Tensor:
    """Return them with the site's own shares of labels in the place of those that are `assumed`, not scaled."""
    return _said(data, network, party, split) * outputs.site[party] / assumed


def measured(
    study: Study, seed: int, folder: Path, *, alone: bool
) -> tuple[dict[str, list[tuple[list[float], bool]]], dict[str, list[float]]]:
    """Return for each offer, by requester, what was chosen is worth; and what each average is worth by itself.

    The latter are on test data the accuracy at each party, its mean, and the mean area under the ROC curve. With
    `alone` nothing is fitted, and nothing chosen.
    """
    at = kept_at(study, seed, folder).with_suffix("")
    at.mkdir(parents=True, exist_ok=True)
    members = trained(study, seed, at)
    outputs = Outputs(study, seed, members)
    tried, by_itself = besides(study, seed, members, outputs), {}
    for one in [*ensembles(outputs), *tried]:
        right, area = [], []
        for party in study.parties:
            said, truth = one.outputs(party, "test"), outputs.labels[party, "test"].numpy()
            right.append(float((said.argmax(1).numpy() == truth).mean()))
            area.append(auroc((said / said.sum(1, keepdim=True)).double().numpy(), truth) or float("nan"))
        by_itself[one.family + (", own shares" if one.corrected else "")] = [
            *right,
            float(np.mean(right)),
            np.nanmean(area),
        ]
    found: dict[str, list[tuple[list[float], bool]]] = defaultdict(list)
    if not alone:
        for asked in kept(study, seed, folder).asked:
            whole, families = with_besides(study, asked, tried, outputs.logs, outputs.labels, seed)
            compare(whole, families, OFFERS, found)
    return found, by_itself


def main() -> int:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=[*CARRIED, "flamby"])
    parser.add_argument("--data", type=Path, help="folder with heart_<hospital>.csv, for flamby")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS), help="by default both")
    parser.add_argument("--alone", action="store_true", help="only what averages are worth by themselves, without fits")
    parser.add_argument("--kept", type=Path, required=True, help="evaluations are kept in this folder")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    if options.data is None and "flamby" in options.studies:
        parser.error("flamby needs --data FOLDER")
    torch.set_num_threads(1)
    console, every = Console(width=160), {}
    table = Table("study", "offered besides", *MEASURED, "taken")
    reached = Table("study", "model", "accuracy at each party", "mean", "AUROC")
    for name in options.studies:
        for start in options.starts:
            study = of_one_design(flamby_study(options.data) if name == "flamby" else CARRIED[name](), start)
            runs, alone = [], defaultdict(list)
            for seed in range(options.first, options.first + options.seeds):
                run, own = measured(study, seed, options.kept, alone=options.alone)
                runs.append(run)
                for network, values in own.items():
                    alone[network].append(values)
                console.print(f"{study.name}, seed {seed} done", style="dim")
            every[study.name] = {"chosen": runs, "alone": alone}
            if not options.alone:
                add_rows(table, study.name, runs)
            for network, rows in alone.items():
                at = np.mean(rows, axis=0)
                shown = [f"{value:.3f}" for value in at]
                reached.add_row(study.name, network, ", ".join(shown[:-2]), *shown[-2:])
    if not options.alone:
        console.print(table)
    console.print(reached)
    if options.json is not None:
        write_json(options.json, "averaging", every, seeds=options.seeds, first=options.first)
    return 0


if __name__ == "__main__":
    sys.exit(main())

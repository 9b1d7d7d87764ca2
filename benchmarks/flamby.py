"""A published table beside this method: Fed-Heart-Disease of FLamby (NeurIPS 2022, Datasets and Benchmarks).

    python benchmarks/flamby.py --data FOLDER --seeds 5

FOLDER holds the four hospitals' tables, `heart_<hospital>.csv`. Rows, columns and test patients are FLamby's: `slope`,
`ca` and `thal` are dropped, then rows with gaps; 66 % of each hospital's rows are to train on, drawn by the same call
with the same seed; `cp` and `restecg` become dummies; numbers are standardised by the hospital's own training rows. A
quarter of these rows is kept from training, to choose on.

Each hospital trains a network of its own design, and each asks in turn. What is measured is the chosen model as each
hospital uses it, with its own shares of labels where the model takes them: accuracy, and the area under the ROC curve.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import write_json
from contribution import trained
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import train_test_split
from torch import nn

from suture_contract.compatibility import describe_ensemble
from suture_contract.model.metadata import ModelMetadata
from suture_contract.report.build import build
from suture_local.shipped import as_used
from suture_local.study.data import PartySamples, Study
from suture_local.study.scores import auroc
from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble.compose import compose
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.fit import FitOptions, Member, fit

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
#: What FLamby reports: mean over seeds of the accuracy at each hospital, in their order.
PUBLISHED = {
    "FLamby, pooled training": (0.783, 0.764, 0.750, 0.644),
    "FLamby, best federated": (0.760, 0.753, 0.738, 0.676),
    "FLamby, FedAvg": (0.731, 0.719, 0.650, 0.640),
}
TRAINED, SEED, TO_CHOOSE = 0.66, 43, 0.25
Cells = dict[str, list[float]]


def flamby_study(folder: Path) -> Study:
    """Return the four hospitals with FLamby's rows, columns and test patients; a seed keeps rows to choose on."""
    dropped = ["slope", "ca", "thal", "num"]
    tables = {name: pd.read_csv(folder / f"heart_{name}.csv").drop(columns=dropped).dropna() for name in HOSPITALS}
    joined = pd.get_dummies(pd.concat(tables), columns=["cp", "restecg"], drop_first=True, dtype=float)
    tests = {}
    for name, table in tables.items():
        counts = table["disease"].value_counts()
        several = len(counts) > 1 and counts.min() > 2
        _, tests[name] = train_test_split(
            np.arange(len(table)),
            train_size=TRAINED,
            test_size=1 - TRAINED,
            random_state=SEED,
            stratify=table["disease"] if several else None,
        )

    def divide(seed: int) -> dict[str, PartySamples]:
        return {name: _divided(joined.loc[name], tests[name], seed) for name in HOSPITALS}

    channels = tuple(joined.columns.drop("disease"))
    return Study("flamby", "classification", ("0", "1"), HOSPITALS, divide, channels=channels)


def _divided(table: Any, test: NDArray[np.int64], seed: int) -> PartySamples:
    labels = table["disease"].to_numpy(np.int64)
    values = table.drop(columns="disease").to_numpy(np.float64)
    split = np.full(len(table), "train", dtype="<U10")
    split[test] = "test"
    known = np.flatnonzero(split == "train")
    inputs = (values - values[known].mean(0)) / np.maximum(values[known].std(0), 1e-9)
    inputs[:, values[known].std(0) < 1e-9] = 0.0
    varied = len(np.unique(labels[known])) > 1
    _, kept = train_test_split(
        known, test_size=TO_CHOOSE, random_state=seed, stratify=labels[known] if varied else None
    )
    split[kept] = "validation"
    return PartySamples(inputs.astype(np.float32), labels, split)


def measured(study: Study, seed: int) -> tuple[Cells, Cells]:
    """Return accuracy and area under the curve by row, at each hospital."""
    data = study.divide(seed)
    datasets = {party: _dataset(study, own, party) for party, own in data.items()}
    accuracy: Cells = defaultdict(list)
    area: Cells = defaultdict(list)

    def add(row: str, outputs: Mapping[str, torch.Tensor]) -> None:
        for party, output in outputs.items():
            truth = data[party].targets[data[party].split == "test"]
            output = output.detach()
            accuracy[row].append(float((output.argmax(1).numpy() == truth).mean()))
            area[row].append(auroc(output.double().numpy(), truth) or float("nan"))

    with tempfile.TemporaryDirectory() as folder:
        members = trained(study, seed, Path(folder))
        inputs = {party: data[party].part("test", torch.device("cpu")).x for party in study.parties}
        alone = [{party: member.model(x).softmax(1) for party, x in inputs.items()} for member in members]
        add("own model at home", {party: alone[index][party] for index, party in enumerate(study.parties)})
        add("plain ensemble", {p: torch.stack([own[p] for own in alone]).mean(0) for p in study.parties})
        for index, requester in enumerate(study.parties):
            learnt = {party: own.targets[own.split == "train"] for party, own in data.items()}
            used = as_used(*_chosen(members, datasets, index, seed), learnt)
            add(f"chosen, {requester} asks", {party: used[party](x) for party, x in inputs.items()})
    return accuracy, area


def _dataset(study: Study, own: PartySamples, party: str) -> ArrayDataset:
    """Return a hospital's data as the engine reads them; one of them has ill patients alone to train on."""
    return ArrayDataset(
        own.inputs,
        own.targets,
        study.labels,
        split=own.split.tolist(),
        channels=study.channels,
        one_class=len(np.unique(own.targets[own.split == "train"])) == 1,
        where=party,
    )


def _chosen(members: list[Member], datasets: Mapping[str, Any], own: int, seed: int) -> tuple[nn.Module, ModelMetadata]:
    """Return the chosen model, and what its `suture.json` says."""
    requester = list(datasets)[own]
    fitted = fit(members, datasets[requester], own=own, options=FitOptions(seed=seed))
    evaluations = {
        party: evaluate(members, fitted, dataset, own=index) for index, (party, dataset) in enumerate(datasets.items())
    }
    choice = choose(fitted.candidates, evaluations, requester=requester)
    report = build(
        fitted.candidates,
        evaluations,
        choice,
        requester=requester,
        parties_of_members=list(datasets),
        job="benchmark",
    )
    metadata = describe_ensemble([member.metadata for member in members], fitted.candidates, report)
    return compose(members, fitted, choice.chosen), metadata


def table(title: str, rows: Mapping[str, NDArray[np.float64]]) -> Table:
    """Return a value per hospital and their mean."""
    shown = Table("method", *HOSPITALS, "mean", title=title, title_justify="left")
    for name, values in rows.items():
        shown.add_row(name, *(f"{value:.3f}" for value in values), f"{np.nanmean(values):.3f}")
    return shown


def main() -> int:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with heart_<hospital>.csv")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the results here")
    asked = parser.parse_args()
    console, study = Console(width=110), flamby_study(asked.data)
    tests = {party: int((own.split == "test").sum()) for party, own in study.divide(0).items()}
    console.print("test patients: " + ", ".join(f"{party} {n}" for party, n in tests.items()))
    accuracies: dict[str, list[list[float]]] = defaultdict(list)
    areas: dict[str, list[list[float]]] = defaultdict(list)
    for seed in range(asked.seeds):
        accuracy, area = measured(study, seed)
        for row in accuracy:
            accuracies[row].append(accuracy[row])
            areas[row].append(area[row])
        console.print(f"seed {seed} done", style="dim")
    here = {row: np.mean(values, axis=0) for row, values in accuracies.items()}
    console.print(table("accuracy", {**{row: np.array(values) for row, values in PUBLISHED.items()}, **here}))
    console.print(table("area under the ROC curve", {row: np.mean(values, axis=0) for row, values in areas.items()}))
    if asked.json is not None:
        write_json(asked.json, "flamby", {"accuracy": accuracies, "auroc": areas}, seeds=asked.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())

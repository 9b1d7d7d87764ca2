"""Two parties' digits over several seeds, each party asking in turn: `python benchmarks/digits.py --seeds 5`.

Prints a table of test accuracies (own model, plain ensemble, chosen candidate, at the requester and at the other
party), and writes it as JSON with versions, seeds and hardware. Fails if a requester's choice misses a target.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from suture_contract.model.metadata import InputSpec, ModelMetadata, OutputSpec
from suture_contract.model.metadata import Member as MemberRef
from suture_local import digits
from suture_stitching.data import ArrayDataset
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.fit import Member, fit
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load

METADATA = ModelMetadata(
    schema="suture.model/1",
    task="classification",
    inputs={"image": InputSpec(num_channels=1, spatial_shape=(8, 8), value_range=(0.0, 1.0))},
    outputs={"digit": OutputSpec(num_channels=10)},
    labels=tuple(digits.LABELS),
    license="CC-BY-4.0",
)


def member(party: str, seed: int, data: digits.PartyData, folder: Path) -> Member:
    learnt_from = data.split == "train"
    module = digits.train(digits.network(party, seed), data.images[learnt_from], data.labels[learnt_from], seed=seed)
    path = folder / f"{party}.safetensors"
    export(module, torch.from_numpy(data.images[:2]), path)
    number = digits.PARTIES.index(party)
    ref = MemberRef(repo=f"{party}/digits", revision=f"{number:040x}", sha256=f"{number:064x}")
    return Member(load(path), METADATA, ref)


def measure(seed: int, folder: Path) -> list[dict[str, object]]:
    data = digits.parties(seed)
    members = [member(party, seed, data[party], folder) for party in digits.PARTIES]
    datasets = {
        party: ArrayDataset(own.images, own.labels, digits.LABELS, split=list(own.split), value_range=(0.0, 1.0))
        for party, own in data.items()
    }
    rows: list[dict[str, object]] = []
    for asking in digits.PARTIES:
        (other,) = set(digits.PARTIES) - {asking}
        started = time.perf_counter()
        fitted = fit(members, datasets[asking])
        seconds = time.perf_counter() - started
        evaluations = {
            party: evaluate(members, fitted, datasets[party], own=index) for index, party in enumerate(digits.PARTIES)
        }
        choice = choose(fitted.candidates, evaluations, requester=asking)
        row: dict[str, object] = {"seed": seed, "asking": asking, "seconds": round(seconds, 1), "chosen": choice.chosen}
        row["kind"] = fitted.candidate(choice.chosen).kind
        for place, party in (("here", asking), ("there", other)):
            scores = evaluations[party].splits["test"].scores
            own = f"c{digits.PARTIES.index(asking):02d}"
            for name, candidate in (("own", own), ("plain", "c02"), ("chosen", choice.chosen)):
                row[f"{name} {place}"] = round(scores[candidate].value, 4)
        rows.append(row)
    return rows


def misses(row: dict[str, object]) -> bool:
    value = {name: float(str(number)) for name, number in row.items() if name.endswith(("here", "there"))}
    return value["chosen here"] < value["own here"] - 0.04 or value["chosen there"] < value["plain there"] - 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("digits.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(seed, Path(folder))
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()), style="red" if misses(row) else None)
    Console().print(table)
    hardware = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    options.json.write_text(json.dumps({"torch": torch.__version__, **hardware, "rows": rows}, indent=2) + "\n")
    if any(misses(row) for row in rows):
        raise SystemExit("a requester's choice missed a target")


if __name__ == "__main__":
    main()

"""Whether the demo's result is luck: `python benchmarks/demo_stability.py`, `... --story heart`.

Plays the science of `suture demo` (its data, networks, training, fit, choice and targets, by the engine alone) for
many seeds, with PyTorch's fastest kernels for this processor and with those that every processor has: training ends in
other weights on other kernels. Prints a row as soon as it is measured, `met` or what was missed, in the end a table
over all seeds (minimum, median, maximum), and fails if anything was missed. Rows are kept in `--rows`: a run that was
stopped goes on, and other code starts anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

#: How PyTorch's kernels are chosen: ATEN_CPU_CAPABILITY, and how the table names it.
CAPABILITIES = {"best": None, "default": "default", "avx2": "avx2"}
#: What is measured at each party: the part of its test samples that is named rightly.
MODELS = ("own", "plain", "routed", "shipped")


def measure(story: str, seed: int, kernels: str) -> dict[str, Any]:
    """Return a row, measured in this process."""
    from suture_local.demo import STORIES
    from suture_local.shipped import rehearse

    found = rehearse(STORIES[story], seed)
    parties = {}
    for party, judged in found.judged.items():
        parties[party] = {
            "own": judged.own,
            "plain": judged.plain,
            "routed": found.report.parties[party].rows["routed"].value,
            "shipped": judged.shipped,
            "over own": judged.over_own.model_dump(),
            "over plain": judged.over_plain.model_dump(),
        }
    return {
        "story": story,
        "seed": seed,
        "kernels": kernels,
        "parties": parties,
        "kind": found.kind,
        "missed": [str(target) for target in found.targets if not target.met],
    }


def line(row: dict[str, Any]) -> str:
    """Return a row for the terminal: own, plain, routed and shipped at each party, and what the party gains."""
    cells = [f"{row['seed']:>4} {row['kernels']:<8}"]
    for party, found in row["parties"].items():
        values = " ".join(f"{found[model]:.3f}" for model in MODELS)
        gains = [
            f"{100 * one['value']:+.0f} [{100 * one['low']:+.0f}, {100 * one['high']:+.0f}]"
            for one in (found["over own"], found["over plain"])
        ]
        cells.append(f"{party}: {values}, over own {gains[0]}, over plain {gains[1]}")
    return " | ".join([*cells, f"{row['kind']}, {'; '.join(row['missed']) or 'met'}"])


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a Markdown table: minimum, median and maximum over the seeds, by kernels."""
    lines = ["| kernels | party | own | plain | routed | shipped |", "|---|---|---|---|---|---|"]
    for kernels in dict.fromkeys(row["kernels"] for row in rows):
        own = [row for row in rows if row["kernels"] == kernels]
        for party in own[0]["parties"]:
            cells = []
            for model in MODELS:
                values = [row["parties"][party][model] for row in own]
                cells.append(f"{min(values):.3f} / {median(values):.3f} / {max(values):.3f}")
            lines.append(f"| {kernels} | {party} | {' | '.join(cells)} |")
    return lines


def code() -> str:
    """Return a digest of what decides the rows: kept rows of other code do not count."""
    import torch

    import suture_contract
    import suture_local
    import suture_stitching

    digest = hashlib.sha256(torch.__version__.encode())
    for package in (suture_contract, suture_stitching, suture_local):
        for path in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            if package is not suture_local or path.stem not in ("commands", "demo", "installation", "up"):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--story", choices=("digits", "heart"), default="digits")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--kernels", nargs="+", choices=CAPABILITIES, default=["best", "default"])
    parser.add_argument("--rows", type=Path, default=Path("demo_stability.jsonl"))
    parser.add_argument("--measure", nargs="+", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        import torch

        torch.set_num_threads(1)
        for seed in options.measure:
            print(json.dumps(measure(options.story, seed, options.kernels[0])), flush=True)
        return
    digest = code()
    kept = (
        [json.loads(text) for text in options.rows.read_text(encoding="utf-8").splitlines()]
        if options.rows.exists()
        else []
    )
    rows = [row for row in kept if row["code"] == digest and row["story"] == options.story]
    rows = [row for row in rows if row["seed"] < options.seeds and row["kernels"] in options.kernels]
    options.rows.write_text("".join(json.dumps(row) + "\n" for row in kept if row["code"] == digest), encoding="utf-8")
    print(f"at each party: {', '.join(MODELS)}; differences in points")
    for row in rows:
        print(line(row))
    for kernels in options.kernels:
        done = {row["seed"] for row in rows if row["kernels"] == kernels}
        if todo := [seed for seed in range(options.seeds) if seed not in done]:
            rows += _measured(options.story, kernels, todo, digest, options.rows)
    missed, kinds = sum(bool(row["missed"]) for row in rows), Counter(row["kind"] for row in rows)
    shipped = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    print("\n".join(summary(rows)))
    print(f"{len(rows)} runs, {missed} missed a target; shipped: {shipped}")
    raise SystemExit(1 if missed else 0)


def _measured(story: str, kernels: str, seeds: list[int], digest: str, kept: Path) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    if (capability := CAPABILITIES[kernels]) is not None:
        environment["ATEN_CPU_CAPABILITY"] = capability
    command = [sys.executable, __file__, "--story", story, "--kernels", kernels, "--measure", *map(str, seeds)]
    rows = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        for text in process.stdout:
            row = json.loads(text) | {"code": digest}
            rows.append(row)
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(line(row), flush=True)
    if process.returncode:
        raise SystemExit(f"measuring with {kernels} kernels ended with {process.returncode}")
    return rows


if __name__ == "__main__":
    main()

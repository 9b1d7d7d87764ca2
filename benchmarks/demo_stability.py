"""Whether the demo's result is luck: `python benchmarks/demo_stability.py`.

Plays the science of `suture demo` (its data, networks, training, fit, choice and targets, by the engine alone) for
many seeds, with PyTorch's fastest kernels for this processor and with those that every processor has: training ends in
other weights on other kernels. Prints a row as soon as it is measured, `met` or what was missed, and fails if anything
was. Rows are kept in `--rows`: a run that was stopped goes on, and other code starts a file of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

#: How PyTorch's kernels are chosen: ATEN_CPU_CAPABILITY, and how the table names it.
CAPABILITIES = {"best": None, "default": "default", "avx2": "avx2"}
_HEAD = (
    f"{'seed':>4} {'kernels':<8} | {'north: own':>10} {'plain':>6} {'routed':>6} {'shipped':>7} "
    f"{'over own':>16} {'over plain':>16} | {'south: own':>10} {'plain':>6} {'shipped':>7} | shipped"
)


def measure(seed: int, kernels: str) -> dict[str, Any]:
    """Return a row, measured in this process."""
    from suture_local.shipped import rehearse, targets

    found = rehearse(seed)
    here, there = (found.judged[party] for party in ("north", "south"))
    routed = found.report.parties["north"].rows["routed"].value
    return {
        "seed": seed,
        "kernels": kernels,
        "north": {"own": here.own, "plain": here.plain, "routed": routed, "shipped": here.shipped},
        "over own": here.over_own.model_dump(),
        "over plain": here.over_plain.model_dump(),
        "south": {"own": there.own, "plain": there.plain, "shipped": there.shipped},
        "kind": found.kind,
        "missed": [str(target) for target in targets(found.judged, found.report) if not target.met],
    }


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    north, south = row["north"], row["south"]
    paired = [
        f"{100 * one['value']:+.0f} [{100 * one['low']:+.0f}, {100 * one['high']:+.0f}]"
        for one in (row["over own"], row["over plain"])
    ]
    return (
        f"{row['seed']:>4} {row['kernels']:<8} | {north['own']:>10.3f} {north['plain']:>6.3f} {north['routed']:>6.3f} "
        f"{north['shipped']:>7.3f} {paired[0]:>16} {paired[1]:>16} | {south['own']:>10.3f} {south['plain']:>6.3f} "
        f"{south['shipped']:>7.3f} | {row['kind']}, {'; '.join(row['missed']) or 'met'}"
    )


def code() -> str:
    """Return a digest of what decides the rows: kept rows of other code do not count."""
    import torch

    import suture_contract
    import suture_local
    import suture_stitching

    digest = hashlib.sha256(torch.__version__.encode())
    for package in (suture_contract, suture_stitching, suture_local):
        for path in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            if package is not suture_local or path.stem in ("digits", "shipped"):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--kernels", nargs="+", choices=CAPABILITIES, default=["best", "default"])
    parser.add_argument("--rows", type=Path, default=Path("demo_stability.jsonl"))
    parser.add_argument("--measure", nargs="+", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        import torch

        torch.set_num_threads(1)
        for seed in options.measure:
            print(json.dumps(measure(seed, options.kernels[0])), flush=True)
        return
    digest = code()
    kept = (
        [json.loads(text) for text in options.rows.read_text(encoding="utf-8").splitlines()]
        if options.rows.exists()
        else []
    )
    rows = [row for row in kept if row["code"] == digest and row["kernels"] in options.kernels]
    rows = [row for row in rows if row["seed"] < options.seeds]
    options.rows.write_text("".join(json.dumps(row) + "\n" for row in kept if row["code"] == digest), encoding="utf-8")
    print(_HEAD)
    for row in rows:
        print(line(row))
    for kernels in options.kernels:
        done = {row["seed"] for row in rows if row["kernels"] == kernels}
        if todo := [seed for seed in range(options.seeds) if seed not in done]:
            rows += _measured(kernels, todo, digest, options.rows)
    missed, kinds = sum(bool(row["missed"]) for row in rows), Counter(row["kind"] for row in rows)
    shipped = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    print(f"{len(rows)} runs, {missed} missed a target; shipped: {shipped}")
    raise SystemExit(1 if missed else 0)


def _measured(kernels: str, seeds: list[int], digest: str, kept: Path) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    if (capability := CAPABILITIES[kernels]) is not None:
        environment["ATEN_CPU_CAPABILITY"] = capability
    command = [sys.executable, __file__, "--kernels", kernels, "--measure", *map(str, seeds)]
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

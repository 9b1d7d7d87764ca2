"""Whether pairs of members beside the reference are worth a place: `python benchmarks/three_members.py`.

With three or more members all are matched to the one most similar to the others. Here each pair is matched by itself as
well, and both are joined as long as the third member is left as it is. Three parties have digits of their own kind and
scanners of their own; each asks in turn. All matches are refined and all candidates evaluated, as no fit could afford:
the choice among all of them is compared with the choice among those that a fit offers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from common import write_json
from networks import DIGITS, PlainCNN, PlainNetwork, as_member, train
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from suture_contract.documents import CandidateSet, Evaluation
from suture_local import digits
from suture_local.training import untrained
from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble.members import Member
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.select import choose
from suture_stitching.features.points import StitchPoint
from suture_stitching.fitting import fit as fitting
from suture_stitching.fitting import plans
from suture_stitching.fitting.fit import FitOptions, fit
from suture_stitching.matching.match import MatchedPoints, match

PARTIES = ("north", "south", "east")
#: Whose digits are whose; a party has so much of its own, and the others share the rest.
OWNERS = (0, 0, 0, 0, 1, 1, 1, 2, 2, 2)
OWN_SHARE = 0.8
#: How many matches of each pair are tried, the last ones, where stitches do best.
PAIRS = 2


def parties(seed: int) -> list[ArrayDataset]:
    images, labels = digits.every()
    rng = np.random.default_rng(seed)
    rows: list[list[int]] = [[], [], []]
    for digit, owner in enumerate(OWNERS):
        shuffled = rng.permutation(np.flatnonzero(labels == digit))
        cut = round(OWN_SHARE * len(shuffled))
        rows[owner] += list(shuffled[:cut])
        for place, other in enumerate(party for party in range(3) if party != owner):
            rows[other] += list(shuffled[cut:][place::2])
    seen = (images, digits.other_scanner(images), np.clip(1 - 0.8 * images, 0, 1).astype(np.float32))
    return [
        ArrayDataset(seen[party][own], labels[own], DIGITS, value_range=(0.0, 1.0), where=PARTIES[party])
        for party, own in enumerate(rows)
    ]


def with_pairs(points: Sequence[Sequence[StitchPoint]], cka: Tensor) -> list[MatchedPoints]:
    """Return every pair's own last matches, then those that `match` finds."""
    starts = torch.tensor([0, *(len(own) for own in points)]).cumsum(0).tolist()
    found = []
    for pair in combinations(range(len(points)), 2):
        index = torch.tensor([i for member in pair for i in range(starts[member], starts[member + 1])])
        own = match([points[member] for member in pair], cka[index][:, index])
        found += [MatchedPoints({pair[k]: i for k, i in group.points.items()}, 1.0) for group in own[-PAIRS:]]
    return [*found, *match(points, cka)]


def offered(candidates: CandidateSet, evaluations: dict[str, Evaluation], *, pairs: bool) -> Any:
    """Return the candidates, with or without those that join two of the three members, and their evaluations."""
    kept = tuple(c for c in candidates.candidates if pairs or all(len(m.points) == 3 for m in c.matches))
    ids = {candidate.id for candidate in kept}
    fewer = {
        party: one.model_copy(
            update={
                "splits": {
                    name: split.model_copy(update={"scores": {i: s for i, s in split.scores.items() if i in ids}})
                    for name, split in one.splits.items()
                }
            }
        )
        for party, one in evaluations.items()
    }
    return candidates.model_copy(update={"candidates": kept}), fewer


def measure(seed: int, steps: int) -> list[dict[str, Any]]:
    datasets = parties(seed)
    torch.manual_seed(seed)
    nets: list[nn.Module] = [
        untrained(PlainNetwork, seed),
        untrained(digits.ResidualNetwork, seed),
        PlainCNN(widths=(12, 24, 36), depths=(2, 2, 2)),
    ]
    members: list[Member] = [
        as_member(train(net, data, steps=steps, seed=seed), data, PARTIES[k], k)
        for k, (net, data) in enumerate(zip(nets, datasets, strict=True))
    ]
    rows = []
    for asking, data in enumerate(datasets):
        options = FitOptions(max_matches=16, refine_candidates=64, seed=seed)
        with patch.object(fitting, "match", with_pairs), patch.multiple(plans, EVALUATION=100.0, MOST=1000):
            fitted = fit(members, data, own=asking, options=options)
        evaluations = {PARTIES[k]: evaluate(members, fitted, one, own=k) for k, one in enumerate(datasets)}
        row: dict[str, Any] = {"seed": seed, "asking": PARTIES[asking]}
        for name, pairs in (("usual", False), ("with pairs", True)):
            candidates, scored = offered(fitted.candidates, evaluations, pairs=pairs)
            chosen = choose(candidates, scored, requester=PARTIES[asking]).chosen
            test = [scored[party].splits["test"].scores[chosen].value for party in PARTIES]
            row[f"{name}: candidates"] = len(candidates.candidates)
            row[f"{name}: here"] = test[asking]
            row[f"{name}: there"] = float(np.mean([value for k, value in enumerate(test) if k != asking]))
            row[f"{name}: chosen"] = _described(fitted.candidate(chosen))
        rows.append(row)
    return rows


def _described(candidate: Any) -> str:
    joined = " + ".join("".join(match.points) for match in candidate.matches)
    return f"{candidate.kind} {joined}".strip() + (" gate" if candidate.gate else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150, help="steps that each member is trained")
    parser.add_argument("--json", type=Path, default=Path("three_members.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for seed in range(options.seeds) for row in measure(seed, options.steps)]
    table = Table("seed", "asking", "candidates", "usual: here", "there", "chosen", "pairs: here", "there", "chosen")
    for row in rows:
        numbers = [f"{row['usual: candidates']} / {row['with pairs: candidates']}"]
        for name in ("usual", "with pairs"):
            numbers += [f"{row[f'{name}: here']:.3f}", f"{row[f'{name}: there']:.3f}", row[f"{name}: chosen"]]
        table.add_row(str(row["seed"]), row["asking"], *numbers)
    means = {
        name: {place: float(np.mean([row[f"{name}: {place}"] for row in rows])) for place in ("here", "there")}
        for name in ("usual", "with pairs")
    }
    table.add_section()
    usual, pairs = means.values()
    table.add_row(
        "",
        "mean",
        "",
        f"{usual['here']:.3f}",
        f"{usual['there']:.3f}",
        "",
        f"{pairs['here']:.3f}",
        f"{pairs['there']:.3f}",
    )
    Console().print(table)
    write_json(options.json, "three_members", {"rows": rows, "means": means}, seeds=options.seeds, steps=options.steps)


if __name__ == "__main__":
    main()

"""How well the choice is made: `python benchmarks/choice.py digits heart --seeds 5 --kept FOLDER`.

Each party in turn asks for a stitched ensemble, and all parties evaluate all candidates. Then a rule chooses by
validation data, and test data tell what the choice was worth. All are means over the parties:

- mean: the chosen one's value on test data;
- regret: the best candidate's value on test data less the chosen one's;
- optimism: the chosen one's value on validation data less that on test data;
- beyond own: the same less that of the own models at home, among which nobody chose: what the choice adds;
- at home and elsewhere: the chosen one's value on test data less the requester's own model's there.

Rows are today's rule, and the one before decision 34; with members that declare their shares of labels, and without.
Figures are means over requesters and seeds, in points, with 95 % intervals over seeds (Student's t): the requesters of
a seed share data and members. Seeds share patients, too, whom each divides anew: of other patients, intervals say less.
The last two rows are for the aim: at most a third of what was lost before.

What is done is kept in FOLDER: the same command goes on after it was stopped, and another rule is tried on the same
evaluations in a second. Trains as `study.py` does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from common import over_seeds, write_json
from contribution import trained
from older_rule import Older
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from studies import asked_for, studies_of

from suture_contract.documents import CandidateSet, Evaluation
from suture_contract.errors import SutureError
from suture_contract.files import read_text, write_text
from suture_local.study.data import Study
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.rule import Evidence, signed
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.fit import FitOptions, Member, fit

#: How a fit is asked for: as ever; of members that declare no shares of labels; with the paper's recipe.
Way = Literal["declared", "undeclared", "paper"]
TODAY, BEFORE = "today's rule", "older rule"


class Asked(BaseModel):
    """What the parties measured when one of them asked."""

    requester: str
    candidates: CandidateSet
    evaluations: dict[str, Evaluation]


class Seed(BaseModel):
    """All requesters of one seed."""

    asked: list[Asked]


@dataclass(frozen=True)
class Worth:
    """What a choice was worth; `lost` is 1 where the requester surely lost, by the paired interval, else 0."""

    mean: float
    regret: float
    optimism: float
    beyond_own: float
    home: float
    away: float
    lost: float


def measured(study: Study, seed: int, folder: Path, way: Way, epochs: int | None = None) -> Seed:
    """Return what all parties measured for `seed`, with each as the requester. What is done is kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    members, options = trained(study, seed, folder, epochs), {"seed": seed}
    if way == "undeclared":
        members = [
            replace(member, metadata=member.metadata.model_copy(update={"label_prior": None})) for member in members
        ]
    asked = FitOptions.read({**options, "recipe": "paper"} if way == "paper" else options)
    return measured_of(study, members, folder if way == "declared" else folder / way, asked)


def measured_of(study: Study, members: Sequence[Member], folder: Path, options: FitOptions) -> Seed:
    """Return what all parties measured of the fits of these `members`, one of each party, with each as the requester.

    Those with one class cannot ask. What is done is kept in `folder`: a measurement that was stopped goes on.
    """
    datasets = {party: study.dataset(party, own) for party, own in study.divide(options.seed).items()}
    every = []
    for index, requester in enumerate(study.parties):
        at = folder / requester
        try:
            fitted = fit(members, datasets[requester], own=index, options=options, checkpoint=at / "fit")
        except SutureError as error:
            if error.code != "dataset.one_class":
                raise
            continue
        evaluations = {
            party: evaluate(members, fitted, own, own=number, checkpoint=at / party)
            for number, (party, own) in enumerate(datasets.items())
        }
        every.append(Asked(requester=requester, candidates=fitted.candidates, evaluations=evaluations))
    return Seed(asked=every)


def kept(study: Study, seed: int, folder: Path, way: Way = "declared", epochs: int | None = None) -> Seed:
    """Return what was measured for `seed`, from the folder where it is there."""
    path = kept_at(study, seed, folder, way)
    if path.is_file():
        return Seed.model_validate_json(read_text(path))
    result = measured(study, seed, kept_at(study, seed, folder).with_suffix(""), way, epochs)
    write_text(path, result.model_dump_json(by_alias=True))
    return result


def kept_at(study: Study, seed: int, folder: Path, way: Way = "declared") -> Path:
    """Return the file of what was measured; the folder beside that of `declared` holds what all of a seed come from."""
    return folder / f"{study.name}-{seed}{'' if way == 'declared' else f'-{way}'}.json"


def restricted(asked: Asked, ids: Collection[str]) -> Asked:
    """Return the same with the candidates of these `ids` alone."""

    def only(evaluation: Evaluation) -> Evaluation:
        splits = {
            split: own.model_copy(update={"scores": {id: score for id, score in own.scores.items() if id in ids}})
            for split, own in evaluation.splits.items()
        }
        return evaluation.model_copy(update={"splits": splits})

    candidates = tuple(candidate for candidate in asked.candidates.candidates if candidate.id in ids)
    return asked.model_copy(
        update={
            "candidates": asked.candidates.model_copy(update={"candidates": candidates}),
            "evaluations": {party: only(own) for party, own in asked.evaluations.items()},
        }
    )


def chosen_today(asked: Asked) -> str:
    """Return what today's rule chooses."""
    return choose(asked.candidates, asked.evaluations, requester=asked.requester).chosen


def chosen_before(asked: Asked) -> str:
    """Return what the rule before decision 34 chooses."""
    others = [own for party, own in asked.evaluations.items() if party != asked.requester]
    return Older(asked.candidates, asked.evaluations[asked.requester], others).chosen()


def worth(asked: Asked, chosen: str) -> Worth:
    """Return what `chosen` was worth."""
    every = list(asked.evaluations.values())
    own = asked.evaluations[asked.requester]
    others = [evaluation for evaluation in every if evaluation is not own]

    def mean(id: str, split: str, parties: Sequence[Evaluation] = every) -> float:
        return float(np.mean([signed(evaluation, id, split) for evaluation in parties]))  # type: ignore[arg-type]

    reference = Evidence(asked.candidates, own, others).reference
    optimism = mean(chosen, "validation") - mean(chosen, "test")
    difference = own.splits["test"].scores[chosen].difference
    return Worth(
        mean(chosen, "test"),
        max(mean(candidate.id, "test") for candidate in asked.candidates.candidates) - mean(chosen, "test"),
        optimism,
        optimism - optimism_of_own(asked),
        mean(chosen, "test", [own]) - mean(reference, "test", [own]),
        mean(chosen, "test", others) - mean(reference, "test", others),
        float(difference is not None and difference.high < 0),
    )


def optimism_of_own(asked: Asked) -> float:
    """Return how much better the own models are at home on validation data than on test data, as a mean."""
    gaps = []
    for evaluation in asked.evaluations.values():
        if evaluation.own is not None:
            id = asked.candidates.candidates[evaluation.own].id
            gaps.append(signed(evaluation, id, "validation") - signed(evaluation, id, "test"))
    return float(np.mean(gaps))


Rule = Callable[[Asked], str]
#: By row: of which members, and by which rule is chosen.
ROWS: Mapping[str, tuple[Way, Rule]] = {
    f"{BEFORE}, no shares declared": ("undeclared", chosen_before),
    BEFORE: ("declared", chosen_before),
    f"{TODAY}, no shares declared": ("undeclared", chosen_today),
    TODAY: ("declared", chosen_today),
}


def rows_of(study: Study) -> dict[str, tuple[Way, Rule]]:
    """Return the rows of a study: shares of labels are of classes alone. The first is what was before."""
    return {
        name: (way, rule) for name, (way, rule) in ROWS.items() if study.task == "classification" or way == "declared"
    }


def add_rows(table: Table, study: str, worths: Mapping[str, Sequence[Sequence[Worth]]]) -> None:
    """Add the rows of a study to the table; `worths` are by row, seed and requester, the first row what was before."""
    values = {
        name: 100 * np.array([np.mean([astuple(worth) for worth in requesters], axis=0) for requesters in by_seed])
        for name, by_seed in worths.items()
    }
    for name, by_seed in worths.items():
        lost = sum(worth.lost for requesters in by_seed for worth in requesters)
        cells = [interval_text(values[name][:, at]) for at in range(len(fields(Worth)) - 1)]
        table.add_row(study, name, *cells, f"{lost:.0f} of {sum(map(len, by_seed))}")
    before, today = values[next(iter(values))], values[TODAY]
    shown = {
        field.name: at for at, field in enumerate(fields(Worth)) if field.name in ("regret", "optimism", "beyond_own")
    }

    def compared(cell: Callable[[int], str]) -> list[str]:
        return [cell(shown[field.name]) if field.name in shown else "" for field in fields(Worth)]

    def share(at: int) -> str:
        return f"{today[:, at].mean() / before[:, at].mean():.0%}" if before[:, at].mean() > 0 else "nothing before"

    table.add_row(study, "today's, of the first row", *compared(share))
    third = compared(lambda at: interval_text(today[:, at] - before[:, at] / 3))
    table.add_row(study, "today's, above a third of it", *third, end_section=True)


def interval_text(values: Any) -> str:
    """Return the mean of a value per seed with its interval."""
    mean, low, high = over_seeds(values)
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def main() -> int:
    """Run the benchmark and print its table."""
    options = asked_for(__doc__, least_seeds=2)
    torch.set_num_threads(1)  # figures do not depend on the machine's cores
    console, every = Console(width=180), {}
    head = ("mean", "regret", "optimism", "beyond own", "at home", "elsewhere", "surely lost")
    table = Table("study", "chosen by", *head)
    for name, study, seeds in studies_of(options):
        rows = rows_of(study)
        worths: dict[str, list[list[Worth]]] = {row: [] for row in rows}
        for seed in seeds:
            for row, (way, rule) in rows.items():
                asked = kept(study, seed, options.kept, way, options.epochs).asked
                worths[row].append([worth(own, rule(own)) for own in asked])
            console.print(f"{name}, seed {seed} done", style="dim")
        every[name] = {
            row: [[asdict(worth) for worth in requesters] for requesters in by_seed] for row, by_seed in worths.items()
        }
        add_rows(table, name, worths)
    console.print(table)
    if options.json is not None:
        write_json(options.json, "choice", every, seeds=options.seeds, first=options.first, epochs=options.epochs)
    return 0


if __name__ == "__main__":
    sys.exit(main())

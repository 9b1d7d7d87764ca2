"""Which parts of a split a site tells of: small ones are left out, and others, so that nothing gives them away.

Parts are classes, subgroups and the bins of calibration curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from suture_contract.documents import CalibrationBin, ClassScores, SplitScores, Subgroup, TrainScore
from suture_contract.measures import OF_LABELS
from suture_contract.model.metadata import Task


def people(counted: SplitScores | ClassScores | Subgroup | TrainScore | CalibrationBin) -> int:
    """Return of how many patients the samples are; without a count of patients every sample is one."""
    return counted.n if counted.patients is None else counted.patients


def suppressed(scores: SplitScores, minimum: int, task: Task) -> SplitScores:
    """Return the same without what would tell of fewer than `minimum` patients.

    Metrics about labels tell as much as the labels' own rows. So they are left out where one of those is.
    """
    shown = without_small_classes(scores, minimum, exclusive=task == "classification")
    curves = {id: joined_bins(curve, minimum) for id, curve in scores.curves.items()}
    all_labels = bool(shown.classes) and shown.classes.keys() == scores.classes.keys()
    telling = all(len(curve) > 1 for curve in curves.values())
    return shown.model_copy(
        update={
            "metrics": {
                metric: values for metric, values in scores.metrics.items() if all_labels or metric not in OF_LABELS
            },
            "curves": curves if all_labels and telling else {},
            "subgroups": without_small_subgroups(scores, minimum),
        }
    )


def without_small_subgroups(scores: SplitScores, minimum: int) -> tuple[Subgroup, ...]:
    """Return the subgroups of a split but those of fewer than `minimum` patients, and what gives these away.

    Those of each column are parts of the split, as classes are; samples in none of them are one more.
    """
    hidden = set()
    for column in dict.fromkeys(subgroup.column for subgroup in scores.subgroups):
        parts = {subgroup.value: subgroup for subgroup in scores.subgroups if subgroup.column == column}
        rest = scores.n - sum(part.n for part in parts.values())
        if rest > 0:
            apart = max(0, people(scores) - sum(map(people, parts.values())))
            # No value has this name: names are not empty.
            parts[""] = parts[next(iter(parts))].model_copy(update={"n": rest, "patients": min(apart, rest)})
        hidden |= {(column, value) for value in _hidden(scores, parts, minimum)}
    return tuple(part for part in scores.subgroups if (part.column, part.value) not in hidden)


def joined_bins(curve: Sequence[CalibrationBin], minimum: int) -> tuple[CalibrationBin, ...]:
    """Return a calibration curve with bins of fewer than `minimum` patients joined to their neighbours."""
    joined: list[CalibrationBin] = []
    for part in curve:
        if joined and people(joined[-1]) < minimum:
            joined[-1] = _together(joined[-1], part)
        else:
            joined.append(part)
    while len(joined) > 1 and people(joined[-1]) < minimum:
        last = joined.pop()
        joined[-1] = _together(joined[-1], last)
    return tuple(joined)


def _together(first: CalibrationBin, second: CalibrationBin) -> CalibrationBin:
    n = first.n + second.n
    counted = first.patients is not None and second.patients is not None
    return CalibrationBin(
        upto=second.upto,
        n=n,
        patients=(first.patients or 0) + (second.patients or 0) if counted else None,
        predicted=(first.n * first.predicted + second.n * second.predicted) / n,
        events=first.events + second.events,
    )


def without_small_classes(scores: SplitScores, minimum: int, *, exclusive: bool) -> SplitScores:
    """Return the same without every class that has, or betrays one that has, samples of fewer than `minimum` patients.

    Whatever is left out as a whole can be had by subtracting the rest from the split. So at least two classes are left
    out if any is, and they have at least `minimum` patients together: the smallest others join those that are too small
    (complementary suppression; Willenborg and de Waal, "Elements of Statistical Disclosure Control", 2001). Where
    samples may have several labels or none, the samples without a label can be had in the same way: a label that all
    but a few have is left out. A patient may be in several classes: what is left out together has at least as many
    patients as the largest class of it, and as the split has beyond the other classes.
    """

    classes = dict(sorted(scores.classes.items(), key=lambda entry: int(entry[0])))
    hidden = _hidden(scores, classes, minimum)
    return scores.model_copy(
        update={
            "classes": {
                label: class_scores
                for label, class_scores in scores.classes.items()
                if label not in hidden
                and (exclusive or class_scores.n == scores.n or people(scores) - people(class_scores) >= minimum)
            }
        }
    )


def _hidden(scores: SplitScores, parts: Mapping[str, ClassScores] | Mapping[str, Subgroup], minimum: int) -> set[str]:
    """Return which parts of a split are left out; samples that are in none of them are hidden already, as one part."""
    order = sorted(parts, key=lambda name: (people(parts[name]), parts[name].n))
    unseen = scores.n - sum(part.n for part in parts.values())
    groups, largest = int(unseen > 0), 0
    others = people(scores) - sum(map(people, parts.values()))
    hidden: set[str] = set()
    for name in order:
        part = parts[name]
        betrayed = groups == 1 or (unseen > 0 and max(largest, others) < minimum)
        if people(part) >= minimum and not betrayed:
            break
        hidden.add(name)
        groups, unseen = groups + 1, unseen + part.n
        others, largest = others + people(part), people(part)
    return hidden

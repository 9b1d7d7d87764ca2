"""What parties write differently and mean alike: labels and categories; and samples that several of them have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_contract.naming import folded
from suture_stitching.data.words import patient_columns, whole_number

#: Of a party's samples that another has, too, from which on it is said; and how many may be the same by chance, where
#: columns are few and coarse.
_SHARED, _FEW = 0.1, 5
_TRUTH = {"false": "0", "true": "1"}


def joined_labels(
    texts: Mapping[str, Sequence[str]], files: Mapping[str, Path], notes: list[str]
) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    """Return the labels of all parties in order, and each party's as indices `(N,)`.

    Labels that differ in writing alone are one, and so are true and false and the numbers 1 and 0. Raises `SutureError`
    `study.labels` where a party shares none of its labels with the others: then they are written differently.
    """
    same = alike_in_all(texts, "labels", notes)
    distinct = {party: set(own) for party, own in same.items()}
    if any(own <= {"0", "1"} for own in distinct.values()):
        for party, own in distinct.items():
            if {text.casefold() for text in own} <= _TRUTH.keys():
                notes.append(f"{party}: the labels true and false were taken for 1 and 0.")
                same[party] = [_TRUTH[text.casefold()] for text in same[party]]
                distinct[party] = set(same[party])
    labels = sorted({text for own in distinct.values() for text in own}, key=by_number)
    if len(labels) < 2:
        raise SutureError("study.one_class", "there is a single label in all parties' data", where="--label")
    for party, own in distinct.items():
        others = {text for other, theirs in distinct.items() if other != party for text in theirs}
        if not own & others:
            raise SutureError(
                "study.labels",
                f"{party} shares no label with the others: it has {_listed(own)}, they have {_listed(others)}",
                where=str(files[party]),
                hint="write the same label alike in every party's data",
            )
    index = {label: position for position, label in enumerate(labels)}
    return labels, {party: np.array([index[text] for text in own], dtype=np.int64) for party, own in same.items()}


def alike_in_all(texts: Mapping[str, Sequence[str]], what: str, notes: list[str]) -> dict[str, list[str]]:
    """Return the parties' texts, those of one meaning in the first party's spelling; `what` they are is for the notes.

    Whole numbers are the same with and without decimals. Other texts that differ in case, spaces or Unicode form are
    the same, unless one party has both.
    """
    plain = {party: [whole_number(text) or text for text in own] for party, own in texts.items()}
    known: dict[str, str] = {}
    made = {}
    for party, own in plain.items():
        times = Counter(folded(text) for text in set(own))
        table = {text: known.setdefault(folded(text), text) if times[folded(text)] == 1 else text for text in set(own)}
        for text, taken in sorted(table.items()):
            if text != taken:
                notes.append(f"{party}: {what}: '{text}' was taken for '{taken}'.")
        if several := [text for text in table if times[folded(text)] > 1]:
            notes.append(f"{party}: {what}: {_listed(several)} differ in writing alone, and count as different.")
        made[party] = [table[text] for text in own]
    return made


def compare_samples(
    digests: Mapping[str, NDArray[np.void]], what: str, files: Mapping[str, Path], notes: list[str]
) -> None:
    """Say which parties have the same samples, by their digests `(N,)`.

    Raises `SutureError` `study.same_data` where two have nothing else.
    """
    own = {party: set(values.tolist()) for party, values in digests.items()}
    for party, other in combinations(own, 2):
        same, fewer = len(own[party] & own[other]), min(len(own[party]), len(own[other]))
        if own[party] == own[other] and fewer > _FEW:
            raise SutureError(
                "study.same_data",
                f"{party} and {other} have the same {what}",
                where=str(files[other]),
                hint="give each party the data of another hospital",
            )
        if same > max(_SHARED * fewer, _FEW):
            notes.append(
                f"{same} different {what} are at {party} and at {other}, too. If they are the same patients, the "
                "figures are too good: leave them out at one of the two."
            )


def by_number(text: str) -> tuple[float, str]:
    """Return what texts are sorted by: numbers by their size, before all others."""
    try:
        number = float(text)
    except ValueError:
        return math.inf, text
    return number if math.isfinite(number) else math.inf, text


def group_of(names: Sequence[str]) -> str | None:
    """Return the column or array that says whose a sample is: `group`, or the only one with a name of that kind.

    The name of a person stands above that of a stay, of which a person may have several.
    """
    patients = patient_columns(names)
    return "group" if "group" in names else patients[0] if len(patients) == 1 else None


def _listed(texts: Iterable[str]) -> str:
    listed = sorted(texts, key=by_number)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")

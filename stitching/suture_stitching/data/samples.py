"""A sample of a dataset as it lies in files, and what is checked of samples whoever names them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from suture_contract.errors import SutureError
from suture_stitching.data.spec import SPLITS, DatasetSpec
from suture_stitching.data.words import patient_columns

LABELS_FILE = "labels.csv"
#: The code of a file that cannot be read, which may be left out if the site says so.
UNREADABLE = "dataset.unreadable_image"


@dataclass(frozen=True)
class Sample:
    """A file, relative to the dataset's folder, with forward slashes on every system.

    `target` is the label's name, the values of a line, or the file of the mask. `more` are the files of its further
    channels. `cells` are what a list says of it in the columns that subgroups are named by, empty where nothing.
    """

    file: str
    target: str | tuple[float, ...]
    split: str | None
    group: str | None
    more: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()


def unreadable(file: str, reason: str) -> SutureError:
    """Return the error for a file that cannot be read."""
    return SutureError(
        UNREADABLE,
        f"cannot be read as an image: {reason}",
        where=file,
        hint='replace or remove the file, or set on_unreadable = "skip" to leave out such files',
    )


def group_of(file: str, spec: DatasetSpec) -> str | None:
    """Return the group that a file's name says, None where the dataset's description asks for none."""
    if spec.group is None:
        return None
    match = re.search(spec.group, file)
    if match is None or not match[1]:
        raise SutureError(
            "dataset.no_group",
            "the expression in group finds no patient in this name",
            where=file,
            hint="correct the dataset's group, or rename the file",
        )
    return match[1]


def patient_column(names: Iterable[str], where: str, texts: Callable[[str], Sequence[str]]) -> str | None:
    """Return the column that says whose a sample is, by its name; None where there is none.

    Of several that name the same people, by `texts` with a text per sample, it is the first. Raises `SutureError`
    `dataset.patients_unclear` where they do not.
    """
    columns = patient_columns(names)
    if len(columns) > 1 and not _same_people([texts(name) for name in columns]):
        raise SutureError(
            "dataset.patients_unclear",
            f"{' and '.join(repr(name) for name in columns)} may each say whose a sample is",
            where=where,
            hint="say in the dataset's description which one does, so that all of a patient's samples are in one "
            f'split: columns = {{ group = "{columns[0]}" }}',
        )
    return columns[0] if columns else None


def _same_people(columns: Sequence[Sequence[str]]) -> bool:
    """Whether each text of one column always stands beside the same one of every other."""
    first, *others = columns
    people = len(set(first))
    return "" not in first and all(
        len(other) == len(first)
        and "" not in other
        and len(set(other)) == people == len(set(zip(first, other, strict=True)))
        for other in others
    )


def check_splits(samples: Sequence[Sample], where: str) -> None:
    """Raise `SutureError` where some of the samples, not all, say their split."""
    if any(sample.split for sample in samples):
        lone = next((sample.file for sample in samples if not sample.split), None)
        if lone is not None:
            raise SutureError(
                "dataset.unknown_split",
                f"{lone} belongs to no split while other images do",
                where=where,
                hint=f"move it below one of the top folders {', '.join(SPLITS)}, or name its split in {LABELS_FILE}",
            )


__all__ = ["LABELS_FILE", "UNREADABLE", "Sample", "check_splits", "group_of", "patient_column", "unreadable"]

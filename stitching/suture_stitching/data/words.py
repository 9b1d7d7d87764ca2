"""How data write what Suture has one word for: splits, labels, patients, and files that are no data (torch-free).

What is read here is unambiguous, such as `Val` for `validation`; anything else is an error that says how to name it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from suture_contract.naming import folded
from suture_stitching.data.spec import Split

_SPLITS: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training", "trn", "tr"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "validate", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "ts"), "test"),
}
#: What a column is called that says whose a row is, without case and signs: `Patienten-Nr.`, `PatID`.
_PERSON = re.compile(
    r"(?:patient(?:en|in)?|pat|subject|subj|participant|person(?:en)?|proband(?:en|in)?|teilnehmer|studienteilnehmer)"
    r"(?:id|ids|uid|nr|no|num|number|nummer|code|key|kennung|identifier|pseudonym|hash|mrn)?"
    r"|pseudonym(?:id|nr|no|num|number|nummer)?|p(?:at)?id|usubjid|mrn|medicalrecordnumber|psn"
)
#: The same of a stay or a case, of which a person may have several: `Fall_Nr`.
#: `hospital_id` says which hospital, a British hospital number whose a row is.
_STAY = re.compile(r"(?:case|fall|encounter|record)(?:id|nr|no|num|number|nummer)|hospital(?:nr|no|num|number|nummer)")
#: What file managers, network drives and archives leave beside files.
_LITTER = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "dicomdir", "lockfile", "lost+found"),
        *("@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin"),
        "system volume information",
    )
)
#: Texts about the data, in a folder of other files.
_ABOUT = (".txt", ".md", ".rst", ".pdf", ".html", ".htm", ".docx", ".doc", ".log", ".csv", ".tsv", ".xlsx", ".json")
_NUMBERED = re.compile(r"^\d+[\s_.-]+(?=\D)")
#: A number, and after it another one: the first may be a patient's, the last says which of that patient's files it is.
_FRAME = re.compile(r"^(.*\d\D*?[\s_.-]+[A-Za-z]*)\d+$")
#: Which side, or which view of a body a file shows, behind a number.
_VIEW = re.compile(r"^(.*\d)(?:[\s_.-]*(?:left|right|l|r|od|os|li|re|cc|mlo|ap|pa|lat|lateral|frontal))+$", re.I)
_TRUTH = {"false": 0, "true": 1}
#: What a yes is called, and what stands for one.
_AFFIRM = frozenset("yes y ja j oui si true t wahr w pos positive positiv present +".split())  # noqa: SIM905


def split_of(text: str) -> Split | None:
    """Return the split that a name means, in any case, or None."""
    return _SPLITS.get(folded(text))


def names_patient(column: str) -> bool:
    """Whether a column of this name says whose a sample is."""
    return bool(_PERSON.fullmatch(_bare(column)) or _STAY.fullmatch(_bare(column)))


def patient_columns(names: Iterable[str]) -> list[str]:
    """Return the columns that say whose a sample is: those that name a person, and without one those of a stay."""
    names = list(names)
    return [name for name in names if _PERSON.fullmatch(_bare(name))] or [
        name for name in names if _STAY.fullmatch(_bare(name))
    ]


def _bare(column: str) -> str:
    return re.sub(r"[\W_]+", "", folded(column))


def of_one_patient(files: Iterable[str]) -> int:
    """Return how many files have a name that differs from another's in its last number alone, after an earlier one.

    So are named the frames of `video3_0012.png` and the slices of `patient07-a2.png`: most likely of one patient. So
    are those of several sides or views, `12_left.png`, and files that lie together in a folder with a number, below
    that of their class: `normal/P07/2.png`.
    """
    begins = []
    for file in map(PurePosixPath, files):
        folders = [folder for folder in file.parts[:-1] if split_of(folder) is None]
        if len(folders) > 1 and any(map(str.isdigit, folders[-1])):
            begins.append("/".join(folders))
        elif match := _FRAME.match(file.stem) or _VIEW.match(file.stem):
            begins.append(match[1])
    times = Counter(begins)
    return sum(times[begin] > 1 for begin in begins)


def written_alike(ids: Iterable[object]) -> int:
    """Return how many distinct ids are another one but for case, spaces and zeros: `p07 ` beside `P07`, 7.0 or 007.

    Numbers of a table become 7.0 where a row has none, and 7 where a program takes 007 for a number.
    """
    distinct = {id.decode("latin-1") if isinstance(id, bytes) else str(id) for id in ids}
    times = Counter(whole_number(id) or " ".join(id.split()).casefold() for id in distinct)
    return sum(n for n in times.values() if n > 1)


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is none of the data."""
    return name.startswith((".", "~$")) or name.lower() in _LITTER


def is_about(name: str) -> bool:
    """Whether a file of this name is a text about the data."""
    return name.lower().endswith(_ABOUT)


def places_of(texts: Iterable[str], labels: Sequence[str]) -> dict[str, int]:
    """Return which label each text means, as its index; texts that mean none are left out.

    A text is a label, or differs from it in case, spaces, Unicode form or a number before it (`0_benign`). Where no
    text is one, whole numbers are indices from 0 if one of them is 0, and true and false are those of two labels.
    """
    distinct = list(dict.fromkeys(texts))
    known = {label: index for index, label in enumerate(labels)}
    by_fold: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        by_fold.setdefault(folded(label), []).append(index)
    places: dict[str, int] = {}
    spellings = {text.strip() for text in distinct}
    for text in distinct:
        if text in known:
            places[text] = known[text]
            continue
        if text.strip() not in known and sum(folded(text) == folded(other) for other in spellings) > 1:
            continue  # two spellings in one set of data may be two things
        for form in (text, whole_number(text), _NUMBERED.sub("", text)):
            if form is not None and len(same := by_fold.get(folded(form), [])) == 1:
                places[text] = same[0]
                break
    if places or not distinct:
        return places
    if len(labels) == 2 and {text.strip().casefold() for text in distinct} <= _TRUTH.keys():
        return {text: _TRUTH[text.strip().casefold()] for text in distinct}
    whole = {text: whole_number(text) for text in distinct}
    numbers = {text: int(number) for text, number in whole.items() if number is not None}
    # Without a 0 they may as well be counted from 1.
    if len(numbers) == len(distinct) and 0 in numbers.values():
        return {text: number for text, number in numbers.items() if 0 <= number < len(labels)}
    return {}


def in_order(texts: Iterable[str]) -> list[str]:
    """Return texts in the order of the alphabet, but those that deny before those that affirm: nein, ja."""
    return sorted(texts, key=lambda text: (folded(text) in _AFFIRM, text))


def how_to_name(labels: Sequence[str]) -> str:
    """Return how to say which texts mean these labels."""
    numbers = [str(number) for number in range(1, len(labels) + 1)][:3]
    pairs = ", ".join(f'"{number}" = "{label}"' for number, label in zip(numbers, labels, strict=False))
    quoted = ", ".join(f'"{number}"' for number in numbers)
    more = ", ..." if len(labels) > len(numbers) else ""
    return (
        f"labels are {', '.join(labels)}; where the data write them otherwise, say which is which, for example "
        f"labels = [{quoted}{more}] and aliases = {{ {pairs}{more} }}"
    )


def how_to_join(names: Iterable[str], labels: Sequence[str]) -> str:
    """Return how to make one column of labels of one per label, if `names` are such; empty where they are not."""
    one_each = labels and {folded(label) for label in labels} <= {folded(name) for name in names}
    return "; of a column per label, one is made by idxmax(axis=1) of pandas" if one_each else ""


def whole_number(text: str) -> str | None:
    """Return a whole number without sign, zeros and decimals that say nothing, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return str(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < 2**53 else None


def is_row_number(column: str) -> bool:
    """Whether a column has no name of its own, as the row numbers that pandas writes beside a table."""
    return not column or re.fullmatch(r"Unnamed: \d+|__index_level_\d+__", column) is not None


__all__ = [
    "how_to_join",
    "how_to_name",
    "in_order",
    "is_about",
    "is_litter",
    "is_row_number",
    "names_patient",
    "of_one_patient",
    "patient_columns",
    "places_of",
    "split_of",
    "written_alike",
]

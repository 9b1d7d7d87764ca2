"""A first description of data, found by looking at them: `[datasets.NAME]` with a comment per line."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from suture_contract.errors import SutureError
from suture_contract.model.metadata import ModelMetadata
from suture_contract.toml_text import toml, toml_key
from suture_stitching.data.formats import format_of
from suture_stitching.data.list_files import FILE_COLUMNS, read_datalist
from suture_stitching.data.spec import LISTS, TABLES
from suture_stitching.data.spec_file import defaults_for, spec_of
from suture_stitching.data.words import in_order, is_litter, is_row_number, names_patient, patient_columns, split_of

#: More values than these in a column are no labels.
_MOST_LABELS = 50
_ROUNDS = 6
#: Of a column of texts that may be a feature.
_MOST_CATEGORIES = 10
#: What no description mends.
_NO_DATA = ("dataset.empty", "dataset.pickled", "dataset.unreadable")
_MASK_FOLDERS = frozenset(("masks", "mask", "labels", "segmentations", "annotations", "labelstr"))


@dataclass
class Suggestion:
    """Fields of a dataset's description in order, each with why; and what is still `open`, in words."""

    fields: dict[str, tuple[Any, str]] = field(default_factory=dict)
    open: str | None = None

    def put(self, name: str, value: Any, why: str) -> None:
        """Set a field."""
        self.fields[name] = (value, why)

    def toml(self, name: str) -> str:
        """Return the section, ready to be pasted into `site.toml`."""
        lines = [f"[datasets.{toml_key(name)}]"]
        lines += [f"{key} = {toml(value)}  # {why}" for key, (value, why) in self.fields.items()]
        if self.open is not None:
            lines += [f"# still open: {line}" for line in self.open.splitlines()]
        return "\n".join(lines) + "\n"


def suggest(path: Path, metadata: ModelMetadata | None = None, label: str | None = None) -> Suggestion:
    """Look at the data at `path`, for a model if it is given, and return what describes them.

    The data are opened as described; what that complains of and can be answered is added. Raises `SutureError`
    (`dataset.*`) where the format is not plain, or nothing can be read.
    """
    suggestion, kind = Suggestion(), format_of(path)
    suggestion.put("path", str(path), "where the data are")
    suggestion.put("format", kind, "found by looking at it")
    defaults = defaults_for(metadata) if metadata is not None else {}
    if metadata is not None:
        suggestion.put("task", metadata.task, "what the model does")
        if metadata.labels:
            suggestion.put("labels", list(metadata.labels), "the model's, in its order")
        reads = next(iter(metadata.inputs.values()))
        if all(reads.spatial_shape):  # a size that a model leaves open is none of TOML's values
            suggestion.put(
                "input",
                reads.model_dump(mode="json", exclude_none=True),
                "what the model reads: contradictions are told",
            )
        if kind == "image_folder" and len(reads.spatial_shape) == 3 and _slices(path):
            kind = "nifti"
            suggestion.put("format", kind, "the model reads volumes: each folder of slices is one")
        if kind == "nifti" and len(reads.spatial_shape) == 3 and all(reads.spatial_shape):
            suggestion.put("window", list(reads.spatial_shape), "the voxels that the model reads")
    try:
        _LOOKS[_kind_of(kind)](path, kind, suggestion, label)
    except (OSError, ValueError) as error:
        suggestion.open = str(error)
    if suggestion.open is not None:
        return suggestion
    for _ in range(_ROUNDS):
        problem = _problem(suggestion, defaults, path)
        if problem is not None and problem.code in _NO_DATA:
            raise problem
        suggestion.open = (
            None if problem is None else f"{problem.message} ({problem.hint})" if problem.hint else problem.message
        )
        if problem is None or not _answered(problem, suggestion, metadata):
            break
    return suggestion


def _kind_of(kind: str) -> str:
    return (
        "tables"
        if kind in TABLES
        else "lists"
        if kind == "list"
        else "datalist"
        if kind in LISTS
        else ("arrays" if kind in ("npz", "hdf5") else "folders")
    )


def _problem(suggestion: Suggestion, defaults: Mapping[str, Any], path: Path) -> SutureError | None:
    from suture_stitching.data import open_dataset

    fields = {name: value for name, (value, _) in suggestion.fields.items()}
    if "input" in defaults:
        fields["input"] = defaults["input"]
    try:
        open_dataset(spec_of({**fields, "path": path}, where=str(path), defaults=defaults))
    except SutureError as error:
        return error
    return None


def _answered(error: SutureError, suggestion: Suggestion, metadata: ModelMetadata | None) -> bool:
    """Add the field that answers an error, if there is a usual one; say whether one was added."""
    hint = error.hint or ""
    before = dict(suggestion.fields)
    size = None
    if metadata is not None:
        size = next(iter(metadata.inputs.values())).spatial_shape
    if error.code == "dataset.few_bits" and (bits := re.search(r"intensity = \[0, (\d+)\]", hint)):
        suggestion.put("intensity", [0, int(bits[1])], "CHECK: the stored values that become the ends of the range")
    elif error.code == "dataset.sizes_differ" and size and len(size) == 2 and all(size):
        suggestion.put(
            "resize", list(size), "CHECK: height and width; or resize = 256 with crop, as the model was trained"
        )
    elif error.code == "dataset.channels_differ" and "channels = 1" in hint:
        suggestion.put("channels", 1, "CHECK: some images are grey; 3 makes all colour")
    elif error.code == "dataset.label_out_of_range" and 'blank = "negative"' in hint:
        suggestion.put("blank", "negative", "CHECK: an empty cell means that the label is not there")
    elif error.code == "dataset.label_out_of_range" and 'uncertain = "negative"' in hint:
        suggestion.put("uncertain", "negative", "CHECK: what -1 stands for: negative or positive")
    elif error.code == "dataset.missing_values" and 'missing = "mean"' in hint:
        suggestion.put("missing", "mean", "CHECK: empty cells become the mean over the training rows")
    elif error.code == "dataset.no_value" and (codes := re.search(r"(empty = \{.*?\}), and", hint)):
        suggestion.put("empty", tomllib.loads(codes[1])["empty"], "CHECK: numbers that stand for no value, by column")
    elif error.code == "dataset.not_finite" and 'missing = "lowest"' in hint:
        suggestion.put("missing", "lowest", "CHECK: NaN becomes a volume's lowest value")
    elif error.code == "dataset.spacing_differs":
        suggestion.put("spacing", [1.0, 1.0, 1.0], "CHECK: mm that all volumes are resampled to")
    elif error.code == "dataset.invalid" and "window" in error.message:
        suggestion.put("window", [96, 96, 96], "CHECK: the voxels that the models read")
    return suggestion.fields != before


def _folders(path: Path, kind: str, suggestion: Suggestion, label: str | None) -> None:
    places = [file.relative_to(path) for file in _files(path)]
    tops = [[part for part in place.parts[:-1] if split_of(part) is None] for place in places]
    masks = any(parts and parts[0].lower() in _MASK_FOLDERS for parts in tops)
    masks = masks or any(re.search(r"[_-](mask|seg)\.", place.name) for place in places)
    if not (path / "labels.csv").exists():
        _group(places, suggestion)
    if "task" in suggestion.fields:
        return
    if masks:
        suggestion.put("task", "segmentation", "there are masks")
        suggestion.put("labels", _mask_labels(path), "CHECK: names of the masks' values, 0 first")
    elif (path / "labels.csv").exists():
        _list(path / "labels.csv", "list", suggestion, label)
    else:
        classes = sorted({parts[0] for parts in tops if parts})
        suggestion.put("labels", classes, "the class folders; put them into the order of the models' outputs")
    if kind == "image_folder" and _slices(path):
        suggestion.put(
            "format",
            kind,
            "CHECK: each slice is an image of its own, those of one patient in one split; "
            'format = "nifti" and a window make one volume of each series',
        )


def _slices(path: Path) -> bool:
    """Whether the first two files of a folder are DICOM of one series."""
    from suture_stitching.data.dicom import is_dicom, series_of

    places = [file.relative_to(path) for file in _files(path)]
    pair = next(([first, second] for first, second in pairwise(places) if first.parent == second.parent), [])
    series = [series_of(path / place) for place in pair if is_dicom(path / place)]
    return len(series) == 2 and series[0] == series[1] != ""


def _group(places: list[Path], suggestion: Suggestion) -> None:
    """Suggest an expression for patients where names begin with something that several files share."""
    person = r"(?:p|pat|patient|sub|subject|case)[-_]?\d+"
    for pattern, where in ((rf"({person})[-_][^/]*$", "name"), (rf"(?:^|/)({person}[^/]*)/", "folder")):
        names = [re.search(pattern, place.as_posix(), re.I) for place in places]
        patients = [name[1] for name in names if name]
        if places and len(patients) == len(places) and len(set(patients)) < len(patients):
            suggestion.put("group", f"(?i){pattern}", f"CHECK: finds the patient in a file's {where}")
            return


def _mask_labels(path: Path) -> list[str]:
    file = path / "dataset.json"
    if file.exists():
        content = json.loads(file.read_text(encoding="utf-8")).get("labels", {})
        numbered = {int(name): str(label) for name, label in content.items() if str(name).isdigit()}
        numbered = numbered or {int(value): str(name) for name, value in content.items() if isinstance(value, int)}
        if numbered:
            return [numbered[value] for value in sorted(numbered)]
    return ["background", "object"]


def _files(path: Path) -> list[Path]:
    return [file for file in sorted(path.rglob("*"))[:5000] if file.is_file() and not any(map(is_litter, file.parts))]


def _table(path: Path, kind: str, suggestion: Suggestion, label: str | None) -> None:
    from suture_stitching.data.table_files import open_table_file

    table = open_table_file(path, kind, _sheet(path, kind, suggestion))
    table.check_names()
    names = table.names
    column = label or next(
        (name for name in names if name.lower() in ("label", "class", "target", "outcome", "y")), None
    )
    columns: dict[str, Any] = {}
    if column is None:
        suggestion.open = f"which column is the label? There are {', '.join(names)}"
    else:
        columns["label"] = column
        _targets(table, column, suggestion)
    patients = patient_columns(names)
    if patients:
        columns["group"] = patients[0]
    split = next((name for name in names if name.lower() == "split"), None)
    if split is not None:
        columns["split"] = split
    taken = set(columns.values())
    others = [name for name in names if name not in taken and not is_row_number(name) and not names_patient(name)]
    texts = {name: _distinct(table, name) for name in others if table.is_text(name)}
    categories = {name: in_order(values) for name, values in texts.items() if 2 <= len(values) <= _MOST_CATEGORIES}
    columns["features"] = [name for name in others if table.is_number(name) or name in categories]
    left_out = [name for name in others if name not in columns["features"]]
    why = "CHECK: features in the order in which the models read them"
    if left_out:
        what = [f"{name} ({table.written(name)[0]})" if table.is_text(name) else name for name in left_out]
        why += f"; left out, for they are no numbers: {', '.join(what)}"
    if len(patients) > 1:
        why += f"; whose a row is: one of {', '.join(patients)}"
    suggestion.put("columns", columns, " ".join(why.split()))
    if categories:
        suggestion.put(
            "categories", categories, "CHECK: texts in the order of the numbers 0, 1, ... that the models were given"
        )


def _sheet(path: Path, kind: str, suggestion: Suggestion) -> str | None:
    """Return the first sheet of an Excel file with several, which is suggested."""
    from suture_stitching.data.table_files import sheets_of

    sheets = sheets_of(path) if kind == "excel" else []
    if len(sheets) < 2:
        return None
    suggestion.put("sheet", sheets[0], f"CHECK: the sheets are {' '.join(', '.join(sheets[:12]).split())}")
    return sheets[0]


def _distinct(table: Any, column: str) -> set[str]:
    """Return a column's texts, or more than can be categories."""
    texts: set[str] = set()
    for batch in table.batches([column], ()):
        texts |= {str(cell).strip() for cell in batch.column(column).unique().to_pylist() if cell is not None}
        if len(texts) > _MOST_CATEGORIES:
            break
    return texts - {""}


def _targets(table: Any, column: str, suggestion: Suggestion) -> None:
    if "task" in suggestion.fields:
        return
    values: set[str] = set()
    for batch in table.batches([column], ()):
        values |= {str(cell).strip() for cell in batch.column(column).unique().to_pylist() if cell is not None}
        if len(values) > _MOST_LABELS:
            suggestion.put("task", "regression", f"the column {column} has many values")
            return
    suggestion.put("labels", in_order(values), "CHECK: in the order of the models' outputs")


def _list(path: Path, kind: str, suggestion: Suggestion, label: str | None) -> None:
    from suture_stitching.data.table_files import open_table_file

    table = open_table_file(path, kind)
    column = label or next((name for name in table.names if name.lower() in ("label", "class", "target")), None)
    if column is not None:
        _targets(table, column, suggestion)
        if column != "label":
            suggestion.put("columns", {"label": column}, "the column of the labels")
    elif not any(name.lower() in FILE_COLUMNS for name in table.names):
        suggestion.open = f"which columns are file and label? There are {', '.join(table.names)}"


def _datalist(path: Path, kind: str, suggestion: Suggestion, label: str | None) -> None:
    entries = read_datalist(path)
    if "task" in suggestion.fields or not entries:
        return
    if isinstance(entries[0].label, str):
        suggestion.put("task", "segmentation", "labels are files")
        suggestion.put("labels", _mask_labels(path.parent), "CHECK: names of the masks' values, 0 first")
    else:
        suggestion.put(
            "labels", in_order({str(entry.label) for entry in entries}), "CHECK: in the order of the models' outputs"
        )


def _arrays(path: Path, kind: str, suggestion: Suggestion, label: str | None) -> None:
    from suture_stitching.data.array_files import label_values

    if "task" in suggestion.fields:
        return
    values = label_values(path, kind, label)
    if values is None:
        suggestion.put("task", "segmentation", "there are masks")
        suggestion.put("labels", ["background", "object"], "CHECK: names of the masks' values, 0 first")
    else:
        suggestion.put("labels", values, "CHECK: names in the order of their index")


_LOOKS = {"folders": _folders, "tables": _table, "lists": _list, "datalist": _datalist, "arrays": _arrays}

__all__ = ["Suggestion", "suggest"]

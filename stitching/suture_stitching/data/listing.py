"""The files of a dataset's folder, and what is known of each: its target, its split and its group.

scans/normal/0001.png                            the class folder is the label
scans/images/0001.png  scans/masks/0001.png      an image and its mask, by the same name (segmentation)
scans/train/normal/0001.png                      with the splits as top folders: train, validation, test
scans/labels.csv                                 file,label[,split][,group]; must agree with the folders
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from suture_contract.errors import SutureError
from suture_contract.naming import alike, spelt
from suture_stitching.data.spec import SPLITS, DatasetSpec

LABELS_FILE = "labels.csv"
#: The code of a file that cannot be read, which may be left out if the site says so.
UNREADABLE = "dataset.unreadable_image"
_IGNORED = frozenset({"thumbs.db", "desktop.ini"})
_IMAGES, _MASKS = "images", "masks"


@dataclass(frozen=True)
class Sample:
    """A file, relative to the dataset's folder, with forward slashes on every system.

    `target` is the label's name, the values of a line, or the file of the mask.
    """

    file: str
    target: str | tuple[float, ...]
    split: str | None
    group: str | None


@dataclass(frozen=True)
class _Line:
    target: str | tuple[float, ...] | None
    split: str | None
    group: str | None


def list_samples(spec: DatasetSpec, suffixes: Sequence[str]) -> tuple[list[Sample], list[str]]:
    """Return every sample in order of its file's name, and the files left out because they are of another kind.

    Raises `SutureError` (`dataset.*`) where folders, masks and `labels.csv` do not agree.
    """
    root = spec.path
    files, others = _find(root, suffixes)
    if others and spec.on_unreadable == "error":
        raise unreadable(others[0], "not a kind of file this reader knows")
    listed = _read_labels_file(root / LABELS_FILE, spec) if (root / LABELS_FILE).exists() else None
    if spec.task == "segmentation":
        pairs = _pairs(files, spec, suffixes)
        files = list(pairs)
    else:
        pairs = {}
    if not files:
        raise SutureError(
            "dataset.empty",
            "there are no images",
            where=str(root),
            hint=f"put images into {_IMAGES} and their masks into {_MASKS}"
            if spec.task == "segmentation"
            else "put images into one folder per class",
        )
    samples = [_sample(file, pairs.get(file), listed, spec) for file in files]
    _check_complete(samples, listed, root)
    return samples, others


def stem(file: str, suffixes: Sequence[str]) -> str:
    """Return the path without its suffix, which may be a double one."""
    return next(file[: -len(suffix)] for suffix in suffixes if file.lower().endswith(suffix))


def unreadable(file: str, reason: str) -> SutureError:
    """Return the error for a file that cannot be read."""
    return SutureError(
        UNREADABLE,
        f"cannot be read as an image: {reason}",
        where=file,
        hint='replace or remove the file, or set on_unreadable = "skip" to leave out such files',
    )


def _find(root: Path, suffixes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files below `root` with these suffixes, and the others in its subfolders; both sorted."""
    found: list[str] = []
    others: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith(".") or name.lower() in _IGNORED:
                continue
            file = (Path(folder) / name).relative_to(root).as_posix()
            if name.lower().endswith(tuple(suffixes)):
                found.append(file)
            elif Path(folder) != root:
                others.append(file)
    return sorted(found), sorted(others)


def _pairs(files: Sequence[str], spec: DatasetSpec, suffixes: Sequence[str]) -> dict[str, str]:
    """Return the mask's file by the image's."""
    by_kind: dict[str, dict[str, str]] = {_IMAGES: {}, _MASKS: {}}
    for file in files:
        split, folders = _folders(file, spec)
        if not folders or folders[0] not in by_kind:
            raise SutureError(
                "dataset.unlabelled_image",
                f"{file} lies neither in {_IMAGES} nor in {_MASKS}",
                where=str(spec.path),
                hint=f"a segmentation has {_IMAGES} and {_MASKS}, with the same file names in both",
            )
        name = stem("/".join([split or "", *PurePosixPath(file).parts[2 if split else 1 :]]), suffixes)
        if (other := by_kind[folders[0]].setdefault(name, file)) != file:
            raise SutureError(
                "dataset.duplicate",
                f"{other} and {file} differ in their ending alone",
                where=str(spec.path),
                hint="remove one of them, or give them different names",
            )
    images, masks = by_kind[_IMAGES], by_kind[_MASKS]
    for kind, ours, theirs in (("image has no mask", images, masks), ("mask has no image", masks, images)):
        if lone := sorted(ours.keys() - theirs.keys()):
            raise SutureError(
                "dataset.missing_mask",
                f"this {kind}",
                where=ours[lone[0]],
                hint=f"each file in {_IMAGES} needs one of the same name in {_MASKS}, and the other way round",
            )
    return {images[name]: masks[name] for name in sorted(images, key=images.__getitem__)}


def _folders(file: str, spec: DatasetSpec) -> tuple[str | None, tuple[str, ...]]:
    """Return the split that the file's top folder names, if it does, and the folders below it."""
    folders = PurePosixPath(file).parts[:-1]
    if folders and folders[0] in SPLITS and folders[0] not in spec.labels:
        return folders[0], folders[1:]
    return None, folders


def _written(folder: str | None, spec: DatasetSpec) -> str:
    """Say how a folder's name can stand for a label that is written otherwise."""
    for _, label in alike([folder or ""], spec.labels):
        return f'; to keep its name, put {spelt(folder or "")} in labels, with aliases = {{"{folder}" = "{label}"}}'
    return ""


def _sample(file: str, mask: str | None, listed: Mapping[str, _Line] | None, spec: DatasetSpec) -> Sample:
    folder_split, folders = _folders(file, spec)
    folder = folders[0] if folders else None
    where = str(spec.path / LABELS_FILE)
    if listed is None:
        if mask is None and spec.task != "classification":
            raise SutureError(
                "dataset.missing_labels",
                f"there is no {LABELS_FILE}",
                where=str(spec.path),
                hint=f"for {spec.task} it has one line per file, with the columns {','.join(_columns(spec)[0])}",
            )
        if mask is None and folder not in spec.labels:
            raise SutureError(
                "dataset.unlabelled_image" if folder is None else "dataset.unknown_label",
                f"{file} lies in no class folder" if folder is None else f"the folder of {file} is none of the labels",
                where=str(spec.path),
                hint=f"labels are {', '.join(spec.labels)}; name the folder after one of them, or add it to labels"
                + _written(folder, spec),
            )
        return Sample(file, mask or folder or "", folder_split, _group(file, spec))
    if file not in listed:
        raise SutureError(
            "dataset.unlabelled_image",
            f"{file} has no line",
            where=where,
            hint="add a line for it, or move the image out of the dataset's folder",
        )
    line = listed[file]
    if spec.task == "classification" and line.target not in spec.labels:
        raise SutureError(
            "dataset.unknown_label",
            f"the label of {file} is not among the dataset's labels",
            where=where,
            hint=f"labels are {', '.join(spec.labels)}; correct the line, or add its label to labels",
        )
    if line.split and line.split not in SPLITS:
        raise SutureError(
            "dataset.unknown_split",
            f"the split of {file} is not one of {', '.join(SPLITS)}",
            where=where,
            hint="correct the line, or leave out the column to have the split made from a seed",
        )
    if spec.task == "classification" and folder in spec.labels and folder != line.target:
        raise SutureError(
            "dataset.contradiction",
            f"{file} is listed as '{line.target}' but lies in the folder '{folder}'",
            where=where,
            hint="correct the line or move the image",
        )
    if line.split and folder_split and line.split != folder_split:
        raise SutureError(
            "dataset.contradiction",
            f"{file} is listed in split '{line.split}' but lies in the folder '{folder_split}'",
            where=where,
            hint="correct the line or move the image",
        )
    target = mask if mask is not None else line.target
    assert target is not None
    return Sample(file, target, line.split or folder_split, line.group or _group(file, spec))


def _group(file: str, spec: DatasetSpec) -> str | None:
    if spec.group is None:
        return None
    found = re.search(spec.group, file)
    if found is None or not found[1]:
        raise SutureError(
            "dataset.no_group",
            "the expression in group finds no patient in this name",
            where=file,
            hint="correct the dataset's group, or rename the file",
        )
    return found[1]


def _check_complete(samples: Sequence[Sample], listed: Mapping[str, _Line] | None, root: Path) -> None:
    present = {sample.file for sample in samples}
    absent = next((file for file in listed or () if file not in present), None)
    if absent is not None:
        raise SutureError(
            "dataset.missing_image",
            f"{absent} is listed but there is no such image",
            where=str(root / LABELS_FILE),
            hint="add the image or remove its line; files are relative to the dataset's folder",
        )
    if any(sample.split for sample in samples):
        lone = next((sample.file for sample in samples if not sample.split), None)
        if lone is not None:
            raise SutureError(
                "dataset.unknown_split",
                f"{lone} belongs to no split while other images do",
                where=str(root),
                hint=f"move it below one of the top folders {', '.join(SPLITS)}, or name its split in {LABELS_FILE}",
            )


def _columns(spec: DatasetSpec) -> tuple[list[str], str, str]:
    """Return the columns that `labels.csv` must have, and the names of those for split and group, which it may have."""
    columns = spec.columns
    targets: Sequence[str] = [columns.label or "label"]
    if spec.task in ("segmentation", "multilabel"):
        targets = spec.labels if spec.task == "multilabel" else []
    return ["file", *targets], columns.split or "split", columns.group or "group"


def _read_labels_file(path: Path, spec: DatasetSpec) -> dict[str, _Line]:
    """Return what is said of each file."""
    listed: dict[str, _Line] = {}
    needed, split, group = _columns(spec)
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, strict=True)
            columns = rows.fieldnames or []
            if not set(needed) <= set(columns) or not set(columns) <= {*needed, split, group}:
                raise SutureError(
                    "dataset.missing_column",
                    f"the first line must name the columns {','.join(needed)}, and may name {split} and {group}",
                    where=str(path),
                )
            for row in rows:
                number = rows.line_num
                file = (row["file"] or "").strip().replace("\\", "/").removeprefix("./")
                if not file or None in row or any(not row[name] for name in needed):
                    raise SutureError(
                        "dataset.incomplete_line",
                        f"line {number} does not have a value for each column",
                        where=str(path),
                        hint=f"each line has {','.join(columns)}",
                    )
                if file in listed:
                    raise SutureError(
                        "dataset.duplicate",
                        f"line {number}: {file} is listed a second time",
                        where=str(path),
                        hint="keep one line per image",
                    )
                listed[file] = _Line(
                    _line_target([row[name] for name in needed[1:]], spec, f"{path}, line {number}"),
                    (row.get(split) or "").strip() or None,
                    (row.get(group) or "").strip() or None,
                )
    except (UnicodeDecodeError, csv.Error):
        raise SutureError(
            "dataset.unreadable", "not a CSV file in UTF-8", where=str(path), hint="save it as CSV (UTF-8)"
        ) from None
    return listed


def _line_target(cells: Sequence[str], spec: DatasetSpec, where: str) -> str | tuple[float, ...] | None:
    if spec.task == "segmentation":
        return None
    if spec.task == "classification":
        return cells[0].strip()
    try:
        values = tuple(float(cell) for cell in cells)
    except ValueError:
        raise SutureError("dataset.not_numbers", "a cell holds text, not a number", where=where) from None
    if not all(map(math.isfinite, values)):
        raise SutureError("dataset.not_finite", "a cell holds NaN or infinity", where=where)
    if spec.task == "multilabel" and not set(values) <= {0.0, 1.0}:
        raise SutureError(
            "dataset.label_out_of_range",
            "a cell is neither 0 nor 1",
            where=where,
            hint="each label has one column that holds 1 where an image has it, else 0",
        )
    return values

"""The manifest of a dataset: its files, and what is known of each: its target, its split and its group.

scans/normal/0001.png                            the class folder is the label
scans/images/0001.png  scans/masks/0001.png      an image and its mask, by the same name (segmentation)
scans/train/normal/0001.png                      with the splits as top folders: train, validation, test
scans/labels.csv                                 file,label[,split][,group]; must agree with the folders
scans/imagesTr/a_0000.nii.gz  scans/labelsTr/a.nii.gz    as nnU-Net and the Medical Segmentation Decathlon have it
list.csv                                         a list of path,label[,split][,patient]: its files lie where it says
dataset.json                                     a list as MONAI and the Decathlon write it
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from suture_contract.errors import SutureError
from suture_contract.naming import folded
from suture_stitching.data.dicom import is_dicom, read_header
from suture_stitching.data.list_files import FILE_COLUMNS, ListedRow, read_datalist, read_rows
from suture_stitching.data.spec import SPLITS, DatasetSpec
from suture_stitching.data.words import how_to_name, is_about, is_litter, names_patient, places_of, split_of

LABELS_FILE = "labels.csv"
#: The code of a file that cannot be read, which may be left out if the site says so.
UNREADABLE = "dataset.unreadable_image"
_IMAGES, _MASKS = "images", "masks"
_IMAGE_FOLDERS = frozenset(["images", "image", "imgs", "img", "imagestr", "imagests"])
_MASK_FOLDERS = frozenset(
    """
    masks mask labels label segmentations segmentation segs seg annotations gt labelstr labelsts
    """.split()  # noqa: SIM905
)
#: What a name says beside the sample: that it is a mask or an image.
_MASK_NAME = re.compile(r"[\s_.-](?:masks?|seg|segmentation|labels?|gt|annotation)$|^(?:masks?|seg|label)[\s_.-]", re.I)
_IMAGE_NAME = re.compile(r"[\s_.-](?:image|img)$|^(?:image|img)[\s_.-]", re.I)
#: nnU-Net's number of a channel.
_CHANNEL = re.compile(r"_(\d{4})$")
_MASK_COLUMNS = ("mask", "mask path", "maskpath", "segmentation", "seg", "label", "label path")


@dataclass(frozen=True)
class Sample:
    """A file, relative to the dataset's folder, with forward slashes on every system.

    `target` is the label's name, the values of a line, or the file of the mask. `more` are the files of its further
    channels.
    """

    file: str
    target: str | tuple[float, ...]
    split: str | None
    group: str | None
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Line:
    target: str | tuple[float, ...] | None
    split: str | None
    group: str | None


def list_samples(spec: DatasetSpec, suffixes: Sequence[str]) -> tuple[list[Sample], list[str], list[str]]:
    """Return every sample in order of its file's name, the files left out because they are of another kind, and notes.

    With DICOM, files of any name are looked into. Raises `SutureError` (`dataset.*`) where folders, masks and lists do
    not agree.
    """
    if spec.format == "datalist":
        samples, others = _of_datalist(spec), list[str]()
    elif spec.format == "list":
        samples, others = _of_list(spec), list[str]()
    else:
        samples, others = _of_folder(spec, suffixes)
    return _by_labels(sorted(samples, key=lambda one: one.file), spec), others, _notes(samples, spec)


def _notes(samples: Sequence[Sample], spec: DatasetSpec) -> list[str]:
    told = []
    if spec.group is None and any(sample.group for sample in samples):
        told.append("a column says which patient a file is of")
    if any(sample.more for sample in samples):
        told.append(f"{1 + len(samples[0].more)} files per sample are its channels")
    return told


def stem(file: str, suffixes: Sequence[str]) -> str:
    """Return the path without its suffix, which may be a double one."""
    return next((file[: -len(suffix)] for suffix in suffixes if suffix and file.lower().endswith(suffix)), file)


def unreadable(file: str, reason: str) -> SutureError:
    """Return the error for a file that cannot be read."""
    return SutureError(
        UNREADABLE,
        f"cannot be read as an image: {reason}",
        where=file,
        hint='replace or remove the file, or set on_unreadable = "skip" to leave out such files',
    )


def _by_labels(samples: list[Sample], spec: DatasetSpec) -> list[Sample]:
    """Return the samples of a classification with their labels as the dataset's description writes them."""
    if spec.task != "classification":
        return samples
    places = places_of((str(sample.target) for sample in samples), spec.labels)
    wrong = next((sample for sample in samples if str(sample.target) not in places), None)
    if wrong is not None:
        folder = spec.format not in ("list", "datalist") and not (spec.path / LABELS_FILE).exists()
        raise SutureError(
            "dataset.unknown_label",
            f"the folder of {wrong.file} is none of the labels"
            if folder
            else f"the label of {wrong.file} is not among the dataset's labels",
            where=str(spec.path if folder or not spec.path.is_dir() else spec.path / LABELS_FILE),
            hint=how_to_name(spec.labels),
        )
    return [replace(sample, target=spec.labels[places[str(sample.target)]]) for sample in samples]


def _of_folder(spec: DatasetSpec, suffixes: Sequence[str]) -> tuple[list[Sample], list[str]]:
    root = spec.path
    files, others, about = _find(root, suffixes)
    if others and spec.on_unreadable == "error":
        raise unreadable(others[0], "not a kind of file this reader knows")
    if spec.holds == "volumes":
        files = _series(root, files)
    listed = _read_labels_file(root / LABELS_FILE, spec, files) if (root / LABELS_FILE).exists() else None
    pairs: dict[str, tuple[str, tuple[str, ...]]] = {}
    if spec.task == "segmentation":
        pairs = _pairs(files, spec, suffixes)
        files = list(pairs)
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
    return samples, sorted([*others, *about])


def _find(root: Path, suffixes: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the files below `root` with these suffixes, other files in its subfolders, and texts about the data."""
    found: list[str] = []
    others: list[str] = []
    about: list[str] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to where it came from
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_litter(name)]
        for name in files:
            if is_litter(name):
                continue
            file = (Path(folder) / name).relative_to(root).as_posix()
            known = name.lower().endswith(tuple(suffixes))
            if known or (".dcm" in suffixes and not is_about(name) and is_dicom(Path(folder) / name)):
                found.append(file)
            elif Path(folder) != root:
                (about if is_about(name) or (".dcm" in suffixes and "." not in name) else others).append(file)
    return sorted(found), sorted(others), sorted(about)


def _series(root: Path, files: Sequence[str]) -> list[str]:
    """Return the files, but for DICOM slices their folder, which is one volume."""
    found: dict[str, None] = {}
    for file in files:
        folder = PurePosixPath(file).parent.as_posix()
        slices = not file.lower().endswith((".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"))
        one = folder in found or (
            slices and folder != "." and is_dicom(root / file) and read_header(root / file, file).frames == 1
        )
        found[folder if one else file] = None
    return list(found)


def _pairs(files: Sequence[str], spec: DatasetSpec, suffixes: Sequence[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return by the image's file the mask's, and the files of the image's further channels."""
    images: dict[str, list[str]] = {}
    masks: dict[str, str] = {}
    named = any(_place(file, spec)[1] == _IMAGES for file in files)
    for file in files:
        split, kind, rest = _place(file, spec)
        if kind is None and named:
            raise SutureError(
                "dataset.unlabelled_image",
                f"{file} lies neither in {_IMAGES} nor in {_MASKS}",
                where=str(spec.path),
                hint=f"a segmentation has {_IMAGES} and {_MASKS}, with the same file names in both",
            )
        name = stem(PurePosixPath(file).name, suffixes)
        is_mask = kind == _MASKS or (_MASK_NAME.search(name) is not None and kind != _MASKS)
        channel = _CHANNEL.search(name) if "imagestr" in file.lower() or "imagests" in file.lower() else None
        name = name[: channel.start()] if channel else name
        name = _IMAGE_NAME.sub("", _MASK_NAME.sub("", name)) or name
        key = "/".join([split or "", *rest, name])
        if is_mask:
            if (other := masks.setdefault(key, file)) != file:
                raise _twice(other, file, spec)
        elif channel is None and key in images:
            raise _twice(images[key][0], file, spec)
        else:
            images.setdefault(key, []).append(file)
    if spec.format == "nifti" or not named:  # a test part without masks is none of the data
        unmasked = {key for key in images.keys() - masks.keys() if "imagests" in images[key][0].lower()}
        images = {key: own for key, own in images.items() if key not in unmasked}
    for kind, ours, theirs in (
        ("image has no mask", {key: own[0] for key, own in images.items()}, masks),
        ("mask has no image", masks, images),
    ):
        if lone := sorted(ours.keys() - theirs.keys()):
            raise SutureError(
                "dataset.missing_mask",
                f"this {kind}",
                where=ours[lone[0]],
                hint=f"each file in {_IMAGES} needs one of the same name in {_MASKS}, and the other way round; a "
                "mask's name may end in _mask or _seg",
            )
    return {own[0]: (masks[key], tuple(own[1:])) for key, own in images.items()}


def _place(file: str, spec: DatasetSpec) -> tuple[str | None, str | None, list[str]]:
    """Return the split that the file's folders name, whether they say image or mask, and the other folders."""
    split: str | None = None
    kind: str | None = None
    rest: list[str] = []
    for folder in PurePosixPath(file).parts[:-1]:
        lowered = folder.lower()
        if kind is None and lowered in _IMAGE_FOLDERS | _MASK_FOLDERS:
            kind = _IMAGES if lowered in _IMAGE_FOLDERS else _MASKS
            if lowered.endswith("ts") and lowered in ("imagests", "labelsts"):
                split = "test"
        elif split is None and (found := split_of(folder)) is not None:
            split = found
        else:
            rest.append(folder)
    return split, kind, rest


def _twice(one: str, other: str, spec: DatasetSpec) -> SutureError:
    return SutureError(
        "dataset.duplicate",
        f"{one} and {other} differ in their ending alone",
        where=str(spec.path),
        hint="remove one of them, or give them different names",
    )


def _folders(file: str, spec: DatasetSpec) -> tuple[str | None, tuple[str, ...]]:
    """Return the split that the file's top folder names, if it does, and the folders below it."""
    folders = PurePosixPath(file).parts[:-1]
    if folders and folders[0] not in spec.labels and (found := split_of(folders[0])) is not None:
        return found, folders[1:]
    return None, folders


def _sample(
    file: str, mask: tuple[str, tuple[str, ...]] | None, listed: Mapping[str, _Line] | None, spec: DatasetSpec
) -> Sample:
    folder_split, folders = _folders(file, spec)
    if mask is not None:
        folder_split = _place(file, spec)[0]
    folder = folders[0] if folders else None
    where = str(spec.path / LABELS_FILE)
    more = mask[1] if mask else ()
    if listed is None:
        if mask is None and spec.task != "classification":
            raise SutureError(
                "dataset.missing_labels",
                f"there is no {LABELS_FILE}",
                where=str(spec.path),
                hint=f"for {spec.task} it has one line per file, with the columns {','.join(_needed(spec))}",
            )
        if mask is None and folder is None:
            raise SutureError(
                "dataset.unlabelled_image",
                f"{file} lies in no class folder",
                where=str(spec.path),
                hint=f"labels are {', '.join(spec.labels)}; put images into a folder per label, or list them in "
                f"{LABELS_FILE}",
            )
        return Sample(file, mask[0] if mask else folder or "", folder_split, _group(file, spec), more)
    if file not in listed:
        raise SutureError(
            "dataset.unlabelled_image",
            f"{file} has no line",
            where=where,
            hint="add a line for it, or move the image out of the dataset's folder; or give the list itself as the "
            'path, with format = "list": then only its files count',
        )
    line = listed[file]
    if spec.task == "classification" and {folder, line.target} <= {*spec.labels} and folder != line.target:
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
    target = mask[0] if mask is not None else line.target
    assert target is not None
    return Sample(file, target, line.split or folder_split, line.group or _group(file, spec), more)


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
    _check_splits(samples, str(root))


def _check_splits(samples: Sequence[Sample], where: str) -> None:
    if any(sample.split for sample in samples):
        lone = next((sample.file for sample in samples if not sample.split), None)
        if lone is not None:
            raise SutureError(
                "dataset.unknown_split",
                f"{lone} belongs to no split while other images do",
                where=where,
                hint=f"move it below one of the top folders {', '.join(SPLITS)}, or name its split in {LABELS_FILE}",
            )


def _needed(spec: DatasetSpec) -> list[str]:
    """Return the columns that a list must have beside the file."""
    if spec.task in ("segmentation", "multilabel"):
        return ["file", *(spec.labels if spec.task == "multilabel" else [])]
    return ["file", spec.columns.label or "label"]


@dataclass(frozen=True)
class _Columns:
    file: str
    targets: tuple[str, ...]
    mask: str | None
    split: str | None
    group: str | None


def _columns(names: Sequence[str], spec: DatasetSpec, where: str, *, masks: bool = False) -> _Columns:
    """Return which columns of a list say what; others are not read."""
    columns = spec.columns

    def one_of(wanted: Iterable[str]) -> str | None:
        return next((name for fold in wanted for name in names if folded(name) == fold), None)

    file = columns.images if columns.images != "images" else one_of(FILE_COLUMNS)
    targets: tuple[str, ...] = ()
    if spec.task == "multilabel":
        targets = spec.labels
    elif spec.task != "segmentation":
        targets = (columns.label or one_of(["label"]) or "label",)
    mask = (columns.label or one_of(_MASK_COLUMNS)) if masks else None
    split = columns.split or one_of(["split"])
    patients = [name for name in names if names_patient(name)]
    group = columns.group or one_of(["group"]) or (patients[0] if len(patients) == 1 else None)
    wanted = [file, *targets, *([mask] if masks else []), *filter(None, (columns.split, columns.group))]
    if any(name is None or name not in names for name in wanted):
        needed = [*_needed(spec), *(["mask"] if masks else [])]
        raise SutureError(
            "dataset.missing_column",
            f"the first line must name the columns {','.join(needed)}, and may name split and group; it has "
            + ",".join(names),
            where=where,
            hint="or name them in the dataset's columns: images (of the files), label, split, group",
        )
    assert file is not None
    return _Columns(file, targets, mask, split, group)


def _line(row: ListedRow, file: str, columns: _Columns, spec: DatasetSpec, where: str) -> _Line:
    empty = [name for name in columns.targets if not (row.cells.get(name) or "").strip()]
    if empty and not (spec.task == "multilabel"):
        raise SutureError(
            "dataset.incomplete_line",
            f"line {row.number} does not have a value for each column",
            where=where,
            hint=f"each line has {','.join((columns.file, *columns.targets))}",
        )
    split = (row.cells.get(columns.split or "") or "").strip() or None
    if split is not None and split_of(split) is None:
        raise SutureError(
            "dataset.unknown_split",
            f"line {row.number}: the split of {file} is not one of {', '.join(SPLITS)}",
            where=where,
            hint="correct the line, or leave out the column to have the split made from a seed",
        )
    return _Line(
        _line_target([row.cells.get(name) or "" for name in columns.targets], spec, f"{where}, line {row.number}"),
        split_of(split) if split else None,
        (row.cells.get(columns.group or "") or "").strip() or None,
    )


def _read_labels_file(path: Path, spec: DatasetSpec, files: Sequence[str]) -> dict[str, _Line]:
    """Return what is said of each file, by its path from the dataset's folder."""
    where = str(path)
    names, rows = read_rows(path, spec)
    columns = _columns(names, spec, where)
    finder = _Finder(path.parent, files)
    listed: dict[str, _Line] = {}
    for row in rows:
        text = (row.cells.get(columns.file) or "").strip()
        if not text or row.ragged:
            raise SutureError(
                "dataset.incomplete_line",
                f"line {row.number} does not have a value for each column",
                where=where,
                hint=f"each line has {','.join(names)}",
            )
        file = finder.find(text)
        if file in listed:
            raise SutureError(
                "dataset.duplicate",
                f"line {row.number}: {file} is listed a second time",
                where=where,
                hint="keep one line per image",
            )
        listed[file] = _line(row, file, columns, spec, where)
    return listed


class _Finder:
    """Finds the file that a list means: by its path from the folder, its whole path, or its name alone."""

    def __init__(self, root: Path, files: Sequence[str] | None = None) -> None:
        self._root = root
        self._resolved = root.resolve()
        self._files = None if files is None else set(files)
        self._names: dict[str, list[str]] | None = None

    def find(self, text: str) -> str:
        """Return the path from the folder; as written where there is no such file."""
        file = text.replace("\\", "/").removeprefix("./")
        if self._is_file(file) and not Path(file).is_absolute():
            return file
        if Path(file).is_absolute():
            for root in (self._root, self._resolved):
                if Path(file).is_relative_to(root):
                    return Path(file).relative_to(root).as_posix()
            return file
        if "/" not in file and len(found := self._by_name().get(file, [])) == 1:
            return found[0]
        return file

    def _is_file(self, file: str) -> bool:
        return file in self._files if self._files is not None else (self._root / file).exists()

    def _by_name(self) -> dict[str, list[str]]:
        if self._names is None:
            self._names = {}
            if self._files is None:
                walked = (
                    (Path(folder) / name).relative_to(self._root).as_posix()
                    for folder, _, names in os.walk(self._root)
                    for name in names
                )
            for file in self._files if self._files is not None else walked:
                self._names.setdefault(PurePosixPath(file).name, []).append(file)
        return self._names


def _of_list(spec: DatasetSpec) -> list[Sample]:
    """Return the samples that a table of paths names."""
    where, finder = str(spec.path), _Finder(spec.files)
    names, rows = read_rows(spec.path, spec)
    columns = _columns(names, spec, where, masks=spec.task == "segmentation")
    samples: dict[str, Sample] = {}
    for row in rows:
        file = _there(row.cells.get(columns.file), row.number, finder, spec)
        line = _line(row, file, columns, spec, where)
        target = line.target
        if columns.mask is not None:
            target = _there(row.cells.get(columns.mask), row.number, finder, spec)
        if file in samples:
            raise SutureError(
                "dataset.duplicate",
                f"line {row.number}: {file} is listed a second time",
                where=where,
                hint="keep one line per image",
            )
        assert target is not None
        samples[file] = Sample(file, target, line.split, line.group or _group(file, spec))
    if not samples:
        raise SutureError("dataset.empty", "the list names no files", where=where)
    _check_splits(list(samples.values()), where)
    return list(samples.values())


def _there(text: str | None, number: int, finder: _Finder, spec: DatasetSpec) -> str:
    """Return the file that a line names, below the folder of the list's files."""
    where = str(spec.path)
    if not (text or "").strip():
        raise SutureError("dataset.incomplete_line", f"line {number} names no file", where=where)
    file = finder.find((text or "").strip())
    if Path(file).is_absolute() or ".." in PurePosixPath(file).parts:
        raise SutureError(
            "dataset.missing_image",
            f"line {number} names a file outside of {spec.files}",
            where=where,
            hint='name the folder that holds all files: root = "..."',
        )
    if not (spec.files / file).exists():
        raise SutureError(
            "dataset.missing_image",
            f"line {number}: {file} is listed but there is no such file",
            where=where,
            hint=f'files are relative to {spec.files}; another folder is said by root = "..."',
        )
    return file


def _of_datalist(spec: DatasetSpec) -> list[Sample]:
    """Return the samples that a JSON list of MONAI or the Decathlon names."""
    where, finder = str(spec.path), _Finder(spec.files)
    samples = []
    for number, entry in enumerate(read_datalist(spec.path)):
        files = [_there(file, number, finder, spec) for file in entry.images]
        if spec.task == "segmentation":
            if not isinstance(entry.label, str):
                raise SutureError("dataset.missing_mask", f"entry {number} names no mask", where=where)
            target: str | tuple[float, ...] = _there(entry.label, number, finder, spec)
        elif entry.label is None:
            raise SutureError("dataset.missing_labels", f"entry {number} has no label", where=where)
        elif spec.task == "classification":
            target = str(entry.label)
        else:
            target = tuple(float(value) for value in (entry.label if isinstance(entry.label, list) else [entry.label]))
        samples.append(Sample(files[0], target, entry.split, entry.group or _group(files[0], spec), tuple(files[1:])))
    if not samples:
        raise SutureError("dataset.empty", "the list names no files with labels", where=where)
    _check_splits(samples, where)
    return samples


def _line_target(cells: Sequence[str], spec: DatasetSpec, where: str) -> str | tuple[float, ...] | None:
    if spec.task == "segmentation":
        return None
    if spec.task == "classification":
        return cells[0].strip()
    if spec.task == "multilabel":
        return tuple(_mark(cell.strip(), spec, where) for cell in cells)
    try:
        values = tuple(float(cell) for cell in cells)
    except ValueError:
        raise SutureError("dataset.not_numbers", "a cell holds text, not a number", where=where) from None
    if not all(map(math.isfinite, values)):
        raise SutureError("dataset.not_finite", "a cell holds NaN or infinity", where=where)
    return values


def _mark(cell: str, spec: DatasetSpec, where: str) -> float:
    """Return 0 or 1 for a cell that says whether a file has a label."""
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        raise SutureError("dataset.not_numbers", "a cell holds text, not a number", where=where) from None
    policy, name, what = (spec.blank, "blank", "empty") if math.isnan(value) else (spec.uncertain, "uncertain", "-1")
    if value in (0.0, 1.0):
        return value
    if value == -1.0 or math.isnan(value):
        if policy != "error":
            return float(policy == "positive")
        other = ' or "positive"' if name == "uncertain" else ""
        raise SutureError(
            "dataset.label_out_of_range",
            f"a cell is {what}",
            where=where,
            hint=f'say what that stands for, {name} = "negative"{other}; each label\'s column holds 1 where an '
            "image has it, else 0",
        )
    raise SutureError(
        "dataset.label_out_of_range",
        "a cell is neither 0 nor 1",
        where=where,
        hint="each label has one column that holds 1 where an image has it, else 0",
    )


__all__ = ["LABELS_FILE", "UNREADABLE", "Sample", "list_samples", "stem", "unreadable"]

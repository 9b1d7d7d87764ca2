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

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from suture_contract.errors import SutureError
from suture_contract.toml_text import check_text
from suture_stitching.data.detached import HEADERS, data_file
from suture_stitching.data.dicom import is_dicom, read_header
from suture_stitching.data.foreign import foreign
from suture_stitching.data.lists import (
    Line,
    check_columns,
    datalist_samples,
    listed_samples,
    needed_columns,
    read_labels_file,
)
from suture_stitching.data.samples import LABELS_FILE, Sample, check_splits, group_of, unreadable
from suture_stitching.data.spec import LISTS, VOLUMES, DatasetSpec
from suture_stitching.data.words import how_to_name, is_about, is_litter, places_of, split_of

_IMAGES, _MASKS = "images", "masks"
_TABLES = (".csv", ".tsv", ".xlsx", ".parquet")
_IMAGE_FOLDERS = frozenset(["images", "image", "imgs", "img", "imagestr", "imagests", "jpegimages"])
_MASK_FOLDERS = frozenset(
    (
        *("masks", "mask", "labels", "label", "segmentations", "segmentation", "segs", "seg", "annotations", "gt"),
        *("labelstr", "labelsts", "groundtruth", "ground_truth", "ground-truth", "ground truth", "segmentationclass"),
    )
)
#: What a name says beside the sample: that it is a mask or an image.
_MASK_NAME = re.compile(r"[\s_.-](?:masks?|seg|segmentation|labels?|gt|annotation)$|^(?:masks?|seg|label)[\s_.-]", re.I)
_IMAGE_NAME = re.compile(r"[\s_.-](?:image|img)$|^(?:image|img)[\s_.-]", re.I)
#: What a list of a split's files is called beside the split.
_SPLIT_LIST = re.compile(r"[\s_.-](?:list|files|names|images|split|set|ids?)$")
#: Names that say nothing but what a file is, in a folder for each sample.
_MASK_ALONE = re.compile(r"masks?|seg|segmentation|labels?|gt|annotation", re.I)
_IMAGE_ALONE = re.compile(r"images?|img|imaging|volume|scan", re.I)
#: nnU-Net's number of a channel.
_CHANNEL = re.compile(r"_(\d{4})$")


def list_samples(spec: DatasetSpec, suffixes: Sequence[str]) -> tuple[list[Sample], list[str], list[str]]:
    """Return every sample in order of its file's name, the files left out because they are of another kind, and notes.

    With DICOM, files of any name are looked into. Raises `SutureError` (`dataset.*`) where folders, masks and lists do
    not agree.
    """
    if spec.format == "datalist":
        samples, others = datalist_samples(spec), list[str]()
    elif spec.format == "list":
        samples, others = listed_samples(spec), list[str]()
    else:
        samples, others = _of_folder(spec, suffixes)
    if spec.format in LISTS:
        _check_kind(samples, spec)
    for sample in samples:
        check_text(sample.file)
    return _by_labels(sorted(samples, key=lambda sample: sample.file), spec), others, _notes(samples, spec)


def _check_kind(samples: Sequence[Sample], spec: DatasetSpec) -> None:
    """Raise where a list names volumes and nothing says of which size models read them."""
    volume = next((sample.file for sample in samples if sample.file.lower().endswith(VOLUMES)), None)
    if volume is not None and spec.holds == "images":
        raise SutureError(
            "dataset.invalid",
            f"the list names volumes, such as {volume}, which need a window",
            where=str(spec.path),
            hint="say how many voxels the models read, in a file that describes the dataset: window = [96, 96, 96]; "
            "`suture data suggest` writes one",
        )


def _notes(samples: Sequence[Sample], spec: DatasetSpec) -> list[str]:
    notes = []
    if spec.group is None and any(sample.group for sample in samples):
        notes.append("a column says which patient a file is of")
    if any(sample.more for sample in samples):
        notes.append(f"{1 + len(samples[0].more)} files per sample are its channels")
    return notes


def stem(file: str, suffixes: Sequence[str]) -> str:
    """Return the path without its suffix, which may be a double one."""
    return next((file[: -len(suffix)] for suffix in suffixes if suffix and file.lower().endswith(suffix)), file)


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
            hint=how_to_name(spec.labels) + (_list_beside(spec.path) if folder else ""),
        )
    return [replace(sample, target=spec.labels[places[str(sample.target)]]) for sample in samples]


def _list_beside(root: Path) -> str:
    """Return what to do with a table beside the folders, which may say the labels; empty where there is none."""
    names = sorted(file.name for file in root.iterdir() if file.suffix.lower() in _TABLES and not is_litter(file.name))
    return f'; if {names[0]} says the labels, give it as the path, with format = "list"' if names else ""


def _of_folder(spec: DatasetSpec, suffixes: Sequence[str]) -> tuple[list[Sample], list[str]]:
    root = spec.path
    files, others, about = _find(root, suffixes)
    if others and spec.on_unreadable == "error":
        file = next((file for file in others if foreign(file) is not None), others[0])
        known = foreign(file)
        raise unreadable(file, f"it is {known[0]}: {known[1]}" if known else "not a kind of file this reader knows")
    if spec.holds == "volumes":
        files = _series(root, files)
    listed = read_labels_file(root / LABELS_FILE, spec, files) if (root / LABELS_FILE).exists() else None
    if listed is None:
        check_columns(spec, (), str(root / LABELS_FILE))
    pairs: dict[str, tuple[str, tuple[str, ...]]] = {}
    if spec.task == "segmentation":
        pairs = _pairs(files, spec, suffixes, about)
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
    _check_split_lists(root, samples)
    _check_complete(samples, listed, root)
    return samples, sorted([*others, *about])


def _find(root: Path, suffixes: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the files below `root` with these suffixes, other files in its subfolders, and texts about the data."""
    matching: list[str] = []
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
                matching.append(file)
            elif Path(folder) != root:
                (about if is_about(name) or (".dcm" in suffixes and "." not in name) else others).append(file)
    beside = _values_beside(root, matching)
    return sorted(set(matching) - beside), sorted(set(others) - beside), sorted(about)


def _values_beside(root: Path, files: Sequence[str]) -> set[str]:
    """Return the files that hold the values of headers."""
    headers = [file for file in files if file.lower().endswith(HEADERS)]
    named = ((file, data_file(root / file, file)) for file in headers)
    return {PurePosixPath(file).parent.joinpath(name).as_posix() for file, name in named if name is not None}


def _series(root: Path, files: Sequence[str]) -> list[str]:
    """Return the files, but for DICOM slices their folder, which is one volume."""
    entries: dict[str, None] = {}
    for file in files:
        folder = PurePosixPath(file).parent.as_posix()
        slices = not file.lower().endswith(VOLUMES)
        is_series = folder in entries or (
            slices and folder != "." and is_dicom(root / file) and read_header(root / file, file).frames == 1
        )
        entries[folder if is_series else file] = None
    return list(entries)


def _check_split_lists(root: Path, samples: Sequence[Sample]) -> None:
    """Raise where nothing says the splits but texts beside the folders, such as train.txt and test.txt."""
    if any(sample.split for sample in samples):
        return
    lists: dict[str, str] = {}
    for name in sorted(file.name for file in root.iterdir()):
        stated, _, suffix = name.lower().rpartition(".")
        split = split_of(_SPLIT_LIST.sub("", stated)) if suffix in ("txt", "csv", "tsv", "lst") else None
        if split is not None:
            lists.setdefault(split, name)
    if len(lists) > 1:
        raise SutureError(
            "dataset.unknown_split",
            f"{' and '.join(lists.values())} seem to say the splits, and are not read",
            where=str(root),
            hint=f"write the splits into {LABELS_FILE}, with the columns file, label and split, or into a list of its "
            'own (format = "list"); or move these files elsewhere',
        )


def _pairs(
    files: Sequence[str], spec: DatasetSpec, suffixes: Sequence[str], about: Sequence[str]
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return by the image's file the mask's, and the files of the image's further channels; `about` are texts."""
    images: dict[str, list[str]] = {}
    masks: dict[str, str] = {}
    named = any(_place(file)[1] == _IMAGES for file in files)
    for file in files:
        split, kind, rest = _place(file)
        if kind is None and named:
            raise SutureError(
                "dataset.unlabelled_image",
                f"{file} lies neither in {_IMAGES} nor in {_MASKS}",
                where=str(spec.path),
                hint=f"a segmentation has {_IMAGES} and {_MASKS}, with the same file names in both",
            )
        name = stem(PurePosixPath(file).name, suffixes)
        alone = kind is None and bool(rest) and bool(_MASK_ALONE.fullmatch(name) or _IMAGE_ALONE.fullmatch(name))
        is_mask = kind == _MASKS or bool((_MASK_ALONE.fullmatch if alone else _MASK_NAME.search)(name))
        channel = _CHANNEL.search(name) if "imagestr" in file.lower() or "imagests" in file.lower() else None
        name = name[: channel.start()] if channel else name
        name = "" if alone else _IMAGE_NAME.sub("", _MASK_NAME.sub("", name)) or name
        key = unicodedata.normalize("NFC", "/".join([split or "", *rest, name]))
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
            own = PurePosixPath(ours[lone[0]]).stem
            text = next((file for file in about if PurePosixPath(file).stem == own), None)
            raise SutureError(
                "dataset.missing_mask",
                f"this {kind}" + (f", but a text beside it, {text}" if text else ""),
                where=ours[lone[0]],
                hint="outlines and boxes are no masks: draw them into images of the same name, one value per pixel"
                if text
                else f"each file in {_IMAGES} needs one of the same name in {_MASKS}, and the other way round; a "
                "mask's name may end in _mask or _seg",
            )
    return {own[0]: (masks[key], tuple(own[1:])) for key, own in images.items()}


def _place(file: str) -> tuple[str | None, str | None, list[str]]:
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
        elif split is None and (named := split_of(folder)) is not None:
            split = named
        else:
            rest.append(folder)
    return split, kind, rest


def _twice(file: str, other: str, spec: DatasetSpec) -> SutureError:
    return SutureError(
        "dataset.duplicate",
        f"{file} and {other} differ in their ending alone",
        where=str(spec.path),
        hint="remove one of them, or give them different names",
    )


def _folders(file: str, spec: DatasetSpec) -> tuple[str | None, tuple[str, ...]]:
    """Return the split that one of the file's folders names, the uppermost, and the others."""
    folders = PurePosixPath(file).parts[:-1]
    for place, folder in enumerate(folders):
        if folder not in spec.labels and (named := split_of(folder)) is not None:
            return named, folders[:place] + folders[place + 1 :]
    return None, folders


def _sample(
    file: str, mask: tuple[str, tuple[str, ...]] | None, listed: Mapping[str, Line] | None, spec: DatasetSpec
) -> Sample:
    folder_split, folders = _folders(file, spec)
    if mask is not None:
        folder_split = _place(file)[0]
    folder = folders[0] if folders else None
    where = str(spec.path / LABELS_FILE)
    more = mask[1] if mask else ()
    if listed is None:
        if mask is None and spec.task != "classification":
            raise SutureError(
                "dataset.missing_labels",
                f"there is no {LABELS_FILE}",
                where=str(spec.path),
                hint=f"for {spec.task} it has one line per file, with the columns {','.join(needed_columns(spec))}",
            )
        if mask is None and folder is None:
            raise SutureError(
                "dataset.unlabelled_image",
                f"{file} lies in no class folder",
                where=str(spec.path),
                hint=f"labels are {', '.join(spec.labels)}; put images into a folder per label, or list them in "
                f"{LABELS_FILE}{_list_beside(spec.path)}",
            )
        return Sample(file, mask[0] if mask else folder or "", folder_split, group_of(file, spec), more)
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
    group = line.group or group_of(file, spec)
    return Sample(file, target, line.split or folder_split, group, more, line.cells)


def _check_complete(samples: Sequence[Sample], listed: Mapping[str, Line] | None, root: Path) -> None:
    present = {sample.file for sample in samples}
    absent = next((file for file in listed or () if file not in present), None)
    if absent is not None:
        raise SutureError(
            "dataset.missing_image",
            f"{absent} is listed but there is no such image",
            where=str(root / LABELS_FILE),
            hint="add the image or remove its line; files are relative to the dataset's folder",
        )
    check_splits(samples, str(root))


__all__ = ["list_samples", "stem"]

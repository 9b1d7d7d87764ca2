"""Parties' data become a study: images in folders or `.npz` files, and what is done to make them alike."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_contract.model.metadata import Task
from suture_local.study.alike import by_number, compare_samples, group_of, joined_labels
from suture_local.study.data import IMAGE_SHARES, Study, UndividedSamples, divided, few_tested
from suture_local.study.nets import LARGE, UNet
from suture_local.study.picture_files import Size, read_pictures
from suture_local.study.tables import TableColumns, table_files
from suture_stitching.data import DatasetSpec
from suture_stitching.data.formats import format_of
from suture_stitching.data.spec import LISTS, TABLES
from suture_stitching.data.splits import digests
from suture_stitching.data.words import is_litter, split_of

#: Larger images are made smaller.
LARGEST = 256
MASK_LABELS = ("background", "foreground")


def parties_study(
    name: str, paths: Mapping[str, Path], task: Task, columns: TableColumns | None, *, largest: int = LARGEST
) -> Study:
    """Return a study of the parties' own data: images in folders or lists, all `.npz`, or all tables.

    Images whose longer side has more pixels than `largest` are made smaller. Raises `SutureError` (`study.*`,
    `dataset.*`).
    """
    for path in paths.values():
        if not path.exists():
            raise SutureError("study.files", "there is no such file or folder", where=str(path))
    kinds = {format_of(path) for path in paths.values()}
    if kinds == {"npz"}:
        return image_files(name, task, paths, largest=largest)
    if task == "segmentation" and kinds <= {"image_folder", *LISTS}:
        return masked_images(name, paths, largest)
    if task != "classification":
        raise SutureError(
            "study.task",
            f"these data have no masks: {', '.join(sorted(kinds))}",
            hint="give for each party a folder with images/ and masks/, a list of files with the columns image, mask, "
            "patient_id, or a .npz",
        )
    if kinds == {"image_folder"}:
        return image_folders(name, paths, largest)
    if kinds <= {*TABLES}:
        if columns is None:
            raise SutureError("study.label", "which column has the labels is not named", hint="name it: --label COLUMN")
        return table_files(name, paths, columns)
    raise SutureError(
        "study.files",
        f"the parties' data are of several kinds, or of none that is played: {', '.join(sorted(kinds))}",
        hint="give for each party images in a folder or a list of files, or a table, or a .npz file",
    )


def image_files(
    name: str,
    task: Task,
    files: Mapping[str, Path],
    *,
    masks: str = "masks",
    labels: Sequence[str] | None = None,
    largest: int = LARGEST,
) -> Study:
    """Return a study of images with masks or labels; channels and sizes are made alike, and notes say how."""
    notes: list[str] = []
    arrays = {party: _arrays(path, masks if task == "segmentation" else "labels") for party, path in files.items()}
    images = {party: _channels_first(own[0], files[party]) for party, own in arrays.items()}
    images = _same_channels(_scaled(images, notes), notes)
    truths = {party: own[1] for party, own in arrays.items()}
    if task == "segmentation":
        truths = {
            party: _mask_values(party, _one_mask_each(mask, images[party].shape[2:], files[party]), notes)
            for party, mask in truths.items()
        }
    else:
        truths = {party: _one_label_each(truth, files[party]) for party, truth in truths.items()}
    classes = {party: np.unique(truth).tolist() for party, truth in truths.items()}
    values = sorted({value for own in classes.values() for value in own})
    if task == "segmentation" and values not in (*classes.values(), list(range(len(values)))):
        raise SutureError(
            "study.masks",
            "the parties' masks hold other values: " + "; ".join(f"{party} {own}" for party, own in classes.items()),
            where=name,
            hint="give each class the same number everywhere, 0 for the background",
        )
    if task == "segmentation" and values[0] != 0:
        notes.append(f"No mask has the value 0; {values[0]} is taken for the background.")
    if len(values) < 2:
        raise SutureError("study.one_class", "there is a single class in all parties' data", where=name)
    table = {value: index for index, value in enumerate(values)}
    targets = {party: _looked_up(truth, table) for party, truth in truths.items()}
    named = labels or ([f"label {value}" for value in values] if task == "classification" else _mask_labels(values))
    groups = {party: own[2] for party, own in arrays.items()}
    size = _size(next(iter(images.values())).shape[2:], task, largest)
    return _images_study(name, task, images, targets, groups, named, notes, files, size)


def masked_images(name: str, paths: Mapping[str, Path], largest: int = LARGEST) -> Study:
    """Return a study of images with masks in files of their own: folders, or lists of files, as a site reads them."""
    notes: list[str] = []
    specs = {
        party: [DatasetSpec(path=path, format=format_of(path), task="segmentation", labels=MASK_LABELS)]
        for party, path in paths.items()
    }
    try:
        read, size = read_pictures(specs, partial(_size, task="segmentation", largest=largest), notes)
    except SutureError as error:
        if error.code != "dataset.label_out_of_range":
            raise
        raise SutureError(
            error.code, error.message, where=error.where, hint="masks of several classes are read from .npz files"
        ) from None
    images = _same_channels({party: own.images for party, own in read.items()}, notes)
    targets = {party: own.targets.astype(np.uint8) for party, own in read.items()}
    groups = {party: own.group for party, own in read.items()}
    return _images_study(name, "segmentation", images, targets, groups, MASK_LABELS, notes, paths, size)


def image_folders(name: str, folders: Mapping[str, Path], largest: int = LARGEST) -> Study:
    """Return a study of images in folders, one folder within for each class, as a site reads them."""
    notes: list[str] = []
    classes = {party: _classes(folder) for party, folder in folders.items()}
    labels, indices = joined_labels(classes, folders, notes)

    def specs_of(party: str) -> list[DatasetSpec]:
        # A folder with a single class is read as one of all of them.
        own = classes[party] if len(classes[party]) > 1 else [*classes[party], *(set(labels) - {*classes[party]})]
        return [
            DatasetSpec(path=part, format="image_folder", labels=tuple(own), one_class=True)
            for part in _by_class(folders[party])
        ]

    specs = {party: specs_of(party) for party in folders}
    read, size = read_pictures(specs, partial(_size, task="classification", largest=largest), notes)
    images = _same_channels({party: own.images for party, own in read.items()}, notes)
    targets = {party: indices[party][own.targets] for party, own in read.items()}
    groups = {party: own.group for party, own in read.items()}
    return _images_study(name, "classification", images, targets, groups, labels, notes, folders, size)


def _by_class(folder: Path) -> list[Path]:
    """Return the folders that hold one folder for each class: this one, or those of its splits."""
    within = _within(folder)
    return within if within and all(split_of(path.name) for path in within) else [folder]


def _within(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_litter(path.name))


def _classes(folder: Path) -> list[str]:
    return sorted({path.name for part in _by_class(folder) for path in _within(part)}, key=by_number)


def _images_study(
    name: str,
    task: Task,
    images: Mapping[str, NDArray[Any]],
    targets: Mapping[str, NDArray[Any]],
    groups: Mapping[str, NDArray[Any] | None],
    labels: Sequence[str],
    notes: list[str],
    files: Mapping[str, Path],
    size: Size,
) -> Study:
    """Return a study of images with alike channels, all brought to one size."""
    notes += few_tested(targets, groups, IMAGE_SHARES)
    compare_samples({party: digests(own) for party, own in images.items()}, "images", files, notes)
    samples = {}
    for party, own in images.items():
        if own.shape[2:] != size:
            notes.append(f"{party}: images of {own.shape[2]} x {own.shape[3]} were resized to {size[0]} x {size[1]}.")
            own = _resized(own, size)
        target = targets[party]
        if task == "segmentation" and target.shape[1:] != size:
            target = _resized_masks(target, size)
        samples[party] = UndividedSamples(own, target, groups[party])
    return Study(
        name,
        task,
        tuple(labels),
        tuple(images),
        lambda seed: divided(samples, seed, IMAGE_SHARES),
        augment=min(size) >= LARGE // 2,
        notes=notes,
    )


def _arrays(path: Path, wanted: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in ("images", wanted):
                if name not in file.files:
                    raise SutureError(
                        "study.arrays", f"there is no array '{name}' among {', '.join(file.files)}", where=str(path)
                    )
            images, truth = file["images"], file[wanted]
            group = file[whose] if (whose := group_of(file.files)) is not None else None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise SutureError(
            "study.arrays",
            f"cannot be read: {error}",
            where=str(path),
            hint="write plain arrays with numpy.savez, all images of one size",
        ) from error
    counts = {"images": len(images), wanted: len(truth), **({} if group is None else {"group": len(group)})}
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise SutureError("study.arrays", f"arrays of different length: {lengths}", where=str(path))
    if len(images if group is None else np.unique(group)) < 3:
        raise SutureError("study.too_few", "three samples or groups are needed, one for each split", where=str(path))
    return images, truth, group


def _channels_first(images: NDArray[Any], path: Path) -> NDArray[Any]:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[-1] <= 4 < images.shape[1]:
        images = np.moveaxis(images, -1, 1)
    if images.ndim != 4 or images.shape[1] > 4:
        raise SutureError(
            "study.arrays",
            f"images have the shape {images.shape}",
            where=str(path),
            hint="give (N, H, W), (N, H, W, C) or (N, C, H, W) with at most four channels",
        )
    return images


def _scaled(images: Mapping[str, NDArray[Any]], notes: list[str]) -> dict[str, NDArray[Any]]:
    """Return images as uint8 where they are, else as float32 in 0..1; values that are no numbers become the lowest one.

    Values in 0..1 and in 0..255 are on scales of their own. Others are brought to one, the same for all parties. Raises
    `SutureError` `study.ranges` where some parties have the first and some the others: nobody knows how they compare.
    """
    ends = {party: _ends(party, own, notes) for party, own in images.items() if own.dtype != np.uint8}
    others = {party: own for party, own in ends.items() if own[0] < 0 or own[1] > 255}
    if others and len(others) < len(images):
        shown = {party: f"{low:g} to {high:g}" for party, (low, high) in ends.items()}
        raise SutureError(
            "study.ranges",
            "the parties' images have values on several scales: "
            + "; ".join(f"{party} {shown.get(party, '8 bits')}" for party in images),
            hint="bring them to one range beforehand",
        )
    scales = {party: (0.0, 1.0 if high <= 1 else 255.0) for party, (_, high) in ends.items()}
    if others:
        low, high = min(low for low, _ in others.values()), max(high for _, high in others.values())
        notes.append(f"Values of the images from {low:g} to {high:g} were brought to 0 to 1, the same for all parties.")
        scales = dict.fromkeys(others, (low, high))
    scaled = dict(images)
    for party, (low, high) in scales.items():
        values = np.nan_to_num(images[party].astype(np.float32), nan=low, posinf=low, neginf=low)
        scaled[party] = values if (low, high) == (0.0, 1.0) else (values - low) / max(high - low, 1e-6)
    return scaled


def _ends(party: str, images: NDArray[Any], notes: list[str]) -> tuple[float, float]:
    """Return the lowest and the highest finite value."""
    finite = np.isfinite(images)
    if count := int(finite.size - np.count_nonzero(finite)):
        notes.append(f"{party}: {count} values of the images are no numbers; the lowest one was put there.")
    return float(images.min(where=finite, initial=np.inf)), float(images.max(where=finite, initial=-np.inf))


def _same_channels(images: dict[str, NDArray[Any]], notes: list[str]) -> dict[str, NDArray[Any]]:
    colour = any(own.shape[1] >= 3 for own in images.values())
    alike = {}
    for party, own in images.items():
        if own.shape[1] == 4:
            notes.append(f"{party}: the fourth channel of the images was left out.")
            own = own[:, :3]
        elif colour and own.shape[1] == 1:
            notes.append(f"{party}: grey images were repeated in three channels.")
            own = np.repeat(own, 3, axis=1)
        elif own.shape[1] == 2:
            notes.append(f"{party}: the second channel of the images was left out.")
            own = own[:, :1] if not colour else np.repeat(own[:, :1], 3, axis=1)
        alike[party] = own
    if len({own.dtype for own in alike.values()}) > 1:
        alike = {party: own.astype(np.float32) / 255 if own.dtype == np.uint8 else own for party, own in alike.items()}
    return alike


def _one_label_each(labels: NDArray[Any], path: Path) -> NDArray[Any]:
    if labels.size != len(labels):
        raise SutureError(
            "study.arrays", f"labels have the shape {labels.shape}", where=str(path), hint="give one label (N,) each"
        )
    return labels.reshape(-1)


def _one_mask_each(masks: NDArray[Any], sizes: Sequence[int], path: Path) -> NDArray[Any]:
    """Return masks `(N, H, W)` from what may have a channel axis, whose channels are then all the same."""
    if masks.ndim == 4:
        first = masks if masks.shape[1] <= 4 < masks.shape[-1] else np.moveaxis(masks, -1, 1)
        if all(np.array_equal(first[:, 0], first[:, channel]) for channel in range(1, first.shape[1])):
            masks = first[:, 0]
    if masks.ndim != 3 or masks.shape[1:] != tuple(sizes):
        raise SutureError(
            "study.arrays",
            f"masks have the shape {masks.shape}, the images are of {sizes[0]} x {sizes[1]}",
            where=str(path),
            hint="give masks (N, H, W) that hold a class for every position",
        )
    return masks


def _mask_values(party: str, masks: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    values = np.unique(masks)
    if masks.dtype.kind == "f" and not np.array_equal(values, np.round(values)):
        notes.append(f"{party}: masks of fractions were cut at half of their largest value.")
        return (masks > 0.5 * float(values[-1])).astype(np.int64)
    top = float(values[-1])
    # Many values, or a few close to nothing and to the largest: greys that compression or resizing left behind.
    if len(values) > 32 or (len(values) > 2 and np.minimum(values, top - values).max() <= 0.1 * top):
        notes.append(f"{party}: masks of {len(values)} grey values were cut at half of the largest.")
        return (masks > 0.5 * top).astype(np.int64)
    if len(values) == 2 and values[0] == 0 and values[1] != 1:
        notes.append(f"{party}: masks of 0 and {int(values[1])} were read as 0 and 1.")
        return (masks > 0).astype(np.int64)
    return masks.astype(np.int64)


def _mask_labels(values: Sequence[Any]) -> list[str]:
    return [*MASK_LABELS] if len(values) == 2 else ["background", *(f"class {v}" for v in values[1:])]


def _looked_up(truth: NDArray[Any], table: Mapping[Any, int]) -> NDArray[Any]:
    indices = np.zeros(truth.shape, dtype=np.uint8 if truth.ndim > 1 else np.int64)
    for value, index in table.items():
        indices[truth == value] = index
    return indices


def _size(first: Sequence[int], task: Task, largest: int) -> Size:
    """Return the first party's size, at most `largest`; for segmentation a multiple of what a U-Net halves."""
    shrink = min(1.0, largest / max(first))
    multiple = UNet.MULTIPLE if task == "segmentation" else 1
    height, width = (max(multiple, round(side * shrink / multiple) * multiple) for side in first)
    return height, width


def _resized(images: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    parts = []
    for start in range(0, len(images), 64):
        x = torch.from_numpy(np.ascontiguousarray(images[start : start + 64])).float()
        y = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False).numpy()
        parts.append(y.round().clip(0, 255).astype(np.uint8) if images.dtype == np.uint8 else y)
    return np.concatenate(parts)


def _resized_masks(masks: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    x = torch.from_numpy(np.ascontiguousarray(masks)).float()[:, None]
    resized: NDArray[Any] = F.interpolate(x, size, mode="nearest-exact")[:, 0].numpy().astype(masks.dtype)
    return resized

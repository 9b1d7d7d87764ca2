"""Parties' files become a study: arrays in `.npz`, tables in `.csv`, and what is done to make them alike."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_contract.model.metadata import Task
from suture_local.study.data import IMAGE_SHARES, Study, UndividedSamples, divided, tables_study
from suture_local.study.nets import LARGE, UNet
from suture_stitching.data import SPLITS, DatasetSpec, open_dataset

#: Larger images are made smaller.
LARGEST = 256


@dataclass(frozen=True)
class TableColumns:
    """What a table's columns are: labels, categories, what is left out, and where 0 is a gap.

    Columns with text are categories anyway.
    """

    label: str
    categories: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    zero_is_missing: tuple[str, ...] = ()


def parties_study(name: str, paths: Mapping[str, Path], task: Task, columns: TableColumns | None) -> Study:
    """Return a study of the parties' own data: all folders of images by class, all `.npz`, or all `.csv`.

    Raises `SutureError` (`study.*`, `dataset.*`).
    """
    kinds = {"folder" if path.is_dir() else path.suffix.lower() for path in paths.values()}
    for path in paths.values():
        if not path.exists():
            raise SutureError("study.files", "there is no such file or folder", where=str(path))
    if kinds == {".npz"}:
        return image_files(name, task, paths)
    if task != "classification":
        raise SutureError("study.task", "masks are read from .npz files", hint="give every party's data as .npz")
    if kinds == {"folder"}:
        return image_folders(name, paths)
    if kinds == {".csv"}:
        if columns is None:
            raise SutureError("study.label", "which column has the labels is not named", hint="name it: --label COLUMN")
        return table_files(name, paths, columns)
    raise SutureError(
        "study.files",
        f"the parties' data are of several kinds, or of none that is read: {', '.join(sorted(kinds))}",
        hint="give a folder of images by class for each party, or a .csv file, or a .npz file",
    )


def table_files(
    name: str,
    files: Mapping[str, Path],
    means: TableColumns,
) -> Study:
    """Return a study of tables with a header; columns with text are categories, `group` keeps rows together."""
    label, categories = means.label, means.categories
    rows = {party: _rows(path) for party, path in files.items()}
    for party, own in rows.items():
        if not own or label not in own[0]:
            raise SutureError("study.label", f"there is no column '{label}', or no row", where=str(files[party]))
        rows[party] = [row for row in own if row[label] != ""]
    shared = [column for column in next(iter(rows.values()))[0] if all(column in own[0] for own in rows.values())]
    columns = [column for column in shared if column not in (label, "group", *means.ignored)]
    notes = []
    if left := sorted({column for own in rows.values() for column in own[0]} - set(shared)):
        notes.append(f"Columns that not every party has were left out: {', '.join(left)}.")
    features: dict[str, list[NDArray[np.float32]]] = {party: [] for party in files}
    channels: list[str] = []
    kinds: list[bool] = []
    for column in columns:
        values = {party: [row[column] for row in own] for party, own in rows.items()}
        seen = sorted({value for own in values.values() for value in own} - {""})
        as_category = column in categories or not all(_is_number(value) for value in seen)
        if as_category and column not in categories and len(seen) > 20:
            notes.append(f"Column '{column}' has text with {len(seen)} values and was left out.")
            continue
        channels += [f"{column}={value}" for value in seen] if as_category else [column]
        kinds += [not as_category] * (len(seen) if as_category else 1)
        for party, cells in values.items():
            if as_category:
                features[party].append(_one_hot(cells, seen))
            else:
                features[party].append(_numbers(cells, column in means.zero_is_missing)[:, None])
    labels = sorted({row[label] for own in rows.values() for row in own}, key=_by_number)
    tables = {
        party: (
            np.concatenate(features[party], axis=1),
            np.array([labels.index(row[label]) for row in own], dtype=np.int64),
            np.array([row["group"] for row in own]) if "group" in own[0] else None,
        )
        for party, own in rows.items()
    }
    notes.append("Numbers were brought to mean 0 and deviation 1 by each party's own training samples.")
    return tables_study(name, tables, labels, channels, np.array(kinds), notes)


def image_files(
    name: str,
    task: Task,
    files: Mapping[str, Path],
    *,
    masks: str = "masks",
    labels: Sequence[str] | None = None,
) -> Study:
    """Return a study of images with masks or labels; channels and sizes are made alike, and notes say how."""
    notes: list[str] = []
    arrays = {party: _arrays(path, masks if task == "segmentation" else "labels") for party, path in files.items()}
    images = {party: _scaled(_channels_first(own[0], files[party])) for party, own in arrays.items()}
    images = _same_channels(images, notes)
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
    return _images_study(name, task, images, targets, groups, named, notes)


def image_folders(name: str, folders: Mapping[str, Path]) -> Study:
    """Return a study of images in folders, one folder within for each class, as a site reads them."""
    notes: list[str] = []
    classes = {
        party: sorted(path.name for path in folder.iterdir() if path.is_dir()) for party, folder in folders.items()
    }
    labels = sorted({label for own in classes.values() for label in own}, key=_by_number)
    if len(labels) < 2:
        raise SutureError(
            "study.one_class", "the folders hold fewer than two classes", hint="put images into a folder per class"
        )
    images: dict[str, NDArray[Any]] = {}
    targets: dict[str, NDArray[Any]] = {}
    for party, folder in folders.items():
        own = classes[party] if len(classes[party]) > 1 else labels
        images[party], indices = _folder_arrays(folder, own)
        targets[party] = np.array([labels.index(own[index]) for index in indices], dtype=np.int64)
    images = _same_channels(images, notes)
    return _images_study(name, "classification", images, targets, dict.fromkeys(folders), labels, notes)


def _folder_arrays(folder: Path, labels: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return images `(N, C, H, W)` in 0..1 and label indices `(N,)`."""
    spec = DatasetSpec(path=folder, format="image_folder", labels=tuple(labels), one_class=True)
    dataset = open_dataset(spec)
    batches = [batch for split in SPLITS if dataset.n(split) for batch in dataset.batches(split, 64)]
    return torch.cat([x for x, _ in batches]).numpy(), torch.cat([y for _, y in batches]).numpy()


def _images_study(
    name: str,
    task: Task,
    images: Mapping[str, NDArray[Any]],
    targets: Mapping[str, NDArray[Any]],
    groups: Mapping[str, NDArray[Any] | None],
    labels: Sequence[str],
    notes: list[str],
) -> Study:
    """Return a study of images with alike channels, all brought to the first party's size."""
    size = _size(next(iter(images.values())).shape[2:], task)
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


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: (value or "").strip() for key, value in row.items() if key} for row in csv.DictReader(file)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _by_number(text: str) -> tuple[float, str]:
    return (float(text) if _is_number(text) else float("inf"), text)


def _numbers(values: Sequence[str], zero_is_missing: bool) -> NDArray[np.float32]:
    numbers = np.array([float(value) if value else np.nan for value in values], dtype=np.float32)
    numbers[~np.isfinite(numbers)] = np.nan
    return np.where(numbers == 0, np.nan, numbers).astype(np.float32) if zero_is_missing else numbers


def _one_hot(values: Sequence[str], seen: Sequence[str]) -> NDArray[np.float32]:
    return np.array([[float(value == category) for category in seen] for value in values], dtype=np.float32)


def _arrays(path: Path, wanted: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in ("images", wanted):
                if name not in file.files:
                    raise SutureError(
                        "study.arrays", f"there is no array '{name}' among {', '.join(file.files)}", where=str(path)
                    )
            images, truth = file["images"], file[wanted]
            group = file["group"] if "group" in file.files else None
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


def _scaled(images: NDArray[Any]) -> NDArray[Any]:
    """Return images as uint8 where they are, else as float32 in 0..1."""
    if images.dtype == np.uint8:
        return images
    values = np.nan_to_num(images.astype(np.float32))
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return values
    if low >= 0 and high <= 255:
        return values / 255
    return (values - low) / max(high - low, 1e-6)


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
    return ["background", "foreground"] if len(values) == 2 else ["background", *(f"class {v}" for v in values[1:])]


def _looked_up(truth: NDArray[Any], table: Mapping[Any, int]) -> NDArray[Any]:
    indices = np.zeros(truth.shape, dtype=np.uint8 if truth.ndim > 1 else np.int64)
    for value, index in table.items():
        indices[truth == value] = index
    return indices


def _size(first: Sequence[int], task: Task) -> tuple[int, int]:
    """Return the first party's size, at most `LARGEST`; for segmentation a multiple of what a U-Net halves."""
    shrink = min(1.0, LARGEST / max(first))
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

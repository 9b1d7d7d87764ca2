"""Readers of a site's datasets: images, volumes and signals in folders or lists, arrays, and tables.

    spec = DatasetSpec(path="scans", format="image_folder", labels=("normal", "pneumonia"))
    dataset = open_dataset(spec)
    for inputs, targets in dataset.batches("train", 64, seed=0):
        ...

Errors name files, columns and positions, never a value: it may belong to a patient.
"""

from __future__ import annotations

from importlib.util import find_spec

from suture_contract.errors import SutureError
from suture_contract.extras import how_to_install
from suture_stitching.data.arrays import ArrayDataset
from suture_stitching.data.dataset import Dataset
from suture_stitching.data.expected import check_expected
from suture_stitching.data.spec import FOLDERS, SPLITS, Columns, DatasetSpec, Split, SplitRule


def open_dataset(spec: DatasetSpec) -> Dataset:
    """Open what `spec` describes and check it; raises `SutureError` (`dataset.*`) saying what is wrong and where."""
    where = str(spec.path)
    if not spec.path.exists():
        raise SutureError(
            "dataset.missing_path",
            "there is nothing at this path",
            where=where,
            hint="check the dataset's path and that its volume is mounted",
        )
    if spec.path.is_dir() != (spec.format in FOLDERS):
        kind = "a folder" if spec.path.is_dir() else "a file"
        raise SutureError(
            "dataset.wrong_format",
            f"this is {kind}, but the format is {spec.format}",
            where=where,
            hint=f"{', '.join(FOLDERS)} are folders; all other formats are files",
        )
    try:
        dataset = _open(spec, where)
    except PermissionError:
        raise SutureError(
            "dataset.not_readable",
            "the site may not read this",
            where=where,
            hint="give the account that runs the site's worker read access",
        ) from None
    check_expected(dataset, spec)
    return dataset


def _open(spec: DatasetSpec, where: str) -> Dataset:
    if spec.holds == "images":
        from suture_stitching.data.image_folder import ImageFolder

        return ImageFolder(spec)
    if spec.holds == "volumes":
        if not (find_spec("nibabel") and find_spec("monai")):
            raise SutureError(
                "dataset.missing_package",
                "volumes need nibabel and MONAI",
                where=where,
                hint=how_to_install("imaging"),
            )
        from suture_stitching.data.volumes import VolumeFolder

        return VolumeFolder(spec)
    if spec.holds == "signals":
        from suture_stitching.data.signal_folder import SignalFolder

        return SignalFolder(spec)
    if spec.holds == "arrays":
        from suture_stitching.data.array_files import open_arrays

        return open_arrays(spec)
    from suture_stitching.data.table import open_table

    return open_table(spec)


__all__ = ["SPLITS", "ArrayDataset", "Columns", "Dataset", "DatasetSpec", "Split", "SplitRule", "open_dataset"]

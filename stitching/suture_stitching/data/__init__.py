"""Readers of a site's datasets: folders of images or volumes, `.npz` files and tables.

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
            hint="image_folder and nifti are folders; npz, csv and parquet are files",
        )
    try:
        if spec.format == "image_folder":
            from suture_stitching.data.image_folder import ImageFolder

            return ImageFolder(spec)
        if spec.format == "nifti":
            if not (find_spec("nibabel") and find_spec("monai")):
                raise SutureError(
                    "dataset.missing_package",
                    "volumes need nibabel and MONAI",
                    where=where,
                    hint=how_to_install("imaging"),
                )
            from suture_stitching.data.volumes import VolumeFolder

            return VolumeFolder(spec)
        if spec.format == "npz":
            from suture_stitching.data.npz import open_npz

            return open_npz(spec)
        from suture_stitching.data.table import open_table

        return open_table(spec)
    except PermissionError:
        raise SutureError(
            "dataset.not_readable",
            "the site may not read this",
            where=where,
            hint="give the account that runs the site's worker read access",
        ) from None


__all__ = ["SPLITS", "ArrayDataset", "Columns", "Dataset", "DatasetSpec", "Split", "SplitRule", "open_dataset"]

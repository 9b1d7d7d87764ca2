"""What a site says about a dataset: where it is, how it is stored and what its labels mean (torch-free)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from suture_contract.model.metadata import InputSpec, Label, Task
from suture_contract.naming import did_you_mean, spelt
from suture_contract.strict import StrictNumbers

Format = Literal[
    "image_folder",
    "nifti",
    "signal_folder",
    "list",
    "datalist",
    "npz",
    "hdf5",
    "csv",
    "parquet",
    "excel",
    "statistics",
]
Split = Literal["train", "validation", "test"]
#: `train` is what a fit learns from; candidates are chosen on `validation` and reported on `test`.
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
#: Formats that are a folder with one file per sample, or a file that names them; the others hold the samples.
FOLDERS: tuple[Format, ...] = ("image_folder", "nifti", "signal_folder")
LISTS: tuple[Format, ...] = ("list", "datalist")
#: How files end that hold a volume; DICOM's endings do not say.
VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
#: How pictures end.
PICTURES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".gif"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".pbm", ".pgm", ".ppm", ".pnm"),
)
TABLES: tuple[Format, ...] = ("csv", "parquet", "excel", "statistics")
ARRAYS: tuple[Format, ...] = ("npz", "hdf5")


#: Height and width in pixels.
Size: TypeAlias = Annotated[tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(min_length=2, max_length=2)]


#: What a subgroup's samples have in a column; or where a column of numbers is divided.
Texts: TypeAlias = Annotated[tuple[Label, ...], Field(min_length=1, max_length=20)]
Bounds: TypeAlias = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=1, max_length=19)
]


class _Closed(StrictNumbers, BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitRule(_Closed):
    """How samples are divided where the data do not say: shares of each class, the rest is `train`."""

    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test: Annotated[float, Field(gt=0, lt=1)] = 0.3
    seed: int = 0

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> SplitRule:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must be less than 1; the rest is the training split")
        return self


class Columns(_Closed):
    """Names of a table's columns, of the arrays in an `.npz` file, or of the columns of a folder's `labels.csv`.

    Without names: `label` (tables), `labels` or, for segmentation, `masks` (npz), `split` where there is one, `images`,
    `group` in an `.npz` file or `labels.csv` where there is one, and for a table every other column is a feature. The
    order of `features` is the order in which the models read them. Samples of one `group`, a patient say, are kept in
    one split.
    """

    label: Label | None = None
    split: Label | None = None
    group: Label | None = None
    features: Annotated[tuple[Label, ...], Field(min_length=1)] | None = None
    images: Label = "images"


class DatasetSpec(_Closed):
    """One `[datasets.<name>]` of a site.

    `labels` are the class names in the order of their index, for all tasks but regression, as the data have them;
    `aliases` says what the models call those that are written otherwise there; `mask_values` are the values
    that stand for them in the masks of a folder, by default 0, 1, 2 and so on. `value_range` is the range that images
    have when delivered, and by default (0, 1) for unsigned integers: these are scaled onto it from their type's full
    range; other numbers are delivered as they are and must lie within it. `channels` turns colour images into grey (1)
    or grey ones into colour (3). `missing` says what a table's empty cells become: an error, or the column's mean over
    the training split.

    For folders: `group` is a regular expression whose first group finds, in a file's path, the patient that it belongs
    to; `on_unreadable` says whether files that cannot be read are an error or left out; `workers` is how many threads
    read ahead.

    `input` is what the models read, as their `suture.json` says it: data that contradict it are refused. `intensity`
    are the stored values that are mapped onto `value_range`; what lies beyond is clipped. `axes` names those of an
    array or signal: N samples, C channels, and D, H, W or T. Images of several sizes are brought to one by `resize` (to
    height and width, or, one number, the shorter side to that), then `pad` and `crop` around their middle; `page` is
    the one to read of files with several. `categories` are a column's texts in the order of their numbers. Of
    `multilabel` data, `uncertain` says what -1 stands for, and `blank` what an empty cell does. A `list` or `datalist`
    names files below `root`, by default its own folder. `empty` are, by column, numbers that
    stand for no value. `sheet` is that of an Excel file with several. `subgroups` are
    measured on their own: a column's texts, or numbers to divide it at, of a table, of arrays with a value per sample,
    of a list, or of a folder's `labels.csv`. `one_class` says that all training samples of a `classification` may have
    one label: without it that is taken for a mistake.

    For volumes (`nifti`, or files of a list with a `window`): they are resampled to `spacing` in mm (default: as
    stored) and read in patches of `window` voxels; `intensity` is by default each volume's 0.5th and 99.5th percentile;
    `missing = "lowest"` makes NaN the volume's lowest value; `patches` are how many patches of each a pass reads.
    """

    path: Path
    format: Format
    task: Task = "classification"
    labels: tuple[Label, ...] = ()
    aliases: dict[Label, Label] = {}
    split: SplitRule = SplitRule()
    columns: Columns = Columns()
    value_range: tuple[float, float] | None = None
    channels: Literal[1, 3] | None = None
    missing: Literal["error", "mean", "lowest"] = "error"
    categories: dict[Label, tuple[Label, ...]] = {}
    empty: dict[Label, tuple[Annotated[float, Field(allow_inf_nan=False)], ...]] = {}
    uncertain: Literal["error", "negative", "positive"] = "error"
    blank: Literal["error", "negative"] = "error"
    sheet: Label | None = None
    subgroups: dict[Label, Texts | Bounds] = {}
    one_class: bool = False
    input: InputSpec | None = None
    axes: Annotated[str, Field(pattern=r"^N?[CDHWT]{1,4}$")] | None = None
    resize: Annotated[int, Field(ge=1, le=8192)] | Size | None = None
    pad: Size | None = None
    crop: Size | None = None
    page: Annotated[int, Field(ge=0)] | None = None
    root: Path | None = None
    mask_values: tuple[int, ...] | None = None
    group: Annotated[str, Field(max_length=200)] | None = None
    on_unreadable: Literal["error", "skip"] = "error"
    workers: Annotated[int, Field(ge=0, le=64)] | None = None
    window: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=3, max_length=3)] | None = None
    spacing: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=3, max_length=3)] | None = None
    intensity: tuple[float, float] | None = None
    patches: Annotated[int, Field(ge=1, le=64)] = 4

    @model_validator(mode="before")
    @classmethod
    def _reads_as_the_models_do(cls, fields: Any) -> Any:
        """Take the range and the size of volumes from `input` where nothing else is said."""
        reads = fields.get("input") if isinstance(fields, Mapping) else None
        try:
            reads = None if reads is None else InputSpec.model_validate(reads)
        except ValueError:
            return fields  # said by the field itself
        if reads is None or reads.format == "table" or fields.get("format") in TABLES:
            return fields
        whole = {"value_range": reads.value_range} | dict(fields)
        if len(reads.spatial_shape) == 3 and all(reads.spatial_shape) and fields.get("format") in ("nifti", *LISTS):
            return {"window": reads.spatial_shape} | whole
        return whole

    @property
    def places(self) -> list[Path]:
        """What must be readable: the path, and where the files of a list lie."""
        return [self.path, self.files] if self.format in LISTS else [self.path]

    @property
    def files(self) -> Path:
        """The folder that the samples' files lie in."""
        return (self.root or self.path.parent) if self.format in LISTS else self.path

    @property
    def holds(self) -> Literal["images", "volumes", "signals", "arrays", "table"]:
        """What the dataset is made of."""
        if self.format in TABLES:
            return "table"
        if self.format in ARRAYS:
            return "arrays"
        if self.format == "signal_folder":
            return "signals"
        if self.format == "nifti" or (self.format in LISTS and self.window is not None):
            return "volumes"
        signals = self.input is not None and self.input.format != "table" and len(self.input.spatial_shape) == 1
        return "signals" if self.format in LISTS and signals else "images"

    @property
    def subgroup_values(self) -> dict[str, tuple[str, ...]]:
        """What the subgroups of each column are called: the texts that are named, or the numbers they lie between."""
        return {column: _called(listed) for column, listed in self.subgroups.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The labels as models call them."""
        return tuple(self.aliases.get(label, label) for label in self.labels)

    @model_validator(mode="after")
    def _says_what_the_task_needs(self) -> DatasetSpec:
        if self.task == "regression":
            if self.labels:
                raise ValueError("labels: a regression has none")
        elif len(self.labels) < (least := 1 if self.task == "multilabel" else 2):
            classes = "one class" if least == 1 else "two classes"
            raise ValueError(f"labels: {self.task} needs the names of {classes} or more, in the order of their index")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: each label may occur once")
        for label in self.aliases:
            if label not in self.labels:
                raise ValueError(f"aliases: there is no label {spelt(label)}; {did_you_mean(label, self.labels)}")
        if len(set(self.names)) != len(self.names):
            raise ValueError("aliases: two labels would have one name")
        if self.holds == "table" and self.task == "segmentation":
            raise ValueError("format: a table holds no segmentation; use npz or a folder")
        for name in ("value_range", "intensity"):
            bounds = getattr(self, name)
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError(f"{name}: the first number must be the smaller one")
        return self

    @model_validator(mode="after")
    def _says_what_the_format_needs(self) -> DatasetSpec:
        of_files = ("group", "on_unreadable", "workers", "mask_values")
        of_volumes = ("window", "spacing", "patches")
        of_images = ("channels", "resize", "pad", "crop", "page")
        allowed = {
            **dict.fromkeys(of_images, (self.holds == "images", "images")),
            **dict.fromkeys(of_files, (self.format in (*FOLDERS, *LISTS), "a folder or a list of files")),
            **dict.fromkeys(of_volumes, (self.holds == "volumes", "volumes")),
            "intensity": (self.holds != "table", "images, volumes and arrays"),
            "axes": (self.holds in ("arrays", "signals"), "arrays and signals"),
            "categories": (self.holds == "table", "tables"),
            "empty": (self.holds in ("table", "arrays"), "tables and arrays"),
            "sheet": (self.format in ("excel", "list"), "Excel files"),
            "root": (self.format in LISTS, "lists of files"),
            "uncertain": (self.task == "multilabel", "multilabel data"),
            "blank": (self.task == "multilabel", "multilabel data"),
            "one_class": (self.task == "classification", "a classification"),
        }
        for name, (fits, kind) in allowed.items():
            if not fits and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: only for {kind}")
        for column, listed in self.subgroups.items():
            if len(set(listed)) != len(listed):
                raise ValueError(f"subgroups: '{column}' names a value twice")
            numbers = [value for value in listed if not isinstance(value, str)]
            if numbers != sorted(numbers):
                raise ValueError(f"subgroups: the numbers of '{column}' must rise")
        if self.missing == "mean" and self.holds != "table":
            raise ValueError('missing: "mean" is for tables')
        if self.missing == "lowest" and self.holds != "volumes":
            raise ValueError('missing: "lowest" is for volumes')
        if self.format == "nifti" and self.window is None:
            raise ValueError("window: volumes need one, the three sizes in voxels that the models read")
        if self.mask_values is not None and (
            self.task != "segmentation" or not len(set(self.mask_values)) == len(self.mask_values) == len(self.labels)
        ):
            raise ValueError("mask_values: a segmentation has one value per label, all different")
        if self.group is not None:
            try:
                pattern = re.compile(self.group)
            except re.error as error:
                raise ValueError(f"group: not a regular expression: {error}") from None
            if pattern.groups != 1:
                raise ValueError("group: the expression needs one group in parentheses, the one that names the patient")
        return self


def _called(listed: tuple[str, ...] | tuple[float, ...]) -> tuple[str, ...]:
    if isinstance(listed[0], str):
        return tuple(map(str, listed))
    bounds = [f"{bound:g}" for bound in listed]
    between = [f"{low} to below {high}" for low, high in pairwise(bounds)]
    return (f"below {bounds[0]}", *between, f"{bounds[-1]} or more")

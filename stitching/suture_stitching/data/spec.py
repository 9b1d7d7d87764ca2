"""What a site says about a dataset: where it is, how it is stored and what its labels mean (torch-free)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from suture_stitching.portable.metadata import Label, Task

Format = Literal["image_folder", "npz", "csv", "parquet"]
Split = Literal["train", "validation", "test"]
#: `train` is what a fit learns from; candidates are chosen on `validation` and reported on `test`.
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class _Closed(BaseModel):
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
    """Names of a table's columns, or of the arrays in an `.npz` file.

    Without names: `label` (tables) or `labels` (npz), `split` where there is one, `images`, and for a table every other
    column is a feature. The order of `features` is the order in which the models read them.
    """

    label: Label | None = None
    split: Label | None = None
    features: Annotated[tuple[Label, ...], Field(min_length=1)] | None = None
    images: Label = "images"


class DatasetSpec(_Closed):
    """One `[datasets.<name>]` of a site.

    `labels` are the class names in the order of their index, for classification and segmentation. `value_range` is the
    range that images have when delivered, and by default (0, 1) for unsigned integers: these are scaled onto it from
    their type's full range; other numbers are delivered as they are and must lie within it. `channels` turns colour
    images into grey (1) or grey ones into colour (3). `missing` says what a table's empty cells become: an error, or
    the column's mean over the training split.
    """

    path: Path
    format: Format
    task: Task = "classification"
    labels: tuple[Label, ...] = ()
    split: SplitRule = SplitRule()
    columns: Columns = Columns()
    value_range: tuple[float, float] | None = None
    channels: Literal[1, 3] | None = None
    missing: Literal["error", "mean"] = "error"

    @model_validator(mode="after")
    def _says_what_the_task_needs(self) -> DatasetSpec:
        if self.task == "regression":
            if self.labels:
                raise ValueError("labels: a regression has none")
        elif len(self.labels) < 2:
            raise ValueError(f"labels: {self.task} needs the names of two classes or more, in the order of their index")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: each label may occur once")
        if self.format == "image_folder" and self.task != "classification":
            raise ValueError(f"format: a folder of images by class is for classification; use npz for {self.task}")
        if self.format in ("csv", "parquet") and self.task == "segmentation":
            raise ValueError("format: a table holds no segmentation; use npz")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError("value_range: the first number must be the smaller one")
        if self.channels is not None and self.format != "image_folder":
            raise ValueError("channels: only for a folder of images")
        return self

"""`suture.json`: what a model is, in words a machine can check.

Field names follow the MONAI bundle's metadata where it has them (`num_channels`, `spatial_shape`, `value_range`,
`channel_def`, `intended_use`, `eval_metrics`, ...). The schema is closed: an unknown field is refused, so that a typo
never passes silently. Fields are only ever added to a version, and as optional ones: what it once described stays
readable.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_serializer,
    model_validator,
)

from suture_contract.errors import SutureError
from suture_contract.files import decoded
from suture_contract.naming import problems_of
from suture_contract.privacy import Privacy
from suture_contract.unseen import legible, legible_lines

SCHEMA: Literal["suture.model/1"] = "suture.model/1"
MAX_BYTES = 256 * 1024
#: By so much the shares of `label_prior` may miss 1: people round them.
PRIOR_TOLERANCE = 0.01

Text = Annotated[str, StringConstraints(max_length=4000), AfterValidator(legible_lines)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(legible)]
Doi = Annotated[str, StringConstraints(pattern=r"^10\.[0-9]{4,9}/[!-~]{1,200}$")]
Task = Literal["classification", "multilabel", "segmentation", "regression"]
TrainedOn = Literal["train", "all"]
InputFormat = Literal["image", "table", "signal", "sequence"]
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")


def check_name(name: str) -> str:
    """Return `name` if it may name a party, site or model; raise `ValueError` saying the rule otherwise."""
    if not _PART.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        raise ValueError(
            "a name has 1 to 96 ASCII letters, digits, '_', '-' or '.', starts and ends with a letter, digit or '_', "
            "and holds no '--' or '..' and no '.git' at its end"
        )
    return name


def check_repo(repo: str) -> str:
    """Return `repo` if it reads `party/name`; raise `ValueError` saying the rule otherwise."""
    party, slash, name = repo.partition("/")
    if not slash:
        raise ValueError("a model is named party/name")
    check_name(party)
    check_name(name)
    return repo


Name = Annotated[str, AfterValidator(check_name)]
#: `party/name`; the same rule for names as the Hugging Face Hub's.
Repo = Annotated[str, AfterValidator(check_repo)]
Revision = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _names_in_order(channels: Any) -> Any:
    """Return the names in `{"0": name, "1": name}` as a list; anything else as it is."""
    if not isinstance(channels, Mapping):
        return channels
    try:
        return [channels[str(index)] for index in range(len(channels))]
    except KeyError:
        raise ValueError('the channels are named {"0": ..., "1": ...}, without a gap') from None


class Normalisation(_Closed):
    """Per-channel `(x - mean) / std`, applied by the caller before the model; one number per channel.

    It is all the preprocessing there is: what a composed model can do by itself to what it is given.
    """

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


class InputSpec(_Closed):
    """One input tensor, without its batch dimension: `(num_channels, *spatial_shape)` or `(num_channels,)` for tables.

    `spatial_shape` holds null where any size is accepted. Values lie in `value_range` before `preprocessing`; `spacing`
    is in millimetres, one number per axis. `modality` is a DICOM code (0008,0060) such as `CT` where there is one.
    """

    format: InputFormat = "image"
    modality: Text | None = None
    num_channels: Annotated[int, Field(ge=1, le=1_000_000)]
    spatial_shape: Annotated[tuple[Annotated[int, Field(ge=1, le=1_000_000)] | None, ...], Field(max_length=3)] = ()
    dtype: Literal["float32", "float16", "bfloat16", "float64", "int64"] = "float32"
    value_range: tuple[float, float] | None = None
    spacing: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    preprocessing: Normalisation | None = None
    #: Names of the channels in order; in the document `channel_def`, `{"0": name, ...}`, or a list named `channels`.
    channels: Annotated[tuple[Label, ...] | None, BeforeValidator(_names_in_order)] = Field(
        default=None, validation_alias=AliasChoices("channel_def", "channels"), serialization_alias="channel_def"
    )

    @field_serializer("channels", when_used="json-unless-none")
    def _numbered(self, channels: tuple[str, ...]) -> dict[str, str]:
        return {str(index): name for index, name in enumerate(channels)}

    @model_validator(mode="after")
    def _one_entry_per_channel_and_axis(self) -> InputSpec:
        scale = self.preprocessing
        entries: dict[str, tuple[Sequence[object] | None, int, str]] = {
            "preprocessing.mean": (scale.mean if scale else None, self.num_channels, "channel"),
            "preprocessing.std": (scale.std if scale else None, self.num_channels, "channel"),
            "channel_def": (self.channels, self.num_channels, "channel"),
            "spacing": (self.spacing, len(self.spatial_shape), "axis of spatial_shape"),
        }
        for name, (values, wanted, per) in entries.items():
            if values is not None and len(values) != wanted:
                raise ValueError(f"{name}: one entry per {per} is needed, {wanted}, not {len(values)}")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError("value_range: the first number must be the smaller one")
        return self


class OutputSpec(_Closed):
    """One output tensor: `(num_channels,)` for classification, `(num_channels, *spatial_shape)` for segmentation.

    Logits are those of a softmax over the channels; of a sigmoid per channel where the task is `multilabel`, or where
    one channel stands for two labels: it is then the second one's.
    """

    format: Literal["logits", "probabilities", "values"] = "logits"
    num_channels: Annotated[int, Field(ge=1, le=1_000_000)]
    spatial_shape: Annotated[tuple[Annotated[int, Field(ge=1)] | None, ...], Field(max_length=3)] = ()


class TrainingData(_Closed):
    """What the model learnt from, in words; never a path or a name of a patient.

    `split` says which part of the data of the site training used, `train` or `all` of it; `split_digest` is the digest
    of the split that training kept to (`suture data split` prints it), which the site compares with its own.
    """

    description: Text | None = None
    n: Annotated[int, Field(ge=0)] | None = None
    split: TrainedOn | None = None
    split_digest: Sha256 | None = None

    @model_validator(mode="after")
    def _digest_of_a_split(self) -> TrainingData:
        if self.split_digest is not None and self.split != "train":
            raise ValueError("split_digest: only for a model that was trained on a split: split = train")
        return self


class EvaluationData(_Closed):
    """What `eval_metrics` were measured on: `n` samples of the author's own data, and how they were kept apart."""

    n: Annotated[int, Field(ge=1)]
    split: Literal["validation", "cross-validation", "test", "external"] = "test"
    description: Text | None = None


class MemberRef(_Closed):
    """A model that a stitched ensemble was made of."""

    repo: Repo
    revision: Revision
    sha256: Sha256


class Trusted(_Closed):
    """A party whose models were run without noise: trusted not to have built them to carry patients out.

    `key` is the SHA-256 fingerprint of the key that signed them; None for models of the site's own party.
    """

    party: Name
    key: Sha256 | None = None


class Lineage(_Closed):
    """Where a stitched ensemble comes from."""

    job: Annotated[str, StringConstraints(max_length=64), AfterValidator(legible)]
    requester: Annotated[str, StringConstraints(max_length=96), AfterValidator(legible)]
    members: Annotated[tuple[MemberRef, ...], Field(min_length=1)]
    candidate: Annotated[str, StringConstraints(max_length=64), AfterValidator(legible)]
    #: What noise in the fit promises for one patient of the requester; without noise, whose models its site trusted.
    privacy: Privacy | None = None
    trusted: tuple[Trusted, ...] | None = None


class ModelMetadata(_Closed):
    """The content of `suture.json`."""

    schema_: Literal["suture.model/1"] = Field(alias="schema")
    task: Task
    inputs: Annotated[dict[Label, InputSpec], Field(min_length=1, max_length=16)]
    outputs: Annotated[dict[Label, OutputSpec], Field(min_length=1, max_length=16)]
    #: Names of the output channels, in order; classes of a classifier or of a segmentation (background included). One
    #: channel may stand for two of them, the second one's logit or probability.
    labels: tuple[Label, ...] | None = None
    #: Of a classifier: the share of each label that its probabilities assume, that of its training data.
    label_prior: dict[Label, Annotated[float, Field(ge=0, le=1)]] | None = None
    #: An SPDX identifier where there is one.
    license: Label
    description: Text | None = None
    intended_use: Text | None = None
    limitations: Text | None = None
    training_data: TrainingData | None = None
    authors: tuple[Label, ...] = ()
    citation: Text | None = None
    doi: Doi | None = None
    references: tuple[Text, ...] = ()
    eval_metrics: dict[Label, float] | None = None
    eval_data: EvaluationData | None = None
    lineage: Lineage | None = None

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _labels_match(self) -> ModelMetadata:
        if self.task != "regression":
            if self.labels is None:
                raise ValueError(f"labels: a {self.task} model must name its output channels in order")
            if len(set(self.labels)) != len(self.labels):
                raise ValueError("labels: each label may occur once")
            channels = next(iter(self.outputs.values())).num_channels
            one_for_two = self.task != "multilabel" and channels == 1 and len(self.labels) == 2
            if len(self.labels) != channels and not one_for_two:
                raise ValueError(f"labels: {len(self.labels)} labels for {channels} output channels")
        return self

    @model_validator(mode="after")
    def _prior_of_labels(self) -> ModelMetadata:
        if self.label_prior is None:
            return self
        if self.task != "classification":
            raise ValueError("label_prior: only for a classification, whose labels exclude each other")
        if self.label_prior.keys() != set(self.labels or ()):
            raise ValueError(f"label_prior: one share for each of the labels {', '.join(self.labels or ())}")
        if abs(sum(self.label_prior.values()) - 1) > PRIOR_TOLERANCE:
            raise ValueError(f"label_prior: the shares sum to {sum(self.label_prior.values()):g}, not to 1")
        return self

    @model_validator(mode="after")
    def _data_of_metrics(self) -> ModelMetadata:
        if self.eval_data is not None and not self.eval_metrics:
            raise ValueError("eval_data: there are no eval_metrics that were measured on it")
        return self

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ModelMetadata:
        """Read and check the file at `path`; raises `SutureError` (`metadata.*`)."""
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise SutureError(
                "metadata.missing",
                error.strerror or "cannot be read",
                where=str(path),
                hint="`suture export` writes it; put it beside the model, or name it",
            ) from None
        return cls.from_json(text, where=str(path))

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "suture.json") -> ModelMetadata:
        """Parse and check; raises `SutureError` (`metadata.*`) naming the field."""
        if len(text) > MAX_BYTES:
            raise SutureError("metadata.too_large", f"larger than {MAX_BYTES} bytes", where=where)
        try:
            return cls.model_validate_json(decoded(text, where=where, code="metadata.encoding"))
        except ValidationError as error:
            first = problems_of(error.errors(include_url=False), cls)[0]
            hint = "the fields are described in docs/suture-json.md"
            raise SutureError(
                "metadata.invalid",
                f"{first.field or '(whole document)'}: {first.message}",
                where=where,
                hint=f"{first.hint} {hint[0].upper()}{hint[1:]}" if first.hint else hint,
            ) from None

    def to_json(self) -> str:
        """Return the canonical text: fields in the order of this schema, no nulls, ends in a newline.

        Inputs and outputs keep their order, which is that of the graph's.
        """
        content = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

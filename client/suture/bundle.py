"""What a party sends when it publishes: the portable model, its metadata and its card, made and checked here first."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Required, TypedDict, Unpack, cast

from pydantic import ValidationError

from suture.arguments import PAGE, check_description, check_network
from suture_contract.card import merge_card, write_card
from suture_contract.compatibility import check_labels
from suture_contract.errors import SutureError
from suture_contract.extras import needs
from suture_contract.files import check_inside, read_text, replacing, sha256_of
from suture_contract.kinds import CARD
from suture_contract.model.finite import check_finite_file
from suture_contract.model.format import METADATA, check_against, check_file, find_model
from suture_contract.model.metadata import (
    ModelMetadata,
    Task,
    TrainedOn,
)
from suture_contract.model.signature import SIGNATURE, key_of, sign
from suture_contract.naming import problems_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


@dataclass(frozen=True)
class Bundle:
    """The files of a revision, ready to be sent. `model` is a path; metadata and card are texts.

    `checked` is when the file had been written to (nanoseconds), and its size, before it was checked; `hashed` its
    sha256 (hex), where it is known already.
    """

    model: Path
    checked: tuple[int, int]
    metadata: ModelMetadata
    card: str
    size: int
    tensors: int
    parameters: int
    nodes: int
    signature: bytes | None = None
    hashed: str | None = None

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 (hex) of the model, which is read for it unless it is known."""
        return self.hashed or sha256_of(self.model)

    def was_changed(self) -> bool:
        """Whether the file was written to since it was checked."""
        try:
            return _written(self.model) != self.checked
        except FileNotFoundError:
            return True

    def sizes(self) -> dict[str, int]:
        """Return the size of each file in bytes."""
        sizes = {
            "model.safetensors": self.size,
            "suture.json": len(self.metadata.to_json().encode()),
            "README.md": len(self.card.encode()),
        }
        return sizes if self.signature is None else {**sizes, SIGNATURE: len(self.signature)}

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file, as the hub should report them."""
        digests = {
            "model.safetensors": self.sha256,
            "suture.json": _sha256(self.metadata.to_json().encode()),
            "README.md": _sha256(self.card.encode()),
        }
        return digests if self.signature is None else {**digests, SIGNATURE: _sha256(self.signature)}

    def signed(self, key: str | Path, password: str | None, *, repo: str) -> Bundle:
        """Return it with the signature of a private key over all files, as `repo`; raises `SutureError` (`key.*`)."""
        digests = {name: digest for name, digest in self.digests().items() if name != SIGNATURE}
        return replace(self, signature=sign(digests, repo, key, password=password), hashed=self.sha256)

    def lines(self) -> list[tuple[str, str]]:
        """Return what leaves this machine, as (what, how much) for people."""
        labels = self.metadata.labels
        rows = [
            ("model.safetensors", f"{self.size:,} bytes, {self.tensors} tensors with {self.parameters:,} numbers"),
            ("  operator graph", f"{self.nodes} operations; no code of yours"),
            ("suture.json", f"{self.metadata.task}, license {self.metadata.license}"),
            ("README.md", f"{len(self.card.encode()):,} bytes, the model card"),
        ]
        if self.signature is not None:
            rows.append((SIGNATURE, f"signed with the key {key_of(self.signature)[:16]}…"))
        if labels is not None:
            rows.insert(
                3, ("  labels", ", ".join(labels[:12]) + (f" and {len(labels) - 12} more" * (len(labels) > 12)))
            )
        return rows


def pack(path: Path, metadata: ModelMetadata, *, repo: str, card: str | None = None, hashed: bool = False) -> Bundle:
    """Check an exported file against its metadata and return both with a card.

    A `card` of one's own keeps its words; its YAML is brought in line with `metadata`. What will be signed is `hashed`
    at once; else that is left for later. Raises `SutureError` (`model.*`, `card.yaml`).
    """
    check_labels(metadata.labels or ())
    checked = _written(path)
    header = check_file(path)
    check_against(header, metadata, where="suture.json")
    with ThreadPoolExecutor(1) as pool:  # hashing takes longer than the check, and neither needs the other
        digest = pool.submit(sha256_of, path) if hashed else None
        check_finite_file(path, header)
    return Bundle(
        model=path,
        checked=checked,
        metadata=metadata,
        card=write_card(repo, metadata) if card is None else merge_card(card, repo, metadata),
        size=header.size,
        tensors=len(header.tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in header.tensors.values()),
        nodes=len(header.graph.nodes),
        hashed=digest.result() if digest is not None else None,
    )


def files_beside(
    named: Path, metadata: ModelMetadata | str | Path | None, card: str | None
) -> tuple[Path, ModelMetadata, str | None]:
    """Return the model in a folder or file, its metadata and its card; what is not said lies beside the model.

    What is not named itself must not be a link out of the folder: raises `SutureError` `file.outside`.
    """
    model = find_model(named)
    if model != named:
        check_inside(model, named)
    if metadata is None:
        metadata = model.with_name(METADATA)
        check_inside(metadata, model.parent)
    if not isinstance(metadata, ModelMetadata):
        metadata = ModelMetadata.read(metadata)
    beside = model.with_name(CARD)
    if card is None and (beside.is_file() or beside.is_symlink()):
        check_inside(beside, model.parent)
        card = read_text(beside)
    return model, metadata, card


class Description(TypedDict, total=False):
    """What `suture.json` says beyond the sizes. Classifiers and segmenters need `labels`, in the order of the channels.

    `label_prior` are the shares of a classifier's labels among its training samples, in the order of `labels`.
    `output` says what the model gives; by default it is what the end of its graph and its outputs on the example show.
    `value_range` is that of the input before `mean` and `std`, per channel, which the caller subtracts and divides by
    before the model, and `spacing` is in millimetres, one number per axis. `channels` names the input's: of a table its
    columns, in the order in which the model reads them. `n` is the number of training samples. `eval_metrics` are by
    name, measured on `eval_data`, of which `n` is the number.
    """

    license: Required[str]
    task: Task
    labels: Sequence[str] | None
    label_prior: Sequence[float] | None
    output: Literal["logits", "probabilities", "values"]
    value_range: tuple[float, float] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    modality: str | None
    spacing: Sequence[float] | None
    channels: Sequence[str] | None
    description: str | None
    intended_use: str | None
    limitations: str | None
    training_data: str | None
    n: int | None
    trained_on: TrainedOn | None
    split_digest: str | None
    eval_metrics: Mapping[str, float] | None
    eval_data: Mapping[str, Any] | None
    authors: Sequence[str]
    citation: str | None
    doi: str | None
    references: Sequence[str]


def export_model(
    module: Module,
    example: Tensor,
    path: Path,
    *,
    output_name: str | None = None,
    tell: Callable[[str], None] | None = None,
    **description: Unpack[Description],
) -> ModelMetadata:
    """Export `module` to `path`, verified by re-reading, and return its metadata.

    `example` is a batch of inputs `(N, C, *spatial)` with N >= 2. Of several outputs the one called `output_name` is
    taken (`logits`, `0`, `heads.1`), or the one that is plainly meant; a number for each sample is `(N, 1)`. `tell`
    hears in words what was found out about the model. A model that is refused leaves no file. Raises `SutureError`
    (`export.*`, `model.*`, `metadata.*`).
    """
    with needs("torch"):
        import torch

        from suture_stitching.portable.export import export
        from suture_stitching.portable.runtime import load
        from suture_stitching.portable.sanity import check_axes, mask_size, output_format, unseen

    check_network(module, example)
    check_description(description, Description.__annotations__)
    task, labels = description.get("task", "classification"), _texts(description.get("labels"))
    with replacing(path) as temporary:
        exported = export(module, example, temporary, output=output_name, single=True)
        with torch.no_grad():
            output = load(temporary)(example.cpu())
        check_axes(example, output, task)
        stretched = mask_size(example, output) if task == "segmentation" else None
        kind, why = output_format(exported.graph, output, task, len(labels), description.get("output"))
        description["output"] = kind
        metadata = describe(
            tuple(example.shape[1:]), tuple(output.shape[1:]), str(example.dtype).removeprefix("torch."), **description
        )
    if tell is not None:
        tell(f"the model gives {kind}: {why}")
        if stretched is not None:
            tell(stretched)
        if missing := unseen(output, labels, kind, task):
            tell(f"of the {len(output)} samples of the example none was given the label {', '.join(missing)}")
    return metadata


def describe(
    inputs: tuple[int, ...], outputs: tuple[int, ...], dtype: str, **description: Unpack[Description]
) -> ModelMetadata:
    """Return the metadata of a model with one input `(C, *spatial)` and one output `(K, *spatial)`, without batch.

    Raises `SutureError` `metadata.invalid` naming the field, or what `check_description` does.
    """
    check_description(description, Description.__annotations__)
    stated = cast(dict[str, Any], description).get
    task = stated("task", "classification")
    labels, prior = _texts(stated("labels")), stated("label_prior")
    _check_companions(stated, labels)
    document = {
        "schema": "suture.model/1",
        "task": task,
        "inputs": _input(inputs, dtype, stated),
        "outputs": {
            "prediction": {
                "format": stated("output") or ("values" if task == "regression" else "logits"),
                "num_channels": outputs[0],
                "spatial_shape": outputs[1:],
            }
        },
        "labels": None if stated("labels") is None else labels,
        "label_prior": None if prior is None else dict(zip(labels, prior, strict=True)),
        "license": description["license"],
        "description": stated("description"),
        "intended_use": stated("intended_use"),
        "limitations": stated("limitations"),
        "training_data": _training_data(stated),
        "eval_metrics": stated("eval_metrics"),
        "eval_data": stated("eval_data"),
        "authors": tuple(stated("authors", ())),
        "citation": stated("citation"),
        "doi": stated("doi"),
        "references": tuple(stated("references", ())),
    }
    try:
        return ModelMetadata.model_validate(document)
    except ValidationError as error:
        first = problems_of(error.errors(include_url=False), ModelMetadata)[0]
        raise SutureError(
            "metadata.invalid",
            f"{first.field}: {first.message}".removeprefix(": "),
            where="suture.json",
            hint=f"{first.hint or ''} See {PAGE}".strip(),
        ) from None


def _check_companions(stated: Callable[..., Any], labels: Sequence[str]) -> None:
    """Raise `SutureError` `metadata.invalid` for a part of the description that lacks the one it belongs to."""
    if (stated("mean") is None) != (stated("std") is None):
        raise SutureError("metadata.invalid", "mean and std come together", where="suture.json")
    prior = stated("label_prior")
    if prior is not None and len(prior) != len(labels):
        raise SutureError(
            "metadata.invalid",
            f"label_prior: {len(prior)} shares for {len(labels)} labels",
            where="suture.json",
            hint="give one share for each label, in their order; `suture data split` prints them",
        )


def _input(shape: tuple[int, ...], dtype: str, stated: Callable[..., Any]) -> dict[str, Any]:
    """Return the one input `(C, *spatial)` as `suture.json` describes it, by its name."""
    kind = "image" if len(shape) > 1 else "table"
    mean, std = stated("mean"), stated("std")
    return {
        kind: {
            "format": kind,
            "modality": stated("modality"),
            "num_channels": shape[0],
            "spatial_shape": shape[1:],
            "dtype": dtype,
            "value_range": stated("value_range"),
            "spacing": stated("spacing"),
            "channels": stated("channels"),
            "preprocessing": {"mean": mean, "std": std} if mean is not None else None,
        }
    }


def _training_data(stated: Callable[..., Any]) -> dict[str, Any] | None:
    """Return what the model learnt from; None where nothing is said of it."""
    learnt_from = {
        "description": stated("training_data"),
        "n": stated("n"),
        "split": stated("trained_on"),
        "split_digest": stated("split_digest"),
    }
    return learnt_from if any(value is not None for value in learnt_from.values()) else None


def _texts(names: Iterable[object] | None) -> tuple[str, ...]:
    return () if names is None else tuple(map(str, names))


def _written(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

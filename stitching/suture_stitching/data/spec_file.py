"""A dataset's description from a file: one of its own, or the `site.toml` that names it (torch-free)."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from suture_contract.errors import SutureError
from suture_contract.model.metadata import ModelMetadata
from suture_contract.naming import did_you_mean, problems_of
from suture_stitching.data.foreign import foreign_json
from suture_stitching.data.spec import DatasetSpec

#: What describes a dataset, in contrast to one.
SUFFIXES = (".toml", ".json")


def read_spec(path: Path, *, dataset: str | None = None, defaults: Mapping[str, Any] | None = None) -> DatasetSpec:
    """Return what the file says of a dataset, whose path is relative to the file; `defaults` stand for what it omits.

    The file holds the fields of one `[datasets.<name>]` of a site; with `dataset`, it is a site's `site.toml`, and that
    one is meant; a file with one alone means that. Raises `SutureError` (`dataset.*`).
    """
    fields = _fields(path)
    if dataset is not None:
        offered = fields.get("datasets")
        known = offered if isinstance(offered, dict) else {}
        if not isinstance(known.get(dataset), dict):
            raise SutureError(
                "dataset.unknown",
                f"there is no [datasets.{dataset}]; {did_you_mean(dataset, known)}",
                where=str(path),
            )
        fields = known[dataset]
    elif isinstance(fields.get("datasets"), dict) and "path" not in fields and len(fields["datasets"]) == 1:
        (fields,) = fields["datasets"].values()
        if not isinstance(fields, dict):
            raise SutureError("dataset.invalid", "datasets: an object is wanted", where=str(path))
    elif isinstance(fields.get("datasets"), dict) and "path" not in fields:
        names = ", ".join(fields["datasets"]) or "no datasets"
        raise SutureError(
            "dataset.unnamed",
            f"this is a site's configuration, with {names}",
            where=str(path),
            hint="name one with --dataset",
        )
    return spec_of(
        {**fields, "path": path.parent / str(fields.get("path", "")), **_root(fields, path)},
        where=str(path),
        defaults=defaults,
    )


def _root(fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
    return {"root": path.parent / fields["root"]} if isinstance(fields.get("root"), str) else {}


def defaults_for(metadata: ModelMetadata) -> dict[str, Any]:
    """Return what stands for what a dataset's description omits, where the model that it is for is known."""
    reads = next(iter(metadata.inputs.values()))
    return {"task": metadata.task, "labels": list(metadata.labels or ()), "input": reads}


def spec_of(fields: Mapping[str, Any], *, where: str, defaults: Mapping[str, Any] | None = None) -> DatasetSpec:
    """Return the description with these fields; raises `SutureError` `dataset.invalid` naming the one that is wrong."""
    whole = {**(defaults or {}), **fields}
    try:
        return DatasetSpec.model_validate(whole)
    except ValidationError as error:
        raise SutureError(
            "dataset.invalid",
            str(problems_of(error.errors(include_url=False), DatasetSpec)[0]),
            where=where,
            hint="the fields are described in docs/site-operator.md",
        ) from None


def _fields(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        fields = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
        if (known := foreign_json(fields)) is not None:
            raise SutureError("dataset.unknown_format", f"this is {known[0]}", where=str(path), hint=known[1])
        if isinstance(fields, dict):
            return fields
        problem = "it holds no fields"
    except OSError as error:
        problem = error.strerror or "it cannot be read"
    except ValueError as error:
        problem = str(error)
    raise SutureError("dataset.invalid", problem, where=str(path))

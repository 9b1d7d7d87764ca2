"""Results of finished seeds, kept beside the page, so that a study goes on from them.

A seed's result is one safetensors file: the scores by method and party, and a JSON document among the metadata. Its
name tells what was studied, how, and by which code: a seed is read only where all that is the same.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import suture_stitching
from suture_contract.documents import Report
from suture_contract.errors import SutureError
from suture_contract.files import replacing
from suture_local import digits
from suture_local.study.data import PartySamples, Study
from suture_local.study.results import MethodScores, SeedResult, StitchedScores
from suture_local.study.run import Setup
from suture_local.study.scores import METRICS
from suture_stitching.running.checkpoint import digest_of

FORMAT = "suture.study-seed/1"
#: Stands for a method in the key of whose the test samples are.
_PATIENTS = "patients"
#: What only shows results.
_PRESENTING = {"page.py", "play.py", "plots.py", "summary.py", "table.py"}


class _Document(BaseModel):
    """All of a seed's result but the scores, and what was studied."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: dict[str, Any]
    besides: dict[str, dict[str, dict[str, float | None]]]
    stitched: dict[str, StitchedScores]
    reports: dict[str, Report]
    notes: list[str]


class KeptSeeds:
    """The finished seeds of a study in a folder."""

    def __init__(self, study: Study, setup: Setup, folder: Path) -> None:
        self._study, self._setup, self._folder = study, setup, folder
        self._code = code()  # of what runs, not of what the files hold when a seed ends

    def path(self, seed: int) -> Path:
        """Return where the result of a seed is kept."""
        return self._folder / f"{self._stem(seed)}.safetensors"

    def working(self, seed: int) -> Path:
        """Return the folder in which a seed is worked on until its result is kept."""
        return self._folder / f"{self._stem(seed)}.unfinished"

    def _stem(self, seed: int) -> str:
        identity = hashlib.sha256(json.dumps(self._identity(seed), sort_keys=True).encode()).hexdigest()
        return f"{self._study.name}-seed-{seed}-{identity[:12]}"

    def save(self, result: SeedResult) -> None:
        """Keep a result in place of an older one of the same seed."""
        scores = {
            f"{method}/{party}": torch.from_numpy(own.scores)
            for method, at in result.methods.items()
            for party, own in at.items()
        } | {f"{_PATIENTS}/{party}": torch.from_numpy(own) for party, own in result.patients.items()}
        document = _Document(
            study=self._identity(result.seed),
            besides={
                method: {party: own.besides for party, own in at.items()} for method, at in result.methods.items()
            },
            stitched=result.stitched,
            reports=result.reports,
            notes=result.notes,
        )
        text = json.dumps(document.model_dump(mode="json", by_alias=True))
        metadata = {"format": FORMAT, "document": text, "sha256": digest_of(text, scores)}
        with replacing(self.path(result.seed)) as temporary:
            save_file(scores, temporary, metadata)

    def load(self, seed: int) -> SeedResult | None:
        """Return the result of a seed, None if there is none.

        Raises `SutureError` `study.damaged` for a file that is not in order.
        """
        path = self.path(seed)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # Copied: what is mapped from a file would change with it.
                scores = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118  # no mapping
            text = metadata.get("document", "")
            if metadata.get("format") != FORMAT or metadata.get("sha256") != digest_of(text, scores):
                raise ValueError("not a seed's result, or not all of it")
            document = _Document.model_validate(json.loads(text))
            methods = {
                method: {
                    party: MethodScores(scores[f"{method}/{party}"].numpy(), besides) for party, besides in at.items()
                }
                for method, at in document.besides.items()
            }
            patients = {
                name: own.numpy()
                for key, own in scores.items()
                for kind, _, name in [key.partition("/")]
                if kind == _PATIENTS
            }
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValidationError, ValueError, KeyError) as error:
            raise SutureError(
                "study.damaged",
                f"is damaged or of another version: {error}",
                where=str(path),
                hint="delete the file, and the seed is run again",
            ) from error
        return SeedResult(
            seed, methods, dict(document.stitched), dict(document.reports), list(document.notes), patients
        )

    def _identity(self, seed: int) -> dict[str, Any]:
        """Return all that was given to a run."""
        study, data = self._study, self._study.divide(seed)
        input_shape = next(iter(data.values())).inputs.shape[1:]
        return {
            "study": study.name,
            "task": study.task,
            "metric": METRICS[study.task],
            "parties": list(study.parties),
            "seed": seed,
            "data": {party: _digest(study, data[party]) for party in study.parties},
            "networks": self._networks(input_shape),
            "training": asdict(self._setup.recipe(study, input_shape)),
            "leave_out": self._setup.leave_out,
            "fit": self._setup.options.model_dump(mode="json"),
            "device": self._setup.device.type,
            "code": self._code,
            "versions": {"suture": version("suture"), "torch": str(torch.__version__), "numpy": np.__version__},
        }

    def _networks(self, input_shape: Sequence[int]) -> list[str] | None:
        """Return digests of the networks, of their weights and their code, where they are not this package's."""
        if self._study.networks is None:
            return None
        modules = [self._study.untrained(design, input_shape, 0) for design in range(len(self._study.parties))]
        files = [Path(inspect.getfile(type(module))).read_bytes() for module in modules]
        return [
            digest_of(f"{module} {hashlib.sha256(file).hexdigest()}", module.state_dict())
            for module, file in zip(modules, files, strict=True)
        ]


@cache
def code() -> str:
    """Return a digest of the sources that results come from, as they were when first asked for."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(str(suture_stitching.__file__)).parent, Path(digits.__file__)):
        for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]:
            if path.name not in _PRESENTING:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _digest(study: Study, data: PartySamples) -> str:
    """Return a digest of a party's samples, of how they are divided, and of what their values mean."""
    digest = hashlib.sha256(json.dumps([study.labels, study.channels]).encode())
    group = [] if data.group is None else [np.unique(data.group, return_inverse=True)[1]]
    for array in (data.inputs, data.targets, data.split, *group):
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()

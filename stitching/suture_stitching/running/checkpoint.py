"""Finished parts of long work in a folder, so that work that was killed goes on where it was.

A part is one safetensors file: its tensors, and a JSON document among the metadata. It is replaced in one step and
bound to exactly this work by a fingerprint of models, data, options and versions. A part of other work or a damaged one
is passed over, and work whose parts cannot be written goes on without them: both with a word in the log.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from suture_contract.errors import SutureError
from suture_contract.files import replacing
from suture_contract.model.graph_json import graph_to_json
from suture_stitching.data import SPLITS, Dataset
from suture_stitching.ensemble.members import Member, batch_size
from suture_stitching.portable.tensors import save_tensors

FORMAT = "suture.checkpoint/1"
#: Unfinished parts are written this often at most, and less often where writing takes long.
SECONDS = 5.0
_WRITING_SHARE = 0.05

Folder: TypeAlias = str | os.PathLike[str]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptPart:
    """What was kept: a JSON document and tensors by name, on the CPU."""

    document: Any
    tensors: dict[str, Tensor]


class Checkpoint:
    """The parts of one piece of work in `folder`; without a folder nothing is kept.

    Other processes may write to a `shared` folder at the same time.
    """

    def __init__(self, folder: Folder | None, fingerprint: str, *, shared: bool = False) -> None:
        self._folder = None if folder is None else Path(folder)
        self._fingerprint = fingerprint
        self._next = time.monotonic() + SECONDS
        if self._folder is not None:
            self._prepare(self._folder, shared=shared)

    @property
    def due(self) -> bool:
        """Whether an unfinished part should be written again."""
        return time.monotonic() >= self._next

    def save(self, name: str, document: Any, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Keep a part under `name` in place of an older one."""
        started = time.monotonic()
        if self._folder is not None:
            content = {key: tensor.detach().cpu().contiguous() for key, tensor in (tensors or {}).items()}
            text = json.dumps(document)
            metadata = {
                "format": FORMAT,
                "fingerprint": self._fingerprint,
                "document": text,
                "sha256": digest_of(text, content),
            }
            try:
                with replacing(self._folder / f"{name}.safetensors") as path:
                    save_tensors(content, path, metadata)
            except (OSError, SafetensorError, SutureError) as error:
                self._give_up(error)
        now = time.monotonic()
        self._next = now + max(SECONDS, (now - started) / _WRITING_SHARE)

    def load(self, name: str) -> KeptPart | None:
        """Return the part kept under `name` by the same work; None if there is none, or none in order."""
        if self._folder is None:
            return None
        path = self._folder / f"{name}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # Copied even where it lies well: what is mapped from a file changes with it.
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118  # no mapping
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("the checkpoint %s is damaged and passed over: %s", path, error)
            return None
        text = metadata.get("document", "")
        if metadata.get("format") != FORMAT or metadata.get("fingerprint") != self._fingerprint:
            log.warning("the checkpoint %s is of other work and passed over", path)
            return None
        if metadata.get("sha256") != digest_of(text, tensors):
            log.warning("the checkpoint %s is damaged and passed over", path)
            return None
        return KeptPart(json.loads(text), tensors)

    def _prepare(self, folder: Path, *, shared: bool) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            leftovers = [] if shared else folder.glob(".*.safetensors.*")  # of writes that were killed
            for leftover in leftovers:
                leftover.unlink(missing_ok=True)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("no checkpoint can be written to %s; going on without: %s", self._folder, error)
        self._folder = None


def fingerprint(work: str, members: Sequence[Member], dataset: Dataset, settings: Mapping[str, Any]) -> str:
    """Return a digest of all that the result of `work` depends on; `settings` hold numbers, texts and documents.

    Of the data it covers their shape, labels and numbers, and the first samples of each split.
    """
    description = {
        "work": work,
        "suture": version("suture"),
        "torch": torch.__version__,
        "members": [
            [m.ref.model_dump(mode="json"), m.metadata.model_dump(mode="json", by_alias=True), model_digest(m)]
            for m in members
        ],
        "dataset": _describe(dataset),
        "settings": settings,
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()


def model_digest(member: Member) -> str:
    """Return the digest of a member's graph and tensors."""
    return digest_of(graph_to_json(member.model.graph), member.model.tensors)


def _describe(dataset: Dataset) -> dict[str, Any]:
    first = {}
    for split in SPLITS:
        if dataset.n(split):
            x, y = next(dataset.batches(split, min(8, batch_size(dataset))))
            first[split] = digest_of("", {"x": x, "y": y})
    return {
        "task": dataset.task,
        "labels": dataset.labels,
        "shape": dataset.input_shape,
        "range": dataset.value_range,
        "channels": dataset.channels,
        "n": {split: dataset.n(split) for split in SPLITS},
        "first": first,
    }


def digest_of(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a text and named tensors."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

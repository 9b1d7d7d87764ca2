"""What the process that does a task has in its hands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from suture_worker import files
from suture_worker.folder import DOCUMENT, Run, TaskFolder
from suture_worker.leased_task import LeasedTask

if TYPE_CHECKING:
    from suture_stitching.data import Dataset
    from suture_stitching.ensemble.members import Member
    from suture_stitching.running.progress import OnProgress


@dataclass(frozen=True)
class TaskWork:
    """What the process that does a task has: members, data, what it may use, and whom it tells how far it is.

    `folder` is that of a share of the task where the work is divided (`ShareFolder`).
    """

    task: LeasedTask
    members: list[Member]
    data: Dataset | None
    folder: TaskFolder
    run: Run
    report: OnProgress

    @property
    def dataset(self) -> Dataset:
        """The data of a task that reads some."""
        assert self.data is not None, "the agent allows no such task without a dataset"
        return self.data

    def finish(self, document: Mapping[str, Any] | BaseModel) -> None:
        """Write the document that ends the task."""
        if isinstance(document, BaseModel):
            document = document.model_dump(mode="json", by_alias=True, exclude_none=True)
        files.write(self.folder.results / DOCUMENT, json.dumps(document))

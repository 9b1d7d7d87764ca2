"""`match`: find out where the models can be joined, and how large their features are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from pydantic import BaseModel

from suture_contract.contributions import Matched
from suture_worker.compute import contributing
from suture_worker.compute.assignment import TaskWork
from suture_worker.egress import shown
from suture_worker.egress.release_check import ReleaseCheck, Released
from suture_worker.egress.shown import HeldResult, Section
from suture_worker.folder import TaskFolder
from suture_worker.kinds.kind import TaskKind
from suture_worker.leased_task import LeasedTask, MatchSpec


class Match(TaskKind):
    """The site's side of `match`."""

    spec_model = MatchSpec
    action = "fit"
    documents: ClassVar[Mapping[str, type[BaseModel]]] = {"document": Matched}

    def do(self, work: TaskWork, spec: MatchSpec) -> None:
        """Look at the features of the training data."""
        contributing.match(spec, work.members, work.dataset, work.folder, work.run, work.report)

    def shown(self, held: HeldResult) -> Iterator[Section]:
        """Places, and sizes of features."""
        return shown.match(held)

    def released(self, gate: ReleaseCheck, task: LeasedTask, spec: MatchSpec, folder: TaskFolder) -> Released:
        """Places of members that there are, with bounded norms."""
        return gate.match(spec, folder)


KIND = Match()

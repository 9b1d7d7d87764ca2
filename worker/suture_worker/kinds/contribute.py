"""`contribute`: moments of this site's features, for another party's fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from pydantic import BaseModel

from suture_contract.contributions import ContributionDocument
from suture_contract.kinds import MOMENTS
from suture_worker.compute import contributing
from suture_worker.compute.assignment import TaskWork
from suture_worker.egress import shown
from suture_worker.egress.release_check import ReleaseCheck, Released
from suture_worker.egress.shown import HeldResult, Section
from suture_worker.folder import TaskFolder
from suture_worker.kinds.kind import TaskKind
from suture_worker.leased_task import ContributeSpec, LeasedTask
from suture_worker.rules.inbox import Estimate


class Contribute(TaskKind):
    """The site's side of `contribute`."""

    spec_model = ContributeSpec
    action = "contribute"
    documents: ClassVar[Mapping[str, type[BaseModel]]] = {"document": ContributionDocument}

    def tensors(self, takes: Estimate | None) -> Mapping[str, str]:
        """Moments, as many as the dry run has found."""
        how_much = ""
        if takes is not None and takes.numbers is not None:
            sizes = ", ".join(map(str, takes.features))
            how_much = f" of {sizes} features: {takes.numbers} numbers, {4 * takes.numbers / 2**20:.2g} MiB"
        return {MOMENTS: f"means and second moments{how_much}; sums over patients, no sample and no label"}

    def estimate(self, folder: TaskFolder, spec: ContributeSpec) -> dict[str, object]:
        """Return how many features there are at each place, and how many numbers their moments of both splits are."""
        from suture_stitching.features.points import stitchable
        from suture_stitching.portable.runtime import load

        shapes = []
        for index in range(len(spec.members)):
            model = load(folder.member(index))
            fixed = tuple(size for size in model.graph.inputs[0].shape[1:] if size is not None)
            shapes.append({point.name: point.shape for point in stitchable(model, fixed)})
        widths, numbers = [], 0
        for place in spec.placements:
            own = [shapes[int(index)][name] for index, name in place.items()]
            widths.append(sum(shape[0] for shape in own))
            grids = {shape[1:] for shape in own}
            numbers += 2 * len(grids) * (widths[-1] + widths[-1] * (widths[-1] + 1) // 2)
        return {"features": widths, "numbers": numbers}

    def do(self, work: TaskWork, spec: ContributeSpec) -> None:
        """Sum up, and add the noise that the rule asks for."""
        contributing.contribute(spec, work.members, work.dataset, work.folder, work.run, work.report)

    def shown(self, held: HeldResult) -> Iterator[Section]:
        """Sums, at each place."""
        return shown.contribution(held)

    def released(self, gate: ReleaseCheck, task: LeasedTask, spec: ContributeSpec, folder: TaskFolder) -> Released:
        """The moments that were asked for, under the terms of the rule."""
        return gate.contribution(spec, folder)


KIND = Contribute()

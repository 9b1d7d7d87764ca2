"""The objective of members: how their outputs become one, what they lose and how they are scored, per kind of task.

`objective_of(members' metadata, the dataset's labels)` returns the object every step of a fit works with. Each metric
is a mean of per-sample scores, which is what makes one paired bootstrap serve them all.
"""

from __future__ import annotations

from collections.abc import Sequence

from suture_contract.compatibility import incompatibilities
from suture_contract.errors import SutureError
from suture_contract.model.metadata import ModelMetadata
from suture_stitching.objectives.classification import Classification
from suture_stitching.objectives.multilabel import Multilabel
from suture_stitching.objectives.objective import Objective
from suture_stitching.objectives.regression import Regression
from suture_stitching.objectives.segmentation import Segmentation

__all__ = ["Objective", "objective_of"]


def objective_of(members: Sequence[ModelMetadata], labels: Sequence[str], *, where: str = "dataset") -> Objective:
    """Return the objective of these members on a dataset with these labels.

    Raises `SutureError` `members.incompatible` saying which and why, or `dataset.unknown_label`.
    """
    named = [(f"member {index}", metadata) for index, metadata in enumerate(members)]
    if problems := incompatibilities(named) if len(named) > 1 else []:
        raise SutureError("members.incompatible", "; ".join(problems), hint="choose models of one task and input")
    if members[0].task == "classification":
        return Classification(members, labels, where=where)
    if members[0].task == "multilabel":
        return Multilabel(members, labels, where=where)
    if members[0].task == "segmentation":
        return Segmentation(members, labels, where=where)
    return Regression()

"""What a site must know of a kind of task; each module beside this one says it of one kind.

The agent asks, too: what only the process that does the work needs, such as PyTorch, is imported within `do`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from suture_worker.compute.assignment import TaskWork
from suture_worker.egress.described import leaves
from suture_worker.egress.release_check import ReleaseCheck, Released
from suture_worker.egress.shown import HeldResult, Section
from suture_worker.folder import TaskFolder, Terms
from suture_worker.leased_task import Action, FileRef, LeasedTask, TaskSpec
from suture_worker.rules.inbox import Estimate

if TYPE_CHECKING:
    from suture_stitching.data import Split


class TaskKind(ABC):
    """One kind of task. `spec_model` is how the hub says what to do, `action` what the site's rules call it."""

    spec_model: ClassVar[type[TaskSpec]]
    action: ClassVar[Action]
    #: The documents that leave, by the file that holds them; `document` is the one that ends the task.
    documents: ClassVar[Mapping[str, type[BaseModel]]]
    #: Splits from which results leave: each must have enough samples.
    splits: ClassVar[tuple[Split, ...]] = ("train", "validation")
    #: Without data nothing can leave that has not left before.
    reads_data: ClassVar[bool] = True

    def start(self, spec: Any) -> Mapping[str, FileRef]:
        """Return the job's files that such a task starts from, by the names that the job has for them."""
        return {}

    def tensors(self, takes: Estimate | None) -> Mapping[str, str]:
        """Say of each file of tensors that would leave what it holds."""
        return {}

    def leaves(self, takes: Estimate | None, terms: Terms) -> tuple[str, ...]:
        """Say what would leave, for the person who is asked before it is done."""
        each = "contribution" if self.action == "contribute" else "job"
        return leaves(self.documents, self.tensors(takes), terms, each=each)

    def candidates(self, folder: TaskFolder) -> int | None:
        """Return how many candidates would be measured; None for tasks that measure none."""
        return None

    def estimate(self, folder: TaskFolder, spec: Any) -> dict[str, object]:
        """Return what more is known of the work beforehand, as fields of an `Estimate`; runs confined, without data."""
        return {}

    def steps(self, spec: Any) -> tuple[str, ...]:
        """Return what of the work several workers can share, in this order."""
        return ()

    def shown(self, held: HeldResult) -> Iterator[Section]:
        """Yield what a held result would tell, as tables for the person who releases it."""
        return iter(())

    @abstractmethod
    def do(self, work: TaskWork, spec: Any) -> None:
        """Do the task, or the share of it that the folder is of; runs confined."""

    @abstractmethod
    def released(self, gate: ReleaseCheck, task: LeasedTask, spec: Any, folder: TaskFolder) -> Released:
        """Return the files and the document that may leave, checked; raises `SutureError` `outbox.refused`.

        The gate itself looks whether there are enough samples (`n`) behind the document.
        """

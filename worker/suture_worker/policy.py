"""What this site allows. Pure: a task and the site's own rules go in, one decision comes out.

Denied by default, the site's own party included. A refusal says nothing about what else the site has: to a party that
may use one dataset, another one that exists and one that does not look the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from suture_stitching.data.spec import DatasetSpec
from suture_worker.config import SiteConfig
from suture_worker.lease import ComposeSpec, EvaluateSpec, LeasedMember, Task


@dataclass(frozen=True)
class Allow:
    """Work on this dataset; None for a task that reads no data."""

    dataset: str | None


@dataclass(frozen=True)
class Decline:
    """Do not; `code` is all that the hub is told, `reason` stays in the site's log."""

    code: str
    reason: str


DENIED, UNKNOWN = "policy.denied", "dataset.unknown"
NO_DATASET, AMBIGUOUS = "policy.no_dataset", "policy.ambiguous_dataset"
TOO_FEW = "policy.too_few_samples"


def decide(task: Task, config: SiteConfig) -> Allow | Decline:
    """Say whether this site works on `task`, and on which of its datasets."""
    # Composing reads no data, only what the job's own fit and the evaluations let out: whoever may fit may compose.
    action = "evaluate" if isinstance(task.spec, EvaluateSpec) else "fit"
    offered = _offered(task.job.requester, action, config)
    if not offered:
        return Decline(DENIED, f"no rule lets {task.job.requester} {action} here")
    if isinstance(task.spec, ComposeSpec):
        return Allow(None)
    if task.spec.dataset is not None:
        if task.spec.dataset not in offered:
            return Decline(UNKNOWN, f"no rule offers {task.job.requester} a dataset of the name it gave")
        return Allow(task.spec.dataset)
    suitable = [name for name, spec in offered.items() if _suits(spec, task.spec.members)]
    if not suitable:
        return Decline(NO_DATASET, f"none of the datasets offered to {task.job.requester} suits these models")
    if len(suitable) > 1:
        return Decline(AMBIGUOUS, f"several datasets suit these models: {', '.join(suitable)}; the job must name one")
    return Allow(suitable[0])


def too_few(samples: Mapping[str, int], minimum: int) -> str | None:
    """Return the first split with fewer than `minimum` samples, or None. `samples` is split -> n."""
    return next((split for split, n in samples.items() if n < minimum), None)


def _offered(requester: str, action: str, config: SiteConfig) -> dict[str, DatasetSpec]:
    return {
        name: config.datasets[name]
        for rule in config.policy.allow
        if requester in rule.parties and action in rule.actions
        for name in rule.datasets
    }


def _suits(spec: DatasetSpec, members: tuple[LeasedMember, ...]) -> bool:
    """Whether models like these could read this dataset, as far as its description tells."""
    first = members[0].metadata
    if first.task != spec.task:
        return False
    known = {label for member in members for label in member.metadata.labels or ()}
    if not set(spec.labels) <= known:
        return False
    reads = next(iter(first.inputs.values()))
    if spec.format != "npz" and (spec.format in ("csv", "parquet")) != (reads.format == "table"):
        return False
    # Channels can be converted, but data that a member reads as they are suit best.
    read = {next(iter(member.metadata.inputs.values())).num_channels for member in members}
    if spec.channels is not None and spec.channels not in read:
        return False
    return spec.columns.features is None or len(spec.columns.features) in read

"""A job as it is asked for: models by name and revision, and whether the hub made the job that was asked for."""

from __future__ import annotations

from typing import Any

from suture.arguments import checked_repo, checked_revision
from suture.http import Connection
from suture.responses import JobStatus
from suture.revisions import check_signature, find
from suture.signing import Trust
from suture_contract.errors import SutureError


def model_at(connection: Connection, trust: Trust, name: str) -> dict[str, str]:
    """Return `party/name` or `party/name@revision` as a job names it, the revision in full.

    Who trusts keys names the newest, too, by its id, once it is checked: the hub shall not take an older one.
    """
    repo, _, asked = name.partition("@") if isinstance(name, str) else (name, "", "")
    checked_repo(repo, "models")
    revision = checked_revision(asked) if asked else None
    if trust.keys:
        resolved = find(connection, repo, revision)
        check_signature(connection, trust, resolved, newest=revision is None)
        revision = resolved.id
    elif revision is not None and len(revision) < 40:
        revision = find(connection, repo, revision).id
    return {"repo": repo, **({"revision": revision} if revision is not None else {})}


def ask(connection: Connection, named: list[dict[str, str]], body: dict[str, Any]) -> JobStatus:
    """Post a job for the models `named`, without what in `body` is None, and return how it stands.

    Raises `SutureError` `job.altered` where the hub's job has another revision than was named.
    """
    stated = {"models": named, **{key: value for key, value in body.items() if value is not None}}
    status = JobStatus.of(connection.post("/v1/jobs", stated), "/v1/jobs")
    made = {(member.repo, member.revision) for member in status.models}
    if other := [asked for asked in named if "revision" in asked and (asked["repo"], asked["revision"]) not in made]:
        raise SutureError(
            "job.altered",
            f"the hub made a job without {other[0]['repo']} at {other[0]['revision']}, which was asked for",
            where=status.id,
            hint=f"cancel it, and tell the hub's operator: suture jobs cancel {status.id}",
        )
    return status

"""What a site says to the hub, and nothing else. Messages about work are taken only if the outbox cleared them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suture.http import Connection, model_path, segment
from suture.responses import File, Revision
from suture_contract.errors import SutureError
from suture_worker.egress.outbox import MODEL, Cleared
from suture_worker.leased_task import Claim, FileRef, LeasedMember

#: Short enough that a site that is told to stop does so between two questions.
LEASE_WAIT = 5.0


@dataclass(frozen=True)
class Answer:
    """The hub's answer to a heartbeat."""

    cancel: bool


class HubClient:
    """The hub as this site's agent sees it; `sleep` ends early when the agent stops."""

    def __init__(
        self, url: str, token: str, *, sleep: Callable[[float], object], heard: Callable[[], object] = lambda: None
    ) -> None:
        self._heard = heard
        self._connection = Connection(url, token, sleep=sleep)
        # A heartbeat that comes late is worth nothing: give up soon, the next one follows.
        self._signs = Connection(url, token, sleep=sleep, attempts=2, timeout=10)

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()
        self._signs.close()

    def whoami(self) -> Any:
        """Return whose token this is."""
        return self._connection.get("/v1/whoami")

    def lease(self, wait: float) -> Any | None:
        """Wait for a task and lease it; the answer is not yet checked. None when there is none."""
        leased = self._connection.post("/v1/tasks/lease", {"wait": wait}, wait=wait)
        self._heard()
        return leased

    def heartbeat(self, claim: Claim) -> Answer:
        """Keep the lease; raises `suture.errors.Fenced` when it is lost."""
        answer = self._signs.post(f"{_path(claim.task)}/heartbeat", {"fence": claim.fence}, idempotent=True)
        self._heard()
        return _answer(answer)

    def send(self, message: Cleared) -> Answer | None:
        """Send what the outbox cleared; harmless to repeat. Raises `suture.errors.Fenced` when the lease is lost."""
        if message.kind == "file":
            assert message.name is not None
            path = f"{_path(message.claim.task)}/files/{segment(message.name)}"
            answer = self._connection.upload(path, message.content, params={"fence": message.claim.fence})
            if answer["sha256"] != message.sha256:
                raise SutureError("upload.digest", "the hub received other bytes than were sent", where=message.name)
            return None
        assert isinstance(message.content, bytes)
        if message.kind == "datasets":
            self._connection.request("PUT", "/v1/site/datasets", body=message.content)
            return None
        path = f"{_path(message.claim.task)}/{message.kind}"
        if message.kind in ("progress", "wait"):
            return _answer(self._signs.request("POST", path, body=message.content, idempotent=True))
        self._connection.request("POST", path, body=message.content, idempotent=True)
        return None

    def fetch_member(self, member: LeasedMember, target: Path, on_bytes: Callable[[int], None]) -> None:
        """Download a member's portable model, verified."""
        path = f"{model_path(member.repo)}/revisions/{member.revision}/files/{MODEL}"
        self._connection.download(path, target, sha256=member.sha256, size=member.size, on_bytes=on_bytes, private=True)

    def revision(self, member: LeasedMember) -> Revision:
        """Return what the hub says of a member's revision: its files, and whether it was taken back."""
        path = f"{model_path(member.repo)}/revisions/{member.revision}"
        revision = Revision.of(self._connection.get(path), path)
        if (revision.repo, revision.id) != (member.repo, member.revision):
            raise SutureError("hub.answer", f"the hub answered with {revision.repo} at {revision.id}", where=path)
        return revision

    def fetch_file(self, revision: Revision, file: File, target: Path) -> None:
        """Download a file of a revision, verified."""
        path = f"{model_path(revision.repo)}/revisions/{revision.id}/files/{segment(file.name)}"
        self._connection.download(path, target, sha256=file.sha256, size=file.size, private=True)

    def fetch_job_file(self, job: str, name: str, ref: FileRef, target: Path, on_bytes: Callable[[int], None]) -> None:
        """Download one of a job's files, verified."""
        path = f"/v1/jobs/{segment(job)}/files/{segment(name)}"
        self._connection.download(path, target, sha256=ref.sha256, size=ref.size, on_bytes=on_bytes, private=True)


def _path(task_id: str) -> str:
    return f"/v1/tasks/{segment(task_id)}"


def _answer(answer: Any) -> Answer:
    return Answer(cancel=isinstance(answer, dict) and answer.get("cancel") is True)

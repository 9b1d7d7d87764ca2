"""The rules of models: who may read, publish and change them, and what a revision is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from suture_service.auth import Caller
from suture_service.errors import Forbidden, HubError, NotFound
from suture_service.models import repository
from suture_service.models.schemas import Visibility
from suture_service.parties.repository import find_party
from suture_service.tables import Model, ModelShare, Revision, RevisionFile
from suture_stitching.portable.metadata import ModelMetadata

MODEL, METADATA, CARD, REPORT = "model.safetensors", "suture.json", "README.md", "report.json"


@dataclass(frozen=True)
class StoredFile:
    """A file that lies in the blob store."""

    sha256: str
    size: int


def revision_id(files: Mapping[str, StoredFile]) -> str:
    """Return the id that follows from the content: equal content, equal revision."""
    lines = "".join(f"{name}\0{file.sha256}\n" for name, file in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:40]


def get_model(session: Session, caller: Caller, repo: str) -> repository.Listed:
    """Return a model and its newest revision, if the caller may read it."""
    found = repository.find_model(session, caller.party_id, repo)
    if found is None:
        raise no_model()
    return found


def get_revision(session: Session, caller: Caller, repo: str, revision: str) -> Revision:
    """Return a revision (40 hex digits or `latest`), if the caller may read it."""
    found = repository.find_revision(session, caller.party_id, repo, revision)
    if found is None:
        raise no_model()
    return found


def get_file(session: Session, caller: Caller, repo: str, revision: str, name: str) -> RevisionFile:
    """Return a file of a revision, if the caller may read it."""
    for file in get_revision(session, caller, repo, revision).files:
        if file.name == name:
            return file
    raise no_model()


def no_model(where: str | None = None) -> NotFound:
    """Return the one answer for a model, revision or file that is unknown or private."""
    return NotFound("no such model, revision or file", where=where)


def publish(
    session: Session,
    *,
    party_id: int,
    name: str,
    files: Mapping[str, StoredFile],
    metadata: ModelMetadata,
    created_by: str,
    now: datetime,
    visibility: Visibility = "private",
    job_id: str | None = None,
) -> tuple[Revision, bool]:
    """Add a revision whose files are checked and stored; return it, and whether it is new.

    Content that the model has already had gives that revision back. The model is made with `visibility` if need be.
    """
    party = repository.lock_party(session, party_id)
    model = repository.own_model(session, party_id, name)
    if model is None:
        model = Model(party=party, name=name, visibility=visibility, task="", created_at=now, updated_at=now)
        session.add(model)
        session.flush()
    identity = revision_id(files)
    existing = repository.own_revision(session, model.id, identity)
    if existing is not None:
        if job_id is not None:
            existing.job_id = job_id
        return existing, False
    revision = Revision(
        model=model,
        revision=identity,
        created_at=now,
        created_by=created_by,
        content=metadata.model_dump(mode="json", by_alias=True, exclude_none=True),
        job_id=job_id,
        files=[RevisionFile(name=key, size=file.size, sha256=file.sha256) for key, file in sorted(files.items())],
    )
    model.task, model.description, model.updated_at = metadata.task, metadata.description or "", now
    session.add(revision)
    session.flush()
    return revision, True


def change(
    session: Session,
    caller: Caller,
    repo: str,
    now: datetime,
    *,
    visibility: Visibility | None,
    shared_with: Sequence[str] | None,
) -> repository.Listed:
    """Change who may read an own model (role `publisher`)."""
    found = get_model(session, caller, repo)
    if found.Model.party_id != caller.party_id:
        raise Forbidden("auth.forbidden", "only its owner may change a model", where=repo)
    caller.require("publisher")
    if visibility is not None:
        found.Model.visibility = visibility
    if shared_with is not None:
        _share(session, found.Model, shared_with)
    found.Model.updated_at = now
    session.flush()
    return found


def _share(session: Session, model: Model, names: Sequence[str]) -> None:
    kept = {share.party.name: share for share in model.shares}
    shares = []
    for name in sorted({*names} - {model.party.name}):
        party = find_party(session, name)
        if party is None:
            raise HubError("party.unknown", f"there is no party {name!r}", where="shared_with")
        shares.append(kept.get(name) or ModelShare(party=party))
    model.shares = shares

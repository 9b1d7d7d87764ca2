"""The rules of models: who may read, publish and change them, and what a revision is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.orm import Session

from suture_contract import kinds
from suture_contract.model.metadata import ModelMetadata
from suture_contract.model.signature import SIGNATURE
from suture_contract.naming import did_you_mean, nearest
from suture_service.audit.chain import record
from suture_service.auth import Caller
from suture_service.errors import Conflict, Forbidden, HubError, NotFound
from suture_service.keys.flags import link_members
from suture_service.keys.signatures import check_newer, signing_key
from suture_service.models import repository
from suture_service.models.cards import tags_of
from suture_service.models.schemas import MOST_READERS, ModelChange, Visibility
from suture_service.models.search import facets_of, search_text, training_n
from suture_service.models.trees import StoredFile, set_files
from suture_service.parties.repository import find_party, lock_party
from suture_service.parties.service import no_party
from suture_service.tables import (
    Commit,
    Json,
    Model,
    ModelFacet,
    ModelShare,
    ModelTag,
    Party,
    Ref,
    Revision,
)

#: Digits that may stand for a revision where no other one of its model begins so.
_SHORT = re.compile(r"[0-9a-f]{7,39}")
MODEL, METADATA, CARD, REPORT = kinds.MODEL, kinds.METADATA, kinds.CARD, kinds.REPORT


@dataclass(frozen=True)
class Checked:
    """What files say, once that was checked.

    `metadata` is that of the portable model among them, None where there is none; `safetensors` counts its parameters;
    `card` is the YAML block of the card.
    """

    metadata: ModelMetadata | None = None
    safetensors: Json | None = None
    card: Json | None = None


def checked_of(revision: Revision) -> Checked:
    """Return what a revision's files say, as it was checked when it was made."""
    content = revision.content
    metadata = None if content is None else ModelMetadata.model_validate(content)
    return Checked(metadata, revision.safetensors, revision.card)


def revision_id(files: Mapping[str, StoredFile]) -> str:
    """Return the id that follows from the content: equal content, equal revision."""
    lines = "".join(f"{name}\0{file.sha256}\n" for name, file in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:40]


def commit_id(
    model_id: int, parent: str | None, tree: str, author: str, moment: datetime, title: str, message: str
) -> str:
    """Return the id of a step in a repository's history: who made which content of which step before it, and when.

    `tree` is the id of the content, `parent` that of the commit before, None for the first.
    """
    lines = [f"repository {model_id}", f"parent {parent or ''}", f"tree {tree}", f"author {author}"]
    text = "\n".join([*lines, f"time {moment.astimezone(UTC).isoformat()}", "", title, "", message])
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def get_model(session: Session, caller: Caller, repo: str) -> repository.Listed:
    """Return a model and its revision on `main`, if the caller may read it."""
    listed = repository.find_model(session, caller.party_id, repo)
    if listed is None:
        raise no_model(hint=_meant(session, caller, repo))
    return listed


def get_revision(session: Session, caller: Caller, repo: str, revision: str) -> Revision:
    """Return a revision (`latest`, 40 hex digits, or enough of the first of them), if the caller may read it."""
    resolved = repository.find_revision(session, caller.party_id, repo, revision)
    if resolved is None and _SHORT.fullmatch(revision):
        several = repository.revisions_beginning(session, caller.party_id, repo, revision)
        if len(several) > 1:
            raise HubError(
                "revision.ambiguous",
                f"several revisions of {repo} begin with {revision}",
                where="revision",
                hint=f"give more digits: {', '.join(known.revision for known in several)}",
            )
        resolved = several[0] if several else None
    if resolved is None:
        raise no_model(hint=_meant(session, caller, repo))
    return resolved


#: What helps where a model is there, and somebody else's.
_SHARED = (
    "its owner shares it: suture share PARTY/NAME YOUR-PARTY; "
    "the report of a job that your party evaluated: suture report JOB"
)


def no_model(where: str | None = None, hint: str | None = None) -> NotFound:
    """Return the one answer for a model, revision or file that is unknown or private."""
    return NotFound("no such model, revision or file", where=where, hint=hint or _SHARED)


def _meant(session: Session, caller: Caller, repo: str) -> str | None:
    """Return which of the models that the caller may read was probably meant by a name, None if it is one or none."""
    known = repository.repos_like(session, caller.party_id, repo)
    owner, _, name = repo.partition("/")
    if repo in known:
        return None
    # By the part in which they differ: the one that they have in common makes none of them the likelier.
    if all(other.startswith(f"{owner}/") for other in known):
        close = [f"{owner}/{other}" for other in nearest(name, [other.partition("/")[2] for other in known])]
    else:
        close = [f"{other}/{name}" for other in nearest(owner, [other.partition("/")[0] for other in known])]
    return did_you_mean(repo, close) if close else None


def no_readable_model(session: Session, caller: Caller, repo: str, where: str) -> NotFound:
    """Return the answer for a model in a request, with what was probably meant."""
    return no_model(where, _meant(session, caller, repo))


def publish(
    session: Session,
    *,
    party_id: int,
    name: str,
    files: Mapping[str, StoredFile],
    checked: Checked,
    created_by: str,
    now: datetime,
    visibility: Visibility = "private",
    job_id: str | None = None,
    signature: bytes | None = None,
) -> tuple[Revision, bool]:
    """Add a revision whose files are checked and stored; return it, and whether it is new.

    Content that the model has already had gives that revision back, and moves nothing: it is a repeated request, and
    newer content may have come meanwhile. The model is made with `visibility` if need be.
    """
    party = lock_party(session, party_id)
    model = repository.own_model(session, party_id, name)
    if model is None:
        model = new_model(session, party, name, visibility, now)
    existing = repository.own_revision(session, model.id, revision_id(files))
    if existing is not None:
        check_not_purged(existing)
        if job_id is not None:
            existing.job_id = job_id
        return existing, False
    title = "Publish" if job_id is None else f"Result of {job_id}"
    made = commit(
        session,
        model,
        files=files,
        checked=checked,
        signature=signature,
        title=title,
        created_by=created_by,
        now=now,
    )
    made.revision.job_id = job_id
    session.flush()
    return made.revision, True


def check_not_purged(revision: Revision) -> None:
    """Raise `Conflict` (`revision.purged`) for exactly the content that was taken away from this model."""
    if revision.purge is not None:
        raise Conflict(
            "revision.purged",
            f"exactly these files were purged from this model on {revision.purge.at:%Y-%m-%d}: {revision.purge.reason}",
            where=revision.model.repo,
            hint="publish other files, or these in a model of another name",
        )


def new_model(session: Session, party: Party, name: str, visibility: Visibility, now: datetime) -> Model:
    """Add a repository that has no commit yet; the party must be locked."""
    model = Model(party=party, name=name, visibility=visibility, task="", created_at=now, updated_at=now)
    session.add(model)
    session.flush()
    return model


def commit(
    session: Session,
    model: Model,
    *,
    files: Mapping[str, StoredFile],
    checked: Checked,
    title: str,
    created_by: str,
    now: datetime,
    message: str = "",
    branch: str = repository.MAIN,
    signature: bytes | None = None,
    first: bool = False,
) -> Commit:
    """Add a commit of exactly these files, checked and stored, and move a branch to it; the party must be locked.

    It follows on the branch's commit, unless it is to be the `first`, with nothing before it.

    `signature` is the content of `model.sig`. Raises `SutureError` (`signature.*`) if the party did not sign them.
    """
    identity = revision_id(files)
    revision = repository.own_revision(session, model.id, identity)
    if revision is not None:
        check_not_purged(revision)
    else:
        revision = _new_revision(session, model, files, checked, signature, created_by, now)
    ref = repository.branch(session, model.id, branch)
    if ref is not None and branch == repository.MAIN:
        check_newer(session, revision)
    session.flush()
    parent = ref.commit if ref is not None and not first else None
    made = Commit(
        model_id=model.id,
        parent_id=parent.id if parent is not None else None,
        revision=revision,
        oid=commit_id(model.id, parent.oid if parent is not None else None, identity, created_by, now, title, message),
        title=title,
        message=message,
        created_at=now,
        created_by=created_by,
    )
    session.add(made)
    session.flush()
    if ref is None:
        session.add(Ref(model_id=model.id, kind="branch", name=branch, commit=made))
    else:
        ref.commit = made
    if branch == repository.MAIN:
        _describe(model, checked)
    model.updated_at = now
    session.flush()
    record(
        session,
        created_by,
        "model.commit",
        model.repo,
        owner=model.party.name,
        revision=identity,
        commit=made.oid,
        branch=branch,
    )
    return made


def _new_revision(
    session: Session,
    model: Model,
    files: Mapping[str, StoredFile],
    checked: Checked,
    signature: bytes | None,
    created_by: str,
    now: datetime,
) -> Revision:
    """Return a revision of exactly these files, with its lineage and who signed it."""
    metadata = checked.metadata
    assert signature is not None or metadata is None or SIGNATURE not in files, "a signature is always checked"
    content = None if metadata is None else metadata.model_dump(mode="json", by_alias=True, exclude_none=True)
    revision = Revision(
        model=model,
        revision=revision_id(files),
        created_at=now,
        created_by=created_by,
        content=content,
        card=checked.card,
        safetensors=checked.safetensors,
    )
    set_files(session, revision, files)
    if metadata is not None:
        link_members(session, revision, metadata)
    if signature is not None:
        digests = {name: file.sha256 for name, file in files.items()}
        revision.key, revision.signed_at = signing_key(session, model, digests, signature, now)
    return revision


def _describe(model: Model, checked: Checked) -> None:
    """Set what listings show and search of a model to what its `main` now holds."""
    metadata = checked.metadata
    model.task = metadata.task if metadata is not None else ""
    model.description = (metadata.description if metadata is not None else None) or ""
    model.search_text = search_text(model.repo, model.description)
    kept = {entry.tag: entry for entry in model.tags}
    model.tags = [kept.get(tag) or ModelTag(tag=tag) for tag in tags_of(checked.card, metadata)]
    known = {(facet.kind, facet.value): facet for facet in model.facets}
    model.facets = [known.get(facet) or ModelFacet(kind=facet[0], value=facet[1]) for facet in facets_of(metadata)]
    model.training_n = training_n(metadata)


def delete_model(session: Session, model: Model, now: datetime, *, by: str) -> None:
    """Delete a model; its party must be locked. Its rows stay, for lineage and running jobs; its name is free again."""
    record(session, by, "model.delete", model.repo, owner=model.party.name)
    repository.note_deleted(session, model, now)
    model.deleted_at = now
    model.name = f"{model.name}~{model.id}"


def own_model(session: Session, caller: Caller, repo: str) -> repository.Listed:
    """Return a model of the caller's, to be changed (role `publisher`)."""
    lock_party(session, caller.party_id)  # before it is read: who changes it at once waits
    listed = get_model(session, caller, repo)
    if listed.Model.party_id != caller.party_id:
        raise Forbidden("auth.forbidden", "only its owner may change a model", where=repo)
    caller.require("publisher")
    return listed


def change(session: Session, caller: Caller, model: Model, now: datetime, wanted: ModelChange) -> None:
    """Change who may read an own repository, and who gets its files; its party must have been locked before."""
    if wanted == ModelChange():
        return
    if wanted.visibility is not None:
        model.visibility = wanted.visibility
    if wanted.gated is not None:
        model.gated = "" if wanted.gated == "open" else wanted.gated
    if wanted.shared_with is not None:
        _share(session, model, wanted.shared_with, "shared_with")
    if wanted.share_with:
        _share(session, model, [*_names(model), *wanted.share_with], "share_with")
    for name in wanted.stop_sharing_with:
        if find_party(session, name) is None:  # a typing error, by which nobody is kept from reading
            raise no_party(session, name, "stop_sharing_with")
    model.shares = [share for share in model.shares if share.party.name not in wanted.stop_sharing_with]
    model.updated_at = now
    session.flush()
    record(
        session,
        caller.name,
        "model.change",
        model.repo,
        owner=caller.party,
        visibility=model.visibility,
        gated=model.gated or "open",
        shared_with=_names(model),
    )


def _names(model: Model) -> list[str]:
    return sorted(share.party.name for share in model.shares)


def _share(session: Session, model: Model, names: Collection[str], field: str) -> None:
    kept = {share.party.name: share for share in model.shares}
    shares = []
    for name in sorted({*names} - {model.party.name}):
        party = kept[name].party if name in kept else find_party(session, name)
        if party is None:
            raise no_party(session, name, field)
        shares.append(kept.get(name) or ModelShare(party=party))
    if len(shares) > MOST_READERS:
        raise HubError(
            "model.too_many_readers",
            f"a model is shared with at most {MOST_READERS} parties",
            where=field,
            hint="let every party read it, or stop sharing it with some first",
        )
    model.shares = shares


def readers(session: Session, caller: Caller, model: Model) -> list[str]:
    """Return the parties that may read a private model beside its owner, by name; told to the owner alone."""
    if model.party_id != caller.party_id:
        return []
    return repository.shared_with(session, model.id)

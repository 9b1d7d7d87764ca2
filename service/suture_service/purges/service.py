"""The rules of purges.

A purge goes in three steps, each harmless when it is done again: one transaction empties the revisions, and writes down
what is to go; jobs that needed these revisions end; the store gives up the content. Killed in between, the same call
again, or a collection, finishes it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from suture_contract.model.metadata import ModelMetadata
from suture_contract.model.signature import SIGNATURE
from suture_service.audit.chain import record
from suture_service.database import portions
from suture_service.errors import HubError
from suture_service.hub import HubContext
from suture_service.jobs.lifecycle import Lifecycle
from suture_service.jobs.repository import lock_job
from suture_service.models.references import lock_out_commits, referenced
from suture_service.models.service import CARD, METADATA, MODEL, Checked, commit, no_model
from suture_service.models.trees import StoredFile, files_of
from suture_service.parties.repository import lock_party
from suture_service.purges import repository
from suture_service.purges.schemas import KeptPurge, PurgeOut, RevisionAt, Scope
from suture_service.tables import Model, Purge, Ref, Revision

#: While one portion of contents is removed, commits wait.
_PORTION = 200
TITLE = "Take out what was purged"


@dataclass(frozen=True)
class PurgeTarget:
    """What is to go from the model `repo`: all that was ever at `path`, or one `revision`, or contents by sha256."""

    repo: str
    path: str | None = None
    revision: str | None = None
    digests: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Affected:
    """What is there of a target: contents with their sizes, and revisions; `whole` if a revision itself is to go."""

    model: Model
    sizes: dict[str, int]
    revision_ids: set[int]
    whole: bool = False


def purge(
    hub: HubContext, target: PurgeTarget, scope: Scope, *, by: str, reason: str, reader: int | None = None
) -> PurgeOut:
    """Take content away for good, with every revision in `scope` that holds it; finish a purge that was broken off.

    Of what was made of it, and of jobs, the party `reader` is told what it may see; None: all. Raises `NotFound` where
    nothing of it is there and nothing of it was purged.
    """
    with hub.database.writing() as session:
        models = _models(session, target.repo)
        waiting = list(repository.unfinished(session, [model.id for model in models]))
        affected = _find(session, models, target, scope)
        if affected is not None:
            shown = _show(session, target.repo, affected, reader)
            row = Purge(id=f"purge_{secrets.token_hex(8)}", repo=target.repo, scope=scope, by=by, reason=reason)
            row.path_sha256 = _sha256(target.path) if target.path is not None else None
            _take_away(session, affected, row, hub.now())
            shown.id = row.id
            waiting.append(shown.id)
        else:
            shown = _shown_before(session, models, target, reader)
    shown.versions_kept = hub.store.keeps_versions(shown.digests)
    for purge_id in waiting:
        finish(hub, purge_id)
    shown.done = True
    return shown


def plan(session: Session, target: PurgeTarget, scope: Scope, reader: int | None = None) -> PurgeOut:
    """Return what a purge would take away; raises `NotFound` as it does."""
    models = _models(session, target.repo)
    affected = _find(session, models, target, scope)
    if affected is None:
        return _shown_before(session, models, target, reader)
    return _show(session, target.repo, affected, reader)


def finish(hub: HubContext, purge_id: str) -> None:
    """End the jobs that needed what was purged, and have the store give it up. Repeating it is harmless."""
    with hub.database.reading() as session:
        jobs = repository.jobs_with(session, Revision.purge_id == purge_id)
    for job_id in jobs:
        with hub.database.writing() as session:
            job = lock_job(session, job_id)
            if job is not None:
                Lifecycle(hub, session, job, None).lose_member()
    _empty_store(hub, purge_id)
    with hub.database.writing() as session:
        session.get_one(Purge, purge_id).done_at = hub.now()


def finish_all(hub: HubContext) -> int:
    """Finish what was broken off; return how many purges that were."""
    with hub.database.reading() as session:
        waiting = repository.unfinished(session)
    for purge_id in waiting:
        finish(hub, purge_id)
    return len(waiting)


def apply_again(session: Session, kept: Iterable[KeptPurge], now: datetime) -> list[str]:
    """Purge from a backup's rows what was purged after it was made; return the ids of these purges.

    Those that the rows know of are passed over: what came after them was meant to be there. `finish` has to follow.
    """
    applied = []
    for entry in kept:
        if session.get(Purge, entry.id) is not None:
            continue
        model = session.get(Model, entry.model_id) if entry.model_id is not None else None
        if model is None and entry.scope != "hub":
            continue  # it is younger than the backup, and so is all that it held
        revision_ids = repository.holding(session, entry.digests, repository.within(entry.scope, model))
        if model is not None:
            revision_ids |= repository.known_revisions(session, entry.revisions, model.id)
        sizes = dict.fromkeys(entry.digests, 0)
        rows = repository.revisions(session, revision_ids)
        owner = model or (rows[0].model if rows else None)
        if owner is not None:
            affected = _Affected(owner, sizes, revision_ids)
            row = Purge(id=entry.id, repo=entry.repo, scope=entry.scope, by=entry.by, reason=entry.reason)
            _take_away(session, affected, row, now)
            applied.append(entry.id)
    return applied


def kept(session: Session) -> list[KeptPurge]:
    """Return all purges, oldest first, as a restore reads them."""
    rows = repository.list_purges(session)
    return [KeptPurge.model_validate(row, from_attributes=True) for row in rows]


def _models(session: Session, repo: str) -> Sequence[Model]:
    models = repository.models_named(session, repo)
    if not models:
        raise no_model(where=repo, hint="name a model of yours as PARTY/NAME: `suture models` lists them")
    return models


def _find(session: Session, models: Sequence[Model], target: PurgeTarget, scope: Scope) -> _Affected | None:
    """Return what is there of the target; None if nothing is. Deleted models of the name count, too.

    What an earlier purge of the same target has named counts, as far as the scope has it still: an owner's purge left
    what others hold.
    """
    ids = [model.id for model in models]
    where = repository.within(scope, models[0])
    digests = set(target.digests)
    if target.revision is not None:
        several = repository.beginning(session, ids, target.revision)
        if len(several) > 1:
            digits = ", ".join(row.revision for row in several)
            raise HubError("revision.ambiguous", f"several begin with {target.revision}", where="revision", hint=digits)
        if several:
            return _whole(session, several[0], where)
    elif target.path is not None:
        digests = repository.digests_at(session, ids, target.path)
    known = _known_purge(session, ids, target)
    if known is not None:
        digests |= {*known.digests}
    revision_ids = repository.holding(session, digests, where)
    if not revision_ids:
        return None
    sizes = repository.sizes_of(session, revision_ids)
    return _Affected(models[0], {sha256: sizes[sha256] for sha256 in digests if sha256 in sizes}, revision_ids)


def _whole(session: Session, row: Revision, where: ColumnElement[bool]) -> _Affected:
    """Return a revision with the contents that no other one holds."""
    sizes = repository.sizes_of(session, [row.id])
    shared = repository.held_by_others(session, sizes, row.id, where)
    alone = {sha256: size for sha256, size in sizes.items() if sha256 not in shared}
    return _Affected(row.model, alone, {row.id}, whole=True)


def _show(session: Session, repo: str, affected: _Affected, reader: int | None) -> PurgeOut:
    made = repository.descendants(session, affected.revision_ids, reader)
    jobs = repository.jobs_with(session, Revision.id.in_(sorted(affected.revision_ids)), reader)
    return PurgeOut(
        id=None,
        repo=repo,
        done=False,
        revisions=_names(repository.revisions(session, affected.revision_ids)),
        digests=sorted(affected.sizes),
        bytes=sum(affected.sizes.values()),
        descendants=_names(made),
        jobs=list(jobs),
    )


def _shown_before(session: Session, models: Sequence[Model], target: PurgeTarget, reader: int | None) -> PurgeOut:
    """Return the purge that left nothing of this target to purge; raises `NotFound` if there was none."""
    row = _known_purge(session, [model.id for model in models], target)
    if row is None:
        what = f"file {target.path!r}" if target.path is not None else "revision or content of this id"
        raise no_model(where=target.repo, hint=f"no revision of it has a {what}; nothing was purged")
    emptied = repository.purged_revisions(session, row.id)
    return PurgeOut(
        id=row.id,
        repo=row.repo,
        done=row.done_at is not None,
        revisions=_names(emptied),
        digests=row.digests,
        bytes=0,
        descendants=_names(repository.descendants(session, [each.id for each in emptied], reader)),
        jobs=[],
    )


def _known_purge(session: Session, model_ids: Sequence[int], target: PurgeTarget) -> Purge | None:
    if target.revision is not None:
        emptied = repository.beginning(session, model_ids, target.revision, purged=True)
        return emptied[0].purge if len(emptied) == 1 else None
    for row in repository.purges_of(session, model_ids):
        same_path = target.path is not None and row.path_sha256 == _sha256(target.path)
        if same_path or (target.digests and {*target.digests} <= {*row.digests}):
            return row
    return None


def _sha256(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()


def _names(rows: Iterable[Revision]) -> list[RevisionAt]:
    return [RevisionAt(repo=row.model.repo, revision=row.revision) for row in rows]


def _take_away(session: Session, affected: _Affected, purge: Purge, now: datetime) -> None:
    """Empty the revisions, give each branch that was at one of them what is left, and write all of it down."""
    rows = repository.revisions(session, affected.revision_ids)
    for party_id in sorted({affected.model.party_id, *(row.model.party_id for row in rows)}):
        lock_party(session, party_id)
    refs = repository.refs_to(session, affected.revision_ids)
    left = [(ref.model_id, ref.name, *_left(session, ref, affected)) for ref in refs if ref.kind == "branch"]
    purge.model_id, purge.at = affected.model.id, now
    purge.revisions, purge.digests = [row.revision for row in rows], sorted(affected.sizes)
    session.add(purge)
    session.flush()
    _record(session, purge, rows, affected)
    for ref in refs:
        if ref.kind == "tag":
            session.delete(ref)
    session.flush()
    repository.empty(session, affected.revision_ids, purge.id)
    for model_id, branch, files, checked in left:
        model = session.get_one(Model, model_id)
        commit(session, model, files=files, checked=checked, title=TITLE, created_by=purge.by, now=now, branch=branch)


def _record(session: Session, purge: Purge, rows: Sequence[Revision], affected: _Affected) -> None:
    """Add an entry for each model, so that every party reads of its own."""
    models = {row.model_id: row.model for row in rows} or {affected.model.id: affected.model}
    for model in models.values():
        revisions = [row.revision for row in rows if row.model_id == model.id]
        facts = {"purge": purge.id, "reason": purge.reason, "revisions": revisions, "digests": purge.digests}
        record(session, purge.by, "model.purge", model.repo, owner=model.party.name, **facts)


def _left(session: Session, ref: Ref, affected: _Affected) -> tuple[dict[str, StoredFile], Checked]:
    """Return what a branch holds from now on: its files without what is purged.

    Where the revision itself goes, or its model, these are the files before. A signature is of all files, and of a
    time: it does not go with what is left.
    """
    revision: Revision | None = ref.commit.revision
    files = _files(session, revision)
    left = {name: file for name, file in files.items() if file.sha256 not in affected.sizes}
    if affected.whole or (MODEL in files and MODEL not in left):
        revision = _before(session, ref, affected)
        left = _files(session, revision)
    left.pop(SIGNATURE, None)
    if revision is None:
        return {}, Checked()
    whole = MODEL in left and METADATA in left and revision.content is not None
    return left, Checked(
        ModelMetadata.model_validate(revision.content) if whole else None,
        revision.safetensors if whole else None,
        revision.card if CARD in left else None,
    )


def _before(session: Session, ref: Ref, affected: _Affected) -> Revision | None:
    """Return the last revision before a branch's own that is not purged; None if there is none."""
    parents = repository.parents(session, ref.model_id)
    at: int | None = ref.commit_id
    while at is not None:
        at, revision_id = parents[at]
        if revision_id not in affected.revision_ids:
            revision = session.get_one(Revision, revision_id)
            if revision.purge_id is None:
                return revision
    return None


def _files(session: Session, revision: Revision | None) -> dict[str, StoredFile]:
    rows = files_of(session, revision.id) if revision is not None else ()
    return {row.name: StoredFile(row.sha256, row.size, row.git_oid) for row in rows}


def _empty_store(hub: HubContext, purge_id: str) -> None:
    with hub.database.reading() as session:
        purge = session.get_one(Purge, purge_id)
        scope: Scope = purge.scope  # type: ignore[assignment]  # checked before it was written
        pieces, digests = repository.pieces_of(session, purge_id), purge.digests
    for portion in portions(digests, _PORTION):
        with hub.database.writing() as session:
            lock_out_commits(session)
            model = session.get(Model, purge.model_id) if purge.model_id is not None else None
            repository.forget_copies(session, portion, scope, model)
            wanted = referenced(session, portion)
            gone = [sha256 for sha256 in portion if sha256 not in wanted]
            hub.store.delete(gone)
            repository.forget_sent(session, gone)
    hub.store.delete_pieces(pieces)
    with hub.database.writing() as session:
        repository.forget_pieces(session, purge_id)

"""Lineage in the database, and which revisions are flagged by it. No more than SQL: kept free of other rooms' rules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, joinedload

from suture_contract.model.metadata import MemberRef, ModelMetadata
from suture_service.conditions import deleted_as, may_read
from suture_service.keys.schemas import FlagOut
from suture_service.tables import Model, Party, PartyKey, Revision, RevisionMember


def link_members(session: Session, revision: Revision, metadata: ModelMetadata) -> None:
    """Write down which revisions a new one says it was made of, as far as this hub has them."""
    lineage = metadata.lineage
    members = (_member(session, member) for member in (lineage.members if lineage is not None else ()))
    revision.members = [RevisionMember(member_id=row) for row in dict.fromkeys(members) if row is not None]


def _member(session: Session, member: MemberRef) -> int | None:
    party, _, name = member.repo.partition("/")
    statement = (
        select(Revision.id)
        .join(Revision.model)
        .join(Model.party)
        .where(Party.name == party, or_(Model.name == name, deleted_as(name)), Revision.revision == member.revision)
        .order_by(Model.deleted_at.is_not(None), Revision.id.desc())
    )
    return session.scalars(statement.limit(1)).one_or_none()


class _Cause(NamedTuple):
    root: int
    revision: Revision
    readable: bool


def flags_of(session: Session, revision_ids: Collection[int], party_id: int) -> dict[int, list[FlagOut]]:
    """Return the flags of each of the revisions that has any, oldest first, as this party may read them."""
    if not revision_ids:
        return {}
    origin = (
        select(Revision.id.label("root"), Revision.id.label("id"))
        .where(Revision.id.in_(revision_ids))
        .cte("origin", recursive=True)
    )
    # A union leaves out what is there already: shared ancestors come once, and a circle ends.
    origin = origin.union(
        select(origin.c.root, RevisionMember.member_id).join(RevisionMember, RevisionMember.revision_id == origin.c.id)
    )
    statement = (
        select(origin.c.root, Revision, may_read(party_id).label("readable"))
        .join(Revision, Revision.id == origin.c.id)
        .join(Revision.model)
        .join(Revision.key, isouter=True)
        .where(
            or_(Revision.withdrawn_at.is_not(None), PartyKey.revoked_at.is_not(None), Revision.purge_id.is_not(None))
        )
        .options(
            joinedload(Revision.model).joinedload(Model.party), joinedload(Revision.key), joinedload(Revision.purge)
        )
        .order_by(Revision.id)
    )
    flags: dict[int, list[FlagOut]] = {}
    for row in session.execute(statement):
        cause = _Cause(*row)
        # Whoever may read a model may read what it was itself taken back for.
        readable = cause.readable or cause.root == cause.revision.id
        flags.setdefault(cause.root, []).extend(own_flags(cause.revision, readable=readable))
    return flags


def own_flags(revision: Revision, *, readable: bool) -> Sequence[FlagOut]:
    """Return what a revision is itself flagged for; without names and reasons to whom may not read it."""
    repo, identity = (revision.model.repo, revision.revision) if readable else (None, None)
    flags = []
    if revision.withdrawn_at is not None:
        reason = (revision.withdrawn_reason or "") if readable else ""
        flag = FlagOut(kind="withdrawn", repo=repo, revision=identity, reason=reason, at=revision.withdrawn_at)
        flags.append(flag)
    if revision.purge is not None:
        reason = revision.purge.reason if readable else ""
        flags.append(FlagOut(kind="purged", repo=repo, revision=identity, reason=reason, at=revision.purge.at))
    key = revision.key
    if key is not None and key.revoked_at is not None:
        # Keys, and why they were revoked, are for every party to see; whose it is would tell whose model it is.
        reason = (key.revoked_reason or "") if readable else ""
        flags.append(FlagOut(kind="key_revoked", repo=repo, revision=identity, reason=reason, at=key.revoked_at))
    return flags

"""All SQL about models and revisions. Whatever a caller reads starts from `readable`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from sqlalchemy import ColumnElement, Row, ScalarSelect, Select, and_, exists, or_, select
from sqlalchemy.orm import Session, contains_eager, joinedload, selectinload

from suture_service.jobs.states import ACTIVE_JOBS, TaskState
from suture_service.tables import (
    Commit,
    Job,
    JobMember,
    Model,
    ModelShare,
    Party,
    Ref,
    Revision,
    RevisionFile,
    Task,
)

MAIN = "main"
Listed: TypeAlias = "Row[Model, Revision]"


def may_read(party_id: int) -> ColumnElement[bool]:
    """The condition under which a party may read a model: it owns it, all may, or it is shared with it."""
    shared = exists().where(ModelShare.model_id == Model.id, ModelShare.party_id == party_id)
    visible = or_(Model.party_id == party_id, Model.visibility == "all", shared)
    return and_(Model.deleted_at.is_(None), visible)


def on_main() -> ColumnElement[bool]:
    """The condition under which a ref is its model's branch `main`."""
    return and_(Ref.model_id == Model.id, Ref.kind == "branch", Ref.name == MAIN)


def main_revision_id() -> ScalarSelect[int]:
    """The revision on a model's branch `main`.

    Not joined: SQLite, which knows no more of the tables than their indexes, would begin with all branches.
    """
    head = select(Commit.revision_id).join(Ref, Ref.commit_id == Commit.id)
    return head.where(on_main()).correlate(Model).scalar_subquery()


def readable(party_id: int, *, by_name: bool = False) -> Select[Model, Revision]:
    """Models this party may read, each with what its branch `main` holds; repositories without a model are left out.

    With `by_name`, they are looked up party by party, so that a page by name needs no more than its own models: the
    sum keeps the database from looking up the party of every model.
    """
    return (
        select(Model, Revision)
        .join(Party, Model.party_id == (Party.id + 0 if by_name else Party.id))
        .join(Revision, Revision.id == main_revision_id())
        .where(may_read(party_id), Model.task != "")
        .options(contains_eager(Model.party), selectinload(Model.shares).joinedload(ModelShare.party))
    )


def find_model(session: Session, party_id: int, repo: str) -> Listed | None:
    """Return the model `party/name` and the revision on `main`, if this party may read it."""
    party, _, name = repo.partition("/")
    statement = readable(party_id).where(Party.name == party, Model.name == name)
    return session.execute(statement).one_or_none()


def _readable_revisions(party_id: int, repo: str) -> Select[Revision]:
    party, _, name = repo.partition("/")
    return _revisions().where(
        may_read(party_id), Party.name == party, Model.name == name, Revision.content.is_not(None)
    )


def _deleted_member(party_id: int, repo: str, revision: str) -> Select[Revision]:
    """A revision of a deleted model, for parties that work at a job of which it is a member."""
    party, _, name = repo.partition("/")
    at_work = exists().where(
        JobMember.revision_id == Revision.id,
        Job.id == JobMember.job_id,
        Task.job_id == Job.id,
        Task.party_id == party_id,
        # A partial job wants late answers.
        or_(Job.state.in_(ACTIVE_JOBS), Task.state == TaskState.LEASED),
    )
    deleted = and_(Model.deleted_at.is_not(None), Model.name.startswith(f"{name}~", autoescape=True))
    found = _revisions().where(Party.name == party, deleted, Revision.revision == revision, at_work)
    return found.order_by(Revision.id.desc()).limit(1)


def _revisions() -> Select[Revision]:
    return (
        select(Revision)
        .join(Revision.model)
        .join(Model.party)
        .options(
            contains_eager(Revision.model).contains_eager(Model.party),
            selectinload(Revision.files),
            joinedload(Revision.key),
        )
    )


def find_revision(session: Session, party_id: int, repo: str, revision: str) -> Revision | None:
    """Return a revision (40 hex digits or `latest`) of `party/name`, if this party may read it.

    What a running job needs stays readable for those who work at it when the model is deleted meanwhile.
    """
    statement = _readable_revisions(party_id, repo)
    if revision == "latest":
        statement = (
            statement.join(Ref, on_main())
            .join(Commit, Commit.id == Ref.commit_id)
            .where(Revision.id == Commit.revision_id)
        )
    else:
        statement = statement.where(Revision.revision == revision)
    found = session.scalars(statement).one_or_none()
    return found or session.scalars(_deleted_member(party_id, repo, revision)).one_or_none()


def list_revisions(session: Session, party_id: int, repo: str, before: int | None, limit: int) -> Sequence[Revision]:
    """Return a readable model's revisions, newest first; one more than `limit`."""
    statement = _readable_revisions(party_id, repo).order_by(Revision.id.desc()).limit(limit + 1)
    if before is not None:
        statement = statement.where(Revision.id < before)
    return session.scalars(statement).all()


def unreadable_by(session: Session, model_ids: Sequence[int], party_id: int) -> set[int]:
    """Return those of the models that a party may not read."""
    statement = select(Model.id).where(and_(Model.id.in_(model_ids), may_read(party_id)))
    return set(model_ids) - set(session.scalars(statement))


def own_model(session: Session, party_id: int, name: str) -> Model | None:
    """Return a party's own model, to be changed."""
    return session.scalars(select(Model).where(Model.party_id == party_id, Model.name == name)).one_or_none()


def own_revision(session: Session, model_id: int, revision: str) -> Revision | None:
    """Return a revision of a model by its id."""
    statement = select(Revision).where(Revision.model_id == model_id, Revision.revision == revision)
    return session.scalars(statement).one_or_none()


def branch(session: Session, model_id: int, name: str) -> Ref | None:
    """Return a branch with its commit."""
    return session.get(Ref, (model_id, "branch", name), options=[joinedload(Ref.commit)])


def sizes_of(session: Session, party_id: int) -> dict[str, int]:
    """Return the sizes of all contents that a party's repositories hold, by digest; equal files count once."""
    statement = (
        select(RevisionFile.sha256, RevisionFile.size)
        .join(Revision, Revision.id == RevisionFile.revision_id)
        .join(Model, Model.id == Revision.model_id)
        .where(Model.party_id == party_id, Model.deleted_at.is_(None))
        .distinct()
    )
    return {row.sha256: row.size for row in session.execute(statement)}


def lock_party(session: Session, party_id: int) -> Party:
    """Return a party and let nobody else publish under it until this transaction ends."""
    return session.scalars(select(Party).where(Party.id == party_id).with_for_update()).one()

"""All SQL about models and revisions. Whatever a caller reads starts from `readable`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TypeAlias

from sqlalchemy import (
    ColumnElement,
    Row,
    ScalarSelect,
    Select,
    and_,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    union,
)
from sqlalchemy.orm import Session, contains_eager, joinedload, selectinload

from suture_service.conditions import deleted_as, may_go_on, may_read
from suture_service.database import portions
from suture_service.hub import utc_now
from suture_service.models.trees import parts_of_models
from suture_service.states import ACTIVE_JOBS, TaskState
from suture_service.tables import (
    Commit,
    Job,
    JobMember,
    Model,
    ModelShare,
    Party,
    Ref,
    Revision,
    SentContent,
    Task,
    TaskFile,
    TreeFile,
    TreePart,
    XetEpoch,
    XetXorb,
)

MAIN = "main"
Listed: TypeAlias = "Row[Model, Revision]"


def keeps_files() -> ColumnElement[bool]:
    """The condition under which a revision's files are not garbage: they were not purged, and its model is there.

    Those of a deleted model are kept while a job may go on that was made with it, and for an hour besides, in which
    whatever began before comes to its end.
    """
    made_with = select(Revision.model_id).join(JobMember).join(Job).where(may_go_on())
    needed = or_(
        Model.deleted_at.is_(None),
        Model.deleted_at > utc_now() - timedelta(hours=1),
        Model.id.in_(made_with),
    )
    return and_(Revision.purge_id.is_(None), needed)


def on_main() -> ColumnElement[bool]:
    """The condition under which a ref is its model's branch `main`."""
    return and_(Ref.model_id == Model.id, Ref.kind == "branch", Ref.name == MAIN)


def main_revision_id() -> ScalarSelect[int]:
    """The revision on a model's branch `main`.

    Not joined: SQLite, which knows no more of the tables than their indexes, would begin with all branches.
    """
    head = select(Commit.revision_id).join(Ref, Ref.commit_id == Commit.id)
    return head.where(on_main()).correlate(Model).scalar_subquery()


def main_commit_oid() -> ScalarSelect[str]:
    """The id of the commit that a model's branch `main` is at."""
    return select(Commit.oid).join(Ref, Ref.commit_id == Commit.id).where(on_main()).correlate(Model).scalar_subquery()


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


def shared_with(session: Session, model_id: int) -> list[str]:
    """Return the parties with which a model is shared, by name."""
    statement = select(Party.name).join(ModelShare, ModelShare.party_id == Party.id)
    return list(session.scalars(statement.where(ModelShare.model_id == model_id).order_by(Party.name)))


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
    there = and_(deleted_as(name), Revision.purge_id.is_(None))
    statement = _revisions().where(Party.name == party, there, Revision.revision == revision, at_work)
    return statement.order_by(Revision.id.desc()).limit(1)


def _revisions() -> Select[Revision]:
    return (
        select(Revision)
        .join(Revision.model)
        .join(Model.party)
        .options(
            contains_eager(Revision.model).contains_eager(Model.party),
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
    readable = session.scalars(statement).one_or_none()
    return readable or session.scalars(_deleted_member(party_id, repo, revision)).one_or_none()


def revisions_beginning(session: Session, party_id: int, repo: str, digits: str) -> Sequence[Revision]:
    """Return readable revisions of `party/name` whose ids begin with these hex digits, at most three."""
    statement = _readable_revisions(party_id, repo).where(Revision.revision.startswith(digits, autoescape=True))
    return session.scalars(statement.order_by(Revision.id.desc()).limit(3)).all()


def repos_like(session: Session, party_id: int, repo: str) -> list[str]:
    """Return models that this party may read: the newest of the owner in `repo`, or without any, those of its name."""
    party, _, name = repo.partition("/")
    readable = select(Party.name, Model.name).join(Model, Model.party_id == Party.id).where(may_read(party_id))
    newest = readable.where(Model.task != "").order_by(Model.id.desc()).limit(1000)
    rows = session.execute(newest.where(Party.name == party)).all() or session.execute(newest.where(Model.name == name))
    return [f"{owner}/{own}" for owner, own in rows]


def list_revisions(session: Session, party_id: int, repo: str, before: int | None, limit: int) -> Sequence[Revision]:
    """Return a readable model's revisions with their files, newest first; one more than `limit`."""
    statement = _readable_revisions(party_id, repo).order_by(Revision.id.desc()).limit(limit + 1)
    statement = statement.options(selectinload(Revision.files))
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


def _contents_of(party_id: int) -> list[Select[str, int]]:
    """Digests and sizes of what a party's repositories hold, its tasks have brought, and it has sent."""
    in_models = select(TreeFile.sha256, TreeFile.size).where(
        TreeFile.part_id.in_(parts_of_models(Model.party_id == party_id, keeps_files()))
    )
    of_tasks = select(TaskFile.sha256, TaskFile.size).join(Task).where(Task.party_id == party_id)
    sent = select(SentContent.sha256, SentContent.size).where(SentContent.party_id == party_id)
    return [in_models, of_tasks, sent]


def bytes_held(session: Session, party_id: int) -> int:
    """Return how many bytes all contents of a party take; equal ones count once."""
    contents = union(*_contents_of(party_id)).subquery()
    return session.scalar(select(func.sum(contents.c.size))) or 0


def _contents_of_all() -> Select[int, str, int]:
    """Party, digest and size of all content that is kept."""
    in_models = (
        select(Model.party_id, TreeFile.sha256, TreeFile.size)
        .join(TreePart, TreePart.model_id == Model.id)
        .join(TreeFile, TreeFile.part_id == TreePart.id)
        .where(TreePart.id.in_(parts_of_models(keeps_files())))
    )
    of_tasks = select(Task.party_id, TaskFile.sha256, TaskFile.size).join(TaskFile, TaskFile.task_id == Task.id)
    sent = select(SentContent.party_id, SentContent.sha256, SentContent.size)
    contents = union(in_models, of_tasks, sent).subquery()
    return select(contents.c.party_id, contents.c.sha256, contents.c.size)


def bytes_by_party(session: Session) -> dict[int, int]:
    """Return how many bytes all contents of each party take, as `bytes_held` does."""
    contents = _contents_of_all().subquery()
    rows = session.execute(select(contents.c.party_id, func.sum(contents.c.size)).group_by(contents.c.party_id))
    return {party_id: int(size) for party_id, size in rows}


def bytes_of_all(session: Session) -> int:
    """Return how many bytes the contents of all parties take; equal ones count once."""
    contents = _contents_of_all().subquery()
    once = select(contents.c.sha256, contents.c.size).distinct().subquery()
    return int(session.scalar(select(func.sum(once.c.size))) or 0)


def held(session: Session, party_id: int, digests: Sequence[str]) -> set[str]:
    """Return those of the digests whose content a party has already."""
    present: set[str] = set()
    for portion in portions(digests):
        for contents in _contents_of(party_id):
            present.update(session.scalars(contents.where(contents.selected_columns[0].in_(portion))))
    return present


def bytes_of_pieces(session: Session, party_id: int) -> int:
    """Return how many bytes the pieces take that a party has sent by Xet and that are not forgotten yet."""
    statement = select(func.sum(XetXorb.size)).join(XetEpoch).join(Model).where(Model.party_id == party_id)
    return session.scalar(statement) or 0


def note_deleted(session: Session, model: Model, now: datetime) -> None:
    """Let what a deleted model held count as sent by its party: it takes room until it is collected."""
    known = select(SentContent.sha256).where(SentContent.party_id == model.party_id)
    contents = (
        select(literal(model.party_id), TreeFile.sha256, func.max(TreeFile.size), literal(now))
        .where(TreeFile.part_id.in_(parts_of_models(Model.id == model.id)), TreeFile.sha256.not_in(known))
        .group_by(TreeFile.sha256)
    )
    session.execute(insert(SentContent).from_select(["party_id", "sha256", "size", "sent_at"], contents))

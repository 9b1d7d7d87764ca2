"""All SQL about purges. Rows of a purged revision stay: others' lineage and jobs name it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import ColumnElement, Select, delete, exists, or_, select, true, update
from sqlalchemy.orm import Session, joinedload

from suture_service.conditions import deleted_as, may_read
from suture_service.database import portions
from suture_service.models import trees
from suture_service.models.service import MODEL
from suture_service.models.trees import parts_of_models
from suture_service.purges.schemas import Scope
from suture_service.states import ACTIVE_JOBS, TaskState
from suture_service.tables import (
    Commit,
    Job,
    JobMember,
    Model,
    Party,
    Purge,
    ReceivedFile,
    Ref,
    Revision,
    RevisionMember,
    RevisionPart,
    SentContent,
    Task,
    TaskFile,
    TreeFile,
    XetEpoch,
    XetXorb,
)

#: What the history says in place of what a purged commit said.
SCRUBBED = "purged"


def models_named(session: Session, repo: str) -> Sequence[Model]:
    """Return the model `party/name` and those that were deleted under this name, the present one first."""
    party, _, name = repo.partition("/")
    named = or_(Model.name == name, deleted_as(name))
    statement = select(Model).join(Model.party).where(Party.name == party, named)
    return session.scalars(statement.options(joinedload(Model.party)).order_by(Model.deleted_at.is_not(None))).all()


def within(scope: Scope, model: Model | None) -> ColumnElement[bool]:
    """The condition under which a model lies in the scope of a purge that names `model`."""
    if scope == "hub" or model is None:
        return true()
    return Model.id == model.id if scope == "model" else Model.party_id == model.party_id


def digests_at(session: Session, model_ids: Collection[int], path: str) -> set[str]:
    """Return the sha256 of all that revisions of these models hold under a path."""
    statement = (
        select(TreeFile.sha256)
        .where(TreeFile.part_id.in_(parts_of_models(Model.id.in_(model_ids))), TreeFile.name == path)
        .distinct()
    )
    return set(session.scalars(statement))


def beginning(session: Session, model_ids: Collection[int], digits: str, *, purged: bool = False) -> Sequence[Revision]:
    """Return the revisions of these models whose id, or that of a commit of theirs, begins so; at most three."""
    there = Revision.purge_id.is_not(None) if purged else Revision.purge_id.is_(None)
    by_commit = select(Commit.revision_id).where(
        Commit.model_id.in_(model_ids), Commit.oid.startswith(digits, autoescape=True)
    )
    named = or_(Revision.revision.startswith(digits, autoescape=True), Revision.id.in_(by_commit))
    statement = select(Revision).where(Revision.model_id.in_(model_ids), there, named)
    return session.scalars(statement.order_by(Revision.id).limit(3)).all()


def holding(session: Session, digests: Collection[str], where: ColumnElement[bool]) -> set[int]:
    """Return the revisions that hold one of these contents, in models of which `where` is true."""
    holders: set[int] = set()
    for portion in portions(sorted(digests)):
        statement = (
            select(RevisionPart.revision_id)
            .join(TreeFile, TreeFile.part_id == RevisionPart.part_id)
            .join(Revision, Revision.id == RevisionPart.revision_id)
            .join(Model, Model.id == Revision.model_id)
            .where(where, Revision.purge_id.is_(None), TreeFile.sha256.in_(portion))
        )
        holders.update(session.scalars(statement.distinct()))
    return holders


def sizes_of(session: Session, revision_ids: Collection[int]) -> dict[str, int]:
    """Return size in bytes by sha256 of all that revisions hold."""
    sizes: dict[str, int] = {}
    for portion in portions(sorted(revision_ids)):
        parts = select(RevisionPart.part_id).where(RevisionPart.revision_id.in_(portion))
        statement = select(TreeFile.sha256, TreeFile.size).where(TreeFile.part_id.in_(parts)).distinct()
        sizes.update((sha256, size) for sha256, size in session.execute(statement))
    return sizes


def held_by_others(
    session: Session, digests: Collection[str], revision_id: int, where: ColumnElement[bool]
) -> set[str]:
    """Return those of the contents that another revision holds, too, in models of which `where` is true."""
    shared: set[str] = set()
    for portion in portions(sorted(digests)):
        statement = (
            select(TreeFile.sha256)
            .where(TreeFile.part_id.in_(parts_of_models(where, Revision.id != revision_id)))
            .where(TreeFile.sha256.in_(portion))
            .distinct()
        )
        shared.update(session.scalars(statement))
    return shared


def revisions(session: Session, revision_ids: Collection[int]) -> list[Revision]:
    """Return revisions with their models, oldest first."""
    rows: list[Revision] = []
    for portion in portions(sorted(revision_ids)):
        statement = select(Revision).where(Revision.id.in_(portion)).order_by(Revision.id)
        rows += session.scalars(statement.options(joinedload(Revision.model).joinedload(Model.party)))
    return rows


def descendants(session: Session, revision_ids: Collection[int], party_id: int | None) -> list[Revision]:
    """Return what was made of revisions, and of that in turn; for a party, what it may read of this."""
    seen, newest = set(revision_ids), set(revision_ids)
    while newest:
        made: set[int] = set()
        for portion in portions(sorted(newest)):
            made.update(
                session.scalars(select(RevisionMember.revision_id).where(RevisionMember.member_id.in_(portion)))
            )
        newest = made - seen
        seen |= newest
    rows: list[Revision] = []
    for portion in portions(sorted(seen - set(revision_ids))):
        statement = select(Revision).join(Revision.model).where(Revision.id.in_(portion)).order_by(Revision.id)
        if party_id is not None:
            statement = statement.where(may_read(party_id))
        rows += session.scalars(statement.options(joinedload(Revision.model).joinedload(Model.party)))
    return rows


def jobs_with(session: Session, where: ColumnElement[bool], party_id: int | None = None) -> Sequence[str]:
    """Return the jobs that have not ended, or wait for late answers, and have a revision as member for which `where`
    is true; for a party, those that it sees.
    """
    late = exists().where(Task.job_id == Job.id, Task.state == TaskState.LATE)
    statement = (
        select(Job.id)
        .join(JobMember, JobMember.job_id == Job.id)
        .join(Revision, Revision.id == JobMember.revision_id)
        .where(where, or_(Job.state.in_(ACTIVE_JOBS), late))
        .distinct()
        .order_by(Job.id)
    )
    if party_id is not None:
        asked = exists().where(Task.job_id == Job.id, Task.party_id == party_id)
        statement = statement.where(or_(Job.requester_id == party_id, asked))
    return session.scalars(statement).all()


def refs_to(session: Session, revision_ids: Collection[int]) -> list[Ref]:
    """Return the branches and tags that are at revisions, of models that are there."""
    refs: list[Ref] = []
    for portion in portions(sorted(revision_ids)):
        statement = (
            select(Ref)
            .join(Commit, Commit.id == Ref.commit_id)
            .join(Model, Model.id == Ref.model_id)
            .where(Commit.revision_id.in_(portion), Model.deleted_at.is_(None))
            .options(joinedload(Ref.commit).joinedload(Commit.revision))
            .order_by(Ref.model_id, Ref.kind, Ref.name)
        )
        refs += session.scalars(statement)
    return refs


def parents(session: Session, model_id: int) -> dict[int, tuple[int | None, int]]:
    """Return the parent and the revision of each commit of a model, by the commit's row."""
    statement = select(Commit.id, Commit.parent_id, Commit.revision_id).where(Commit.model_id == model_id)
    return {row.id: (row.parent_id, row.revision_id) for row in session.execute(statement)}


def empty(session: Session, revision_ids: Collection[int], purge_id: str) -> None:
    """Take from revisions all that they say and hold, but the entry of the model file."""
    nothing = {"content": None, "card": None, "safetensors": None, "key_id": None, "signed_at": None}
    for portion in portions(sorted(revision_ids)):
        session.execute(
            update(Revision).where(Revision.id.in_(portion)).values(purge_id=purge_id, **nothing),
            execution_options={"synchronize_session": False},
        )
        session.execute(
            update(Commit).where(Commit.revision_id.in_(portion)).values(title=SCRUBBED, message=""),
            execution_options={"synchronize_session": False},
        )
    trees.empty(session, revision_ids, keep=MODEL)
    session.expire_all()


def forget_copies(session: Session, digests: Sequence[str], scope: Scope, model: Model | None) -> None:
    """Forget that contents were sent for a commit, and what tasks brought of them."""
    models = select(Model.id).where(within(scope, model))
    tasks = select(Task.id)
    if scope != "hub" and model is not None:
        tasks = tasks.where(Task.party_id == model.party_id)
    session.execute(delete(ReceivedFile).where(ReceivedFile.sha256.in_(digests), ReceivedFile.model_id.in_(models)))
    if scope != "model":
        session.execute(delete(TaskFile).where(TaskFile.sha256.in_(digests), TaskFile.task_id.in_(tasks)))


def forget_sent(session: Session, digests: Sequence[str]) -> None:
    """Let contents that the store no longer holds count against nobody's quota."""
    session.execute(delete(SentContent).where(SentContent.sha256.in_(digests)))


def pieces_of(session: Session, purge_id: str) -> Sequence[str]:
    """Return the names of the pieces that were sent to the models of a purge."""
    statement = select(XetXorb.name).join(XetEpoch).where(XetEpoch.model_id.in_(_models_of(purge_id)))
    return session.scalars(statement).all()


def forget_pieces(session: Session, purge_id: str) -> None:
    """Forget what was sent in pieces to the models of a purge; an upload that is under way starts again."""
    epochs = select(XetEpoch.id).where(XetEpoch.model_id.in_(_models_of(purge_id)))
    session.execute(delete(XetXorb).where(XetXorb.epoch_id.in_(epochs)))
    session.execute(delete(XetEpoch).where(XetEpoch.model_id.in_(_models_of(purge_id))))


def _models_of(purge_id: str) -> Select[int]:
    return select(Revision.model_id).where(Revision.purge_id == purge_id)


def unfinished(session: Session, model_ids: Collection[int] | None = None) -> Sequence[str]:
    """Return the purges whose content the store may still hold; of these models, or all."""
    statement = select(Purge.id).where(Purge.done_at.is_(None)).order_by(Purge.at)
    if model_ids is not None:
        statement = statement.where(Purge.model_id.in_(model_ids))
    return session.scalars(statement).all()


def purges_of(session: Session, model_ids: Collection[int]) -> Sequence[Purge]:
    """Return the purges of these models, the newest first."""
    return session.scalars(select(Purge).where(Purge.model_id.in_(model_ids)).order_by(Purge.at.desc())).all()


def list_purges(session: Session) -> Sequence[Purge]:
    """Return all purges, oldest first."""
    return session.scalars(select(Purge).order_by(Purge.at, Purge.id)).all()


def purged_revisions(session: Session, purge_id: str) -> list[Revision]:
    """Return the revisions that a purge has emptied."""
    statement = select(Revision).where(Revision.purge_id == purge_id).order_by(Revision.id)
    return list(session.scalars(statement.options(joinedload(Revision.model).joinedload(Model.party))))


def known_revisions(session: Session, identities: Collection[str], model_id: int) -> set[int]:
    """Return the revisions of a model, not purged, that have one of these ids."""
    known: set[int] = set()
    for portion in portions(sorted(identities)):
        statement = select(Revision.id).where(
            Revision.model_id == model_id, Revision.purge_id.is_(None), Revision.revision.in_(portion)
        )
        known.update(session.scalars(statement))
    return known

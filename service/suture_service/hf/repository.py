"""All SQL of the protocol. Whatever a caller reads starts from `may_read`; files, from `may_use` as well."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, cast

from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    not_,
    or_,
    select,
    tuple_,
)
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased, contains_eager, joinedload, selectinload

from suture_service.access.repository import may_use
from suture_service.conditions import may_read
from suture_service.database import UtcDateTime, portions
from suture_service.hub import utc_now
from suture_service.models import trees
from suture_service.models.repository import main_commit_oid, main_revision_id
from suture_service.models.search import mentions
from suture_service.models.trees import NamedFile, parts_of_models
from suture_service.states import ACTIVE_JOBS
from suture_service.tables import (
    Commit,
    Job,
    JobMember,
    Model,
    ModelTag,
    Party,
    ReceivedFile,
    Ref,
    Revision,
    RevisionMember,
    RevisionPart,
    TreeFile,
)

RefKind = Literal["branch", "tag"]
Sort = Literal["created_at", "updated_at"]


def lock_model(session: Session, model_id: int) -> None:
    """Hold a repository's row until the transaction ends; what refers to it may be added meanwhile."""
    session.execute(select(Model.id).where(Model.id == model_id).with_for_update(key_share=True))


def find_repo(session: Session, party_id: int, namespace: str, name: str) -> Model | None:
    """Return a repository, if this party may read it."""
    statement = (
        select(Model)
        .join(Model.party)
        .where(may_read(party_id), Party.name == namespace, Model.name == name)
        .options(contains_eager(Model.party))
    )
    return session.scalars(statement).one_or_none()


def list_repos(
    session: Session,
    party_id: int,
    *,
    search: str | None,
    author: str | None,
    tags: Sequence[str],
    gated: bool | None,
    sort: Sort,
    after: tuple[datetime, int] | None,
    limit: int,
) -> Sequence[Row[Model, Revision, str]]:
    """Return readable repositories with what their branch `main` holds, newest first; one more than `limit`."""
    moment = Model.created_at if sort == "created_at" else Model.updated_at
    statement: Select[Model, Revision, str] = (
        select(Model, Revision, main_commit_oid().label("oid"))
        .join(Model.party)
        .join(Revision, Revision.id == main_revision_id())
        .where(may_read(party_id))
        .options(contains_eager(Model.party), selectinload(Model.tags))
        .order_by(moment.desc(), Model.id.desc())
        .limit(limit + 1)
    )
    for word in (search or "").split():
        statement = statement.where(mentions(session, word))
    if author is not None:
        statement = statement.where(Party.name == author)
    for tag in tags:
        statement = statement.where(exists().where(ModelTag.model_id == Model.id, ModelTag.tag == tag))
    if gated is not None:
        statement = statement.where(Model.gated != "" if gated else Model.gated == "")
    if after is not None:
        statement = statement.where(tuple_(moment, Model.id) < tuple_(*after))
    return session.execute(statement).all()


def ref(session: Session, model_id: int, kind: RefKind, name: str) -> Ref | None:
    """Return a branch or a tag with its commit."""
    return session.get(Ref, (model_id, kind, name), options=[joinedload(Ref.commit).joinedload(Commit.revision)])


def refs(session: Session, model_id: int) -> Sequence[Ref]:
    """Return all branches and tags by name, with their commits."""
    statement = (
        select(Ref)
        .where(Ref.model_id == model_id)
        .options(joinedload(Ref.commit).joinedload(Commit.revision))
        .order_by(Ref.name)
    )
    return session.scalars(statement).all()


def commit_by_prefix(session: Session, model_id: int, digits: str) -> Commit | None:
    """Return the commit whose id starts with these digits, or the newest of the content whose id does.

    None where none does, or two do.
    """
    own = select(Commit).where(Commit.model_id == model_id, _begins(Commit.oid, digits)).limit(2)
    commits = session.scalars(own.options(joinedload(Commit.revision))).all()
    if commits:
        return commits[0] if len(commits) == 1 else None
    statement = select(Revision.id).where(Revision.model_id == model_id, _begins(Revision.revision, digits))
    revision_ids = session.scalars(statement.limit(2)).all()
    if len(revision_ids) != 1:
        return None
    newest = select(Commit).where(Commit.revision_id == revision_ids[0]).order_by(Commit.id.desc()).limit(1)
    return session.scalars(newest.options(joinedload(Commit.revision))).one_or_none()


def _begins(column: InstrumentedAttribute[str], digits: str) -> ColumnElement[bool]:
    """The condition under which an id begins with these hex digits; unlike a pattern, it goes by the index."""
    return and_(column >= digits, column < f"{digits}g")


def history(session: Session, commit_id: int, limit: int) -> Sequence[Commit]:
    """Return a commit and those before it, newest first; up to `limit`."""
    chain = select(Commit.id, Commit.parent_id).where(Commit.id == commit_id).cte("chain", recursive=True)
    parent = aliased(Commit)
    chain = chain.union_all(select(parent.id, parent.parent_id).join(chain, parent.id == chain.c.parent_id))
    # Cut where it is walked: an outer limit on a join would walk to the beginning of the history.
    newest = select(chain.c.id).limit(limit).subquery()
    statement = select(Commit).join(newest, newest.c.id == Commit.id).options(joinedload(Commit.revision))
    return session.scalars(statement.order_by(Commit.id.desc())).all()


def _download() -> Select[str, int, str, str | None, int]:
    asker = cast(int, bindparam("party_id", type_=Integer))
    part = trees.part_with(Commit.revision_id, bindparam("path", type_=TreeFile.name.type)).correlate(Commit)
    return (
        select(TreeFile.name, TreeFile.size, TreeFile.sha256, TreeFile.git_oid, TreeFile.part_id)
        .select_from(Model)
        .join(Party, Party.id == Model.party_id)
        .join(Commit, Commit.model_id == Model.id)
        .join(Revision, Revision.id == Commit.revision_id)
        .join(TreeFile, TreeFile.part_id == part.scalar_subquery())
        .where(
            Party.name == bindparam("namespace"),
            Model.name == bindparam("repo"),
            Commit.oid == bindparam("oid"),
            TreeFile.name == bindparam("path"),
            Revision.purge_id.is_(None),
            may_read(asker),
            may_use(asker, cast(datetime, bindparam("now", type_=UtcDateTime))),
        )
    )


#: Put together once, which takes longer than to ask it: so are most downloads found.
_DOWNLOAD = _download()


def find_download(session: Session, party_id: int, namespace: str, name: str, oid: str, path: str) -> NamedFile | None:
    """Return the file of a commit, if there is one and this party may have it; why not, other questions tell."""
    asked = {"party_id": party_id, "namespace": namespace, "repo": name, "oid": oid, "path": path, "now": utc_now()}
    row = session.execute(_DOWNLOAD, asked).one_or_none()
    return None if row is None else NamedFile(*row)


def own_name_taken(session: Session, party_id: int, name: str) -> bool:
    """Whether a party has a repository of this name."""
    return session.scalar(select(Model.id).where(Model.party_id == party_id, Model.name == name)) is not None


def in_running_job(session: Session, model_id: int) -> bool:
    """Whether a job that has not ended has a revision of this repository as a member."""
    statement = (
        select(JobMember.job_id)
        .join(JobMember.revision)
        .join(Job, Job.id == JobMember.job_id)
        .where(Revision.model_id == model_id, Job.state.in_(ACTIVE_JOBS))
        .limit(1)
    )
    return session.scalar(statement) is not None


def received(session: Session, model_id: int, digests: Sequence[str]) -> dict[str, int]:
    """Return the size of each of these contents that has been sent for this repository."""
    statement = select(ReceivedFile.sha256, ReceivedFile.size).where(ReceivedFile.model_id == model_id)
    return _sizes(session, statement, ReceivedFile.sha256, digests)


def downloadable(session: Session, party_id: int, digests: Sequence[str]) -> dict[str, int]:
    """Return the size of each of these contents that this party could download from some repository."""
    statement = (
        select(TreeFile.sha256, TreeFile.size)
        .where(TreeFile.part_id.in_(parts_of_models(may_read(party_id), may_use(party_id, utc_now()))))
        .distinct()
    )
    return _sizes(session, statement, TreeFile.sha256, digests)


def lfs_files(session: Session, model_id: int, after: str | None, limit: int) -> Sequence[Row[str, int, str, datetime]]:
    """Return digest, size, a path and the first moment of each large file of a repository's revisions, by digest."""
    statement = (
        select(
            TreeFile.sha256,
            func.max(TreeFile.size).label("size"),
            func.max(TreeFile.name).label("name"),
            func.min(Revision.created_at, type_=UtcDateTime).label("pushed_at"),
        )
        .join(RevisionPart, RevisionPart.part_id == TreeFile.part_id)
        .join(Revision, Revision.id == RevisionPart.revision_id)
        .where(Revision.model_id == model_id, Revision.purge_id.is_(None), TreeFile.git_oid.is_(None))
        .group_by(TreeFile.sha256)
        .order_by(TreeFile.sha256)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(TreeFile.sha256 > after)
    return session.execute(statement).all()


def unreachable(session: Session, model_id: int) -> list[int]:
    """Return the commits of a repository to which no branch and no tag leads, the newest first."""
    parents = {
        row.id: row.parent_id
        for row in session.execute(select(Commit.id, Commit.parent_id).where(Commit.model_id == model_id))
    }
    left = set(parents)
    for start in session.scalars(select(Ref.commit_id).where(Ref.model_id == model_id)):
        at: int | None = start
        while at in left:
            left.discard(at)
            at = parents[at]
    return sorted(left, reverse=True)


def drop_commits(session: Session, model_id: int, commit_ids: Sequence[int]) -> None:
    """Delete commits, children before parents, and the revisions that no commit shows any more.

    A revision stays that a job, or another revision's lineage, names, or that was purged.
    """
    for portion in portions(commit_ids):
        session.execute(delete(Commit).where(Commit.id.in_(portion)))
    named = or_(
        exists().where(Commit.revision_id == Revision.id),
        exists().where(JobMember.revision_id == Revision.id),
        exists().where(RevisionMember.member_id == Revision.id),
        Revision.job_id.is_not(None),
        Revision.purge_id.is_not(None),
    )
    bare = session.scalars(select(Revision.id).where(Revision.model_id == model_id, not_(named))).all()
    for portion in portions(bare):
        trees.drop(session, portion)
        session.execute(delete(RevisionMember).where(RevisionMember.revision_id.in_(portion)))
        session.execute(delete(Revision).where(Revision.id.in_(portion)))


def _sizes(
    session: Session, statement: Select[str, int], column: InstrumentedAttribute[str], digests: Sequence[str]
) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for portion in portions(digests):
        sizes |= dict(iter(session.execute(statement.where(column.in_(portion)))))
    return sizes

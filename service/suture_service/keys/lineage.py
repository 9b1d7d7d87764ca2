"""What a revision was made of, and what was made of it, as far as a party may read."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Select, exists, select
from sqlalchemy.orm import InstrumentedAttribute, Session, joinedload

from suture_service.conditions import may_read
from suture_service.keys.flags import own_flags
from suture_service.keys.schemas import LineageLink, LineageModel, LineageOut
from suture_service.tables import Model, Revision, RevisionMember

#: So many revisions each way; one that was stitched by many hospitals would fill any page.
MOST = 200


def lineage_of(session: Session, revision: Revision, party_id: int) -> LineageOut:
    """Return a readable revision's ancestors and descendants, itself first.

    An ancestor that the party may not read is there without its name, and what lies behind it is not. Descendants that
    it may not read are not told at all: that somebody uses a model is theirs to say.
    """
    ancestors = session.scalars(_walk(revision.id, party_id, back=True)).all()
    descendants = session.scalars(_walk(revision.id, party_id, back=False)).all()
    ids = list(dict.fromkeys([revision.id, *ancestors[:MOST], *descendants[:MOST]]))
    statement = (
        select(Revision, may_read(party_id))
        .join(Revision.model)
        .where(Revision.id.in_(ids))
        .options(
            joinedload(Revision.model).joinedload(Model.party), joinedload(Revision.key), joinedload(Revision.purge)
        )
    )
    rows = {row.id: _show(row, readable or row.id == revision.id) for row, readable in session.execute(statement)}
    links = select(RevisionMember).where(RevisionMember.revision_id.in_(ids), RevisionMember.member_id.in_(ids))
    number = {row: index for index, row in enumerate(ids)}
    return LineageOut(
        models=[rows[row] for row in ids],
        links=[
            LineageLink(model=number[link.revision_id], member=number[link.member_id])
            for link in session.scalars(links.order_by(RevisionMember.revision_id, RevisionMember.member_id))
            # Which members a hidden model shares with others is not told either.
            if rows[ids[number[link.revision_id]]].repo is not None
        ],
        complete=len(ancestors) <= MOST and len(descendants) <= MOST,
    )


def _walk(start: int, party_id: int, *, back: bool) -> Select[int]:
    """Revisions reached from one, itself left out; one more than `MOST`. Equal ones come once, and a circle ends."""
    here, there = RevisionMember.revision_id, RevisionMember.member_id
    if not back:
        here, there = there, here
    reached = select(Revision.id.label("id")).where(Revision.id == start).cte(recursive=True)
    step = select(there).join(reached, here == reached.c.id)
    # Back through what is readable, and one step further; on to what is readable alone.
    step = step.where((here == start) | _readable(here, party_id) if back else _readable(there, party_id))
    reached = reached.union(step)
    return select(reached.c.id).where(reached.c.id != start).limit(MOST + 1)


def _readable(revision_id: InstrumentedAttribute[int], party_id: int) -> ColumnElement[bool]:
    return exists().where(Revision.id == revision_id, Revision.model_id == Model.id, may_read(party_id))


def _show(revision: Revision, readable: bool) -> LineageModel:
    return LineageModel(
        repo=revision.model.repo if readable else None,
        revision=revision.revision if readable else None,
        flags=[flag.kind for flag in own_flags(revision, readable=readable)],
    )

"""All SQL about access to gated models. Whoever hands out a file of a model starts from `may_use`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, exists, or_, select
from sqlalchemy.orm import Session, contains_eager, joinedload

from suture_service.conditions import may_read
from suture_service.tables import AccessRequest, Model, Party


def may_use(party_id: int, now: datetime) -> ColumnElement[bool]:
    """The condition under which a party that may read a model gets its files: no gate, its own, or it was let in."""
    let_in = exists().where(
        AccessRequest.model_id == Model.id,
        AccessRequest.party_id == party_id,
        AccessRequest.state == "accepted",
        or_(AccessRequest.expires_at.is_(None), AccessRequest.expires_at > now),
    )
    return or_(Model.gated == "", Model.party_id == party_id, let_in)


def usable(session: Session, model: Model, party_id: int, now: datetime) -> bool:
    """Whether a party that may read this model gets its files."""
    if not model.gated or model.party_id == party_id:
        return True
    return session.scalar(select(Model.id).where(Model.id == model.id, may_use(party_id, now))) is not None


def unusable_by(session: Session, model_ids: Sequence[int], party_id: int, now: datetime) -> set[int]:
    """Return those of the models whose files a party does not get."""
    statement = select(Model.id).where(and_(Model.id.in_(model_ids), may_use(party_id, now)))
    return set(model_ids) - set(session.scalars(statement))


def find_request(session: Session, model_id: int, party_id: int) -> AccessRequest | None:
    """Return what a party asked of a model."""
    return session.get(AccessRequest, (model_id, party_id))


def requests_of(session: Session, model_id: int, states: Collection[str], now: datetime) -> Sequence[AccessRequest]:
    """Return the requests for a model that are in these states, by asker; what has ended is not accepted any more."""
    holds = or_(AccessRequest.state != "accepted", AccessRequest.expires_at.is_(None), AccessRequest.expires_at > now)
    statement = (
        select(AccessRequest)
        .join(AccessRequest.party)
        .where(AccessRequest.model_id == model_id, AccessRequest.state.in_(states), holds)
        .options(contains_eager(AccessRequest.party), joinedload(AccessRequest.model).joinedload(Model.party))
        .order_by(Party.name)
        .limit(10_000)
    )
    return session.scalars(statement).all()


def list_requests(
    session: Session, owner_id: int, *, state: str | None, after: tuple[str, str] | None, limit: int
) -> Sequence[AccessRequest]:
    """Return requests for a party's models, by model and asker; one more than `limit`."""
    asker = Party.name
    statement = (
        select(AccessRequest)
        .join(AccessRequest.model)
        .join(AccessRequest.party)
        .where(Model.party_id == owner_id, Model.deleted_at.is_(None))
        .options(contains_eager(AccessRequest.model).joinedload(Model.party), contains_eager(AccessRequest.party))
        .order_by(Model.name, asker)
        .limit(limit + 1)
    )
    if state is not None:
        statement = statement.where(AccessRequest.state == state)
    if after is not None:
        name, party = after
        statement = statement.where(or_(Model.name > name, and_(Model.name == name, asker > party)))
    return session.scalars(statement).all()


def pending_of(session: Session, party_id: int, limit: int) -> Sequence[AccessRequest]:
    """Return what a party asked of models that it may read and has no answer to, the oldest first."""
    statement = (
        select(AccessRequest)
        .join(AccessRequest.model)
        .where(AccessRequest.party_id == party_id, AccessRequest.state == "pending", may_read(party_id))
        .options(contains_eager(AccessRequest.model).joinedload(Model.party), joinedload(AccessRequest.party))
        .order_by(AccessRequest.requested_at)
        .limit(limit)
    )
    return session.scalars(statement).all()

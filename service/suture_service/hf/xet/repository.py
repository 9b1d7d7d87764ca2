"""All SQL about Xet uploads. A xorb is found in its epoch only, an epoch belongs to one token and one repository."""

from __future__ import annotations

from datetime import date, datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session, contains_eager

from suture_service.hf.xet.format import Layout
from suture_service.hf.xet.rebuild import Xorb
from suture_service.tables import Model, Party, Token, XetEpoch, XetXorb
from suture_service.tokens import is_live


def epoch_of(session: Session, model_id: int, token_id: str, day: date) -> XetEpoch | None:
    """Return the epoch of a token and a repository on a day."""
    statement = select(XetEpoch).where(
        XetEpoch.model_id == model_id, XetEpoch.token_id == token_id, XetEpoch.day == day
    )
    return session.scalars(statement).one_or_none()


def open_epoch(session: Session, epoch_id: str, since: date, now: datetime) -> XetEpoch | None:
    """Return an epoch that began on `since` or later, while its token is valid and its repository exists."""
    statement = (
        select(XetEpoch)
        .join(Token, Token.id == XetEpoch.token_id)
        .join(Model, Model.id == XetEpoch.model_id)
        .join(Party, Party.id == Token.party_id)
        .where(
            Party.suspended_at.is_(None),
            XetEpoch.id == epoch_id,
            XetEpoch.day >= since,
            is_live(now),
            Model.deleted_at.is_(None),
        )
        .options(contains_eager(XetEpoch.model))
    )
    return session.scalars(statement).one_or_none()


def has_xorb(session: Session, epoch_id: str, name: str) -> bool:
    """Whether an epoch has a xorb of this hash."""
    statement = select(XetXorb.hash).where(XetXorb.epoch_id == epoch_id, XetXorb.hash == name)
    return session.scalar(statement) is not None


def find_xorb(session: Session, epoch_id: str, name: str) -> Xorb | None:
    """Return a xorb of an epoch by its hash."""
    row = session.get(XetXorb, (epoch_id, name))
    return Xorb(row.name, Layout.from_bytes(row.layout)) if row is not None else None


def drop_epochs(session: Session, before: date) -> None:
    """Forget the epochs before a day, and their xorbs."""
    old = select(XetEpoch.id).where(XetEpoch.day < before)
    session.execute(delete(XetXorb).where(XetXorb.epoch_id.in_(old)))
    session.execute(delete(XetEpoch).where(XetEpoch.day < before))

"""All SQL about sites."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from suture_service.tables import Site


def find_site(session: Session, party_id: int, name: str) -> Site | None:
    """Return a party's site of this name."""
    return session.scalars(select(Site).where(Site.party_id == party_id, Site.name == name)).one_or_none()


def has_site(session: Session, party_id: int) -> bool:
    """Whether a party has any site."""
    return session.scalars(select(Site.id).where(Site.party_id == party_id).limit(1)).first() is not None


def seen_since(session: Session, site_id: int, moment: datetime) -> bool:
    """Whether a site asked for work at or after a moment."""
    statement = select(Site.id).where(Site.id == site_id, Site.last_seen_at >= moment)
    return session.scalars(statement).first() is not None


def mark_seen(session: Session, site_id: int, now: datetime, step: timedelta) -> None:
    """Write down that a site is there, unless that was done less than `step` ago."""
    stale = or_(Site.last_seen_at.is_(None), Site.last_seen_at < now - step)
    session.execute(update(Site).where(Site.id == site_id, stale).values(last_seen_at=now))

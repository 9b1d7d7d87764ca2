"""All SQL about sites."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from suture_service.tables import Site


def find_site(session: Session, party_id: int, name: str, *, gone: bool = False) -> Site | None:
    """Return a party's site of this name; with `gone`, also one that was removed."""
    statement = select(Site).where(Site.party_id == party_id, Site.name == name)
    return session.scalars(statement if gone else statement.where(Site.removed_at.is_(None))).one_or_none()


def has_site(session: Session, party_id: int) -> bool:
    """Whether a party has any site that is given work."""
    there = Site.removed_at.is_(None), Site.suspended_at.is_(None)
    return session.scalars(select(Site.id).where(Site.party_id == party_id, *there).limit(1)).first() is not None


def last_seen(session: Session, party_ids: Collection[int]) -> dict[int, datetime]:
    """Return when some site of each party last asked for work; parties whose sites never did are left out."""
    statement = select(Site.party_id, func.max(Site.last_seen_at)).where(Site.party_id.in_(party_ids))
    rows = session.execute(statement.group_by(Site.party_id))
    return {party_id: seen for party_id, seen in rows if seen is not None}


def seen_since(session: Session, site_id: int, moment: datetime, version: str | None) -> bool:
    """Whether a site asked for work at or after a moment, and is known by this version."""
    known = Site.version.is_not_distinct_from(version)
    statement = select(Site.id).where(Site.id == site_id, Site.last_seen_at >= moment, known)
    return session.scalars(statement).first() is not None


def datasets_told(session: Session, party_id: int) -> list[str] | None:
    """Return the datasets that a party's sites have told of; None where one of them, or all, tell nothing.

    A site that was never there, and so can do no work, does not count.
    """
    there = Site.party_id == party_id, Site.removed_at.is_(None)
    of_party = select(Site.datasets, Site.last_seen_at).where(*there)
    by_site = [names for names, seen in session.execute(of_party) if names is not None or seen is not None]
    return None if not by_site or None in by_site else sorted({name for names in by_site for name in names or ()})


def told_by_site(session: Session, party_id: int) -> list[tuple[str, list[str]]]:
    """Return the datasets that each of a party's sites has told of, by the site's name."""
    there = Site.party_id == party_id, Site.removed_at.is_(None), Site.datasets.is_not(None)
    return [(name, names or []) for name, names in session.execute(select(Site.name, Site.datasets).where(*there))]


def tell_datasets(session: Session, site_id: int, datasets: list[str] | None) -> None:
    """Write down what a site tells of its datasets."""
    session.execute(update(Site).where(Site.id == site_id).values(datasets=datasets))


def mark_asked(session: Session, site_id: int, now: datetime, version: str | None) -> None:
    """Write down that a site asks for work, and of which version it is; None where it does not say."""
    session.execute(update(Site).where(Site.id == site_id).values(last_seen_at=now, version=version))


def mark_seen(session: Session, site_id: int, now: datetime, step: timedelta) -> None:
    """Write down that a site is there, unless that was done less than `step` ago."""
    stale = or_(Site.last_seen_at.is_(None), Site.last_seen_at < now - step)
    session.execute(update(Site).where(Site.id == site_id, stale).values(last_seen_at=now))

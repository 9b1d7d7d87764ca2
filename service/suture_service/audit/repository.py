"""All SQL about the audit log as parties read it; adding to it and checking it is the chain's own matter."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from suture_service.tables import AuditEntry, FormerName, Party


def list_entries(
    session: Session, party: str | None, action: str | None, before: int | None, limit: int
) -> Sequence[AuditEntry]:
    """Return what a party did and what was done to what is its own, newest first; one more than `limit`.

    Without a party, everything; with an action, that alone.
    """
    statement = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit + 1)
    if party is not None:
        names = [party, *session.scalars(select(FormerName.name).join(Party).where(Party.name == party))]
        statement = statement.where(or_(AuditEntry.party.in_(names), AuditEntry.owner.in_(names)))
    if action is not None:
        statement = statement.where(AuditEntry.action == action)
    if before is not None:
        statement = statement.where(AuditEntry.id < before)
    return session.scalars(statement).all()

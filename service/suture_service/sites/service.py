"""The rules of sites."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from suture_service.audit.chain import OPERATOR, record
from suture_service.errors import Conflict
from suture_service.parties.repository import lock_party
from suture_service.parties.service import checked_name
from suture_service.sites import repository
from suture_service.tables import Party, Site


def add_site(session: Session, party: Party, name: str, now: datetime, *, by: str = OPERATOR) -> Site:
    """Add a site to a party; raises `Conflict` (`site.exists`). One that was removed gives its place."""
    checked_name(name, "name")
    lock_party(session, party.id)
    if repository.find_site(session, party.id, name) is not None:
        hint = f"the hub's operator makes another token of it: suture hub site token {party.name} {name}"
        raise Conflict("site.exists", f"{party.name} has a site {name!r} already", where="name", hint=hint)
    site = repository.find_site(session, party.id, name, gone=True) or Site(party_id=party.id, name=name)
    site.created_at, site.removed_at, site.suspended_at = now, None, None
    site.last_seen_at, site.datasets, site.version = None, None, None
    session.add(site)
    session.flush()
    record(session, by, "site.add", f"{party.name}/{name}", owner=party.name)
    return site

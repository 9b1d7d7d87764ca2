"""What a party may fill. What it sends counts before the store keeps it, and until it is collected."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from suture_service.errors import TooLarge
from suture_service.hub import HubContext
from suture_service.models import repository
from suture_service.parties.repository import lock_party
from suture_service.tables import Party, SentContent


async def take_room(hub: HubContext, party_id: int, contents: Mapping[str, int]) -> None:
    """Count contents (size in bytes by sha256) as sent by a party; raises `TooLarge` (`quota.bytes`)."""
    await hub.write(lambda session: take(session, party_id, contents, hub.settings.max_party_bytes, hub.now()))


def take(session: Session, party_id: int, contents: Mapping[str, int], limit: int, now: datetime) -> None:
    """Count contents (size in bytes by sha256) as sent by a party, which is then locked.

    `limit` in bytes holds for parties that have none of their own. Raises `TooLarge` (`quota.bytes`) if these would
    take more together with all that the party has; equal content counts once.
    """
    party = lock_party(session, party_id)
    new = contents.keys() - repository.held(session, party_id, sorted(contents))
    wanted = repository.bytes_held(session, party_id) + sum(contents[sha256] for sha256 in new) if new else 0
    if wanted > _allowed(party, limit):
        raise _too_much(party, f"what it holds and what it sends would take {wanted} bytes", limit)
    session.add_all(
        SentContent(party_id=party_id, sha256=sha256, size=contents[sha256], sent_at=now) for sha256 in sorted(new)
    )


def refused(session: Session, party_id: int, contents: Mapping[str, int], limit: int) -> dict[str, str]:
    """Return why, by sha256, those of the contents would be refused for which there is no room after the others."""
    party = session.get_one(Party, party_id)
    left = _allowed(party, limit) - repository.bytes_held(session, party_id)
    reasons = {}
    for sha256 in contents.keys() - repository.held(session, party_id, sorted(contents)):
        if contents[sha256] > left:
            reasons[sha256] = str(_too_much(party, f"it has room for {max(left, 0)} bytes", limit))
        else:
            left -= contents[sha256]
    return reasons


def check_pieces(session: Session, party_id: int, size: int, limit: int) -> None:
    """Raise `TooLarge` (`quota.bytes`) if a piece of `size` bytes, with those on the way, takes more than a party may.

    They have as much room again as the files that are made of them: a file that fits can be sent.
    """
    party = session.get_one(Party, party_id)
    wanted = repository.bytes_of_pieces(session, party_id) + size
    if wanted > _allowed(party, limit):
        raise _too_much(party, f"its uploads of the last two days would take {wanted} bytes", limit)


def usage(session: Session, limit: int) -> dict[str, tuple[int, int]]:
    """Return by party how many bytes it takes and how many it may; `limit` holds for those that have none."""
    held = repository.bytes_by_party(session)
    return {party.name: (held.get(party.id, 0), _allowed(party, limit)) for party in session.scalars(select(Party))}


def _allowed(party: Party, limit: int) -> int:
    return party.max_bytes if party.max_bytes is not None else limit


def _too_much(party: Party, problem: str, limit: int) -> TooLarge:
    return TooLarge(
        "quota.bytes",
        f"{problem}; {party.name} may have {_allowed(party, limit)}",
        hint="delete models that are no longer needed; what is deleted, or was sent in vain, counts until the hub "
        "collects it, mostly within a day; or ask the hub's operator for more",
    )

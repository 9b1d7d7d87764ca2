"""Adding to the audit log, and checking that nobody has changed it.

An entry's digest covers its content and the digest before, so an entry cannot be edited, removed or slipped in without
every later digest changing. What an entry says of a person can be taken out of it nevertheless: its digest stays, and a
later entry names it with this digest (`redact`). Whoever can write to the database could compute the whole chain anew:
note the last digest elsewhere from time to time and have `verify` look for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from suture_contract.errors import SutureError
from suture_service.database import LAST
from suture_service.origin import Origin, origin
from suture_service.tables import AuditEntry

#: "audit" in ASCII: the number on which all hub processes wait for each other to add entries.
_LOCK = 0x6175646974
_START = "0" * 64
_PAGE = 1000
_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")
#: Who acts where there is no token; no party can have such a name.
OPERATOR, HUB = "operator at the hub", "the hub"
#: The action of an entry that names others, with their digests, whose content was taken out.
REDACT = "audit.redact"


@dataclass(frozen=True)
class _Act:
    actor: str
    action: str
    what: str
    owner: str | None
    detail: dict[str, Any] = field(default_factory=dict)


def record(session: Session, actor: str, action: str, what: str, *, owner: str | None = None, **detail: Any) -> None:
    """Add to the audit log what this transaction does, if it commits.

    `actor` is a party, `party/site`, `OPERATOR` or `HUB`, `what` names the object and `owner` the party whose matter it
    is. `detail` holds names, states and ids; never a secret, and no text of a person.
    """
    acts: list[_Act] | None = session.info.get("audit")
    if acts is None:
        acts = session.info["audit"] = []
        session.info.setdefault(LAST, []).append(_write)
    acts.append(_Act(actor, action, what, owner, detail))


def _write(session: Session) -> None:
    acts: list[_Act] = session.info.pop("audit")
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    newest = session.execute(
        select(AuditEntry.id, AuditEntry.digest).order_by(AuditEntry.id.desc()).limit(1)
    ).one_or_none()
    number, previous = newest if newest is not None else (0, _START)
    source = origin.get() or Origin()
    for act in acts:
        number += 1
        entry = AuditEntry(
            id=number,
            at=datetime.now(UTC),
            actor=act.actor,
            party=None if act.actor in (OPERATOR, HUB) else act.actor.partition("/")[0],
            token_id=source.token_id,
            address=source.address,
            request_id=source.request_id,
            action=act.action,
            what=act.what,
            owner=act.owner,
            detail=act.detail,
        )
        previous = entry.digest = _digest(entry, previous)
        session.add(entry)
    session.flush()


def redact(session: Session, entries: Sequence[AuditEntry], named: Mapping[str, str], person: str, name: str) -> None:
    """Take out of entries what they say of a `person` (`party/name`), who is called `name` from then on.

    An entry that is committed already must have `named` them, by number with digest. Who acted for which party, when,
    and what was done stays.
    """
    newest = select(AuditEntry).where(AuditEntry.action == REDACT).order_by(AuditEntry.id.desc()).limit(_PAGE)
    by_entry = next(entry for entry in session.scalars(newest) if entry.detail["entries"] == named)
    for entry in entries:
        entry.redacted_by = by_entry.id
        entry.token_id = entry.address = entry.request_id = None
        if entry.action.startswith("person.") and entry.what == person:
            entry.what = name
        entry.detail = {key: value for key, value in entry.detail.items() if key != "person"}


def as_dict(entry: AuditEntry) -> dict[str, Any]:
    """Return an entry as it is exported.

    Its digest is that of this, less `digest` and `redacted_by`, after the digest before; unless it was redacted.
    """
    return {**_content(entry), "redacted_by": entry.redacted_by, "digest": entry.digest}


def _content(entry: AuditEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "at": entry.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": entry.actor,
        "party": entry.party,
        "token_id": entry.token_id,
        "address": entry.address,
        "request_id": entry.request_id,
        "action": entry.action,
        "what": entry.what,
        "owner": entry.owner,
        "detail": entry.detail,
    }


def _digest(entry: AuditEntry, previous: str) -> str:
    line = json.dumps(_content(entry), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(f"{previous}\n{line}".encode()).hexdigest()


@dataclass(frozen=True)
class Head:
    """The newest entry, to be noted elsewhere; `id` is 0 in an empty log."""

    id: int
    digest: str

    def __str__(self) -> str:
        return f"{self.id}:{self.digest}"


def read_head(text: str) -> Head:
    """Return a head from how it is printed; raises `SutureError` `audit.head`."""
    noted = _HEAD.fullmatch(text)
    if noted is None:
        raise SutureError("audit.head", "write it as ID:DIGEST, as a check of the log prints it", where="expect")
    return Head(int(noted[1]), noted[2])


def verify(session: Session, expected: Head | None = None) -> Head:
    """Check the whole chain and return its head; memory grows with the entries that were redacted alone.

    Raises `SutureError` (`audit.broken`) naming the first entry that does not fit. `expected` is a head that was noted
    earlier: the log must still hold it.
    """
    number, previous = 0, _START
    if expected is not None and expected.id == 0 and expected.digest != _START:
        raise _broken(0, "no log begins with the digest that was noted")
    redacted: dict[int, AuditEntry] = {}
    for entry in walk(session, after=-(2**63)):
        if entry.id != number + 1:
            raise _broken(entry.id, f"entry {number + 1} is missing")
        number = entry.id
        if entry.redacted_by is not None:
            # Its content is gone: that it was this one is what the digests after it say, and the entry that named it.
            redacted[number] = entry
            previous = entry.digest
        else:
            previous = _digest(entry, previous)
            if entry.digest != previous:
                raise _broken(number, "its content, or an entry before it, was changed after it was written")
            if entry.action == REDACT:
                for named, digest in entry.detail["entries"].items():
                    gone = redacted.get(int(named))
                    if gone is not None and (gone.redacted_by, gone.digest) == (number, digest):
                        del redacted[int(named)]
        if expected is not None and number == expected.id and previous != expected.digest:
            raise _broken(number, "the log was written anew: the digest that was noted for this entry is another one")
    if redacted:
        raise _broken(min(redacted), "its content was taken out, and no later entry says by whom")
    if expected is not None and number < expected.id:
        raise _broken(expected.id, f"the log ends at entry {number}: later ones were removed")
    return Head(number, previous)


def walk(session: Session, after: int = 0) -> Iterator[AuditEntry]:
    """Yield all entries after a number, in order, a page at a time."""
    while True:
        statement = select(AuditEntry).where(AuditEntry.id > after).order_by(AuditEntry.id).limit(_PAGE)
        entries = session.scalars(statement).all()
        yield from entries
        session.expunge_all()
        if len(entries) < _PAGE:
            return
        after = entries[-1].id


def _broken(number: int, problem: str) -> SutureError:
    return SutureError(
        "audit.broken",
        problem,
        where=f"entry {number}",
        hint="compare with your last backup or export; whoever changed it could write to the database",
    )

"""The rules of access to gated models."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from suture_service.access import repository
from suture_service.access.schemas import Decision
from suture_service.audit.chain import record
from suture_service.auth import Caller
from suture_service.errors import Conflict, Forbidden, NotFound
from suture_service.models.service import CARD, METADATA, get_model, get_revision, no_model
from suture_service.models.trees import NamedFile, find_file
from suture_service.parties.repository import find_party, lock_party
from suture_service.parties.service import no_party
from suture_service.tables import AccessRequest, Model


def ask(session: Session, caller: Caller, repo: str, reason: str, now: datetime) -> AccessRequest:
    """Ask for the files of a gated model; as `ask_for`."""
    return ask_for(session, caller, _readable(session, caller, repo), reason, now)


def ask_for(session: Session, caller: Caller, model: Model, reason: str, now: datetime) -> AccessRequest:
    """Ask for the files of a gated model that the caller may read.

    They are granted at once where its owner wants to know no more than who has them. Repeating it changes nothing while
    the request is open or granted.
    """
    if not model.gated or model.party_id == caller.party_id:
        raise Conflict("access.open", "its files are open to you already", where=model.repo)
    lock_party(session, caller.party_id)
    asked = repository.find_request(session, model.id, caller.party_id)
    if asked is not None and (asked.state == "pending" or repository.usable(session, model, caller.party_id, now)):
        return asked
    if asked is None:
        asked = AccessRequest(model=model, party_id=caller.party_id)
        session.add(asked)
    asked.state = "accepted" if model.gated == "auto" else "pending"
    asked.reason, asked.answer, asked.requested_at = reason, "", now
    asked.decided_at = now if asked.state == "accepted" else None
    asked.decided_by = asked.expires_at = None
    session.flush()
    record(session, caller.name, "access.ask", model.repo, owner=model.party.name, state=asked.state)
    return asked


def own_request(session: Session, caller: Caller, repo: str) -> AccessRequest:
    """Return what the caller's party asked of a model."""
    asked = repository.find_request(session, _readable(session, caller, repo).id, caller.party_id)
    if asked is None:
        raise NotFound("your party has not asked for it", where=repo)
    return asked


def decide(session: Session, caller: Caller, repo: str, party: str, decision: Decision, now: datetime) -> AccessRequest:
    """Accept or refuse a party's request for an own model (role `steward` or `admin`)."""
    require_steward(caller)
    model = own_gate(caller, _readable(session, caller, repo))
    return settle(session, caller, model, party, decision.state, now, answer=decision.answer, days=decision.days)


def own_gate(caller: Caller, model: Model) -> Model:
    """Return a model about whose files the caller decides (role `steward` or `admin`); raises `Forbidden`."""
    require_steward(caller)
    if model.party_id != caller.party_id:
        raise Forbidden("auth.forbidden", "only its owner decides", where=model.repo)
    return model


def settle(
    session: Session,
    caller: Caller,
    model: Model,
    party: str,
    state: str,
    now: datetime,
    *,
    answer: str = "",
    days: int | None = None,
) -> AccessRequest:
    """Accept or refuse a party's request for a model of the caller, or let it wait again (`pending`)."""
    asker = find_party(session, party)
    asked = repository.find_request(session, model.id, asker.id) if asker is not None else None
    if asked is None:
        raise NotFound(f"{party} has not asked for it", where=model.repo)
    asked.state, asked.answer = state, answer
    asked.decided_at, asked.decided_by = (None, None) if state == "pending" else (now, caller.name)
    asked.expires_at = now + timedelta(days=days) if state == "accepted" and days is not None else None
    session.flush()
    record(session, caller.name, f"access.{state}", model.repo, owner=caller.party, party=party, days=days)
    return asked


def grant(session: Session, caller: Caller, model: Model, party: str, now: datetime) -> AccessRequest:
    """Give a party the files of a model of the caller, whether it asked or not."""
    asker = find_party(session, party)
    if asker is None:
        raise no_party(session, party, "user")
    if asker.id == caller.party_id or not model.gated:
        raise Conflict("access.open", f"its files are open to {party} already", where=model.repo)
    lock_party(session, asker.id)
    if repository.find_request(session, model.id, asker.id) is None:
        session.add(
            AccessRequest(model=model, party_id=asker.id, state="pending", reason="", answer="", requested_at=now)
        )
        session.flush()
    return settle(session, caller, model, party, "accepted", now)


def require_steward(caller: Caller) -> None:
    """Raise `Forbidden` unless the token may decide for its party who gets the files of gated models."""
    if not is_steward(caller):
        caller.require("steward")


def is_steward(caller: Caller) -> bool:
    """Whether the token may decide for its party who gets the files of gated models."""
    return not caller.roles.isdisjoint({"admin", "steward"})


def get_file(session: Session, caller: Caller, repo: str, revision: str, name: str, now: datetime) -> NamedFile:
    """Return a file of a revision, if the caller may read the model and gets its files; its documents need no asking.

    Raises `NotFound` or `Forbidden` (`access.required`).
    """
    resolved = get_revision(session, caller, repo, revision)
    if name not in (METADATA, CARD):
        check_usable(session, resolved.model, caller, now)
    file = find_file(session, resolved.id, name)
    if file is None:
        raise no_model()
    return file


def check_usable(session: Session, model: Model, caller: Caller, now: datetime) -> None:
    """Raise `Forbidden` (`access.required`) unless the caller, who may read the model, gets its files."""
    if not repository.usable(session, model, caller.party_id, now):
        raise Forbidden(
            "access.required",
            "its owner decides who gets its files",
            where=model.repo,
            hint=f"ask for them: suture access request {model.repo} --reason …",
        )


def _readable(session: Session, caller: Caller, repo: str) -> Model:
    model: Model = get_model(session, caller, repo).Model
    return model

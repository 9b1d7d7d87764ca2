"""The rules of signing what is published already, and of taking it back."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from suture_contract.model.signature import SIGNATURE
from suture_service.audit.chain import record
from suture_service.auth import Caller
from suture_service.errors import Conflict, HubError
from suture_service.models.repository import find_revision
from suture_service.models.service import checked_of, commit, get_revision, revision_id
from suture_service.models.trees import StoredFile
from suture_service.parties.repository import lock_party
from suture_service.tables import Revision


def withdraw(session: Session, caller: Caller, repo: str, revision: str, reason: str, now: datetime) -> Revision:
    """Withdraw a revision of an own model (role `publisher`): it, and all that was made of it, is flagged from now on.

    Its files stay, so that what was made of it can be traced.
    """
    resolved = get_revision(session, caller, repo, revision)
    caller.require_own(resolved.model.party.name, "publisher")
    lock_party(session, caller.party_id)
    if resolved.withdrawn_at is None:
        resolved.withdrawn_at, resolved.withdrawn_by, resolved.withdrawn_reason = now, caller.name, reason
        record(session, caller.name, "model.withdraw", repo, owner=caller.party, revision=resolved.revision)
    return resolved


def sign(
    session: Session, caller: Caller, repo: str, revision: str, signature: bytes, stored: StoredFile, now: datetime
) -> tuple[Revision, bool]:
    """Add a signature to a revision of an own model (role `publisher`): a new revision with the same files and it.

    Returns the signed revision, and whether it is new. On `main`, it takes the place of the revision that it signs.
    """
    resolved = get_revision(session, caller, repo, revision)
    caller.require_own(resolved.model.party.name, "publisher")
    lock_party(session, caller.party_id)
    if resolved.withdrawn_at is not None:
        raise Conflict("model.withdrawn", "this revision was withdrawn", where=repo, hint="publish a better one")
    files = {file.name: StoredFile(file.sha256, file.size, file.git_oid) for file in resolved.files}
    files[SIGNATURE] = stored
    known = get_known(session, caller, repo, revision_id(files))
    if known is not None:
        return known, False
    if get_revision(session, caller, repo, "latest").id != resolved.id:
        raise HubError(
            "signature.not_newest",
            "only a model's newest revision can be signed afterwards",
            where=repo,
            hint="publish the older one again with a signature: suture publish … --key FILE",
        )
    made = commit(
        session,
        resolved.model,
        files=files,
        checked=checked_of(resolved),
        signature=signature,
        title="Sign",
        created_by=caller.name,
        now=now,
    )
    return made.revision, True


def get_known(session: Session, caller: Caller, repo: str, revision: str) -> Revision | None:
    """Return a readable revision by its id, None if there is none."""
    return find_revision(session, caller.party_id, repo, revision)

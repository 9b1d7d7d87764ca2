"""The check of a signature that comes with a revision, so that nobody publishes one that its readers would refuse."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from suture_contract.errors import SutureError
from suture_contract.model.signature import MAX_SIGNATURE, SIGNATURE, PublicKey, key_of, moment, verify
from suture_service.errors import HubError
from suture_service.keys.repository import find_key, newest_signature
from suture_service.storage.blobs import Content, read_document
from suture_service.tables import Model, PartyKey, Revision

#: How far ahead of the hub's the clock of a machine that signs may be.
AHEAD = timedelta(minutes=10)
_SIGN = "sign the files as they are now, or leave out the signature: suture sign PARTY/NAME"


def read_signature(files: Mapping[str, Content]) -> bytes | None:
    """Return the signature among the files, None if there is none."""
    return read_document(files[SIGNATURE], MAX_SIGNATURE, SIGNATURE) if SIGNATURE in files else None


def signing_key(
    session: Session, model: Model, digests: Mapping[str, str], signature: bytes, now: datetime
) -> tuple[PartyKey, datetime | None]:
    """Return the key of the model's party that signed exactly these files (SHA-256 by name), and when.

    Raises `SutureError` (`signature.*`) if they are others, the signature is that of another model or of a time to
    come, or the key is unknown or revoked.
    """
    fingerprint = key_of(signature)
    key = find_key(session, model.party_id, fingerprint)
    if key is None:
        raise HubError(
            "signature.unknown_key",
            f"your party has no key {fingerprint[:16]}…",
            where=SIGNATURE,
            hint="an admin of your party registers the public key first: suture keys register FILE",
        )
    if key.revoked_at is not None:
        raise HubError("signature.revoked_key", f"the key {key.name} is revoked", where=SIGNATURE, hint=_SIGN)
    try:
        signed = verify(digests, signature, [PublicKey(key.name, key.public_key)], repo=model.repo)
    except SutureError as error:
        raise HubError(error.code, error.message, where=SIGNATURE, hint=_SIGN) from None
    signed_at = signed.signed_at if signed is not None else None
    if signed_at is not None and signed_at > now + AHEAD:
        raise HubError(
            "signature.ahead",
            f"it says that it was made on {moment(signed_at)}, and here it is {moment(now)}",
            where=SIGNATURE,
            hint="set the clock of the machine that signs, and sign again",
        )
    return key, signed_at


def check_newer(session: Session, revision: Revision) -> None:
    """Raise `SutureError` `signature.older` if a signed revision that is to be the newest was signed before another.

    Readers remember when the newest that they have seen was signed, and take none for the newest that is older.
    """
    if revision.key is None:
        return
    with session.no_autoflush:
        newest = newest_signature(session, revision.model.id)
    if newest is None or (revision.signed_at is not None and revision.signed_at.astimezone(UTC) >= newest):
        return
    when = "does not say when it was signed" if revision.signed_at is None else f"is of {moment(revision.signed_at)}"
    raise HubError(
        "signature.older",
        f"this signature {when}, and this model has a revision that was signed on {moment(newest)}",
        where=SIGNATURE,
        hint="set the clock of the machine that signs if it is slow, and sign these files again",
    )

"""The check of a signature that comes with a revision, so that nobody publishes one that its readers would refuse."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.orm import Session

from suture_contract.errors import SutureError
from suture_contract.model.signature import MAX_SIGNATURE, SIGNATURE, PublicKey, key_of, verify
from suture_service.errors import HubError
from suture_service.keys.repository import find_key
from suture_service.storage.blobs import Content, read_document
from suture_service.tables import PartyKey

_SIGN = "sign the files as they are now, or leave out the signature: suture sign PARTY/NAME"


def read_signature(files: Mapping[str, Content]) -> bytes | None:
    """Return the signature among the files, None if there is none."""
    return read_document(files[SIGNATURE], MAX_SIGNATURE, SIGNATURE) if SIGNATURE in files else None


def signing_key(session: Session, party_id: int, digests: Mapping[str, str], signature: bytes) -> PartyKey:
    """Return the party's key that signed exactly these files (SHA-256 by name).

    Raises `SutureError` (`signature.*`) if they are others, or the key is unknown or revoked.
    """
    fingerprint = key_of(signature)
    key = find_key(session, party_id, fingerprint)
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
        verify(digests, signature, [PublicKey(key.name, key.public_key)])
    except SutureError as error:
        raise HubError(error.code, error.message, where=SIGNATURE, hint=_SIGN) from None
    return key

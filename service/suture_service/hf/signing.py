"""Short-lived permissions in an address: signed with a key that all processes of a hub share through the database."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Any

from itsdangerous import BadData, URLSafeSerializer
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from suture_service.database import Database
from suture_service.hf.errors import WrongAddress
from suture_service.hub import HubContext
from suture_service.tables import HubKey


def load_key(database: Database) -> str:
    """Return the hub's signing key, made at the hub's first start."""
    for _ in range(2):
        with database.reading() as session:
            key = session.scalar(select(HubKey.secret).where(HubKey.name == "signing"))
        if key is not None:
            return key
        try:
            with database.writing() as session:
                session.add(HubKey(name="signing", secret=secrets.token_hex(32)))
        except IntegrityError:
            pass  # another process was faster
    raise AssertionError("the key that was just written is not there")


def seal(hub: HubContext, purpose: str, content: dict[str, Any], lasts: timedelta) -> str:
    """Return `content` as text for an address; `unseal` accepts it for that long, for the same purpose only."""
    until = int((hub.now() + lasts).timestamp())
    return str(_serializer(hub, purpose).dumps({**content, "exp": until}))


def unseal(hub: HubContext, purpose: str, text: str) -> dict[str, Any]:
    """Return what was sealed; raises `WrongAddress` for anything else, or too late."""
    try:
        content: dict[str, Any] = _serializer(hub, purpose).loads(text)
    except BadData:
        content = {"exp": 0}
    if content["exp"] < hub.now().timestamp():
        raise WrongAddress
    return content


def _serializer(hub: HubContext, purpose: str) -> URLSafeSerializer:
    return URLSafeSerializer(hub.key, salt=purpose, signer_kwargs={"digest_method": hashlib.sha256})

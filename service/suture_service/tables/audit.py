"""Who did what."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from suture_service.database import Base
from suture_service.tables.columns import ID, NAME, SHA256, Json


class AuditEntry(Base):
    """Who did what, when and from where. `digest` covers the entry and the digest of the one before."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_party", "party", "id"), Index("ix_audit_owner", "owner", "id"))

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    #: A party, `party/site`, or who runs the hub.
    actor: Mapped[str] = mapped_column(String(200))
    party: Mapped[str | None] = mapped_column(NAME)
    token_id: Mapped[str | None] = mapped_column(ID)
    address: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    what: Mapped[str] = mapped_column(String(300))
    #: The party whose matter it is.
    owner: Mapped[str | None] = mapped_column(NAME)
    detail: Mapped[Json] = mapped_column(JSON)
    #: The entry that says that this one no longer has its content, of which only `digest` is left.
    redacted_by: Mapped[int | None] = mapped_column(BigInteger)
    digest: Mapped[str] = mapped_column(SHA256)

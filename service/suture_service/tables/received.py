"""Content on its way into a repository."""

from __future__ import annotations

from datetime import date, datetime

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from suture_service.database import Base
from suture_service.tables.columns import BLOB, ID, NAME, SHA256
from suture_service.tables.models import Model


class ReceivedFile(Base):
    """Content that a repository's owner has sent for it, so that a commit to it may name its digest."""

    __tablename__ = "received_files"

    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(BLOB, primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]


class SentContent(Base):
    """Content that a party has sent: it counts against the party's quota until it is collected, whatever refers to it.

    Its row is there before the content is kept, and does not keep it.
    """

    __tablename__ = "sent_contents"

    party_id: Mapped[int] = mapped_column(ForeignKey("parties.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(SHA256, primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    sent_at: Mapped[datetime]


class XetEpoch(Base):
    """A day on which a token sends large files to a repository; its id is part of the address they are sent to.

    A client remembers what it has sent to an address, and does not send it again.
    """

    __tablename__ = "xet_epochs"
    __table_args__ = (UniqueConstraint("model_id", "token_id", "day"),)

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    token_id: Mapped[str] = mapped_column(ForeignKey("tokens.id"))
    day: Mapped[date]

    model: Mapped[Model] = relationship()


class XetXorb(Base):
    """Pieces of files, kept while files may be put together from them; `layout` tells where each piece begins."""

    __tablename__ = "xet_xorbs"

    epoch_id: Mapped[str] = mapped_column(ForeignKey("xet_epochs.id"), primary_key=True)
    #: As the sender calls it: it says nothing about the content.
    hash: Mapped[str] = mapped_column(SHA256, primary_key=True)
    #: The name in the store, where it is no blob.
    name: Mapped[str] = mapped_column(NAME)
    size: Mapped[int] = mapped_column(BigInteger)
    layout: Mapped[bytes]

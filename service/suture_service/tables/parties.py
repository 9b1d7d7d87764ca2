"""Who takes part: parties, their sites and keys, people, and what opens the hub to them."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, BigInteger, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from suture_service.database import Base
from suture_service.tables.columns import ID, NAME, SHA256


class Party(Base):
    """An organisation, mostly a hospital."""

    __tablename__ = "parties"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(NAME, unique=True)
    created_at: Mapped[datetime]
    #: What all its files together may take, in bytes; null is the hub's own limit.
    max_bytes: Mapped[int | None] = mapped_column(BigInteger)
    #: How many of its jobs may run at once; null is the hub's own limit.
    max_jobs: Mapped[int | None]
    #: While it is set, none of its tokens opens anything.
    suspended_at: Mapped[datetime | None]
    #: A party that has gone keeps its row and its name, as others' lineage and the audit log name it.
    removed_at: Mapped[datetime | None]

    sites: Mapped[list[Site]] = relationship(back_populates="party", order_by="Site.name")


class FormerName(Base):
    """A name that a party had before: nobody else gets it, as the audit log still has it."""

    __tablename__ = "former_names"

    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    party_id: Mapped[int] = mapped_column(ForeignKey("parties.id"), index=True)
    until: Mapped[datetime]

    party: Mapped[Party] = relationship()


class Site(Base):
    """A party's installation beside its data."""

    __tablename__ = "sites"
    __table_args__ = (UniqueConstraint("party_id", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    party_id: Mapped[int] = mapped_column(ForeignKey("parties.id"))
    name: Mapped[str] = mapped_column(NAME)
    created_at: Mapped[datetime]
    last_seen_at: Mapped[datetime | None]
    #: Names of the datasets that its own party may fit on; None where the site does not tell them.
    datasets: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    #: Of Suture, as it said when it last asked for work; None where it said none.
    version: Mapped[str | None] = mapped_column(String(64))
    suspended_at: Mapped[datetime | None]
    #: A site that has gone keeps its row, as tasks name it; one of the same name takes its place.
    removed_at: Mapped[datetime | None]

    party: Mapped[Party] = relationship(back_populates="sites")


class PartyKey(Base):
    """A public key with which a party's signatures are verified; its fingerprint is the sha256 of its PEM text."""

    __tablename__ = "party_keys"
    __table_args__ = (UniqueConstraint("party_id", "fingerprint"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    party_id: Mapped[int] = mapped_column(ForeignKey("parties.id"))
    fingerprint: Mapped[str] = mapped_column(SHA256)
    name: Mapped[str] = mapped_column(NAME)
    public_key: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(200))
    revoked_at: Mapped[datetime | None]
    revoked_by: Mapped[str | None] = mapped_column(String(200))
    revoked_reason: Mapped[str | None] = mapped_column(Text)

    party: Mapped[Party] = relationship()


class Person(Base):
    """Somebody who may sign in for a party: known to the identity provider `issuer` by a subject, or an e-mail until
    the first login.
    """

    __tablename__ = "people"
    __table_args__ = (
        UniqueConstraint("party_id", "name"),
        UniqueConstraint("issuer", "subject", "party_id"),
        UniqueConstraint("issuer", "email", "party_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    party_id: Mapped[int] = mapped_column(ForeignKey("parties.id"))
    name: Mapped[str] = mapped_column(NAME)
    issuer: Mapped[str] = mapped_column(String(500))
    subject: Mapped[str | None] = mapped_column(String(255))
    email: Mapped[str | None] = mapped_column(String(254))
    roles: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(200))

    party: Mapped[Party] = relationship()


class Token(Base):
    """A secret's digest and what it opens; a token with a site is that site's."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    party_id: Mapped[int] = mapped_column(ForeignKey("parties.id"), index=True)
    site_id: Mapped[int | None] = mapped_column(ForeignKey("sites.id"), index=True)
    #: Who signed in; null for a token that was made, and once the person is removed.
    person_id: Mapped[int | None] = mapped_column(ForeignKey("people.id"), index=True)
    name: Mapped[str | None] = mapped_column(NAME)
    secret_sha256: Mapped[str] = mapped_column(SHA256, unique=True)
    #: Of the ID token that it was given for, so that each is taken once.
    login_sha256: Mapped[str | None] = mapped_column(SHA256, unique=True)
    roles: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    party: Mapped[Party] = relationship()
    site: Mapped[Site | None] = relationship()


class BrowserSession(Base):
    """A browser that signed in with a token; the secret that it keeps is known by its digest alone."""

    __tablename__ = "sessions"

    secret_sha256: Mapped[str] = mapped_column(SHA256, primary_key=True)
    token_id: Mapped[str] = mapped_column(ForeignKey("tokens.id"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class HubKey(Base):
    """A secret that all processes of this hub share."""

    __tablename__ = "hub_keys"

    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    secret: Mapped[str] = mapped_column(SHA256)

"""Repositories of models: history, revisions, who may read them, and what was taken away."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from suture_service.database import Base
from suture_service.tables.columns import ID, SHA256, STATE, Json
from suture_service.tables.parties import Party, PartyKey
from suture_service.tables.trees import RevisionPart, TreeFile


class Model(Base):
    """A repository `party/name`; `task` and `description` are those of the model on `main`, for the listing.

    `task` is empty while `main` holds no portable model. A deleted one keeps its rows, as others' lineage names them,
    under a name that nobody can ask for. `gated` is empty, or how access to the files is granted.
    """

    __tablename__ = "models"
    __table_args__ = (
        UniqueConstraint("party_id", "name"),
        Index("ix_models_created_at", "created_at", "id"),
        Index("ix_models_updated_at", "updated_at", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    party_id: Mapped[int] = mapped_column(ForeignKey("parties.id"))
    name: Mapped[str] = mapped_column(String(120))
    visibility: Mapped[str] = mapped_column(STATE)
    gated: Mapped[str] = mapped_column(STATE, default="", server_default="")
    task: Mapped[str] = mapped_column(String(32))
    description: Mapped[str] = mapped_column(Text, default="")
    #: `party/name` and the description, in the spelling in which they are searched. PostgreSQL has an index of it that
    #: SQLite could not even describe, so that it stands in the migrations alone.
    search_text: Mapped[str] = mapped_column(Text, default="", deferred=True)
    #: How many samples it learnt from, if it says so.
    training_n: Mapped[int | None] = mapped_column(BigInteger, index=True)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]

    party: Mapped[Party] = relationship()
    refs: Mapped[list[Ref]] = relationship(cascade="all, delete-orphan", order_by="Ref.name")
    tags: Mapped[list[ModelTag]] = relationship(cascade="all, delete-orphan", order_by="ModelTag.tag")
    facets: Mapped[list[ModelFacet]] = relationship(cascade="all, delete-orphan")
    shares: Mapped[list[ModelShare]] = relationship(cascade="all, delete-orphan")

    @property
    def repo(self) -> str:
        """`party/name`; of a deleted one, as it was called."""
        return f"{self.party.name}/{self.name.partition('~')[0]}"


class ModelTag(Base):
    """A word by which the model on `main` is filtered: from its card and its `suture.json`."""

    __tablename__ = "model_tags"
    __table_args__ = (Index("ix_model_tags_tag", "tag", "model_id"),)

    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), primary_key=True)
    tag: Mapped[str] = mapped_column(String(200), primary_key=True)


class ModelFacet(Base):
    """What the `suture.json` on `main` says of a kind, such as `modality`, in the spelling in which it is searched."""

    __tablename__ = "model_facets"
    __table_args__ = (Index("ix_model_facets_kind", "kind", "value", "model_id"),)

    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(STATE, primary_key=True)
    value: Mapped[str] = mapped_column(String(200), primary_key=True)


class ModelShare(Base):
    """A private model that one more party may read."""

    __tablename__ = "model_shares"

    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), primary_key=True)
    party_id: Mapped[int] = mapped_column(ForeignKey("parties.id"), primary_key=True)

    party: Mapped[Party] = relationship()


class AccessRequest(Base):
    """A party's request for the files of a gated model, and what its owner said; only `accepted` opens them."""

    __tablename__ = "access_requests"

    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), primary_key=True)
    party_id: Mapped[int] = mapped_column(ForeignKey("parties.id"), primary_key=True, index=True)
    state: Mapped[str] = mapped_column(STATE)
    #: Why it is asked for, in the asker's words, and what the owner answered.
    reason: Mapped[str] = mapped_column(Text)
    answer: Mapped[str] = mapped_column(Text, default="")
    requested_at: Mapped[datetime]
    decided_at: Mapped[datetime | None]
    decided_by: Mapped[str | None] = mapped_column(String(200))
    expires_at: Mapped[datetime | None]

    model: Mapped[Model] = relationship()
    party: Mapped[Party] = relationship()


class Revision(Base):
    """The immutable content of a commit; with `job_id` when the hub published a job's result.

    `content` is its `suture.json`, null where it holds no portable model; `card` the YAML block of its `README.md`.
    """

    __tablename__ = "revisions"
    __table_args__ = (UniqueConstraint("model_id", "revision"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    revision: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(200))
    content: Mapped[Json | None] = mapped_column("metadata", JSON(none_as_null=True))
    card: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    #: How many parameters the portable model has, by type and in total, as the Hugging Face Hub tells it.
    safetensors: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    #: The key that signed it.
    key_id: Mapped[int | None] = mapped_column(ForeignKey("party_keys.id"), index=True)
    #: When, as the signature says; null also where it says nothing of that.
    signed_at: Mapped[datetime | None]
    withdrawn_at: Mapped[datetime | None]
    withdrawn_by: Mapped[str | None] = mapped_column(String(200))
    withdrawn_reason: Mapped[str | None] = mapped_column(Text)
    #: What took its content away. Its id stays, and the entry of its `model.safetensors`, by which lineage names it.
    purge_id: Mapped[str | None] = mapped_column(ForeignKey("purges.id"), index=True)

    model: Mapped[Model] = relationship()
    purge: Mapped[Purge | None] = relationship()
    parts: Mapped[list[RevisionPart]] = relationship(order_by="RevisionPart.last")
    files: Mapped[list[TreeFile]] = relationship(
        secondary="revision_parts",
        primaryjoin="Revision.id == RevisionPart.revision_id",
        secondaryjoin="RevisionPart.part_id == TreeFile.part_id",
        order_by="TreeFile.name",
        viewonly=True,
    )
    key: Mapped[PartyKey | None] = relationship()
    members: Mapped[list[RevisionMember]] = relationship(foreign_keys="RevisionMember.revision_id")


class Purge(Base):
    """Content that was taken away for good, with every revision that held it.

    `scope` says from where: a `model`, all models of its `party`, or the whole `hub`. `done_at` is null until the store
    holds it no longer.
    """

    __tablename__ = "purges"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    #: Null where a backup that was restored is older than the model.
    model_id: Mapped[int | None] = mapped_column(ForeignKey("models.id"), index=True)
    repo: Mapped[str] = mapped_column(String(300))
    #: Of the path that was named, by which the same call is known again: a path itself may be what nobody should read.
    path_sha256: Mapped[str | None] = mapped_column(SHA256)
    scope: Mapped[str] = mapped_column(STATE)
    at: Mapped[datetime]
    by: Mapped[str] = mapped_column(String(200))
    reason: Mapped[str] = mapped_column(Text)
    #: Ids of the revisions, and the sha256 of each content.
    revisions: Mapped[list[str]] = mapped_column(JSON)
    digests: Mapped[list[str]] = mapped_column(JSON)
    done_at: Mapped[datetime | None]


class RevisionMember(Base):
    """A revision that another one says it was made of, as far as this hub has it."""

    __tablename__ = "revision_members"

    revision_id: Mapped[int] = mapped_column(ForeignKey("revisions.id"), primary_key=True)
    member_id: Mapped[int] = mapped_column(ForeignKey("revisions.id"), primary_key=True, index=True)


class Commit(Base):
    """A step in a repository's history. Going back to earlier content is a new commit of the same revision.

    `oid` is its id, of what the step is: see `commit_id`. That of the revision is of the content alone.
    """

    __tablename__ = "commits"
    __table_args__ = (UniqueConstraint("model_id", "oid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), index=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("commits.id"))
    revision_id: Mapped[int] = mapped_column(ForeignKey("revisions.id"), index=True)
    oid: Mapped[str] = mapped_column(ID)
    title: Mapped[str] = mapped_column(String(500))
    message: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(200))

    revision: Mapped[Revision] = relationship()


class Ref(Base):
    """A branch or a tag of a repository; every repository has the branch `main`."""

    __tablename__ = "refs"

    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(STATE, primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    commit_id: Mapped[int] = mapped_column(ForeignKey("commits.id"))

    commit: Mapped[Commit] = relationship()

"""All tables. Names, states and roles are checked before they get here; the database keeps what must never break."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from suture_service.database import Base

NAME = String(96)
#: In the order of its characters' numbers on either database, as Python compares: `parts` are found by it.
PATH = String(1024).with_variant(String(1024, collation="C"), "postgresql")
STATE = String(16)
SHA256 = String(64)
ID = String(40)
Json = dict[str, Any]


class BlobDigest(String):
    """The sha256 of content in the blob store. What no column of this type names is garbage (`maintenance`)."""


BLOB = BlobDigest(64)


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


class TreePart(Base):
    """A run of the files of a tree, in order by name: `models.trees` says where one ends.

    Revisions of a repository share what they have in common: `digest` is that of all that its files' rows say.
    """

    __tablename__ = "tree_parts"
    __table_args__ = (UniqueConstraint("model_id", "digest"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    digest: Mapped[str] = mapped_column(SHA256)

    files: Mapped[list[TreeFile]] = relationship(order_by="TreeFile.name")


class RevisionPart(Base):
    """A part of a revision's tree; `last` is the name of the last file in it."""

    __tablename__ = "revision_parts"

    revision_id: Mapped[int] = mapped_column(ForeignKey("revisions.id"), primary_key=True)
    last: Mapped[str] = mapped_column(PATH, primary_key=True)
    part_id: Mapped[int] = mapped_column(ForeignKey("tree_parts.id"), index=True)

    part: Mapped[TreePart] = relationship()


class TreeFile(Base):
    """One file of a tree: its content lies in the blob store under its digest.

    `name` is its path in the repository; `git_oid` is git's id of a blob of this content, kept for small text files.
    """

    __tablename__ = "tree_files"

    part_id: Mapped[int] = mapped_column(ForeignKey("tree_parts.id"), primary_key=True)
    name: Mapped[str] = mapped_column(PATH, primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(BLOB, index=True)
    git_oid: Mapped[str | None] = mapped_column(ID)


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


class HubKey(Base):
    """A secret that all processes of this hub share."""

    __tablename__ = "hub_keys"

    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    secret: Mapped[str] = mapped_column(SHA256)


class Job(Base):
    """What a party asked for. Its row is the lock of everything below it."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_requester_id_created_at", "requester_id", "created_at"),
        Index("ix_jobs_state_answer_by", "state", "answer_by"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    requester_id: Mapped[int] = mapped_column(ForeignKey("parties.id"))
    created_by: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(STATE)
    dataset: Mapped[str] = mapped_column(NAME)
    publish_as: Mapped[str] = mapped_column(NAME)
    #: [{"party": name, "dataset": name or null}], as asked; the requester's own evaluation comes on top.
    evaluate_at: Mapped[list[Json]] = mapped_column(JSON)
    #: The same, of parties that are asked to contribute moments to the fit.
    contribute_from: Mapped[list[Json]] = mapped_column(JSON)
    evaluate_within: Mapped[int]
    options: Mapped[Json] = mapped_column(JSON)
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    #: When parties that have not answered become missing; set whenever they are asked.
    answer_by: Mapped[datetime | None]
    error_code: Mapped[str | None] = mapped_column(String(96))
    error_correlation_id: Mapped[str | None] = mapped_column(String(64))
    last_seq: Mapped[int] = mapped_column(default=0)

    requester: Mapped[Party] = relationship()
    members: Mapped[list[JobMember]] = relationship(order_by="JobMember.position")
    tasks: Mapped[list[Task]] = relationship(back_populates="job", order_by="Task.position")


class JobMember(Base):
    """A model the job stitches, at an exact revision."""

    __tablename__ = "job_members"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    revision_id: Mapped[int] = mapped_column(ForeignKey("revisions.id"))

    revision: Mapped[Revision] = relationship()


class Task(Base):
    """Work that one site leases. Every write by a site must carry the present `fence`."""

    __tablename__ = "tasks"
    __table_args__ = (
        UniqueConstraint("job_id", "position"),
        Index("ix_tasks_party_id_state_created_at", "party_id", "state", "created_at"),
        Index("ix_tasks_state_lease_expires_at", "state", "lease_expires_at"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    position: Mapped[int]
    kind: Mapped[str] = mapped_column(STATE)
    party_id: Mapped[int] = mapped_column(ForeignKey("parties.id"))
    dataset: Mapped[str | None] = mapped_column(NAME)
    state: Mapped[str] = mapped_column(STATE)
    attempt: Mapped[int]
    fence: Mapped[int]
    site_id: Mapped[int | None] = mapped_column(ForeignKey("sites.id"))
    lease_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    progress: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    reason: Mapped[str | None] = mapped_column(String(96))
    correlation_id: Mapped[str | None] = mapped_column(String(64))
    result: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))

    job: Mapped[Job] = relationship(back_populates="tasks")
    party: Mapped[Party] = relationship()
    site: Mapped[Site | None] = relationship()
    files: Mapped[list[TaskFile]] = relationship(order_by="TaskFile.name")


class TaskFile(Base):
    """A file the leasing site has put; `fence` tells which lease put it."""

    __tablename__ = "task_files"

    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id"), primary_key=True)
    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    fence: Mapped[int]
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(BLOB)


class Event(Base):
    """What happened in a job, in order; written in the transaction in which it happened."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    task_id: Mapped[str | None] = mapped_column(ForeignKey("tasks.id"))
    kind: Mapped[str] = mapped_column(String(32))
    data: Mapped[Json] = mapped_column(JSON)


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

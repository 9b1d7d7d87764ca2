"""The files of a revision: parts of trees, which revisions of a repository share."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from suture_service.database import Base
from suture_service.tables.columns import BLOB, ID, PATH, SHA256


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

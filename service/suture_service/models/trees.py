"""Trees: the files of a revision, kept in parts that revisions of a repository share.

A part ends after a file whose name says so, whatever is in it. So a change of one file is a change of one part, and a
revision adds rows for what changed, and one for each part that it has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Delete, Row, Select, delete, insert, select
from sqlalchemy.orm import Session

from suture_service.database import portions
from suture_service.tables import Model, Revision, RevisionPart, TreeFile, TreePart

#: Of so many names one ends a part; and no part has more files than that.
_AVERAGE, _MOST = 32, 128


class StoredFile(NamedTuple):
    """A file that lies in the blob store; `git_oid` is git's id of it, for small files that a commit brought along."""

    sha256: str
    size: int
    git_oid: str | None = None


class NamedFile(NamedTuple):
    """A file of a tree; `part` is the part that it lies in."""

    name: str
    size: int
    sha256: str
    git_oid: str | None
    part: int


def set_files(session: Session, revision: Revision, files: Mapping[str, StoredFile]) -> None:
    """Give a new revision its files; its party must be locked."""
    runs = {_digest(run): run for run in _runs(files)}
    known: dict[str, TreePart] = {}
    for some in portions(list(runs)):
        statement = select(TreePart).where(TreePart.model_id == revision.model.id, TreePart.digest.in_(some))
        known |= {part.digest: part for part in session.scalars(statement)}
    for digest, run in runs.items():
        part = known.get(digest)
        if part is None:
            rows = [TreeFile(name=name, size=file.size, sha256=file.sha256, git_oid=file.git_oid) for name, file in run]
            part = TreePart(model_id=revision.model.id, digest=digest, files=rows)
        revision.parts.append(RevisionPart(last=run[-1][0], part=part))


def files_of(session: Session, revision_id: int, folder: str = "", after: str = "") -> list[NamedFile]:
    """Return the files of a revision by name: those in and below a folder, and those whose names come after one."""
    statement = _files().where(RevisionPart.revision_id == revision_id)
    start = max(f"{folder}/", after) if folder else after
    if start:
        statement = statement.where(RevisionPart.last >= start, TreeFile.name > start)
    if folder:
        # What follows the slash among characters.
        statement = statement.where(TreeFile.name < f"{folder}0")
    return [NamedFile(*row) for row in session.execute(statement.order_by(RevisionPart.last, TreeFile.name))]


def files_of_all(session: Session, revision_ids: Collection[int]) -> dict[int, list[NamedFile]]:
    """Return the files of several revisions by name."""
    files: dict[int, list[NamedFile]] = {revision_id: [] for revision_id in revision_ids}
    for some in portions(list(files)):
        statement = _files().add_columns(RevisionPart.revision_id).where(RevisionPart.revision_id.in_(some))
        for *file, revision_id in session.execute(statement.order_by(RevisionPart.last, TreeFile.name)):
            files[revision_id].append(NamedFile(*file))
    return files


def files_at(session: Session, revision_id: int, names: Collection[str]) -> list[NamedFile]:
    """Return those files of a revision that have one of these names."""
    files = list[NamedFile]()
    for some in portions(sorted(names)):
        within = RevisionPart.revision_id == revision_id, RevisionPart.last >= some[0], TreeFile.name.in_(some)
        files += [NamedFile(*row) for row in session.execute(_files().where(*within))]
    return files


def find_file(session: Session, revision_id: int, name: str) -> NamedFile | None:
    """Return one file of a revision."""
    its_part = part_with(revision_id, name).scalar_subquery()
    columns = TreeFile.name, TreeFile.size, TreeFile.sha256, TreeFile.git_oid, TreeFile.part_id
    row = session.execute(select(*columns).where(TreeFile.part_id == its_part, TreeFile.name == name)).one_or_none()
    return None if row is None else NamedFile(*row)


def part_with(revision_id: Any, name: Any) -> Select[int]:
    """The part of a revision in which a file of this name would lie."""
    statement = select(RevisionPart.part_id).where(RevisionPart.revision_id == revision_id, RevisionPart.last >= name)
    return statement.order_by(RevisionPart.last).limit(1)


def parts_of(session: Session, revision_ids: Collection[int]) -> dict[int, set[int]]:
    """Return the parts of each revision."""
    parts: dict[int, set[int]] = {revision_id: set() for revision_id in revision_ids}
    for some in portions(list(parts)):
        columns = select(RevisionPart.revision_id, RevisionPart.part_id)
        for revision_id, part in session.execute(columns.where(RevisionPart.revision_id.in_(some))):
            parts[revision_id].add(part)
    return parts


def digests_in(session: Session, parts: Collection[int], names: Collection[str]) -> dict[int, dict[str, str]]:
    """Return the digests of the files in parts, by part and name, as far as their names lie among these."""
    digests: dict[int, dict[str, str]] = {part: {} for part in parts}
    between = TreeFile.name.between(min(names), max(names))
    for some in portions(list(digests)):
        columns = select(TreeFile.part_id, TreeFile.name, TreeFile.sha256)
        for part, name, sha256 in session.execute(columns.where(TreeFile.part_id.in_(some), between)):
            digests[part][name] = sha256
    return digests


def parts_of_models(*conditions: ColumnElement[bool]) -> Select[int]:
    """The parts of the trees of revisions that were not purged and for which, and whose models, these conditions hold.

    To be looked up in, not joined: a part that many revisions share is one.
    """
    statement = select(RevisionPart.part_id).join(Revision, Revision.id == RevisionPart.revision_id)
    return statement.join(Model, Model.id == Revision.model_id).where(Revision.purge_id.is_(None), *conditions)


def drop(session: Session, revision_ids: Collection[int]) -> None:
    """Take all files from the trees of revisions; what others share with them stays."""
    for some in portions(sorted(revision_ids)):
        of_them = RevisionPart.revision_id.in_(some)
        parts = session.scalars(select(RevisionPart.part_id).where(of_them).distinct()).all()
        _without_objects(session, delete(RevisionPart).where(of_them))
        for portion in portions(parts):
            shared = set(session.scalars(select(RevisionPart.part_id).where(RevisionPart.part_id.in_(portion))))
            alone = set(portion) - shared
            _without_objects(session, delete(TreeFile).where(TreeFile.part_id.in_(alone)))
            _without_objects(session, delete(TreePart).where(TreePart.id.in_(alone)))


def empty(session: Session, revision_ids: Collection[int], keep: str) -> None:
    """Take all files from the trees of revisions, but the entry of the one that is called `keep`.

    An entry that stays lies in a part of its own, which no revision comes to share: the content behind it may go.
    """
    entries: list[Row[int, int, int, str, str | None]] = []
    for some in portions(sorted(revision_ids)):
        entries += session.execute(
            select(RevisionPart.revision_id, TreePart.model_id, TreeFile.size, TreeFile.sha256, TreeFile.git_oid)
            .join(TreePart, TreePart.id == RevisionPart.part_id)
            .join(TreeFile, TreeFile.part_id == TreePart.id)
            .where(RevisionPart.revision_id.in_(some), TreeFile.name == keep)
        ).all()
    drop(session, revision_ids)
    # Past the check of new references, as these keep nothing.
    for entry in entries:
        digest = hashlib.sha256(f"emptied {entry.revision_id}".encode()).hexdigest()
        part = {"model_id": entry.model_id, "digest": digest}
        part_id = session.execute(insert(TreePart).values(part).returning(TreePart.id)).scalar_one()
        kept = {"size": entry.size, "sha256": entry.sha256, "git_oid": entry.git_oid}
        session.execute(insert(TreeFile).values({"part_id": part_id, "name": keep, **kept}))
        of_revision = {"revision_id": entry.revision_id, "last": keep, "part_id": part_id}
        session.execute(insert(RevisionPart).values(of_revision))


def _without_objects(session: Session, statement: Delete) -> None:
    session.execute(statement, execution_options={"synchronize_session": False})


def _files() -> Select[str, int, str, str | None, int]:
    columns = TreeFile.name, TreeFile.size, TreeFile.sha256, TreeFile.git_oid, TreeFile.part_id
    return select(*columns).join(RevisionPart, RevisionPart.part_id == TreeFile.part_id)


def _runs(files: Mapping[str, StoredFile]) -> Iterable[list[tuple[str, StoredFile]]]:
    run: list[tuple[str, StoredFile]] = []
    for name, file in sorted(files.items()):
        run.append((name, file))
        if len(run) == _MOST or hashlib.sha256(name.encode()).digest()[0] % _AVERAGE == 0:
            yield run
            run = []
    if run:
        yield run


def _digest(run: Sequence[tuple[str, StoredFile]]) -> str:
    lines = "".join(f"{name}\0{file.sha256}\0{file.size}\0{file.git_oid or ''}\n" for name, file in run)
    return hashlib.sha256(lines.encode()).hexdigest()

"""Which commit last changed a file, or anything in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from sqlalchemy.orm import Session

from suture_service.hf import repository
from suture_service.hf.schemas import CommitRef
from suture_service.models.trees import NamedFile, digests_in, parts_of
from suture_service.tables import Commit

#: How far back the commit is looked for; beyond, none is named.
LOOK_BACK = 200
#: Of how many commits the trees are compared at once.
_AT_ONCE = 50


def last_commits(
    session: Session, head: Commit, files: Sequence[NamedFile], paths: Sequence[str]
) -> dict[str, CommitRef]:
    """Return the commit that last changed each path, as far as it lies near enough to `head`.

    `files` are those of `head` that the paths name, or that lie below them. Only parts of trees are looked into that
    `head` has and an older commit has not.
    """
    below = _below(files, paths)
    open_ = {file.name: file for file in files if any(True for _ in _above(file.name, below))}
    changed: dict[str, Commit] = {}
    chain = repository.history(session, head.id, LOOK_BACK)
    for newer, replaced in _steps(session, chain, open_):
        for name, sha256 in replaced.items():
            if name in open_ and sha256 != open_[name].sha256:
                changed[name] = newer
                del open_[name]
        if not open_:
            break
    if chain[-1].parent_id is None:
        changed |= dict.fromkeys(open_, chain[-1])
    last = {}
    for path, names in below.items():
        commits = [changed[name] for name in names if name in changed]
        if commits and len(commits) == len(names):
            newest = max(commits, key=lambda commit: commit.created_at)
            last[path] = CommitRef(id=newest.oid, title=newest.title, date=newest.created_at)
    return last


def _below(files: Sequence[NamedFile], paths: Sequence[str]) -> dict[str, list[str]]:
    below: dict[str, list[str]] = {path: [] for path in paths}
    for file in files:
        for path in _above(file.name, below):
            below[path].append(file.name)
    return below


def _above(name: str, wanted: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield those of the wanted paths that are this file, or a folder around it."""
    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        path = "/".join(parts[:depth])
        if path in wanted:
            yield path


def _steps(
    session: Session, chain: Sequence[Commit], open_: Mapping[str, NamedFile]
) -> Iterator[tuple[Commit, dict[str, str | None]]]:
    """Yield each commit with what the one before it had in place of the files that are still open, where that differs.

    Of a file in a part that both have, nothing is said: it is the same.
    """
    pairs = list(pairwise(chain))
    own = parts_of(session, [chain[0].revision_id])[chain[0].revision_id]
    for start in range(0, len(pairs), _AT_ONCE):
        some = pairs[start : start + _AT_ONCE]
        parts = parts_of(session, {older.revision_id for _, older in some})
        others = set().union(*parts.values()) - own
        contents = digests_in(session, others, open_.keys()) if others and open_ else {}
        for newer, older in some:
            has = parts[older.revision_id]
            then: dict[str, str] = {}
            for part in has - own:
                then |= contents.get(part, {})
            yield newer, {name: then.get(name) for name, file in open_.items() if file.part not in has}

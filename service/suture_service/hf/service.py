"""The rules of repositories as the official client sees them: finding them, making, moving and deleting them, refs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from suture_service.access.repository import usable
from suture_service.audit.chain import record
from suture_service.auth import Caller
from suture_service.errors import Conflict, Forbidden
from suture_service.hf import repository
from suture_service.hf.errors import (
    BadRequest,
    EntryNotFound,
    GatedRepo,
    RepoNotFound,
    RevisionNotFound,
    RevisionPurged,
    WrongAddress,
)
from suture_service.hf.routing import RoutePlace, RouteRepo
from suture_service.hub import utc_now
from suture_service.models.repository import MAIN, note_deleted
from suture_service.models.schemas import Visibility
from suture_service.models.search import search_text
from suture_service.models.service import CARD, METADATA, Checked, checked_of, commit, delete_model, new_model
from suture_service.models.trees import NamedFile, StoredFile, files_of, find_file
from suture_service.parties.repository import get_token, lock_party
from suture_service.parties.service import checked_name
from suture_service.tables import Commit, Model, ReceivedFile, Ref

_COMMIT = re.compile(r"[0-9a-f]{7,40}")
# Git's own rules, as far as a name could be taken for something else.
_STRANGE = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|//|\.\.|@\{|/\.|\.lock(/|$)|^[/.-]|[/.]$|^refs/")


@dataclass(frozen=True)
class At:
    """A repository at a commit, as `asked` names it."""

    model: Model
    commit: Commit
    asked: str

    @property
    def oid(self) -> str:
        """The commit's id, 40 hex digits; or that of its content, where this was asked for: caches go by it."""
        tree = self.commit.revision.revision
        return tree if self.asked == tree else self.commit.oid


def get_repo(session: Session, caller: Caller, repo: RouteRepo) -> Model:
    """Return a repository that the caller may read; raises `RepoNotFound`."""
    model = repository.find_repo(session, caller.party_id, repo.namespace, repo.name)
    if model is None:
        raise RepoNotFound
    return model


def own_repo(session: Session, caller: Caller, repo: RouteRepo) -> Model:
    """Return a repository that the caller may write to; raises `RepoNotFound` or `Forbidden`."""
    model = get_repo(session, caller, repo)
    caller.require_own(repo.namespace, "publisher")
    return model


def get_at(session: Session, caller: Caller, place: RoutePlace) -> At:
    """Return a readable repository at a branch, tag or commit; raises `RepoNotFound` or `RevisionNotFound`."""
    model = get_repo(session, caller, place)
    return At(model, find_commit(session, model, place.revision), place.revision)


def find_commit(session: Session, model: Model, revision: str) -> Commit:
    """Return the commit that a branch, tag, or (part of a) commit id names; raises `RevisionNotFound`, and
    `RevisionPurged` where its files were taken away.

    The id of a revision names the newest commit of this content: so ids were made before commits had their own.
    """
    commit = _named_commit(session, model, revision)
    if commit.revision.purge is not None:
        raise RevisionPurged(revision, commit.revision.purge)
    return commit


def _named_commit(session: Session, model: Model, revision: str) -> Commit:
    if _COMMIT.fullmatch(revision):  # which no branch or tag can be called
        commit = repository.commit_by_prefix(session, model.id, revision)
        if commit is not None:
            return commit
        raise RevisionNotFound(revision)
    for kind, prefix in (("branch", "refs/heads/"), ("tag", "refs/tags/")):
        ref = repository.ref(session, model.id, kind, revision.removeprefix(prefix))  # type: ignore[arg-type]
        if ref is not None:
            return ref.commit
    raise RevisionNotFound(revision)


def check_download(session: Session, caller: Caller, model: Model) -> None:
    """Raise `GatedRepo` unless the caller may have the files of a repository that it may read."""
    if not may_download(session, caller, model):
        raise GatedRepo(model.repo)


def may_download(session: Session, caller: Caller, model: Model) -> bool:
    """Whether the caller may have the files of a repository that it may read."""
    return usable(session, model, caller.party_id, utc_now())


def get_file(session: Session, caller: Caller, at: At, path: str) -> NamedFile:
    """Return a file whose content the caller may have; raises `GatedRepo` or `EntryNotFound`."""
    check_download(session, caller, at.model)
    return _entry(session, at, path)


def get_document(session: Session, caller: Caller, at: At, path: str) -> NamedFile:
    """Return a file as `get_file` does; the card and `suture.json` need no asking, as they say what a model is."""
    return _entry(session, at, path) if path in (CARD, METADATA) else get_file(session, caller, at, path)


def _entry(session: Session, at: At, path: str) -> NamedFile:
    file = find_file(session, at.commit.revision_id, path)
    if file is None:
        raise EntryNotFound(path, at.oid)
    return file


def create_repo(session: Session, caller: Caller, name: str, visibility: Visibility, now: datetime) -> tuple[str, bool]:
    """Make a repository of the caller with one empty commit; return `party/name` and whether it is new."""
    caller.require("publisher")
    checked_name(name, "name")
    party = lock_party(session, caller.party_id)
    repo = f"{party.name}/{name}"
    if repository.own_name_taken(session, party.id, name):
        return repo, False
    model = new_model(session, party, name, visibility, now)
    commit(session, model, files={}, checked=Checked(), title="initial commit", created_by=caller.name, now=now)
    return repo, True


def delete_repo(session: Session, caller: Caller, repo: RouteRepo, now: datetime) -> None:
    """Delete a repository. Its rows stay, as lineage and running jobs name them; its name is free again."""
    lock_party(session, caller.party_id)
    model = own_repo(session, caller, repo)
    delete_model(session, model, now, by=caller.name)


def move_repo(session: Session, caller: Caller, source: RouteRepo, target: RouteRepo) -> None:
    """Rename a repository within its namespace, unless a running job's members name it."""
    lock_party(session, caller.party_id)
    model = own_repo(session, caller, source)
    caller.require_own(target.namespace, "publisher")
    checked_name(target.name, "toRepo")
    new = f"{target.namespace}/{target.name}"
    if repository.own_name_taken(session, caller.party_id, target.name):
        raise Conflict("model.exists", "there is a repository of this name already", where=new)
    if repository.in_running_job(session, model.id):
        hint = "wait until it has ended, or cancel it"
        raise Conflict("model.in_use", "a running job has it as a member", where=model.repo, hint=hint)
    record(session, caller.name, "model.move", model.repo, owner=model.party.name, to=new)
    model.name = target.name
    model.search_text = search_text(model.repo, model.description)


def squash(session: Session, caller: Caller, model: Model, branch: str, message: str, now: datetime) -> None:
    """Put one commit in place of a branch's history, and drop what no branch or tag leads to any more."""
    lock_party(session, model.party_id)
    ref = repository.ref(session, model.id, "branch", branch.removeprefix("refs/heads/"))
    if ref is None:
        raise RevisionNotFound(branch)
    revision = ref.commit.revision
    made = commit(
        session,
        model,
        files=present_files(session, revision.id),
        checked=checked_of(revision),
        title=message,
        created_by=caller.name,
        now=now,
        branch=ref.name,
        first=True,
    )
    gone = repository.unreachable(session, model.id)
    note_deleted(session, model, now)
    repository.drop_commits(session, model.id, gone)
    facts = {"branch": ref.name, "commit": made.oid, "commits": len(gone)}
    record(session, caller.name, "model.squash", model.repo, owner=model.party.name, **facts)


def present_files(session: Session, revision_id: int) -> dict[str, StoredFile]:
    """Return the files of a revision by name."""
    rows = files_of(session, revision_id)
    return {row.name: StoredFile(row.sha256, row.size, row.git_oid) for row in rows}


def note_received(session: Session, model_id: int, sha256: str, size: int, now: datetime) -> None:
    """Write down that this content was sent for this repository and is kept: a commit to it may name its digest."""
    repository.lock_model(session, model_id)
    session.merge(ReceivedFile(model_id=model_id, sha256=sha256, size=size, created_at=now))


def known_sizes(session: Session, caller: Caller, model: Model, digests: Sequence[str]) -> dict[str, int]:
    """Return the sizes of those contents that a commit to this repository may name."""
    known = repository.downloadable(session, caller.party_id, digests)
    return known | repository.received(session, model.id, digests)


def check_still_granted(session: Session, token_id: str, model_id: int, now: datetime) -> int:
    """Return the party that sends; raises `Forbidden` if the token has ended, or the repository was deleted, since an
    upload's address was made.
    """
    token, model = get_token(session, token_id), session.get(Model, model_id)
    if token is None:
        raise WrongAddress
    ended = token.revoked_at is not None or (token.expires_at is not None and token.expires_at <= now)
    if ended or token.party.suspended_at is not None or model is None or model.deleted_at is not None:
        raise WrongAddress
    return model.party_id


def make_ref(session: Session, model: Model, kind: repository.RefKind, name: str, start: str) -> None:
    """Add a branch or a tag; raises `Conflict` where there is one."""
    if not 0 < len(name) <= 255 or not name.isprintable() or _STRANGE.search(name) or _COMMIT.fullmatch(name):
        raise BadRequest("ref.name", f"{name[:100]!r} cannot name a {kind}", where=kind)
    lock_party(session, model.party_id)
    if repository.ref(session, model.id, kind, name) is not None:
        raise Conflict("ref.exists", f"there is a {kind} of this name already", where=name)
    session.add(Ref(model_id=model.id, kind=kind, name=name, commit=find_commit(session, model, start)))


def delete_ref(session: Session, model: Model, kind: repository.RefKind, name: str) -> None:
    """Remove a branch or a tag; raises `RevisionNotFound`, and `Forbidden` for `main`."""
    if (kind, name) == ("branch", MAIN):
        raise Forbidden("ref.main", "every repository has the branch main", where=name)
    lock_party(session, model.party_id)
    ref = repository.ref(session, model.id, kind, name)
    if ref is None:
        raise RevisionNotFound(name)
    session.delete(ref)

"""Endpoints that write: how each file is to be sent, and the commit that shows what was sent; and the history."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from fastapi import Query, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from suture_service.auth import Caller, CallerDep
from suture_service.errors import Conflict, PreconditionFailed
from suture_service.hf import repository, service
from suture_service.hf.changes import REGULAR_BYTES, Changes, apply, read_changes
from suture_service.hf.errors import BadRequest, RevisionNotFound
from suture_service.hf.ignored import Ignored
from suture_service.hf.listing import etag
from suture_service.hf.missing import PULL_REQUESTS
from suture_service.hf.routing import PlaceDep, RoutePlace, base_url, hub_router, link_next
from suture_service.hf.schemas import CommitOut, Committed, NewFile, Preupload, PreuploadFile, PreuploadIn
from suture_service.hub import HubContext, HubDep
from suture_service.keys.signatures import read_signature
from suture_service.models.publishing import check_repository
from suture_service.models.quota import take, take_room
from suture_service.models.service import Checked, checked_of, commit, revision_id
from suture_service.models.trees import StoredFile, files_at
from suture_service.observe import allow_body
from suture_service.paging import decode, encode
from suture_service.parties.repository import lock_party
from suture_service.storage.blobs import KeptFile
from suture_service.tables import Commit, Model

router = hub_router()
PAGE = 100
#: How often a commit is tried again when others move the branch meanwhile.
ATTEMPTS = 10
_BRANCH = "refs/heads/"


@router.post("/api/models/{namespace}/{name}/preupload/{revision}")
def preupload(
    hub: HubDep,
    caller: CallerDep,
    place: PlaceDep,
    body: PreuploadIn,
    create_pr: bool = False,
) -> Preupload:
    """Say for each file how it is to be sent, and what is there now."""
    _no_pull_requests(create_pr)
    with hub.database.reading() as session:
        _, head = _head(session, caller, place)
        asked = {file.path for file in body.files}
        present = {file.name: etag(file) for file in files_at(session, head.revision_id, asked)}
    ignored = Ignored(body.git_ignore or "")
    return Preupload(
        files=[
            PreuploadFile(
                path=file.path,
                upload_mode=_mode(file),
                should_ignore=ignored(file.path),
                oid=present.get(file.path),
            )
            for file in body.files
        ]
    )


def _mode(file: NewFile) -> Literal["regular", "lfs"]:
    return "lfs" if file.size > REGULAR_BYTES or file.path.endswith(".safetensors") else "regular"


@router.post("/api/models/{namespace}/{name}/commit/{revision}")
async def make_commit(
    hub: HubDep,
    caller: CallerDep,
    request: Request,
    place: PlaceDep,
    create_pr: bool = False,
) -> Committed:
    """Change a branch: all or nothing, checked before anyone can see it. The same again changes nothing."""
    _no_pull_requests(create_pr)
    await hub.read(lambda session: _head(session, caller, place))
    allow_body(request, hub.settings.max_commit_bytes)
    room, beside = partial(take_room, hub, caller.party_id), partial(hub.in_turn, caller.party_id)
    changes = await read_changes(hub.store, request.stream(), room, beside)
    for _ in range(ATTEMPTS):
        draft = await hub.read(lambda session: _draft(session, caller, place, changes))
        oid = draft.head_oid
        if revision_id(draft.files) != draft.head_tree:
            contents = {path: KeptFile(hub.store, file.sha256, file.size) for path, file in draft.files.items()}
            check = partial(check_repository, contents, hub.settings.max_card_bytes, draft.before, draft.same)
            checked = await hub.checks.run(caller.party_id, check)
            portable = checked.metadata is not None
            signature = await run_in_threadpool(read_signature, contents) if portable else None
            made = _Made(caller, place, changes, draft, checked, signature)
            written = await hub.write(partial(_write, hub, made))
            if written is None:
                continue
            oid = written
            hub.metrics.published.inc(int(portable))
        url = f"{base_url(request)}/{place.namespace}/{place.name}/commit/{oid}"
        return Committed(commit_url=url, commit_oid=oid)
    raise Conflict("commit.busy", "others commit to this branch all the time", where=place.revision, hint="try again")


@dataclass(frozen=True)
class _Draft:
    """What a branch would hold, and the commit it was at: what was checked then, and which files are the same."""

    head_id: int
    head_oid: str
    head_tree: str
    before: Checked
    files: dict[str, StoredFile]
    same: frozenset[str]


@dataclass(frozen=True)
class _Made:
    """A checked commit, to be written unless the branch has moved."""

    caller: Caller
    place: RoutePlace
    changes: Changes
    draft: _Draft
    checked: Checked
    signature: bytes | None


def _head(session: Session, caller: Caller, place: RoutePlace) -> tuple[Model, Commit]:
    """Return an own repository, and where its branch is."""
    model = service.own_repo(session, caller, place)
    ref = repository.ref(session, model.id, "branch", place.revision.removeprefix(_BRANCH))
    if ref is None:
        raise RevisionNotFound(place.revision)
    return model, ref.commit


def _draft(session: Session, caller: Caller, place: RoutePlace, changes: Changes) -> _Draft:
    model, head = _head(session, caller, place)
    oid = head.oid
    if changes.header.parent_commit is not None and not oid.startswith(changes.header.parent_commit):
        raise PreconditionFailed("commit.stale", f"the branch is at {oid}", where="parentCommit", hint="look again")
    present = service.present_files(session, head.revision_id)
    sizes = service.known_sizes(session, caller, model, changes.in_lfs)
    files = apply(changes, present, sizes, oid)
    same = frozenset(name for name in files if name in present and files[name].sha256 == present[name].sha256)
    return _Draft(head.id, oid, head.revision.revision, checked_of(head.revision), files, same)


def _write(hub: HubContext, made: _Made, session: Session) -> str | None:
    """Add the commit and return its id; None if the branch has moved meanwhile."""
    lock_party(session, made.caller.party_id)
    model, head = _head(session, made.caller, made.place)
    if head.id != made.draft.head_id:
        return None
    # What others share may be named without being sent.
    named = {*made.changes.in_lfs}
    sizes = {file.sha256: file.size for file in made.draft.files.values() if file.sha256 in named}
    take(session, model.party_id, sizes, hub.settings.max_party_bytes, hub.now())
    written = commit(
        session,
        model,
        files=made.draft.files,
        checked=made.checked,
        signature=made.signature,
        title=made.changes.header.summary,
        message=made.changes.header.description,
        created_by=made.caller.name,
        now=hub.now(),
        branch=made.place.revision.removeprefix(_BRANCH),
    )
    return written.oid


@router.get("/api/models/{namespace}/{name}/commits/{revision}")
def list_commits(
    hub: HubDep,
    caller: CallerDep,
    request: Request,
    response: Response,
    place: PlaceDep,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> list[CommitOut]:
    """List a branch's history, newest first."""
    after = decode(cursor, int)
    with hub.database.reading() as session:
        at = service.get_at(session, caller, place)
        start = at.commit.id
        if after is not None:
            last = session.get(Commit, after[0])
            if last is None or last.model_id != at.model.id:
                raise BadRequest("request.cursor", "not a cursor of this list", where="cursor")
            start = last.id
        chain = repository.history(session, start, PAGE + 1)
        if len(chain) > PAGE:
            link_next(request, response, encode(chain[PAGE].id))
        return [_show(step) for step in chain[:PAGE]]


def newest(session: Session, at: service.At, most: int) -> list[CommitOut]:
    """Return the commit that a repository is looked at and those before it, newest first; up to `most`."""
    return [_show(step) for step in repository.history(session, at.commit.id, most)]


def _show(step: Commit) -> CommitOut:
    return CommitOut(
        id=step.oid,
        title=step.title,
        message=step.message,
        date=step.created_at,
        authors=[{"user": step.created_by}],
    )


def _no_pull_requests(asked: bool) -> None:
    if asked:
        raise PULL_REQUESTS.error()

"""Endpoints of files: list a folder, describe paths, download."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Query, Request, Response
from sqlalchemy.orm import Session

from suture_service.auth import CallerDep
from suture_service.hf import repository, service
from suture_service.hf.changes import MAX_ENTRIES
from suture_service.hf.errors import BadRequest, EntryNotFound
from suture_service.hf.listing import entries, etag
from suture_service.hf.routing import FilePath, PlaceDep, hub_router, link_next
from suture_service.hf.schemas import CommitRef, TreeEntry
from suture_service.hub import HubDep
from suture_service.paging import decode, encode
from suture_service.storage.download import send_file
from suture_service.tables import Commit, RevisionFile

router = hub_router()
PAGE, EXPANDED_PAGE = 1000, 100
#: How far back the commit is looked for that last changed a file; beyond, none is named.
LOOK_BACK = 200
#: Of how many commits the files are read at once: of as many as have about so many files.
FILES_AT_ONCE = 10_000


@dataclass(frozen=True)
class ListingWish:
    """How a listing is asked for."""

    recursive: bool = False
    expand: bool = False
    cursor: Annotated[str | None, Query(max_length=4000)] = None


Wish = Annotated[ListingWish, Depends()]


@router.get("/api/models/{namespace}/{name}/tree/{revision}", response_model_exclude_none=True)
def list_root(
    hub: HubDep,
    caller: CallerDep,
    request: Request,
    response: Response,
    place: PlaceDep,
    wish: Wish,
) -> list[TreeEntry]:
    """List the root folder, by path."""
    return list_folder(hub, caller, request, response, place, "", wish)


@router.get("/api/models/{namespace}/{name}/tree/{revision}/{path:path}", response_model_exclude_none=True)
def list_folder(
    hub: HubDep,
    caller: CallerDep,
    request: Request,
    response: Response,
    place: PlaceDep,
    path: FilePath,
    wish: Wish,
) -> list[TreeEntry]:
    """List a folder, by path."""
    folder = path.strip("/")
    after = decode(wish.cursor, str)
    with hub.database.reading() as session:
        at = service.get_at(session, caller, place)
        files = repository.files(session, at.commit.revision_id, f"{folder}/" if folder else "")
        if folder and not files:
            raise EntryNotFound(folder, at.oid)
        found = entries(files, folder, recursive=wish.recursive)
        if after is not None:
            found = [entry for entry in found if entry.path > str(after[0])]
        limit = EXPANDED_PAGE if wish.expand else PAGE
        shown = found[:limit]
        if len(found) > limit:
            link_next(request, response, encode(shown[-1].path))
        if wish.expand:
            _name_last_commits(session, at, files, shown)
        return shown


async def _asked_paths(request: Request, _caller: CallerDep) -> tuple[set[str], bool]:
    """Return the paths of a form, and whether their last commits are wanted, too.

    The form is read here: a repository may hold more files than a form has fields by default.
    """
    async with request.form(max_files=0, max_fields=MAX_ENTRIES + 1) as form:
        paths = {path.strip("/") for path in form.getlist("paths") if isinstance(path, str)}
        expand = str(form.get("expand", "")).lower() in ("true", "1")
    if not paths or any(len(path) > 4096 for path in paths):
        raise BadRequest("request.paths", "name at least one path, of at most 4096 characters", where="paths")
    return paths, expand


@router.post("/api/models/{namespace}/{name}/paths-info/{revision}", response_model_exclude_none=True)
def paths_info(
    hub: HubDep, caller: CallerDep, place: PlaceDep, asked: Annotated[tuple[set[str], bool], Depends(_asked_paths)]
) -> list[TreeEntry]:
    """Describe files and folders; what is not there is left out."""
    wanted, expand = asked
    with hub.database.reading() as session:
        at = service.get_at(session, caller, place)
        files = repository.files(session, at.commit.revision_id)
        shown = [entry for entry in entries(files, "", recursive=True) if entry.path in wanted]
        if expand:
            _name_last_commits(session, at, files, shown)
        return shown


@router.head("/{namespace}/{name}/resolve/{revision}/{path:path}")
@router.get("/{namespace}/{name}/resolve/{revision}/{path:path}")
async def resolve(
    hub: HubDep,
    caller: CallerDep,
    request: Request,
    place: PlaceDep,
    path: FilePath,
) -> Response:
    """Download a file, whole or a `Range` of it."""

    def find(session: Session) -> tuple[str, RevisionFile]:
        at = service.get_at(session, caller, place)
        return at.oid, service.get_file(session, caller, at, path)

    oid, file = await hub.read(find)
    tag, headers = etag(file), {"X-Repo-Commit": oid}
    if request.method == "HEAD" and place.revision != oid:
        # The client's GET then goes where this HEAD was sent: a commit in between cannot mix two versions.
        headers |= {"ETag": f'"{tag}"', "X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{tag}"'}
        headers["Location"] = f"/{quote(place.namespace)}/{quote(place.name)}/resolve/{oid}/{quote(path)}"
        return Response(status_code=307, headers=headers)
    return await send_file(
        request,
        hub.store,
        name=file.name,
        sha256=file.sha256,
        size=file.size,
        etag=tag,
        headers=headers,
        signed_seconds=hub.settings.signed_download_seconds,
    )


def _name_last_commits(session: Session, at: service.At, files: Sequence[RevisionFile], shown: list[TreeEntry]) -> None:
    """Name the commit that last changed each file, or anything in a folder, as far as it lies near enough."""
    now = {file.name: file.sha256 for file in files}
    below = {
        entry.path: [name for name in now if name == entry.path or name.startswith(f"{entry.path}/")] for entry in shown
    }
    open_ = {name for names in below.values() for name in names}
    changed: dict[str, CommitRef] = {}
    newest_with: dict[str, CommitRef] = {}
    chain = repository.history(session, at.commit.id, LOOK_BACK)
    for commit, then in _contents(session, chain, max(1, FILES_AT_ONCE // len(now)) if now else 1):
        for name in sorted(open_):
            if then.get(name) != now[name]:
                changed[name] = newest_with[name]
                open_.discard(name)
            else:
                newest_with[name] = CommitRef(id=commit.oid, title=commit.title, date=commit.created_at)
        if not open_:
            break
    if chain[-1].parent_id is None:
        changed |= {name: newest_with[name] for name in open_}
    for entry in shown:
        found = [changed[name] for name in below[entry.path] if name in changed]
        if len(found) == len(below[entry.path]):
            entry.last_commit = max(found, key=lambda commit: commit.date)


def _contents(session: Session, chain: Sequence[Commit], step: int) -> Iterator[tuple[Commit, dict[str, str]]]:
    """Yield each commit with its files' digests by name; `step` commits at a time are read."""
    for start in range(0, len(chain), step):
        part = chain[start : start + step]
        digests = repository.digests_of(session, [commit.revision_id for commit in part])
        for commit in part:
            yield commit, digests.get(commit.revision_id, {})

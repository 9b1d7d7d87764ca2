"""Endpoints of files: list a folder, describe paths, download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qsl, quote

from fastapi import Depends, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from suture_service.auth import Caller, CallerDep, authenticate_download, bearer
from suture_service.hf import repository, service
from suture_service.hf.changes import MAX_ENTRIES
from suture_service.hf.errors import BadRequest, EntryNotFound
from suture_service.hf.last_commits import last_commits
from suture_service.hf.listing import contents, entry, etag
from suture_service.hf.routing import FULL_ID, FilePath, PlaceDep, RoutePlace, file_place, hub_router, link_next
from suture_service.hf.schemas import TreeEntry
from suture_service.hub import HubContext, HubDep, hub_of
from suture_service.models.trees import NamedFile, files_of
from suture_service.paging import decode, encode
from suture_service.storage.download import check_match, send_file

router = hub_router()
PAGE = 1000
#: Characters of a path, and bytes of a field of a form that names one: each character may take twelve.
_LONGEST, _LONGEST_FIELD = 4096, 12 * 4096 + 16


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
    key = decode(wish.cursor, str)
    after = str(key[0]) if key else ""
    with hub.database.reading() as session:
        at = service.get_at(session, caller, place)
        files = files_of(session, at.commit.revision_id, folder, after)
        if folder and not files and not after:
            raise EntryNotFound(folder, at.oid)
        # Of a folder that comes after a path, all files do.
        items = [item for item in contents(files, folder, recursive=wish.recursive).items() if item[0] > after]
        if len(items) > PAGE:
            link_next(request, response, encode(items[PAGE - 1][0]))
        return _described(session, at, files, items[:PAGE], expand=wish.expand)


async def _asked_paths(request: Request, _caller: CallerDep) -> tuple[set[str], bool]:
    """Return the paths of a form, and whether their last commits are wanted, too.

    The form is read here, beside the event loop: a repository may hold more files than a form has fields by default.
    """
    return await run_in_threadpool(_read_paths, await request.body())


def _read_paths(body: bytes) -> tuple[set[str], bool]:
    if body.count(b"&") > MAX_ENTRIES or max(map(len, body.split(b"&"))) > _LONGEST_FIELD:
        problem = f"a form of at most {MAX_ENTRIES} paths, each of at most {_LONGEST} characters"
        raise BadRequest("request.paths", problem, where="the body")
    fields = parse_qsl(body.decode(errors="replace"))
    paths = {path.strip("/") for name, path in fields if name == "paths"}
    if not paths or any(len(path) > _LONGEST for path in paths):
        raise BadRequest("request.paths", f"name at least one path, of at most {_LONGEST} characters", where="paths")
    return paths, dict(fields).get("expand", "").lower() in ("true", "1")


@router.post("/api/models/{namespace}/{name}/paths-info/{revision}", response_model_exclude_none=True)
def paths_info(
    hub: HubDep, caller: CallerDep, place: PlaceDep, asked: Annotated[tuple[set[str], bool], Depends(_asked_paths)]
) -> list[TreeEntry]:
    """Describe files and folders; what is not there is left out."""
    wanted, expand = asked
    with hub.database.reading() as session:
        at = service.get_at(session, caller, place)
        files = files_of(session, at.commit.revision_id)
        shown = [item for item in contents(files, "", recursive=True).items() if item[0] in wanted]
        return _described(session, at, files, shown, expand=expand)


@router.head("/{namespace}/{name}/resolve/{revision}/{path:path}")
@router.get("/{namespace}/{name}/resolve/{revision}/{path:path}")
async def resolve(request: Request) -> Response:
    """Download a file, whole or a `Range` of it.

    Who asks, and for what, is found in one thread: of a repository with many files, this is asked twice for each.
    """
    hub, credentials = hub_of(request), await bearer(request)

    def find() -> tuple[RoutePlace, str, str, NamedFile]:
        caller = authenticate_download(request, hub, credentials)
        place, path = file_place(request)
        return place, path, *_find(hub, caller, place, path)

    return await _send(hub, request, *await run_in_threadpool(find))


async def download(hub: HubContext, request: Request, caller: Caller, place: RoutePlace, path: str) -> Response:
    """Give a caller who is known already a file, as `resolve` does."""
    return await _send(hub, request, place, path, *await run_in_threadpool(_find, hub, caller, place, path))


def _find(hub: HubContext, caller: Caller, place: RoutePlace, path: str) -> tuple[str, NamedFile]:
    """Return a file that the caller may have, and the id by which its commit was asked for."""
    with hub.database.reading() as session:
        if FULL_ID.fullmatch(place.revision):
            asked = place.namespace, place.name, place.revision, path
            file = repository.find_download(session, caller.party_id, *asked)
            if file is not None:
                return place.revision, file
        at = service.get_at(session, caller, place)
        return at.oid, service.get_file(session, caller, at, path)


async def _send(hub: HubContext, request: Request, place: RoutePlace, path: str, oid: str, file: NamedFile) -> Response:
    tag, headers = etag(file), {"X-Repo-Commit": oid}
    if request.method == "HEAD" and place.revision != oid:
        check_match(request, f'"{tag}"')
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


def _described(
    session: Session,
    at: service.At,
    files: Sequence[NamedFile],
    shown: Sequence[tuple[str, NamedFile | str]],
    *,
    expand: bool,
) -> list[TreeEntry]:
    """Describe files and folders; with `expand`, name the commits that last changed them."""
    commits = last_commits(session, at.commit, files, [path for path, _ in shown]) if expand else {}
    return [entry(path, content, commits.get(path)) for path, content in shown]

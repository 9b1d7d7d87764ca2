"""Endpoints of repositories: make, delete, move, change, list and describe them; their branches and tags."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from suture_service.auth import Caller, CallerDep
from suture_service.hf import repository, service
from suture_service.hf.errors import BadRequest
from suture_service.hf.listing import show_refs, show_repo
from suture_service.hf.missing import no_such_type
from suture_service.hf.routing import PlaceDep, RepoDep, Rev, RoutePlace, RouteRepo, base_url, hub_router, link_next
from suture_service.hf.schemas import BranchIn, MoveIn, RefsOut, RepoIn, RepoOut, SettingsIn, TagIn
from suture_service.hub import HubContext, HubDep
from suture_service.keys.flags import flags_of
from suture_service.models.repository import MAIN
from suture_service.models.schemas import Gate, ModelChange, Visibility
from suture_service.models.service import change
from suture_service.models.trees import NamedFile, files_of, files_of_all
from suture_service.paging import decode, encode
from suture_service.parties.repository import lock_party
from suture_service.tables import Model

router = hub_router()
MAX_PAGE, FULL_PAGE = 500, 100
_MODEL = "/api/models/{namespace}/{name}"


@router.post("/api/repos/create")
def create_repo(hub: HubDep, caller: CallerDep, request: Request, body: RepoIn) -> Response:
    """Make a repository with one empty commit; one that is there already is named in the refusal."""
    _only_models(body.type)
    caller.require_own(body.organization or caller.party, "publisher")
    with hub.database.writing() as session:
        visibility = _visibility(body.private, body.visibility) or "private"
        repo, new = service.create_repo(session, caller, body.name, visibility, hub.now())
    shown = {"url": f"{base_url(request)}/{repo}", "name": repo, "id": repo}
    if new:
        return JSONResponse(shown)
    error = "there is a repository of this name already"
    return JSONResponse({"error": error, **shown}, status_code=409, headers={"X-Error-Message": error})


@router.delete("/api/repos/delete")
def delete_repo(hub: HubDep, caller: CallerDep, body: RepoIn) -> dict[str, Any]:
    """Delete an own repository."""
    _only_models(body.type)
    with hub.database.writing() as session:
        service.delete_repo(session, caller, RouteRepo(body.organization or caller.party, body.name), hub.now())
    return {}


@router.post("/api/repos/move")
def move_repo(hub: HubDep, caller: CallerDep, body: MoveIn) -> dict[str, Any]:
    """Rename an own repository."""
    _only_models(body.type)
    with hub.database.writing() as session:
        service.move_repo(session, caller, _parts(body.from_repo, caller), _parts(body.to_repo, caller))
    return {}


@router.put(_MODEL + "/settings")
def change_settings(hub: HubDep, caller: CallerDep, repo: RepoDep, body: SettingsIn) -> dict[str, Any]:
    """Change who may see an own repository, and whether its files are given to whoever does."""
    gated: Gate | None = None if body.gated is None else body.gated or "open"
    wanted = ModelChange(visibility=_visibility(body.private, body.visibility), gated=gated)
    model = change_repo(hub, caller, repo, wanted)
    return {"private": model.visibility == "private", "gated": model.gated or False}


def change_repo(hub: HubContext, caller: Caller, repo: RouteRepo, wanted: ModelChange) -> Model:
    """Change who may read an own repository, with a portable model in it or not, and who gets its files."""
    with hub.database.writing() as session:
        lock_party(session, caller.party_id)  # before it is read: who changes it at once waits
        model = service.own_repo(session, caller, repo)
        change(session, caller, model, hub.now(), wanted)
        return model


@router.get("/api/models", response_model_exclude_none=True)
def list_models(
    hub: HubDep,
    caller: CallerDep,
    request: Request,
    response: Response,
    search: Annotated[str | None, Query(max_length=200)] = None,
    author: Annotated[str | None, Query(max_length=300)] = None,
    words: Annotated[list[str] | None, Query(alias="filter", max_length=50)] = None,
    pipeline_tag: Annotated[str | None, Query(max_length=200)] = None,
    gated: bool | None = None,
    sort: Annotated[str | None, Query(max_length=50)] = None,
    limit: Annotated[int, Query(ge=1)] = MAX_PAGE,
    full: bool = False,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> list[RepoOut]:
    """List the repositories that the caller may see, newest first: nobody counts downloads or likes here."""
    order: repository.Sort = "created_at" if sort in ("createdAt", "created_at") else "updated_at"
    limit = min(limit, FULL_PAGE if full else MAX_PAGE)
    tags = [tag for word in [*(words or []), pipeline_tag] if word for tag in word.split(",")]
    with hub.database.reading() as session:
        rows = repository.list_repos(
            session,
            caller.party_id,
            search=search,
            author=author,
            tags=tags,
            gated=gated,
            sort=order,
            after=_moment(cursor),
            limit=limit,
        )
        flags = flags_of(session, [row.Revision.id for row in rows], caller.party_id)
        files = files_of_all(session, [row.Revision.id for row in rows[:limit]]) if full else {}
        shown = [
            show_repo(
                row.Model,
                row.Revision,
                row.oid,
                files.get(row.Revision.id),
                flags=flags.get(row.Revision.id, ()),
            )
            for row in rows[:limit]
        ]
        if len(rows) > limit:
            last = rows[limit - 1].Model
            link_next(request, response, encode(getattr(last, order).isoformat(), last.id))
        return shown


@router.get(_MODEL, response_model_exclude_none=True)
def model_info(hub: HubDep, caller: CallerDep, repo: RepoDep, blobs: bool = False) -> RepoOut:
    """Describe a repository at its branch `main`."""
    return _info(hub, caller, RoutePlace(repo.namespace, repo.name, MAIN), blobs=blobs)


@router.get(_MODEL + "/revision/{revision}", response_model_exclude_none=True)
def revision_info(hub: HubDep, caller: CallerDep, place: PlaceDep, blobs: bool = False) -> RepoOut:
    """Describe a repository at a branch, tag or commit."""
    return _info(hub, caller, place, blobs=blobs)


def _info(hub: HubDep, caller: Caller, place: RoutePlace, *, blobs: bool) -> RepoOut:
    with hub.database.reading() as session:
        at = service.get_at(session, caller, place)
        return show_at(session, caller, at, files_of(session, at.commit.revision_id), blobs=blobs)


def show_at(session: Session, caller: Caller, at: service.At, files: Sequence[NamedFile], *, blobs: bool) -> RepoOut:
    """Describe a repository at a commit that holds `files`; with `blobs`, with their sizes and ids."""
    revision_id = at.commit.revision_id
    flags = flags_of(session, [revision_id], caller.party_id).get(revision_id, ())
    return show_repo(at.model, at.commit.revision, at.oid, files, blobs=blobs, flags=flags)


@router.get(_MODEL + "/auth-check")
def auth_check(hub: HubDep, caller: CallerDep, repo: RepoDep) -> dict[str, Any]:
    """Say that the caller may have the files of a repository, or refuse as a download would."""
    with hub.database.reading() as session:
        service.check_download(session, caller, service.get_repo(session, caller, repo))
    return {}


@router.get(_MODEL + "/auth-check/write")
def auth_check_write(hub: HubDep, caller: CallerDep, repo: RepoDep) -> dict[str, Any]:
    """Say that the caller may write to a repository, or refuse as a commit would."""
    with hub.database.reading() as session:
        service.own_repo(session, caller, repo)
    return {}


@router.get(_MODEL + "/refs", response_model_exclude_none=True)
def list_refs(hub: HubDep, caller: CallerDep, repo: RepoDep, include_prs: bool = False) -> RefsOut:
    """List branches and tags."""
    with hub.database.reading() as session:
        return refs_of(session, service.get_repo(session, caller, repo), with_pull_requests=include_prs)


def refs_of(session: Session, model: Model, *, with_pull_requests: bool = False) -> RefsOut:
    """Return a repository's branches and tags."""
    return show_refs(repository.refs(session, model.id), with_pull_requests=with_pull_requests)


@router.post(_MODEL + "/branch/{branch}")
def create_branch(
    hub: HubDep, caller: CallerDep, repo: RepoDep, branch: Rev, body: BranchIn | None = None
) -> dict[str, Any]:
    """Add a branch."""
    start = (body.starting_point if body else None) or MAIN
    _make_ref(hub, caller, repo, "branch", branch, start)
    return {}


@router.delete(_MODEL + "/branch/{branch}")
def delete_branch(hub: HubDep, caller: CallerDep, repo: RepoDep, branch: Rev) -> dict[str, Any]:
    """Remove a branch; its commits stay."""
    _delete_ref(hub, caller, repo, "branch", branch)
    return {}


@router.post(_MODEL + "/tag/{revision}")
def create_tag(hub: HubDep, caller: CallerDep, repo: RepoDep, revision: Rev, body: TagIn) -> dict[str, Any]:
    """Name a commit."""
    _make_ref(hub, caller, repo, "tag", body.tag, revision)
    return {}


@router.delete(_MODEL + "/tag/{tag}")
def delete_tag(hub: HubDep, caller: CallerDep, repo: RepoDep, tag: Rev) -> dict[str, Any]:
    """Remove a tag."""
    _delete_ref(hub, caller, repo, "tag", tag)
    return {}


def _make_ref(hub: HubDep, caller: Caller, repo: RouteRepo, kind: repository.RefKind, ref: str, start: str) -> None:
    with hub.database.writing() as session:
        model = service.own_repo(session, caller, repo)
        service.make_ref(session, model, kind, ref, start)


def _delete_ref(hub: HubDep, caller: Caller, repo: RouteRepo, kind: repository.RefKind, ref: str) -> None:
    with hub.database.writing() as session:
        model = service.own_repo(session, caller, repo)
        service.delete_ref(session, model, kind, ref)


def _only_models(kind: str | None) -> None:
    if kind not in (None, "model"):
        raise no_such_type(kind)


def _visibility(private: bool | None, visibility: str | None) -> Visibility | None:
    if visibility is not None:
        return "private" if visibility == "private" else "all"
    if private is not None:
        return "private" if private else "all"
    return None


def _parts(repo: str, caller: Caller) -> RouteRepo:
    namespace, slash, name = repo.partition("/")
    return RouteRepo(namespace, name) if slash else RouteRepo(caller.party, repo)


def _moment(cursor: str | None) -> tuple[datetime, int] | None:
    key = decode(cursor, str, int)
    if key is None:
        return None
    try:
        return datetime.fromisoformat(str(key[0])), int(key[1])
    except ValueError:
        raise BadRequest("request.cursor", "not a cursor of this list", where="cursor") from None

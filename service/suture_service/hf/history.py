"""Endpoints that shorten a repository: one commit in place of a branch's history, and large files that go for good."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request, Response

from suture_service.auth import CallerDep
from suture_service.errors import NotFound
from suture_service.hf import repository, service
from suture_service.hf.errors import BadRequest
from suture_service.hf.routing import RepoDep, Rev, hub_router, link_next
from suture_service.hf.schemas import LfsDeletion, LfsFileOut, SquashIn
from suture_service.hub import HubDep
from suture_service.paging import decode, encode
from suture_service.purges.service import PurgeTarget, purge

router = hub_router()
PAGE = 1000
REASON = "deleted for good with the Hugging Face Hub's protocol"
_MODEL = "/api/models/{namespace}/{name}"


@router.post(_MODEL + "/super-squash/{branch}")
def super_squash(hub: HubDep, caller: CallerDep, repo: RepoDep, branch: Rev, body: SquashIn) -> dict[str, Any]:
    """Put one commit in place of a branch's history. What no other branch or tag leads to is gone for good."""
    with hub.database.writing() as session:
        model = service.own_repo(session, caller, repo)
        service.squash(session, caller, model, branch, body.message, hub.now())
    return {}


@router.get(_MODEL + "/lfs-files")
def list_lfs_files(
    hub: HubDep,
    caller: CallerDep,
    request: Request,
    response: Response,
    repo: RepoDep,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> list[LfsFileOut]:
    """List the large files of an own repository, of all its revisions, by digest."""
    after = decode(cursor, str)
    with hub.database.reading() as session:
        model = service.own_repo(session, caller, repo)
        rows = repository.lfs_files(session, model.id, str(after[0]) if after else None, PAGE + 1)
    if len(rows) > PAGE:
        link_next(request, response, encode(rows[PAGE - 1].sha256))
    return [
        LfsFileOut(file_oid=row.sha256, oid=row.sha256, filename=row.name, size=row.size, pushed_at=row.pushed_at)
        for row in rows[:PAGE]
    ]


@router.post(_MODEL + "/lfs-files/batch")
def delete_lfs_files(hub: HubDep, caller: CallerDep, repo: RepoDep, body: LfsDeletion) -> dict[str, Any]:
    """Take large files out of an own repository for good, with every revision that holds one of them."""
    with hub.database.reading() as session:
        model = service.own_repo(session, caller, repo)
        target = PurgeTarget(model.repo, digests=tuple(body.deletions.sha))
    if not body.deletions.rewrite_history:
        hint = "leave rewrite_history as it is, or delete the files in a commit: older ones keep them then"
        raise BadRequest("lfs.history", "revisions never change here: they go with the file", hint=hint)
    try:
        purge(hub, target, "model", by=caller.name, reason=REASON, reader=caller.party_id)
    except NotFound:
        raise BadRequest("lfs.unknown", "this repository has no such file", where=body.deletions.sha[0]) from None
    return {}

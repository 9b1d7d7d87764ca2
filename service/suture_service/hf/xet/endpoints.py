"""The endpoints a Xet client sends to. Questions about what the hub has already are not answered: all is sent anew."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import structlog
from fastapi import Depends, Path, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.exc import OperationalError

from suture_contract.errors import SutureError
from suture_service.auth import CallerDep
from suture_service.errors import Unauthorized, Unavailable, of_database
from suture_service.hf.routing import RepoDep, base_url, hub_router
from suture_service.hf.service import own_repo
from suture_service.hf.xet import service
from suture_service.hf.xet.format import MAX_XORB, XORB_LIMIT, XetFile
from suture_service.hub import HubDep
from suture_service.observe import allow_body
from suture_service.tables import XetEpoch

log = structlog.get_logger(__name__)
router = hub_router()

#: A client waits some minutes for the next line of an answer; proxies often wait for one.
LINE_SECONDS = 10.0

_bearer = HTTPBearer(auto_error=False)


@router.get("/api/models/{namespace}/{name}/xet-write-token/{revision}")
def write_token(hub: HubDep, caller: CallerDep, request: Request, response: Response, repo: RepoDep) -> dict[str, Any]:
    """Return where to send large files for a repository, and a token for it."""
    with hub.database.writing() as session:
        permit = service.permit(hub, session, caller, own_repo(session, caller, repo))
    address, until = f"{base_url(request)}/xet/{permit.epoch_id}", int(permit.until.timestamp())
    response.headers["X-Xet-Cas-Url"] = address
    response.headers["X-Xet-Access-Token"] = permit.token
    response.headers["X-Xet-Token-Expiration"] = str(until)
    return {"casUrl": address, "accessToken": permit.token, "exp": until}


def _epoch(
    hub: HubDep, epoch: str, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> XetEpoch:
    if credentials is None:
        raise Unauthorized
    with hub.database.reading() as session:
        return service.admit(hub, session, epoch, credentials.credentials)


EpochDep = Annotated[XetEpoch, Depends(_epoch)]


@router.post("/xet/{epoch}/v1/xorbs/default/{hash}")
async def receive_xorb(
    hub: HubDep, epoch: EpochDep, request: Request, name: Annotated[str, Path(alias="hash", pattern="^[0-9a-f]{64}$")]
) -> dict[str, bool]:
    """Take in a xorb."""
    allow_body(request, XORB_LIMIT)
    return {"was_inserted": await service.receive_xorb(hub, epoch, name, request.stream())}


@router.post("/xet/{epoch}/v1/shards")
@router.post("/xet/{epoch}/shards")
async def receive_shard(hub: HubDep, epoch: EpochDep, request: Request) -> dict[str, int]:
    """Put together and store the files that a shard lists; older clients."""
    allow_body(request, MAX_XORB)
    files = await service.receive_shard(hub, request.stream())
    await service.store_files(hub, epoch, files, service.UploadProgress())
    return {"result": 1}


@router.post("/xet/{epoch}/v2/shards")
async def receive_shard_telling(hub: HubDep, epoch: EpochDep, request: Request) -> StreamingResponse:
    """Put together and store the files that a shard lists, with a line of how far it is every few seconds."""
    allow_body(request, MAX_XORB)
    files = await service.receive_shard(hub, request.stream())
    return StreamingResponse(_telling(hub, epoch, files), media_type="application/x-ndjson")


@router.post("/v1/telemetry", status_code=204)
async def telemetry() -> None:
    """Discard a client's statistics of its uploads."""


async def _telling(hub: HubDep, epoch: XetEpoch, files: list[XetFile]) -> AsyncIterator[str]:
    progress, scope = service.UploadProgress(), anyio.CancelScope()

    async def store() -> None:
        with scope:
            await service.store_files(hub, epoch, files, progress)

    work = asyncio.create_task(store())
    try:
        while not (await asyncio.wait({work}, timeout=LINE_SECONDS))[0]:
            yield _line(type="validating", verified=progress.done, total=len(files))
        yield _outcome(work)
    finally:
        # The client may have gone, and the hub may be about to stop. A thread in the middle of a transaction is waited
        # for, which it would not be if the task itself were cancelled.
        scope.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({work})


def _outcome(work: asyncio.Task[None]) -> str:
    try:
        work.result()
    except SutureError as error:
        return _line(type="error", message=str(error), retryable=isinstance(error, Unavailable))
    except OperationalError as error:
        return _line(type="error", message=str(of_database(error)), retryable=True)
    except Exception:
        # The answer has begun: its status can no longer say this.
        log.exception("failed")
        return _line(type="error", message="the hub failed to store these files", retryable=False)
    return _line(type="result")


def _line(**content: Any) -> str:
    return json.dumps(content) + "\n"

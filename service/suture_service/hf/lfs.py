"""Git LFS, uploads only: the client asks where to send its large files, and sends each to an address of its own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi import Request
from sqlalchemy.orm import Session

from suture_service.auth import CallerDep
from suture_service.hf import service
from suture_service.hf.errors import BadRequest
from suture_service.hf.routing import RepoDep, base_url, hub_router
from suture_service.hf.schemas import LfsBatchIn
from suture_service.hf.signing import seal, unseal
from suture_service.hub import HubDep
from suture_service.models import quota

router = hub_router()
#: An upload must begin within this time; how long it then takes does not matter.
ADDRESS_LASTS = timedelta(hours=1)
_PURPOSE = "lfs"


@router.post("/{namespace}/{name}.git/info/lfs/objects/batch")
def lfs_batch(hub: HubDep, caller: CallerDep, request: Request, repo: RepoDep, body: LfsBatchIn) -> dict[str, Any]:
    """Say for each file where to send it, or that it is there already.

    There is only what the caller could download: otherwise who knows a digest could have a foreign private file.
    """
    if body.operation != "upload" or body.hash_algo != "sha256":
        raise BadRequest("lfs.operation", "uploads with sha256 only", hint="downloads need no LFS here")
    with hub.database.reading() as session:
        model = service.own_repo(session, caller, repo)
        there = service.known_sizes(session, caller, model, [file.oid for file in body.objects])
        announced = {file.oid: file.size for file in body.objects if there.get(file.oid) != file.size}
        refused = quota.refused(session, caller.party_id, announced, hub.settings.max_party_bytes)
    shown: list[dict[str, Any]] = []
    for file in body.objects:
        entry: dict[str, Any] = {"oid": file.oid, "size": file.size}
        if file.size > hub.settings.max_model_bytes:
            message = f"larger than the {hub.settings.max_model_bytes} bytes this hub takes"
            entry["error"] = {"code": 413, "message": message}
        elif file.oid in refused:
            entry["error"] = {"code": 413, "message": refused[file.oid]}
        elif there.get(file.oid) != file.size:
            content = {"model": model.id, "token": caller.token_id, "oid": file.oid, "size": file.size}
            permission = seal(hub, _PURPOSE, content, ADDRESS_LASTS)
            address = {"href": f"{base_url(request)}/api/lfs/{permission}", "header": {}}
            entry["actions"] = {"upload": address}
        shown.append(entry)
    return {"transfer": "basic", "objects": shown}


@router.put("/api/lfs/{permission}")
async def lfs_upload(hub: HubDep, request: Request, permission: str) -> dict[str, Any]:
    """Take in a file. The client sends no token: the address itself says who may send what."""
    granted = unseal(hub, _PURPOSE, permission)
    token, model = granted["token"], granted["model"]
    party_id = await hub.read(lambda session: service.check_still_granted(session, token, model, hub.now()))
    await quota.take_room(hub, party_id, {granted["oid"]: granted["size"]})
    async with hub.store.receive(request.stream(), limit=granted["size"], where="the file") as upload:
        if (upload.sha256, upload.size) != (granted["oid"], granted["size"]):
            problem = f"{upload.size} bytes came, which are not the announced content"
            raise BadRequest("upload.mismatch", problem, where="the file", hint="upload it again")
        await upload.keep()

    def note(session: Session) -> None:
        service.note_received(session, model, upload.sha256, upload.size, hub.now())

    await hub.write(note)
    return {}

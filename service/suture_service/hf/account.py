"""Endpoints about the caller, and those that the client calls before it knows one."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from suture_contract.card.yaml_block import split_card
from suture_contract.errors import SutureError
from suture_service.auth import CallerDep
from suture_service.hf.routing import hub_router
from suture_service.hf.schemas import YamlIn

router = hub_router()


@router.get("/api/whoami-v2")
def whoami(caller: CallerDep) -> dict[str, Any]:
    """Say whose token this is."""
    role = "write" if "publisher" in caller.roles else "read"
    return {
        "type": "user",
        "id": caller.party,
        "name": caller.party,
        "fullname": caller.name,
        "orgs": [],
        "auth": {"type": "access_token", "accessToken": {"displayName": caller.token_id, "role": role}},
    }


@router.post("/api/validate-yaml")
def validate_yaml(body: YamlIn) -> Any:
    """Check a model card's YAML block; the client asks without a token."""
    try:
        card, _ = split_card(body.content)
    except SutureError as error:
        return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, status_code=400)
    missing = [] if card else [{"message": "the card has no metadata block: nobody will find it by its tags"}]
    return {"errors": [], "warnings": missing}


@router.get("/api/agent-harnesses")
def agent_harnesses() -> dict[str, Any]:
    """Say that there are none: asked otherwise, every new process of the client would ask again."""
    return {"standardEnvVars": [], "harnesses": {}}

"""`/docs`: the API, from what describes it to machines; made here, so that it is read without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from fastapi import Request, Response

from suture_service.errors import HubError
from suture_service.hub import HubDep
from suture_service.pages.frame import render
from suture_service.pages.route import page_caller, pages

router = pages()
_METHODS = ("get", "post", "put", "patch", "delete")
_SCHEMA = "#/components/schemas/"


@router.get("/docs")
def show_api(hub: HubDep, request: Request) -> Response:
    """Show every call of the API, with what it takes and gives; who is signed in is still so here."""
    with suppress(HubError):
        page_caller(request, hub, None)
    described = request.app.openapi()
    calls = list(_calls(described["paths"]))
    rooms = [
        (tag["name"], tag["description"], [call for call in calls if call["tag"] == tag["name"]])
        for tag in described["tags"]
    ]
    schemas = {name: _fields(schema) for name, schema in sorted(described["components"]["schemas"].items())}
    about, version = described["info"]["description"], described["info"]["version"]
    return render(request, "api.html.jinja", about=about, version=version, rooms=rooms, schemas=schemas)


def _calls(paths: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path, operations in paths.items():
        for method in _METHODS:
            if method not in operations:
                continue
            call = operations[method]
            body = call.get("requestBody", {}).get("content", {})
            yield {
                "method": method.upper(),
                "path": path,
                "tag": call["tags"][0],
                "id": call["operationId"],
                "about": call.get("description", call["summary"]),
                "parameters": [_parameter(parameter) for parameter in call.get("parameters", ())],
                "body": [(kind, _kind(content.get("schema", {}))) for kind, content in body.items()],
                "answers": [_answer(status, answer) for status, answer in call["responses"].items()],
            }


def _parameter(parameter: dict[str, Any]) -> tuple[str, str, str, bool]:
    about = parameter.get("description") or parameter["schema"].get("description", "")
    return parameter["name"], _kind(parameter["schema"]), about, parameter.get("required", False)


def _answer(status: str, answer: dict[str, Any]) -> tuple[str, str, str]:
    kinds = [_kind(content.get("schema", {})) for content in answer.get("content", {}).values()]
    return status, next(filter(None, kinds), ""), answer["description"]


def _fields(schema: dict[str, Any]) -> dict[str, Any]:
    required = schema.get("required", ())
    fields = [
        (name, _kind(field), field.get("description", ""), name in required)
        for name, field in schema.get("properties", {}).items()
    ]
    return {"about": schema.get("description", ""), "fields": fields, "values": schema.get("enum")}


def _kind(schema: dict[str, Any]) -> str:
    """Return the type of a value in words; what has a name of its own is called by it."""
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(_SCHEMA)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(filter(None, map(_kind, schema["anyOf"]))))
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    kind = str(schema.get("type", ""))
    if kind == "array":
        return f"list of {_kind(schema.get('items', {})) or 'anything'}"
    return str(schema.get("format") or kind)

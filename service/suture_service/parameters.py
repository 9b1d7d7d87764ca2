"""What a request may say: names that an endpoint does not know are refused, and told what was probably meant."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from suture_contract.errors import SutureError
from suture_contract.naming import Problem, did_you_mean, problems_of

PAGE = "the API is described at /docs"


def known_parameters(request: Request) -> None:
    """Refuse parameters that the endpoint does not have: a filter that was meant would silently not be; a dependency.

    Raises `SutureError` (`request.invalid`), which is answered with 422.
    """
    route = request.scope.get("route")
    if not request.query_params or not isinstance(route, APIRoute):
        return
    known = _query(route.dependant)
    for name in request.query_params:
        if name not in known:
            where = name[:64] if name.isprintable() else ascii(name)[1:65]
            hint = f"{did_you_mean(where, known)} The parameters are described at /docs" if known else PAGE
            raise SutureError("request.invalid", f"there is no parameter '{where}' here", where=where, hint=hint)


def problem_of(request: Request, error: RequestValidationError) -> Problem:
    """Return what is wrong with a request first of all, and what was probably meant."""
    route, details = request.scope.get("route"), error.errors()
    first = details[0]
    if first["type"] == "json_invalid":
        return Problem("body", f"this is no JSON: {first['ctx']['error']}", PAGE)
    body = route.dependant.body_params if isinstance(route, APIRoute) else []
    model: Any = body[0].field_info.annotation if body else None
    inside = [{**detail, "loc": detail["loc"][1:]} for detail in details]
    problem = problems_of(inside, model)[0]  # type: ignore[arg-type]  # as pydantic gives them
    hint = f"{problem.hint} The API is described at /docs" if problem.hint else PAGE
    return Problem(problem.field or str(first["loc"][0]), problem.message, hint)


def _query(dependant: Dependant) -> list[str]:
    """Return the names of the query parameters of an endpoint and of what it depends on."""
    own = [parameter.alias for parameter in dependant.query_params]
    return own + [name for part in dependant.dependencies for name in _query(part)]

"""From what a form says to what the API is asked."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from suture_contract.errors import SutureError
from suture_contract.naming import problems_of
from suture_service.errors import HubError

Body = TypeVar("Body", bound=BaseModel)


def read_form(schema: type[Body], **fields: Any) -> Body:
    """Return a request of the API; raises `SutureError` `request.invalid`, which names the field."""
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        first = problems_of(error.errors(include_url=False), schema)[0]
        raise HubError("request.invalid", first.message, where=first.field, hint=first.hint) from None


def status_of(problem: SutureError | None) -> int:
    """Return the status with which a page shows a refusal beside its form; 200 where there is none."""
    return 200 if problem is None else problem.status if isinstance(problem, HubError) else 422

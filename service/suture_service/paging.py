"""Lists in pages: a limit, and an opaque cursor that says where the next page starts."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

from suture_service.errors import HubError

Item = TypeVar("Item")
Row = TypeVar("Row")

Limit = Annotated[int, Query(ge=1, le=200, description="How many at most.")]
Cursor = Annotated[str | None, Query(max_length=500, description="The `next` of the page before.")]


class Page(BaseModel, Generic[Item]):
    """Some of a list; `next` is the cursor of the page after, null on the last one."""

    items: list[Item]
    next: str | None = Field(default=None, examples=[None])


def encode(*key: str | int) -> str:
    """Return the cursor for a sort key."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def decode(cursor: str | None, *kinds: type) -> tuple[str | int, ...] | None:
    """Return the sort key that `encode` was given; raises `HubError` (`request.cursor`) for anything else."""
    if cursor is None:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if isinstance(key, list) and [type(part) for part in key] == list(kinds) and all(map(_is_key, key)):
            return tuple(key)
    except ValueError:
        pass
    raise HubError("request.cursor", "not a cursor of this list", where="cursor", hint="use the `next` of a page")


def _is_key(part: object) -> bool:
    if isinstance(part, int):
        return 0 <= part < 2**31
    return isinstance(part, str) and part.isprintable()  # half a character, or a NUL, would not reach the database


def page(
    rows: Sequence[Row], limit: int, show: Callable[[Row], Item], key: Callable[[Row], tuple[str | int, ...]]
) -> Page[Item]:
    """Return a page of rows that were fetched with one more than `limit`."""
    more = len(rows) > limit
    shown = rows[:limit]
    return Page(items=[show(row) for row in shown], next=encode(*key(shown[-1])) if more else None)

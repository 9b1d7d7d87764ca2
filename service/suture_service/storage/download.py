"""Answering with a file from the store: ranges, ETags, HEAD."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import Request
from starlette.responses import Response, StreamingResponse

from suture_service.errors import PreconditionFailed, RangeNotSatisfiable
from suture_service.storage.blobs import BlobStore

_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)", re.IGNORECASE)
#: Digits of the largest number that a range is read with; no file has so many bytes, and Python reads no number of
#: some thousands of digits.
_DIGITS = 18
#: What is not larger is read in one go: a repository of many files is mostly of small ones.
_AT_ONCE = 2**20
_MEDIA = {".json": "application/json", ".md": "text/plain; charset=utf-8"}


async def send_file(
    request: Request,
    store: BlobStore,
    *,
    name: str,
    sha256: str,
    size: int,
    etag: str | None = None,
    headers: Mapping[str, str] | None = None,
    signed_seconds: int = 0,
) -> Response:
    """Return the file, or the range of it that was asked for (206), or 304 where the caller has it already.

    `etag` is the digest where nothing else is said. With `signed_seconds`, and a store that can, the caller is sent on
    (302) to an address of the store that is valid for so long: only for callers known to follow, and to leave their
    token behind.

    Raises `PreconditionFailed` (412) where `If-Match` names another file, and `RangeNotSatisfiable` (416). Several
    ranges in one request are answered with the whole file, as HTTP allows.
    """
    etag = f'"{etag or sha256}"'
    headers = {
        **(headers or {}),
        "ETag": etag,
        "Accept-Ranges": "bytes",
        # A revision never changes, but who may read it does.
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name.rpartition('/')[2], safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
    check_match(request, etag)
    known = request.headers.get("if-none-match")
    if known is not None and {etag, "*"} & {tag.removeprefix("W/") for tag in _tags(known)}:
        return Response(status_code=304, headers=headers)
    address = store.sign(sha256, signed_seconds) if signed_seconds and size else None
    if address is not None:
        # What the address answers knows nothing of these.
        linked = {"Location": address, "X-Linked-ETag": etag, "X-Linked-Size": str(size)}
        return Response(status_code=302, headers={**headers, **linked, "Cache-Control": "no-store"})
    # A range is one of a GET: of any other method, HTTP wants it left unread.
    whole = request.method != "GET" or request.headers.get("if-range", etag) != etag
    wanted = None if whole else request.headers.get("range")
    start, end = parse_range(wanted, size) or (0, size)
    partial = (start, end) != (0, size) or (wanted is not None and parse_range(wanted, size) is not None)
    if partial:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    status = 206 if partial else 200
    media_type = next((media for suffix, media in _MEDIA.items() if name.endswith(suffix)), "application/octet-stream")
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    if end - start <= _AT_ONCE:
        content = await run_sync(store.read_all, sha256, start, end)
        return Response(content, status_code=status, headers=headers, media_type=media_type)
    chunks = await store.stream(sha256, start, end)
    return StreamingResponse(chunks, status_code=status, headers=headers, media_type=media_type)


def check_match(request: Request, etag: str) -> None:
    """Raise `PreconditionFailed` where `If-Match` names another file than the one of this `etag`, quotes included."""
    expected = request.headers.get("if-match")
    if expected is not None and not {etag, "*"} & set(_tags(expected)):
        raise PreconditionFailed(
            "file.changed",
            f"the file is {etag}, not what was asked for",
            where="If-Match",
            hint="ask for it again without If-Match",
        )


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return `(start, end)`, end exclusive, of a `Range` header; None where there is none that must be honoured."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    first, last = (digits.lstrip("0") or digits[:1] for digits in match.groups()) if match else ("", "")
    if not first and not last:
        return None
    if first:
        if last and (len(last), last) < (len(first), first):
            return None
        start, end = _number(first), min(_number(last) + 1 if last else size, size)
    else:
        start, end = max(size - _number(last), 0), size
    if start >= end:
        raise RangeNotSatisfiable(size)
    return start, end


def _number(digits: str) -> int:
    return int(digits) if len(digits) <= _DIGITS else 10**_DIGITS


def _tags(header: str) -> list[str]:
    return [tag.strip() for tag in header.split(",")]

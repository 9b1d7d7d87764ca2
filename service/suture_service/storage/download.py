"""Answering with a file from the store: ranges, ETags, HEAD."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import Request
from starlette.responses import Response, StreamingResponse

from suture_service.errors import RangeNotSatisfiable
from suture_service.storage.blobs import BlobStore

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
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

    Raises `RangeNotSatisfiable` (416). Several ranges in one request are answered with the whole file, as HTTP allows.
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
    if _holds(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    address = store.sign(sha256, signed_seconds) if signed_seconds and size else None
    if address is not None:
        # What the address answers knows nothing of these.
        linked = {"Location": address, "X-Linked-ETag": etag, "X-Linked-Size": str(size)}
        return Response(status_code=302, headers={**headers, **linked, "Cache-Control": "no-store"})
    wanted = request.headers.get("range")
    if request.headers.get("if-range", etag) != etag:
        wanted = None
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


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return `(start, end)`, end exclusive, of a `Range` header; None where there is none that must be honoured."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.group() == "bytes=-":
        return None
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < int(first):
            return None
    else:
        start, end = max(size - int(last), 0), size
    if start >= end:
        raise RangeNotSatisfiable(size)
    return start, end


def _holds(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return etag in tags or "*" in tags

"""Reading a commit: one JSON object per line, each taken in as it comes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from suture_contract.structure import holds_more
from suture_service.errors import TooLarge
from suture_service.hf.errors import BadRequest, EntryNotFound
from suture_service.hf.listing import git_blob_id
from suture_service.hf.schemas import DeletedPath, Header, LfsFile, RegularFile
from suture_service.models.publishing import TakeRoom
from suture_service.models.trees import StoredFile
from suture_service.storage import BlobStore

#: What comes inside the commit itself, in base64; larger files go by LFS or Xet.
REGULAR_BYTES = 4 * 2**20
#: So many bytes of it are kept at once.
_AT_ONCE = 8 * 2**20
#: A longer line is read beside the event loop; and what there is in one, names of fields counted.
_LONG, _VALUES = 64 * 1024, 100
_LINE = REGULAR_BYTES * 4 // 3 + 256 * 1024
#: Of a commit, and files of a repository.
MAX_ENTRIES = 20_000
_KINDS = {"file": RegularFile, "lfsFile": LfsFile, "deletedFile": DeletedPath, "deletedFolder": DeletedPath}


@dataclass(frozen=True)
class Put:
    """A file is added or replaced; the size of one in LFS may be left to the hub."""

    path: str
    sha256: str
    size: int | None
    git_oid: str | None


@dataclass(frozen=True)
class Delete:
    """A file is removed, or a folder with all that is in it."""

    path: str
    folder: bool


@dataclass
class Changes:
    """What a commit says, in its order."""

    header: Header
    steps: list[Put | Delete] = field(default_factory=list)

    @property
    def in_lfs(self) -> list[str]:
        """The digests of contents that must have been sent before."""
        return sorted({step.sha256 for step in self.steps if isinstance(step, Put) and step.git_oid is None})


async def read_changes(store: BlobStore, body: AsyncIterator[bytes], take_room: TakeRoom) -> Changes:
    """Read a commit and keep the contents it brings along; raises `BadRequest` or `TooLarge`.

    Kept content that no commit comes to name is garbage, collected like all other.
    """
    changes: Changes | None = None
    inside = _Inside(store, take_room)
    async for line in _lines(body):
        key, value = await run_in_threadpool(_parse, line) if len(line) > _LONG else _parse(line)
        if changes is None:
            if key != "header":
                raise BadRequest("commit.header", "the first line must be the header", where="the commit")
            changes = Changes(_validate(Header, value))
            continue
        if len(changes.steps) >= MAX_ENTRIES:
            raise TooLarge("commit.too_large", f"more than {MAX_ENTRIES} files", hint="make several commits")
        if key not in _KINDS:
            raise BadRequest("commit.key", f"{str(key)[:50]!r} is not known", where="the commit")
        entry = _validate(_KINDS[key], value)
        _check_path(entry.path.rstrip("/") if key == "deletedFolder" else entry.path)
        if isinstance(entry, RegularFile):
            changes.steps.append(await inside.add(entry))
        elif isinstance(entry, LfsFile):
            changes.steps.append(Put(entry.path, entry.oid, entry.size, None))
        else:
            changes.steps.append(Delete(entry.path.rstrip("/"), key == "deletedFolder"))
    if changes is None:
        raise BadRequest("commit.header", "the commit is empty", where="the commit")
    await inside.keep()
    return changes


async def _lines(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    pending, seen = bytearray(), 0
    async for chunk in body:
        pending += chunk
        while (end := pending.find(b"\n", seen)) >= 0:
            line = bytes(pending[:end])
            del pending[: end + 1]
            seen = 0
            if line.strip():
                yield line
        seen = len(pending)
        if seen > _LINE:
            hint = "large files go by LFS or Xet: ask preupload"
            raise TooLarge("commit.too_large", f"a line has more than {_LINE} bytes", where="the commit", hint=hint)
    if pending.strip():
        yield bytes(pending)


def _parse(line: bytes) -> tuple[Any, Any]:
    if holds_more(line, _VALUES):
        raise BadRequest("commit.line", "a line is more than `{key, value}`", where="the commit")
    try:
        entry = json.loads(line)
        return entry["key"], entry["value"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadRequest("commit.line", "a line is not `{key, value}`", where="the commit") from None


def _validate(schema: type[Any], value: Any) -> Any:
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadRequest("commit.value", f"{place}: {first['msg']}", where="the commit") from None


def _check_path(path: str) -> None:
    """Refuse what could not be a file's path on some reader's machine."""
    if "\\" in path or not path.isprintable() or any(map(_strange, path.split("/"))):
        raise BadRequest("commit.path", f"{path[:100]!r} cannot be a path in a repository", where="the commit")


def _strange(part: str) -> bool:
    return part in ("", ".", "..") or part.lower() == ".git" or len(part.encode()) > 255


class _Inside:
    """The contents that come inside a commit, kept some MiB at a time: room for each alone would take too long."""

    def __init__(self, store: BlobStore, take_room: TakeRoom) -> None:
        self._store, self._take_room = store, take_room
        self._waiting: dict[str, bytes] = {}
        self._bytes = 0

    async def add(self, entry: RegularFile) -> Put:
        """Take a content in, to be kept soon."""
        content, put = await run_in_threadpool(_decoded, entry) if len(entry.content) > _LONG else _decoded(entry)
        self._waiting[put.sha256] = content
        self._bytes += len(content)
        if self._bytes >= _AT_ONCE:
            await self.keep()
        return put

    async def keep(self) -> None:
        """Keep what has been taken in."""
        if not self._waiting:
            return
        await self._take_room({sha256: len(content) for sha256, content in self._waiting.items()})
        await self._store.put(self._waiting)
        self._waiting.clear()
        self._bytes = 0


def _decoded(entry: RegularFile) -> tuple[bytes, Put]:
    try:
        plain = entry.encoding == "utf-8"
        content = entry.content.encode() if plain else base64.b64decode(entry.content, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("commit.content", "not base64", where=entry.path[:200]) from None
    if len(content) > REGULAR_BYTES:
        hint = "large files go by LFS or Xet: ask preupload"
        raise TooLarge("upload.too_large", f"larger than {REGULAR_BYTES} bytes", where=entry.path[:200], hint=hint)
    sha256 = hashlib.sha256(content).hexdigest()
    return content, Put(entry.path, sha256, len(content), git_blob_id(content))


def apply(
    changes: Changes, present: Mapping[str, StoredFile], sizes: Mapping[str, int], commit: str
) -> dict[str, StoredFile]:
    """Return the files after the commit; `sizes` are those of contents that it may name.

    Raises `EntryNotFound` for a deletion of what is not there, `BadRequest` for content that was never sent.
    """
    files = dict(present)
    for step in changes.steps:
        if isinstance(step, Put):
            files[step.path] = _stored(step, sizes)
        elif step.folder:
            inside = [name for name in files if name.startswith(f"{step.path}/")]
            if not inside:
                raise EntryNotFound(step.path, commit, "A folder with this name doesn't exist")
            for name in inside:
                del files[name]
        elif files.pop(step.path, None) is None:
            raise EntryNotFound(step.path, commit, "A file with this name doesn't exist")
    folders = {"/".join(parts[:depth]) for parts in map(_split, files) for depth in range(1, len(parts))}
    for name in files:
        if name in folders:
            raise BadRequest("commit.path", "both a file and a folder", where=name[:200])
    if len(files) > MAX_ENTRIES:
        raise TooLarge("commit.too_large", f"a repository holds at most {MAX_ENTRIES} files", where="the commit")
    return files


def _split(name: str) -> list[str]:
    return name.split("/")


def _stored(step: Put, sizes: Mapping[str, int]) -> StoredFile:
    if step.git_oid is not None:
        assert step.size is not None
        return StoredFile(step.sha256, step.size, step.git_oid)
    size = sizes.get(step.sha256)
    if size is None or step.size not in (None, size):
        hint = "send the file first, by LFS or Xet"
        raise BadRequest("commit.unknown_content", "this content was never sent", where=step.path[:200], hint=hint)
    return StoredFile(step.sha256, size)

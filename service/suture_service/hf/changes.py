"""Reading a commit: one JSON object per line, each taken in as it comes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PureWindowsPath
from typing import Any, TypeAlias, TypeVar
from unicodedata import normalize

from pydantic import ValidationError

from suture_contract.structure import holds_more
from suture_service.errors import TooLarge
from suture_service.hf.errors import BadRequest, EntryNotFound
from suture_service.hf.listing import git_blob_id
from suture_service.hf.schemas import DeletedPath, Header, LfsFile, RegularFile
from suture_service.models.publishing import TakeRoom
from suture_service.models.trees import StoredFile
from suture_service.storage import BlobStore

T = TypeVar("T")
#: Does work beside the event loop.
Beside: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]
#: What comes inside the commit itself, in base64; larger files go by LFS or Xet.
REGULAR_BYTES = 4 * 2**20
#: So many bytes of it are kept at once.
_AT_ONCE = 8 * 2**20
#: Longer lines, or more of them, are read beside the event loop; and what there is in one, names of fields counted.
_LONG, _VALUES = 64 * 1024, 100
_LINE = REGULAR_BYTES * 4 // 3 + 256 * 1024
#: Of a commit, and files of a repository.
MAX_ENTRIES = 20_000
_MOST_LINES = 2 * MAX_ENTRIES
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


async def read_changes(store: BlobStore, body: AsyncIterator[bytes], take_room: TakeRoom, beside: Beside) -> Changes:
    """Read a commit and keep the contents it brings along, long lines `beside`; raises `BadRequest` or `TooLarge`.

    Kept content that no commit comes to name is garbage, collected like all other.
    """
    changes: Changes | None = None
    inside = _Inside(store, take_room)
    async for lines in _lines(body):
        if changes is None:
            changes = Changes(await _read(_read_header, [lines.pop(0)], beside))
        if len(changes.steps) + len(lines) > MAX_ENTRIES:
            raise TooLarge("commit.too_large", f"more than {MAX_ENTRIES} files", hint="make several commits")
        for step, content in await _read(_read_steps, lines, beside):
            changes.steps.append(step)
            if isinstance(step, Put) and content is not None:
                await inside.add(step.sha256, content)
    if changes is None:
        raise BadRequest("commit.header", "the commit is empty", where="the commit")
    await inside.keep()
    return changes


async def _lines(body: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Yield the lines that have come whole, some at a time."""
    pending, seen, count = bytearray(), 0, 0
    async for chunk in body:
        pending += chunk
        lines: list[bytes] = []
        while (end := pending.find(b"\n", seen)) >= 0:
            line = bytes(pending[:end])
            del pending[: end + 1]
            seen = 0
            count += 1
            if count > _MOST_LINES:
                problem = f"more than {_MOST_LINES} lines, empty ones counted"
                raise TooLarge("commit.too_large", problem, where="the commit", hint="make several commits")
            if line.strip():
                lines.append(line)
        if lines:
            yield lines
        seen = len(pending)
        if seen > _LINE:
            hint = "large files go by LFS or Xet: ask preupload"
            raise TooLarge("commit.too_large", f"a line has more than {_LINE} bytes", where="the commit", hint=hint)
    if pending.strip():
        yield [bytes(pending)]


async def _read(read: Callable[[Sequence[bytes]], T], lines: Sequence[bytes], beside: Beside) -> T:
    return await beside(partial(read, lines)) if sum(map(len, lines)) > _LONG else read(lines)


def _read_header(lines: Sequence[bytes]) -> Header:
    key, value = _parse(lines[0])
    if key != "header":
        raise BadRequest("commit.header", "the first line must be the header", where="the commit")
    header: Header = _validate(Header, value)
    return header


def _read_steps(lines: Sequence[bytes]) -> list[tuple[Put | Delete, bytes | None]]:
    """Return what each line says, with the content that it brings along."""
    return [_read_step(line) for line in lines]


def _read_step(line: bytes) -> tuple[Put | Delete, bytes | None]:
    key, value = _parse(line)
    if key not in _KINDS:
        raise BadRequest("commit.key", f"{str(key)[:50]!r} is not known", where="the commit")
    entry = _validate(_KINDS[key], value)
    _check_path(entry.path.rstrip("/") if key == "deletedFolder" else entry.path)
    if isinstance(entry, RegularFile | LfsFile):
        _check_name(entry.path)
    if isinstance(entry, RegularFile):
        return _decoded(entry)
    if isinstance(entry, LfsFile):
        return Put(entry.path, entry.oid, entry.size, None), None
    return Delete(entry.path.rstrip("/"), key == "deletedFolder"), None


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


def _check_name(path: str) -> None:
    """Refuse a name for which the official client fetches nothing of the repository; a file that has it can go."""
    if any(PureWindowsPath(part).drive for part in path.split("/")):
        problem = f"{path[:100]!r} begins as a drive does, so that nobody could fetch this repository"
        raise BadRequest("commit.path", problem, where="the commit", hint="give it a name without a letter and a colon")


def _strange(part: str) -> bool:
    # As Windows has it: without a stream, and without dots and spaces at the end.
    plain = part.partition(":")[0].rstrip(". ").lower()
    return part in ("", ".", "..") or plain in (".git", "git~1") or len(part.encode()) > 255


def _alike(path: str) -> str:
    """Return what is the same for all paths that are one file where case, or how an accent is written, says nothing."""
    return normalize("NFC", normalize("NFC", path).casefold())


class _Inside:
    """The contents that come inside a commit, kept some MiB at a time: room for each alone would take too long."""

    def __init__(self, store: BlobStore, take_room: TakeRoom) -> None:
        self._store, self._take_room = store, take_room
        self._waiting: dict[str, bytes] = {}
        self._bytes = 0

    async def add(self, sha256: str, content: bytes) -> None:
        """Take a content in, to be kept soon."""
        self._waiting[sha256] = content
        self._bytes += len(content)
        if self._bytes >= _AT_ONCE:
            await self.keep()

    async def keep(self) -> None:
        """Keep what has been taken in."""
        if not self._waiting:
            return
        await self._take_room({sha256: len(content) for sha256, content in self._waiting.items()})
        await self._store.put(self._waiting)
        self._waiting.clear()
        self._bytes = 0


def _decoded(entry: RegularFile) -> tuple[Put, bytes]:
    try:
        plain = entry.encoding == "utf-8"
        content = entry.content.encode() if plain else base64.b64decode(entry.content, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("commit.content", "not base64", where=entry.path[:200]) from None
    if len(content) > REGULAR_BYTES:
        hint = "large files go by LFS or Xet: ask preupload"
        raise TooLarge("upload.too_large", f"larger than {REGULAR_BYTES} bytes", where=entry.path[:200], hint=hint)
    sha256 = hashlib.sha256(content).hexdigest()
    return Put(entry.path, sha256, len(content), git_blob_id(content)), content


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
    _check_told_apart(changes, files)
    if len(files) > MAX_ENTRIES:
        raise TooLarge("commit.too_large", f"a repository holds at most {MAX_ENTRIES} files", where="the commit")
    return files


def _check_told_apart(changes: Changes, files: Mapping[str, StoredFile]) -> None:
    """Refuse a new path that is another's but for case or accents: on Windows and macOS one would replace the other."""
    added = {step.path for step in changes.steps if isinstance(step, Put) and step.path in files}
    forms: dict[str, str] = {}
    for name in sorted(files, key=added.__contains__):
        other = forms.setdefault(_alike(name), name)
        if other != name and name in added:
            problem = f"on Windows and macOS this is the same file as {other[:200]}"
            raise BadRequest("commit.path", problem, where=name[:200], hint="give it another name, or delete the other")


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

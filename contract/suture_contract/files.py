"""Files that appear whole or not at all, texts that are UTF-8, and what it means when the disk says no."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from suture_contract.errors import SutureError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
#: A file's name has at most 255 bytes; the temporary one has a few more than the file's own.
_NAME = 220


def trouble(error: OSError, *, where: str | os.PathLike[str] | None = None, code: str | None = None) -> SutureError:
    """Return what a failed call of the operating system means, and what to do; `code` stands for whatever it was."""
    number = error.errno
    place = str(where or error.filename or "") or None
    if number in _FULL:
        default, words, hint = "disk.full", "the disk, or what may be written to it, is full", "make room and try again"
    elif number == errno.EROFS:
        default, words, hint = "disk.read_only", "this place is read-only", "name a place that can be written to"
    elif number in _DENIED:
        default, words = "file.denied", "this account has no right to it"
        hint = "check the owner and the rights, or name another place"
    elif number == errno.ENOENT:
        default, words, hint = "file.missing", "there is no such file or folder", "check the path"
    elif number in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        default, hint = "file.kind", "check the path, or name another place"
        words = "there is a file where a folder should be, or the other way round"
    elif number in _NO_LOCKS:
        default, words = "disk.no_locks", "this file system does not lock files, as some network drives do not"
        hint = "use a folder on a local disk, or mount it with locks (NFS version 4)"
    else:
        default, words = "file.unusable", error.strerror or type(error).__name__
        hint = "check the path and the disk"
    return SutureError(code or default, words, where=place, hint=hint)


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk, or one that may hold no more of this account's, is behind an error, whoever raised it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def telling(where: str | os.PathLike[str] | None = None, *, code: str | None = None) -> Iterator[None]:
    """Raise a `SutureError` for what the operating system refuses within the block."""
    try:
        yield
    except OSError as error:
        raise trouble(error, where=where, code=code) from None


@contextmanager
def replacing(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[Path]:
    """Give a temporary file beside `path` to write to; it takes the place of `path`, synced, if nothing is raised.

    Its rights are those that the umask leaves, or `private`, its owner's alone. Raises `SutureError` when the disk is
    full or the place cannot be written to.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # a terminal, say: nothing takes its place
        with telling(path, code="file.unwritable"):
            yield path
        return
    name = path.name.encode(errors="surrogateescape")[:_NAME].decode(errors="ignore")
    temporary = path.with_name(f".{name}.{secrets.token_hex(8)}.part")
    with telling(path, code="file.unwritable"):
        # The mode is given when the file is made: to ask for the umask, it would have to be changed for all threads.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666))
    try:
        with telling(path, code="file.unwritable"):
            yield temporary
        with telling(path, code="file.unwritable"):
            _sync(temporary)
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: str | os.PathLike[str], text: str, *, private: bool = False) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with replacing(path, private=private) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_text(path: str | os.PathLike[str]) -> str:
    """Return a text file's content; raises `SutureError`, `file.encoding` where it is not UTF-8."""
    with telling(path):
        content = Path(path).read_bytes()
    return decoded(content, where=str(path))


def decoded(content: str | bytes, *, where: str, code: str = "file.encoding") -> str:
    """Return a text in UTF-8, without the mark that programs on Windows put first; raises `SutureError` `code`."""
    if isinstance(content, str):
        return content
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding, such as Latin-1"
        line = content.count(b"\n", 0, error.start) + 1
        raise SutureError(
            code,
            f"it is no text in UTF-8: line {line} holds byte 0x{content[error.start]:02x}; it may be in {kind}",
            where=where,
            hint="save it as UTF-8",
        ) from None


def check_inside(path: Path, folder: Path) -> None:
    """Raise `SutureError` `file.outside` where `path`, in `folder`, is or passes a link that leads out of it.

    Who names a folder means what is in it: a link could send any file of this account's to others.
    """
    with telling(path):
        target = path.resolve()
        if target.is_relative_to(folder.resolve()):
            return
    raise SutureError(
        "file.outside",
        f"this link leads out of the folder, to {target}",
        where=str(path),
        hint="put a copy of what is meant in its place, or name that file itself",
    )


def is_there(path: Path) -> bool:
    """Whether there is something at `path`; raises `SutureError` where that cannot be known."""
    with telling(path):
        return path.exists()


def can_lock(folder: Path) -> bool:
    """Whether files in `folder` can be locked with flock(2); raises `OSError` where none can be made."""
    try:
        import fcntl
    except ImportError:  # Windows, where this is not asked of the disk
        return True
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system can."""
    if os.name == "nt":  # where a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)  # Windows syncs what is open for writing
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

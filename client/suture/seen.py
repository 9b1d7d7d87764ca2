"""The newest signed revision of each model that was seen here, so that a hub cannot show an older one as the newest.

A small file, written whole under a lock, in the settings of this user or the state of a site. It grows by a line for
each model and key, and leaves the machine with nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from suture_contract import home
from suture_contract.errors import SutureError
from suture_contract.files import trouble, write_text
from suture_contract.model.metadata import Repo, Revision, Sha256
from suture_contract.model.signature import PublicKey, Signed, moment

#: Beside what is trusted, or in the state of a site.
SEEN = "seen.json"
_LOCK_SECONDS = 30.0


class Newest(BaseModel):
    """The revision of a model that was signed last, of those with one key that were seen here."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    revision: Revision
    signed_at: AwareDatetime


class _Content(BaseModel):
    # By model, then by the fingerprint of the key. A key's own times count for nothing once it is not trusted any more.
    model_config = ConfigDict(extra="ignore", frozen=True)

    models: dict[Repo, dict[Sha256, Newest]] = {}


class Seen:
    """What the file at `path` remembers; it appears with the first signature that says when it was made."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def stored(cls) -> Self:
        """Return what this user has seen; raises `SutureError` `home.unknown`."""
        return cls(home.config_folder() / SEEN)

    def newest(self, repo: str, keys: Sequence[PublicKey]) -> Newest | None:
        """Return the newest revision of a model with one of `keys` that was seen here, None before the first.

        Raises `SutureError` `seen.damaged`.
        """
        trusted = {key.fingerprint for key in keys}
        revisions = [newest for key, newest in self._read().models.get(repo, {}).items() if key in trusted]
        return max(revisions, key=lambda newest: newest.signed_at, default=None)

    def older(self, repo: str, signed: Signed, keys: Sequence[PublicKey]) -> str | None:
        """Say in words how a revision is older than the newest that was seen here; None where it is not.

        `signed` is what its signature by one of `keys` says. One without a time is older than any that has one.
        """
        newest = self.newest(repo, keys)
        if newest is None or (signed.signed_at is not None and signed.signed_at >= newest.signed_at):
            return None
        when = "and does not say when" if signed.signed_at is None else f"on {moment(signed.signed_at)}"
        return (
            f"it was signed {when}, and a newer revision of {repo} was seen here: {newest.revision}, "
            f"signed on {moment(newest.signed_at)}"
        )

    def note(self, repo: str, revision: str, signed: Signed) -> None:
        """Remember a revision, if none that was signed later was seen; raises `SutureError` (`seen.*`)."""
        if signed.signed_at is None:
            return
        fingerprint = signed.key.fingerprint
        known = self._read().models.get(repo, {}).get(fingerprint)
        if known is not None and known.signed_at >= signed.signed_at:
            return
        with self._locked():
            models = self._read().models
            known = models.get(repo, {}).get(fingerprint)
            if known is None or known.signed_at < signed.signed_at:
                mine = {**models.get(repo, {}), fingerprint: Newest(revision=revision, signed_at=signed.signed_at)}
                content = _Content(models={**models, repo: mine}).model_dump(mode="json")
                write_text(self._path, json.dumps(content, indent=1, sort_keys=True) + "\n", private=True)

    def _read(self) -> _Content:
        try:
            return _Content.model_validate_json(self._path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return _Content()
        except OSError as error:
            raise trouble(error, where=self._path, code="seen.unreadable") from None
        except ValidationError:
            raise SutureError(
                "seen.damaged",
                "what is remembered of the newest revisions cannot be read",
                where=str(self._path),
                hint="bring it back from a backup; or delete it, and look at when the next revisions were signed: "
                "the first ones that the hub shows are believed to be the newest",
            ) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        hint = (
            "which revisions are the newest must be remembered: make this folder one that can be written to and locked"
        )
        lock = FileLock(self._path.with_name(f".{self._path.name}.lock"), timeout=_LOCK_SECONDS, mode=0o600)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise SutureError("seen.busy", "another process holds it for long", where=str(self._path)) from None
        except (OSError, NotImplementedError) as error:
            words = trouble(error).message if isinstance(error, OSError) else "this place does not lock files"
            raise SutureError("seen.unwritable", words, where=str(self._path), hint=hint) from None
        try:
            yield
        finally:
            lock.release()

"""The site's part of a bucket: objects by name, and what their store answers."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from suture_contract.errors import SutureError
from suture_contract.files import replacing
from suture_contract.object_store import Cause, cause_of
from suture_worker.config import TaskStoreConfig

_PART = 8 * 2**20
_DELETED_AT_ONCE = 1000
_TIMEOUTS = {"timeout": "60s", "connect_timeout": "10s"}
_RETRIES: Any = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2},
}


@dataclass(frozen=True)
class StoredObject:
    """What the store says of an object; `size` in bytes."""

    etag: str | None
    size: int


class TaskBucket:
    """The site's part of a bucket. Credentials come from the usual AWS variables."""

    def __init__(self, config: TaskStoreConfig) -> None:
        from obstore.store import S3Store  # it starts threads, which no process has after a fork

        options: Any = dict(_TIMEOUTS)
        where: dict[str, Any] = {}
        if config.endpoint is not None:
            where["endpoint"] = config.endpoint
            options["allow_http"] = config.endpoint.startswith("http://")
        self.where = f"{config.url} at {config.endpoint or 'Amazon'}"
        with self._answered():
            self._store = S3Store.from_url(config.url, client_options=options, retry_config=_RETRIES, **where)

    def list(self, prefix: str) -> dict[str, StoredObject]:
        """Return what is stored below `prefix`, which ends with a slash, by its name from there."""
        import obstore

        with self._answered():
            return {
                str(entry["path"]).removeprefix(prefix): StoredObject(entry["e_tag"], entry["size"])
                for batch in obstore.list(self._store, prefix=prefix)
                for entry in batch
                if str(entry["path"]).startswith(prefix)
            }

    def get(self, name: str, stored: StoredObject, path: Path) -> None:
        """Write an object to a file, whole; raises `Changed` if it is not there any more, or is another by now."""
        import obstore
        from obstore.exceptions import PreconditionError

        with replacing(path, private=True) as temporary, temporary.open("wb") as file:
            for start in range(0, stored.size, _PART):
                options: Any = {"range": (start, min(start + _PART, stored.size))}
                if stored.etag is not None:
                    options["if_match"] = stored.etag
                with self._answered():
                    try:
                        content = obstore.get(self._store, name, options=options).bytes()
                    except (FileNotFoundError, PreconditionError):
                        raise Changed from None
                file.write(content)

    def put(self, name: str, file: Any) -> str | None:
        """Store what can be read from an open file, and return its etag. Others see it whole or not at all."""
        import obstore

        with self._answered():
            return obstore.put(self._store, name, file, chunk_size=_PART, max_concurrency=2)["e_tag"]

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; one that is not there is no error."""
        import obstore

        doomed = list(names)
        for start in range(0, len(doomed), _DELETED_AT_ONCE):
            with self._answered(), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, doomed[start : start + _DELETED_AT_ONCE])

    def check(self) -> None:
        """Raise `SutureError` `site.task_store` unless an object can be written, listed and removed."""
        import io

        name = f"check/{secrets.token_hex(8)}"
        self.put(name, io.BytesIO(b"ready"))
        there = self.list("check/")
        self.delete([name])
        if name.removeprefix("check/") not in there:
            hint = "it is no S3 server, or several that do not agree yet: the store must list what was just written"
            raise self._trouble(Cause("it does not list what was written a moment ago", hint))

    @contextmanager
    def _answered(self) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            raise self._trouble(cause_of(error)) from None

    def _trouble(self, cause: Cause) -> SutureError:
        words = f"the store of task files: {cause.words}"
        return SutureError("site.task_store", words, where=self.where, hint=cause.hint)


class Changed(Exception):
    """An object is not what was listed any more."""

"""Members this site has already pulled, by the digest of their content."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from suture_contract.files import sha256_of

KEEP_BYTES = 20 * 2**30


class Cache:
    """Files in `folder`, each named by its sha256; the ones used least recently go first."""

    def __init__(self, folder: Path, *, keep_bytes: int = KEEP_BYTES) -> None:
        self._folder = folder
        self._keep_bytes = keep_bytes

    def get(self, sha256: str, fetch: Callable[[Path], None]) -> Path:
        """Return the file of this digest; `fetch(path)` is called to download it if it is not there intact."""
        path = self._folder / sha256
        if not path.exists() or sha256_of(path) != sha256:
            path.unlink(missing_ok=True)
            fetch(path)
        os.utime(path)
        return path

    def prune(self) -> None:
        """Delete what was used least recently until the cache is small enough, and remains of broken downloads."""
        for part in self._folder.glob(".*.part"):
            part.unlink(missing_ok=True)
        files = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for path in files:
            total += path.stat().st_size
            if total > self._keep_bytes:
                path.unlink(missing_ok=True)

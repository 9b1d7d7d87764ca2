"""Files of models in huggingface_hub's cache: its layout, locks, retries and progress bars; verified here."""

from __future__ import annotations

import os
from pathlib import Path

from suture.answers import File, Revision
from suture.http import Connection, model_path, segment
from suture.parcel import sha256_of


def cached(connection: Connection, revision: Revision, file: File) -> Path:
    """Return a file of a revision, downloaded unless it is there already; its digest is that of `file`.

    Raises what `Connection.download` raises.
    """
    # Imported here: it is slow to load, and most commands need no content.
    from huggingface_hub import errors, hf_hub_download

    cache = folder()
    try:
        for damaged in (False, True):
            found = hf_hub_download(
                revision.repo,
                file.name,
                revision=revision.id,
                endpoint=connection.url,
                token=connection.token or False,
                cache_dir=cache,
                force_download=damaged,
            )
            path = Path(found).resolve()
            if sha256_of(path) == file.sha256:
                return path
    except (errors.HTTPError, errors.EntryNotFoundError, OSError):  # type: ignore[attr-defined]
        # A proxy that is in the way of the own machine, HF_HUB_OFFLINE, a hub that refuses: asked directly, the hub
        # either gives the file or says why not, in words that hold neither token nor address.
        pass
    target = cache / "direct" / f"{file.sha256}-{file.name}"
    if target.is_file() and sha256_of(target) == file.sha256:
        return target
    at = f"{model_path(revision.repo)}/revisions/{revision.id}/files/{segment(file.name)}"
    return connection.download(at, target, sha256=file.sha256, size=file.size)


def folder() -> Path:
    """Return the folder of downloaded models."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "suture" / "models"

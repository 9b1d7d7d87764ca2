"""Sending a bundle to a hub: what leaves is shown first, and what was stored is compared with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from suture.bundle import Bundle
from suture.http import Connection, model_path
from suture.responses import Revision
from suture.transfers import OnBytes, Outgoing
from suture_contract.errors import SutureError
from suture_contract.files import sha256_of
from suture_contract.model.signature import SIGNATURE

#: Who reads a model: its party and those it is shared with, as wherever none is named, or every party at the hub.
Visibility = Literal["private", "all"]


def send(
    connection: Connection,
    repo: str,
    bundle: Bundle,
    visibility: Visibility,
    show: Callable[[Bundle], None] | None = None,
    on_bytes: OnBytes | None = None,
) -> Revision:
    """Publish a bundle as `repo` in one request, once it was handed to `show`, or printed, and return the revision.

    Raises `SutureError` `publish.changed` when the file is no longer what was checked, `publish.altered` when the hub
    stored something else, and what `Connection.upload_parts` does.
    """
    if show is not None:
        show(bundle)
    else:
        _print(repo, bundle, visibility, connection.url)
    path = f"{model_path(repo)}/revisions"
    # Hashed while it is sent, unless it was before: to hash a large file takes about as long.
    model = Outgoing(bundle.model, on_bytes, hashed=bundle.hashed is None)
    parts: dict[str, tuple[str, Path | Outgoing | bytes]] = {
        "model": ("model.safetensors", model),
        "metadata": ("suture.json", bundle.metadata.to_json().encode()),
        "card": ("README.md", bundle.card.encode()),
    }
    if bundle.signature is not None:
        parts["signature"] = (SIGNATURE, bundle.signature)
    try:
        answer = connection.upload_parts(path, parts, params={"visibility": visibility})
    except SutureError:
        if bundle.was_changed():
            raise _changed(bundle, "nothing was published") from None
        raise
    revision = Revision.of(answer, path)
    sent = replace(bundle, hashed=bundle.hashed or model.sha256)
    altered = {file.name: file.sha256 for file in revision.files} != sent.digests()
    if bundle.was_changed() or (altered and sha256_of(bundle.model) != sent.sha256):
        raise _changed(bundle, f"the hub has what it read as {repo} at {revision.id}")
    if altered:
        raise SutureError(
            "publish.altered",
            "the hub stored something else than what was sent",
            where=f"{repo} at {revision.id}",
            hint="tell the hub's operator",
        )
    return revision


def _print(repo: str, bundle: Bundle, visibility: Visibility, url: str) -> None:
    readers = "all parties" if visibility == "all" else "your party and those you share it with"
    print(f"leaves this machine for {repo} at {url}, visible to {readers}:", file=sys.stderr)
    for what, how_much in bundle.lines():
        print(f"  {what:<20} {how_much}", file=sys.stderr)


def _changed(bundle: Bundle, outcome: str) -> SutureError:
    return SutureError(
        "publish.changed",
        "the file was changed while it was published",
        where=str(bundle.model),
        hint=f"{outcome}: publish again once nothing writes to it",
    )

"""The content of small files of a repository, as far as a page can show it."""

from __future__ import annotations

from dataclasses import dataclass

from suture_contract.card.yaml_block import split_card
from suture_contract.errors import SutureError
from suture_contract.model.format import MODEL, read_header
from suture_contract.report import network
from suture_service.auth import Caller
from suture_service.errors import HubError, Unavailable
from suture_service.hf import service
from suture_service.hf.routing import RoutePlace
from suture_service.hub import HubContext
from suture_service.models.trees import NamedFile

#: In bytes: a larger file is offered for download alone.
MAX_SHOWN = 256 * 1024
#: In bytes: of a network, what describes it without its weights.
MAX_HEADER = 1024 * 1024


@dataclass(frozen=True)
class ReadableFile:
    """A file, and its text where it is a small one of text; `oid` is the commit that it was asked for at."""

    oid: str
    name: str
    size: int
    sha256: str
    text: str | None
    problem: SutureError | None = None


def read_file(hub: HubContext, caller: Caller, place: RoutePlace, path: str) -> ReadableFile:
    """Return a file at a branch, tag or commit; a store that does not answer is said in `problem`."""
    with hub.database.reading() as session:
        at = service.get_at(session, caller, place)
        file, oid = service.get_document(session, caller, at, path), at.oid
    return read_named(hub, oid, file)


def read_named(hub: HubContext, oid: str, file: NamedFile) -> ReadableFile:
    """Return a file of the commit `oid` that the caller may have, as `read_file` does."""
    text, problem = None, None
    if file.size <= MAX_SHOWN:
        try:
            text = _as_text(read_stored(hub, file.sha256, 0, file.size, file.size))
        except SutureError as error:
            problem = error
    return ReadableFile(oid, file.name, file.size, file.sha256, text, problem)


def read_stored(hub: HubContext, sha256: str, offset: int, length: int, size: int) -> bytes:
    """Return a part of a stored file; raises `Unavailable` (`store.missing`) where the store does not answer."""
    try:
        return hub.store.read(sha256, offset, length, size)
    except OSError:
        raise Unavailable("store.missing", "the hub's store does not answer") from None


def draw_network(hub: HubContext, caller: Caller, place: RoutePlace) -> str:
    """Return the drawing of a portable model's network, an SVG document; raises `SutureError` where it has none."""
    with hub.database.reading() as session:
        file = service.get_file(session, caller, service.get_at(session, caller, place), MODEL)
        sha256, size = file.sha256, file.size

    def read(offset: int, length: int) -> bytes:
        if length > MAX_HEADER:
            hint = "`suture inspect --plot` draws it"
            raise HubError("model.too_large", "this network is too large to be drawn here", where=MODEL, hint=hint)
        return read_stored(hub, sha256, offset, length, size)

    return network.draw(read_header(read, size).graph, (), title=f"{place.namespace}/{place.name}")


def without_block(card: str) -> str:
    """Return a card without its YAML block, which the page shows in its own way."""
    try:
        return split_card(card)[1]
    except SutureError:
        return card


def _as_text(content: bytes) -> str | None:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text

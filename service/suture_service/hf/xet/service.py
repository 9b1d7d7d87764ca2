"""The rules of Xet uploads: who may send, how long what was sent is kept, and how files are made of it.

A client remembers for weeks which xorbs it has sent to an address, and never sends them there again. Nothing is kept
that long here: each token and repository has a new address (an epoch) every day, to which everything is sent anew, and
what was sent is forgotten a day later. The random id of an epoch also makes a restored hub forget what it has lost.

The hash by which a client calls a xorb is not checked, so nobody finds another's: an epoch belongs to one token and
one repository. A file is what its sha256 says, and is only ever made of what its sender has sent.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache

import structlog
from anyio.to_thread import run_sync
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from suture_service.auth import Caller
from suture_service.database import Database
from suture_service.errors import Malformed
from suture_service.hf.errors import WrongAddress
from suture_service.hf.repository import lock_model
from suture_service.hf.service import note_received
from suture_service.hf.signing import seal, unseal
from suture_service.hf.xet import repository
from suture_service.hf.xet.format import FILES_LIMIT, XORB_LIMIT, LayoutReader, XetFile, parse_files
from suture_service.hf.xet.rebuild import Xorb, rebuild
from suture_service.hub import HubContext
from suture_service.models.quota import check_pieces, take_room
from suture_service.storage import BlobStore
from suture_service.tables import Model, XetEpoch, XetXorb

log = structlog.get_logger(__name__)

#: The client asks for a new token before this one ends.
TOKEN_LASTS = timedelta(hours=1)
#: Whoever begins at the end of an epoch's day has one more to finish.
EPOCH_LASTS = timedelta(days=2)
#: Layouts held while a shard is worked on; each has at most 64 KiB.
_LAYOUTS = 64
#: A client sends many xorbs at once.
_XORB_BUFFER = 2**19
_PURPOSE = "xet"
_SWEEP_SECONDS = 3600


@dataclass(frozen=True)
class Permit:
    """What a client needs to send: the epoch to send to, a token, and when that ends."""

    epoch_id: str
    token: str
    until: datetime


@dataclass
class UploadProgress:
    """How many files of a shard are stored."""

    done: int = 0


def permit(hub: HubContext, session: Session, caller: Caller, model: Model) -> Permit:
    """Let a caller send files to an own repository today."""
    now = hub.now()
    lock_model(session, model.id)
    epoch = repository.epoch_of(session, model.id, caller.token_id, now.date())
    if epoch is None:
        epoch = XetEpoch(id=secrets.token_hex(16), model_id=model.id, token_id=caller.token_id, day=now.date())
        session.add(epoch)
        session.flush()
    # Not bound to the epoch: a client may go on with yesterday's address and today's token.
    content = {"model": model.id, "token": caller.token_id}
    return Permit(epoch.id, seal(hub, _PURPOSE, content, TOKEN_LASTS), now + TOKEN_LASTS)


def admit(hub: HubContext, session: Session, epoch_id: str, token: str) -> XetEpoch:
    """Return the epoch that a token opens; raises `WrongAddress` for every other, and for one that is over."""
    content = unseal(hub, _PURPOSE, token)
    now = hub.now()
    epoch = repository.open_epoch(session, epoch_id, _first_day(now), now)
    if epoch is None or (epoch.model_id, epoch.token_id) != (content["model"], content["token"]):
        raise WrongAddress
    return epoch


async def receive_xorb(hub: HubContext, epoch: XetEpoch, name: str, body: AsyncIterator[bytes]) -> bool:
    """Store a xorb; return whether it is new. Raises `Malformed` or `TooLarge`."""
    reader = LayoutReader()
    limit = hub.settings.max_party_bytes

    async def passing() -> AsyncIterator[bytes]:
        async for chunk in body:
            reader.feed(chunk)
            yield chunk

    async with hub.store.receive(passing(), limit=XORB_LIMIT, where="xorb", buffer=_XORB_BUFFER) as upload:
        layout = reader.end().to_bytes()
        if await hub.read(lambda session: repository.has_xorb(session, epoch.id, name)):
            return False
        await hub.read(lambda session: check_pieces(session, epoch.model.party_id, upload.size, limit))
        xorb = XetXorb(epoch_id=epoch.id, hash=name, name=await upload.keep_as_piece(), size=upload.size, layout=layout)
        try:
            await hub.write(lambda session: session.add(xorb))
        except IntegrityError:
            return False  # the same came twice at once; what was kept for nothing goes with the next sweep
    return True


async def receive_shard(hub: HubContext, body: AsyncIterator[bytes]) -> list[XetFile]:
    """Return the files a shard lists; what follows them in it is not kept."""
    shard = bytearray()
    async for chunk in body:
        shard += chunk[: FILES_LIMIT - len(shard)]
    return await run_sync(lambda: parse_files(shard, limit=hub.settings.max_model_bytes))


async def store_files(hub: HubContext, epoch: XetEpoch, files: list[XetFile], progress: UploadProgress) -> None:
    """Put files together, one after another, and store them as sent for the repository; a party's by turns.

    Raises `Malformed` where a file cannot be made of the epoch's xorbs, or has another sha256 than it claims, and
    `TooLarge` where there is no room for it.
    """

    @lru_cache(_LAYOUTS)
    def find(name: str) -> Xorb:
        with hub.database.reading() as session:
            xorb = repository.find_xorb(session, epoch.id, name)
        if xorb is None:
            raise Malformed("xorb.unknown", "this xorb has not been sent", where=name, hint="start the upload again")
        return xorb

    party_id = epoch.model.party_id
    for file in files:
        async with hub.rebuilding.of(party_id):
            await take_room(hub, party_id, {file.sha256: file.size})
            pieces = rebuild(file.terms(), find, hub.store.read_piece)
            async with hub.store.receive(_in_threads(pieces), limit=file.size, where=file.sha256) as upload:
                if upload.sha256 != file.sha256:
                    raise Malformed("upload.digest", "the content has another sha256", where=file.sha256)
                await upload.keep()
                await _note(hub, epoch, file)
        progress.done += 1


def sweep(database: Database, store: BlobStore, now: datetime) -> int:
    """Forget the epochs that are over, and remove what was sent to them; return how many xorbs that were."""
    with database.writing() as session:
        repository.drop_epochs(session, _first_day(now))
    # By age, so that what a killed hub left without a row goes too.
    return store.sweep_pieces(now - EPOCH_LASTS)


async def sweep_until_closing(hub: HubContext) -> None:
    """Sweep every hour until the hub stops; an error is logged, and the next round tries again."""
    while not hub.closing.is_set():
        try:
            await run_sync(sweep, hub.database, hub.store, hub.now())
        except Exception:
            log.exception("sweep of xorbs failed")
        with suppress(TimeoutError):
            await asyncio.wait_for(hub.closing.wait(), _SWEEP_SECONDS)


async def _note(hub: HubContext, epoch: XetEpoch, file: XetFile) -> None:
    def note(session: Session) -> None:
        note_received(session, epoch.model_id, file.sha256, file.size, hub.now())

    await hub.write(note)


def _first_day(now: datetime) -> date:
    return (now - EPOCH_LASTS).date() + timedelta(days=1)


async def _in_threads(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (piece := await run_sync(next, pieces, None)) is not None:
        yield piece

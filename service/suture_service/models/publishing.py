"""What is checked before anyone can see it, without torch; and taking in an upload whose parts go to the store."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from starlette.concurrency import run_in_threadpool

from suture_contract.card.yaml_block import split_card
from suture_contract.errors import SutureError
from suture_contract.model.finite import check_finite
from suture_contract.model.format import FORMAT, PortableHeader, any_header, check_against, read_header
from suture_contract.model.metadata import MAX_BYTES, ModelMetadata
from suture_contract.model.operators import DTYPES
from suture_contract.model.signature import MAX_SIGNATURE, SIGNATURE
from suture_service.errors import HubError
from suture_service.hub import HubContext
from suture_service.keys.signatures import read_signature
from suture_service.models.quota import take_room
from suture_service.models.service import CARD, METADATA, MODEL, Checked
from suture_service.models.trees import StoredFile
from suture_service.settings import Settings
from suture_service.storage import BlobStore, Upload
from suture_service.storage.blobs import Content, read_document
from suture_service.storage.multipart import MultipartReader
from suture_service.tables import Json

#: Refuses contents (size in bytes by sha256) for which there is no room.
TakeRoom: TypeAlias = Callable[[Mapping[str, int]], Awaitable[None]]
_FILES = {"model": MODEL, "metadata": METADATA, "card": CARD, "signature": SIGNATURE}


@dataclass(frozen=True)
class CheckedUpload:
    """Files that are stored and fit together."""

    files: dict[str, StoredFile]
    says: Checked
    signature: bytes | None


@asynccontextmanager
async def receive_parts(
    store: BlobStore, settings: Settings, chunks: AsyncIterator[bytes], content_type: str | None
) -> AsyncIterator[dict[str, Upload]]:
    """Receive `model`, `metadata`, perhaps `card`, `signature`; give them by file name, removed at the end unless kept.

    Raises `HubError` (`upload.*`) for an unknown, doubled or missing part.
    """
    limits = {
        "model": settings.max_model_bytes,
        "metadata": MAX_BYTES,
        "card": settings.max_card_bytes,
        "signature": MAX_SIGNATURE,
    }
    reader = MultipartReader(chunks, content_type)
    parts = "the parts are model, metadata and, if you like, card and signature"
    async with AsyncExitStack() as stack:
        uploads: dict[str, Upload] = {}
        while (part := await reader.next_part()) is not None:
            if part not in _FILES:
                raise HubError("upload.unknown_part", "this part is not known", where=part[:100], hint=parts)
            if _FILES[part] in uploads:
                raise HubError("upload.duplicate_part", "this part came twice", where=part, hint=parts)
            uploads[_FILES[part]] = await stack.enter_async_context(
                store.receive(reader.body(), limit=limits[part], where=part)
            )
        for part in ("model", "metadata"):
            if _FILES[part] not in uploads:
                raise HubError("upload.missing_part", "this part is missing", where=part, hint=parts)
        yield uploads


async def check_and_keep(hub: HubContext, party_id: int, uploads: dict[str, Upload]) -> CheckedUpload:
    """Check model, metadata and card against each other, then give all files their final names, if there is room."""
    says = await hub.checks.run(party_id, partial(_check, uploads))
    signature = await run_in_threadpool(read_signature, uploads)
    await take_room(hub, party_id, {upload.sha256: upload.size for upload in uploads.values()})
    for upload in uploads.values():
        await upload.keep()
    files = {name: StoredFile(upload.sha256, upload.size) for name, upload in uploads.items()}
    return CheckedUpload(files, says, signature)


def _check(uploads: dict[str, Upload]) -> Checked:
    return replace(check_model(uploads), card=_read_card(uploads, uploads[CARD].size) if CARD in uploads else None)


def check_model(files: Mapping[str, Content]) -> Checked:
    """Return what `suture.json` says, once the model agrees with it; raises `SutureError` (`model.*`, `metadata.*`)."""
    metadata = ModelMetadata.from_json(read_document(files[METADATA], MAX_BYTES, METADATA), where=METADATA)
    model = files[MODEL]
    header = read_header(model.read, model.size, where=MODEL)
    check_against(header, metadata, where=METADATA)
    check_finite(model.read_into, header, where=MODEL, seen=model.seen)
    return Checked(metadata, _counted(header))


def _counted(header: PortableHeader) -> Json:
    """Return how many parameters there are, by type and in total, as the Hugging Face Hub tells it."""
    parameters: Counter[str] = Counter()
    for tensor in header.tensors.values():
        parameters[DTYPES[tensor.dtype][0]] += math.prod(tensor.shape)
    return {"parameters": dict(parameters), "total": parameters.total()}


def check_repository(
    files: Mapping[str, Content], max_card_bytes: int, before: Checked, same: Collection[str]
) -> Checked:
    """Check what a commit would show: what claims to be a portable model must be one, and a card must be readable.

    Of what was checked `before`, nothing is read again where the files are the `same`, by name.
    """
    if before.safetensors is not None and MODEL in same and METADATA in same:
        checked = before
    else:
        checked = check_model(files) if _claims_to_be_portable(files) else Checked()
    card = before.card if CARD in same else None
    if card is None and CARD in files:
        card = _read_card(files, max_card_bytes)
    return replace(checked, card=card)


def _claims_to_be_portable(files: Mapping[str, Content]) -> bool:
    """Whether there is a portable model among the files, right or wrong; raises `SutureError` for a part of one."""
    claims = METADATA in files or (MODEL in files and _says_portable(files[MODEL]))
    for name in (METADATA, MODEL) if claims else ():
        if name not in files:
            hint = f"a portable model is {MODEL} and {METADATA}: put both into one commit"
            raise SutureError("model.incomplete", f"{name} is missing beside it", where="the commit", hint=hint)
    return claims


def _read_card(files: Mapping[str, Content], limit: int) -> Json:
    """Return the YAML block of the card; raises `SutureError` (`card.*`) for a text that no page should show."""
    try:
        text = read_document(files[CARD], limit, CARD).decode()
    except UnicodeDecodeError:
        raise SutureError("card.encoding", "not UTF-8 text", where=CARD, hint="save it as UTF-8") from None
    return split_card(text)[0]


def _says_portable(model: Content) -> bool:
    """Whether a file's header names our format; whether it is right is another question."""
    metadata = (any_header(model.read, model.size) or {}).get("__metadata__")
    return isinstance(metadata, dict) and metadata.get("format") == FORMAT

"""Taking in an upload: parts go straight to the store, are checked there without torch, and only then kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from suture_service.errors import HubError
from suture_service.models.service import CARD, METADATA, MODEL, StoredFile
from suture_service.settings import Settings
from suture_service.storage import BlobStore, Upload
from suture_service.storage.blobs import read_document
from suture_service.storage.multipart import MultipartReader
from suture_stitching.errors import SutureError
from suture_stitching.portable.format import check_against, read_header
from suture_stitching.portable.metadata import MAX_BYTES, ModelMetadata

_FILES = {"model": MODEL, "metadata": METADATA, "card": CARD}


@dataclass(frozen=True)
class CheckedUpload:
    """Files that are stored and fit together."""

    files: dict[str, StoredFile]
    metadata: ModelMetadata


@asynccontextmanager
async def receive_parts(
    store: BlobStore, settings: Settings, chunks: AsyncIterator[bytes], content_type: str | None
) -> AsyncIterator[dict[str, Upload]]:
    """Receive the parts `model`, `metadata` and perhaps `card`; give them by file name, removed at the end unless kept.

    Raises `HubError` (`upload.*`) for an unknown, doubled or missing part.
    """
    limits = {"model": settings.max_model_bytes, "metadata": MAX_BYTES, "card": settings.max_card_bytes}
    reader = MultipartReader(chunks, content_type)
    parts = "the parts are model, metadata and, if you like, card"
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


async def check_and_keep(uploads: dict[str, Upload]) -> CheckedUpload:
    """Check model, metadata and card against each other, then give all files their final names."""
    metadata = await run_in_threadpool(_check, uploads)
    for upload in uploads.values():
        await upload.keep()
    return CheckedUpload({name: StoredFile(upload.sha256, upload.size) for name, upload in uploads.items()}, metadata)


def _check(uploads: dict[str, Upload]) -> ModelMetadata:
    metadata = ModelMetadata.from_json(read_document(uploads[METADATA], MAX_BYTES, METADATA), where=METADATA)
    model = uploads[MODEL]
    check_against(read_header(model.read, model.size, where=MODEL), metadata, where=METADATA)
    if CARD in uploads:
        try:
            read_document(uploads[CARD], uploads[CARD].size, CARD).decode()
        except UnicodeDecodeError:
            raise SutureError("card.encoding", "not UTF-8 text", where=CARD, hint="save it as UTF-8") from None
    return metadata

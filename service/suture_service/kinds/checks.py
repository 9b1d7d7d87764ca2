"""Checking what a task's result consists of, before the hub takes it. No database, nothing changed."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from suture_contract.model.format import MAX_VALUES, any_header
from suture_contract.structure import holds_more
from suture_service.errors import HubError
from suture_service.storage.blobs import KeptFile

Document = TypeVar("Document", bound=BaseModel)


def header_of(file: KeptFile, where: str, noun: str) -> dict[str, Any]:
    """Return the header of a whole safetensors file."""
    header = any_header(file.read, file.size)
    if header is None:
        raise HubError(f"{noun}.invalid", "this is no whole safetensors file", where=where, hint="upload it again")
    length = int.from_bytes(file.read(0, 8), "little")
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__" and _has_end(entry)]
    if max(ends, default=0) != file.size - 8 - length:
        raise HubError(f"{noun}.truncated", "the file is cut short", where=where, hint="upload it again")
    return header


def _has_end(entry: object) -> bool:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[1], int)


def same(field: str, actual: object, expected: object, where: str, code: str) -> None:
    """Raise `HubError` with this code where a result says something else than the job."""
    if actual != expected:
        raise HubError(
            code,
            f"{field} does not agree with the job",
            where=f"{where}: {field}",
            hint="take it from the task's spec",
        )


def read_document(kind: type[Document], file: KeptFile, where: str, code: str) -> Document:
    """Return the document in a file; raises `HubError` with this code."""
    text = file.read(0, file.size)
    if holds_more(text, MAX_VALUES):
        raise HubError(code, f"more than {MAX_VALUES} values", where=where)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise _invalid(error, where, code) from None


def parse(kind: type[Document], document: dict[str, Any], where: str) -> Document:
    """Return a document that came with a message; raises `HubError` `result.invalid`."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise _invalid(error, where, "result.invalid") from None


def _invalid(error: ValidationError, where: str, code: str) -> HubError:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return HubError(code, f"{place or 'the document'}: {first['msg']}", where=where)

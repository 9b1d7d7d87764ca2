"""Reading `multipart/form-data` part by part as it arrives, without ever holding a part in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from suture_service.errors import Malformed

EPILOGUE = 64 * 1024
#: No body has more parts; many empty ones would come at once.
PARTS = 16
_PART_DONE = object()


@dataclass(frozen=True)
class _Start:
    name: str


class MultipartReader:
    """Pull parts off a request body: `next_part()` returns a part's name, then `body()` yields its bytes."""

    def __init__(self, chunks: AsyncIterator[bytes], content_type: str | None) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise Malformed(
                "upload.not_multipart",
                "the body must be multipart/form-data",
                where="Content-Type",
                hint="with curl: -F model=@model.safetensors -F metadata=@suture.json",
            )
        self._chunks = chunks
        self._events: deque[object] = deque()
        self._field, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._ended, self._parts = False, 0
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": lambda data, start, end: self._events.append(memoryview(data)[start:end]),
                    "on_part_end": lambda: self._events.append(_PART_DONE),
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise Malformed("upload.malformed", str(error), where="Content-Type") from None

    async def next_part(self) -> str | None:
        """Return the next part's form name, or None at the end of the body."""
        while (event := await self._next()) is not None:
            if isinstance(event, _Start):
                return event.name
        await self._read_epilogue()
        return None

    async def body(self) -> AsyncIterator[memoryview]:
        """Yield the bytes of the part that `next_part` named."""
        while (event := await self._next()) is not _PART_DONE:
            assert isinstance(event, memoryview)
            yield event

    async def _next(self) -> object | None:
        while not self._events and not self._ended:
            try:
                self._parser.write(await anext(self._chunks))
            except StopAsyncIteration:
                raise Malformed(
                    "upload.truncated", "the body ended inside a part", hint="upload all files again"
                ) from None
            except FormParserError as error:
                raise Malformed("upload.malformed", f"not readable as multipart/form-data: {error}") from None
        return self._events.popleft() if self._events else None

    async def _read_epilogue(self) -> None:
        # What follows the last boundary means nothing, but left unread it would cost the caller its connection.
        left = EPILOGUE
        async for chunk in self._chunks:
            left -= len(chunk)
            if left < 0:
                raise Malformed("upload.malformed", "too much follows the last part")

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS:
            raise FormParserError(f"more than {PARTS} parts")
        # Not cleared but new: several parts may be parsed before the first of them is read.
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field, self._value = b"", b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._events.append(_Start(options.get(b"name", b"").decode("utf-8", "replace")))

    def _on_end(self) -> None:
        self._ended = True

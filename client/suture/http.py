"""A connection to a hub: every call has a timeout, is retried where that is harmless, and fails with a `SutureError`.

    with Connection("https://hub.example", token) as hub:
        hub.get("/v1/whoami")
        hub.download("/v1/models/north/digits/revisions/latest/files/model.safetensors", path, sha256=digest)

The token travels in one header to one origin (redirects are not followed) and is in no error, log line or URL.
"""

from __future__ import annotations

import random
import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from suture.errors import Barred, HubError, Unavailable, error_of, skew_of, unreachable
from suture.network import client, proxy_of
from suture.transfers import Form, Incoming, OnBytes, Outgoing, landing
from suture_contract.errors import SutureError
from suture_contract.naming import shown

ATTEMPTS = 5
MAX_DOCUMENT = 64 * 2**20
#: No listing of a hub has so many pages.
MAX_PAGES = 100_000

_PROGRESS = 2**20
_LONGEST_PAUSE = 20.0
_LONGEST_RETRY_AFTER = 120.0
_IDEMPOTENT = {"GET", "HEAD", "PUT", "DELETE"}


@cache
def _agent() -> str:
    """Return how this program calls itself: a hub keeps the version of a site."""
    return f"suture/{version('suture')}"


class Connection:
    """Calls to one hub with one token; safe to share between threads. Opens no socket until the first call.

    `sleep` waits between retries; pass an event's `wait` to make it end early.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        attempts: int = ATTEMPTS,
        timeout: float = 30.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.url = check_url(url)
        self.token = check_token(token) if token is not None else None
        self._attempts = attempts
        self._timeout = timeout
        self._sleep = sleep
        headers = {"User-Agent": _agent(), "Accept": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        #: How far the hub's clock is ahead of this machine's, in seconds, as its last answer said; None before.
        self.skew: float | None = None
        self._proxy = proxy_of(self.url)
        self._client = client(self.url, base_url=self.url, headers=headers)
        # Closes the sockets; when forgotten, too, so that `suture.Hub().models()` in one line leaves none open.
        self.close = weakref.finalize(self, self._client.close)

    def __repr__(self) -> str:
        return f"Connection({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Documents

    def get(self, path: str, *, wait: float = 0.0, **params: Any) -> Any:
        """Return the JSON document at `path`; `wait` is how long the hub was asked to hold its answer, in seconds."""
        return self.request("GET", path, params=params, wait=wait)

    def post(self, path: str, body: Any = None, *, idempotent: bool = False, wait: float = 0.0) -> Any:
        """Send a JSON document and return the answer, or None for 204. Retried after any failure only if idempotent."""
        return self.request("POST", path, body=body, idempotent=idempotent, wait=wait)

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        idempotent: bool | None = None,
        wait: float = 0.0,
    ) -> Any:
        """Make one call, with retries, and return its JSON document, or None when the answer has no content.

        `body` is a JSON value, or the exact bytes of one.
        """
        harmless = method in _IDEMPOTENT if idempotent is None else idempotent
        build: dict[str, Any] = {}
        if isinstance(body, bytes):
            build = {"content": body, "headers": {"Content-Type": "application/json"}}
        elif body is not None:
            build = {"json": body}
        return self._retried(
            harmless,
            lambda: self._document(method, path, params=_without_none(params), timeout=self._limits(wait), **build),
        )

    def pages(self, path: str, *, limit: int | None = None, **params: Any) -> Iterator[Any]:
        """Yield the items of a listing, page after page, at most `limit` of them.

        Raises `HubError` `hub.answer` where it does not end.
        """
        cursor: str | None = None
        seen = 0
        for _ in range(MAX_PAGES):
            page = self.get(path, **params, cursor=cursor, limit=limit and min(100, limit - seen))
            for item in page["items"]:
                yield item
                seen += 1
                if seen == limit:
                    return
            # A hub that answers the same cursor again would otherwise keep us here for ever.
            if page["next"] is None or page["next"] == cursor:
                return
            cursor = page["next"]
        raise HubError("hub.answer", f"the listing does not end after {MAX_PAGES} pages", where=path)

    # Files

    def download(
        self,
        path: str,
        target: Path,
        *,
        sha256: str,
        size: int | None = None,
        on_bytes: OnBytes | None = None,
        private: bool = False,
    ) -> Path:
        """Stream a file to `target`, which appears complete and verified or not at all; resumed when interrupted.

        A `private` file is its owner's alone, whatever the umask. Raises `SutureError` `download.digest` when the
        content is not what was promised.
        """
        with (
            landing(target, private=private) as partial,
            partial.open("wb", buffering=0) as file,
            Incoming(file, size, on_bytes or (lambda _count: None)) as transfer,
        ):
            self._fetch(path, transfer)
            digest = transfer.digest()
            if digest != sha256:
                raise SutureError(
                    "download.digest",
                    f"the content has sha256 {digest}, but {sha256} was promised",
                    where=path,
                    hint="try again; if it happens again, tell the hub's operator: the file was altered or damaged, by "
                    "the hub or by a proxy",
                )
        return target

    def _fetch(self, path: str, transfer: Incoming) -> None:
        failures = 0
        while True:
            before = transfer.received
            try:
                self._fetch_rest(path, transfer)
                return
            except Barred:
                raise
            except Unavailable as error:
                # What counts is failing again and again at one spot: a long file may see many short interruptions.
                failures = 1 if transfer.received - before >= _PROGRESS else failures + 1
                if failures >= self._attempts:
                    raise
                self._sleep(pause(failures, error.retry_after))

    def _fetch_rest(self, path: str, transfer: Incoming) -> None:
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if transfer.received:
            headers["Range"] = f"bytes={transfer.received}-"
        try:
            with self._client.stream("GET", path, headers=headers, timeout=self._limits(0)) as response:
                if response.status_code == 416:
                    transfer.restart()
                    raise Unavailable("hub.range", "the hub could not continue the download", where=path, status=416)
                if not response.is_success:
                    raise error_of(response, _read(response), proxy=self._proxy)
                expected = f"bytes {transfer.received}-"
                if response.status_code != 206 or not response.headers.get("Content-Range", "").startswith(expected):
                    transfer.restart()
                for chunk in response.iter_raw():
                    transfer.write(chunk)
        except httpx.RequestError as error:
            raise unreachable(self.url, error, proxy=self._proxy) from None

    def upload(
        self,
        path: str,
        source: Path | bytes,
        *,
        params: Mapping[str, Any] | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Any:
        """PUT one file, or bytes, as the raw body, streamed; return the answer."""
        content = Outgoing(source, on_bytes) if isinstance(source, Path) else source
        return self._put(path, content, "application/octet-stream", params)

    def upload_parts(
        self,
        path: str,
        parts: Mapping[str, tuple[str, Path | Outgoing | bytes]],
        *,
        params: Mapping[str, Any] | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Any:
        """PUT several files as one streamed multipart form; `parts` is field -> (file name, content)."""
        form = Form(
            {
                field: (name, Outgoing(source, on_bytes) if isinstance(source, Path) else source)
                for field, (name, source) in parts.items()
            }
        )
        return self._put(path, form, form.content_type, params)

    def _put(self, path: str, content: Outgoing | Form | bytes, kind: str, params: Mapping[str, Any] | None) -> Any:
        def attempt() -> Any:
            headers = {"Content-Type": kind, "Content-Length": str(len(content))}
            limits = self._limits(300)
            return self._document(
                "PUT", path, params=_without_none(params), content=content, headers=headers, timeout=limits
            )

        return self._retried(True, attempt)

    # One call

    def _retried(self, harmless: bool, call: Callable[[], Any]) -> Any:
        for attempt in range(1, self._attempts + 1):
            try:
                return call()
            except Barred:
                raise
            except Unavailable as error:
                if attempt == self._attempts or not (harmless or _was_not_processed(error)):
                    raise
                self._sleep(pause(attempt, error.retry_after))
        raise AssertionError("unreachable")

    def _document(self, method: str, path: str, **options: Any) -> Any:
        try:
            with self._client.stream(method, path, **options) as response:
                body = _read(response)
                self.skew = skew_of(response)
        except httpx.RequestError as error:
            raise unreachable(self.url, error, proxy=self._proxy) from None
        if not response.is_success:
            raise error_of(response, body, proxy=self._proxy)
        if not body:
            return None
        try:
            return httpx.Response(200, content=body).json()
        except ValueError:
            raise HubError(
                "hub.answer",
                "the answer is not JSON",
                where=f"{self.url}{path}",
                hint="check that the URL is that of a Suture hub, and that no proxy answers in its place",
                status=response.status_code,
            ) from None

    def _limits(self, wait: float) -> httpx.Timeout:
        return httpx.Timeout(self._timeout, connect=10.0, read=self._timeout + wait)


def segment(text: str) -> str:
    """Return `text` quoted as one piece of a URL's path."""
    return quote(text, safe="")


def model_path(repo: str) -> str:
    """Return the path of the model `party/name` under the hub's URL."""
    party, _, name = repo.partition("/")
    return f"/v1/models/{segment(party)}/{segment(name)}"


def pause(attempt: int, retry_after: float | None = None, jitter: Callable[[], float] = random.random) -> float:
    """Return how many seconds to wait after failure number `attempt` (from 1).

    Exponential with full jitter, at most 20 s, but never less than what the server asked for (at most 120 s).
    """
    backoff = min(_LONGEST_PAUSE, 0.25 * 2.0**attempt) * jitter()
    return max(backoff, min(retry_after or 0.0, _LONGEST_RETRY_AFTER))


def check_url(url: str) -> str:
    """Return the hub's URL without a slash or `/v1` at its end.

    Raises `SutureError` `hub.url` unless it is http(s) and names a host alone: pages and the official client of
    `huggingface_hub` need the root of a name.
    """
    hint = "give it as https://hub.example"
    url = url.strip()
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise SutureError("hub.url", "this is not a URL", where="hub URL", hint=hint) from None
    if parsed.userinfo:
        raise SutureError("hub.url", "the URL holds a user name or password", where="hub URL", hint=hint)
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        if re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]+)?(/.*)?", url):
            hint = f"did you mean 'https://{url}'?"
        raise SutureError("hub.url", f"{shown(url)} is not the address of a hub", where="hub URL", hint=hint)
    url = url.rstrip("/").removesuffix("/v1").rstrip("/")
    if path := httpx.URL(url).path.strip("/"):
        root = url.removesuffix(f"/{path}")
        raise SutureError(
            "hub.url",
            f"the address goes on after the host: {shown('/' + path)}; a hub has a host name to itself",
            where="hub URL",
            hint=f"give it as {root}; a proxy cannot put a hub under a path",
        )
    return url


def check_token(token: str) -> str:
    """Return the token; raise `SutureError` `auth.token` if it cannot be one (never showing it)."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise SutureError(
            "auth.token",
            "the token holds characters that no token has",
            where="token",
            hint="copy it again, without spaces or line breaks",
        )
    return token


def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > MAX_DOCUMENT:
            raise HubError("hub.answer", f"the answer is larger than {MAX_DOCUMENT} bytes", where=response.url.path)
    return bytes(body)


def _was_not_processed(error: Unavailable) -> bool:
    """Whether the hub certainly did nothing: it said so, or no connection was made."""
    return error.status in (429, 503) or error.code == "hub.unreachable"


def _without_none(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (params or {}).items() if value is not None}

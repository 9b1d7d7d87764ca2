"""Request ids, logs, metrics and the limit on request bodies: one ASGI middleware around everything.

A log line holds method, route, status, time and size, and who asked from where: party, id of the token, address. Never
the token itself, a header, a query string or a body.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time

import anyio
import structlog
from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from suture_contract.errors import SutureError
from suture_service.connections import BODY_SECONDS
from suture_service.origin import Origin, origin

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
DRAIN_BYTES, DRAIN_SECONDS = 64 * 2**20, 5.0
#: As nginx calls it: the caller went away before there was an answer.
CUT = 499
_QUIET = ("/healthz", "/readyz", "/metrics")


class Metrics:
    """What Prometheus reads from one hub process. Labels are routes and codes; `holdings` adds parties."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("suture_hub_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram(
            "suture_hub_request_seconds",
            "Time to answer, long polls included",
            ("method", "route"),
            registry=self.registry,
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 30, 120, 600),
        )
        self.received = Counter("suture_hub_received_bytes", "Bytes of request bodies", registry=self.registry)
        self.sent = Counter("suture_hub_sent_bytes", "Bytes of answers", registry=self.registry)
        self.waiting = Gauge("suture_hub_long_polls", "Long polls that wait right now", registry=self.registry)
        self.checks = Gauge("suture_hub_checks", "Checks of models that run right now", registry=self.registry)
        self.published = Counter("suture_hub_revisions_published", "Revisions published", registry=self.registry)
        self.leased = Counter("suture_hub_tasks_leased", "Tasks leased", ("kind",), registry=self.registry)
        self.ended = Counter("suture_hub_tasks_ended", "Tasks ended", ("kind", "state"), registry=self.registry)
        self.jobs = Counter("suture_hub_jobs_ended", "Jobs ended", ("state",), registry=self.registry)
        self.wrong_tokens = Counter("suture_hub_wrong_tokens", "Requests with no such token", registry=self.registry)
        self.lockouts = Counter("suture_hub_lockouts", "Addresses locked out for wrong tokens", registry=self.registry)
        self.lapsed = Counter("suture_hub_leases_lapsed", "Leases lapsed", registry=self.registry)


def allow_body(request: Request, limit: int) -> None:
    """Let the body of this request have up to `limit` bytes; to be called before it is read."""
    request.scope["suture.exchange"].limit = limit


class Observe:
    """The middleware. Bodies of PUT requests are files with limits of their own; all others are limited here."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, max_request_bytes: int) -> None:
        self._app = app
        self._metrics = metrics
        self._limit = max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self._app, self._metrics, self._limit, scope, receive, send).run()


class _Exchange:
    """One request and its answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        self._app, self._metrics, self._scope = app, metrics, scope
        self._receive, self._send = receive, send
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self.limit = limit if scope["method"] != "PUT" else None
        scope["suture.exchange"] = self
        self._status, self._received, self._sent = 500, 0, 0
        self._started, self._body_ended = False, False
        request_id = self._headers.get(b"x-request-id", b"")
        self._origin = Origin()
        self._id = request_id if _REQUEST_ID.fullmatch(request_id) else secrets.token_hex(8).encode()

    async def run(self) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=self._id.decode())
        client = self._scope.get("client")
        self._origin = Origin(request_id=self._id.decode(), address=client[0] if client else None)
        origin.set(self._origin)
        started = time.perf_counter()
        try:
            await self._app(self._scope, self.receive, self.send)
        except ClientDisconnect:
            self._status = CUT
        except Exception:
            log.exception("failed")
            if not self._started:
                await self._answer_failure()
        finally:
            self._record(time.perf_counter() - started)

    async def receive(self) -> Message:
        if self.limit is not None and self._announced() > self.limit:
            raise _too_much(self.limit)
        if self._body_ended:
            message = await self._receive()
        else:
            message = await self._next_of_body()
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            self._body_ended = not message.get("more_body", False)
            if self.limit is not None and self._received > self.limit:
                raise _too_much(self.limit)
        else:
            self._body_ended = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._started = message["status"], True
            added = [(name.lower().encode(), value.encode()) for name, value in self._origin.headers.items()]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._id), *added]
            if self._status >= 400:
                await self._drain()
        else:
            self._sent += len(message.get("body", b""))
        await self._send(message)

    async def _next_of_body(self) -> Message:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._receive()
        except TimeoutError:
            self._body_ended = True  # nobody waits for the rest
            raise HTTPException(408, f"nothing came of the body for {BODY_SECONDS:.0f} seconds") from None

    def _announced(self) -> int:
        text = self._headers.get(b"content-length", b"0")
        return int(text) if text.isdigit() else 0

    async def _drain(self) -> None:
        # Closed with unread bytes, a connection is reset, and the caller would see that instead of the answer. A
        # caller that asked first (Expect: 100-continue) has sent nothing yet.
        if self._body_ended or (b"expect" in self._headers and not self._received):
            return
        left = DRAIN_BYTES
        with anyio.move_on_after(DRAIN_SECONDS):
            while not self._body_ended and left > 0:
                message = await self._receive()
                left -= len(message.get("body", b""))
                self._body_ended = not message.get("more_body", False)

    async def _answer_failure(self) -> None:
        hint = "tell the hub's operator the request id in the X-Request-ID header"
        error = SutureError("internal", "the hub failed to handle this request", hint=hint)
        body = json.dumps({"error": error.as_dict()}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def _record(self, seconds: float) -> None:
        route = getattr(self._scope.get("route"), "path", None) or "unknown"
        method = self._scope["method"]
        self._metrics.requests.labels(method, route, self._status).inc()
        self._metrics.seconds.labels(method, route).observe(seconds)
        self._metrics.received.inc(self._received)
        self._metrics.sent.inc(self._sent)
        level = log.debug if route in _QUIET else log.info
        level(
            "request",
            method=method,
            route=route,
            status=self._status,
            party=self._origin.party,
            token=self._origin.token_id,
            address=self._origin.address,
            seconds=round(seconds, 4),
            received=self._received,
            sent=self._sent,
        )


def _too_much(limit: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {limit} bytes")

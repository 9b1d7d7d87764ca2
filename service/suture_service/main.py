"""The hub as an application: `create_app(settings)` for any ASGI server, `serve(settings)` to run it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import math
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import DBAPIError

from suture_contract.console.logs import configure_logging, log_uncaught
from suture_contract.errors import SutureError
from suture_service import errors
from suture_service.access import endpoints as access
from suture_service.audit import endpoints as audit
from suture_service.connections import IDLE_SECONDS, Connections, guarded, most_connections
from suture_service.database import Database
from suture_service.errors import ErrorAnswer, Unavailable
from suture_service.hf.router import router as hf
from suture_service.hf.routing import RawPath
from suture_service.hf.signing import load_key
from suture_service.hf.xet import service as xet
from suture_service.holdings import HoldingsCollector
from suture_service.hub import HubContext, HubDep
from suture_service.jobs import endpoints as jobs
from suture_service.jobs.lifecycle import sweep_until_closing
from suture_service.keys import endpoints as keys
from suture_service.membership import endpoints as membership
from suture_service.models import endpoints as models
from suture_service.models.references import refuse_lost_references
from suture_service.observe import Metrics, Observe
from suture_service.operate import check_migrated
from suture_service.pages.router import router as pages
from suture_service.parameters import known_parameters
from suture_service.parties import endpoints as parties
from suture_service.people import endpoints as people
from suture_service.purges import endpoints as purges
from suture_service.revisions import endpoints as revisions
from suture_service.settings import Settings, check_exposed, networks
from suture_service.sites import endpoints as sites
from suture_service.storage import open_store
from suture_service.tasks import endpoints as tasks

log = structlog.get_logger(__name__)
health = APIRouter(tags=["health"])

_DESCRIPTION = """Parties publish trained models here and ask for stitched ensembles; their sites lease the work.
The hub never sees data.

Every refusal has the body `{"error": {"code", "message", "where", "hint"}}`. What is unknown and what is not shared
with you answer the same."""
_TAGS = [
    {"name": "models", "description": "Publish, find and download models."},
    {"name": "jobs", "description": "Ask for a stitched ensemble and follow the work."},
    {"name": "tasks", "description": "For sites: lease work and answer it. Every write carries the lease's fence."},
    {"name": "parties", "description": "Organisations and their tokens."},
    {"name": "people", "description": "Signing in with the organisation's identity provider, where one is set."},
    {"name": "sites", "description": "Installations of a party beside its data."},
    {"name": "access", "description": "Ask for the files of gated models; decide about your own."},
    {"name": "keys", "description": "Public keys of parties; signing and taking back."},
    {"name": "audit", "description": "Who did what."},
    {"name": "health", "description": "For whoever runs the hub."},
]
#: How long requests in progress may take to end when the hub is told to stop.
GRACE_SECONDS = 20
#: And so long requests that are cancelled then may take to remove what they had begun to store.
CLEANING_SECONDS = 5
# For how long a thread keeps Python to itself while others wait, in seconds. An answer changes hands many times,
# and waits each time for every thread that parses or checks what others sent: with the usual 0.005, for seconds.
_SWITCH_SECONDS = 0.0005
# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def create_app(settings: Settings) -> FastAPI:
    """Return the hub. Its database must be migrated (`operate.migrate`) before the first request."""
    hub = HubContext(settings, Database(settings.database_url), open_store(settings), Metrics())
    refuse_lost_references(hub.database, hub.store)
    hub.metrics.registry.register(HoldingsCollector(hub))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        check_migrated(hub.database.engine)
        hub.set_clock()
        hub.key = load_key(hub.database)
        sweep_store(hub)
        sweepers = [asyncio.create_task(sweep(hub)) for sweep in (sweep_until_closing, xet.sweep_until_closing)]
        try:
            yield
        finally:
            hub.close()
            # Not cancelled: their threads would go on and meet a closed database.
            await asyncio.gather(*sweepers)
            hub.database.close()

    app = FastAPI(
        title="Suture hub",
        version=version("suture"),
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        lifespan=lifespan,
        # The page that describes the API is made here: FastAPI's own load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    app.state.hub = hub
    app.add_middleware(RawPath)
    app.add_middleware(Observe, metrics=hub.metrics, max_request_bytes=settings.max_request_bytes)
    errors.install(app)
    app.include_router(health)
    for room in (parties, membership, sites, keys, models, revisions, purges, access, jobs, tasks, audit):
        app.include_router(room.router, dependencies=[Depends(known_parameters)])
    if settings.oidc_issuer:
        app.include_router(people.router, dependencies=[Depends(known_parameters)])
    # Last: their paths start with names that callers choose.
    app.include_router(hf)
    app.include_router(pages)
    return app


def sweep_store(hub: HubContext) -> None:
    """Remove what a killed hub left behind. A store that does not answer is no reason not to start."""
    try:
        hub.store.sweep()
    except Unavailable:
        log.warning("the store was not swept")


@health.get("/healthz")
async def healthz() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@health.get("/readyz", responses={503: {"model": ErrorAnswer, "description": "What is missing, and what to do."}})
def readyz(hub: HubDep) -> dict[str, str]:
    """Say that database and store answer, and that the hub is not about to stop; or what is missing."""
    if hub.closing.is_set():
        raise Unavailable("hub.closing", "the hub is about to stop")
    problems: dict[str, SutureError] = {}
    checks: dict[str, Callable[[], None]] = {"database": partial(check_database, hub), "store": hub.store.check}
    for part, check in checks.items():
        try:
            check()
        except SutureError as error:
            problems[part] = error
        except Exception:
            log.exception("not ready", part=part)
            problems[part] = Unavailable("hub.not_ready", f"the {part} does not answer")
    if problems:
        messages = "; ".join(error.message for error in problems.values())
        hints = "; ".join(error.hint for error in problems.values() if error.hint) or None
        raise Unavailable("hub.not_ready", messages, where=", ".join(problems), hint=hints)
    return {"status": "ready"}


def check_database(hub: HubContext) -> None:
    """Raise `SutureError` unless the database answers (`hub.database`) and is migrated (`hub.not_migrated`)."""
    try:
        check_migrated(hub.database.engine)
    except DBAPIError as error:
        log.warning("the database does not answer", error=type(error.orig).__name__)
        hint = "is it running, and do SUTURE_HUB_DATABASE_URL and the password fit?"
        raise SutureError("hub.database", "the database does not answer", where="database", hint=hint) from None


@health.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(hub: HubDep) -> Response:
    """Return this process's metrics in Prometheus' text format."""
    return Response(generate_latest(hub.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class _Server(uvicorn.Server):
    """Tells long polls to end before it waits for the requests in progress."""

    def __init__(self, config: uvicorn.Config, hub: HubContext) -> None:
        super().__init__(config)
        self.hub = hub

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self.hub.close()
        await super().shutdown(sockets)  # type: ignore[arg-type]
        # It waits for nobody whom it has cancelled, and ends the process by the signal that it got.
        if cancelled := list(self.server_state.tasks):
            await asyncio.wait(cancelled, timeout=CLEANING_SECONDS)


@dataclass(frozen=True)
class Tls:
    """A certificate chain and its private key, both PEM."""

    cert: Path
    key: Path

    def check(self) -> None:
        """Raise `SutureError` (`hub.tls`) unless both can be read and belong together."""
        for path, option in ((self.cert, "--tls-cert"), (self.key, "--tls-key")):
            if not path.is_file():
                raise SutureError("hub.tls", f"there is no file {path}", where=option)
        try:
            # Without a callback that refuses, a key with a password would ask for it at the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.cert, self.key, password=lambda: b"")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "unreadable"
            hint = "PEM files of a certificate chain and of its own key, without a password, readable for the hub"
            raise SutureError(
                "hub.tls", f"no certificate with its key: {reason}", where="--tls-cert", hint=hint
            ) from None


def server(settings: Settings, *, host: str = "127.0.0.1", port: int = 8420, tls: Tls | None = None) -> _Server:
    """Return a server that is not yet running: `.run()` runs it, `.should_exit = True` stops it."""
    app = create_app(settings)
    most, each = most_connections(settings.max_connections, settings.max_connections_per_address)
    connections = Connections(most, each, networks(settings.proxies))
    config = uvicorn.Config(
        app,
        http=guarded(connections),  # type: ignore[arg-type]  # called as a class would be
        loop="suture_service.connections:new_loop",
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=settings.proxies,
        ssl_certfile=tls.cert if tls else None,
        ssl_keyfile=tls.key if tls else None,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=math.ceil(IDLE_SECONDS) + 1,
    )
    return _Server(config, app.state.hub)


def serve(settings: Settings, host: str = "127.0.0.1", port: int = 8420, tls: Tls | None = None) -> None:
    """Run the hub until SIGTERM or SIGINT; long polls end at once, other requests may finish.

    Raises `SutureError` before it listens: for settings that are unsafe here (`hub.settings`), a certificate
    (`hub.tls`), a database that does not answer (`hub.database`) or is not migrated (`hub.not_migrated`).
    """
    configure_logging(settings.log_level, "suture_service", "uvicorn")
    log_uncaught()
    check_exposed(settings, host, tls=tls is not None)
    if tls is not None:
        tls.check()
    _keep_freed_memory()
    sys.setswitchinterval(_SWITCH_SECONDS)
    running = server(settings, host=host, port=port, tls=tls)
    check_database(running.hub)
    _collect_seldom()
    running.run()


def _collect_seldom() -> None:
    """Have the collector of garbage leave alone what is there when a hub starts, and come for many new objects only.

    While it looks through all that there is, nobody is answered.
    """
    gc.set_threshold(10_000, 20, 20)
    gc.freeze()


def _keep_freed_memory() -> None:
    """Let glibc keep up to 64 MiB that was freed, in each of its arenas; harmless where there is another C library.

    Otherwise it gives the space of every piece of a body back to the system and asks for it anew, page by page, which
    takes as long as hashing it does.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 * 2**20)

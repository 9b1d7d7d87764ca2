"""What one hub process is made of, and how endpoints get at it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar

from anyio import CapacityLimiter, Lock, to_thread
from fastapi import Depends, Request
from prometheus_client import Gauge
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from suture_service.database import Database
from suture_service.identity import Issuer
from suture_service.limits import RateLimits
from suture_service.observe import Metrics
from suture_service.settings import Settings
from suture_service.storage import BlobStore

T = TypeVar("T")
#: So many at a time; others wait, and hold no thread.
CHECKS = 2
REQUESTS, REBUILDS, SIGN_INS = 4, 2, 4
#: Who has used so many seconds of a processor within the last ten or twenty shares so many threads with all like it.
MUCH, LATELY, SHARED = 1.0, 10.0, 2
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
#: In `session.info`: about what there is news once the transaction has committed.
NEWS = "news"


def utc_now() -> datetime:
    """Return the present moment."""
    return datetime.now(UTC)


class Shared:
    """Threads that those callers share who have lately used much of a processor, however many they are.

    An answer passes between threads many times, and waits each time for Python's lock, about as long as there are
    threads that keep it: so these are few. Who uses little, as most do, does not wait here. What may take minutes, such
    as a check of a large model in a slow store, has as many of its own: no heartbeat of a busy party waits behind it.
    """

    def __init__(self) -> None:
        self._threads, self._long_threads = CapacityLimiter(SHARED), CapacityLimiter(SHARED)
        self._counting = threading.Lock()
        #: Seconds of the present span of time, and of the one before.
        self._now, self._before = dict[int | str, float](), dict[int | str, float]()
        self._since = time.monotonic()

    @asynccontextmanager
    async def of(self, who: int | str, *, long: bool) -> AsyncIterator[None]:
        """Wait until there is a thread for a party (its id), or for somebody unknown (the address)."""
        threads = self._long_threads if long else self._threads
        async with threads if self._used(who) > MUCH else nullcontext():
            yield

    @contextmanager
    def counted(self, who: int | str) -> Iterator[None]:
        """Count what this thread takes of a processor as used by a caller."""
        started = time.thread_time()
        try:
            yield
        finally:
            with self._counting:
                self._turn_over()
                self._now[who] = self._now.get(who, 0.0) + time.thread_time() - started

    def _used(self, who: int | str) -> float:
        with self._counting:
            self._turn_over()
            return self._before.get(who, 0.0) + self._now.get(who, 0.0)

    def _turn_over(self) -> None:
        since = time.monotonic() - self._since
        if since > LATELY:
            self._before = self._now if since < 2 * LATELY else {}
            self._since, self._now = time.monotonic(), {}


class Checks:
    """Checks of models, a few at a time, as each takes memory many times its file's header, and keeps Python busy.

    Those of a party go one after another: however many it sends, nobody else waits for more than one of them.
    """

    def __init__(self, running: Gauge, shared: Shared) -> None:
        self._all, self._running, self._shared = CapacityLimiter(CHECKS), running, shared
        self._turns: dict[int, Lock] = {}

    async def run(self, party_id: int, check: Callable[[], T]) -> T:
        """Return what `check` does, in a thread, when it is its turn."""

        def run() -> T:
            with self._running.track_inprogress(), self._shared.counted(party_id):
                return check()

        async with self._turns.setdefault(party_id, Lock()), self._shared.of(party_id, long=True):
            return await to_thread.run_sync(run, limiter=self._all)


class Turns:
    """Work that is done in threads: so much of one caller at a time; its other requests wait, and hold no thread.

    However much of a processor each of them takes, there is a thread, and time, for everybody else.
    """

    def __init__(self, each: int, shared: Shared, *, long: bool) -> None:
        self._each, self._shared, self._long = each, shared, long
        self._limiters = dict[int | str, CapacityLimiter]()

    @asynccontextmanager
    async def of(self, who: int | str) -> AsyncIterator[None]:
        """Wait until it is the turn of a party (its id), or of somebody unknown (the address)."""
        limiter = self._limiters.setdefault(who, CapacityLimiter(self._each))
        try:
            async with limiter, self._shared.of(who, long=self._long):
                yield
        finally:
            if not limiter.borrowed_tokens and not limiter.statistics().tasks_waiting:
                self._limiters.pop(who, None)


@dataclass
class HubContext:
    """Settings, database, store and clock of one process; `closing` is set when it has been told to stop.

    `ahead` is how far this machine's clock is ahead of the database's, by which all hubs on one database go.
    """

    settings: Settings
    database: Database
    store: BlobStore
    metrics: Metrics
    #: Signs what an upload's address permits; the same in all processes on one database, read when the hub starts.
    key: str = ""
    ahead: timedelta = timedelta(0)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    shared: Shared = field(default_factory=Shared)
    #: Held while the whole audit log is read.
    audit_check: threading.Lock = field(default_factory=threading.Lock)
    _listeners: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    checks: Checks = field(init=False)
    turns: Turns = field(init=False)
    #: A few MiB of Xet's bundles become files of several GiB.
    rebuilding: Turns = field(init=False)
    #: The identity provider may take seconds for each answer.
    signing_in: CapacityLimiter = field(init=False)
    limits: RateLimits = field(init=False)
    issuer: Issuer = field(init=False)

    def __post_init__(self) -> None:
        self.database.after_commit(self._committed)
        self.checks = Checks(self.metrics.checks, self.shared)
        self.turns = Turns(REQUESTS, self.shared, long=False)
        self.rebuilding = Turns(REBUILDS, self.shared, long=True)
        self.signing_in = CapacityLimiter(SIGN_INS)
        wanted = self.settings
        self.limits = RateLimits(wanted.requests_per_minute, wanted.wrong_tokens, wanted.wrong_tokens_seconds)
        self.issuer = Issuer(wanted.oidc_issuer, wanted.oidc_client_id)

    def now(self) -> datetime:
        """Return the present moment."""
        return utc_now() - self.ahead

    def set_clock(self) -> None:
        """Go by the database's clock, where it has one of its own: a lease one hub gives must not lapse at another."""
        asked = utc_now()
        moment = self.database.moment()
        if moment is not None:
            self.ahead = asked + (utc_now() - asked) / 2 - moment

    async def in_turn(self, who: int | str, work: Callable[[], T]) -> T:
        """Do `work` of a caller in a thread when it is its turn."""

        def run() -> T:
            with self.shared.counted(who):
                return work()

        async with self.turns.of(who):
            return await run_in_threadpool(run)

    async def read(self, work: Callable[[Session], T]) -> T:
        """Do `work` in a thread, in a transaction that changes nothing."""

        def run() -> T:
            with self.database.reading() as session:
                return work(session)

        return await run_in_threadpool(run)

    async def write(self, work: Callable[[Session], T]) -> T:
        """Do `work` in a thread, in one transaction."""

        def run() -> T:
            with self.database.writing() as session:
                return work(session)

        return await run_in_threadpool(run)

    async def poll(
        self, request: Request, wait: float, about: str, look: Callable[[], Awaitable[T | None]]
    ) -> T | None:
        """Look until there is something, `wait` seconds have passed, the caller has gone, or the hub stops.

        Between two looks nothing is held: no connection, no thread. The next look is at once when this process has
        committed news `about` it, and after a pause for what other hubs do.
        """
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + min(wait, self.settings.max_wait_seconds), FIRST_PAUSE
        with self.metrics.waiting.track_inprogress(), self._listening(about) as news:
            while not await request.is_disconnected():
                news.clear()
                answer = await look()
                left = deadline - loop.time()
                if answer is not None or left <= 0 or self.closing.is_set():
                    return answer
                try:
                    await asyncio.wait_for(news.wait(), min(pause, left))
                except TimeoutError:
                    pause = min(pause * 1.5, LONGEST_PAUSE)
        return None

    def close(self) -> None:
        """Say that the hub stops: all who wait hear of it."""
        self.closing.set()
        self._tell(list(self._listeners))

    @contextmanager
    def _listening(self, about: str) -> Iterator[asyncio.Event]:
        news, loop = asyncio.Event(), asyncio.get_running_loop()
        with self._turn:
            self._listeners.setdefault(about, set()).add((loop, news))
        try:
            yield news
        finally:
            with self._turn:
                self._listeners[about].discard((loop, news))
                if not self._listeners[about]:
                    del self._listeners[about]

    def _committed(self, session: Session) -> None:
        self._tell(session.info.pop(NEWS, ()))

    def _tell(self, topics: Iterable[str]) -> None:
        with self._turn:
            listeners = [listener for topic in topics for listener in self._listeners.get(topic, ())]
        for loop, news in listeners:
            with suppress(RuntimeError):  # it has stopped
                loop.call_soon_threadsafe(news.set)


def party_news(party_id: int) -> str:
    """What a site waits for: tasks of its party."""
    return f"tasks of {party_id}"


def tell(session: Session, about: str) -> None:
    """Have those who wait for this look again once the transaction has committed."""
    session.info.setdefault(NEWS, set()).add(about)


def hub_of(request: Request) -> HubContext:
    """Return the hub this request came to."""
    hub: HubContext = request.app.state.hub
    return hub


HubDep = Annotated[HubContext, Depends(hub_of)]


async def sign_in_turn(hub: HubDep) -> AsyncIterator[None]:
    """Wait, holding no thread, until few enough ask the identity provider: however slow it is, others have threads."""
    async with hub.signing_in:
        yield


#: For endpoints that ask the identity provider.
SIGN_IN_TURN = Depends(sign_in_turn, scope="function")

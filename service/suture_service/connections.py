"""Who may hold a connection, and for how long while nothing happens on it.

A connection costs a descriptor from the moment it is made, long before there is a request that could be refused. So
the server counts connections itself: in all and for each address, and each wait for the caller has an end. Where all
are taken, one makes room on which the caller hardly sends a body, or hardly reads an answer; or else the one that has
waited longest for a request: what is newest is most likely honest.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, cast

import structlog
from uvicorn.loops.auto import auto_loop_factory
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from suture_service.origin import caller_of

log = structlog.get_logger(__name__)

#: How long a caller may take for a handshake and the header of a request, and between two requests, seconds.
HEADER_SECONDS, IDLE_SECONDS = 15.0, 30.0
#: How long it may send nothing of a body, and read nothing of an answer.
BODY_SECONDS, READ_SECONDS = 60.0, 300.0
#: Where all connections are taken, one makes room on which for so long the caller sent less than `BODY_AT_ONCE` of a
#: body, or did not read what waits for it: some hundred KiB of an answer.
SLOW_SECONDS = 10.0
#: A body is handed on when so much of it has come, or it is whole, or after so long: each change of hands takes time.
BODY_AT_ONCE, GATHERING_SECONDS = 128 * 1024, 0.001
#: All header lines of a request together.
HEADER_BYTES = 64 * 1024
#: Each of these takes a while, however short it is, and a quarter of a MiB of them comes at once: lines of a header and
#: of what follows a body, requests that wait for the answers before them, and pieces of a body: so many in any case,
#: and then one for so many bytes.
HEADER_LINES, WAITING_REQUESTS = 200, 40
BODY_PIECES, PIECE_BYTES = 1000, 64
#: How often it is logged that connections are refused or closed for others.
_LOG_SECONDS = 60.0
#: Descriptors that the database's connections, the log and the like need; and that a caller's connection does, with a
#: file of the store that is sent over it.
_KEPT, _FOR_EACH = 100, 2
#: How many connections an address has, whatever there are: fewer than a browser opens would do no good.
_FEWEST = 8


def most_connections(wanted: int, each: int) -> tuple[int, int]:
    """Return how many connections this process may hold, and how many of one address.

    That is `wanted` and `each`, or the same shares of what its limit of descriptors leaves. The limit is raised as far
    as the system lets the process do that.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return wanted, each
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _KEPT + _FOR_EACH * wanted
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted, each
    most = max((soft - _KEPT) // _FOR_EACH, 1)
    return most, min(each, max(each * most // wanted, _FEWEST))


class Connections:
    """All connections of a server: how many there are of each address, and which wait for their callers."""

    def __init__(self, most: int, each: int, proxies: Sequence[IPv4Network | IPv6Network]) -> None:
        self._most, self._each, self._proxies = most, each, proxies
        self._addresses: Counter[str] = Counter()
        self._open: dict[Guarded, str] = {}
        self._waiting: OrderedDict[Guarded, None] = OrderedDict()
        #: Those that are behind with a body or an answer, and since when; the longest first.
        self._behind: OrderedDict[Guarded, float] = OrderedDict()
        self._turned_away, self._logged_at = 0, 0.0

    def admit(self, connection: Guarded, address: str) -> bool:
        """Take in a connection; False where it must be refused."""
        caller = caller_of(address)
        if self._addresses[caller] >= self._each and not self._is_proxy(address):
            self._tell(address)
            return False
        if len(self._open) >= self._most:
            self._tell(address)
            other = self._to_make_room()
            if other is None:
                return False
            self.forget(other)
            other.drop()
        self._open[connection] = caller
        self._addresses[caller] += 1
        return True

    def forget(self, connection: Guarded) -> None:
        """Count a connection no longer."""
        self._waiting.pop(connection, None)
        self._behind.pop(connection, None)
        caller = self._open.pop(connection, None)
        if caller is not None:
            self._addresses[caller] -= 1
            if not self._addresses[caller]:
                del self._addresses[caller]

    def waits(self, connection: Guarded, *, waits: bool) -> None:
        """Note whether a connection waits for its caller to begin, or to go on with, the header of a request."""
        self._waiting.pop(connection, None)
        if waits and connection in self._open:
            self._waiting[connection] = None

    def is_behind(self, connection: Guarded, *, behind: bool, anew: bool = False) -> None:
        """Note whether a connection waits for its caller to send a body or to read; with `anew`, only from now on."""
        if anew or not behind:
            self._behind.pop(connection, None)
        if behind and connection in self._open:
            self._behind.setdefault(connection, time.monotonic())

    def _to_make_room(self) -> Guarded | None:
        slowest, since = next(iter(self._behind.items()), (None, 0.0))
        if slowest is not None and time.monotonic() - since >= SLOW_SECONDS:
            return slowest
        return next(iter(self._waiting), None)

    def _is_proxy(self, address: str) -> bool:
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self._proxies)

    def _tell(self, address: str) -> None:
        self._turned_away += 1
        now = time.monotonic()
        if not self._logged_at or now > self._logged_at + _LOG_SECONDS:
            (busiest, held), *_ = self._addresses.most_common(1) or [("", 0)]
            log.warning(
                "connections at their limit",
                open=len(self._open),
                most=self._most,
                for_each_address=self._each,
                refused_or_closed=self._turned_away,
                address=address,
                busiest=busiest,
                held=held,
            )
            self._logged_at, self._turned_away = now, 0


class _Flow(FlowControl):
    """Says when the hub, which had enough to do with what had come, reads on."""

    def __init__(self, transport: asyncio.Transport, resumed: Callable[[], None]) -> None:
        super().__init__(transport)
        self._resumed = resumed

    def resume_reading(self) -> None:
        """Read on."""
        if self.read_paused:
            self._resumed()
        super().resume_reading()


class Guarded(HttpToolsProtocol):
    """A connection that ends where its caller takes too long, or sends too much before there is a request."""

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._all = connections
        self._timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        # What came since a header, or a piece of a body, was whole: of the next one, or what is neither.
        self._unfinished = 0
        self._in_request = False
        # A request that is refused early is answered before its body has ended: what comes of that is no header.
        self._in_body = False
        self._lines = self._pieces = self._body_bytes = 0
        # Of a body since the caller was last known to be quick; of an answer that is whole, when the connection was
        # last looked at.
        self._come = self._unsent = 0
        # The request that is being answered; `cycle` is the last that came, which may wait behind it.
        self._answered: RequestResponseCycle | None = None
        # Wakes whoever waits for a body.
        self._waking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection in, or refuse it."""
        super().connection_made(cast(asyncio.Transport, transport))
        self.flow = _Flow(self.transport, self._reads_on)
        if not self._all.admit(self, self.client[0] if self.client else ""):
            self._refuse(b"503 Service Unavailable", b"this hub has too many connections, or your address has")
            return
        self._all.waits(self, waits=True)
        self._start(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._all.forget(self)
        for timer in (self._timer, self._read_timer, self._waking):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Read on; the header of a request has a time and a size, and so has all that is no body."""
        if self.transport.is_closing():
            return
        if not self._in_request and not self._in_body and self._unfinished == 0:
            self._start(HEADER_SECONDS)
        self._unfinished += len(data)
        super().data_received(data)
        if self._unfinished <= HEADER_BYTES or self.transport.is_closing():
            return
        if self._in_request or self._in_body:
            # What stands beside the pieces of a body, or the next header of one who does not wait for an answer.
            self.drop()
        else:
            self._refuse(b"431 Request Header Fields Too Large", b"the header of a request has 64 KiB at most")

    def on_message_begin(self) -> None:
        """Begin to count what the request consists of."""
        self._lines = self._pieces = self._body_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a line of a header. Those that follow a body are none: no proxy has looked at them."""
        self._lines += 1
        if self._lines > HEADER_LINES:
            raise ValueError("too many lines in the header")
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Note that there is a request."""
        if len(self.pipeline) >= WAITING_REQUESTS:
            raise ValueError("too many requests before the first was answered")
        self._in_request, self._in_body, self._unfinished = True, True, 0
        self._come = 0
        self._stop()
        self._all.waits(self, waits=False)
        self._all.is_behind(self, behind=True, anew=True)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take in a piece of a body; whoever waits for it is woken for much at once, or after a moment."""
        self._unfinished = 0
        self._pieces += 1
        self._body_bytes += len(body)
        self._come += len(body)
        self._all.is_behind(self, behind=True, anew=self._come >= BODY_AT_ONCE)
        self._come %= BODY_AT_ONCE
        if self._pieces > BODY_PIECES and self._body_bytes < self._pieces * PIECE_BYTES:
            raise ValueError("the body comes in too small pieces")
        cycle = self.cycle
        if cycle.response_complete:
            return
        if not cycle.body:
            cycle.body = body  # type: ignore[assignment]  # whoever takes it wants bytes: a large piece is not copied
        else:
            if isinstance(cycle.body, bytes):
                cycle.body = bytearray(cycle.body)
            cycle.body += body
        if len(cycle.body) >= BODY_AT_ONCE:
            self.flow.pause_reading()
            self._all.is_behind(self, behind=False)  # it is the hub that is
            self._wake()
        elif self._waking is None:
            self._waking = self.loop.call_later(GATHERING_SECONDS, self._wake)

    def on_message_complete(self) -> None:
        """Note that its body has ended, too."""
        self._in_body, self._unfinished = False, 0
        self._all.is_behind(self, behind=self._read_timer is not None)
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, for a while."""
        self._in_request = bool(self.pipeline)
        super().on_response_complete()
        if self.transport.is_closing():
            self._must_read()
        elif not self._in_request:
            self._all.waits(self, waits=True)
            self._start(IDLE_SECONDS)

    def pause_writing(self) -> None:
        """Wait for the caller to read, for a while."""
        super().pause_writing()
        self._must_read()

    def resume_writing(self) -> None:
        """Go on writing."""
        if self._read_timer is not None and not self.transport.is_closing():
            self._read_timer.cancel()
            self._read_timer = None
            self._all.is_behind(self, behind=self._in_body)
        super().resume_writing()

    def _reads_on(self) -> None:
        # Of a body the caller is waited for again, from now on.
        if self._in_body:
            self._all.is_behind(self, behind=True, anew=True)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def drop(self) -> None:
        """End the connection at once."""
        self.transport.abort()

    def _wake(self) -> None:
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        self.cycle.message_event.set()

    def _start(self, seconds: float) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if self._unfinished:
            self._refuse(b"408 Request Timeout", b"the header of the request did not come in time")
        elif self._read_timer is not None or (unsent and unsent != self._unsent):
            # The answer is whole, and the caller still reads it.
            self._unsent = unsent
            self._start(IDLE_SECONDS)
        else:
            self.drop()

    def _must_read(self) -> None:
        self._all.is_behind(self, behind=True)
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(READ_SECONDS, self.drop)

    def _refuse(self, status: bytes, problem: bytes) -> None:
        head = b"HTTP/1.1 %b\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % (status, len(problem)) + problem)
        self.transport.close()
        self.loop.call_later(1, self.drop)


def guarded(connections: Connections) -> Callable[..., Guarded]:
    """Return what makes the protocol of each connection, for uvicorn."""

    def make(**options: Any) -> Guarded:
        return Guarded(connections, **options)

    return make


def new_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop whose servers give a TLS handshake, before which nothing else counts, no longer either."""
    loop: asyncio.AbstractEventLoop = auto_loop_factory(use_subprocess=False)()
    create_server = loop.create_server

    async def create(*args: Any, **options: Any) -> asyncio.Server:
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = HEADER_SECONDS
        return await create_server(*args, **options)

    loop.create_server = create  # type: ignore[method-assign]
    return loop

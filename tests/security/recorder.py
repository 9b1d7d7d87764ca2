"""What stands between a site and its hub, passes every byte on, and keeps it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11


@dataclass(frozen=True)
class Sent:
    """A request as it was on the wire: `target` is path and query, header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Recorder:
    """A door to `port` on this machine that writes down what goes through it, connection by connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        #: Per connection: what the site sent, and what the hub answered.
        self._connections: list[tuple[bytearray, bytearray]] = []
        self._open: set[socket.socket] = set()
        self._turn = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def outgoing(self) -> list[bytes]:
        """Return what was sent to the hub, one entry for each connection."""
        with self._turn:
            return [bytes(sent) for sent, _ in self._connections]

    def incoming(self) -> list[bytes]:
        """Return what the hub answered, one entry for each connection."""
        with self._turn:
            return [bytes(answered) for _, answered in self._connections]

    def requests(self) -> list[Sent]:
        """Return every whole request that was sent."""
        return [request for stream in self.outgoing() for request in _requests(stream)]

    def close(self) -> None:
        """End all connections and take no more; what was recorded stays."""
        with self._turn:
            for one in (self._listener, *self._open):
                _end(one)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                outside, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(outside,), daemon=True).start()

    def _serve(self, outside: socket.socket) -> None:
        with outside:
            try:
                inside = socket.create_connection(("127.0.0.1", self._port), timeout=5)
                inside.settimeout(None)
            except OSError:
                return
            with inside:
                record = (bytearray(), bytearray())
                with self._turn:
                    self._connections.append(record)
                    self._open |= {outside, inside}
                back = threading.Thread(target=self._copy, args=(inside, outside, record[1]), daemon=True)
                back.start()
                self._copy(outside, inside, record[0])
                back.join()
                with self._turn:
                    self._open -= {outside, inside}

    def _copy(self, source: socket.socket, target: socket.socket, record: bytearray) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                with self._turn:
                    record += content
                target.sendall(content)
        _end(source)
        _end(target)


def port_of(url: str) -> int:
    """Return the port in `url`."""
    port = urlsplit(url).port
    assert port is not None
    return port


def _requests(stream: bytes) -> Iterator[Sent]:
    rest = stream
    while rest:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(rest)
        head: h11.Request | None = None
        body = b""
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:  # the connection was cut here
                return
            if isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
        assert head is not None
        headers = {name.decode(): value.decode() for name, value in head.headers}
        yield Sent(head.method.decode(), head.target.decode(), headers, body)
        rest = connection.trailing_data[0]


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)

"""What stands between a site and its hub: passes everything on, can hold one message in the middle, or cut the line."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Sequence
from typing import Literal

_REQUEST = re.compile(rb"(?:GET|POST|PUT) /\S* HTTP/1\.1\r\n")
_LONGEST_HOLD = 120.0
#: Where a message is held: before any of it is passed on, or when half of what came first has been.
At = Literal["request", "half request", "answer", "half answer"]


class Gate:
    """A place at which one message stops: `reached` is set when it is there, `release` lets it go on."""

    def __init__(self, lines: Sequence[str], at: At) -> None:
        self.reached = threading.Event()
        self.release = threading.Event()
        self._wanted = [re.compile(line.encode()) for line in lines]
        self._at = at
        self._turn = threading.Lock()

    def stops(self, line: bytes, at: At) -> bool:
        """Whether the message of this request line stops here. The lines before the last must have come, in order."""
        with self._turn:
            if self.reached.is_set() or not self._wanted or not self._wanted[0].search(line):
                return False
            if len(self._wanted) > 1:
                if at in ("request", "half request"):
                    self._wanted.pop(0)
                return False
            if at != self._at:
                return False
            self.reached.set()
            return True


class Relay:
    """A door to `port` on this machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._gate: Gate | None = None
        self._cut = False
        self._open: set[socket.socket] = set()
        self._turn = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, lines: Sequence[str], at: At) -> Gate:
        """Have the next message whose request line is the last of these patterns stop; the others came before it."""
        self._gate = Gate(lines, at)
        return self._gate

    def cut(self) -> None:
        """End all connections and take no more."""
        with self._turn:
            self._cut = True
            for one in self._open:
                _end(one)

    def mend(self) -> None:
        """Take connections again."""
        self._cut = False

    def close(self) -> None:
        """Stop for good."""
        self.cut()
        _end(self._listener)
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
                if self._cut:
                    return
                inside = socket.create_connection(("127.0.0.1", self._port), timeout=5)
                inside.settimeout(None)
            except OSError:
                return
            with inside:
                with self._turn:
                    self._open |= {outside, inside}
                line = [b""]
                back = threading.Thread(target=self._copy, args=(inside, outside, line, False), daemon=True)
                back.start()
                self._copy(outside, inside, line, True)
                back.join()
                with self._turn:
                    self._open -= {outside, inside}

    def _copy(self, source: socket.socket, target: socket.socket, line: list[bytes], asking: bool) -> None:
        begins = False
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                if asking and (found := _REQUEST.match(content)):
                    line[0], begins = found.group(), True
                    self._stop(line[0], "request")
                    head, end, content = content.partition(b"\r\n\r\n")
                    target.sendall(head + end)
                if asking and begins and len(content) > 1:  # the first of the body, with the head or after it
                    begins = False
                    content = self._half(content, target, line[0], "half request")
                elif not asking:
                    self._stop(line[0], "answer")
                    content = self._half(content, target, line[0], "half answer")
                target.sendall(content)
        _end(source)
        _end(target)

    def _half(self, content: bytes, target: socket.socket, line: bytes, at: At) -> bytes:
        gate = self._gate
        if gate is None or not gate.stops(line, at):
            return content
        target.sendall(content[: len(content) // 2])
        gate.release.wait(_LONGEST_HOLD)
        return content[len(content) // 2 :]

    def _stop(self, line: bytes, at: At) -> None:
        gate = self._gate
        if gate is not None and gate.stops(line, at):
            gate.release.wait(_LONGEST_HOLD)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)

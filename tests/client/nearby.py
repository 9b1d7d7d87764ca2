"""What may stand between a person's machine and a hub: a proxy that refuses, a SOCKS proxy, certificates, servers."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

PAGE = b"<html><head><title>Access</title></head><body>Your request was blocked. secret-of-the-proxy</body></html>"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
VARIABLES += ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class _Answering(BaseHTTPRequestHandler):
    server: Answers
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append(f"{self.command} {self.path}")
        self.send_response(self.server.status)
        self.send_header("Content-Type", self.server.kind)
        self.send_header("Content-Length", str(len(self.server.content)))
        if self.server.status == 407:
            self.send_header("Proxy-Authenticate", 'Basic realm="hospital"')
        self.end_headers()
        self.wfile.write(self.server.content)

    do_GET = do_POST = do_PUT = do_CONNECT = _answer

    def date_time_string(self, timestamp: float | None = None) -> str:
        return self.server.date or super().date_time_string(timestamp)

    def log_message(self, *args: object) -> None:
        pass


class Answers(ThreadingHTTPServer):
    """Answers whatever is asked in one way; `seen` are the requests."""

    daemon_threads = True
    #: What time it says it is; by default what it is.
    date: str | None = None

    def __init__(self, status: int, content: bytes, kind: str, host: str) -> None:
        super().__init__((host, 0), _Answering)
        self.status, self.content, self.kind = status, content, kind
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that does not trust us hangs up


@contextlib.contextmanager
def answering(
    status: int = 200,
    content: bytes = b'{"party": "north"}',
    kind: str = "application/json",
    *,
    host: str = "127.0.0.1",
    certificate: Path | None = None,
) -> Iterator[Answers]:
    """Run a server, with TLS if it has a certificate."""
    with Answers(status, content, kind, host) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def certificate(folder: Path, *, begins: timedelta = timedelta(days=-1), ends: timedelta = timedelta(days=90)) -> Path:
    """Write a certificate for localhost, with its key, that nobody but who is given it trusts."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now + begins).not_valid_after(now + ends)
    place = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    made = builder.add_extension(place, critical=False).sign(key, hashes.SHA256())
    path = folder / "hub.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(made.public_bytes(Encoding.PEM) + secret)
    return path


class Socks:
    """A SOCKS5 proxy (RFC 1928) that connects all to one port of this machine; `asked` are the names it was given."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Socks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                with client, client.makefile("rb") as said:
                    said.read(said.read(2)[1])  # the ways to sign in that it offers
                    client.sendall(b"\x05\x00")  # none is needed
                    said.read(3)
                    assert said.read(1) == b"\x03"  # a name, not an address: resolved here
                    self.asked.append(said.read(said.read(1)[0]).decode())
                    said.read(2)
                    client.sendall(b"\x05\x00\x00\x01" + bytes(6))
                    with socket.create_connection(("127.0.0.1", self._port)) as hub:
                        # Small messages: a request, then its answer.
                        hub.sendall(said.read1(2**16))
                        while answer := hub.recv(2**16):
                            client.sendall(answer)
                            if answer.endswith(b"}"):
                                break

"""An OpenID Connect provider on a real socket: discovery, keys, and the device flow (RFC 8628), signing with its own
keys. Unlike a real one it also signs whatever a test wants it to say."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
import uuid
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


class Provider:
    """`sign` makes an ID token; in the device flow, `polls` are the errors that come before it."""

    CLIENT = "suture"

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"rsa-1": rsa.generate_private_key(65537, 2048)}
        self.keys["ec-1"] = ec.generate_private_key(ec.SECP256R1())
        self.asked: list[str] = []
        self.down = False
        self.device: dict[str, Any] = {"user_code": "WDJB-MJHT", "expires_in": 600, "interval": 0}
        self.polls: deque[str] = deque()
        self.codes: dict[str, dict[str, str]] = {}
        self.claims: dict[str, Any] = {"sub": "user-1"}
        self.changes: dict[str, Any] = {}

    def __enter__(self) -> Self:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider._answer(self, {})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                provider._answer(self, {name: values[0] for name, values in parse_qs(body).items()})

            def log_message(self, *_args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def sign(
        self,
        *,
        kid: str | None = "rsa-1",
        algorithm: str | None = None,
        key: Any = None,
        typ: str = "JWT",
        **claims: Any,
    ) -> str:
        """Return an ID token; claims that are None are left out."""
        now = int(time.time())
        said = {"iss": self.url, "aud": self.CLIENT, "sub": "user-1", "iat": now, "exp": now + 300}
        said |= {"jti": uuid.uuid4().hex, **claims}
        said = {name: value for name, value in said.items() if value is not None}
        algorithm = algorithm or ("ES256" if kid is not None and kid.startswith("ec") else "RS256")
        key = self.keys[str(kid)] if key is None else key
        return jwt.encode(said, key, algorithm, headers={"typ": typ, **({"kid": kid} if kid is not None else {})})

    def public(self) -> dict[str, Any]:
        """Return the key set."""
        found = []
        for kid, key in self.keys.items():
            kind = RSAAlgorithm if kid.startswith("rsa") else ECAlgorithm
            found.append({**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"})
        return {"keys": found}

    def _authorize(self, request: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
        """Send a browser back at once, as a provider does at which somebody is signed in."""
        self.codes[code := uuid.uuid4().hex] = query
        back = urlencode({"code": code, "state": query["state"]})
        request.send_response(302)
        request.send_header("Location", f"{query['redirect_uri']}?{back}")
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _token_of(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        query = self.codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        proof = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        same = query is not None and all(form.get(name) == query[name] for name in ("client_id", "redirect_uri"))
        if query is None or not same or query["code_challenge"] != proof:
            return 400, {"error": "invalid_grant"}
        return 200, {"id_token": self.sign(nonce=query["nonce"], **self.claims), "token_type": "Bearer"}

    def _answer(self, request: BaseHTTPRequestHandler, form: dict[str, str]) -> None:
        self.asked.append(request.path)
        if request.path.startswith("/authorize?") and not self.down:
            self._authorize(request, dict(parse_qsl(urlsplit(request.path).query)))
            return
        status, body = (500, {"error": "server_error"}) if self.down else self._route(request.path, form)
        content = json.dumps(body).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _route(self, path: str, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if path == "/.well-known/openid-configuration":
            told = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks", "token_endpoint": f"{self.url}/token"}
            told["device_authorization_endpoint"] = f"{self.url}/device"
            told["authorization_endpoint"] = f"{self.url}/authorize"
            return 200, {**told, **self.changes}
        if path == "/jwks":
            return 200, self.public()
        if path == "/device" and form.get("client_id") == self.CLIENT and "openid" in form.get("scope", "").split():
            return 200, {"device_code": "secret-device", "verification_uri": f"{self.url}/activate", **self.device}
        if path == "/token" and form.get("grant_type") == "authorization_code":
            return self._token_of(form)
        if path == "/token" and form.get("grant_type") == DEVICE_GRANT and form.get("device_code") == "secret-device":
            if self.polls:
                return 400, {"error": self.polls.popleft()}
            return 200, {"id_token": self.sign(**self.claims), "access_token": "x", "token_type": "Bearer"}
        return 400, {"error": "invalid_request"}

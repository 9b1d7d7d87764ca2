"""Who an ID token says somebody is, if the identity provider's signature and all it says hold.

OpenID Connect Core 1.0, section 3.1.3.7; Discovery 1.0; RFC 8725 for what a JSON Web Token must never be.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import structlog

from suture_service.errors import Forbidden, Malformed, Unavailable
from suture_service.settings import is_protected

log = structlog.get_logger(__name__)

#: Never `none`, and nothing with a shared secret: a public key would be taken for it.
ALGORITHMS = ("RS256", "ES256")
#: By how many seconds the provider's clock may differ, and how old a token may be that somebody signs in with.
LEEWAY, OLDEST = 60, 600
#: In seconds: for one answer of the provider, between two looks for an unknown key or after a failure, and for known
#: keys and addresses.
TIMEOUT, PAUSE, KEYS_LAST = 5.0, 30.0, 300.0


@dataclass(frozen=True)
class Identity:
    """Somebody whom the provider knows; `email` only where it says that it has verified it.

    `proof` is the digest of what was signed: an ID token signs in once.
    """

    issuer: str
    subject: str
    email: str | None
    proof: str


class Issuer:
    """The identity provider of this hub. Asks it for keys and addresses when needed; safe to share by threads."""

    def __init__(self, url: str, client_id: str) -> None:
        self.url, self.client_id = url, client_id
        self._keys: jwt.PyJWKClient | None = None
        self._turn = threading.Lock()
        self._description: dict[str, Any] = {}
        self._failed_at, self._described_at = -PAUSE, -KEYS_LAST

    def verify(self, id_token: str, nonce: str | None = None) -> Identity:
        """Return whom an ID token names.

        Raises `Malformed` (`login.malformed`) if it is none, `Forbidden` (`login.refused`) if anything in it does not
        hold, `Unavailable` (`login.unavailable`) while the provider's keys cannot be had.
        """
        try:
            header = jwt.get_unverified_header(id_token)
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            raise Malformed("login.malformed", "this is no ID token", where="id_token") from None
        kid = header.get("kid")
        # Access tokens and log-out tokens carry other types, and may have this client as their audience.
        typed = str(header.get("typ", "JWT")).upper() == "JWT"
        if header.get("alg") not in ALGORITHMS or not typed or not isinstance(kid, str | None):
            raise _refused()
        key = self._key(kid, header["alg"])
        try:
            claims = jwt.decode(
                id_token,
                key,
                algorithms=ALGORITHMS,
                audience=self.client_id,
                issuer=self.url,
                leeway=LEEWAY,
                options={"require": ["iss", "sub", "aud", "exp", "iat"]},
            )
        except (jwt.InvalidTokenError, ArithmeticError, TypeError, ValueError):
            raise _refused() from None
        self._check(claims, nonce)
        signed = id_token.rpartition(".")[0]
        email = claims.get("email") if claims.get("email_verified") is True else None
        return Identity(
            self.url,
            claims["sub"],
            email.lower() if isinstance(email, str) and email.isprintable() else None,
            hashlib.sha256(signed.encode()).hexdigest(),
        )

    def authorization(self, back: str, state: str, nonce: str, challenge: str) -> str:
        """Return the provider's address at which a browser signs in and comes `back`, with PKCE (RFC 7636).

        Raises `Unavailable` (`login.unavailable`).
        """
        wanted = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": back,
            "scope": "openid email",
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return str(httpx.URL(self._endpoint("authorization_endpoint")).copy_merge_params(wanted))

    def exchange(self, code: str, back: str, verifier: str) -> str:
        """Return the ID token for the code that a browser brought `back`, not yet verified.

        Raises `Forbidden` (`login.refused`) or `Unavailable` (`login.unavailable`).
        """
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": back}
        form |= {"client_id": self.client_id, "code_verifier": verifier}
        try:
            answer = httpx.post(self._endpoint("token_endpoint"), data=form, timeout=TIMEOUT)
            document = answer.json() if answer.status_code < 500 else None
        except _UNANSWERED as error:
            log.warning("the identity provider gives no token", error=type(error).__name__)
            raise _unavailable() from None
        if document is None:
            raise _unavailable()
        id_token = document.get("id_token") if answer.is_success and isinstance(document, dict) else None
        if not isinstance(id_token, str):
            raise _refused()
        return id_token

    def _endpoint(self, name: str) -> str:
        with self._asking():
            address = self._described().get(name)
        # A provider without it is none that failed: its keys can be had.
        if not isinstance(address, str) or not is_protected(address):
            log.warning("the identity provider has no such address", endpoint=name)
            raise _unavailable()
        return address

    def _check(self, claims: dict[str, Any], nonce: str | None) -> None:
        subject, issued, audience = claims["sub"], claims["iat"], claims["aud"]
        named = claims.get("azp", self.client_id if audience in (self.client_id, [self.client_id]) else None)
        holds = (
            isinstance(subject, str)
            and 0 < len(subject) <= 255
            and subject.isascii()
            and subject.isprintable()
            and isinstance(issued, int | float)
            and time.time() - issued <= OLDEST + LEEWAY
            and named == self.client_id
            and claims.get("nonce") == nonce
            and "events" not in claims  # as log-out tokens have
        )
        if not holds:
            raise _refused()

    def _key(self, kid: str | None, algorithm: str) -> jwt.PyJWK:
        try:
            with self._asking():
                if self._keys is None:
                    self._keys = self._discover()
                # A provider with one key need not name it.
                named = self._keys.get_signing_keys() if kid is None else [self._keys.get_signing_key(kid)]
        except jwt.PyJWTError:
            raise _refused() from None  # it knows no such key
        fitting = [key for key in named if key.algorithm_name == algorithm]
        if len(fitting) != 1:
            raise _refused()
        return fitting[0]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Ask what the provider is and has; raises `Unavailable` where that fails, or failed a moment ago."""
        # One at a time asks, and nobody waits long for that: strangers must not take all threads.
        if not self._turn.acquire(timeout=TIMEOUT):
            raise _unavailable()
        try:
            if time.monotonic() - self._failed_at < PAUSE:
                raise _unavailable()
            yield
        except _UNANSWERED as error:
            self._failed_at = time.monotonic()
            log.warning("the identity provider cannot be asked", error=type(error).__name__)
            raise _unavailable() from None
        finally:
            self._turn.release()

    def _discover(self) -> jwt.PyJWKClient:
        address = self._described().get("jwks_uri")
        if not isinstance(address, str) or not is_protected(address):
            self._described_at = -KEYS_LAST
            raise _NotTheProvider
        return jwt.PyJWKClient(address, lifespan=KEYS_LAST, timeout=TIMEOUT, cooldown_duration=PAUSE)

    def _described(self) -> dict[str, Any]:
        if time.monotonic() - self._described_at < KEYS_LAST:
            return self._description
        answer = httpx.get(f"{self.url.rstrip('/')}/.well-known/openid-configuration", timeout=TIMEOUT)
        try:
            document = answer.raise_for_status().json()
            described = isinstance(document, dict) and document["issuer"] == self.url
        except (ValueError, KeyError):
            raise _NotTheProvider from None
        if not described:
            raise _NotTheProvider
        self._description, self._described_at = document, time.monotonic()
        return self._description


#: The environment, too, may keep httpx from asking: with a proxy that it does not know, say.
_UNANSWERED = (
    httpx.HTTPError,
    httpx.InvalidURL,
    ImportError,
    OSError,
    ValueError,
    jwt.PyJWKClientConnectionError,
    jwt.PyJWKSetError,
)


class _NotTheProvider(ValueError):
    """What answers at the provider's address describes another one, or nothing."""


def _refused() -> Forbidden:
    # Not what is wrong: somebody who makes tokens up would learn from it.
    return Forbidden(
        "login.refused",
        "the ID token is not valid here: another issuer or audience, too old, or not signed by the provider",
        where="id_token",
        hint="sign in again: suture login --oidc",
    )


def _unavailable() -> Unavailable:
    return Unavailable("login.unavailable", "the identity provider does not answer", hint="try again in a minute")

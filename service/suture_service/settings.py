"""The hub's settings: keyword arguments, or environment variables that start with `SUTURE_HUB_`."""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from suture_contract.errors import SutureError
from suture_contract.naming import did_you_mean, problems_of

PREFIX = "SUTURE_HUB_"

Seconds = Annotated[float, Field(gt=0)]
Bytes = Annotated[int, Field(gt=0)]


def networks(text: str) -> list[IPv4Network | IPv6Network]:
    """Return the addresses and networks in a text, with commas between; raises `ValueError`, which names the part."""
    return [ip_network(part.strip()) for part in text.split(",")]


def _networks(text: str) -> str:
    networks(text)
    return text


def is_protected(url: str) -> bool:
    """Whether what is sent to this address, and comes from it, is encrypted or stays on this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host)))


def _issuer(url: str) -> str:
    if url and (not is_protected(url) or "?" in url or "#" in url or "@" in url):
        raise ValueError("the address of an identity provider, https://…, without a query")
    return url


class Settings(BaseSettings):
    """Where the hub keeps its state, and its limits. Sizes in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    #: `sqlite:///path` or `postgresql://…`; may hold a password, so it is never shown.
    database_url: str = Field(default="sqlite:///suture-hub.db", repr=False)
    #: A folder, or `s3://bucket/prefix` (credentials from the usual AWS variables).
    store: str = "suture-store"
    #: The address of the S3 server where it is not Amazon's; callers must reach it too if downloads are signed.
    s3_endpoint: str | None = None
    #: How long an address is valid to which a download from a bucket is sent on; 0: everything goes through the hub.
    signed_download_seconds: Annotated[int, Field(ge=0, le=86400)] = 0

    #: Addresses or networks, with commas, of the proxies that speak TLS before the hub: what they say about a caller's
    #: address is believed.
    proxies: Annotated[str, AfterValidator(_networks)] = "127.0.0.1"

    #: The OpenID Connect provider at which people sign in, exactly as it calls itself, and what it calls this hub.
    #: Without them there are no people, only tokens.
    oidc_issuer: Annotated[str, AfterValidator(_issuer)] = ""
    oidc_client_id: str = Field(default="", max_length=255, validate_default=True)

    lease_seconds: Seconds = 60
    #: How long the lease of a task lasts that waits for a person at its site.
    waiting_lease_seconds: Seconds = 7 * 86400
    #: How long after its job's deadline a party may still answer.
    late_seconds: Annotated[int, Field(ge=0)] = 90 * 86400
    max_attempts: Annotated[int, Field(ge=1)] = 3
    #: A site counts as online for this long after it last asked for work.
    online_seconds: Seconds = 90
    max_wait_seconds: Seconds = 25
    #: How often each hub process looks for lapsed leases and passed deadlines.
    sweep_seconds: Seconds = 1

    max_model_bytes: Bytes = 8 * 2**30
    max_stitches_bytes: Bytes = 2 * 2**30
    max_document_bytes: Bytes = 8 * 2**20
    max_card_bytes: Bytes = 2**20
    #: A commit with the small files that come inside it.
    max_commit_bytes: Bytes = 512 * 2**20
    #: Any request body that is not a file.
    max_request_bytes: Bytes = 8 * 2**20

    #: Connections of each hub process, fewer where it may have fewer descriptors; and of one address that is no proxy.
    max_connections: Annotated[int, Field(ge=1)] = 1000
    max_connections_per_address: Annotated[int, Field(ge=1)] = 100

    #: Of one token, counted by each hub process for itself.
    requests_per_minute: Annotated[int, Field(ge=1)] = 3000
    #: So many tokens that are none, within so many seconds, lock an address out until these are over.
    wrong_tokens: Annotated[int, Field(ge=1)] = 50
    wrong_tokens_seconds: Annotated[int, Field(ge=1)] = 600
    #: What the files of one party may take together, where the party has no limit of its own.
    max_party_bytes: Bytes = 2**40
    #: Jobs of one party that have not ended.
    max_party_jobs: Annotated[int, Field(ge=1)] = 50

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("oidc_client_id")
    @classmethod
    def _with_issuer(cls, client_id: str, others: ValidationInfo) -> str:
        if bool(client_id) != bool(others.data.get("oidc_issuer", client_id)):
            raise ValueError(f"{PREFIX}OIDC_ISSUER and {PREFIX}OIDC_CLIENT_ID belong together")
        return client_id


def read_settings() -> Settings:
    """Return the settings from the environment; raises `SutureError` (`hub.settings`) naming the variable."""
    try:
        settings = Settings()
    except ValidationError as error:
        first = problems_of(error.errors(include_url=False), Settings)[0]
        raise _wrong(first.field, first.message, first.hint or "correct this variable") from None
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name.removeprefix(PREFIX).lower() not in Settings.model_fields:
            # A limit that was meant to be set would silently not be.
            known = [f"{PREFIX}{field}".upper() for field in Settings.model_fields]
            hint = f"{did_you_mean(name, known, page='docs/hub-operator.md')}, or unset it"
            raise SutureError("hub.settings", "there is no such setting", where=name, hint=hint)
    return settings


def check_exposed(settings: Settings, host: str, *, tls: bool) -> None:
    """Raise `SutureError` (`hub.settings`) where what is fine on one machine would be open to others."""
    if _is_loopback(host):
        return
    for field in ("database_url", "store"):
        if field not in settings.model_fields_set:
            message = "its default is for trying the hub out on one machine; this one listens to others"
            raise _wrong(field, message, "say where the hub keeps its state")
    if not tls and "proxies" not in settings.model_fields_set:
        message = "tokens would travel unencrypted: the hub listens to other machines without TLS"
        hint = "give --tls-cert and --tls-key, or name here the address of the proxy that speaks TLS before it"
        raise _wrong("proxies", message, hint)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _wrong(field: str, message: str, hint: str) -> SutureError:
    return SutureError("hub.settings", message, where=f"{PREFIX}{field}".upper(), hint=hint)

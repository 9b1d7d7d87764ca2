"""Where the present request comes from: for limits, for the audit log and for logs."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address

#: Of an IPv6 address, what tells one caller from another: each has all addresses of a network that long.
_IPV6_PREFIX = 64


@dataclass
class Origin:
    """Where a request comes from. The middleware makes it, authentication adds the token."""

    request_id: str | None = None
    address: str | None = None
    token_id: str | None = None
    #: Whose token it is.
    party: str | None = None
    #: Headers for the answer that authentication wants sent.
    headers: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=4096)
def caller_of(address: str) -> str:
    """Return by what limits know whoever has this address: the address, or of IPv6 its network."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(ip, IPv6Address):
        return address
    return str(ip.ipv4_mapped or IPv6Network((ip, _IPV6_PREFIX), strict=False))


origin: ContextVar[Origin | None] = ContextVar("origin", default=None)

"""Where the present request comes from: for limits, for the audit log and for logs."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field


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


origin: ContextVar[Origin | None] = ContextVar("origin", default=None)

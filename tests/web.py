"""Calls of servers on this machine, each on a connection of its own.

`httpx.get` and the like read the certificates of all authorities anew for every call, which takes longer than the call.
"""

from __future__ import annotations

import ssl

import httpx

#: What a client that is asked for no certificates need trust.
NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

web = httpx.Client(
    verify=NOBODY,
    limits=httpx.Limits(max_keepalive_connections=0),
    trust_env=False,
)

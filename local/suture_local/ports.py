"""Ports of this machine for servers that are started here."""

from __future__ import annotations

import atexit
import random
import socket
import sys

from suture_contract.errors import SutureError

#: Linux, macOS and Windows take the ports of outgoing connections from above these. One of those may be taken by a
#: connection of anybody's between the moment it was free and the moment its server begins.
_FIRST, _END, _TRIES = 10_000, 32_768, 100


def free_port(preferred: int | None = None) -> int:
    """Return the preferred port of 127.0.0.1, or another that nothing listens on where it is None or taken.

    Raises `SutureError` `hub.no_port`.
    """
    # A generator of its own: programs that seed the common one would all draw the same ports.
    drawn = random.SystemRandom()
    if preferred is not None and _is_free(preferred):
        return preferred
    for _ in range(_TRIES):
        port = drawn.randrange(_FIRST, _END)
        if _is_free(port) and _claimed(port):
            return port
    raise SutureError("hub.no_port", "no free port on 127.0.0.1", where="hub")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _claimed(port: int) -> bool:
    """Whether no other process that is still there has been given this port; where the system can say so."""
    if sys.platform != "linux":
        return True
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0suture-port-{port}")
    except OSError:
        claim.close()
        return False
    atexit.register(claim.close)  # it says so to others until this process ends
    return True

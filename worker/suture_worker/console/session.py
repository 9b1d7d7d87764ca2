"""Who may use the console: whoever opens the link that its user was shown, once, and that browser from then on."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from pathlib import Path

from suture_worker import files

#: In seconds: how long a browser stays signed in.
LASTS = 12 * 3600.0
LINK = "console.link"


class Door:
    """The present link, in `state/console.link` for the site's user alone, and the browser sessions that it began."""

    def __init__(self, state: Path, address: str) -> None:
        self._path, self._address = state / LINK, address
        self._sessions: dict[str, float] = {}
        self._turn = threading.Lock()
        self.link = ""
        self._renew()

    def enter(self, secret: str) -> str | None:
        """Return the secret of a new session if this is the link's, which opens nothing from then on."""
        with self._turn:
            if not hmac.compare_digest(secret.encode(), self._secret.encode()):
                return None
            self._renew()
            session = secrets.token_urlsafe(32)
            self._sessions[session] = time.monotonic() + LASTS
            return session

    def knows(self, session: str) -> bool:
        """Whether a session has begun here and not ended."""
        with self._turn:
            now = time.monotonic()
            self._sessions = {key: end for key, end in self._sessions.items() if end > now}
            return any(hmac.compare_digest(session.encode(), key.encode()) for key in self._sessions)

    def leave(self, session: str) -> None:
        """End a session."""
        with self._turn:
            self._sessions.pop(session, None)

    def close(self) -> None:
        """Remove the link."""
        self._path.unlink(missing_ok=True)

    def _renew(self) -> None:
        self._secret = secrets.token_urlsafe(32)
        self.link = f"{self._address}/#{self._secret}"
        files.write(self._path, f"{self.link}\n")


def form_word(session: str) -> str:
    """Return what the forms of a session carry."""
    return hmac.new(session.encode(), b"forms", "sha256").hexdigest()

"""Who is there, as the queue knows it, under names that end by themselves when nobody renews them."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
import structlog

from suture_contract.errors import SutureError
from suture_worker import broker
from suture_worker.config import SiteConfig

#: How long somebody is taken to be there who has not said so again, and how often that is said.
LAPSE_SECONDS = 20.0
_RENEW_SECONDS = 4.0
#: How old what the queue said may be.
_SEEN_SECONDS = 0.5

log = structlog.get_logger(__name__)


class Presence:
    """Who is there, as the queue knows it: names that end by themselves."""

    def __init__(self, config: SiteConfig) -> None:
        self._client = broker.connect(config)
        self._seen: dict[str, tuple[float, dict[str, bytes]]] = {}

    @contextmanager
    def holding(self, name: str, content: str | None = None) -> Iterator[Callable[[], None] | None]:
        """Have a name within the block, or until the call of what it is passed; None if another has it.

        One with a `content` is nobody else's; where the queue is away just now, it hears of it later.
        """
        own = content if content is not None else secrets.token_hex(8)
        milliseconds = int(LAPSE_SECONDS * 1000)
        if content is None and not self._client.set(name, own, nx=True, px=milliseconds):
            yield None
            return
        ended = threading.Event()

        def release() -> None:
            ended.set()
            renewing.join()
            with contextlib.suppress(redis.RedisError):
                held = self._client.get(name)
                if isinstance(held, bytes) and held.decode() == own:
                    self._client.delete(name)

        def renew() -> None:
            # Also one that the queue forgot.
            self._client.set(name, own, px=milliseconds)

        if content is not None:
            with contextlib.suppress(redis.RedisError):
                renew()
        renewing = regularly(ended, _RENEW_SECONDS, renew)
        try:
            yield release
        finally:
            release()

    def of(self, prefix: str, *, fresh: bool = False) -> dict[str, bytes]:
        """Return the names that somebody has, with their contents; while the queue is away, those of before.

        They may be half a second old, or are `fresh`.
        """
        at, held_now = self._seen.get(prefix, (-LAPSE_SECONDS, {}))
        if not fresh and time.monotonic() < at + _SEEN_SECONDS:
            return held_now
        try:
            names = sorted(self._client.scan_iter(f"{prefix}*", count=1000))
            contents: Any = self._client.mget(names) if names else []
            held_now = {name.decode(): held for name, held in zip(names, contents, strict=True) if held}
        except redis.RedisError as error:
            log.warning("the queue does not say who is at work", problem=type(error).__name__)
        self._seen[prefix] = time.monotonic(), held_now
        return held_now


def regularly(ended: threading.Event, seconds: float, call: Callable[[], None]) -> threading.Thread:
    """Call something in a thread of its own until `ended` is set; that it fails once is no matter."""

    def run() -> None:
        while not ended.wait(seconds):
            try:
                call()
            except (SutureError, redis.RedisError, OSError) as error:
                log.warning("queue or task store did not answer", problem=str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread

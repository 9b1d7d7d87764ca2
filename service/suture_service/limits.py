"""How often one may ask. Each hub process counts for itself, so that reading writes nothing."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from threading import Lock

from limits import RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

from suture_service.errors import TooMany
from suture_service.origin import caller_of

#: So many requests for files count as one of any other kind.
FILES = 10


@dataclass(frozen=True)
class Allowance:
    """What is left of a limit, as the `RateLimit-*` headers say it; `reset` in seconds."""

    limit: int
    remaining: int
    reset: int

    def headers(self) -> dict[str, str]:
        """Return the headers of draft-ietf-httpapi-ratelimit-headers-03."""
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset),
        }


class RateLimits:
    """Requests per token and minute, and wrong tokens per address.

    Of a repository with many files each is asked for by itself, twice, and costs the hub little.
    """

    def __init__(self, requests_per_minute: int, wrong_tokens: int, wrong_tokens_seconds: int) -> None:
        storage = MemoryStorage()
        # Two threads at once start the storage's timer twice, which raises.
        self._alone = Lock()
        self._requests = RateLimitItemPerMinute(requests_per_minute * FILES)
        self._counter = SlidingWindowCounterRateLimiter(storage)
        self._wrong = RateLimitItemPerSecond(wrong_tokens, wrong_tokens_seconds)
        self._guesses = FixedWindowRateLimiter(storage)

    def count(self, token_id: str, *, file: bool = False) -> Allowance:
        """Count a request, one for a `file` as a tenth; raises `TooMany` (`request.too_many`) over the limit."""
        with self._alone:
            allowed = self._counter.hit(self._requests, token_id, cost=1 if file else FILES)
            window = self._counter.get_window_stats(self._requests, token_id)
        most = self._requests.amount // FILES
        left = Allowance(most, max(window.remaining, 0) // FILES, _until(window.reset_time))
        if not allowed:
            raise TooMany(
                "request.too_many",
                f"more than {most} requests a minute with one token",
                left.reset,
                hint="wait as long as Retry-After says",
                headers=left.headers(),
            )
        return left

    def count_wrong_token(self, address: str) -> bool:
        """Note that somebody at this address tried a token that is none; return whether that locks the address out."""
        caller = caller_of(address)
        with self._alone:
            self._guesses.hit(self._wrong, caller)
            return not self._guesses.test(self._wrong, caller)

    def check_address(self, address: str) -> None:
        """Raise `TooMany` (`auth.locked`) where too many tokens that were none have come from."""
        caller = caller_of(address)
        with self._alone:
            allowed = self._guesses.test(self._wrong, caller)
            window = self._guesses.get_window_stats(self._wrong, caller)
        if not allowed:
            raise TooMany(
                "auth.locked",
                "too many wrong tokens came from your address",
                _until(window.reset_time),
                hint="correct the token, then wait as long as Retry-After says",
            )


def _until(moment: float) -> int:
    return max(1, math.ceil(moment - time.time()))

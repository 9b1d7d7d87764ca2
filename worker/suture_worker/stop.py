"""Being told to stop, by a signal."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Like `threading.Event`, but may be set by a signal handler.

    A handler runs in the middle of whatever the main thread does. If that is an event's `wait`, which holds the event's
    lock for a moment, the handler's `set` waits for that lock for ever. Here both only touch a pipe.
    """

    def __init__(self) -> None:
        self._set = False
        self._reader, self._writer = os.pipe()

    def __del__(self) -> None:
        os.close(self._reader)
        os.close(self._writer)

    def set(self) -> None:
        """End all waiting, now and later."""
        self._set = True
        os.write(self._writer, b"x")

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._set

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, at most so long; return whether it is."""
        if not self._set:
            # Never read from: the pipe stays ready for every thread that waits.
            poll = select.poll()
            poll.register(self._reader, select.POLLIN)
            poll.poll(max(0.0, seconds) * 1000)
        return self._set


@contextmanager
def told_to_stop() -> Iterator[Stop]:
    """Yield a `Stop` that SIGTERM and SIGINT set within the block. For the main thread."""
    stop = Stop()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if not stop.is_set():
            stop.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

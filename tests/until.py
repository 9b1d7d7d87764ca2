"""How tests wait: for what happens, and never for a number of seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], Any], seconds: float = 150.0) -> Any:
    """Return what `condition` gives as soon as that is true; `seconds` only bound how long a broken test takes."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return value

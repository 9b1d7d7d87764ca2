"""Reading ahead: the next batches are made by threads while the present one is used.

Threads and not processes: processes would need shared memory and sockets, which a site's confined child does not have,
and batches would have to be copied between them. Decoding images and decompressing volumes release Python's lock, so
that other cores can share the work. On two busy cores threads were hardly faster than reading without them, and
processes never faster than threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Finished results that wait per thread, besides the one that each makes.
_WAITING = 1
_MOST_WORKERS = 8


def default_workers() -> int:
    """Return how many threads read a folder of files: one per processor this process may use, at most 8."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_WORKERS, processors)


def ahead(make: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield `make(item)` for each item, in order, made by `workers` threads; by this one if there are none.

    At most `2 * workers` results exist at a time. An error in `make` is raised where its result is due. When the caller
    stops early, what has not begun is dropped, and no thread is left behind.
    """
    if not workers:
        yield from map(make, items)
        return
    coming = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="suture-read") as pool:
        try:
            queue: deque[Future[R]] = deque()
            queue.extend(pool.submit(make, item) for item in islice(coming, workers * (1 + _WAITING)))
            while queue:
                result = queue.popleft().result()
                queue.extend(pool.submit(make, item) for item in islice(coming, 1))
                yield result
                del result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

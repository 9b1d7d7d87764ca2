"""What a task needs, brought into its folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from suture.errors import Unavailable
from suture_contract.errors import Cancelled
from suture_worker.agent.admission import Admission
from suture_worker.agent.cache import Cache
from suture_worker.agent.heartbeat import Heartbeat
from suture_worker.agent.hub import HubClient
from suture_worker.agent.retry import back_off, check
from suture_worker.compute.checking import check_model
from suture_worker.config import SiteConfig
from suture_worker.folder import TaskFolder
from suture_worker.leased_task import LeasedTask
from suture_worker.room import check_room
from suture_worker.stop import Stop

_FETCH_SECONDS = 1800.0

_T = TypeVar("_T")


class Fetching:
    """Fetches members, by way of the site's cache, and what the job has left for the task."""

    def __init__(self, config: SiteConfig, hub: HubClient, admission: Admission, stop: Stop) -> None:
        self._state = config.state
        self._hub = hub
        self._admission = admission
        self._stop = stop
        self._cache = Cache(config.state / "cache")
        #: Held while the cache changes: two tasks may want the same member.
        self._cache_turn = threading.Lock()

    def fetch(self, task: LeasedTask, folder: TaskFolder, heartbeat: Heartbeat) -> None:
        """Bring members and candidates into the folder, verified and statically checked."""
        refs = task.files
        total = sum(member.size for member in task.spec.members) + sum(ref.size for ref in refs.values())
        check_room(self._state, total)
        fetched = 0
        heartbeat.fetching(fetched, total)

        def count(arrived: int) -> None:
            nonlocal fetched
            fetched += arrived
            heartbeat.fetching(fetched, total)
            check(self._stop, heartbeat)
            if heartbeat.cancelled.is_set():
                raise Cancelled

        # What is in the folder already was checked when it came, and a child cannot write there.
        for index, member in enumerate(task.spec.members):
            if not folder.member(index).exists():
                find = partial(self._admission.signers.find, self._hub, member, task.job.id)
                signed = self._patiently(find, heartbeat)
                folder.note_signer(index, signed.key, signed.older)
                download = partial(self._hub.fetch_member, member, on_bytes=count)
                with self._cache_turn:
                    path = self._patiently(partial(self._cache.get, member.sha256, download), heartbeat)
                    folder.note_operators(index, check_model(path, member.metadata))
                    folder.member(index).hardlink_to(path)
        for name, ref in refs.items():
            target = folder.candidates / name
            if not target.exists():
                self._patiently(partial(self._hub.fetch_job_file, task.job.id, name, ref, target, count), heartbeat)

    def _patiently(self, fetch: Callable[[], _T], heartbeat: Heartbeat) -> _T:
        deadline = time.monotonic() + _FETCH_SECONDS
        failures = 0
        while True:
            check(self._stop, heartbeat)
            try:
                return fetch()
            except Unavailable:
                failures += 1
                if time.monotonic() > deadline:
                    raise
                self._stop.wait(back_off(failures))

    def prune(self) -> None:
        """Make the cache small enough again."""
        with self._cache_turn:
            self._cache.prune()

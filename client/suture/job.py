"""A stitch job: follow it, wait for it with a progress bar, cancel it, read its report."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from suture.errors import Unavailable
from suture.http import Connection, pause, segment
from suture.listing import html_table
from suture.responses import Event, JobStatus, TaskStatus, read_report
from suture_contract.documents import Report
from suture_contract.errors import Cancelled, SutureError
from suture_contract.exit_codes import ExitCode
from suture_contract.failures import meaning

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_HELD = 20  # seconds the hub may hold back its answer until something happens
_OUTAGE = 600  # seconds without any answer after which waiting ends: a hub may restart meanwhile


class JobFailed(SutureError):
    """The job ended without a result."""

    exit_code = ExitCode.JOB


class Job:
    """One job at the hub. It goes on when this process ends; `Hub.job(id)` finds it again."""

    def __init__(self, connection: Connection, status: JobStatus) -> None:
        self._connection = connection
        self._path = f"/v1/jobs/{segment(status.id)}"
        self.id = status.id
        self.status = status

    def __repr__(self) -> str:
        return f"Job({self.id!r}, {self.status.state})"

    def _repr_html_(self) -> str:
        status = self.status
        rows = [
            {
                "task": task.kind,
                "at": task.party,
                "state": task.state,
                "progress": _note(task) if not status.ended else "",
                "reason": task.reason,
            }
            for task in status.tasks
        ]
        head = Markup("<p>job {} of {}: <strong>{}</strong></p>").format(status.id, status.requester, status.state)
        return str(head) + html_table(rows)

    def refresh(self) -> JobStatus:
        """Ask the hub how the job is now."""
        self.status = JobStatus.of(self._connection.get(self._path), self._path)
        return self.status

    def wait(
        self,
        timeout: float | None = None,
        *,
        progress: bool = True,
        console: Console | None = None,
        callback: Callable[[JobStatus], object] | None = None,
    ) -> JobStatus:
        """Wait until the job has ended, with a bar for each task, and return its final status.

        `callback` is called with every status on the way; what it raises ends the waiting, not the job. In a notebook
        or a service, `await job` waits without blocking others.

        Raises `JobFailed` if it failed, `Cancelled` if it was cancelled, and `SutureError` `job.timeout` after
        `timeout` seconds (None: as long as its parties may take to answer). The job itself goes on then.
        """
        if progress:
            from rich.console import Console as RichConsole

            bars = _Bars(console or RichConsole(stderr=True))
            with bars.progress:
                self._follow(timeout, bars, callback)
        else:
            self._follow(timeout, None, callback)
        return self._outcome()

    def __await__(self) -> Generator[Any, None, JobStatus]:
        """Wait in a thread, without bars; when the awaiting task is cancelled, the job goes on."""
        import asyncio  # slow to import, and for this alone

        stopped = threading.Event()

        def check(_: JobStatus) -> None:
            if stopped.is_set():
                raise Cancelled("nobody waits any more")

        async def waited() -> JobStatus:
            try:
                return await asyncio.to_thread(self.wait, progress=False, callback=check)
            finally:
                stopped.set()

        return waited().__await__()

    def events(self, after: int = 0) -> Iterator[Event]:
        """Yield what happened since event `after`, then what happens, until the job has ended."""
        while True:
            # The state is asked first: an event of the end that comes between the two is then seen in the next round.
            ended = self.refresh().ended
            batch, after = self._happened(after, 0 if ended else _HELD)
            yield from batch
            if ended and not batch:
                return

    def cancel(self) -> JobStatus:
        """Ask the hub to end the job; its sites stop at their next heartbeat."""
        answer = self._connection.post(f"{self._path}/cancel", idempotent=True)
        if answer is not None:
            self.status = JobStatus.of(answer, self._path)
        return self.status

    def retry(self) -> JobStatus:
        """Have what failed done again, or those asked again that a partial job lacks; `Conflict` for another job."""
        answer = self._connection.post(f"{self._path}/retry", idempotent=True)
        self.status = JobStatus.of(answer, self._path)
        return self.status

    def report(self) -> Report:
        """Return the party report of a job that has ended."""
        path = f"{self._path}/report"
        return read_report(json.dumps(self._connection.get(path)), where=path)

    def _follow(
        self, timeout: float | None, bars: _Bars | None, callback: Callable[[JobStatus], object] | None = None
    ) -> None:
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        after, failures, answered = 0, 0, time.monotonic()
        while True:
            left = min(_HELD, deadline - time.monotonic())
            try:
                status = self.refresh()
                if bars is not None:
                    bars.show(status)
                if callback is not None:
                    callback(status)
                if status.ended:
                    return
                if left <= 0:
                    raise SutureError(
                        "job.timeout",
                        f"the job has not ended after {timeout:g} s; it goes on",
                        where=self.id,
                        hint=f"wait on with `suture jobs wait {self.id}`",
                    )
                asked = time.monotonic()
                after = self._happened(after, left)[1]
                # Many small events, or a hub that does not hold its answer, must not become a stream of requests.
                time.sleep(max(0.0, min(left, 0.3) - (time.monotonic() - asked)))
                failures, answered = 0, time.monotonic()
            except Unavailable:
                failures += 1
                if left <= 0 or time.monotonic() - answered > _OUTAGE:
                    raise
                time.sleep(min(pause(failures), left))

    def _happened(self, after: int, wait: float) -> tuple[list[Event], int]:
        path = f"{self._path}/events"
        answer = self._connection.request("GET", path, params={"after": after, "wait": max(0, round(wait))}, wait=wait)
        batch = [Event.of(item, path) for item in answer["items"]]
        return batch, max([after, *(event.seq for event in batch)])

    def _outcome(self) -> JobStatus:
        status = self.status
        if status.state == "cancelled":
            raise Cancelled(f"job {self.id} was cancelled")
        if status.state == "failed":
            code = status.error.code if status.error is not None else "job.failed"
            reference = status.error.correlation_id if status.error is not None else None
            text, hint = meaning(code, reference, self.id, [member.repo for member in status.models])
            ended = ("failed", "declined", "expired")
            reasons = [f"{task.kind} at {task.party}: {task.reason}" for task in status.tasks if task.state in ended]
            raise JobFailed(code, f"{'; '.join(reasons) or 'the job failed'}: {text}", where=self.id, hint=hint)
        return status


class _Bars:
    """One progress bar per task of the job."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.progress: Progress = Progress(
            TextColumn("  {task.description:<28}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._bars: dict[str, TaskID] = {}

    def show(self, status: JobStatus) -> None:
        for task in status.tasks:
            if task.id not in self._bars:
                self._bars[task.id] = self.progress.add_task(f"{task.kind} at {task.party}", total=None, note="")
            bar = self._bars[task.id]
            self.progress.update(bar, note=_note(task))
            if task.state == "done":
                self.progress.update(bar, total=1, completed=1)
                self.progress.stop_task(bar)
            elif task.progress is not None and task.progress.total > 0:
                self.progress.update(bar, total=task.progress.total, completed=task.progress.done)


def _note(task: TaskStatus) -> str:
    if task.waits is not None:
        return str(task.waits)
    if task.progress is None or task.state not in ("leased", "running"):
        return task.state
    left = task.progress.seconds_left
    return task.progress.step + (f", {left:.0f} s left" if left is not None else "")

"""`suture site status`."""

from __future__ import annotations

import typer

from suture_contract.console.terminal import Format, FormatOption, print_json, print_table, prints
from suture_contract.console.terminal import console as terminal
from suture_worker.commands.config import HERE, ConfigArgument, load
from suture_worker.status import SiteStatus, SiteTask

_GIB = 2**30


@prints(SiteStatus)
def status(path: ConfigArgument = HERE, format: FormatOption = Format.text) -> None:
    """Show what the site does just now.

    Agent, queue, workers on all machines, tasks with their step and the time that it still takes, disk, and when the
    hub last answered. Ends with 5 when something keeps the site from working.

    \b
    Example:
      suture site status site.toml
    """
    from suture_worker.status import site_status

    now = site_status(load(path))
    if format is Format.json:
        print_json(now)
    else:
        print_table(("what", "is"), _parts(now), empty="", prose=("is",))
        workers = [
            (worker.host, worker.pid, ", ".join(worker.devices), f"{worker.since:%Y-%m-%d %H:%M} UTC")
            for worker in now.workers
        ]
        terminal.print()
        print_table(("worker on", "process", "devices", "since"), workers, empty="no worker runs")
        terminal.print()
        tasks = [(t.kind, t.state, _step(t), _left(t), t.requester, t.job) for t in now.tasks]
        print_table(("task", "state", "step", "time left", "asked by", "job"), tasks, empty="no task is here")
    if not now.working:
        raise typer.Exit(5)


def _parts(now: SiteStatus) -> list[tuple[str, str]]:
    agent, queue = now.agent, now.queue
    contact = f"{(now.at - agent.last_contact).total_seconds():.0f} s ago" if agent.last_contact else "never"
    rows = [
        ("agent", "running" if agent.running else "not running"),
        ("last contact with the hub", contact),
        ("queue", f"{queue.version}, {queue.waiting} waiting" if queue.answers else str(queue.problem)),
        ("for a person", f"{now.approvals} to approve, {now.releases} to release"),
        ("disk", f"{now.free_bytes / _GIB:.1f} of {now.total_bytes / _GIB:.1f} GiB are free"),
    ]
    return [*rows, *([("nothing is leased", agent.problem)] if agent.problem else [])]


def _step(task: SiteTask) -> str:
    return f"{task.step} {task.done}/{task.total}" if task.step else ""


def _left(task: SiteTask) -> str:
    return "" if task.seconds_left is None else f"{task.seconds_left:.0f} s"

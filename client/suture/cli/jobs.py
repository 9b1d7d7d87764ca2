"""Commands about jobs: stitch, and jobs list, show, wait, cancel, retry."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from suture.hub import Hub
from suture.job import Job
from suture.responses import JobState, JobStatus, TaskStatus
from suture_contract.console.terminal import Format, FormatOption, console, notes, print_json, print_table, prints
from suture_contract.failures import meaning
from suture_contract.fit_options import FitOptions

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="the job's id, job_…")]
_OPTIONS = ", ".join(FitOptions.model_fields)
TimeoutOption = Annotated[float | None, typer.Option(help="stop waiting after so many seconds; the job goes on")]


@prints(JobStatus)
def stitch(
    models: Annotated[
        list[str], typer.Argument(metavar="PARTY/NAME...", help="two models or more; @ID for a revision")
    ],
    dataset: Annotated[str, typer.Option(help="the name your own site gave the dataset to fit on")],
    evaluate_at: Annotated[
        list[str] | None, typer.Option(metavar="PARTY", help="a party to evaluate on its own data; repeatable")
    ] = None,
    contribute_from: Annotated[
        list[str] | None,
        typer.Option(metavar="PARTY", help="a party to contribute moments of its features to the fit; repeatable"),
    ] = None,
    publish_as: Annotated[str | None, typer.Option(metavar="NAME", help="the result's name under your party")] = None,
    evaluate_within: Annotated[int, typer.Option(metavar="SECONDS", help="how long the others may take")] = 86400,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help=f"an option of the fit: {_OPTIONS}; repeatable"),
    ] = None,
    wait: Annotated[bool, typer.Option(help="wait for the end; otherwise print the job's id and return")] = True,
    timeout: TimeoutOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Ask for a stitched ensemble of several models.

    It is fitted at your own site and evaluated at yours and at those of the parties you name; only numbers leave them.
    A party that contributes lets out sums over its samples before the fit, as far as its site allows that.

    \b
    Examples:
      suture stitch north/digits south/digits --dataset digits --evaluate-at south
      suture stitch north/digits south/digits --dataset digits --evaluate-at south --contribute-from south
      suture stitch a/m b/m --dataset scans --publish-as joint --no-wait --format json
    """
    options = FitOptions.read(dict(_key_value(text) for text in option or ()))
    with Hub() as hub:
        job = hub.stitch(
            models,
            dataset,
            evaluate_at or (),
            contribute_from=contribute_from or (),
            publish_as=publish_as,
            evaluate_within=evaluate_within,
            **options.stated(),
        )
        if not wait:
            _show(job.status, format)
            if format is Format.text:
                notes.print(_who_reads(job.status))
            return
        notes.print(_who_reads(job.status))
        notes.print(f"{job.id}: on this machine Ctrl-C only ends the waiting")
        _finish(job, timeout, format)


@prints(list[JobStatus])
def list_jobs(
    state: Annotated[JobState | None, typer.Option(help="only jobs in this state")] = None,
    limit: Annotated[int, typer.Option(min=1, help="how many of the newest")] = 50,
    format: FormatOption = Format.text,
) -> None:
    """List your party's jobs, and those it takes part in, newest first.

    \b
    Examples:
      suture jobs list
      suture jobs list --state failed --format json
    """
    with Hub() as hub:
        jobs = hub.jobs(state, limit=limit)
    if format is Format.json:
        print_json(jobs)
        return
    rows = [
        (
            job.id,
            job.requester,
            job.state,
            ", ".join(member.repo for member in job.models),
            job.dataset,
            job.result.repo if job.result is not None else "",
            f"{job.created_at:%Y-%m-%d %H:%M}",
        )
        for job in jobs
    ]
    print_table(
        ("job", "asked by", "state", "models", "dataset", "result", "created (UTC)"),
        rows,
        empty="no jobs",
        prose=("models",),
    )


@prints(JobStatus)
def show(job: JobArgument, format: FormatOption = Format.text) -> None:
    """Show a job with its tasks.

    \b
    Example:
      suture jobs show job_1f2e3d
    """
    with Hub() as hub:
        _show(hub.job(job).status, format)


@prints(JobStatus)
def wait(job: JobArgument, timeout: TimeoutOption = None, format: FormatOption = Format.text) -> None:
    """Wait until a job has ended.

    \b
    Example:
      suture jobs wait job_1f2e3d --timeout 3600
    """
    with Hub() as hub:
        _finish(hub.job(job), timeout, format)


@prints(JobStatus)
def cancel(job: JobArgument, format: FormatOption = Format.text) -> None:
    """Cancel a job; the sites working on it stop.

    \b
    Example:
      suture jobs cancel job_1f2e3d
    """
    with Hub() as hub:
        _show(hub.job(job).cancel(), format)


@prints(JobStatus)
def retry(job: JobArgument, format: FormatOption = Format.text) -> None:
    """Try a failed job again, or ask those again that a partial one lacks. Only what is missing is done.

    \b
    Example:
      suture jobs retry job_1f2e3d
    """
    with Hub() as hub:
        _show(hub.job(job).retry(), format)


def _finish(job: Job, timeout: float | None, format: Format) -> None:
    status = job.wait(timeout, progress=format is Format.text, console=notes)
    _show(status, format)
    if format is Format.text and status.result is not None:
        repo = status.result.repo
        notes.print(f"next:  suture report {repo}\n       suture pull {repo}")


def _show(job: JobStatus, format: Format) -> None:
    if format is Format.json:
        print_json(job)
        return
    console.print(f"{job.id}  {job.state}  created {_ago(job.created_at)} by {job.requester}")
    console.print("models   " + ", ".join(f"{member.repo}@{member.revision[:10]}" for member in job.models))
    console.print(f"dataset  {job.dataset}")
    if job.tasks:
        rows = [(task.kind, task.party, task.state, _progress(task), _why(task)) for task in job.tasks]
        print_table(("task", "party", "state", "progress", "why"), rows, empty="", prose=("progress", "why"))
    if job.still_to_be_asked:
        console.print(f"to ask   {', '.join(job.still_to_be_asked)}: to evaluate, once the fit is there")
    for missing in job.missing:
        console.print(f"missing  {missing.party}: {missing.reason.replace('_', ' ')}")
    for result in job.results or ((job.result,) if job.result is not None else ()):
        version = f" (version {result.version} of the report)" if len(job.results) > 1 else ""
        console.print(f"result   {result.repo}@{result.revision}{version}")
    if job.result is not None:
        console.print(f"report   suture report {job.id}")
        console.print(f"         {_who_reads(job)}")
    if job.state == "partial" and any(missing.reason in ("failed", "no_answer") for missing in job.missing):
        console.print(f"next     suture jobs retry {job.id}  asks those again that failed or did not answer")
    if job.error is not None:
        text, hint = meaning(job.error.code, job.error.correlation_id, job.id, [member.repo for member in job.models])
        console.print(f"error    {job.error.code}: {text}")
        if job.error.party is not None:
            at = job.error.party + (f", site {job.error.site}" if job.error.site else "")
            console.print(f"where    {job.error.task or 'task'} at {at}")
        if job.error.correlation_id:
            console.print(f"id       {job.error.correlation_id}")
        console.print(f"next     {hint}")


def _who_reads(job: JobStatus) -> str:
    """Say who will see what of a job's result."""
    others = [party for party in job.report_for if party != job.requester]
    model = f"{job.publish_as or 'the result'} is readable by {job.requester} alone until it is shared (suture share)"
    return f"{model}; its report also by {', '.join(others)}" if others else model


def _why(task: TaskStatus) -> str:
    return str(task.waits) if task.waits is not None else task.reason or ""


def _progress(task: Any) -> str:
    if task.progress is None:
        return ""
    if task.progress.total == 0:
        return str(task.progress.step)
    return f"{task.progress.step} {task.progress.done}/{task.progress.total}"


def _ago(moment: datetime) -> str:
    seconds = max(0, int((datetime.now(UTC) - moment.astimezone(UTC)).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _key_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise typer.BadParameter("write it as KEY=VALUE", param_hint="--option")
    if key == "metrics":  # names, which are no JSON
        return key, [name.strip() for name in value.split(",")]
    for text in (value, f"[{value}]") if "," in value else (value,):
        with contextlib.suppress(ValueError):
            return key, json.loads(text)
    return key, value

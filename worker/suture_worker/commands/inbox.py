"""`suture site inbox`: what a person decides before it is done."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from suture_contract.console.terminal import Format, FormatOption, console, notes, print_json, print_table, prints
from suture_worker.commands.config import HERE, ConfigArgument, ReasonOption, TaskArgument, load, size
from suture_worker.rules.inbox import Inbox, Request, Standing

if TYPE_CHECKING:
    from pathlib import Path

    from suture_worker.rules.inbox import AskedModel, Estimate


class Reply(StrEnum):
    """What the requester may be told instead of nothing."""

    no_agreement = "no_agreement"
    not_now = "not_now"
    unsuitable_models = "unsuitable_models"
    unsuitable_data = "unsuitable_data"


TellOption = Annotated[
    Reply | None,
    typer.Option("--tell", help="what the requester is told; without it, that the policy does not allow it"),
]


@prints(list[Request])
def list_requests(path: ConfigArgument = HERE, format: FormatOption = Format.text) -> None:
    """List what waits for a decision, oldest first.

    \b
    Example:
      suture site inbox list
    """
    inbox = _inbox(path)
    undecided = [request for request in inbox.requests() if inbox.decided(request) is None]
    if format is Format.json:
        print_json(undecided)
        return
    rows = [
        (
            request.task,
            request.party,
            request.action,
            request.dataset,
            ", ".join(model.repo for model in request.models),
            f"{request.asked_at:%Y-%m-%d %H:%M}",
        )
        for request in undecided
    ]
    print_table(
        ("task", "party", "asks to", "dataset", "models", "since (UTC)"),
        rows,
        empty="nothing is asked",
        prose=("models",),
    )


@prints(Request)
def show(task: TaskArgument, path: ConfigArgument = HERE, format: FormatOption = Format.text) -> None:
    """Show one request: who asks, which models, what would leave; what runs and what it takes.

    \b
    Example:
      suture site inbox show task_0c9d2e3a48576b1f
    """
    site = load(path)
    request = Inbox(site.state / "inbox").request(task)
    if format is Format.json:
        print_json(request)
        return
    console.print(f"{request.party} asks to {request.action} with {request.dataset}")
    console.print(f"job         {request.job}, asked {request.asked_at:%Y-%m-%d %H:%M} UTC")
    own = site.site.party
    rows = [
        (model.repo, model.party, model.revision[:12], size(model.size), _signer(model, own), model.sha256)
        for model in request.models
    ]
    columns = ("model", "party", "revision", "size", "signed by", "sha256")
    print_table(columns, rows, empty="", spare=("sha256",))
    for line in request.older:
        console.print(f"older       {line}")
    if request.candidates is not None:
        console.print(f"runs        {request.candidates} candidates of these models")
    if request.options:
        console.print(f"options     {json.dumps(request.options)}")
    console.print(f"takes       {_takes(request.estimate)}")
    for line in request.leaves:
        console.print(f"would leave {line}")


def approve(
    task: TaskArgument,
    path: ConfigArgument = HERE,
    reason: ReasonOption = None,
    remember: Annotated[
        int | None,
        typer.Option(
            metavar="DAYS", min=1, max=366, help="approve the same party, action and dataset for so many days"
        ),
    ] = None,
) -> None:
    """Let it be done; the site's other limits still hold.

    \b
    Examples:
      suture site inbox approve task_0c9d2e3a48576b1f
      suture site inbox approve task_0c9d2e3a48576b1f --remember 30
    """
    inbox = _inbox(path)
    inbox.decide(inbox.request(task), approved=True, reason=reason, remember_days=remember)
    notes.print(f"approved {task}; the agent goes on with it when a device is free")


def decline(
    task: TaskArgument, path: ConfigArgument = HERE, reason: ReasonOption = None, tell: TellOption = None
) -> None:
    """Do not let it be done.

    \b
    Examples:
      suture site inbox decline task_0c9d2e3a48576b1f --reason "no contract yet"
      suture site inbox decline task_0c9d2e3a48576b1f --tell no_agreement
    """
    inbox = _inbox(path)
    inbox.decide(inbox.request(task), approved=False, reason=reason, reply=tell.value if tell is not None else None)
    notes.print(f"declined {task}")


@prints(list[Standing])
def standing(path: ConfigArgument = HERE, format: FormatOption = Format.text) -> None:
    """List the approvals that hold for a while.

    \b
    Example:
      suture site inbox standing
    """
    approvals = [rule for rule in _inbox(path).standing() if datetime.now(UTC) < rule.until]
    if format is Format.json:
        print_json(approvals)
        return
    rows = [(rule.party, rule.action, rule.dataset, f"{rule.until:%Y-%m-%d %H:%M}", rule.by) for rule in approvals]
    print_table(("party", "may", "dataset", "until (UTC)", "approved by"), rows, empty="none")


def forget(party: str, action: str, dataset: str, path: ConfigArgument = HERE) -> None:
    """Withdraw a standing approval.

    \b
    Example:
      suture site inbox forget south evaluate frames
    """
    _inbox(path).forget(party, action, dataset)
    notes.print(f"{party} is asked about again")


def _inbox(path: Path) -> Inbox:
    return Inbox(load(path).state / "inbox")


def _signer(model: AskedModel, own: str | None) -> str:
    return model.signed_by or ("own party" if model.party == own else "no known key")


def _takes(estimate: Estimate | None) -> str:
    if estimate is None:
        return "cannot be told before the data are seen"
    gigaflops = estimate.flops_per_sample / 1e9
    return (
        f"{gigaflops:.3g} GFLOPs per sample and pass, {size(estimate.peak_bytes)} of memory for two samples, "
        f"about {estimate.seconds_per_1000:.2g} s per 1000 samples and pass on this machine's processor"
    )

"""`suture site outbox`: what a person lets out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from suture_contract.console.terminal import Format, FormatOption, console, notes, print_json, print_table, prints
from suture_worker.commands.config import HERE, ConfigArgument, ReasonOption, TaskArgument, load, size
from suture_worker.commands.inbox import TellOption
from suture_worker.egress.held import Held, Manifest

if TYPE_CHECKING:
    from pathlib import Path


@prints(list[Manifest])
def list_held(path: ConfigArgument = HERE, format: FormatOption = Format.text) -> None:
    """List the results that are held, oldest first.

    \b
    Example:
      suture site outbox list
    """
    held = _held(path)
    found = [manifest for manifest in held.manifests() if held.verdict(manifest.task) is None]
    if format is Format.json:
        print_json(found)
        return
    rows = [
        (
            manifest.task,
            manifest.party,
            manifest.action,
            ", ".join(f"{part.name or 'document'} ({size(part.size)})" for part in manifest.parts),
            f"{manifest.held_at:%Y-%m-%d %H:%M}",
        )
        for manifest in found
    ]
    print_table(
        ("task", "for", "action", "would leave", "since (UTC)"), rows, empty="nothing is held", prose=("would leave",)
    )


@prints(Manifest)
def show(
    task: TaskArgument,
    path: ConfigArgument = HERE,
    part: Annotated[int | None, typer.Option(min=0, help="print this part byte for byte, and nothing else")] = None,
    format: FormatOption = Format.text,
) -> None:
    """Show what would leave, byte for byte.

    \b
    Examples:
      suture site outbox show task_0c9d2e3a48576b1f
      suture site outbox show task_0c9d2e3a48576b1f --part 1 > stitches.safetensors
    """
    held = _held(path)
    manifest = held.manifest(task)
    if part is not None:
        if part >= len(manifest.parts):
            raise typer.BadParameter(f"there are {len(manifest.parts)} parts, counted from 0", param_hint="--part")
        sys.stdout.buffer.write(held.part(manifest, part).read_bytes())
        return
    if format is Format.json:
        print_json(manifest)
        return
    console.print(f"for {manifest.party}, job {manifest.job}, held since {manifest.held_at:%Y-%m-%d %H:%M} UTC")
    for number, item in enumerate(manifest.parts):
        console.print(f"part {number}  {item.name or 'document'}  {item.size} bytes  sha256 {item.sha256}")
        if item.name is None or item.name.endswith(".json"):
            console.print(held.part(manifest, number).read_text(encoding="utf-8"))


def release(task: TaskArgument, path: ConfigArgument = HERE, reason: ReasonOption = None) -> None:
    """Let out exactly what `show` shows.

    \b
    Example:
      suture site outbox release task_0c9d2e3a48576b1f
    """
    held = _held(path)
    held.decide(held.manifest(task), released=True, reason=reason)
    notes.print(f"released {task}; the agent sends it now")


def refuse(
    task: TaskArgument, path: ConfigArgument = HERE, reason: ReasonOption = None, tell: TellOption = None
) -> None:
    """Let nothing out; the requester is told that the policy does not allow it.

    \b
    Example:
      suture site outbox refuse task_0c9d2e3a48576b1f --reason "too few of one class"
    """
    held = _held(path)
    held.decide(held.manifest(task), released=False, reason=reason, told=tell.value if tell is not None else None)
    notes.print(f"refused {task}")


def _held(path: Path) -> Held:
    return Held(load(path).state / "outbox" / "held")

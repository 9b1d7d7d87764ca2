"""`suture site outbox`: what a person lets out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suture_contract.console.terminal import Format, FormatOption, console, notes, print_json, print_table, prints
from suture_worker.commands.config import HERE, ConfigArgument, ReasonOption, TaskArgument, load, size
from suture_worker.commands.inbox import TellOption
from suture_worker.egress.held import Held, Manifest
from suture_worker.egress.shown import UNNAMED, TensorRange, assumed, held_result, withheld

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
    undecided = [manifest for manifest in held.manifests() if held.verdict(manifest.task) is None]
    if format is Format.json:
        print_json(undecided)
        return
    rows = [
        (
            manifest.task,
            manifest.party,
            manifest.action,
            ", ".join(f"{part.name or 'document'} ({size(part.size)})" for part in manifest.parts),
            _minute(manifest),
        )
        for manifest in undecided
    ]
    print_table(
        ("task", "for", "action", "would leave", "since (UTC)"), rows, empty="nothing is held", prose=("would leave",)
    )


class HeldShown(Manifest):
    """What would leave for a task: the documents as they would leave, and of each tensor its size and range."""

    #: Whom the site trusts, or what noise promises.
    assumed: str
    #: By the name of its file; `document` is the one that ends the task.
    documents: dict[str, dict[str, Any]]
    tensors: tuple[TensorRange, ...]
    #: What is kept back, and why.
    withheld: tuple[str, ...]


@prints(HeldShown)
def show(
    task: TaskArgument,
    path: ConfigArgument = HERE,
    part: Annotated[int | None, typer.Option(min=0, help="print this part byte for byte, and nothing else")] = None,
    format: FormatOption = Format.text,
) -> None:
    """Show what would leave, and what was kept back.

    Documents are shown as tables, stitches and moments by their sizes and ranges. `--part` has the very bytes.

    \b
    Examples:
      suture site outbox show task_0c9d2e3a48576b1f
      suture site outbox show task_0c9d2e3a48576b1f --format json
      suture site outbox show task_0c9d2e3a48576b1f --part 1 > stitches.safetensors
    """
    config = load(path)
    held = Held(config.state / "outbox" / "held")
    manifest = held.manifest(task)
    if part is not None:
        if part >= len(manifest.parts):
            raise typer.BadParameter(f"there are {len(manifest.parts)} parts, counted from 0", param_hint="--part")
        sys.stdout.buffer.write(held.part(manifest, part).read_bytes())
        return
    result = held_result(held, manifest, config)
    if format is Format.json:
        print_json(
            HeldShown(
                **dict(manifest),
                assumed=assumed(result.terms, manifest.action),
                documents=dict(result.documents),
                tensors=tuple(result.tensors()),
                withheld=tuple(withheld(result)),
            )
        )
        return
    _say(f"{manifest.action} for {manifest.party}, job {manifest.job}, held since {_minute(manifest)} UTC")
    _say(assumed(result.terms, manifest.action))
    for section in result.task.side.shown(result):
        _say(f"\n{section.title}")
        if section.rows:
            print_table(section.columns, section.rows, empty="", prose=section.prose, spare=section.spare)
        for line in section.notes:
            _say(line)
    if kept_back := withheld(result):
        _say("\nkept back")
        for line in kept_back:
            _say(line)
    _say("\nthe bytes, by --part")
    rows = [(number, item.name or UNNAMED, size(item.size), item.sha256) for number, item in enumerate(manifest.parts)]
    print_table(("part", "name", "size", "sha256"), rows, empty="", spare=("sha256",))


def _say(text: str) -> None:
    """Print prose: at a terminal no wider than that is, in a pipe as one line."""
    console.print(text, soft_wrap=not console.is_terminal)


def _minute(manifest: Manifest) -> str:
    return f"{manifest.held_at:%Y-%m-%d %H:%M}"


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
    held.decide(held.manifest(task), released=False, reason=reason, reply=tell.value if tell is not None else None)
    notes.print(f"refused {task}")


def _held(path: Path) -> Held:
    return Held(load(path).state / "outbox" / "held")

"""`suture site policy`: what the rules of site.toml mean."""

from __future__ import annotations

from enum import StrEnum
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import typer

from suture_contract.console.terminal import Format, FormatOption, console, print_json, prints
from suture_contract.errors import SutureError
from suture_worker.commands.config import HERE, ConfigArgument, load
from suture_worker.compute.checking import check_model
from suture_worker.rules.explain import Explanation
from suture_worker.rules.explain import explain as explained
from suture_worker.rules.policy import Model


class Action(StrEnum):
    """What a party may ask for."""

    fit = "fit"
    evaluate = "evaluate"
    contribute = "contribute"


@prints(Explanation)
def explain(
    party: Annotated[str, typer.Option(help="who would ask")],
    dataset: Annotated[str, typer.Option(help="for which dataset")],
    path: ConfigArgument = HERE,
    action: Annotated[Action, typer.Option(help="for what")] = Action.evaluate,
    model: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="a portable model that would be run; may be repeated")
    ] = None,
    members_from: Annotated[
        list[str] | None, typer.Option(metavar="PARTY", help="whose model would be run; may be repeated")
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Say what would happen if a party asked, and why: which rule, and what is left of this month's budget.

    Ends with 5 when the request would be declined.

    \b
    Examples:
      suture site policy explain --party north --dataset frames
      suture site policy explain --party north --dataset frames --action fit --model out/model.safetensors
    """
    models = [_described(file, owner) for file, owner in zip_longest(model or (), members_from or ())]
    explanation = explained(load(path), party=party, action=action.value, dataset=dataset, models=models)
    if format is Format.json:
        print_json(explanation)
    else:
        console.print(f"{party} asks to {action.value} with {dataset}: {explanation.outcome}")
        for line in explanation.why:
            console.print(f"  {line}")
        if explanation.version is not None:
            console.print(f"  site.toml {explanation.version}: {_in_force(explanation)}")
        if explanation.told is not None:
            console.print(f"the requester sees: {explanation.told}")
    if explanation.outcome == "declined":
        raise typer.Exit(5)


def _described(file: Path | None, party: str | None) -> Model:
    """Return what a rule's limits look at; the file is opened where neither token nor network is."""
    if file is None:
        return Model(party, None)
    if not file.is_file():
        raise SutureError("model.unreadable", "there is no such file", where=str(file))
    return Model(party, file.stat().st_size, check_model(file))


def _in_force(explanation: Explanation) -> str:
    """Say whether a running site goes by the file that was explained."""
    rules = explanation.in_force
    if rules is None:
        return "this site has not run yet"
    same = explanation.version is not None and rules.version.sha256 == explanation.version.sha256
    if same and rules.problem is None:
        return f"in force since {rules.since:%Y-%m-%d %H:%M:%S} UTC"
    went_by = "" if same else f"not yet in force; the site last went by {rules.version}"
    return "; ".join(part for part in (went_by, f"it leases nothing: {rules.problem}" if rules.problem else "") if part)

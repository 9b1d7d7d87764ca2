"""Parties are played on one machine, on their own data: `suture simulate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from suture_contract.errors import Interrupted, SutureError
from suture_contract.files import write_text
from suture_contract.model.metadata import check_name
from suture_contract.own_code import own_line
from suture_contract.report.html import to_html as report_page
from suture_local.study import page, table
from suture_local.study.data import Part, Study
from suture_local.study.play import notes_on, play
from suture_local.study.results import SeedResult
from suture_local.study.run import Setup
from suture_local.study.scores import METRICS
from suture_local.study.summary import Summary, summarise
from suture_local.training import untrained

PAGE, RESULT = "simulation.html", "simulation.json"


def named(texts: Sequence[str]) -> dict[str, Path]:
    """Return the parties' paths by name, from `NAME=PATH` or `PATH`, which is named after its file or folder."""
    parties: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).stem, text
        try:
            check_name(name)
        except ValueError as error:
            raise SutureError("study.party", str(error), where=text, hint="name the party: NAME=PATH") from None
        if name in parties:
            raise SutureError("study.party", f"two parties are called {name}", where=text, hint="name them: NAME=PATH")
        parties[name] = Path(path)
    if len(parties) < 2:
        raise SutureError("study.party", "a simulation needs two parties", hint="give a folder or a table for each")
    return parties


def with_networks(study: Study, build: Callable[[str, tuple[int, ...], int], nn.Module]) -> Study:
    """Return the study with networks that `build(party, input_shape, labels)` makes, untrained.

    `input_shape` is that of one sample, `(C, *spatial)`, and `labels` their number. The same seed gives the same
    weights. Weight and federated averaging use the first party's design. Each network is tried on two samples first.
    Raises `SutureError` `study.network` for what is no network, fails, or gives no output for each label.
    """
    samples = next(iter(study.divide(0).values()))
    input_shape, labels = samples.inputs.shape[1:], len(study.labels)

    def networks(design: int, seed: int) -> nn.Module:
        party = study.parties[design]
        with _as_network_error(f"building the network of {party}"):
            module: object = untrained(lambda: build(party, input_shape, labels), seed)
        if not isinstance(module, nn.Module):
            raise SutureError("study.network", f"for {party} it gave a {type(module).__name__}, no torch.nn.Module")
        return module

    few = Part(torch.from_numpy(samples.inputs[:2].copy()), torch.from_numpy(samples.targets[:2].copy()))
    wanted = (len(few), labels, *(input_shape[1:] if study.task == "segmentation" else ()))
    for design, party in enumerate(study.parties):
        module = networks(design, 0).eval()
        with _as_network_error(f"the network of {party}, given a tensor {(len(few), *input_shape)},"), torch.no_grad():
            output: object = module(few.inputs(slice(None)))
        if not isinstance(output, Tensor) or tuple(output.shape) != wanted:
            what = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise SutureError(
                "study.network",
                f"the network of {party} gives {what}, not logits {wanted}",
                where="--network",
                hint=f"one output for each of the {labels} labels: {', '.join(study.labels[:6])}",
            )
        if (output >= 0).all() and torch.allclose(output.sum(1), torch.ones(()), atol=1e-4):
            raise SutureError(
                "study.network",
                f"the network of {party} gives probabilities; it is trained on logits",
                where="--network",
                hint="leave its last softmax out",
            )
    return replace(study, networks=networks)


@contextmanager
def _as_network_error(what: str) -> Iterator[None]:
    """Tell what a person's own code raises; whatever it is, it stands where it was raised in their file."""
    try:
        yield
    except SutureError:
        raise
    except Exception as error:
        raise SutureError(
            "study.network",
            f"{what} fails: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            where=own_line(error),
            hint="--network MODULE:NAME is a function (party, input_shape, labels) that makes a network for such input",
        ) from error


def simulate(study: Study, setup: Setup, seeds: Sequence[int], out: Path, console: Console) -> Summary:
    """Play `study` and write page, party reports and JSON to the folder `out` after every seed; return the summary.

    The same call goes on where an earlier one was stopped. Raises `SutureError`, `Interrupted` where a person stops it.
    """
    try:
        for results in play(study, setup, seeds, out, console):
            summary = write(study, setup, results, out)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; what is done is in {out}, and the same command goes on from there") from None
    table.show(console, study.name, table.tables(METRICS[study.task], study.parties, summary))
    for line in [*page.sentences(study, summary), *notes_on(study, results)]:
        console.print(f"- {line}", soft_wrap=True, markup=False)
    console.print(f"Look at {out / PAGE}", soft_wrap=True)
    return summary


def write(study: Study, setup: Setup, results: Sequence[SeedResult], out: Path) -> Summary:
    """Write what the seeds gave, and the party reports of the first one."""
    summary, reports = summarise(study.parties, results), results[0].reports
    for party, report in reports.items():
        write_text(out / f"report-{party}.html", report_page(report))
    write_text(out / PAGE, page.to_html(study, results, summary, list(reports)))
    document: Mapping[str, object] = page.to_document(study, setup, results, summary)
    write_text(out / RESULT, json.dumps(document, indent=2) + "\n")
    return summary

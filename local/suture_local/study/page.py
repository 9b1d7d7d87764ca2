"""A study's result as one HTML page without script, and as JSON: pure functions of the results.

The same results give the same bytes: neither holds times.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from suture_contract.report.html import STYLE
from suture_local.study import plots, table
from suture_local.study.data import Study
from suture_local.study.play import notes_on
from suture_local.study.results import SeedResult
from suture_local.study.run import Setup
from suture_local.study.scores import METRICS
from suture_local.study.summary import PLAIN, UNION, RequesterSummary, Summary

SCHEMA = "suture.simulation/1"
SPLITS = ("train", "validation", "test")
#: What each row of the first table is, for who reads it for the first time.
MEANINGS = (
    ("alone", "the party's own model, trained on its own data"),
    ("plain ensemble", "the mean of all models' probabilities, or of their logits"),
    ("distilled", "the party's own design, taught by its own labels and by the plain ensemble"),
    ("weight averaging", "networks of one design, their weights averaged once"),
    ("federated averaging", "a network of one design that all parties train together, averaged again and again"),
    ("FedProx", "the same, each party held close to the common network"),
    ("aggregated outputs (FENS)", "a small network on all models' outputs, trained like that"),
    ("union training", "one network trained on all data in one place: what cannot be had"),
    ("stitched", "what Suture chooses when this party asks"),
)


def to_html(study: Study, results: Sequence[SeedResult], summary: Summary, reports: Sequence[str]) -> str:
    """Return the page; `reports` are the parties of whom a party report lies beside it."""
    first = study.divide(results[0].seed)
    return (
        _environment()
        .get_template("simulation.html.jinja")
        .render(
            style=Markup(STYLE),  # noqa: S704  # of the package
            study=study,
            metric=METRICS[study.task],
            seeds=len(results),
            sizes=[(party, *(int((own.split == split).sum()) for split in SPLITS)) for party, own in first.items()],
            sentences=sentences(study, summary),
            plots=[
                Markup(plots.plot(asked, summary, study.parties, METRICS[study.task]))  # noqa: S704  # escaped there
                for asked in summary.asked
            ],
            tables=table.tables(METRICS[study.task], study.parties, summary),
            meanings=MEANINGS,
            reports=reports,
            notes=notes_on(study, results),
        )
    )


def to_document(study: Study, setup: Setup, results: Sequence[SeedResult], summary: Summary) -> dict[str, Any]:
    """Return everything for a JSON file."""
    return {
        "schema": SCHEMA,
        "settings": {
            "seeds": [result.seed for result in results],
            "epochs": setup.epochs,
            "leave_out": setup.leave_out,
            "fit": setup.options.stated(),
            "device": setup.device.type,
        },
        "versions": {"suture": version("suture"), "torch": str(torch.__version__), "python": platform.python_version()},
        "results": table.document(
            study.task, METRICS[study.task], study.parties, summary, results, notes_on(study, results)
        ),
    }


def sentences(study: Study, summary: Summary) -> list[str]:
    """Return for each party that could ask what stitching would bring it, in words."""
    return [_sentence(study, summary, asked) for asked in summary.asked]


def _sentence(study: Study, summary: Summary, asked: RequesterSummary) -> str:
    at = {row.method: row.parties[asked.requester] for row in summary.rows}
    chosen, own = at[f"stitched: {asked.requester}"], at[f"alone: {asked.requester}"]
    gain = asked.over_own
    return (
        f"{asked.requester}: what it would use reaches {chosen.value:.3f} ({METRICS[study.task]}) on its own test "
        f"data. Its own model reaches {own.value:.3f}: a difference of {gain.value:+.3f} (95 % interval "
        f"{gain.low:+.3f} to {gain.high:+.3f}). The plain ensemble reaches {at[PLAIN].value:.3f}, one model trained on "
        f"all data {at[UNION].value:.3f}."
    ).replace("-", "−")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("suture_local.study"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

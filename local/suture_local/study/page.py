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
from suture_contract.rounding import fixed
from suture_local.study import plots, table
from suture_local.study.data import Study
from suture_local.study.play import notes_on
from suture_local.study.results import LEFT_OUT_PREFIX, SeedResult
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
    ("weight averaging, units aligned", "the same, with every network's units in the order of the first one's"),
    ("federated averaging", "a network of one design that all parties train together, averaged again and again"),
    ("FedProx", "the same, each party held close to the common network"),
    ("aggregated outputs (FENS)", "a small network on all models' outputs, trained like that"),
    ("union training", "one network trained on all data in one place: what cannot be had"),
    ("…, own shares of labels", "the same, with each party's own shares of labels in the place of all parties'"),
    ("stitched", "what Suture chooses when this party asks"),
)

#: The same, where parties are left out.
LEFT_OUT_MEANINGS = (
    ("one of the others' models", "at a party that took no part: the mean over the models of all others"),
    (
        "stitched, own shares of labels",
        "there: what Suture chose for each of the others, with this party's own shares of labels",
    ),
)

#: What the columns of figures are.
MEASURES = (
    ("hypervolume", "how good a method is for all parties at once, in per cent of one network trained on all data"),
    (
        "gap closed",
        "how much of the way from the plain ensemble to one network trained on all data; here is the party that asks. "
        "It says nothing of the party's own model",
    ),
    (
        "front",
        "the hypervolume of all candidates that no other beats everywhere; and without stitches, of those that route",
    ),
)


def to_html(study: Study, results: Sequence[SeedResult], summary: Summary, reports: Sequence[str]) -> str:
    """Return the page; `reports` are the parties of whom a party report lies beside it."""
    first = study.divide(results[0].seed)
    left_out = any(row.method.startswith(LEFT_OUT_PREFIX) for row in summary.rows)
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
            meanings=(*MEANINGS, *(LEFT_OUT_MEANINGS if left_out else ()), *MEASURES),
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
    change, low, high = (fixed(value, 3, sign=True) for value in (gain.value, gain.low, gain.high))
    return (
        f"{asked.requester}: what it would use reaches {fixed(chosen.value, 3)} ({METRICS[study.task]}) on its own "
        f"test data. Its own model reaches {fixed(own.value, 3)}: a difference of {change} (95 % interval {low} to "
        f"{high}). The plain ensemble reaches {fixed(at[PLAIN].value, 3)}, one model trained on all data "
        f"{fixed(at[UNION].value, 3)}."
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

"""A study's summary as Markdown, for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from suture_contract.console.terminal import print_wide
from suture_contract.documents import Interval
from suture_contract.rounding import fixed
from suture_local.study.results import LEFT_OUT_PREFIX, SeedResult
from suture_local.study.summary import UNION, MethodRow, RequesterSummary, Summary

Cells = list[list[str]]


def markdown(
    name: str, metric: str, parties: Sequence[str], summary: Summary, notes: Sequence[str], plots: Sequence[str]
) -> str:
    """Return the whole result as a page."""
    seeds = max(row.seeds for row in summary.rows)
    lines = [
        f"## {name}",
        "",
        f"{metric} on test data, mean over {seeds} seed{'s' if seeds > 1 else ''} with its 95 % interval; "
        "hypervolume in per cent of union training's.",
        "",
    ]
    for index, (title, head, rows) in enumerate([*tables(metric, parties, summary), ("targets", *targets(summary))]):
        lines += [f"{title[0].upper()}{title[1:]}:", ""] if index else []
        lines += [*_markdown_table(head, rows), ""]
    lines += [line for plot in plots for line in (f"![Methods and candidates]({plot})", "")]
    lines += [f"- {note}" for note in notes]
    return "\n".join(lines).rstrip() + "\n"


Titled = tuple[str, list[str], Cells]


def show(console: Console, name: str, titled: Sequence[Titled]) -> None:
    """Print tables."""
    for title, head, rows in titled:
        table = Table(*head, title=f"{name}: {title}", title_justify="left")
        for row in rows:
            style = "red" if row[-1].startswith("missed") else "bold" if row[0].startswith("stitched") else None
            table.add_row(*row, style=style)
        print_wide(table, console)


def tables(metric: str, parties: Sequence[str], summary: Summary) -> list[Titled]:
    """Return all tables but that of the targets, each with its title and head."""
    left_out = [row for row in summary.rows if _is_left_out(row)]
    return [
        (metric, *methods(parties, summary)),
        *([(f"{metric} at a party that took no part", *_left_out(parties, left_out))] if left_out else []),
        *((measure, *besides(measure, parties, summary)) for measure in _besides(summary)),
        ("what stitching did for each requester", *gaps(summary)),
    ]


def document(
    task: str,
    metric: str,
    parties: Sequence[str],
    summary: Summary,
    results: Sequence[SeedResult],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return everything for a JSON file."""
    return {
        "task": task,
        "metric": metric,
        "parties": list(parties),
        "notes": list(notes),
        "methods": [_plain(asdict(row)) for row in summary.rows],
        "asked": [_plain(asdict(asked)) for asked in summary.asked],
        "seeds": [
            {
                "seed": result.seed,
                "methods": {
                    method: {party: float(own.scores.mean()) for party, own in at.items()}
                    for method, at in result.methods.items()
                },
            }
            for result in results
        ],
    }


def seed_notes(results: Sequence[SeedResult]) -> list[str]:
    """Return the seeds' notes, each of them once, with the seeds that it is about where it is not about all."""
    seeds: dict[str, list[str]] = {}
    for result in results:
        for note in dict.fromkeys(result.notes):
            seeds.setdefault(note, []).append(str(result.seed))
    return [
        note if len(own) == len(results) else f"Seed{'s' if len(own) > 1 else ''} {', '.join(own)}: {note}"
        for note, own in seeds.items()
    ]


def methods(parties: Sequence[str], summary: Summary) -> tuple[list[str], Cells]:
    """Return head and rows of the reference table."""
    union = next(row.hypervolume for row in summary.rows if row.method == UNION)
    head = ["method", *parties, "mean", "hypervolume"]
    return head, [
        [
            row.method,
            *(_interval(row.parties[party]) for party in parties),
            fixed(row.mean.value, 3),
            _share(row, union),
        ]
        for row in summary.rows
        if not _is_left_out(row)
    ]


def _is_left_out(row: MethodRow) -> bool:
    return row.method.startswith(LEFT_OUT_PREFIX)


def _left_out(parties: Sequence[str], rows: Sequence[MethodRow]) -> tuple[list[str], Cells]:
    """Return head and rows of what the others' models are worth at each party when it takes no part."""
    return ["without the party's model and data", *parties, "mean"], [
        [
            row.method.removeprefix(LEFT_OUT_PREFIX),
            *(_interval(row.parties[party]) for party in parties),
            fixed(row.mean.value, 3),
        ]
        for row in rows
    ]


def besides(measure: str, parties: Sequence[str], summary: Summary) -> tuple[list[str], Cells]:
    """Return head and rows of another metric."""
    return ["method", *parties], [
        [row.method, *(_number(row.besides[measure].get(party)) for party in parties)]
        for row in summary.rows
        if measure in row.besides
    ]


def gaps(summary: Summary) -> tuple[list[str], Cells]:
    """Return how much of the gap between plain ensemble and union training each requester's choice closes."""
    head = ["requester", "gap closed here", "at the others", "at all", "front", "front without stitches", "chosen"]
    return head, [
        [
            asked.requester,
            *(_percent(gap) for gap in (asked.gap_here, asked.gap_there, asked.gap_all)),
            _percent(asked.front / asked.union if asked.union else None),
            _percent(asked.front_without / asked.union if asked.union else None),
            _choices(asked),
        ]
        for asked in summary.asked
    ]


def targets(summary: Summary) -> tuple[list[str], Cells]:
    """Return each target and whether it is met."""
    return ["requester", "target", "by", "result"], [
        [
            asked.requester,
            target.text,
            f"{fixed(target.value, 1, percent=True)}%" if target.interval is None else _signed(target.interval),
            target.status,
        ]
        for asked in summary.asked
        for target in asked.targets
    ]


def _besides(summary: Summary) -> list[str]:
    return list(summary.rows[0].besides)


def _choices(asked: RequesterSummary) -> str:
    """Return what kinds of candidates were chosen, and how often."""
    kinds = [
        " ".join(word for word, holds in (("gated", fit.gated), ("refined", fit.refined), (fit.kind, True)) if holds)
        for fit in asked.fits
    ]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def _markdown_table(head: Sequence[str], rows: Cells) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(_strong(row)) + " |" for row in rows),
    ]


def _strong(row: Sequence[str]) -> list[str]:
    return [f"**{row[0]}**", *row[1:]] if row[0].startswith("stitched") else list(row)


def _interval(interval: Interval) -> str:
    return f"{fixed(interval.value, 3)} ({fixed(interval.low, 3)}–{fixed(interval.high, 3)})"


def _signed(interval: Interval) -> str:
    value, low, high = (fixed(at, 3, sign=True) for at in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})".replace("-", "−")


def _share(row: MethodRow, union: float) -> str:
    return _percent(row.hypervolume / union if union else None)


def _percent(share: float | None) -> str:
    return "no gap" if share is None else f"{fixed(share, 0, percent=True)} %".replace("-", "−")


def _number(value: float | None) -> str:
    return "–" if value is None else fixed(value, 3)


def _plain(value: Any) -> Any:
    """Return documents and arrays inside as plain JSON values."""
    if isinstance(value, Interval):
        return value.model_dump()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value

"""The party report as a table for the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.measure import Measurement
from rich.text import Text

from suture_contract.console.tables import layout
from suture_contract.documents import Interval, Report
from suture_contract.report.assumed import assumed
from suture_contract.report.clinical import clinical_words
from suture_contract.report.gains import advice, decision, headline, remarks, sentence
from suture_contract.report.rows import complete, name_of, rows_of
from suture_contract.report.trust import training_words, warnings
from suture_contract.report.words import bracketed, contributed, samples

_STYLES = {"adopt": "green", "care": "yellow", "reject": "red"}


def report_table(report: Report) -> Group:
    """Return what was chosen and what it gains, the table of all models, and what who is told not to adopt can do."""
    report = complete(report)
    parties = sorted(report.parties, key=lambda party: (party != report.requester, party))
    lines = [Text(headline(report), style="bold")]
    if report.requester in report.parties:
        lines.append(Text(" ".join([sentence(report, report.requester), *remarks(report, report.requester)])))
    for party in parties:
        lines += [Text(f"warning: {warning}", style="yellow") for warning in warnings(report.parties[party], party)]
        if trained := training_words(report.parties[party], party):
            lines.append(Text(trained))
    for what, command in filter(None, (advice(report, party) for party in parties)):
        lines += [Text(what), Text(f"  {command}", no_wrap=True, overflow="ignore")]
    missing = [
        Text(f"missing: {absent.party} ({absent.reason.replace('_', ' ')})", style="yellow")
        for absent in report.missing
    ]
    contributions = [
        Text(f"{contribution.party} {contributed(contribution)}") for contribution in report.contributions or ()
    ]
    clinical = [Text(words) for party in parties for words in clinical_words(report.parties[party], party)]
    rests_on = [Text(words) for words in assumed(report)]
    return Group(*lines[:2], _Table(report, parties), *missing, *clinical, *contributions, *rests_on, *lines[2:])


class _Table:
    """A row per model, the chosen one first, and a column per party: value with 95 % interval, n and verdict."""

    def __init__(self, report: Report, parties: Sequence[str]) -> None:
        party_reports = [report.parties[party] for party in parties]
        kinds = rows_of(report, parties)
        verdicts = [decision(report, party).lower() for party in parties]
        self._title = f"party report of {report.lineage.job}"
        self._columns = ["model", *(_heading(report, party) for party in parties)]
        self._rows = [
            [
                "chosen" if row == "chosen" else name_of(row, report),
                *(_value(party_report.rows.get(row)) for party_report in party_reports),
            ]
            for row in kinds
        ]
        self._rows += [
            ["test samples (n)", *(samples(party_report) for party_report in party_reports)],
            ["verdict", *verdicts],
        ]
        self._bold = [index for index, row in enumerate(kinds) if row == "chosen"]
        self._colours = {
            words: _STYLES[party_report.verdict] for words, party_report in zip(verdicts, party_reports, strict=True)
        }

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        table = layout(self._columns, self._rows, width=sys.maxsize)
        return Measurement(1, max(map(cell_len, [self._title, *table.heading, *table.lines])))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = layout(self._columns, self._rows, width=options.max_width)
        yield _whole(self._title, "italic")
        for line in table.heading:
            yield _whole(line, "bold")
        for row, line in zip(table.rows, table.lines, strict=True):
            text = _whole(line, "bold" if row in self._bold else "")
            if row == len(self._rows) - 1:
                for words in sorted(self._colours, key=len):  # "do not adopt" after "adopt"
                    text.highlight_words([words], self._colours[words])
            yield text


def _heading(report: Report, party: str) -> str:
    asked = " (asked)" if party == report.requester else ""
    return f"{party}{asked}: {report.parties[party].metric.replace('_', ' ')}"


def _value(row: Interval | None) -> str:
    return "" if row is None else bracketed(row)


def _whole(line: str, style: str) -> Text:
    """Return a line that no console breaks or cuts off."""
    return Text(line, style=style, no_wrap=True, overflow="ignore")

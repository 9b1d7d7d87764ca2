"""The party report as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from suture_contract.documents import Report
from suture_contract.report.gains import advice, decision, headline, remarks, sentence
from suture_contract.report.rows import complete, name_of, rows_of
from suture_contract.report.trust import training_words, warnings
from suture_contract.report.words import contributed

_STYLES = {"adopt": "green", "care": "yellow", "reject": "red"}


def report_table(report: Report) -> Group:
    """Return what was chosen and what it gains, the table of all models, and what who is told not to adopt can do."""
    report = complete(report)
    parties = sorted(report.parties, key=lambda party: (party != report.requester, party))
    said = [Text(headline(report), style="bold")]
    if report.requester in report.parties:
        said.append(Text(" ".join([sentence(report, report.requester), *remarks(report, report.requester)])))
    for party in parties:
        said += [Text(f"warning: {one}", style="yellow") for one in warnings(report.parties[party], party)]
        if trained := training_words(report.parties[party], party):
            said.append(Text(trained))
    for what, command in filter(None, (advice(report, party) for party in parties)):
        said += [Text(what), Text(f"  {command}", no_wrap=True, overflow="ignore")]
    return Group(*said[:2], _table(report, parties), *said[2:])


def _table(report: Report, parties: Sequence[str]) -> Table:
    """Return a row per model, the chosen one first, and a column per party: value with 95 % interval, n and verdict."""
    table = Table(title=f"party report of {report.lineage.job}", title_justify="left", pad_edge=False)
    table.add_column("model")
    for party in parties:
        asked = " (asked)" if party == report.requester else ""
        table.add_column(f"{party}{asked}: {report.parties[party].metric.replace('_', ' ')}", justify="right")
    for row in rows_of(report, parties):
        cells = []
        for party in parties:
            found = report.parties[party].rows.get(row)
            cells.append("" if found is None else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")
        if row == "chosen":
            table.add_row("chosen", *cells, style="bold")
        else:
            table.add_row(name_of(row, report), *cells)
    table.add_section()
    table.add_row("test samples (n)", *(f"{report.parties[party].n:,}" for party in parties))
    styles = [_STYLES[report.parties[party].verdict] for party in parties]
    told = [decision(report, party).lower() for party in parties]
    table.add_row("verdict", *(Text(words, style=style) for words, style in zip(told, styles, strict=True)))
    for missing in report.missing:
        table.add_section()
        table.add_row(Text(f"missing: {missing.party} ({missing.reason.replace('_', ' ')})", style="yellow"))
    for one in report.contributions or ():
        table.add_section()
        table.add_row(f"{one.party} {contributed(one)}")
    return table

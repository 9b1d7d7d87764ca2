"""The party report as a table for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from suture_contract.documents import Report
from suture_contract.report.rows import chosen_of, complete, name_of, rows_of, words_of
from suture_contract.report.words import contributed

_STYLES = {"adopt": "green", "care": "yellow", "reject": "red"}
_MEANING = {"adopt": "adopt", "care": "look closely", "reject": "do not adopt"}


def report_table(report: Report) -> Table:
    """Return a row per model, the chosen one first, and a column per party: value with 95 % interval, n and verdict."""
    report = complete(report)
    title = f"party report of {report.lineage.job}\nchosen: {words_of(chosen_of(report))}"
    table = Table(title=Text(title), title_justify="left", pad_edge=False)
    table.add_column("model")
    parties = sorted(report.parties, key=lambda party: (party != report.requester, party))
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
    verdicts = [report.parties[party].verdict for party in parties]
    table.add_row("verdict", *(Text(_MEANING[verdict], style=_STYLES[verdict]) for verdict in verdicts))
    for missing in report.missing:
        table.add_section()
        table.add_row(Text(f"missing: {missing.party} ({missing.reason.replace('_', ' ')})", style="yellow"))
    for one in report.contributions or ():
        table.add_section()
        table.add_row(f"{one.party} {contributed(one)}")
    return table

"""The party report as a table for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from suture_contract.documents import Report
from suture_contract.report.words import ROWS, contributed

_STYLES = {"adopt": "green", "care": "yellow", "reject": "red"}
_MEANING = {"adopt": "adopt", "care": "look closely", "reject": "do not adopt"}


def report_table(report: Report) -> Table:
    """Return one row per model and one column per party: value with 95 % interval, n and verdict."""
    table = Table(title=f"party report of {report.lineage.job}", title_justify="left", pad_edge=False)
    table.add_column("model")
    parties = sorted(report.parties, key=lambda party: (party != report.requester, party))
    for party in parties:
        asked = " (asked)" if party == report.requester else ""
        table.add_column(f"{party}{asked}: {report.parties[party].metric.replace('_', ' ')}", justify="right")
    for row in _rows(report):
        cells = []
        for party in parties:
            found = report.parties[party].rows.get(row)
            cells.append("" if found is None else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")
        table.add_row(ROWS.get(row, row.replace("peer:", "peer ")), *cells, style="bold" if row == "stitched" else None)
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


def _rows(report: Report) -> list[str]:
    found = {row for party in report.parties.values() for row in party.rows}
    peers = sorted(row for row in found if row.startswith("peer:"))
    return [row for row in ("own", *peers, "ensemble", "routed", "stitched") if row in found]

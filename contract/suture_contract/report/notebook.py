"""The party report in a notebook: as a table of pandas, and as the page in a frame of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from suture_contract.documents import Report
from suture_contract.extras import needs
from suture_contract.report.html import to_html

if TYPE_CHECKING:
    from pandas import DataFrame

_FRAME = Markup('<iframe title="Party report" sandbox style="{}" srcdoc="{}"></iframe>')
_STYLE = "width:100%;height:44rem;border:0"


def frame(report: Report) -> DataFrame:
    """Return a line for each party and model; raises `SutureError` `suture.not_installed` without pandas."""
    with needs("tables"):
        from pandas import DataFrame

    return DataFrame(as_rows(report))


def as_rows(report: Report) -> list[dict[str, Any]]:
    """Return for each party and model: value, interval, what the chosen one gains, n and verdict."""
    return [
        {
            "party": name,
            "model": model,
            "metric": party.metric,
            "value": interval.value,
            "low": interval.low,
            "high": interval.high,
            "gain": None if (gain := party.gains.get(model)) is None else gain.value,
            "n": party.n,
            "verdict": party.verdict,
        }
        for name, party in report.parties.items()
        for model, interval in party.rows.items()
    ]


def framed(report: Report) -> str:
    """Return the page in a frame: its styles stay inside, and nothing in it runs."""
    return str(_FRAME.format(_STYLE, to_html(report)))

"""The rows of a party report as people see them: which there are, in which order, under which names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from suture_contract.documents import CandidateReport, PartyReport, Report, Row

Value = TypeVar("Value")
_NAMES = {
    "own": "own model",
    "ensemble": "plain ensemble",
    "corrected": "ensemble, own shares of labels",
    "routed": "routed ensemble",
}
#: What a chosen candidate is where the report says no more, as older ones do.
_KINDS = {
    "ensemble": "the plain ensemble",
    "corrected": "the ensemble with each site's own shares of labels",
    "routed": "each sample to the model it is familiar to",
    "stitched": "the models joined inside",
}


def complete(report: Report) -> Report:
    """Return the report with a row `chosen` at every party: older ones have it under the name of its kind only."""
    chosen = chosen_of(report)
    parties = {
        party: _with_chosen(party_report, same_as_chosen(report, party_report, chosen))
        for party, party_report in report.parties.items()
    }
    return report.model_copy(update={"parties": parties})


def chosen_of(report: Report) -> CandidateReport:
    """Return the chosen candidate."""
    return next(candidate for candidate in report.candidates if candidate.id == report.chosen)


def words_of(candidate: CandidateReport) -> str:
    """Say what a candidate is, to people who know no networks."""
    return candidate.words or _KINDS.get(candidate.kind, candidate.label)


def rows_of(report: Report, parties: Sequence[str]) -> list[str]:
    """Return the rows to show of these parties, the chosen one first, without another that is the same model.

    Single models stay: they are the measure of everything else.
    """
    present = {row for party in parties for row in report.parties[party].rows}
    peers = sorted(row for row in present if row.startswith("peer:"))
    kind = chosen_of(report).kind
    order = ["chosen", "own", *peers, *(row for row in ("ensemble", "corrected", "routed", "stitched") if row != kind)]
    return [row for row in order if row in present]


def name_of(row: str, report: Report) -> str:
    """Return what a row is called."""
    if row == "chosen":
        return f"chosen: {words_of(chosen_of(report))}"
    if row == "stitched":
        return "best stitched ensemble (not chosen)"
    return _NAMES.get(row, row.replace("peer:", "peer "))


def same_as_chosen(report: Report, party_report: PartyReport, chosen: CandidateReport) -> Row:
    """Return the row of a party, other than `chosen`, that is the chosen candidate."""
    if chosen.kind != "single":
        return chosen.kind
    # Candidates c00 to c<K-1> are the members alone, in order.
    peer = f"peer:{report.lineage.members[int(chosen.id[1:])].repo}"
    return peer if peer in party_report.rows else "own"


def _with_chosen(party_report: PartyReport, row: Row) -> PartyReport:
    classes = tuple(
        class_report.model_copy(update={"rows": _filled(class_report.rows, row)})
        for class_report in party_report.classes
    )
    by_row = {name: _filled(getattr(party_report, name), row) for name in ("rows", "differences", "calibration")}
    return party_report.model_copy(update={**by_row, "classes": classes})


def _filled(by_row: Mapping[Row, Value], row: Row) -> dict[Row, Value]:
    return {**({"chosen": by_row[row]} if row in by_row else {}), **by_row}

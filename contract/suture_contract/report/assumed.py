"""What a job's numbers and stitches rest on: whose models were trusted, or how much noise was spent."""

from __future__ import annotations

from collections.abc import Sequence

from suture_contract.documents import Report
from suture_contract.model.metadata import Trusted
from suture_contract.privacy import Privacy

#: How much of a key's fingerprint people compare.
_FINGERPRINT = 16


#: What exact numbers of other parties' models tell, beside what they are asked for.
REPEATED = (
    "Exact numbers of models that were built for it, or that differ in one weight, tell whether somebody is a patient "
    "and with which label. Each evaluation tells of more patients, so sites allow a party only so many in a month."
)


def assumed(report: Report) -> list[str]:
    """Say of the fit and of each party's numbers what was assumed or spent; nothing of reports that do not say."""
    sentences = [f"Fit at {report.requester}: {words}" for words in _words(report.privacy, report.trusted)]
    for party in sorted(report.parties, key=lambda party: (party != report.requester, party)):
        party_report = report.parties[party]
        sentences += [f"Numbers of {party}: {words}" for words in _words(party_report.privacy, party_report.trusted)]
    trusted = [author for party_report in report.parties.values() for author in party_report.trusted or ()]
    if any(author.key is not None for author in trusted):
        sentences.append(REPEATED)
    return sentences


def spent(privacy: Privacy) -> str:
    """Say what noise promises."""
    return f"noise, epsilon {privacy.epsilon:g} and delta {privacy.delta:g} spent for one patient"


def trusts(trusted: Sequence[Trusted]) -> str:
    """Say whose models are trusted, and how they are known to be theirs."""
    named = [
        f"{entry.party} ({'own models' if entry.key is None else f'key {entry.key[:_FINGERPRINT]}'})"
        for entry in trusted
    ]
    return f"exact, no noise; it trusts {', '.join(named)} not to have built models that carry patients out"


def _words(privacy: Privacy | None, trusted: Sequence[Trusted] | None) -> list[str]:
    if privacy is not None:
        return [f"{spent(privacy)}."]
    return [f"{trusts(trusted)}."] if trusted else []

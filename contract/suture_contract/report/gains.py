"""What the chosen model gains over simpler ones, and what to do about it, in sentences for people (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suture_contract.documents import Interval, PartyReport, Report, Row
from suture_contract.report.rows import chosen_of, same_as_chosen, words_of
from suture_contract.report.words import VERDICTS, Scale, few_patients, samples, scale_of

#: What the chosen model is measured against: first what the verdict looks at.
_MEASURES: tuple[tuple[Row, str], ...] = (
    ("own", "its own model"),
    ("ensemble", "the plain ensemble"),
    ("corrected", "averaging with each site's own shares of labels"),
    ("routed", "routing alone"),
)


#: What does without a stitch: the chosen model must not be credited with what these give.
_SIMPLER: tuple[Row, ...] = ("corrected", "routed")


@dataclass(frozen=True)
class Gain:
    """By how much the chosen model is better than another: positive is better, whatever the metric; paired interval."""

    row: Row
    over: str
    value: float
    interval: Interval | None

    @property
    def none_shown(self) -> bool:
        """Whether the samples leave it open that there is no gain; without an interval, the value alone decides."""
        return (self.value if self.interval is None else self.interval.low) <= 0


def gains_of(report: Report, party: str) -> list[Gain]:
    """Return the gains at a party over its own model, the plain and the routed ensemble, as far as they are there."""
    party_report = report.parties[party]
    same = same_as_chosen(report, party_report, chosen_of(report))
    return [_gain(party_report, row, over) for row, over in _MEASURES if row in party_report.rows and row != same]


def decision(report: Report, party: str) -> str:
    """Say a party's verdict in a few words, and whether there is anything to gain."""
    verdict, few = VERDICTS[report.parties[party].verdict], few_patients(report.parties[party])
    if report.parties[party].verdict == "care" and few is not None:
        return f"{verdict}: too few patients to tell ({few})"
    if report.parties[party].verdict != "adopt":
        return verdict
    gains = gains_of(report, party)
    if same_as_chosen(report, report.parties[party], chosen_of(report)) == "own":
        return "Its own model stays"
    return f"{verdict}, but no gain is shown" if gains and gains[0].none_shown else verdict


def sentence(report: Report, party: str) -> str:
    """Say in one sentence what the chosen model reaches at a party, and what it gains over the first simpler one."""
    party_report, chosen = report.parties[party], chosen_of(report)
    scale = scale_of(party_report.metric)
    same = same_as_chosen(report, party_report, chosen)
    what = "Its own model stays the choice and" if same == "own" else "The chosen model"
    text = f"{what} reaches {scale.text(party_report.rows['chosen'].value)} ({scale.name}) on {party}'s test data"
    first = next(iter(gains_of(report, party)), None)
    return f"{text}, {_against(first, scale)}." if first is not None else f"{text}."


def remarks(report: Report, party: str) -> list[str]:
    """Say a party's gains beyond the first, and what follows: that there is none, or that routing does as much."""
    chosen, party_report = chosen_of(report), report.parties[party]
    gains = {gain.row: gain for gain in gains_of(report, party)}
    further = [_against(gain, scale_of(party_report.metric)) for gain in list(gains.values())[1:]]
    sentences = [f"It is {_listed(further)}."] if further else []
    if took_no_part(report, party):
        sentences.append(
            f"{party} has no model among these, and none was fitted to its data: so much can a hospital expect that "
            "takes such a model without having taken part. Its validation data alone had a say in the choice."
        )
    first = next(iter(gains.values()), None)
    if party_report.verdict == "adopt" and first is not None and first.row not in _SIMPLER and first.none_shown:
        sentences.append(
            f"No gain over {first.over} is shown on these {samples(party_report, ' samples')}: adopting it does "
            f"{party} no harm that they show, and no good either."
        )
    if chosen.kind == "stitched":
        for gain in (gains[row] for row in _SIMPLER if row in gains and gains[row].none_shown):
            way = f"{gain.over[0].upper()}{gain.over[1:]}"
            sentences.append(
                f"{way}, without any stitch, does at least as well here, as far as these samples can tell."
            )
    return sentences


def took_no_part(report: Report, party: str) -> bool:
    """Whether a party has no model among the members, and gave the fit nothing."""
    gave = {report.requester, *(contribution.party for contribution in report.contributions or ())}
    return "own" not in report.parties[party].rows and party not in gave


def advice(report: Report, party: str) -> tuple[str, str] | None:
    """Return what a party that is told not to adopt can do, and the command; None for others."""
    party_report = report.parties[party]
    if party_report.verdict != "reject":
        return None
    peers = {row.removeprefix("peer:") for row in party_report.rows if row.startswith("peer:")}
    repos = sorted((member.repo for member in report.lineage.members), key=lambda repo: repo in peers)
    keep = "keep its own model" if "own" in party_report.rows else "use none of these"
    if party == report.requester:
        return (
            f"{party} can {keep}, and look for other models to ask with:",
            "suture models",
        )
    others = sorted({report.requester, *report.parties} - {party})
    asked = " ".join(f"--evaluate-at {other}" for other in others)
    return (
        f"This model was chosen for {report.requester}. {party} can {keep}, or ask for one that is fitted on its own "
        "data, by the name its site gave them:",
        f"suture stitch {' '.join(repos)} --dataset NAME {asked}",
    )


def headline(report: Report) -> str:
    """Say what was chosen for whom."""
    return f"Chosen for {report.requester}: {words_of(chosen_of(report))}"


def _gain(party_report: PartyReport, row: Row, over: str) -> Gain:
    sign = 1 if scale_of(party_report.metric).higher_is_better else -1
    value = sign * (party_report.rows["chosen"].value - party_report.rows[row].value)
    # Reports from before there were gains compare with the own model alone.
    paired = party_report.gains.get(row) or (party_report.differences.get("chosen") if row == "own" else None)
    if paired is None:
        return Gain(row, over, value, None)
    low, high = sorted((sign * paired.low, sign * paired.high))
    return Gain(row, over, sign * paired.value, Interval(value=sign * paired.value, low=low, high=high))


def _against(gain: Gain, scale: Scale) -> str:
    text = f"the same as {gain.over}"
    if float(scale.number(abs(gain.value))):
        text = f"{_amount(gain.value, scale)} {'better' if gain.value > 0 else 'worse'} than {gain.over}"
    if gain.interval is None or gain.interval.low == gain.interval.high:
        return text
    return f"{text} (95 % interval: {_end(gain.interval.low, scale)} to {_end(gain.interval.high, scale)})"


def _amount(value: float, scale: Scale) -> str:
    return scale.change(abs(value)).removeprefix("+")


def _end(value: float, scale: Scale) -> str:
    number = scale.number(abs(value))
    if not float(number):
        return number
    return f"{number} {'better' if value > 0 else 'worse'}"


def _listed(phrases: Sequence[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"

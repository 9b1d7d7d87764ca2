"""Why a rule may let other parties' models run on patients: it trusts who made them, or noise protects the patients.

A rule with neither is not in force. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from suture_contract.model.metadata import Trusted
from suture_contract.report.assumed import spent
from suture_worker.config import Rule, SiteConfig
from suture_worker.leased_task import Action

Assurance = Literal["own", "trust", "noise"]

LACKS = (
    "policy.allow[{index}] is not in force: it says neither whose models it trusts nor what noise protects patients. "
    "Models of other parties can carry single patients out of this site."
)
HOW = (
    'name parties and keys you trust, members_from = ["south"] and signed_by = ["south"] with the key under [keys]; or '
    "add noise, epsilon = 8 and delta = 1e-5; models of your own party need neither: give [site] party, and "
    "members_from = that party"
)
#: What is spent on a fit where the same account also pays for the evaluation on the same patients. The stitches need
#: little noise to be worth having, metrics are means over patients and bear more.
_FIT_SHARE = 0.75


def assurance(rule: Rule, config: SiteConfig) -> Assurance | None:
    """Return which of them holds for a rule; None for one that is not in force. Noise holds beside trust, too."""
    if rule.privacy is not None:
        return "noise"
    own = config.site.party
    if own is not None and rule.members_from is not None and set(rule.members_from) == {own}:
        return "own"
    return "trust" if rule.members_from is not None and rule.signed_by is not None else None


def lacking(config: SiteConfig) -> list[tuple[int, str]]:
    """Return the rules that are not in force, by their position in site.toml, each with two sentences that say why."""
    return [
        (index, LACKS.format(index=index))
        for index, rule in enumerate(config.policy.allow)
        if assurance(rule, config) is None
    ]


def in_words(rule: Rule, config: SiteConfig) -> str:
    """Say, for the operator, what holds for a rule that is in force."""
    own = config.site.party
    but_own = f"; models of {own}, your own party, need no key" if own is not None else ""
    if rule.privacy is not None:
        each = "contribution" if "contribute" in rule.actions else "job"
        words = f"noise: {spent(rule.privacy)} and {each}, whatever the models do"
        if rule.members_from is None and rule.signed_by is None:
            return words
        return f"{words}; and only models {' '.join(_named(rule))} are run{but_own}"
    if assurance(rule, config) == "own":
        return f"trust: exact, with models of {own}, your own party, alone; which are its, the hub says"
    words = (
        f"trust: exact, with models {' '.join(_named(rule))}{but_own}; you trust these parties not to have built them "
        "to carry patients out"
    )
    if "evaluate" not in rule.actions:
        return words
    return f"{words}, and whoever asks, and the hub, to hand out candidates as they were fitted"


def share_of(rule: Rule, action: Action, others: Sequence[Rule]) -> float:
    """Return which part of a job's account `action` may spend, where `others` allow the same party the other action."""
    if action == "contribute" or rule.privacy is None:
        return 1.0
    other_action: Action = "evaluate" if action == "fit" else "fit"
    if not any(other_action in other.actions and other.privacy == rule.privacy for other in others):
        return 1.0
    return _FIT_SHARE if action == "fit" else 1 - _FIT_SHARE


def trusted(
    rule: Rule, parties: Sequence[str], fingerprints: Sequence[str | None], config: SiteConfig
) -> tuple[Trusted, ...] | None:
    """Return whose models an exact result of members of `parties` trusts, with the keys that signed them."""
    if rule.privacy is not None:
        return None
    own = config.site.party
    trusted_parties = {
        Trusted(party=party, key=None if party == own else key)
        for party, key in zip(parties, fingerprints, strict=True)
    }
    return tuple(sorted(trusted_parties, key=lambda entry: (entry.party, entry.key or "")))


def _named(rule: Rule) -> list[str]:
    of = [f"of {' or '.join(rule.members_from)}"] if rule.members_from else []
    return [*of, *([f"signed by {' or '.join(rule.signed_by)}"] if rule.signed_by else [])]

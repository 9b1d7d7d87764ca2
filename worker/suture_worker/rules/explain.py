"""What the policy would say to somebody who has not asked yet: `suture site policy explain`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from pydantic import BaseModel

from suture_worker.config import Rule, SiteConfig, Version
from suture_worker.leased_task import Action
from suture_worker.rules.assurance import HOW, Assurance, assurance, in_words, lacking
from suture_worker.rules.in_force import RulesInForce, rules_in_force
from suture_worker.rules.inbox import Inbox
from suture_worker.rules.ledger import Ledger
from suture_worker.rules.policy import (
    DENIED,
    SPENT,
    UNKNOWN,
    Allow,
    Asked,
    Decline,
    Model,
    budget_of,
    judge,
    noise_in_words,
    objections,
    offers,
    rules_for,
    terms_of,
)


class Explanation(BaseModel):
    """What would happen, why, and what the requester would be told.

    `rule` counts from 0 in the order of site.toml; `left` is what remains of this month's evaluations or contributions,
    where the rule limits them.
    """

    outcome: Literal["automatic", "waits for approval", "declined"]
    why: list[str]
    rule: int | None = None
    left: int | None = None
    release: Literal["automatic", "manual"] | None = None
    told: str | None = None
    #: What lets other parties' models run on patients: trust in them, or noise. "own": models of the own party alone.
    assurance: Assurance | None = None
    #: The site.toml that this is about, and the one that the running site goes by.
    version: Version | None = None
    in_force: RulesInForce | None = None


def explain(
    config: SiteConfig,
    *,
    party: str,
    action: Action,
    dataset: str,
    models: Sequence[Model] = (),
) -> Explanation:
    """Say what would happen if `party` asked to run these models on a dataset; reads no data."""
    explanation = _explain(config, party, action, dataset, models)
    return explanation.model_copy(update={"version": config.version, "in_force": rules_in_force(config.state)})


def _explain(config: SiteConfig, party: str, action: Action, dataset: str, models: Sequence[Model]) -> Explanation:
    ledger = Ledger(config.state / "ledger.jsonl")
    asked = Asked(party, action, tuple(models), partial(ledger.used, action=action))
    decision: Allow | Decline
    if not offers(asked, config):
        decision = Decline(DENIED, f"no rule lets {party} {action} anything here")
    elif not rules_for(asked, dataset, config):
        exists = "there is no such dataset" if dataset not in config.datasets else "no rule offers it"
        decision = Decline(UNKNOWN, f"{exists}; {party} may {action} with {', '.join(offers(asked, config))}")
    else:
        decision = judge(asked, dataset, config)
    if isinstance(decision, Decline):
        why = [
            f"policy.allow[{index}] declines: {problem}"
            for index, rule in rules_for(asked, dataset, config)
            for problem in objections(asked, dataset, rule, config)
        ]
        hidden = action != "fit" and not config.policy.disclose_refusals
        hears = "nothing: it looks as if there were no answer" if hidden else decision.code
        lacks = [
            f"{problem} To put it in force: {HOW}."
            for index, problem in lacking(config)
            if _speaks_of(config.policy.allow[index], asked, dataset)
        ]
        return Explanation(outcome="declined", why=[*lacks, *(why or [decision.reason])], told=hears)
    return _allowed(decision, asked, dataset, config)


def _allowed(decision: Allow, asked: Asked, dataset: str, config: SiteConfig) -> Explanation:
    rule = decision.rule
    why = [f"policy.allow[{decision.index}] allows it{_provided(rule, asked)}", in_words(rule, config)]
    budget, left = budget_of(rule, asked.action), None
    if budget is not None:
        used = asked.used(asked.party, dataset)
        left = budget - used
        why.append(f"{left} of {budget} {SPENT[asked.action]} are left this month")
    standing = [
        approval
        for approval in Inbox(config.state / "inbox").standing()
        if (approval.party, approval.action, approval.dataset) == (asked.party, asked.action, dataset)
        and datetime.now(UTC) < approval.until
    ]
    waits = rule.approval == "ask" and not standing
    if standing:
        why.append(f"approved by {standing[0].by} until {standing[0].until:%Y-%m-%d %H:%M} UTC")
    elif waits:
        why.append("a person is asked first: `suture site inbox list`")
    if rule.release == "manual":
        why.append("the result waits for a person: `suture site outbox list`")
    policy = config.policy
    if asked.action == "contribute":
        terms = terms_of(decision, asked, config)
        why.append("means and second moments of features leave, sums over samples; no sample, and no label")
        why.append(f"they leave from no split of fewer than {terms.min_samples} patients, {noise_in_words(terms)}")
        return _explained(decision, why, left, config, waits=waits)
    why.append(
        f"nothing leaves from a split of fewer than {policy.min_samples} patients, "
        f"or a class of fewer than {policy.min_per_class}; numbers have {policy.decimals} decimals"
    )
    return _explained(decision, why, left, config, waits=waits)


def _explained(decision: Allow, why: list[str], left: int | None, config: SiteConfig, *, waits: bool) -> Explanation:
    return Explanation(
        outcome="waits for approval" if waits else "automatic",
        why=why,
        rule=decision.index,
        left=left,
        release=decision.rule.release,
        told="waiting for approval" if waits else None,
        assurance=assurance(decision.rule, config),
    )


def _speaks_of(rule: Rule, asked: Asked, dataset: str) -> bool:
    return asked.party in rule.parties and asked.action in rule.actions and dataset in rule.datasets


def _provided(rule: Rule, asked: Asked) -> str:
    """Name the limits that could not be looked at, for want of models."""
    unknown = []
    if rule.members_from is not None and not any(model.party for model in asked.models):
        unknown.append(f"the models are of {' or '.join(rule.members_from)}")
    if rule.signed_by is not None:
        unknown.append(f"they are signed by {' or '.join(rule.signed_by)}")
    if not any(model.size is not None for model in asked.models):
        if rule.max_model_mib is not None:
            unknown.append(f"they have at most {rule.max_model_mib:g} MiB")
        if rule.operators is not None:
            unknown.append(f"they use only its {len(rule.operators)} operators")
    return f", if {' and '.join(unknown)}" if unknown else ""

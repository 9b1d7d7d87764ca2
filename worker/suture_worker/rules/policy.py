"""What this site allows. Pure: a task and the site's own rules go in, one decision comes out.

Denied by default, the site's own party included. A refusal says nothing about what else the site has: to a party that
may use one dataset, another one that exists and one that does not look the same, and all limits of a rule look like no
rule at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from suture_contract.compatibility import WRITTEN
from suture_contract.documents import ClinicalMetric, Metric
from suture_contract.naming import alike, spelt
from suture_stitching.data.spec import DatasetSpec
from suture_worker.config import Rule, SiteConfig
from suture_worker.folder import Terms
from suture_worker.leased_task import Action, EvaluateSpec, LeasedMember, LeasedTask
from suture_worker.rules.assurance import assurance, share_of, trusted

DENIED, UNKNOWN = "policy.denied", "dataset.unknown"
NO_DATASET, AMBIGUOUS = "policy.no_dataset", "policy.ambiguous_dataset"
TOO_FEW = "policy.too_few_samples"
#: A model is older than one that was seen here: a hub that goes back, or a requester who wants just that one.
ROLLED_BACK = "policy.older_revision"
#: Where networks can be joined for contributors is told by exact sums over patients.
NO_CONTRIBUTIONS = "policy.noise_without_contributions"
#: To the hub: decline, but let nobody know; the requester sees a party that has not answered.
UNDISCLOSED = "policy.undisclosed"

#: What the engine measures for each task.
METRICS: Mapping[str, Metric] = {
    "classification": "accuracy",
    "multilabel": "f1",
    "segmentation": "dice",
    "regression": "mae",
}


@dataclass(frozen=True)
class Allow:
    """Work on this dataset, None for a task that reads no data, because of this rule, the `index`th in site.toml."""

    dataset: str | None
    rule: Rule
    index: int


@dataclass(frozen=True)
class Decline:
    """Do not; `code` is all that the hub is told, `reason` stays in the site's log."""

    code: str
    reason: str


@dataclass(frozen=True)
class Model:
    """What a rule's limits look at, as far as it is known: whose model, its file's size in bytes, its operators.

    `signer` is what site.toml calls the key that signed it, if any; it counts once it is `verified`.
    """

    party: str | None
    size: int | None
    operators: frozenset[str] | None = None
    signer: str | None = None
    verified: bool = False


@dataclass(frozen=True)
class Asked:
    """Who asks for what, as rules see it. `used` says how often the party has had that with a dataset this month."""

    party: str
    action: Action
    models: tuple[Model, ...] = ()
    used: Callable[[str, str], int] = lambda _party, _dataset: 0
    #: Beside the metric of the task.
    metrics: tuple[ClinicalMetric, ...] = ()


def decide(
    task: LeasedTask,
    config: SiteConfig,
    *,
    used: Callable[[str, str], int] = lambda _party, _dataset: 0,
    operators: tuple[frozenset[str], ...] | None = None,
    signers: tuple[str | None, ...] | None = None,
) -> Allow | Decline:
    """Say whether this site works on `task`, and on which of its datasets.

    `operators` are those of each member, and `signers` who signed it, known when their files have come.
    """
    asked = asked_by(task, used=used, operators=operators, signers=signers)
    decision = _on_which(task, asked, config)
    if task.kind == "match" and isinstance(decision, Allow) and decision.rule.privacy is not None:
        where = f"policy.allow[{decision.index}]"
        return Decline(NO_CONTRIBUTIONS, f"{where} adds noise, and a fit with noise uses no contributions")
    if isinstance(task.spec, EvaluateSpec) and (own := task.spec.own) is not None:
        # Of the own model more is told: how well it does on the samples that it may have learnt from.
        owner = task.spec.members[own].party
        if config.site.party is not None and owner != config.site.party:
            return Decline(DENIED, f"the hub says that a model of {owner} is this site's own")
    return decision


def _on_which(task: LeasedTask, asked: Asked, config: SiteConfig) -> Allow | Decline:
    offered = offers(asked, config)
    if not offered:
        return Decline(DENIED, f"no rule lets {asked.party} {asked.action} here")
    # Composing reads no data, only what the job's own fit and the evaluations let out: whoever may fit may compose.
    if not task.side.reads_data:
        return judge(asked, None, config)
    if task.spec.dataset is not None:
        if task.spec.dataset not in offered:
            return Decline(UNKNOWN, f"no rule offers {asked.party} a dataset of the name it gave")
        return judge(asked, task.spec.dataset, config)
    suitable = [name for name, spec in offered.items() if _suits(spec, task.spec.members)]
    if not suitable:
        why = "; ".join(_spellings(offered, task.spec.members))
        reason = f"none of the datasets offered to {asked.party} suits these models"
        return Decline(NO_DATASET, f"{reason}: {why}" if why else reason)
    if len(suitable) > 1:
        return Decline(AMBIGUOUS, f"several datasets suit these models: {', '.join(suitable)}; the job must name one")
    return judge(asked, suitable[0], config)


def asked_by(
    task: LeasedTask,
    *,
    used: Callable[[str, str], int] = lambda _party, _dataset: 0,
    operators: tuple[frozenset[str], ...] | None = None,
    signers: tuple[str | None, ...] | None = None,
) -> Asked:
    """Return a task as rules see it; the arguments are those of `decide`."""
    models = tuple(
        Model(
            member.party,
            member.size,
            operators[index] if operators is not None else None,
            signers[index] if signers is not None else None,
            verified=signers is not None,
        )
        for index, member in enumerate(task.spec.members)
    )
    return Asked(task.job.requester, task.action, models, used, getattr(task.spec, "metrics", ()))


def judge(asked: Asked, dataset: str | None, config: SiteConfig) -> Allow | Decline:
    """Allow by the first rule for this party, action and dataset whose limits hold."""
    reasons = []
    for index, rule in rules_for(asked, dataset, config):
        problem = next(objections(asked, dataset, rule, config), None)
        if problem is None:
            return Allow(dataset, rule, index)
        reasons.append(f"policy.allow[{index}]: {problem}")
    return Decline(DENIED, "; ".join(reasons) or f"no rule lets {asked.party} {asked.action} with this dataset")


def rules_for(asked: Asked, dataset: str | None, config: SiteConfig) -> list[tuple[int, Rule]]:
    """Return the rules in force, with their position in site.toml, that speak of this party, action and dataset."""
    return [
        (index, rule)
        for index, rule in enumerate(config.policy.allow)
        if assurance(rule, config) is not None
        and asked.party in rule.parties
        and asked.action in rule.actions
        and (dataset is None or dataset in rule.datasets)
    ]


def offers(asked: Asked, config: SiteConfig) -> dict[str, DatasetSpec]:
    """Return the datasets that some rule speaks of for this party and action."""
    return {name: config.datasets[name] for _, rule in rules_for(asked, None, config) for name in rule.datasets}


def objections(asked: Asked, dataset: str | None, rule: Rule, config: SiteConfig) -> Iterator[str]:
    """Yield every limit of `rule` that is not kept, in words for this site's operator."""
    own = config.site.party
    for number, model in enumerate(asked.models):
        allowed = (*(rule.members_from or ()), own)
        if rule.members_from is not None and model.party is not None and model.party not in allowed:
            yield f"models of {model.party} may not be run"
        if rule.max_model_mib is not None and model.size is not None and model.size > rule.max_model_mib * 2**20:
            yield f"model {number} has {model.size / 2**20:.1f} MiB, at most {rule.max_model_mib:g} are allowed"
        if rule.operators is not None and (others := sorted((model.operators or frozenset()) - rule.operators)):
            yield f"model {number} uses {', '.join(others[:5])}"
        unsigned = model.verified and model.party != own and model.signer not in (rule.signed_by or ())
        if rule.signed_by is not None and unsigned:
            yield f"model {number} is not signed by {' or '.join(rule.signed_by)}"
    if dataset is None:
        return
    if asked.action == "evaluate" and rule.metrics is not None:
        measured = (METRICS[config.datasets[dataset].task], *asked.metrics)
        if others := [metric for metric in measured if metric not in rule.metrics]:
            yield f"it would measure {', '.join(others)}"
    budget = budget_of(rule, asked.action)
    if budget is not None and (used := asked.used(asked.party, dataset)) >= budget:
        yield f"{used} of {budget} {SPENT[asked.action]} of this month are used"


#: What a party may have only so many of in a month.
SPENT: Mapping[Action, str] = {"fit": "fits with noise", "evaluate": "evaluations", "contribute": "contributions"}
#: How many, where a rule does not say: enough for work, too few to ask for one patient after another.
BUDGET = 20


def budget_of(rule: Rule, action: Action) -> int | None:
    """Return how often in a month `rule` allows something, None for what is not counted."""
    if action == "fit" and rule.privacy is None:
        return None
    limits: Mapping[Action, int | None] = {
        "fit": rule.fits_per_month,
        "evaluate": rule.evaluations_per_month,
        "contribute": rule.contributions_per_month,
    }
    limit = limits[action]
    return BUDGET if limit is None else limit


def terms_of(
    allowed: Allow, asked: Asked, config: SiteConfig, fingerprints: Sequence[str | None] | None = None
) -> Terms:
    """Return on what terms the rule lets patients be looked at; `fingerprints` are of the keys that signed the models.

    Where one party may fit and evaluate on a dataset with the same noise, both spend from one account.
    """
    rule = allowed.rule
    others = [
        other
        for action in ("fit", "evaluate")
        for _, other in rules_for(Asked(asked.party, action), allowed.dataset, config)
    ]
    parties = [model.party for model in asked.models if model.party is not None]
    return Terms(
        min_samples=max(config.policy.min_samples, rule.min_samples or 0),
        epsilon=rule.epsilon,
        delta=rule.delta,
        share=share_of(rule, asked.action, others),
        trusted=trusted(rule, parties, fingerprints, config) if fingerprints is not None else None,
    )


def noise_in_words(terms: Terms) -> str:
    """Say how much noise protects the patients of a contribution."""
    if terms.epsilon is None:
        return "without noise"
    return f"with noise: epsilon {terms.epsilon:g}, delta {terms.delta:g} for each patient and contribution"


def too_few(patients: Mapping[str, int], minimum: int) -> str | None:
    """Return the first split with fewer than `minimum` patients, or None. `patients` is split -> how many."""
    return next((split for split, n in patients.items() if n < minimum), None)


def _labels(members: tuple[LeasedMember, ...]) -> list[str]:
    return [label for member in members for label in member.metadata.labels or ()]


def _spellings(offered: Mapping[str, DatasetSpec], members: tuple[LeasedMember, ...]) -> Iterator[str]:
    """Yield which labels of datasets the models write otherwise, for this site's operator."""
    for name, spec in offered.items():
        for ours, theirs in alike(spec.names, _labels(members)):
            yield f"the label {spelt(ours)} of {name} and {spelt(theirs)} of the models {WRITTEN} (see `aliases`)"


def _suits(spec: DatasetSpec, members: tuple[LeasedMember, ...]) -> bool:
    """Whether models like these could read this dataset, as far as its description tells."""
    first = members[0].metadata
    if first.task != spec.task:
        return False
    if not set(spec.names) <= set(_labels(members)):
        return False
    reads = next(iter(first.inputs.values()))
    if spec.holds != "arrays" and (spec.holds == "table") != (reads.format == "table") and not spec.input:
        return False
    # Channels can be converted, but data that a member reads as they are suit best.
    read = {next(iter(member.metadata.inputs.values())).num_channels for member in members}
    if spec.channels is not None and spec.channels not in read:
        return False
    return spec.columns.features is None or len(spec.columns.features) in read

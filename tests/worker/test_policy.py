"""The site's policy: nothing without a rule, and no hint about what else there is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from suture_contract.failures import meaning
from suture_stitching.data.spec import DatasetSpec
from suture_worker.compute.checking import check_model
from suture_worker.config import HubConfig, PolicyConfig, Rule, SiteConfig
from suture_worker.leased_task import LeasedTask
from suture_worker.rules.explain import explain
from suture_worker.rules.inbox import Inbox, Standing
from suture_worker.rules.ledger import Ledger
from suture_worker.rules.policy import Allow, Asked, Decline, Model, decide, judge, too_few

NOW, DAY = datetime.now(UTC), timedelta(days=1)


TRUST = {"members_from": ("north", "south", "east"), "signed_by": ("key",)}


def spec(**changes):
    return DatasetSpec(**{"path": "/data", "format": "npz", "labels": ("dark", "bright"), **changes})


def config(rules, **datasets):
    return SiteConfig(
        path="/site.toml",
        hub=HubConfig(url="https://hub.example"),
        datasets=datasets or {"patches": spec(), "other": spec()},
        policy=PolicyConfig(allow=tuple(Rule(parties=p, actions=a, datasets=d, **TRUST) for p, a, d in rules)),
        keys={"key": "/key.pub"},
    )


def answer(task, rules, **datasets):
    decision = decide(LeasedTask.parse(task), config(rules, **datasets))
    return decision.dataset if isinstance(decision, Allow) else decision.code


NORTH = (["north"], ["fit", "evaluate"], ["patches"])


def test_nothing_is_allowed_without_a_rule(make):
    for kind in ("fit", "evaluate", "compose"):
        assert answer(make.leased(kind), []) == "policy.denied"
        assert answer(make.leased(kind, requester="south"), [NORTH]) == "policy.denied"


def test_what_a_rule_names_is_allowed(make):
    assert answer(make.leased("fit"), [NORTH]) == "patches"
    assert answer(make.leased("evaluate", dataset="patches"), [NORTH]) == "patches"
    rule = config([NORTH]).policy.allow[0]
    assert decide(LeasedTask.parse(make.leased("compose")), config([NORTH])) == Allow(None, rule, 0)


def test_an_action_is_not_another_one(make):
    only_evaluate = (["north"], ["evaluate"], ["patches"])
    assert answer(make.leased("fit"), [only_evaluate]) == "policy.denied"
    assert answer(make.leased("compose"), [only_evaluate]) == "policy.denied"
    assert answer(make.leased("evaluate", dataset="patches"), [only_evaluate]) == "patches"


def test_one_party_s_dataset_is_not_another_s(make):
    rules = [NORTH, (["south"], ["fit"], ["other"])]
    assert answer(make.leased("fit", dataset="other"), rules) == "dataset.unknown"
    assert answer(make.leased("fit", dataset="other", requester="south"), rules) == "other"


def test_a_forbidden_dataset_looks_like_an_unknown_one(make):
    assert answer(make.leased("fit", dataset="other"), [NORTH]) == "dataset.unknown"
    assert answer(make.leased("fit", dataset="nothing"), [NORTH]) == "dataset.unknown"


def test_a_party_chooses_its_datasets_for_each_rule(make):
    rules = [(["north"], ["fit"], ["patches"]), (["north"], ["evaluate"], ["other"])]
    assert answer(make.leased("fit", dataset="other"), rules) == "dataset.unknown"
    assert answer(make.leased("evaluate"), rules) == "other"


def test_without_a_name_the_one_dataset_that_suits(make):
    both = (["north"], ["evaluate"], ["patches", "other"])
    task = make.leased("evaluate")
    assert answer(task, [both]) == "policy.ambiguous_dataset"
    assert answer(task, [both], patches=spec(), other=spec(labels=("cat", "dog"))) == "patches"
    assert answer(task, [both], patches=spec(), other=spec(task="segmentation")) == "patches"
    assert answer(task, [both], patches=spec(), other=spec(format="csv")) == "patches"
    assert answer(task, [both], patches=spec(), other=spec(format="image_folder", channels=3)) == "patches"
    assert answer(task, [both], patches=spec(labels=("dark", "x")), other=spec(format="csv")) == "policy.no_dataset"


def test_a_label_written_otherwise_suits_by_its_alias_and_is_named_to_the_operator(make):
    task, rules = LeasedTask.parse(make.leased("evaluate")), [(["north"], ["evaluate"], ["a"])]
    declined = decide(task, config(rules, a=spec(labels=("Dark", "bright"))))
    assert isinstance(declined, Decline)
    assert declined.code == "policy.no_dataset"
    assert "'Dark' of a and 'dark' of the models" in declined.reason
    allowed = decide(task, config(rules, a=spec(labels=("Dark", "bright"), aliases={"Dark": "dark"})))
    assert isinstance(allowed, Allow)
    assert allowed.dataset == "a"


def test_a_table_suits_a_model_of_tables(make):
    both = (["north"], ["evaluate"], ["patches", "other"])
    inputs = {"row": {"format": "table", "num_channels": 2}}
    members = [make.member(i, metadata={**make.METADATA, "inputs": inputs}) for i in range(2)]
    two = spec(format="csv", columns={"features": ("age", "weight")})
    three = spec(format="csv", columns={"features": ("age", "weight", "height")})
    assert answer(make.leased("evaluate", members=members), [both], patches=two, other=three) == "patches"


def test_the_reason_stays_here(make):
    decision = decide(
        LeasedTask.parse(make.leased("evaluate")), config([(["north"], ["evaluate"], ["patches", "other"])])
    )
    assert isinstance(decision, Decline)
    assert "patches, other" in decision.reason
    assert "patches" not in decision.code


PARTIES, DATASETS = st.sampled_from(["north", "south", "east"]), st.sampled_from(["patches", "other"])
RULES = st.lists(
    st.tuples(
        st.lists(PARTIES, min_size=1, max_size=2),
        st.lists(st.sampled_from(["fit", "evaluate"]), min_size=1, max_size=2),
        st.lists(DATASETS, min_size=1, max_size=2),
    ),
    max_size=4,
)


@given(rules=RULES, requester=PARTIES, kind=st.sampled_from(["fit", "evaluate"]), dataset=st.none() | DATASETS)
def test_whatever_is_allowed_has_a_rule_that_says_so(make, rules, requester, kind, dataset):
    asked = dataset or ("patches" if kind == "fit" else None)
    decision = decide(LeasedTask.parse(make.leased(kind, requester=requester, dataset=asked)), config(rules))
    granted = {name for parties, actions, names in rules if requester in parties and kind in actions for name in names}
    if isinstance(decision, Allow):
        assert decision.dataset in granted
        assert asked in (None, decision.dataset)
    elif asked is not None:
        assert asked not in granted
    else:
        assert len(granted) != 1


@pytest.mark.parametrize(("samples", "split"), [({"validation": 10, "test": 99}, "validation"), ({"test": 11}, None)])
def test_too_few(samples, split):
    assert too_few(samples, 11) == split


def limited(task, **limits):
    """Decide about a task by one rule with these limits."""
    rule = Rule(parties=("north",), actions=("fit", "evaluate"), datasets=("patches",), **{**TRUST, **limits})
    both = config([NORTH]).model_copy(update={"policy": PolicyConfig(allow=(rule,))})
    return decide(LeasedTask.parse(task), both, operators=(frozenset({"aten.relu.default"}),) * 2)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"metrics": ("dice",)}, "it would measure accuracy"),
        ({"members_from": ("north",)}, "models of south may not be run"),
        ({"max_model_mib": 50 / 2**20}, "MiB"),
        ({"operators": frozenset({"aten.mm.default"})}, "model 0 uses aten.relu.default"),
        ({"evaluations_per_month": 0}, "0 of 0 evaluations"),
    ],
)
def test_every_limit_of_a_rule_looks_like_no_rule(make, limits, reason):
    decision = limited(make.leased("evaluate", dataset="patches"), **limits)
    assert isinstance(decision, Decline)
    assert decision.code == "policy.denied"
    assert reason in decision.reason


@pytest.mark.parametrize(
    "limits",
    [
        {"metrics": ("accuracy", "dice")},
        {"members_from": ("north", "south")},
        {"max_model_mib": 1},
        {"operators": frozenset({"aten.relu.default", "aten.mm.default"})},
        {"evaluations_per_month": 1},
    ],
)
def test_limits_that_are_kept(make, limits):
    assert isinstance(limited(make.leased("evaluate", dataset="patches"), **limits), Allow)


@pytest.mark.parametrize(
    ("action", "terms", "what"),
    [
        ("evaluate", TRUST, "evaluations"),
        ("contribute", TRUST, "contributions"),
        ("fit", {"epsilon": 8, "delta": 1e-5}, "fits with noise"),
    ],
)
def test_a_rule_that_names_no_budget_has_one(site, action, terms, what):
    rule = Rule(parties=("south",), actions=(action,), datasets=("patches",), **terms)
    site = site.model_copy(update={"policy": PolicyConfig(allow=(rule,))})

    def judged(used):
        return judge(Asked("south", action, used=lambda _party, _dataset: used), "patches", site)

    assert isinstance(judged(19), Allow)
    assert f"20 of 20 {what} of this month are used" in judged(20).reason
    found = explain(site, party="south", action=action, dataset="patches")
    assert found.left == 20
    assert f"20 of 20 {what} are left this month" in found.why


def test_a_fit_with_noise_is_not_matched_for_contributors(make):
    noise = {"epsilon": 8, "delta": 1e-5}
    declined = limited(make.leased("match", dataset="patches"), **noise)
    assert isinstance(declined, Decline)
    assert declined.code == "policy.noise_without_contributions"
    text, advice = meaning(declined.code, None, "job")
    assert "uses no contributions" in text
    assert advice.startswith("ask again without contributions")
    assert isinstance(limited(make.leased("fit", dataset="patches"), **noise), Allow)


def test_what_a_job_asks_to_measure_must_be_in_the_rule(make):
    task = make.leased("evaluate", metrics=["auroc", "brier"])
    declined = limited(task, metrics=("accuracy", "auroc"))
    assert isinstance(declined, Decline)
    assert "it would measure brier" in declined.reason
    assert isinstance(limited(task, metrics=("accuracy", "auroc", "brier")), Allow)
    assert isinstance(limited(task), Allow), "a rule that names no metrics allows all"


def test_a_fit_spends_no_evaluation(make):
    assert isinstance(limited(make.leased("fit"), evaluations_per_month=0), Allow)


def test_a_model_of_another_party_is_not_measured_as_the_own_one(make, site):
    rule = Rule(parties=("north",), actions=("evaluate",), datasets=("patches",), **TRUST)
    site = site.model_copy(
        update={
            "policy": PolicyConfig(allow=(rule,)),
            "site": site.site.model_copy(update={"party": "south"}),
        }
    )
    declined = decide(LeasedTask.parse(make.leased("evaluate", own=0)), site)
    assert isinstance(declined, Decline)
    assert (declined.code, declined.reason) == (
        "policy.denied",
        "the hub says that a model of north is this site's own",
    )
    for own in (1, None):
        assert isinstance(decide(LeasedTask.parse(make.leased("evaluate", own=own)), site), Allow)


def test_exact_fits_are_not_counted(site):
    rule = Rule(parties=("south",), actions=("fit",), datasets=("patches",), **TRUST)
    site = site.model_copy(update={"policy": PolicyConfig(allow=(rule,))})
    assert isinstance(judge(Asked("south", "fit", used=lambda *_: 1000), "patches", site), Allow)
    with pytest.raises(ValidationError, match="exact fits are not counted"):
        Rule(parties=("south",), actions=("fit",), datasets=("patches",), fits_per_month=3, **TRUST)


def test_the_first_rule_whose_limits_hold_decides(make):
    rules = tuple(
        Rule(parties=("north",), actions=("fit",), datasets=("patches",), **{**TRUST, **limits})
        for limits in ({"members_from": ("north",)}, {"release": "manual"}, {})
    )
    site = config([NORTH]).model_copy(update={"policy": PolicyConfig(allow=rules)})
    decision = decide(LeasedTask.parse(make.leased("fit")), site)
    assert isinstance(decision, Allow)
    assert (decision.index, decision.rule.release) == (1, "manual")


def test_what_would_happen_is_explained(make, site, portable):
    rule = Rule(
        parties=("south",),
        actions=("evaluate",),
        datasets=("patches",),
        members_from=("north", "south"),
        signed_by=("key",),
        max_model_mib=1,
        operators=frozenset({"aten.relu.default"}),
        evaluations_per_month=3,
        approval="ask",
        release="manual",
    )
    site = site.model_copy(update={"policy": PolicyConfig(allow=(rule,))})

    def ask(**changes):
        return explain(site, **{"party": "south", "action": "evaluate", "dataset": "patches", **changes})

    Ledger(site.state / "ledger.jsonl").charge(LeasedTask.parse(make.leased("evaluate", requester="south")), "patches")
    found = ask()
    assert (found.outcome, found.rule, found.left, found.release) == ("waits for approval", 0, 2, "manual")
    assert found.told == "waiting for approval"
    assert "if the models are of north or south and they are signed by key and they have at most 1 MiB" in found.why[0]
    assert found.why[1].startswith("trust: exact, with models of north or south signed by key")
    assert "2 of 3 evaluations are left" in found.why[2]
    inbox = Inbox(site.state / "inbox")
    inbox._keep([Standing(party="south", action="evaluate", dataset="patches", by="me", at=NOW, until=NOW + DAY)])
    assert ask().outcome == "automatic"
    assert any(line.startswith("approved by me until") for line in ask().why)
    declined = ask(models=[Model("east", portable[0].stat().st_size, check_model(portable[0]))])
    assert (declined.outcome, declined.told) == ("declined", "policy.denied")
    assert "models of east may not be run" in declined.why[0]
    assert "model 0 uses aten.conv2d" in declined.why[1]
    assert (ask(party="east").told, ask(dataset="other").told) == ("policy.denied", "dataset.unknown")
    assert ask(dataset="nothing").told == "dataset.unknown"

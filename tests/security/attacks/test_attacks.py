"""What each attack gets from a whole fit: a patient's image, or whether somebody is a patient.

Every attack ends in one number. Undefended each must succeed, or it would prove nothing of what is done against it;
with noise none may. In between stands trust, which stops accidents and simple attacks; docs/attacks.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.security.attacks import reading, spies, victim
from tests.security.attacks.victim import PIXELS, Member, Patients, patients  # type: ignore[attr-defined]
from torch import Tensor, nn

from suture_contract.contributions import ClippedPrivacy
from suture_contract.documents import Candidate, CandidateSet
from suture_contract.errors import SutureError
from suture_contract.privacy import Privacy
from suture_stitching.ensemble.compose import compose
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.fitting.contribute import contribute, placements
from suture_stitching.fitting.fit import FitOptions, FitResult
from suture_stitching.portable.runtime import PortableModel
from suture_worker.config import PolicyConfig

CHANNELS = 12
#: Of so many images an attacker asks at once whose they are.
TARGETS = 6
#: An image is read when it is so much nearer to a patient than the nearest other patient is, and not when it is no
#: nearer than so.
READ, UNREAD = 0.2, 0.6
#: What is done against an attack. Nothing: every feature takes part, however few carry it. Trust: what a site does of
#: itself for parties it trusts. Noise: what it does for anybody.
UNDEFENDED: dict[str, Any] = {"min_patients": 1}
TRUST: dict[str, Any] = {}
NOISE: dict[str, Any] = {"privacy": Privacy(epsilon=8, delta=1e-5)}
#: To so many decimals a site rounds the metrics that it tells.
DECIMALS = PolicyConfig().decimals
#: Attacks that a site that trusts a party does not stop: that is what it trusts in.
TRUSTED = "stopped by noise alone"
#: What is asked of a fit whose stitches are trained too.
TRAINED = FitOptions(alphas=(0.5,), max_matches=2, refine_steps=60, refine_candidates=3)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Attackers' networks begin with the same weights, whichever tests ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        yield


@pytest.fixture(scope="module")
def own() -> Patients:
    return patients()


@pytest.fixture(scope="module")
def bins(own: Patients, tmp_path_factory: pytest.TempPathFactory) -> list[Member]:
    """Return the hospital's member and a spy whose bins hold one patient each."""
    return spied(own, narrow(own), tmp_path_factory.mktemp("bins"))


def direction() -> Tensor:
    return torch.randn(PIXELS, generator=torch.Generator().manual_seed(5)) / PIXELS**0.5


def places(shares: Tensor) -> Tensor:
    """Return below which place of a projection these shares of all people lie, as anybody knows who has patients."""
    return (torch.cat([patients(seed=seed).flat() for seed in range(70, 80)]) @ direction()).quantile(shares)


def narrow(own: Patients, count: int = CHANNELS) -> spies.Bins:
    """Return bins that hold one patient each, more or less."""
    edges = torch.linspace(0.05, 0.95, count)
    low, high = places(edges), places(edges + 1.2 / len(own.flat()))
    return spies.Bins(direction(), (low + high) / 2, high - low)


def spied(own: Patients, watch: nn.Module, folder: Path) -> list[Member]:
    return victim.members(own, victim.trained(spies.Spy(watch, CHANNELS), patients(seed=3)), folder)


def check(attack: Callable[[dict[str, Any]], float], *, trust_stops: bool) -> None:
    """Play an attack that reads an image, and look at its share: near 0 is a patient, around 1 anybody's guess."""
    shares = {name: attack(defence) for name, defence in (("none", UNDEFENDED), ("trust", TRUST), ("noise", NOISE))}
    print(shares)
    assert shares["none"] < READ
    assert shares["noise"] > UNREAD
    assert shares["trust"] > UNREAD if trust_stops else shares["trust"] < READ


def test_one_patient_bins(own: Patients, bins: list[Member]) -> None:
    def attack(defence: dict[str, Any]) -> float:
        return reading.read_stitches(victim.fitted(bins, own, **defence).stitches, CHANNELS, own.flat()).share

    check(attack, trust_stops=True)


def test_bins_that_differ_in_one_patient(own: Patients, tmp_path: Path) -> None:
    thresholds = places(0.4 + torch.arange(CHANNELS) * 1.2 / len(own.flat()))
    both = spied(own, spies.Below(direction(), thresholds), tmp_path)
    differences = torch.eye(CHANNELS)[1:] - torch.eye(CHANNELS)[:-1]

    def attack(defence: dict[str, Any]) -> float:
        result = victim.fitted(both, own, **defence)
        return reading.read_stitches(result.stitches, CHANNELS, own.flat(), differences).share

    check(attack, trust_stops=False)


def test_coded_sums(own: Patients, tmp_path: Path) -> None:
    code = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(2))
    edges = torch.linspace(0.2, 0.8, CHANNELS)
    # A third of the bins is wide, so that every coded channel is full of patients.
    share = torch.where(torch.arange(CHANNELS) % 3 == 0, 24.0, 1.2) / len(own.flat())
    low, high = places(edges), places((edges + share).clamp(max=1))
    both = spied(own, spies.Coded(spies.Bins(direction(), (low + high) / 2, high - low), code), tmp_path)

    def attack(defence: dict[str, Any]) -> float:
        result = victim.fitted(both, own, **defence)
        return reading.read_stitches(result.stitches, CHANNELS, own.flat(), torch.linalg.inv(code)).share

    check(attack, trust_stops=False)


def test_a_feature_of_one_rare_class(tmp_path: Path) -> None:
    own, pattern = patients(seed=4), (torch.arange(PIXELS) % 2).float()
    rare = own.images.clone()
    rare[20] = (0.5 * rare[20] + 0.5 * pattern.view(1, victim.SIDE, victim.SIDE)).clamp(0, 1)
    own = replace(own, images=rare)
    # It fires where the pattern of a rare disease shows: nothing that an honest network would not have.
    both = spied(own, spies.Below(-(pattern - 0.5), torch.full((CHANNELS,), -2.5)), tmp_path)

    def attack(defence: dict[str, Any]) -> float:
        return reading.read_stitches(victim.fitted(both, own, **defence).stitches, CHANNELS, own.flat()).share

    check(attack, trust_stops=True)


def test_the_composed_ensemble_itself(own: Patients, bins: list[Member]) -> None:
    def attack(defence: dict[str, Any]) -> float:
        result = victim.fitted(bins, own, **defence)
        published = compose(bins, result, result.candidates.candidates[-1].id).tensors
        return reading.read_stitches(published, CHANNELS, own.flat()).share

    check(attack, trust_stops=True)


def test_contributed_moments(own: Patients, bins: list[Member]) -> None:
    asked = placements(victim.fitted(bins, patients(seed=9)).candidates)
    norms = contribute(bins, patients(seed=9).dataset(), asked).norms()

    def attack(defence: dict[str, Any]) -> float:
        if "privacy" in defence:
            defence = {"privacy": ClippedPrivacy(**defence["privacy"].model_dump(), clips=norms)}
        given = contribute(bins, own.dataset(), asked, **defence)
        means = torch.stack([one.mean for (_, _, split), one in given.moments.items() if split == "train"])
        spy = means[:, -(spies.HONEST + CHANNELS * (1 + PIXELS)) :].T
        return reading.best(reading.images(spy, CHANNELS), own.flat()).share

    check(attack, trust_stops=True)


def memories(both: list[Member], result: FitResult, targets: Tensor) -> Tensor:
    """Return what each trap's memory holds for its target, by the trained stitch that leads to the traps."""
    wide = spies.HONEST + 2 * CHANNELS
    found = [name for name, t in result.stitches.items() if name.endswith("0_1.weight") and len(t) == wide]
    name = next((name for name in found if name.startswith("r")), None)
    if name is None:
        return torch.zeros(CHANNELS)
    match = next(
        match
        for one in result.candidates.candidates
        for match in one.matches
        if any(stitch.weight == name for stitch in match.stitches)
    )
    point = match.points["0"]
    seen = both[0].model.features([point], targets.view(-1, 1, victim.SIDE, victim.SIDE))[point]
    weight, bias = result.stitches[name], result.stitches[name.removesuffix("weight") + "bias"]
    return (seen @ weight.T + bias)[:, -CHANNELS:].diagonal()


def test_a_memory_trained_by_refinement(own: Patients, tmp_path: Path) -> None:
    """Half of the targets are patients: whose memory holds anything was among them, and its sign is the label."""
    half = CHANNELS // 2
    targets = torch.cat([own.flat()[:half], patients(seed=9).flat()[:half]])
    trap = victim.trained(spies.Trap(spies.Like(targets), CHANNELS), patients(seed=3))
    both = victim.members(own, trap, tmp_path)
    present = [index < half for index in range(CHANNELS)]
    for defence, succeeds in ((UNDEFENDED, True), (TRUST, False), (NOISE, False)):
        memory = memories(both, victim.fitted(both, own, TRAINED, **defence), targets)
        member = reading.advantage((memory.abs() > 0.01).tolist(), present)
        label = reading.advantage((memory[:half] > 0).tolist(), own.labels[:half].bool().tolist())
        print(member, label)
        assert (member > 0.5 and label > 0.5) if succeeds else (member == label == 0)


def flipping(targets: Tensor, folder: Path) -> list[Member]:
    """Return a classifier, and for each target one that differs in a weight: what it says of that image alone."""
    base = victim.member(spies.Flip(targets[0], 0.0), folder, "attacker", 2)
    found = [base]
    for number, target in enumerate(targets, start=3):
        tensors = dict(base.model.tensors)
        tensors["on"], tensors["watch.targets"] = torch.tensor(1.0), target[None]
        ref = base.ref.model_copy(update={"revision": f"{number:040x}", "sha256": f"{number:064x}"})
        found.append(Member(PortableModel(base.model.graph, tensors), base.metadata, ref))
    return found


def differences(members: list[Member], result: FitResult, own: Patients, decimals: int = 17, **defence: Any) -> Tensor:
    """Return the difference in accuracy that each target makes, as told to who asked for the fit.

    There is a candidate for each, behind the one that treats all images alike.
    """
    scores = evaluate(members, result, own.dataset(), splits=("test",), **defence).splits["test"].scores
    values = [round(score.value, decimals) for _, score in sorted(scores.items())][-1 - TARGETS :]
    return torch.tensor(values[1:], dtype=torch.float64) - values[0]


def asked_again(members: list[Member], result: FitResult, own: Patients, times: int, epsilon: float) -> Tensor:
    """Return the mean of what is told to one who asks again and again, from one account for all of it."""
    promise = Privacy(epsilon=epsilon, delta=1e-5)
    asked = [differences(members, result, own, privacy=promise, privacy_share=1 / times) for _ in range(times)]
    return torch.stack(asked).mean(0)


def alone(result: FitResult) -> FitResult:
    """Return the members alone of what was fitted: nothing else is compared."""
    kept = tuple(one for one in result.candidates.candidates if one.kind == "single")
    return replace(result, candidates=result.candidates.model_copy(update={"candidates": kept}))


def allowed(epsilon: float, delta: float = 1e-5) -> float:
    """Return the largest advantage that anybody can have by the definition (Kairouz, Oh and Viswanath, 2015)."""
    return (math.exp(epsilon) - 1 + 2 * delta) / (math.exp(epsilon) + 1)


def check_probing(
    members: list[Member],
    result: FitResult,
    own: Patients,
    guess: Callable[[Tensor], list[bool]],
    truth: list[bool],
    *,
    bound: float,
    times: int,
    attackers: int = 24,
) -> None:
    """Play an attack on metrics, and look at its advantage.

    A site that trusts tells exact metrics, rounded: as good for the attacker as none. With noise the advantages of
    many attackers, each of whom asks `times` times, do not beat `bound` by more than chance explains.
    """

    def score(told: Tensor) -> float:
        return reading.advantage(guess(told), truth)

    noisy = [score(asked_again(members, result, own, times, epsilon=0.5)) for _ in range(attackers)]
    advantages = {
        "none": score(differences(members, result, own)),
        "trust": score(differences(members, result, own, decimals=DECIMALS)),
        "noise": sum(noisy) / attackers,
    }
    print(advantages, f"allowed {bound:.2f}")
    assert advantages["none"] == advantages["trust"] == 1.0
    assert advantages["noise"] <= bound + 4 * math.sqrt(1 / (len(truth) * attackers)) < 1


def test_label_probing(own: Patients, tmp_path: Path) -> None:
    members = flipping(own.flat("test")[:TARGETS], tmp_path)
    labels = own.labels[torch.from_numpy(own.splits == "test")][:TARGETS].bool().tolist()
    result = alone(victim.fitted(members, patients(seed=3)))
    # Another label is a step of two patients: one counts for, the other against.
    check_probing(members, result, own, lambda told: (told > 0).tolist(), labels, bound=allowed(2 * 0.5), times=2)


def half_of_them_patients(own: Patients) -> Tensor:
    """Return the images that attackers ask about."""
    return torch.cat([own.flat("test")[: TARGETS // 2], patients(seed=9).flat("test")[: TARGETS // 2]])


def larger_half(told: Tensor) -> list[bool]:
    """Say whose image makes a difference: exact metrics do not change at all for who is no patient."""
    size = told.abs()
    return (size > (size.median() if size.min() > 0 else 1e-6)).tolist()


PRESENT = [True] * (TARGETS // 2) + [False] * (TARGETS // 2)


def test_members_that_differ_in_one_weight(own: Patients, tmp_path: Path) -> None:
    members = flipping(half_of_them_patients(own), tmp_path)
    result = alone(victim.fitted(members, patients(seed=3)))
    check_probing(members, result, own, larger_half, PRESENT, bound=allowed(0.5), times=4)


def singled_out(members: list[Member], targets: Tensor) -> FitResult:
    """Return candidates as a dishonest hub or requester may hand them out for honest members.

    Each has a gate that is open for one image alone. There stitches that read nothing give both members the features of
    an image of which they say the opposite.
    """
    points = [member.points((1, victim.SIDE, victim.SIDE))[-1].name for member in members]

    def seen(flat: Tensor) -> list[Tensor]:
        x = flat.view(-1, 1, victim.SIDE, victim.SIDE)
        return [member.model.features([point], x)[point] for member, point in zip(members, points, strict=True)]

    def answers(flat: Tensor) -> Tensor:
        outputs = [member.model(flat.view(-1, 1, victim.SIDE, victim.SIDE)) for member in members]
        return torch.stack([output.softmax(1) for output in outputs]).mean(0)

    honest = victim.fitted(members, patients(seed=3))
    others, kept = patients(seed=8).flat(), alone(honest).candidates.candidates
    surest, said = answers(others).argmax(0), answers(targets).argmax(1)
    own, both = seen(targets)[0], seen(others)
    tensors, candidates = {}, [*kept, *(one for one in honest.candidates.candidates if one.kind == "ensemble")]
    for number in range(len(targets)):
        stitches = []
        for source, target in ((0, 1), (1, 0)):
            name = f"p{number:02d}.{source}_{target}"
            tensors[f"{name}.weight"] = torch.zeros(both[target].shape[1], both[source].shape[1])
            tensors[f"{name}.bias"] = both[target][surest[1 - said[number]]]
            stitches.append({"source": source, "target": target, "weight": f"{name}.weight", "bias": f"{name}.bias"})
        tensors[f"g{number:02d}.weight"] = 1e3 * torch.eye(own.shape[1])
        tensors[f"g{number:02d}.bias"] = -1e3 * own[number]
        gate = {"points": {"0": points[0]}, "weight": f"g{number:02d}.weight", "bias": f"g{number:02d}.bias"}
        match = {"points": {"0": points[0], "1": points[1]}, "alpha": 1.0, "stitches": stitches}
        candidate = {"kind": "stitched", "members": [0, 1], "matches": [match], "gate": {**gate, "near": 1, "far": 2}}
        candidates.append(Candidate.model_validate({**candidate, "id": f"c{len(candidates):02d}"}))
    document = honest.candidates.model_copy(update={"candidates": tuple(candidates)})
    return FitResult(CandidateSet.model_validate_json(document.model_dump_json(by_alias=True)), tensors, (1, 6, 6))


def test_gates_that_are_open_for_one_image(own: Patients, tmp_path: Path) -> None:
    """Nothing is wrong with the members: who hands out the candidates has made them."""
    members = victim.members(own, victim.honest(patients(seed=3), seed=4), tmp_path)
    result = singled_out(members, half_of_them_patients(own))
    check_probing(members, result, own, larger_half, PRESENT, bound=allowed(0.5), times=2, attackers=12)


def refused(work: Callable[[], Any]) -> bool:
    """Whether a model refused to go on, as whoever asked hears by a code."""
    try:
        work()
    except SutureError as error:
        if error.code != "model.run_failed":
            raise
        return True
    return False


def test_an_operator_that_refuses_one_image(own: Patients, tmp_path: Path) -> None:
    advantages: dict[str, list[bool]] = {"none": [], "trust": [], "noise": []}
    for whose in (own, patients(seed=9)):
        both = victim.members(own, spies.Refuses(torch.stack([whose.flat()[0], whose.flat("test")[0]])), tmp_path)
        fitted = victim.fitted(both, patients(seed=7))
        asked = ({str(index): member.points((1, 6, 6))[-1].name for index, member in enumerate(both)},)
        for name, defence in (("none", UNDEFENDED), ("trust", TRUST), ("noise", NOISE)):
            privacy = defence.get("privacy")
            clipped = privacy and ClippedPrivacy(**privacy.model_dump(), clips=(1.0,))
            works = (
                lambda both=both, defence=defence: victim.fitted(both, own, **defence),
                lambda both=both, asked=asked, clipped=clipped: contribute(both, own.dataset(), asked, privacy=clipped),
                lambda both=both, fitted=fitted, privacy=privacy: evaluate(
                    both, fitted, own.dataset(), splits=("test",), privacy=privacy
                ),
            )
            (said,) = set(map(refused, works))
            advantages[name].append(said)
    found = {name: reading.advantage(said, [True, False]) for name, said in advantages.items()}
    print(found)
    assert found == {"none": 1.0, "trust": 1.0, "noise": 0.0}

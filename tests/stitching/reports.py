"""Reports to test with: of two members, of many candidates, with gates, and what a page of one says."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np

from suture_contract.documents import (
    Candidate,
    CandidateSet,
    Evaluation,
    Gate,
    Interval,
    Match,
    Score,
    SplitScores,
)
from suture_contract.model.metadata import MemberRef
from suture_contract.report import build


@dataclass
class Decision:
    chosen: str
    front: tuple[str, ...] = ("c00", "c04")
    hypervolume: float | None = 0.93
    verdicts: dict[str, str] = field(default_factory=lambda: {"north": "adopt", "south": "care", "east": "reject"})


CANDIDATES = CandidateSet(
    task="classification",
    members=(
        MemberRef(repo="north/digits", revision="a" * 40, sha256="1" * 64),
        MemberRef(repo="south/digits", revision="b" * 40, sha256="2" * 64),
    ),
    labels=("0", "1"),
    n=100,
    seed=0,
    candidates=(
        Candidate(id="c00", kind="single", members=(0,)),
        Candidate(id="c01", kind="single", members=(1,)),
        Candidate(id="c02", kind="ensemble", members=(0, 1)),
        Candidate(
            id="c03",
            kind="stitched",
            members=(0, 1),
            matches=(Match(points={"0": "n4", "1": "n7"}, alpha=0.5, stitches=()),),
        ),
        Candidate(
            id="c04",
            kind="stitched",
            members=(0, 1),
            matches=(Match(points={"0": "n9", "1": "n12"}, alpha=0.25, stitches=()),),
            refined=True,
        ),
    ),
)


def evaluation(values, own=None, n=200, metric="accuracy", validation=None):
    def scores(numbers):
        return {
            f"c{i:02}": Score(
                value=value,
                low=value - 0.02,
                high=value + 0.01,
                difference=None
                if own is None
                else Interval(
                    value=value - numbers[own], low=value - numbers[own] - 0.03, high=value - numbers[own] + 0.02
                ),
            )
            for i, value in enumerate(numbers)
        }

    return Evaluation(
        metric=metric,
        higher_is_better=metric != "mae",
        own=own,
        splits={
            "validation": SplitScores(n=99, scores=scores(validation or values)),
            "test": SplitScores(n=n, scores=scores(values)),
        },
    )


NORTH = evaluation([0.98, 0.49, 0.82, 0.9, 0.956], own=0, n=1234)
SOUTH = evaluation([0.21, 0.96, 0.97, 0.9, 0.963], own=1)


def report(evaluations=None, chosen="c04", **options):
    return build(
        CANDIDATES,
        evaluations or {"north": NORTH, "south": SOUTH},
        Decision(chosen),
        requester="north",
        parties_of_members=["north", "south"],
        job="job_1",
        **options,
    )


class Page(HTMLParser):
    """Collects every element with its attributes, and the text outside of `style`."""

    VOID = frozenset({"meta", "path", "rect", "circle", "line", "link", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"<{tag}> closed out of order"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def crowded(chosen=(0.941, 0.952), seed=0):
    """A report of sixty candidates close together, with the members alone far away."""
    random = np.random.default_rng(seed)
    matches = (Match(points={"0": "n4", "1": "n7"}, alpha=0.5, stitches=()),)
    more = [Candidate(id=f"c{i:02}", kind="stitched", members=(0, 1), matches=matches) for i in range(5, 60)]
    north, south = (list(random.uniform(0.92, 0.95, 60)) for _ in range(2))
    north[:5], south[:5] = [0.78, 0.52, 0.93, 0.94, chosen[0]], [0.03, 0.96, 0.931, 0.94, chosen[1]]
    candidates = CANDIDATES.model_copy(update={"candidates": (*CANDIDATES.candidates, *more)})
    evaluations = {"north": evaluation(north, own=0), "south": evaluation(south, own=1)}
    decision = Decision("c04")
    return build(
        candidates, evaluations, decision, requester="north", parties_of_members=["north", "south"], job="job_1"
    )


GATE = Gate(points={"0": "n1", "1": "n2"}, weight="g.weight", bias="g.bias", near=1.0, far=1.25, withdraws=0)
OPEN_GATE = GATE.model_copy(update={"withdraws": None})
ROUTED = CANDIDATES.model_copy(
    update={
        "candidates": (
            *CANDIDATES.candidates,
            Candidate(id="c05", kind="routed", members=(0, 1), gate=GATE),
            Candidate(id="c06", kind="routed", members=(0, 1), gate=GATE.model_copy(update={"far": 2.0})),
        )
    }
)


def routed_report(chosen, north=None, south=None):
    """A report in which routing was measured, too: of two, c06 is the better one on validation, c05 on test."""
    measured = {
        "north": north or evaluation([0.98, 0.49, 0.82, 0.9, 0.95, 0.97, 0.96], own=0, validation=[0.5] * 6 + [0.9]),
        "south": south or evaluation([0.2, 0.96, 0.97, 0.9, 0.96, 0.95, 0.94], own=1, validation=[0.5] * 6 + [0.9]),
    }
    return build(
        ROUTED, measured, Decision(chosen), requester="north", parties_of_members=["north", "south"], job="job_1"
    )

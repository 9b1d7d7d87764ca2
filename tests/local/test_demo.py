"""What the demo says and clears away, and how a report is shown."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from suture.report_table import report_table
from suture_contract.documents import Interval, Report
from suture_contract.errors import SutureError
from suture_local import digits
from suture_local.demo import _clean, _meets_targets
from suture_local.installation import Installation
from suture_local.story import Judged


def test_the_digits_are_read_without_scikit_learn_and_are_those_that_it_loads() -> None:
    code = "import sys; from suture_local import digits; digits.parties(0); assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=250)
    from sklearn.datasets import load_digits  # not at the top: it takes a second in each process that collects tests

    images, labels = digits.every()
    loaded = load_digits()
    np.testing.assert_array_equal(images[:, 0], (loaded.images / 16).astype(np.float32))
    np.testing.assert_array_equal(labels, loaded.target)


def report(own: float, ensemble: float, stitched: float, peer_ensemble: float, peer_stitched: float) -> Report:
    def row(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.02, "high": value + 0.02}

    here = {"own": row(own), "peer:south/digits": row(0.5), "ensemble": row(ensemble), "stitched": row(stitched)}
    there = {"own": row(0.97), "peer:north/digits": row(0.2)}
    there |= {"ensemble": row(peer_ensemble), "stitched": row(peer_stitched)}
    member = {"revision": "0" * 40, "sha256": "0" * 64}
    return Report.model_validate(
        {
            "schema": "suture.report/1",
            "requester": "north",
            "parties": {
                "south": {"metric": "balanced_accuracy", "n": 1270, "rows": there, "verdict": "care"},
                "north": {"metric": "accuracy", "n": 268, "rows": here, "verdict": "adopt"},
            },
            "chosen": "c03",
            "candidates": [{"id": "c03", "kind": "stitched", "label": "stitched", "metrics": {}, "front": True}],
            "lineage": {"job": "job_1", "members": [{"repo": f"{p}/digits", **member} for p in ("north", "south")]},
            "missing": [{"party": "east", "reason": "no_answer"}],
        }
    )


@pytest.mark.parametrize(("shipped_right", "met"), [(0.98, True), (0.82, False)])
def test_the_demo_says_what_the_shipped_file_does_and_what_it_misses(shipped_right: float, met: bool) -> None:
    over_own = Interval(value=shipped_right - 0.8, low=shipped_right - 0.85, high=shipped_right - 0.75)
    over_plain = Interval(value=shipped_right - 0.5, low=shipped_right - 0.55, high=shipped_right - 0.45)
    none = Interval(value=0, low=0, high=0)
    judged = {
        "north": Judged(n=269, own=0.8, plain=0.5, shipped=shipped_right, over_own=over_own, over_plain=over_plain),
        "south": Judged(n=268, own=0.96, plain=0.95, shipped=0.96, over_own=none, over_plain=none),
    }
    found = report(0.8, 0.5, shipped_right, 0.95, 0.96)
    north = found.parties["north"]
    # Where routing was chosen, the report has no gain over it.
    north = north.model_copy(update={"gains": {"routed": over_own} if met else {}})
    found = found.model_copy(update={"parties": {**found.parties, "north": north}})
    output = io.StringIO()
    assert _meets_targets(digits.STORY, judged, found, Console(file=output, width=80)) is met
    lines = output.getvalue().splitlines()
    told = f"the shipped file on north's 269 test images: {shipped_right:.1%} right, north's own model 80.0%"
    assert told in lines[0]
    words = [line.split()[0] for line in lines[2:]]
    assert words == ["met" if met else "MISSED", "met", "met" if met else "MISSED", "met", "met"]
    assert ("+18.0 points [+13.0, +23.0], wanted above zero" in lines[2]) is met


def test_only_what_a_demo_left_is_removed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with Installation(root):
        (root / "north" / "data").mkdir(parents=True)
        (root / "report.json").touch()
        (root / "my notes").touch()
        with pytest.raises(SutureError) as busy:
            _clean(root)
        assert busy.value.code == "root.in_use"
        assert (root / "report.json").exists()
    _clean(root)
    assert {path.name for path in root.iterdir()} == {"lock", "my notes"}
    _clean(tmp_path / "not there")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    with pytest.raises(SutureError) as caught:
        _clean(tmp_path)
    assert caught.value.code == "demo.root"
    assert (tmp_path / "hub").is_dir()


def test_the_table_shows_every_row_party_interval_and_verdict() -> None:
    output = io.StringIO()
    Console(file=output, width=140).print(report_table(report(0.99, 0.82, 0.96, 0.97, 0.95)))
    shown = output.getvalue()
    for part in (
        "north (asked): accuracy",
        "south: balanced accuracy",
        "own model",
        "peer south/digits",
        "peer north/digits",
        "plain ensemble",
        "Chosen for north: the models joined inside",
        "96.0 % (accuracy) on north's test data, 3.0 points worse than its own model",
        "0.960 [0.940, 0.980]",
        "1,270",
        "adopt, but no gain is shown",
        "look closely",
        "missing: east (no answer)",
    ):
        assert part in shown
    assert shown.index("north (asked)") < shown.index("south: balanced")
    rows = [line.split("  ")[0].strip("│ ") for line in shown.splitlines() if "[" in line]
    assert rows == ["chosen", "own model", "peer north/digits", "peer south/digits", "plain ensemble"]

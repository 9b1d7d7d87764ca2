"""How the demo judges its report, and how a report is shown."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from suture.report_table import report_table
from suture_contract.documents import Report
from suture_contract.errors import SutureError
from suture_local.demo import _clean, targets
from suture_local.installation import Installation


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


def test_targets_are_differences_between_rows_in_points() -> None:
    reached = targets(report(own=0.99, ensemble=0.82, stitched=0.96, peer_ensemble=0.97, peer_stitched=0.96))
    assert [target.points for target in reached] == pytest.approx([14, -3, -1])
    assert all(target.met for target in reached)


@pytest.mark.parametrize(
    ("values", "met"),
    [
        ((0.99, 0.90, 0.95, 0.97, 0.95), [True, True, True]),
        ((0.99, 0.90, 0.949, 0.97, 0.97), [False, False, True]),
        ((0.99, 0.82, 0.94, 0.97, 0.97), [True, False, True]),
        ((0.99, 0.82, 0.96, 0.97, 0.94), [True, True, False]),
    ],
)
def test_each_target_can_be_missed_and_is_met_on_the_line(values: tuple[float, ...], met: list[bool]) -> None:
    assert [target.met for target in targets(report(*values))] == met


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
        "96.0 % (accuracy) on north's test data: 3.0 points worse than its own model",
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

"""Work that was killed, cancelled or starved of disk goes on, and ends as if nothing had happened."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.stitching.killed import POINTS
from tests.stitching.networks import dataset, keep_exported, same_fit

from suture_contract.errors import Cancelled
from suture_stitching.ensemble import members
from suture_stitching.evaluation import evaluate
from suture_stitching.fitting import fit
from suture_stitching.fitting.fit import FitOptions, FitResult, Member
from suture_stitching.running import checkpoint
from suture_stitching.running.checkpoint import Checkpoint
from suture_stitching.running.progress import Progress

OPTIONS = FitOptions(refine_steps=6, refine_candidates=2, max_matches=2)
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("small_batches_and_frequent_parts")


@pytest.fixture(scope="module")
def whole(pair: list[Member]) -> FitResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "_LARGEST_BATCH", 16)
        return fit.fit(pair, dataset(), own=0, options=OPTIONS)


@pytest.mark.usefixtures("pair")
def test_killed_at_any_point_it_gives_the_same_bytes(tmp_path: Path) -> None:
    keep_exported(tmp_path / "exported")
    done = subprocess.run(
        [sys.executable, "-m", "tests.stitching.killed", str(tmp_path), str(tmp_path / "exported")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    assert kills["fit"] >= len(POINTS)
    assert kills["evaluate"] == 2
    for file in ("candidates.json", "stitches.safetensors", "evaluation.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes()
    # What a killed write leaves behind is cleared away.
    assert not list((tmp_path / "fit").glob(".*"))


@pytest.mark.parametrize("step", ["match", "solve", "double", "refine"])
def test_cancelled_between_batches_it_goes_on(pair: list[Member], whole: FitResult, tmp_path: Path, step: str) -> None:
    def cancel(progress: Progress) -> None:
        if progress.step == step and progress.done >= 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit.fit(pair, dataset(), own=0, options=OPTIONS, progress=cancel, checkpoint=tmp_path)
    assert same_fit(fit.fit(pair, dataset(), own=0, options=OPTIONS, checkpoint=tmp_path), whole)


def test_what_is_finished_is_not_done_again(
    pair: list[Member], whole: FitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit.fit(pair, dataset(), own=0, options=OPTIONS, checkpoint=tmp_path)
    scores = evaluate.evaluate(pair, whole, dataset(), own=0, checkpoint=tmp_path)

    def again(*_arguments: object, **_named: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(fit, "refine", again)
    monkeypatch.setattr("suture_stitching.running.device.Runner.parts", again)
    seen: list[Progress] = []
    monkeypatch.setattr("suture_stitching.fitting.fit.best_at_home", lambda *_: 0)
    # Whoever ends the task looks at a bounded number of training samples.
    monkeypatch.setattr(evaluate._Evaluation, "_on_train", lambda *_: scores.train)
    assert evaluate.evaluate(pair, whole, dataset(), own=0, checkpoint=tmp_path, progress=seen.append) == scores
    assert (seen[-1].done, seen[-1].seconds_left) == (seen[-1].total, None)
    fit.fit(pair, dataset(), own=0, options=OPTIONS, checkpoint=tmp_path)
    fit.fit(pair, dataset(), own=0, options=OPTIONS.model_copy(update={"refine_candidates": 1}), checkpoint=tmp_path)


def test_parts_of_other_work_are_passed_over(
    pair: list[Member], whole: FitResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit.fit(pair, dataset(seed=5), options=OPTIONS, checkpoint=tmp_path)
    fit.fit(pair, dataset(), own=0, options=OPTIONS.model_copy(update={"seed": 1}), checkpoint=tmp_path)
    fit.fit(pair[::-1], dataset(), own=0, options=OPTIONS, checkpoint=tmp_path)
    caplog.clear()
    assert same_fit(fit.fit(pair, dataset(), own=0, options=OPTIONS, checkpoint=tmp_path), whole)
    assert sum("of other work" in message for message in caplog.messages) >= 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_parts_are_passed_over(
    pair: list[Member], whole: FitResult, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    fit.fit(pair, dataset(), own=0, options=OPTIONS, checkpoint=tmp_path)
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes({"cut": content[:-7], "flipped": content, "empty": b""}[damage])
    assert same_fit(fit.fit(pair, dataset(), own=0, options=OPTIONS, checkpoint=tmp_path), whole)
    assert any("damaged" in message for message in caplog.messages)


def test_without_room_for_a_checkpoint_the_work_goes_on(
    pair: list[Member],
    whole: FitResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    assert same_fit(fit.fit(pair, dataset(), own=0, options=OPTIONS, checkpoint=tmp_path / "file" / "inside"), whole)

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with caplog.at_level(logging.WARNING):
        assert same_fit(fit.fit(pair, dataset(), own=0, options=OPTIONS, checkpoint=tmp_path / "full"), whole)
    assert sum("going on without" in message for message in caplog.messages) == 2
    assert not list((tmp_path / "full").iterdir())


def test_parts_come_back_exactly(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path, "one")
    tensors = {"a": torch.randn(3, 2, dtype=torch.float64), "b": torch.tensor(7), "none": torch.zeros(0, 4)}
    kept.save("part", {"n": 0.1, "text": "é"}, tensors)
    part = Checkpoint(tmp_path, "one").load("part")
    assert part is not None
    assert part.document == {"n": 0.1, "text": "é"}
    assert all(torch.equal(part.tensors[name], tensor) for name, tensor in tensors.items())
    assert Checkpoint(tmp_path, "two").load("part") is None
    assert kept.load("other") is None
    assert Checkpoint(None, "one").load("part") is None

"""Finished seeds of a study are kept: it goes on from them, they come into one page, others' are left alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import study  # noqa: E402

from suture_contract.errors import SutureError  # noqa: E402
from suture_local.study import kept, reading, table  # noqa: E402
from suture_local.study.data import Study  # noqa: E402
from suture_local.study.results import MethodScores, SeedResult, StitchedScores  # noqa: E402
from suture_local.study.summary import summarise  # noqa: E402

CPU = torch.device("cpu")
PARTIES = ("a", "b")


def _tables(folder: Path, *, seed: int = 0) -> dict[str, Path]:
    rng = np.random.default_rng(seed)
    for party in PARTIES:
        rows = [f"{rng.normal(label):.3f},{rng.normal():.3f},{label}" for label in rng.integers(0, 2, 40)]
        (folder / f"{party}.csv").write_text("\n".join(["x,y,ill", *rows]) + "\n")
    return _files(folder)


def _files(folder: Path) -> dict[str, Path]:
    return {party: folder / f"{party}.csv" for party in PARTIES}


def _study(folder: Path) -> Study:
    return reading.files_study("classification", _tables(folder), "ill")


def _main(folder: Path, *arguments: str) -> int:
    files = [part for party in PARTIES for part in ("--party", f"{party}={folder / party}.csv")]
    out = ["--device", "cpu", "--out", str(folder / "out")]
    return study.main(["--task", "classification", "--label", "ill", *files, *out, *arguments])


def _result(seed: int) -> SeedResult:
    """Return a result with figures that no decimal fraction of few digits is equal to."""
    rng = np.random.default_rng(seed)
    alone = [f"{kind}: {party}" for kind in ("alone", "distilled") for party in PARTIES]
    asked = [f"stitched: {party}" for party in PARTIES]
    methods = {
        method: {
            party: MethodScores(rng.uniform(size=12), {"balanced accuracy": float(rng.uniform()), "AUROC": None})
            for party in PARTIES
        }
        for method in (*alone, "plain ensemble", "weight averaging", "union training", *asked)
    }
    stitched = {
        party: StitchedScores(
            chosen="c2",
            kind="stitched",
            refined=True,
            gated=bool(seed % 2),
            candidates={id: {party: float(rng.uniform()) for party in PARTIES} for id in ("c0", "c1", "c2")},
            kinds={"c0": "single", "c1": "ensemble", "c2": "stitched"},
            front=("c1", "c2"),
            hypervolume=float(rng.uniform()),
            plain_hypervolume=1 / 3,
            seconds=float(rng.uniform()),
            options={"seed": seed, "alphas": [0.25, 0.1 + 0.2]},
        )
        for party in PARTIES
    }
    return SeedResult(
        seed, methods, stitched, {"a: own model": float(rng.uniform())}, ["A note."], 1e3 / 7, {"a": np.arange(12) // 3}
    )


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[SeedResult]:
    """The results of the seeds that were run, not read."""
    results: list[SeedResult] = []
    run = study.StudyRunner.run

    def noted(self: Any, *arguments: Any) -> SeedResult:
        results.append(run(self, *arguments))
        return results[-1]

    monkeypatch.setattr(study.StudyRunner, "run", noted)
    return results


def test_what_is_kept_gives_the_same_summary(tmp_path: Path) -> None:
    own, results = _study(tmp_path), [_result(0), _result(1)]
    for result in results:
        kept.KeptSeeds(own, CPU, None, tmp_path).save(result)
    loaded = [kept.KeptSeeds(own, CPU, None, tmp_path).load(seed) for seed in (0, 1)]
    for result, again in zip(results, loaded, strict=True):
        assert again is not None
        assert replace(again, methods={}, patients={}) == replace(result, methods={}, patients={})
        assert [own.tolist() for own in again.patients.values()] == [own.tolist() for own in result.patients.values()]
        assert list(again.methods) == list(result.methods)
        for method, found in result.methods.items():
            for party, measured in found.items():
                assert again.methods[method][party].scores.tobytes() == measured.scores.tobytes()
                assert again.methods[method][party].besides == measured.besides
    assert summarise(PARTIES, [one for one in loaded if one]) == summarise(PARTIES, results)
    assert kept.KeptSeeds(own, CPU, None, tmp_path).load(2) is None
    assert not list(tmp_path.glob(".*"))  # nothing temporary is left


def test_a_study_that_was_killed_goes_on(
    tmp_path: Path, ran: list[SeedResult], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _tables(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(study.StudyRunner, "run", _killed_at(1, study.StudyRunner.run))
        with pytest.raises(KeyboardInterrupt):
            _main(tmp_path, "--seeds", "2")
    assert [result.seed for result in ran] == [0]

    assert _main(tmp_path, "--seeds", "2") == 0
    assert [result.seed for result in ran] == [0, 1]
    assert "tables, seed 0: read from" in capsys.readouterr().out
    page, document = (tmp_path / "out" / f"tables{ending}" for ending in (".md", ".json"))
    written, found = page.read_bytes(), json.loads(document.read_text())
    assert [one["seed"] for one in found["results"]["seeds"]] == [0, 1]
    # What one process would have written that ran both.
    whole = summarise(PARTIES, ran)
    assert found["results"]["methods"] == table.document("", "", PARTIES, whole, ran, [])["methods"]

    assert _main(tmp_path, "--seeds", "2") == 0
    assert [result.seed for result in ran] == [0, 1]
    assert page.read_bytes() == written


def test_seeds_run_one_by_one_come_into_one_page(tmp_path: Path, ran: list[SeedResult]) -> None:
    own, out = _study(tmp_path), tmp_path / "out"
    out.mkdir()
    for seed in (3, 4):
        kept.KeptSeeds(own, CPU, 0.05, out).save(_result(seed))
    # What is there costs no time: all of it is for the seed that is missing.
    assert _main(tmp_path, "--first-seed", "2", "--seeds", "3", "--budget", "0.05") == 0
    (result,) = ran
    assert result.seed == 2
    assert result.limit is not None
    assert 1 < result.limit < 3
    found = json.loads((out / "tables.json").read_text())["results"]
    assert [(one["seed"], one["limit_seconds"]) for one in found["seeds"]] == [
        (2, round(result.limit, 1)),
        (3, 142.9),
        (4, 142.9),
    ]
    assert "Seeds 3, 4: A note." in found["notes"]
    assert f"Seed 2: Training, fitting and evaluating were given {result.limit:.0f} s." in found["notes"]


def test_what_is_kept_of_another_study_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = _study(tmp_path)
    first = kept.KeptSeeds(own, CPU, None, tmp_path)
    first.save(_result(0))
    header, row, *rest = (tmp_path / "b.csv").read_text().splitlines(keepends=True)
    (tmp_path / "b.csv").write_text("".join([header, f"9.87{row[row.index(',') :]}", *rest]))
    others = [
        kept.KeptSeeds(reading.files_study("classification", _files(tmp_path), "ill"), CPU, None, tmp_path),
        kept.KeptSeeds(replace(own, parties=("b", "a")), CPU, None, tmp_path),
        kept.KeptSeeds(replace(own, labels=("healthy", "ill")), CPU, None, tmp_path),
        kept.KeptSeeds(own, torch.device("cuda"), None, tmp_path),
        kept.KeptSeeds(own, CPU, 12.0, tmp_path),
    ]
    with monkeypatch.context() as patched:
        patched.setattr(kept, "code", lambda: "other")
        others.append(kept.KeptSeeds(own, CPU, None, tmp_path))
    assert len({one.path(0) for one in (first, *others)}) == len(others) + 1
    assert [one.load(0) for one in others] == [None] * len(others)
    others[0].save(_result(1))
    found = first.load(0)
    assert found is not None
    assert found.notes == _result(0).notes


@pytest.mark.parametrize("change", [lambda b: b[:-9], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_damaged_results_are_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    own = kept.KeptSeeds(_study(tmp_path), CPU, None, tmp_path)
    own.save(_result(0))
    own.path(0).write_bytes(change(own.path(0).read_bytes()))
    with pytest.raises(SutureError, match="delete the file") as raised:
        own.load(0)
    assert raised.value.code == "study.damaged"


def _killed_at(seed: int, run: Callable[..., SeedResult]) -> Callable[..., SeedResult]:
    def killed(self: Any, now: int, *arguments: Any) -> SeedResult:
        if now == seed:
            raise KeyboardInterrupt
        return run(self, now, *arguments)

    return killed

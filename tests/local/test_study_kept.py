"""What was done of a study is kept: it goes on from there, with the same bytes; others' results are left alone."""

from __future__ import annotations

import html
import io
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from suture_contract.errors import Interrupted, SutureError
from suture_local.simulate import simulate
from suture_local.study import data, kept, page, play, run, training
from suture_local.study.data import Study
from suture_local.study.reading import parties_study
from suture_local.study.results import LEFT_OUT_PREFIX, MethodScores, SeedResult, StitchedScores
from suture_local.study.run import Setup
from suture_local.study.summary import summarise
from suture_local.study.tables import TableColumns
from suture_stitching.evaluation.evaluate import evaluate as engine_evaluate
from suture_stitching.fitting.fit import FitOptions

SETUP = Setup(torch.device("cpu"), 2, FitOptions(refine=False))
PARTIES = ("a", "b")
#: The command where neither a hub nor a site is installed.
ALONE = """
import sys
sys.modules.update(dict.fromkeys(("sqlalchemy", "fastapi", "celery", "sklearn")))
from suture.cli import main
main()
"""
#: The same, killed within the folder of its second argument where it puts the next file in place after one network.
KILLED = """
import os, signal, sys
from pathlib import Path
folder = Path(sys.argv.pop(1))
def kill(event, arguments):
    if event == "os.rename" and list(folder.glob("*.unfinished/trainings/a-distilled.safetensors")):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
"""


def _tables(folder: Path, *, seed: int = 0) -> dict[str, Path]:
    rng = np.random.default_rng(seed)
    for party in PARTIES:
        rows = [f"{rng.normal(label):.3f},{rng.normal():.3f},{label}" for label in rng.integers(0, 2, 40)]
        (folder / f"{party}.csv").write_text("\n".join(["x,y,ill", *rows]) + "\n")
    return _files(folder)


def _files(folder: Path) -> dict[str, Path]:
    return {party: folder / f"{party}.csv" for party in PARTIES}


def _study(folder: Path) -> Study:
    return _read(_tables(folder))


def _read(files: dict[str, Path]) -> Study:
    return parties_study("simulation", files, "classification", TableColumns("ill"))


def _simulate(folder: Path, out: str, seeds: range = range(1)) -> str:
    text = io.StringIO()
    simulate(_read(_files(folder)), SETUP, seeds, folder / out, Console(file=text, width=200))
    return text.getvalue()


def _written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".html", ".json")}


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
            options={"seed": seed, "alphas": [0.25, 0.1 + 0.2]},
        )
        for party in PARTIES
    }
    return SeedResult(seed, methods, stitched, {}, ["A note."], {"a": np.arange(12) // 3})


def test_what_is_kept_gives_the_same_summary(tmp_path: Path) -> None:
    own, results = _study(tmp_path), [_result(0), _result(1)]
    for result in results:
        kept.KeptSeeds(own, SETUP, tmp_path).save(result)
    loaded = [kept.KeptSeeds(own, SETUP, tmp_path).load(seed) for seed in (0, 1)]
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
    assert kept.KeptSeeds(own, SETUP, tmp_path).load(2) is None
    assert not list(tmp_path.glob(".*"))  # nothing temporary is left


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What is written where nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    _tables(folder)
    _simulate(folder, "out", range(2))
    return _written(folder / "out")


@pytest.fixture
def whole(tmp_path: Path, undisturbed: dict[str, bytes]) -> dict[str, bytes]:
    _tables(tmp_path)
    return undisturbed


def test_a_simulation_that_was_killed_goes_on_with_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    out, files = tmp_path / "out", [f"{party}={path}" for party, path in _files(tmp_path).items()]
    command = [sys.executable, "-c", KILLED + ALONE, str(out), "simulate", *files, "--label", "ill", "--out", str(out)]
    command += ["--epochs", "2", "--no-refine", "--seeds", "2"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not (out / "simulation.html").exists()
    (unfinished,) = out.glob("*.unfinished")
    kept_networks = list((unfinished / "trainings").glob("*.safetensors"))

    trained: list[Any] = []
    train = training.train

    def counted(*arguments: Any, **options: Any) -> Any:
        trained.append(arguments)
        return train(*arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "train", counted)
        _simulate(tmp_path, "out", range(2))
    # Two seeds of two own and two taught networks, one of the common design and two of the union.
    assert len(trained) == 2 * 7 - len(kept_networks)
    assert _written(out) == whole
    assert not list(out.glob("*.unfinished"))


def test_a_person_stops_it_and_it_goes_on(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(play, "run_seed", _stopped_at(1, run.run_seed))
        with pytest.raises(Interrupted, match="the same command goes on"):
            _simulate(tmp_path, "out", range(2))
    assert (tmp_path / "out" / "simulation.html").exists()  # of the first seed
    ran: list[int] = []
    run_seed = run.run_seed
    monkeypatch.setattr(play, "run_seed", lambda *a: (ran.append(a[2]), run_seed(*a))[1])
    assert "seed 0: read from" in _simulate(tmp_path, "out", range(2))
    assert ran == [1]
    assert _written(tmp_path / "out") == whole
    _simulate(tmp_path, "out", range(2))
    assert ran == [1]
    assert _written(tmp_path / "out") == whole


def test_what_is_kept_of_another_study_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = _study(tmp_path)
    first = kept.KeptSeeds(own, SETUP, tmp_path)
    first.save(_result(0))
    header, row, *rest = (tmp_path / "b.csv").read_text().splitlines(keepends=True)
    (tmp_path / "b.csv").write_text("".join([header, f"9.87{row[row.index(',') :]}", *rest]))
    others = [
        kept.KeptSeeds(_read(_files(tmp_path)), SETUP, tmp_path),
        kept.KeptSeeds(replace(own, parties=("b", "a")), SETUP, tmp_path),
        kept.KeptSeeds(replace(own, labels=("healthy", "ill")), SETUP, tmp_path),
        kept.KeptSeeds(own, replace(SETUP, device=torch.device("cuda")), tmp_path),
        kept.KeptSeeds(own, replace(SETUP, epochs=3), tmp_path),
        kept.KeptSeeds(own, replace(SETUP, options=FitOptions()), tmp_path),
    ]
    with monkeypatch.context() as patched:
        patched.setattr(kept, "code", lambda: "other")
        others.append(kept.KeptSeeds(own, SETUP, tmp_path))
    assert len({one.path(0) for one in (first, *others)}) == len(others) + 1
    assert [one.load(0) for one in others] == [None] * len(others)
    others[0].save(_result(1))
    found = first.load(0)
    assert found is not None
    assert found.notes == _result(0).notes


@pytest.mark.parametrize("change", [lambda b: b[:-9], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_damaged_results_are_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    own = kept.KeptSeeds(_study(tmp_path), SETUP, tmp_path)
    own.save(_result(0))
    own.path(0).write_bytes(change(own.path(0).read_bytes()))
    with pytest.raises(SutureError, match="delete the file") as raised:
        own.load(0)
    assert raised.value.code == "study.damaged"


def _stopped_at(seed: int, run_seed: Callable[..., SeedResult]) -> Callable[..., SeedResult]:
    def stopped(study: Study, setup: Setup, now: int, *arguments: Any) -> SeedResult:
        if now == seed:
            raise KeyboardInterrupt
        return run_seed(study, setup, now, *arguments)

    return stopped


def test_what_is_measured_at_a_party_left_out_was_made_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[str], str]] = []
    real = engine_evaluate

    def evaluate(members: Any, fitted: Any, dataset: Any, **options: Any) -> Any:
        seen.append(({member.ref.repo.partition("/")[0] for member in members}, dataset.where))
        return real(members, fitted, dataset, **options)

    monkeypatch.setattr("suture_local.study.run.evaluate", evaluate)
    rng = np.random.default_rng(0)
    parties = {}
    for name in ("a", "b", "c"):
        labels = rng.integers(0, 2, 60)
        inputs = np.stack([rng.normal(labels), rng.normal(size=60)], 1).astype(np.float32)
        parties[name] = data.PartySamples(inputs, labels, np.array(["train", "validation", "test"])[np.arange(60) % 3])
    study = Study("s", "classification", ("0", "1"), ("a", "b", "c"), lambda seed: parties, channels=("x", "y"))
    setup = Setup(torch.device("cpu"), 1, FitOptions(recipe="paper", max_matches=1, alphas=(0.5,)), leave_out=True)
    result = run.run_seed(study, setup, 0, lambda name: lambda done: None, tmp_path / "work")
    without = [(members, where) for members, where in seen if len(members) == 2]
    assert len(without) == 3 * 2 * 2, "each left out, two requesters, two that evaluate"
    assert all(where in members for members, where in without)
    for method in run.LEFT_OUT:
        assert set(result.methods[method]) == {"a", "b", "c"}
        assert all(len(own.scores) == 20 for own in result.methods[method].values())
    shown = html.unescape(page.to_html(study, [result], summarise(study.parties, [result]), []))
    assert "Accuracy at a party that took no part" in shown
    assert all(f'<th scope="row">{method.removeprefix(LEFT_OUT_PREFIX)}</th>' in shown for method in run.LEFT_OUT)
    assert all(f"<dt>{name}</dt>" in shown for name, _ in page.LEFT_OUT_MEANINGS)


def test_a_training_says_where_it_was_best_and_what_it_still_gained() -> None:
    study = Study("s", "classification", ("0", "1"), PARTIES, lambda seed: {})
    part = data.Part(torch.randn(64, 2), torch.randint(0, 2, (64,)))
    ends: list[training.TrainingEnd] = []
    recipe = training.recipe_of("classification", 0, False, 3)
    training.train(
        study.untrained(0, (2,), 0),
        part,
        [part],
        recipe,
        training.machine_of(torch.device("cpu"), (2,)),
        seed=0,
        ended=ends.append,
    )
    (end,) = ends
    assert 0.25 < end.best <= 1
    assert training.TrainingEnd(1.0, 0.03).converged is False
    assert training.TrainingEnd(1.0, 0.01).converged

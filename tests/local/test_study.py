"""Parties are played on their own data: tables, folders, arrays as people have them; a result that is complete."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from suture.cli.app import app
from suture_contract.errors import SutureError
from suture_local import heart
from suture_local.simulate import named, simulate, with_networks
from suture_local.study import data, kept, scores, training
from suture_local.study.reading import parties_study
from suture_local.study.run import Setup
from suture_local.study.tables import TableColumns
from suture_stitching.evaluation.bootstrap import intervals
from suture_stitching.fitting.fit import FitOptions

ROOT = Path(__file__).parents[2]
ILL = TableColumns("ill")


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch over a few images has the steps that they are enough for; else it counts as many more."""
    whole = training._recipe_of
    monkeypatch.setattr(training, "_recipe_of", lambda *given: replace(whole(*given), fewest=1))


def _blobs(n: int, size: int, seed: int, *, brightness: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images with a bright disc in each, and masks of the disc."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centre, radius = rng.uniform(0.3, 0.7, (n, 2, 1, 1)) * size, rng.uniform(0.15, 0.3, (n, 1, 1)) * size
    masks = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2
    images = rng.integers(0, 60, (n, size, size)) + brightness * masks
    return images.astype(np.uint8), masks


def _paths(folder: Path, ending: str) -> dict[str, Path]:
    return {party: folder / f"{party}{ending}" for party in ("a", "b")}


def _play(study: data.Study, out: Path) -> dict[str, Any]:
    setup = Setup(torch.device("cpu"), 1, FitOptions(refine=False, max_matches=1, alphas=(0.5,)))
    simulate(study, setup, range(1), out, Console(file=io.StringIO()))
    document: dict[str, Any] = json.loads((out / "simulation.json").read_text())
    return document


def _check(document: dict[str, Any], out: Path, parties: list[str], asking: list[str]) -> None:
    """Every method is there for every party, every requester has its plot and its report."""
    results = document["results"]
    wanted = {
        *(f"{kind}: {party}" for kind in ("alone", "distilled") for party in parties),
        *("plain ensemble", "plain ensemble (logits)", "weight averaging", "federated averaging", "union training"),
        *("weight averaging, units aligned", "FedProx", "aggregated outputs (FENS)"),
        *(f"stitched: {party}" for party in asking),
    }
    assert {row["method"] for row in results["methods"]} >= wanted
    for row in results["methods"]:
        assert set(row["parties"]) == set(parties)
        assert all(0 <= own["low"] <= own["value"] <= own["high"] <= 1 for own in row["parties"].values())
    assert [asked["requester"] for asked in results["asked"]] == asking
    page = (out / "simulation.html").read_text()
    assert all(f">{method}</th>" in page for method in wanted)
    assert page.count("<svg") == len(asking)
    assert "<script" not in page
    assert {path.name for path in out.glob("report-*.html")} == {f"report-{party}.html" for party in asking}
    assert document["versions"]["torch"] == torch.__version__


def _documented() -> list[str]:
    """Return the arguments of the command that docs/guide/simulate.md gives for the hospitals' tables."""
    text = (ROOT / "docs/guide/simulate.md").read_text().replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.strip().startswith("suture simulate cleveland="))
    arguments = shlex.split(line)[1:]
    return [
        part.partition("=")[0] + f"={heart.table(part.partition('=')[0])}" if part.endswith(".csv") else part
        for part in arguments
    ]


def test_the_documented_command_is_the_heart_table_of_the_study(tmp_path: Path) -> None:
    out = tmp_path / "out"
    budget = ["--epochs", "1", "--no-refine", "--seeds", "1", "--out", str(out)]
    result = CliRunner().invoke(app, [*_documented(), *budget])
    assert result.exit_code == 0, result.output
    _check(json.loads((out / "simulation.json").read_text()), out, [*heart.PARTIES], [*heart.PARTIES])
    assert "what it would use reaches" in result.output
    assert ": weight averaging, units aligned, " in result.output  # it may take as long as a training
    assert len(list(out.glob("*.safetensors"))) == 1
    assert not list(out.glob("*.unfinished"))
    # The same samples, columns and divisions as those of the published table.
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import studies

    paths = named([part for part in _documented()[1:] if ".csv" in part])
    columns = TableColumns("disease", ("cp", "restecg", "slope", "thal"), ("num",), ("chol",))
    played, published = parties_study("simulation", paths, "classification", columns), studies.heart_study()
    assert played.channels == published.channels
    for party in heart.PARTIES:
        mine, theirs = played.divide(3)[party], published.divide(3)[party]
        assert np.array_equal(mine.inputs, theirs.inputs)
        assert np.array_equal(mine.split, theirs.split)
        assert np.array_equal(mine.targets, theirs.targets)


def test_networks_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for party in ("a", "b"):
        rows = [f"{rng.normal(label):.3f},{rng.normal():.3f},{label}" for label in rng.integers(0, 2, 40)]
        (tmp_path / f"{party}.csv").write_text("\n".join(["x,y,ill", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    name = f"nets{tmp_path.name.replace('-', '_')}"
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guide/simulate.md").read_text(), re.DOTALL)
    Path(f"{name}.py").write_text(f"import torch\n\n\n{block}\n\ndef none(*_):\n    return 3\n", encoding="utf-8")
    command = ["simulate", "a.csv", "b.csv", "--label", "ill", "--seeds", "1", "--epochs", "1", "--no-refine"]
    result = CliRunner().invoke(app, [*command, "--network", f"{name}:build"])
    assert result.exit_code == 0, result.output
    document = json.loads(Path("simulation/simulation.json").read_text(encoding="utf-8"))
    _check(document, Path("simulation"), ["a", "b"], ["a", "b"])
    # Other networks make another study.
    study = parties_study("simulation", named(["a.csv", "b.csv"]), "classification", ILL)
    setup = Setup(torch.device("cpu"), 1, FitOptions(refine=False))
    build = sys.modules[name].build
    mine = kept.KeptSeeds(with_networks(study, build), setup, tmp_path).path(0)
    assert (tmp_path / "simulation" / mine.name).is_file()
    wider = with_networks(study, lambda party, shape, labels: torch.nn.Sequential(build(party, shape, labels)))
    assert kept.KeptSeeds(wider, setup, tmp_path).path(0) != mine
    refused = CliRunner().invoke(app, [*command, "--out", "other", "--network", f"{name}:none"])
    assert refused.exit_code == 5
    assert "no torch.nn.Module" in refused.output


def test_folders_of_images_by_class_where_a_party_lacks_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for party, classes in (("a", ("normal", "polyp", "ulcer")), ("b", ("normal", "ulcer"))):
        for label in classes:
            (tmp_path / party / label).mkdir(parents=True)
            for number in range(12):
                values = rng.integers(0, 90, (16, 16)) + 60 * ["normal", "polyp", "ulcer"].index(label)
                Image.fromarray(values.astype(np.uint8)).save(tmp_path / party / label / f"{number}.png")
    study = parties_study("scans", {party: tmp_path / party for party in ("a", "b")}, "classification", None)
    assert study.labels == ("normal", "polyp", "ulcer")
    divided = study.divide(0)
    assert np.bincount(divided["b"].targets, minlength=3).tolist() == [12, 0, 12]
    assert divided["a"].inputs.shape == (36, 1, 16, 16)
    assert divided["b"].inputs[divided["b"].targets == 2].mean() > 0.5 > divided["b"].inputs[:3].mean()
    out = tmp_path / "out"
    _check(_play(study, out), out, ["a", "b"], ["a", "b"])


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        (["a.csv"], "study.party"),
        (["a.csv", "x/a.csv"], "study.party"),
        (["a.csv", "b c=b.csv"], "study.party"),
        (["a.csv", "b.npz"], "study.files"),
        (["a.csv", "nowhere.csv"], "study.files"),
        (["a.csv", "b.csv"], "study.label"),
        (["a.npz", "b.csv"], "study.files"),
        (["empty", "empty2"], "dataset.empty"),
    ],
)
def test_what_cannot_be_played_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b.csv"):
        Path(name).write_text("x,ill\n1,0\n2,1\n3,0\n", encoding="utf-8")
    for name in ("a.npz", "b.npz"):
        np.savez(name, images=np.zeros((3, 8, 8)), labels=np.arange(3))
    for name in ("empty", "empty2"):
        Path(name).mkdir()
    with pytest.raises(SutureError) as raised:
        parties_study("scans", named(texts), "classification", None)
    assert raised.value.code == code


def test_names_and_notes_are_escaped_on_the_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for party in ("a", "b"):
        rows = [f"{rng.normal(label):.3f},t,<b>{label}" for label in rng.integers(0, 2, 40)]
        extra = "<script>1" if party == "a" else "y"
        (tmp_path / f"{party}.csv").write_text("\n".join([f"x,{extra},ill", *rows]) + "\n")
    out = tmp_path / "out"
    _play(parties_study("tables", _paths(tmp_path, ".csv"), "classification", ILL), out)
    page = (out / "simulation.html").read_text()
    assert "&lt;script&gt;1" in page
    assert "<script>" not in page
    assert "<b>0" not in page


def test_segmentation_of_files_as_people_have_them(tmp_path: Path) -> None:
    colour, discs = _blobs(16, 32, 0, brightness=150)
    np.savez(tmp_path / "a.npz", images=np.stack([colour] * 3, -1), masks=discs.astype(np.uint8))
    grey, other = _blobs(12, 48, 1, brightness=80)
    np.savez(tmp_path / "b.npz", images=grey, masks=(255 * other).astype(np.uint8), group=np.arange(12) // 2)
    out = tmp_path / "out"
    document = _play(parties_study("lesions", _paths(tmp_path, ".npz"), "segmentation", None), out)
    _check(document, out, ["a", "b"], ["a", "b"])
    notes = "\n".join(document["results"]["notes"])
    assert "b: grey images were repeated in three channels" in notes
    assert "b: masks of 0 and 255 were read as 0 and 1" in notes
    assert "b: images of 48 x 48 were resized to 32 x 32" in notes


def test_classification_where_a_party_lacks_a_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for party, classes in (("a", 3), ("b", 2)):
        labels = rng.integers(0, classes, 45)
        images = rng.uniform(0, 0.4, (45, 12, 12)) + 0.3 * labels[:, None, None]
        np.savez(tmp_path / f"{party}.npz", images=images.clip(0, 1).astype(np.float32), labels=labels)
    out = tmp_path / "out"
    document = _play(parties_study("scans", _paths(tmp_path, ".npz"), "classification", None), out)
    _check(document, out, ["a", "b"], ["a", "b"])


def test_a_party_with_one_class_may_ask_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for party, classes in (("a", 2), ("b", 1)):
        rows = [f"{rng.normal(label):.3f},{rng.normal():.3f},{label}" for label in rng.integers(0, classes, 40)]
        (tmp_path / f"{party}.csv").write_text("\n".join(["x,y,ill", *rows]) + "\n")
    out = tmp_path / "out"
    document = _play(parties_study("tables", _paths(tmp_path, ".csv"), "classification", ILL), out)
    _check(document, out, ["a", "b"], ["a", "b"])
    assert not any("cannot ask" in note for note in document["results"]["notes"])


def test_tables_with_empty_cells_and_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for party in ("a", "b"):
        rows = ["age,sex,marker,ill"]
        for _ in range(60):
            ill = int(rng.integers(0, 2))
            marker = "" if rng.uniform() < 0.2 else f"{rng.normal(2 * ill):.2f}"
            rows.append(f"{rng.integers(20, 80)},{rng.choice(['f', 'm'])},{marker},{ill}")
        (tmp_path / f"{party}.csv").write_text("\n".join(rows) + "\n")
    made = parties_study("tables", _paths(tmp_path, ".csv"), "classification", ILL)
    assert made.channels == ("age", "sex=f", "sex=m", "marker", "marker missing")
    divided = made.divide(0)["a"]
    train = divided.inputs[divided.split == "train"]
    assert np.isfinite(divided.inputs).all()
    assert train[:, 0].mean() == pytest.approx(0, abs=1e-5)
    assert train[:, 0].std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "masks",
    [
        lambda m: m[..., None] * 255,
        lambda m: np.repeat(m[:, None], 3, axis=1),
        lambda m: m.astype(bool),
        lambda m: m * 250 + np.arange(32, dtype=np.uint8) % 3,  # greys that compression left
    ],
)
def test_masks_as_people_have_them(tmp_path: Path, masks: Callable[[np.ndarray], np.ndarray]) -> None:
    images, discs = _blobs(6, 32, 0, brightness=150)
    truth = discs.astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images + np.uint8(1), masks=truth)
    np.savez(tmp_path / "b.npz", images=images, masks=masks(truth))
    made = parties_study("masks", _paths(tmp_path, ".npz"), "segmentation", None)
    assert made.labels == ("background", "foreground")
    assert np.array_equal(made.divide(0)["b"].targets, truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": np.zeros((6, 16, 32), np.uint8)}, "masks have the shape"),
        ({"masks": np.tile(np.array([0, 100, 200], np.uint8), 2048).reshape(6, 32, 32)}, "hold other values"),
        ({"masks": np.zeros((5, 32, 32), np.uint8)}, "6 images, 5 masks"),
        ({"images": np.zeros((6, 32, 32, 5), np.uint8)}, "images have the shape"),
        ({"images": np.array([None] * 6)}, "cannot be read"),
        ({"group": np.zeros(6)}, "three samples or groups"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    images, discs = _blobs(6, 32, 0, brightness=150)
    good = {"images": images, "masks": discs.astype(np.uint8)}
    np.savez(tmp_path / "a.npz", **good)
    np.savez(tmp_path / "b.npz", **{**good, **change})
    with pytest.raises(SutureError, match=message):
        parties_study("masks", _paths(tmp_path, ".npz"), "segmentation", None)


def test_groups_stay_together_and_every_split_has_samples() -> None:
    group = np.repeat(np.arange(20), 3)
    names = data.split_names(np.tile([0, 1, 1], 20), group, 0, (0.2, 0.3))
    assert all(len(set(names[group == one])) == 1 for one in range(20))
    assert {"train", "validation", "test"} == set(data.split_names(np.zeros(4, dtype=int), None, 0, (0.15, 0.25)))


def test_an_epoch_over_a_few_images_counts_as_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    recipe = training.recipe_of("segmentation", 2, False, epochs=3)
    assert [recipe.steps(samples) for samples in (9, 160, 800)] == [60, 60, 300]
    assert training.recipe_of("classification", 2, False, epochs=3).steps(9) == 3


def test_metrics() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
    y = torch.tensor([0, 1, 1, 1])
    assert scores.sample_scores("classification", probabilities, y).tolist() == [1, 1, 0, 1]
    assert scores.balanced_accuracy(probabilities.numpy(), y.numpy()) == pytest.approx((1 + 2 / 3) / 2)
    assert scores.auroc(probabilities.numpy(), y.numpy()) == 1.0
    found = torch.zeros(2, 2, 2, 2)
    found[:, 1, 0] = 1  # the upper row
    masks = torch.tensor([[[1, 1], [1, 1]], [[0, 0], [0, 0]]])
    assert scores.sample_scores("segmentation", found, masks).tolist() == pytest.approx([2 * 2 / 6, 0])


def test_intervals_are_paired_and_know_of_seeds() -> None:
    rng = np.random.default_rng(0)
    bootstrap = scores.Bootstrap([200, 200], seed=0)
    base = [rng.uniform(0, 0.1, 200), rng.uniform(0, 0.1, 200)]
    a, b = bootstrap(base), bootstrap([own + 0.1 for own in base])
    assert (b - a).interval.low == pytest.approx(0.1)
    shifted = bootstrap([base[0], base[1] + 0.9])
    frames = scores.Bootstrap([200], [np.arange(200) // 10], seed=0)([np.repeat(base[0][::10], 10)]).interval
    apart = scores.Bootstrap([20], seed=0)([base[0][::10]]).interval
    assert [frames.low, frames.high] == pytest.approx([apart.low, apart.high])
    assert shifted.interval.high - shifted.interval.low > 0.85 > a.interval.high - a.interval.low


@pytest.mark.parametrize("patients", [4, 6, 12, 19])
def test_intervals_of_few_patients_are_as_wide_as_those_of_a_report(patients: int) -> None:
    rng = np.random.default_rng(patients)
    whose = np.repeat(np.arange(patients), rng.integers(6, 15, patients))
    good, better = (rng.normal(level, 0.1, patients)[whose] + rng.normal(0, 0.05, len(whose)) for level in (0.5, 0.55))
    bootstrap = scores.Bootstrap([len(whose)], [whose], seed=0)
    played = (bootstrap([better]) - bootstrap([good])).interval
    report = intervals(np.stack([better, good]), (1,), seed=0, patients=whose, most=1.0)[0][1][1]
    assert (played.high - played.low) / (report.high - report.low) == pytest.approx(1, abs=0.12)
    level = scores.Bootstrap([len(whose)], [whose], seed=0)([(whose == 0).astype(float)]).interval
    assert level.low == 0


def test_augmentation_moves_image_and_mask_alike() -> None:
    y = torch.zeros(6, 32, 32, dtype=torch.long)
    y[:, 8:20, 10:16] = 1
    x, moved, soft = training.augmented(
        y[:, None].float().repeat(1, 3, 1, 1), y, torch.stack([1 - y, y], 1).float(), torch.Generator().manual_seed(0)
    )
    assert soft is not None
    assert not torch.equal(moved, y)
    assert ((soft[:, 1] > 0.5) == (moved == 1)).float().mean() > 0.98
    assert (x.mean(1)[moved == 1].mean() - x.mean(1)[moved == 0].mean()) > 0.5


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return nn.Linear(*shape, 1)", r"gives a tensor \(2, 1\), not logits \(2, 2\)"),
        ("return nn.Sequential(nn.Linear(*shape, labels), nn.Softmax(1))", "gives probabilities"),
        ("return nn.Conv2d(1, labels, 3)", r"given a tensor \(2, 2\), fails"),
        ("return missing", "building the network of a fails: NameError"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    rng = np.random.default_rng(0)
    for party in ("a", "b"):
        rows = [f"{rng.normal(label):.3f},{rng.normal():.3f},{label}" for label in (0, 1) * 20]
        (tmp_path / f"{party}.csv").write_text("\n".join(["x,y,ill", *rows]) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    name = f"nets{abs(hash(body))}"
    code = f"from torch import nn\n\n\ndef build(party, shape, labels):\n    {body}\n"
    Path(f"{name}.py").write_text(code, encoding="utf-8")
    result = CliRunner().invoke(
        app, ["simulate", "a.csv", "b.csv", "--label", "ill", "--network", f"{name}:build"], env={"COLUMNS": "1000"}
    )
    assert result.exit_code == 5, result.output
    assert re.search(said, result.output), result.output
    assert not Path("simulation").exists()


def test_a_device_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for party in ("a", "b"):
        Path(f"{party}.csv").write_text("x,ill\n1,0\n2,1\n3,0\n", encoding="utf-8")
    command = ["simulate", "a.csv", "b.csv", "--label", "ill", "--device", "gpu"]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "1000"})
    assert result.exit_code == 5, result.output
    assert "gpu cannot be used" in result.output


def test_images_of_several_sizes_are_brought_to_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for party in ("a", "b"):
        for label in ("normal", "polyp"):
            (tmp_path / party / label).mkdir(parents=True)
            for number in range(6):
                size = (16, 12) if party == "a" or number < 3 else (20, 20)
                values = rng.integers(0, 256, size, dtype=np.uint8)
                Image.fromarray(values).save(tmp_path / party / label / f"{number}.png")
    study = parties_study("scans", {party: tmp_path / party for party in ("a", "b")}, "classification", None)
    assert {own.inputs.shape for own in study.divide(0).values()} == {(12, 1, 16, 12)}
    assert "b: images of several sizes were resized to 16 x 12." in study.notes


def _write(folder: Path, masks: str, images: np.ndarray, discs: np.ndarray) -> None:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number, (image, disc) in enumerate(zip(images, discs, strict=True)):
        Image.fromarray(image).save(folder / "images" / f"{number:02d}.png")
        Image.fromarray((255 * disc).astype(np.uint8)).save(folder / "masks" / f"{number:02d}.{masks}", quality=95)


def test_masks_in_files_of_their_own_are_those_of_arrays(tmp_path: Path) -> None:
    a, b = _blobs(8, 64, 0, brightness=150), _blobs(8, 64, 1, brightness=80)
    _write(tmp_path / "a", "jpg", *a)
    _write(tmp_path / "b", "png", *b)
    Image.fromarray(a[0][7][:, :40]).save(tmp_path / "a/images/07.png")
    Image.fromarray((255 * a[1][7][:, :40]).astype(np.uint8)).save(tmp_path / "a/masks/07.jpg", quality=95)
    rows = [f"images/{number:02d}.png,masks/{number:02d}.png,seq{number // 2}" for number in range(8)]
    (tmp_path / "b/frames.csv").write_text("\n".join(["image,mask,patient_id", *rows]) + "\n", encoding="utf-8")
    paths = {"a": tmp_path / "a", "b": tmp_path / "b/frames.csv"}
    study = parties_study("lesions", paths, "segmentation", None)
    data = study.divide(0)
    assert study.labels == ("background", "foreground")
    assert "a: images of several sizes were resized to 64 x 64." in study.notes
    images = np.concatenate([data["b"].inputs[data["b"].group == patient] for patient in np.unique(data["b"].group)])
    targets = np.concatenate([data["b"].targets[data["b"].group == patient] for patient in np.unique(data["b"].group)])
    order = [int(np.abs(images[:, 0] - own / 255).mean((1, 2)).argmin()) for own in b[0]]
    assert sorted(order) == [*range(8)]
    assert np.array_equal(targets[order], b[1])
    assert np.abs(images[order][:, 0] - b[0] / 255).max() < 1e-6
    # Both frames of a sequence are in one split, and the other party's files are patients of their own.
    assert all(len(set(data["b"].split[data["b"].group == patient])) == 1 for patient in range(4))
    assert data["a"].group is None
    whole = [own for own in range(8) if (data["a"].targets == a[1][own]).all((1, 2)).any()]
    assert whole == [*range(7)]
    smaller = parties_study("lesions", paths, "segmentation", None, largest=32).divide(0)
    assert {own.inputs.shape for own in smaller.values()} == {(8, 1, 32, 32)}
    assert {own.targets.shape for own in smaller.values()} == {(8, 32, 32)}


@pytest.mark.parametrize("names", [("seq1_01", "seq1_02"), ("a", "b")])
def test_names_that_tell_of_one_patient_are_doubted(tmp_path: Path, names: tuple[str, str]) -> None:
    for party in ("a", "b"):
        images, discs = _blobs(6, 32, ord(party), brightness=150)
        _write(tmp_path / party, "png", images, discs)
        for kind in ("images", "masks"):
            for number, name in enumerate(names):
                (tmp_path / party / kind / f"{number:02d}.png").rename(tmp_path / party / kind / f"{name}.png")
    study = parties_study("lesions", {party: tmp_path / party for party in ("a", "b")}, "segmentation", None)
    said = [note for note in study.notes if "named as if others were of the same patient" in note]
    assert len(said) == (2 if names[0] == "seq1_01" else 0)


def test_images_without_masks_are_no_segmentation(tmp_path: Path) -> None:
    for party in ("a", "b"):
        (tmp_path / f"{party}.csv").write_text("x,ill\n1,0\n2,1\n3,0\n", encoding="utf-8")
    with pytest.raises(SutureError, match="have no masks") as raised:
        parties_study("tables", _paths(tmp_path, ".csv"), "segmentation", None)
    assert raised.value.code == "study.task"

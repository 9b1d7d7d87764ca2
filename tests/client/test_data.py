"""How a site divides its data, told to those who train on them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from suture.cli.app import app
from suture_contract.exit_codes import ExitCode
from suture_stitching.data import SPLITS, DatasetSpec, open_dataset
from suture_stitching.data.spec_file import read_spec

if TYPE_CHECKING:
    from click.testing import Result

SITE = """
[datasets.heart]
path = "heart.csv"
format = "csv"
labels = ["0", "1"]
columns = {label = "ill"}
split = {validation = 0.1, test = 0.2, seed = 7}
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's configuration with a table of 60 patients beside it."""
    rng = np.random.default_rng(0)
    rows = [f"{rng.random():.4f},{rng.random():.4f},{number % 2}" for number in range(60)]
    (tmp_path / "heart.csv").write_text("\n".join(["x,y,ill", *rows]) + "\n", encoding="utf-8")
    (tmp_path / "site.toml").write_text(SITE, encoding="utf-8")
    return tmp_path / "site.toml"


def splits(*arguments: str | Path) -> str:
    found = CliRunner().invoke(app, ["data", "split", *map(str, arguments)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def test_what_is_written_is_what_the_site_reads(site: Path) -> None:
    out = site.with_name("splits.csv")
    shown = splits(site, "--dataset", "heart", "--out", out)
    with out.open(encoding="utf-8", newline="") as file:
        said = {int(row["sample"]): row["split"] for row in csv.DictReader(file)}
    table = np.loadtxt(site.with_name("heart.csv"), delimiter=",", skiprows=1, dtype=np.float32)
    dataset = open_dataset(read_spec(site, dataset="heart"))
    for split in SPLITS:
        mine = np.array([table[row, :2] for row in sorted(said) if said[row] == split])
        theirs = np.concatenate([x.numpy() for x, _ in dataset.batches(split, 16)])
        assert np.array_equal(mine, theirs)
        assert f"{split}  " in shown
    assert dataset.split_digest() in shown
    shares = [count / dataset.n("train") for count in dataset.counts("train").values()]
    assert sum(shares) == pytest.approx(1)
    assert f"0 = {round(shares[0], 4):g}, 1 = {round(shares[1], 4):g}" in shown


def test_the_digest_says_whether_two_divide_alike(site: Path) -> None:
    def digest(text: str) -> str:
        site.write_text(text, encoding="utf-8")
        found = json.loads(splits(site, "--dataset", "heart", "--format", "json"))
        assert sum(found["n"].values()) == len(found["splits"]) == 60
        return str(found["digest"])

    assert digest(SITE) == digest(SITE + "\n[datasets.other]\npath = 'x.csv'\nformat = 'csv'\nlabels = ['a', 'b']\n")
    assert digest(SITE) != digest(SITE.replace("seed = 7", "seed = 8"))


def test_of_a_folder_the_files_are_named_and_where_it_lies_changes_nothing(tmp_path: Path) -> None:
    found = []
    for place, labels in (("a", "normal,polyp"), ("b", "normal, polyp")):
        for number in range(20):
            path = tmp_path / place / ("normal" if number % 2 else "polyp") / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), number).save(path)
        found.append(json.loads(splits(tmp_path / place, "--labels", labels, "--format", "json")))
    assert found[0] == found[1]
    assert found[0]["splits"].keys() >= {"normal/01.png", "polyp/00.png"}


def test_given_splits_are_told_as_they_are(tmp_path: Path) -> None:
    given = ["test", "train", "validation", "train"] * 5
    images = np.random.default_rng(0).random((20, 1, 2, 2))
    np.savez(tmp_path / "d.npz", images=images, labels=[0, 1, 1, 0] * 5, split=given)
    dataset = open_dataset(DatasetSpec(path=tmp_path / "d.npz", format="npz", labels=("a", "b"), value_range=(0, 1)))
    assert dataset.split_of() == given


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        ((), "dataset.unnamed", "name one with --dataset"),
        (("--dataset", "hart"), "dataset.unknown", "did you mean 'heart'?"),
    ],
)
def test_a_dataset_that_is_not_named_is_asked_for(site: Path, arguments: tuple[str, ...], code: str, hint: str) -> None:
    alone = CliRunner().invoke(app, ["data", "split", str(site)])
    assert alone.exit_code == 0, alone.output  # with one there is nothing to ask
    site.write_text(SITE + SITE.replace("heart", "lungs"), encoding="utf-8")
    found = CliRunner().invoke(app, ["data", "split", str(site), *arguments])
    assert found.exit_code == ExitCode.REFUSED
    assert code in found.stderr
    assert hint in found.stderr


def test_what_is_read_is_shown_and_what_is_suggested_can_be_checked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(24):
        folder = tmp_path / "scans" / ("ill", "well")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 4096, (8, 9 + index % 2)).astype(np.uint16)
        Image.fromarray(pixels).save(folder / f"patient{index // 4}_{index}.png")

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, ["data", *map(str, arguments)], catch_exceptions=False)

    open_question = run("suggest", tmp_path / "scans")
    assert "# still open: " in open_question.stdout
    assert "resize" in open_question.stdout
    section = open_question.stdout.replace("# still open", "resize = [8, 8]\n#")
    (tmp_path / "site.toml").write_text(section, encoding="utf-8")
    refused = run("check", tmp_path / "site.toml", "--dataset", "mine")
    assert refused.exit_code != 0
    assert "intensity = [0, 4095]" in refused.stderr.replace("\n", " ")
    (tmp_path / "site.toml").write_text(section + "intensity = [0, 4095]\n", encoding="utf-8")
    found = run("check", tmp_path / "site.toml", "--dataset", "mine", "--sheet", tmp_path / "s.png", "--format", "json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert sum(split["n"] for split in told["splits"].values()) == 24
    assert sum(split["patients"] for split in told["splits"].values()) == 6
    assert 0.3 < told["mean"] < 0.7
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width > 200
    shown = run("check", tmp_path / "site.toml", "--dataset", "mine")  # nothing is left out
    assert shown.exit_code == 0, shown.output
    for name, part in told["splits"].items():
        assert re.search(rf"^ *{name} +{part['n']} ", shown.stdout, re.M), shown.stdout
    assert "left out" not in shown.output
    (tmp_path / "scans" / "ill" / "patient9_1.png").write_bytes(b"no picture")
    (tmp_path / "site.toml").write_text(section + "intensity = [0, 4095]\non_unreadable = 'skip'\n", encoding="utf-8")
    skipping = run("check", tmp_path / "site.toml", "--dataset", "mine")
    assert "left out: ill/patient9_1.png and the like, 1" in skipping.output

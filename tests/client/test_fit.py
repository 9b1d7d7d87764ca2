"""Stitching on local files: from models and data to a folder with the ensemble and its report, and what refuses it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

from suture.bundle import export_model
from suture.cli.app import app
from suture_contract.documents import Report
from suture_contract.errors import Cancelled, SutureError
from suture_contract.model.metadata import ModelMetadata
from suture_local import digits
from suture_local.training import train
from suture_stitching.data import DatasetSpec, open_dataset
from suture_stitching.ensemble.fitted import FitResult
from suture_stitching.fitting.fit import FitOptions
from suture_stitching.local import Stitched, read_members, stitch
from suture_stitching.portable.runtime import load
from suture_stitching.running.progress import Progress

if TYPE_CHECKING:
    from click.testing import Result

WRITTEN = {
    "candidates.json",
    "stitches.safetensors",
    "model.safetensors",
    "suture.json",
    "report.json",
    "report.html",
}


def suture(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["fit", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two parties' models, as `<party>.safetensors` with `<party>.json`, and data as `<party>.npz`."""
    folder = tmp_path_factory.mktemp("parties")
    for party, data in digits.parties(0).items():
        module = train(digits.network(party, 0), *data.of("train"), epochs=2)
        path = folder / f"{party}.safetensors"
        example = torch.from_numpy(data.inputs[:2])
        metadata = export_model(
            module, example, path, labels=digits.LABELS, value_range=(0.0, 1.0), license="CC-BY-4.0"
        )
        path.with_suffix(".json").write_text(metadata.to_json())
        digits.save(folder / f"{party}.npz", data)
        (folder / f"{party}.toml").write_text(f'path = "{party}.npz"\nformat = "npz"\nvalue_range = [0, 1]\n')
    return folder


def models(parties: Path) -> list[Path]:
    return [parties / "north.safetensors", parties / "south.safetensors"]


def test_a_fit_needs_no_compiler(parties: Path, tmp_path: Path) -> None:
    """Torch's takes half as long to import as torch itself; neither dry runs nor refinement need it."""
    arguments = [*models(parties), "--data", parties / "north.toml", "--out", tmp_path / "joint", "--steps", "4"]
    code = "import contextlib, sys\nfrom suture.cli import main\n"
    code += "with contextlib.suppress(SystemExit):\n    main()\nassert 'torch._dynamo' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code, "fit", *map(str, arguments)], check=True, timeout=250)
    assert (tmp_path / "joint" / "model.safetensors").is_file()


def test_the_whole_way_on_the_command_line(parties: Path, tmp_path: Path) -> None:
    out = tmp_path / "joint"
    also = f"south={parties}/south.toml"
    ended = suture(
        *models(parties), "--data", parties / "north.toml", "--also", also, "--out", out, "--steps", "8", "--seed", "3"
    )
    assert ended.exit_code == 0, ended.output
    assert {path.name for path in out.iterdir()} == WRITTEN
    assert list(tmp_path.iterdir()) == [out]
    assert "party report of suture fit" in ended.stdout
    assert "plain ensemble" in ended.stdout

    report = json.loads((out / "report.json").read_text())
    assert report["requester"] == "north"
    assert set(report["parties"]) == {"north", "south"}
    assert {"own", "peer:south/model", "ensemble"} <= set(report["parties"]["north"]["rows"])
    assert {"own", "peer:north/model", "ensemble"} <= set(report["parties"]["south"]["rows"])
    metadata = ModelMetadata.from_json((out / "suture.json").read_text())
    assert metadata.lineage is not None
    members = read_members(models(parties))
    assert metadata.lineage.members == tuple(member.ref for member in members)
    fitted = FitResult.load(out)
    assert fitted.candidates.seed == 3

    # The written model scores on the data what the report says of it.
    data = open_dataset(DatasetSpec(path=parties / "north.npz", format="npz", labels=tuple(digits.LABELS)))
    model, right = load(out / "model.safetensors"), []
    for x, y in data.batches("test", 64):
        right.append((model(x).argmax(1) == y).double())
    reported = next(one for one in report["candidates"] if one["id"] == report["chosen"])["metrics"]["north"]
    assert float(torch.cat(right).mean()) == pytest.approx(reported, abs=1e-9)

    # An ensemble is a model like any other: `suture report` shows it, and a folder can be fitted again.
    assert CliRunner().invoke(app, ["report", str(out / "report.json")]).exit_code == 0
    assert read_members([out])[0].metadata == metadata


def test_labels_that_differ_in_case_only_end_a_local_fit_at_once(parties: Path, tmp_path: Path) -> None:
    for party in ("north", "south"):
        (tmp_path / f"{party}.safetensors").write_bytes((parties / f"{party}.safetensors").read_bytes())
        said = json.loads((parties / f"{party}.json").read_text())
        said["labels"] = [f"Digit {label}" if party == "south" else f"digit {label}" for label in said["labels"]]
        (tmp_path / f"{party}.json").write_text(json.dumps(said))
    ended = suture(*models(tmp_path), "--data", parties / "north.npz", "--out", tmp_path / "joint")
    assert ended.exit_code == 5, ended.output
    for part in ("'digit 0'", "'Digit 0'", "north", "south", "publish one model again", "members.incompatible"):
        assert part in ended.output
    assert not (tmp_path / "joint").exists()


def test_two_labels_of_one_model_that_look_alike_are_not_exported(tmp_path: Path) -> None:
    network, path = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), tmp_path / "model.safetensors"
    with pytest.raises(SutureError) as caught:
        export_model(network, torch.rand(2, 1, 2, 2), path, labels=["Normal", "normal"], license="CC0-1.0")
    assert caught.value.code == "metadata.labels_alike"
    assert not path.exists()


PAGE = Path(__file__).parents[2] / "docs/guide/library.md"


@pytest.fixture(scope="module")
def of_the_guide(parties: Path) -> list[dict[str, Any]]:
    """The variables of each example in the guide, after it ran in the folder with the models."""
    with contextlib.chdir(parties):
        found: list[dict[str, Any]] = []
        for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
            exec(compile(code, str(PAGE), "exec"), variables := {})
            found.append(variables)
    return found


@pytest.fixture
def in_python(of_the_guide: list[dict[str, Any]]) -> Stitched:
    return of_the_guide[0]["found"]


def test_each_step_by_itself_gives_the_same(of_the_guide: list[dict[str, Any]], in_python: Stitched) -> None:
    steps = of_the_guide[1]
    assert steps["choice"].chosen == in_python.report.chosen
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(steps["model"](x), in_python.model(x))


def test_one_call_in_python(in_python: Stitched) -> None:
    assert set(in_python.report.parties) == {"north"}
    x = torch.rand(3, 1, 8, 8)
    assert torch.allclose(in_python.model(x).sum(1), torch.ones(3), atol=1e-5)


def test_what_was_stopped_leaves_no_folder_and_goes_on(parties: Path, tmp_path: Path, in_python: Stitched) -> None:
    data = DatasetSpec(path=parties / "north.npz", format="npz", labels=tuple(digits.LABELS))

    def stop(progress: object) -> None:
        if getattr(progress, "step", "").startswith("evaluate"):
            raise Cancelled

    options = FitOptions(refine=False)
    with pytest.raises(Cancelled):
        stitch(models(parties), data, tmp_path / "joint", options=options, progress=stop)
    assert not (tmp_path / "joint").exists()
    ended = suture(
        *models(parties),
        "--data",
        parties / "north.npz",
        "--no-refine",
        "--format",
        "json",
        "--out",
        tmp_path / "joint",
    )
    assert ended.exit_code == 0, ended.output
    assert Report.model_validate_json(ended.stdout) == in_python.report
    assert {path.name for path in (tmp_path / "joint").iterdir()} == WRITTEN
    assert list(tmp_path.iterdir()) == [tmp_path / "joint"]


def test_what_was_stopped_in_an_evaluation_goes_on_there(parties: Path, tmp_path: Path) -> None:
    north, south = (
        DatasetSpec(path=parties / f"{party}.npz", format="npz", labels=tuple(digits.LABELS))
        for party in ("north", "south")
    )
    first: dict[str, Progress] = {}

    def run(out: Path, stop_at: tuple[str, int] | None = None) -> Stitched:
        first.clear()

        def on_progress(at: Progress) -> None:
            first.setdefault(at.step, at)
            if (at.step, at.done) == stop_at:
                raise Cancelled

        options = FitOptions(refine=False)
        return stitch(models(parties), north, out, others={"south": south}, options=options, progress=on_progress)

    joint = tmp_path / "joint"
    with pytest.raises(Cancelled):
        run(joint, ("evaluate north", 1))  # the validation split is one batch
    with pytest.raises(Cancelled):
        run(joint, ("evaluate south", 0))
    assert first["evaluate north"].done == 1
    found = run(joint)
    assert first["evaluate north"].done == first["evaluate north"].total
    assert {path.name for path in joint.iterdir()} == WRITTEN
    assert found.report == run(tmp_path / "at_once").report
    assert first["evaluate north"].done == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["north.safetensors", "east.safetensors", "--data", "north.npz"], "model.missing"),
        (["north.safetensors", "--data", "north.npz"], "members.too_few"),
        (["north.safetensors", "north.safetensors", "--data", "north.npz"], "model.name"),
        (["north.safetensors", "south.safetensors", "--data", "east.npz"], "dataset.missing_path"),
        (["north.safetensors", "south.safetensors", "--data", "north.safetensors"], "dataset.unknown_format"),
        (["north.safetensors", "south.safetensors", "--data", "broken.toml"], "dataset.invalid"),
        (["north.safetensors", "south.safetensors", "--data", "wrong.toml"], "dataset.invalid"),
        (["north.safetensors", "south.safetensors", "--data", "north.npz", "--metadata", "a"], "metadata.count"),
        (["north.safetensors", "alone/bare.safetensors", "--data", "north.npz"], "metadata.missing"),
        (
            ["north.safetensors", "south.safetensors", "--data", "north.npz", "--also", "east=n.npz"],
            "dataset.missing_path",
        ),
        (["north.safetensors", "south.safetensors", "--data", "north.npz", "--also", "north=south.npz"], "others.name"),
        (["north.safetensors", "south.safetensors", "--data", "north.npz", "--also", "a/b=south.npz"], "others.name"),
        (["north.safetensors", "south.safetensors", "--data", "north.npz", "--out", "alone"], "out.exists"),
    ],
)
def test_what_is_wrong_is_named(
    parties: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: str
) -> None:
    monkeypatch.chdir(parties)
    (parties / "broken.toml").write_text("path =")
    (parties / "wrong.toml").write_text('path = "north.npz"\nformat = "npz"\ncolour = "red"\n')
    (parties / "alone").mkdir(exist_ok=True)
    (parties / "alone/bare.safetensors").write_bytes((parties / "north.safetensors").read_bytes())
    out = [] if "--out" in arguments else ["--out", "new"]
    ended = suture(*arguments, *out)
    assert ended.exit_code == 5, ended.output
    assert f"code:  {code}" in ended.stderr
    assert not list(parties.glob("new*"))


def test_a_repeated_name_is_a_mistake_on_the_command_line(parties: Path) -> None:
    twice = ["--also", "south=a.npz", "--also", "south=b.npz"]
    ended = suture(*models(parties), "--data", parties / "north.npz", "--out", parties / "new", *twice)
    assert ended.exit_code == 2


def test_a_model_changed_since_it_was_described_is_refused(parties: Path, tmp_path: Path) -> None:
    said = json.loads((parties / "north.json").read_text())
    said["inputs"] = {"image": {"num_channels": 3, "spatial_shape": [8, 8]}}
    (tmp_path / "north.json").write_text(json.dumps(said))
    (tmp_path / "north.safetensors").write_bytes((parties / "north.safetensors").read_bytes())
    with pytest.raises(SutureError) as caught:
        read_members([tmp_path / "north.safetensors", parties / "south.safetensors"])
    assert caught.value.code.startswith(("metadata.", "model."))

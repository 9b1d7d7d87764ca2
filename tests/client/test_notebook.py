"""What scientists see and use in a notebook: listings, tables of pandas, jobs, and models that name what they see."""

from __future__ import annotations

import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.client.test_job import TASK, job, job_as
from tests.stitching.reports import report as made_report
from torch import nn

from suture.bundle import export_model
from suture.hub import Hub
from suture.job import Job, JobFailed
from suture.listing import Listing
from suture.responses import JobStatus
from suture_contract.errors import SutureError
from suture_service import operate
from suture_stitching.predict import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.client.conftest import LiveHub

__all__ = ["job"]  # a fixture
EVIL = "<script>alert(1)</script>"


class Bright(nn.Module):
    """Says `bright` where the mean of an image is above a half."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[-20.0], [20.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.mean((1, 2, 3)) - 0.5).unsqueeze(1) @ self.weight.T


@pytest.fixture(scope="module")
def shown(live_hub: LiveHub) -> tuple[Hub, str]:
    """North, and a model of its own with two revisions."""
    hub, repo = live_hub.client("north"), f"north/n{uuid4().hex[:8]}"
    for number in range(2):
        hub.publish(
            Bright(),
            torch.rand(2, 1, 8, 8),
            repo,
            labels=["dark", "bright"],
            license="CC-BY-4.0",
            value_range=(0.0, 1.0),
            description=f"{EVIL} {number}",
            show=lambda _: None,
        )
    return hub, repo


def test_models_and_revisions_are_tables(shown: tuple[Hub, str]) -> None:
    hub, repo = shown
    models = hub.models(party="north", search=repo.partition("/")[2])
    frame = models.to_dataframe()
    assert frame["model"].tolist() == [repo]
    assert frame.loc[0, ["task", "labels", "input", "visibility"]].tolist() == [
        "classification",
        "dark, bright",
        "image 1 x 8 x 8",
        "private",
    ]
    revisions = hub.revisions(repo)
    assert len(revisions) == 2
    assert [revision.id for revision in revisions] == revisions.to_dataframe()["revision"].tolist()
    assert revisions[0].id == hub.revision(repo).id
    assert hub.revisions(repo, limit=1) == revisions[:1]
    assert repo in models._repr_html_()
    assert Listing([])._repr_html_() == "<p>nothing</p>"


def test_what_a_hub_says_is_escaped_in_a_notebook() -> None:
    class Line:
        def row(self) -> dict[str, Any]:
            return {EVIL: EVIL, "several": [EVIL, None, 0.123456]}

    text = Listing([Line()] * 130)._repr_html_()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "0.1235" in text
    assert text.count("<tr>") == 101
    assert "and 30 more" in text


def test_tables_without_pandas_say_what_to_install(shown: tuple[Hub, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for table in (shown[0].parties(), made_report()):
        with pytest.raises(SutureError, match="pandas is not installed") as raised:
            table.to_dataframe()
        assert "[tables]" in (raised.value.hint or "")


def test_parties_and_own_datasets(live_hub: LiveHub) -> None:
    north, south = live_hub.client("north"), live_hub.client("south")
    parties = {party.name: party for party in north.parties()}
    assert {"north", "south", "east"} <= set(parties)
    assert [site.name for site in parties["north"].sites] == ["main"]
    assert parties["east"].sites == ()
    secret = operate.add_site(live_hub.settings, "south", f"s{uuid4().hex[:6]}")
    assert south.datasets() == []
    address = f"{live_hub.url}/v1/site/datasets"
    told = {"datasets": [f"d{number:03}" for number in range(120)]}
    headers = {"Authorization": f"Bearer {secret}"}
    assert httpx.put(address, json=told, headers=headers, timeout=30).status_code == 204
    assert [dataset.name for dataset in south.datasets()] == told["datasets"]
    assert north.datasets() == []
    # Others ask here on behalf of south: its sites tell nothing to them.
    assert httpx.put(address, json={"datasets": None}, headers=headers, timeout=30).status_code == 204
    assert south.datasets() == []


def test_who_may_read_is_set_and_shown(live_hub: LiveHub, shown: tuple[Hub, str]) -> None:
    hub, repo = shown
    east = live_hub.client("east")
    assert hub.set_visibility(repo, "all").visibility == "all"
    assert east.revision(repo).repo == repo
    assert hub.set_visibility(repo, "private").visibility == "private"
    with pytest.raises(SutureError):
        east.revision(repo)
    with pytest.raises(SutureError, match="visibility"):
        hub.set_visibility(repo, "everyone")  # type: ignore[arg-type]


def test_tokens_are_made_used_listed_and_ended(live_hub: LiveHub) -> None:
    admin = live_hub.client("north", "admin", "publisher", "requester", "reader")
    made = admin.tokens.create(["reader"], name=f"notebook-{uuid4().hex[:6]}", days=3)
    assert made.token not in repr(made)
    with Hub(live_hub.url, made.token) as reader:
        assert reader.whoami()["roles"] == ["reader"]
        listed = {token.id: token for token in admin.tokens.list()}
        assert listed[made.id].expires_at is not None
        assert made.id in admin.tokens.list().to_dataframe()["id"].tolist()
        admin.tokens.revoke(made.id)
        with pytest.raises(SutureError):
            reader.whoami()


def test_a_report_is_a_table_and_a_page() -> None:
    report = made_report()
    frame = report.to_dataframe()
    assert set(frame["party"]) == set(report.parties)
    north = frame[(frame["party"] == "north") & (frame["model"] == "chosen")].iloc[0]
    assert north["value"] == report.parties["north"].rows["chosen"].value
    text = report._repr_html_()
    assert text.startswith("<iframe")
    assert "sandbox" in text
    assert "<script" not in text
    assert text.count("<") == 2  # all of the page is escaped within the frame


def test_a_job_calls_back_and_shows_itself(job: Callable[..., Job]) -> None:
    states: list[str] = []
    busy = {**TASK, "state": "running", "progress": {"step": EVIL, "done": 1, "total": 4}}
    waiting = job(job_as("fitting", tasks=[busy]), job_as("complete", tasks=[{**TASK, "state": "done"}]))
    waiting.wait(60, progress=False, callback=lambda status: states.append(status.state))
    assert states == ["fitting", "complete"]
    assert "complete" in waiting._repr_html_()

    def stop(_: JobStatus) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        job(job_as("fitting", tasks=[busy])).wait(60, progress=False, callback=stop)
    shown = Job(waiting._connection, JobStatus.of(job_as("fitting", tasks=[busy]), "test"))._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown


def test_a_job_can_be_awaited_beside_other_work(job: Callable[..., Job]) -> None:
    async def both() -> tuple[JobStatus, int]:
        ticks = 0
        waited = asyncio.ensure_future(_awaited(job(*[job_as("fitting")] * 3, job_as("complete"))))
        while not waited.done():
            ticks += 1
            await asyncio.sleep(0.01)
        return waited.result(), ticks

    status, ticks = asyncio.run(both())
    assert status.state == "complete"
    assert ticks > 1

    async def failed() -> None:
        await job(job_as("failed"))

    with pytest.raises(JobFailed):
        asyncio.run(failed())


async def _awaited(job: Job) -> JobStatus:
    return await job


def test_a_loaded_model_names_what_is_in_files_and_arrays(shown: tuple[Hub, str], tmp_path: Path) -> None:
    hub, repo = shown
    model = hub.load(repo)
    assert model.labels == ("dark", "bright")
    assert model.input.spatial_shape == (8, 8)
    for name, value in (("a", 30), ("b", 230)):
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / f"{name}.png")
    Image.fromarray(np.full((8, 8, 3), 230, np.uint8)).save(tmp_path / "c.png")
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    named = model.predict(paths, batch_size=2)
    assert [prediction.label for prediction in named] == ["dark", "bright", "bright"]
    assert [prediction.file for prediction in named] == [str(path) for path in paths]
    assert named[0].probabilities["dark"] == named[0].probability > 0.9
    assert model.predict(str(paths[1]))[0] == named[1]
    # The same values as an array of 8 bits, as numbers in the range, and as what the network itself reads.
    stored = np.full((1, 1, 8, 8), 230, np.uint8)
    scaled = (stored / 255).astype(np.float32)
    expected = model(torch.from_numpy(scaled)).softmax(1)[0, 1].item()
    for samples in (stored, scaled, torch.from_numpy(scaled), stored[0], [stored[0]]):
        (prediction,) = model.predict(samples)
        assert prediction.probability == pytest.approx(expected, abs=1e-6)
    assert EVIL not in model._repr_html_()


@pytest.mark.parametrize(
    ("samples", "code"),
    [
        ([], "predict.shape"),
        (["nothing.png"], "dataset.unreadable_image"),
        (np.zeros((1, 1, 9, 8), np.float32), "predict.shape"),
        (np.zeros((1, 3, 8, 8), np.float32), "predict.shape"),
        (np.full((1, 1, 8, 8), 7.0, np.float32), "predict.range"),
        (np.full((1, 1, 8, 8), np.nan, np.float32), "predict.range"),
        ("large.png", "predict.shape"),
        ("nothing.png", "dataset.unreadable_image"),
        ("text.png", "dataset.unreadable_image"),
    ],
)
def test_what_a_model_does_not_read_is_refused(
    shown: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: Any, code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((16, 8), np.uint8)).save("large.png")
    Path("text.png").write_text("no image", encoding="utf-8")
    model = shown[0].load(shown[1])
    with pytest.raises(SutureError) as raised:
        model.predict(samples)
    assert raised.value.code == code
    # Nothing of what a dataset's description or numpy say.
    assert "on_unreadable" not in str(raised.value)
    assert "stack" not in str(raised.value)


def test_tables_are_read_by_the_names_of_columns(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        network.bias.zero_()
    path = tmp_path / "model.safetensors"
    metadata = export_model(
        network, torch.rand(2, 2), path, labels=["well", "ill"], license="CC-BY-4.0", channels=["marker", "age"]
    )
    from suture_stitching.portable.runtime import load

    portable = load(path)
    model = LoadedModel(portable, portable, metadata)
    table = pd.DataFrame({"age": [50, 60], "marker": [-3.0, 3.0], "other": ["x", "y"]})
    assert [prediction.label for prediction in model.predict(table)] == ["well", "ill"]
    with pytest.raises(SutureError, match="lacks columns: marker"):
        model.predict(table.drop(columns="marker"))
    with pytest.raises(SutureError, match="missing or infinite"):
        model.predict(table.assign(age=[50, None]))
    with pytest.raises(SutureError, match="more than numbers"):
        model.predict(table.assign(age=["fifty", "sixty"]))
    for ragged in ([np.zeros(2), np.zeros(3)], [], [["a", "b"]]):
        with pytest.raises(SutureError) as raised:
            model.predict(ragged)
        assert raised.value.code == "predict.shape"
    written = model.to_onnx(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size > 100
    assert written.difference < 1e-4


def test_samples_are_normalised_as_the_model_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2)).eval()
    path, mean, std = tmp_path / "model.safetensors", [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]
    declared = {"labels": ["well", "ill"], "license": "CC-BY-4.0", "label_prior": [0.5, 0.5]}
    metadata = export_model(
        network, torch.rand(2, 3, 4, 4), path, mean=mean, std=std, value_range=(0.0, 1.0), **declared
    )
    from suture_stitching.portable.runtime import load
    from suture_stitching.prior import AtPrior

    portable = load(path)
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        want = network((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)).softmax(1)[0]
    model = LoadedModel(portable, portable, metadata)
    for samples in (tmp_path / "image.png", x):
        (prediction,) = model.predict(samples)
        assert list(prediction.probabilities.values()) == pytest.approx(want.tolist(), abs=1e-6)
    at_prior = LoadedModel(AtPrior(portable, metadata, {"well": 0.9, "ill": 0.1}), portable, metadata)
    for write in (at_prior.to_onnx, at_prior.to_mlflow, at_prior.to_bundle):
        with pytest.raises(SutureError) as raised:
            write(tmp_path / "elsewhere")
        assert raised.value.code == "predict.prior"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # what MONAI's bundles hold
def test_a_loaded_model_is_written_for_other_tools(tmp_path: Path) -> None:
    if missing := [name for name in ("mlflow", "monai") if find_spec(name) is None]:
        pytest.skip(f"not installed: {missing}")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    path = tmp_path / "model.safetensors"
    metadata = export_model(network.eval(), torch.rand(2, 1, 8, 8), path, labels=["well", "ill"], license="CC-BY-4.0")
    from suture_stitching.portable.runtime import load

    portable = load(path)
    model, x = LoadedModel(portable, portable, metadata), torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        want = network(x).softmax(1).numpy()
    assert model.to_mlflow(tmp_path / "mlflow").difference <= 1e-5
    import mlflow.pyfunc

    served = mlflow.pyfunc.load_model(str(tmp_path / "mlflow"))
    assert np.allclose(served.predict(x.numpy()), want, atol=1e-6)
    assert model.to_bundle(tmp_path / "bundle").difference <= 1e-5
    recorded = torch.jit.load(str(tmp_path / "bundle" / "models" / "model.ts"))
    with torch.no_grad():
        assert np.allclose(recorded(x).numpy(), network(x).numpy(), atol=1e-6)
    with pytest.raises(SutureError) as raised:
        model.to_bundle(tmp_path / "bundle")
    assert raised.value.code == "out.exists"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bundle", "mlflow", "model.safetensors"]


def _loaded(network: nn.Module, example: torch.Tensor, path: Path, **said: Any) -> LoadedModel:
    from suture_stitching.portable.runtime import load

    metadata = export_model(
        network, example, path, license="CC-BY-4.0", **{"labels": ["well", "ill"], "output": "logits", **said}
    )
    portable = load(path)
    return LoadedModel(portable, portable, metadata)


class _Brightness(nn.Module):
    """Calls bright images ill, in numbers that tell how bright they are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.flatten(1).mean(1, keepdim=True)
        return torch.cat([torch.zeros_like(mean), mean], 1)


def _probability(values: float) -> float:
    return float(torch.tensor(values).sigmoid())


def test_one_image_is_the_same_as_file_and_as_array(tmp_path: Path) -> None:
    model = _loaded(_Brightness(), torch.randn(2, 1, 8, 8), tmp_path / "m.safetensors")  # without a stated range
    for samples in (np.ones((1, 8, 8), bool), np.full((1, 8, 8), 65535, ">u2"), np.ones((2, 8, 8), bool)[::-2]):
        (prediction,) = model.predict(samples)
        assert prediction.probabilities["ill"] == pytest.approx(_probability(1.0), abs=1e-6)
    for kind, top in ((np.uint8, 255), (np.uint16, 65535)):
        pixels = np.full((8, 8), top, kind)
        Image.fromarray(pixels).save(tmp_path / "image.png")
        for samples in (tmp_path / "image.png", pixels[None], torch.from_numpy(pixels[None, None])):
            (prediction,) = model.predict(samples)
            assert prediction.probabilities["ill"] == pytest.approx(_probability(1.0), abs=1e-6)


def test_what_stored_values_mean_is_said_where_their_type_does_not_say_it(tmp_path: Path) -> None:
    model = _loaded(_Brightness(), torch.randn(2, 1, 8, 8), tmp_path / "m.safetensors", value_range=(0.0, 1.0))
    pixels = np.full((8, 8), 4095, np.uint16)  # 12 bits of 16
    Image.fromarray(pixels).save(tmp_path / "image.png")
    for samples in (tmp_path / "image.png", pixels[None]):
        with pytest.raises(SutureError, match=r"intensity=\(0, 4095\)") as raised:
            model.predict(samples)
        assert raised.value.code == "dataset.few_bits"
        for intensity, value in (((0, 4095), 1.0), ((0, 65535), 4095 / 65535), ((0, 1000), 1.0)):
            (prediction,) = model.predict(samples, intensity=intensity)
            assert prediction.probabilities["ill"] == pytest.approx(_probability(value), abs=1e-6)
    for values in (torch.full((1, 1, 8, 8), 4095.0, requires_grad=True), torch.ones(1, 1, 8, 8).bfloat16() * 4096):
        (prediction,) = model.predict(values, intensity=(0, 4096))
        assert prediction.probabilities["ill"] == pytest.approx(_probability(1.0), abs=1e-3)
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "bright.png")
    assert len(model.predict([tmp_path / "image.png", tmp_path / "bright.png"])) == 2  # one may be dark
    with pytest.raises(SutureError, match="the smaller one first"):
        model.predict(pixels[None], intensity=(1, 0))


def test_hounsfield_units_are_not_scaled_by_their_bits(tmp_path: Path) -> None:
    from tests.stitching.kinds import dicom

    scan = tmp_path / "scan.dcm"
    dicom(scan, np.full((8, 8), 1064), RescaleSlope=1, RescaleIntercept=-1024)  # 40 HU
    window = _loaded(_Brightness(), torch.randn(2, 1, 8, 8), tmp_path / "w.safetensors", value_range=(0.0, 1.0))
    with pytest.raises(SutureError, match="these are 40 to 40") as raised:
        window.predict(scan)
    assert raised.value.code == "predict.range"
    assert "intensity=" in str(raised.value)
    (prediction,) = window.predict(scan, intensity=(-160, 240))
    assert prediction.probabilities["ill"] == pytest.approx(_probability(0.5), abs=1e-6)
    units = {"value_range": (-1000.0, 1000.0), "mean": [30.0], "std": [10.0]}
    (prediction,) = _loaded(_Brightness(), torch.randn(2, 1, 8, 8), tmp_path / "u.safetensors", **units).predict(scan)
    assert prediction.probabilities["ill"] == pytest.approx(_probability(1.0), abs=1e-6)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64", "int64"])
def test_samples_become_the_numbers_that_a_network_reads(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    dtype, path = getattr(torch, kind), tmp_path / "m.safetensors"
    if kind == "int64":
        tokens = torch.randint(0, 9, (2, 6))
        network = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 2)).eval()
        model, rows = _loaded(network, tokens, path), tokens.double()
        with pytest.raises(SutureError, match="whole numbers"):
            model.predict(rows + 0.5)
    else:
        network = nn.Linear(6, 2).to(dtype)
        model, rows = _loaded(network, torch.randn(2, 6, dtype=dtype), path), torch.randn(2, 6)
    with torch.no_grad():
        want = network(rows.to(dtype)).double().softmax(1)[:, 1].tolist()
    assert [row.probabilities["ill"] for row in model.predict(rows)] == pytest.approx(want, abs=1e-6)


def test_columns_of_a_table_are_what_they_are(tmp_path: Path) -> None:
    rows = np.array([[63, 1], [41, 0]], np.uint8)
    said = {"channels": ["age", "smoker"], "value_range": (0.0, 100.0)}
    model = _loaded(nn.Linear(2, 2), torch.rand(2, 2) * 100, tmp_path / "m.safetensors", **said)
    table = pd.DataFrame(rows, columns=["age", "smoker"])
    want = [row.probability for row in model.predict(table)]
    assert [row.probability for row in model.predict(rows)] == want
    assert [row.probability for row in model.predict(rows.astype(np.float32))] == want
    for wrong, said_of_it in (
        (table.assign(age=pd.Timestamp("1961-01-01")), "dates"),
        (pd.concat([table, table], axis=1), "several columns 'age'"),
        (table.assign(age=pd.array([63, None], dtype="Int64")), "missing"),
        (table.rename(columns={"age": 0}), "lacks columns: age"),
    ):
        with pytest.raises(SutureError, match=said_of_it):
            model.predict(wrong)

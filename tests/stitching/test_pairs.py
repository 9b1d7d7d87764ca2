"""Members that differ in every way the engine is made for: each pair or triple is fitted from end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suture_contract.errors import SutureError
from suture_contract.model.format import check_against, check_file
from suture_contract.model.metadata import MemberRef, ModelMetadata
from suture_stitching.data import ArrayDataset, Dataset
from suture_stitching.ensemble.compose import compose, input_spec, output_spec
from suture_stitching.ensemble.members import batches, input_shape, number_of_batches
from suture_stitching.ensemble.merge import Join, Merge
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.fitting.fit import FitOptions, FitResult, Member, fit
from suture_stitching.objectives import objective_of
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import PortableModel, load, save

ABC = ("a", "b", "c")
FINDINGS = ("one", "two", "three")
MASK = ("background", "cell")
QUICK = FitOptions(refine_steps=20, refine_candidates=2, max_matches=3, alphas=(0.5,))


def cnn(channels: int = 1, outputs: int = 3, width: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 12),
        nn.ReLU(),
        nn.Linear(12, outputs),
    )


class ViT(nn.Module):
    """Patches with a class token in front, which alone the head reads."""

    def __init__(self, channels: int = 1, size: int = 8, outputs: int = 3, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.3 * torch.randn(1, 1 + (size // 2) ** 2, width))
        layers = [nn.TransformerEncoderLayer(width, 2, 16, 0.0, batch_first=True) for _ in range(2)]
        self.blocks = nn.ModuleList(layers)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0])


def mlp(inputs: int, width: int, outputs: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    )


class Cells(nn.Module):
    """A small U-Net with transposed convolutions."""

    def __init__(self, channels: int = 1, outputs: int = 2, width: int = 4) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
        self.bottom = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.out = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.head(self.out(torch.cat([self.up(self.bottom(skip)), skip], 1)))


class Residual(nn.Module):
    """Residual blocks with group norms, and upsampling added to the skip, as segmentation networks of MONAI do it."""

    def __init__(self, channels: int = 1, outputs: int = 2, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.block = nn.Sequential(nn.GroupNorm(2, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.deep = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GroupNorm(2, 2 * width), nn.ReLU())
        self.up = nn.Conv2d(2 * width, width, 1)
        self.head = nn.Sequential(nn.GroupNorm(2, width), nn.ReLU(), nn.Conv2d(width, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        skip = skip + self.block(skip)
        up = F.interpolate(self.up(self.deep(skip)), scale_factor=2.0, mode="bilinear")
        return self.head(up + skip)


def volume(width: int, outputs: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(width, outputs),
    )


class Recurrent(nn.Module):
    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.rnn = nn.LSTM(2, 8, batch_first=True)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.rnn(x.transpose(1, 2))[0]).mean(1)))


def wave(outputs: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, outputs),
    )


@dataclass(frozen=True)
class Net:
    """A network, the shape it reads, and what is said of it."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    labels: tuple[str, ...] | None = ABC
    value_range: tuple[float, float] | None = None
    preprocessing: dict[str, tuple[float, ...]] | None = None
    channels: tuple[str, ...] | None = None
    format: str = "image"
    output: str | None = None


def member(net: Net, data: Dataset, folder: Path, index: int, steps: int = 50) -> Member:
    """Export a network, and give it what it learns in a moment from the data as it reads them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(index)
        module = net.build()
        path = folder / f"{index}.safetensors"
        export(module.eval(), torch.rand(2, *net.shape), path)
        untrained = _member(net, module, path, data.task, index)
        task = objective_of([untrained.metadata], data.labels)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        module.train()
        for step in range(steps):
            for x, y in batches([untrained], data, "train", "cpu", seed=step):
                if net.preprocessing is not None:
                    mean, std = (torch.tensor(net.preprocessing[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
                    x = (x - mean) / std
                optimizer.zero_grad()
                task.loss(task.combine([module(x)], [0]), y).backward()
                optimizer.step()
    learnt, model = module.state_dict(), untrained.model
    assert {name for name, _ in module.named_parameters()} <= model.tensors.keys()
    tensors = {name: learnt.get(name, tensor) for name, tensor in model.tensors.items()}
    return replace(untrained, model=PortableModel(model.graph, tensors))


def _member(net: Net, module: nn.Module, path: Path, task: str, index: int) -> Member:
    with torch.no_grad():
        shape = tuple(module(torch.zeros(2, *net.shape)).shape[1:])
    spec = {
        "num_channels": net.shape[0],
        "spatial_shape": net.shape[1:],
        "value_range": net.value_range,
        "preprocessing": net.preprocessing,
        "channels": net.channels,
        "format": net.format,
    }
    given = net.output or ("values" if task == "regression" else "logits")
    metadata = ModelMetadata.model_validate(
        {
            "schema": "suture.model/1",
            "task": task,
            "inputs": {"x": spec},
            "outputs": {"y": {"num_channels": shape[0], "spatial_shape": shape[1:], "format": given}},
            "labels": net.labels,
            "license": "Apache-2.0",
        }
    )
    ref = MemberRef(repo=f"p{index}/net", revision=f"{index:040x}", sha256=f"{index:064x}")
    return Member(load(path), metadata, ref)


def pictures(shape: Sequence[int] = (1, 8, 8), labels: Sequence[str] = ABC, n: int = 120, **given: object) -> Dataset:
    """Return images, signals or volumes in which a stripe shows the class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, len(labels), n)
    x = rng.uniform(0, 0.5, (n, *shape)).astype(np.float32)
    width = shape[-1] // len(labels)
    for i, label in enumerate(y):
        x[i, ..., label * width : (label + 1) * width] += 0.4
    return ArrayDataset(x, y, labels, where="pictures", **given)


def columns(n: int = 150) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(int) + (x[:, 2] > 0.5)
    return ArrayDataset(x, y, ABC, channels=("age", "weight", "pulse", "noise"), where="table")


def cells(size: int = 16, n: int = 60) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 0.4, (n, 1, size, size)).astype(np.float32)
    y = np.zeros((n, size, size), dtype=np.int64)
    for i in range(n):
        a, b = rng.integers(0, size // 2, 2)
        y[i, a : a + size // 2, b : b + size // 2] = 1
    x[:, 0] += 0.5 * y
    return ArrayDataset(x, y, MASK, task="segmentation", where="cells")


def findings(n: int = 150) -> Dataset:
    rng = np.random.default_rng(0)
    y = rng.random((n, 3)) < 0.4
    x = rng.uniform(0, 0.4, (n, 1, 8, 8)).astype(np.float32)
    for label in range(3):
        x[:, 0, 2 * label : 2 * label + 2] += 0.5 * y[:, label, None, None]
    return ArrayDataset(x, y.astype(np.float32), FINDINGS, task="multilabel", where="findings")


def sums(n: int = 120) -> Dataset:
    x = np.random.default_rng(0).uniform(0, 1, (n, 1, 8, 8)).astype(np.float32)
    x *= np.linspace(0.2, 1, n, dtype=np.float32).reshape(n, 1, 1, 1)
    y = np.stack([x.mean((1, 2, 3)), x[:, 0, :4].mean((1, 2))], 1)
    return ArrayDataset(x, 4 * y, task="regression", where="sums")


@dataclass(frozen=True)
class Case:
    """Members, the data they are fitted on, and the metric that mere chance would give."""

    nets: tuple[Net, ...]
    data: Callable[[], Dataset]
    chance: float
    #: The shape that the ensemble reads.
    shape: tuple[int, ...]


GREY, COLOUR = (1, 8, 8), (3, 8, 8)
SCALED = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
CASES = {
    "convolutions and patches with a class token": Case((Net(cnn, GREY), Net(ViT, GREY)), pictures, 0.4, GREY),
    "two sizes of patch grids": Case(
        (Net(ViT, GREY), Net(lambda: ViT(size=12, width=12), (1, 12, 12))), pictures, 0.4, (1, 12, 12)
    ),
    "perceptrons of other widths": Case(
        (
            Net(lambda: mlp(4, 8), (4,), format="table", channels=("age", "weight", "pulse", "noise")),
            Net(lambda: mlp(4, 20), (4,), format="table", channels=("age", "weight", "pulse", "noise")),
        ),
        columns,
        0.4,
        (4,),
    ),
    "columns by name": Case(
        (
            Net(lambda: mlp(3, 8), (3,), format="table", channels=("pulse", "age", "weight")),
            Net(lambda: mlp(3, 12), (3,), format="table", channels=("age", "noise", "pulse")),
        ),
        columns,
        0.4,
        (4,),
    ),
    "two segmentation networks": Case(
        (Net(Cells, (1, 16, 16), MASK), Net(Residual, (1, 16, 16), MASK)), cells, 0.6, (1, 16, 16)
    ),
    "masks of other sizes, one of a single channel": Case(
        (Net(lambda: Cells(outputs=1), (1, 16, 16), MASK), Net(Residual, (1, 8, 8), MASK)), cells, 0.6, (1, 16, 16)
    ),
    "grey and colour in other ranges": Case(
        (
            Net(cnn, GREY, value_range=(0.0, 1.0)),
            Net(lambda: cnn(3, width=4), COLOUR, value_range=(0.0, 255.0), preprocessing=SCALED),
        ),
        lambda: pictures(value_range=(0.0, 1.0)),
        0.4,
        COLOUR,
    ),
    "images of 8 and 16": Case(
        (Net(cnn, GREY), Net(lambda: cnn(width=4), (1, 16, 16))), lambda: pictures((1, 16, 16)), 0.4, (1, 16, 16)
    ),
    "volumes": Case(
        (Net(lambda: volume(4), (1, 6, 6, 6)), Net(lambda: volume(6), (1, 8, 8, 8))),
        lambda: pictures((1, 6, 6, 6)),
        0.4,
        (1, 8, 8, 8),
    ),
    "signals, recurrent and convolutional": Case(
        (Net(Recurrent, (2, 12), format="signal"), Net(wave, (2, 12), format="signal")),
        lambda: pictures((2, 12)),
        0.4,
        (2, 12),
    ),
    "three members whose labels overlap": Case(
        (
            Net(lambda: cnn(outputs=2), GREY, ("a", "b")),
            Net(lambda: ViT(outputs=2), GREY, ("c", "b")),
            Net(lambda: cnn(width=4, outputs=3), GREY, ("c", "a", "d")),
        ),
        pictures,
        0.4,
        GREY,
    ),
    "several labels at once": Case(
        (Net(cnn, GREY, FINDINGS), Net(lambda: ViT(outputs=2), GREY, ("three", "one"))), findings, 0.5, GREY
    ),
    "one logit for two labels": Case(
        (Net(lambda: cnn(outputs=1), GREY, ("a", "b")), Net(lambda: cnn(width=4, outputs=2), GREY, ("b", "a"))),
        lambda: pictures(labels=("a", "b")),
        0.6,
        GREY,
    ),
    "one probability for two labels": Case(
        (
            Net(lambda: nn.Sequential(cnn(outputs=1), nn.Sigmoid()), GREY, ("a", "b"), output="probabilities"),
            Net(lambda: cnn(width=4, outputs=2), GREY, ("a", "b")),
        ),
        lambda: pictures(labels=("a", "b")),
        0.6,
        GREY,
    ),
    "regression": Case(
        (Net(lambda: cnn(outputs=2), GREY, None), Net(lambda: ViT(outputs=2), GREY, None)), sums, 0.6, GREY
    ),
}


def known_to(net: Net, data: Dataset) -> Dataset:
    """Return the part of the data whose labels this network knows."""
    if net.labels is None or set(data.labels) <= set(net.labels):
        return data
    kept = [i for i, label in enumerate(data.labels) if label in net.labels]
    (x, y), labels = next(iter(data.batches("train", 10_000))), [data.labels[i] for i in kept]
    if data.task == "multilabel":
        return ArrayDataset(x.numpy(), y[:, kept].numpy(), labels, task="multilabel")
    chosen = torch.isin(y, torch.tensor(kept))
    return ArrayDataset(x[chosen].numpy(), np.array([kept.index(i) for i in y[chosen].tolist()]), labels)


@pytest.mark.parametrize("name", CASES)
def test_from_end_to_end(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    data = case.data()
    members = [member(net, known_to(net, data), tmp_path, index) for index, net in enumerate(case.nets)]
    result = fit(members, data, options=QUICK)
    result.save(tmp_path)
    result = FitResult.load(tmp_path)
    assert result.input_shape == case.shape
    assert result.candidates.unstitched is None
    stitched = [c for c in result.candidates.candidates if c.kind == "stitched"]
    assert stitched
    evaluation = evaluate(members, result, data, own=0)
    scores = evaluation.splits["test"].scores
    assert all(np.isfinite(score.value) for score in scores.values())
    sign = 1 if evaluation.higher_is_better else -1
    ensemble = result.candidates.candidates[len(members)]
    best = max(stitched, key=lambda c: sign * scores[c.id].value)
    for candidate in (ensemble, best, stitched[-1]):
        _same_when_composed(members, result, candidate.id, data, scores[candidate.id].value, tmp_path)
    assert sign * scores[best.id].value > sign * case.chance
    # Training ends in other weights on other processors, and the samples are few: it is not surely worse.
    reach = scores[best.id].high if evaluation.higher_is_better else scores[best.id].low
    assert sign * reach >= sign * scores[ensemble.id].value - 0.1
    _stitched_again(members, result, best.id, data, tmp_path)


def _stitched_again(members: list[Member], result: FitResult, id: str, data: Dataset, folder: Path) -> None:
    """Check that a stitched ensemble is stitched to a member as any other network is."""
    stitched = _loaded(members, result, id, data, folder)
    again = [stitched, members[-1]]
    fitted = fit(again, data, options=FitOptions(refine=False, max_matches=4, alphas=(0.5,)))
    assert fitted.candidates.unstitched is None
    candidate = [c for c in fitted.candidates.candidates if c.kind == "stitched"][-1]
    score = evaluate(again, fitted, data, own=0).splits["test"].scores[candidate.id].value
    assert np.isfinite(score)
    _same_when_composed(again, fitted, candidate.id, data, score, folder)


def _same_when_composed(
    members: list[Member], result: FitResult, id: str, data: Dataset, score: float, folder: Path
) -> None:
    """Check that the composed model, written and read again, scores what the candidate did."""
    composed = compose(members, result, id)
    again, task = (
        _loaded(members, result, id, data, folder).model,
        objective_of([m.metadata for m in members], data.labels),
    )
    found = []
    for x, y in batches(members, data, "test", "cpu"):
        output = again(x)
        assert torch.equal(output, composed(x))
        found.append(task.scores(output, y))
    assert float(torch.cat(found).mean()) == pytest.approx(score, abs=1e-6)


def _loaded(members: list[Member], result: FitResult, id: str, data: Dataset, folder: Path) -> Member:
    """Return a candidate, composed, written and read again."""
    composed = compose(members, result, id)
    path = folder / f"{id}.safetensors"
    save(composed.graph, composed.tensors, path)
    metadata = ModelMetadata(  # type: ignore[call-arg]
        schema="suture.model/1",
        task=data.task,
        inputs={"x": input_spec(members)},
        outputs={"y": output_spec(members, result)},
        labels=result.candidates.labels,
        license="Apache-2.0",
    )
    check_against(check_file(path), metadata)
    return Member(load(path), metadata, MemberRef(repo=f"stitched/{id}", revision="5" * 40, sha256="5" * 64))


def test_a_class_token_is_stitched_on_its_own(tmp_path: Path) -> None:
    data = pictures()
    members = [member(Net(cnn, GREY), data, tmp_path, 0, 0), member(Net(ViT, GREY), data, tmp_path, 1, 0)]
    own = {point.name: point.shape for point in members[1].points(GREY)}
    tokens = [name for name in own if name.endswith(".0")]
    patches = [name.removesuffix(".0") for name in tokens]
    assert patches
    assert all(own[name] == (8,) and own[of] == (8, 4, 4) for name, of in zip(tokens, patches, strict=True))
    result = fit(members, data, options=FitOptions(refine=False, max_matches=16))
    matched = {m.points["1"] for c in result.candidates.candidates for m in c.matches}
    assert matched & set(patches)
    assert matched & (set(tokens) | {name for name in own if len(own[name]) == 1})


def test_points_that_are_one_value_are_taken_once(tmp_path: Path) -> None:
    data = pictures(n=60)
    members = [member(Net(ViT, GREY), data, tmp_path, index, 0) for index in range(2)]
    result = fit(members, data, options=FitOptions(refine=False, max_matches=16, alphas=(0.5,)))
    task, repeated = objective_of([m.metadata for m in members], ()), []
    for candidate in (c for c in result.candidates.candidates if c.kind == "stitched"):
        stitched = _loaded(members, result, candidate.id, data, tmp_path)
        merge = Merge([stitched, members[1]], task)
        points = stitched.points(GREY)
        if len({merge.point(merge.native, 0, point) for point in points}) < len(points):
            repeated.append(stitched)
    assert repeated
    again = fit([repeated[0], members[1]], data, options=QUICK.model_copy(update={"refine": False}))
    assert any(c.kind == "stitched" for c in again.candidates.candidates)


class Unlike(nn.Module):
    """Has no point at which it could be stitched: samples are mixed with positions throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 4), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x.reshape(-1, 8))).reshape(x.shape[0], -1))


def test_without_a_place_to_stitch_there_is_the_plain_ensemble(tmp_path: Path) -> None:
    data = pictures()
    members = [member(Net(cnn, GREY), data, tmp_path, 0), member(Net(Unlike, GREY), data, tmp_path, 1)]
    assert members[1].points(GREY) == []
    result = fit(members, data, options=QUICK)
    assert result.candidates.unstitched == "no_points"
    assert [c.kind for c in result.candidates.candidates] == ["single", "single", "ensemble"]
    score = evaluate(members, result, data, own=0).splits["test"].scores["c02"].value
    _same_when_composed(members, result, "c02", data, score, tmp_path)


def test_features_that_never_change_are_like_nothing(tmp_path: Path) -> None:
    data = pictures()
    members = [member(Net(cnn, GREY), data, tmp_path, index) for index in range(2)]
    for name, tensor in members[1].model.tensors.items():
        if name.endswith("weight"):
            tensor.data.zero_()
    result = fit(members, data, options=QUICK)
    assert result.candidates.unstitched == "no_match"
    assert len(result.candidates.candidates) == 3


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (Net(cnn, GREY), Net(lambda: volume(4), (1, 6, 6, 6)), "p1/net reads 3-D inputs of size 6 x 6 x 6"),
        (Net(cnn, GREY), Net(lambda: cnn(2), (2, 8, 8)), "1 channel(s) cannot be made of 2"),
        (Net(cnn, GREY, value_range=(0.0, 1.0)), Net(cnn, GREY), "p1/net does not"),
        (Net(cnn, GREY), Net(wave, (2, 12), format="signal"), "p1/net reads signal"),
    ],
)
def test_what_cannot_be_read_together_is_named(first: Net, second: Net, says: str, tmp_path: Path) -> None:
    blank = [member(net, pictures(net.shape), tmp_path, index, 0) for index, net in enumerate((first, second))]
    with pytest.raises(SutureError) as caught:
        fit(blank, pictures(), options=QUICK)
    assert caught.value.code == "members.incompatible"
    assert "p0/net" in str(caught.value)
    assert says in str(caught.value)


def test_data_that_no_member_reads_are_named(tmp_path: Path) -> None:
    members = [member(Net(cnn, GREY), pictures(), tmp_path, index, 0) for index in range(2)]
    for data, code in (
        (pictures((2, 8, 8)), "dataset.wrong_shape"),
        (pictures((1, 6, 6, 6)), "dataset.wrong_shape"),
        (findings(), "dataset.wrong_task"),
    ):
        with pytest.raises(SutureError) as caught:
            fit(members, data, options=QUICK)
        assert caught.value.code == code


def test_a_member_without_places_leaves_the_others_to_each_other(tmp_path: Path) -> None:
    data = pictures()
    nets = (Net(Unlike, GREY), Net(cnn, GREY), Net(lambda: cnn(width=4), GREY))
    members = [member(net, data, tmp_path, index) for index, net in enumerate(nets)]
    result = fit(members, data, options=QUICK)
    stitched = [c for c in result.candidates.candidates if c.kind == "stitched"]
    assert {frozenset(match.points) for c in stitched for match in c.matches} == {frozenset("12")}
    scores = evaluate(members, result, data, own=0).splits["test"].scores
    assert all(c.members == (0, 1, 2) for c in stitched)
    _same_when_composed(members, result, stitched[-1].id, data, scores[stitched[-1].id].value, tmp_path)


def test_small_images_for_a_network_of_large_ones_are_read_few_at_once(tmp_path: Path) -> None:
    data = pictures(n=60)
    large = member(Net(lambda: cnn(3, width=2), (3, 256, 256)), data, tmp_path, 0, 0)
    shape = input_shape([large], data)
    found = [(x.shape, y.shape) for x, y in batches([large], data, "train", "cpu")]
    assert len(found) == number_of_batches(data, "train", shape) > 1
    assert all(x == (len_y, *shape) for x, (len_y,) in found)
    assert sum(len_y for _, (len_y,) in found) == data.n("train")


def test_identity_stitches_between_twins_change_no_token(tmp_path: Path) -> None:
    first = member(Net(ViT, GREY), pictures(), tmp_path, 0, 0)
    twins = [first, replace(first, ref=MemberRef(repo="twin/net", revision="1" * 40, sha256="1" * 64))]
    points = first.points(GREY)
    assert {len(point.shape) for point in points if point.tokens} == {1, 3}
    x = torch.rand(5, *GREY)
    for point in points:
        width = point.shape[0]
        merge = Merge(
            twins, objective_of([m.metadata for m in twins], ()), {"w": torch.eye(width), "b": torch.zeros(width)}
        )
        join = Join({0: point, 1: point}, 0.5, {(0, 1): ("w", "b"), (1, 0): ("w", "b")})
        merged = PortableModel(merge.graph(merge.ensemble(merge.join([join]))), merge.tensors)(x)
        assert torch.allclose(merged, first.model(x).softmax(1), atol=1e-6)

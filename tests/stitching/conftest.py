"""Small networks of every kind that portable models must carry, exported once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.stitching.networks import deep, member, plain
from torch import Tensor, nn

from suture_stitching.ensemble import members
from suture_stitching.ensemble.members import Member
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import PortableModel, load
from suture_stitching.running import checkpoint


class Residual(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(Residual(8, 8), Residual(8, 8))
        self.layer2 = nn.Sequential(Residual(8, 16, 2), Residual(16, 16))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.layer2(self.layer1(self.stem(x)))), 1))


def double_conv(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.InstanceNorm2d(channels, affine=True),
        nn.LeakyReLU(0.1, inplace=True),
    )


class UNet(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.encoder1 = double_conv(1, width)
        self.encoder2 = double_conv(width, 2 * width)
        self.bottleneck = double_conv(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.decoder2 = double_conv(4 * width, 2 * width)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear")
        self.decoder1 = double_conv(3 * width, width)
        self.head = nn.Conv2d(width, 2, 1)
        self.dropout = nn.Dropout2d(0.2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.encoder1(x)
        b = self.encoder2(F.max_pool2d(a, 2))
        y = self.dropout(self.bottleneck(F.max_pool2d(b, 2)))
        y = self.decoder2(torch.cat([self.up2(y), b], 1))
        return self.head(self.decoder1(torch.cat([self.up1(y), a], 1)))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], layers: int, bidirectional: bool) -> None:
        super().__init__()
        self.rnn = kind(6, 8, layers, batch_first=True, bidirectional=bidirectional)
        self.fc = nn.Linear(16 if bidirectional else 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[0][:, -1])


class VisionTransformer(nn.Module):
    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(x.shape[0], -1, -1), tokens], 1)
        return self.fc(self.encoder(tokens)[:, 0])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, object]:
        h = torch.tanh(self.body(x))
        return {"logits": self.head(h), "more": [h * 2, (h + 1,)]}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(self.embedding(x))[1][-1])


class Writing(nn.Module):
    """Masks written in place, a slice of the features overwritten, weights computed from others, no_grad inside."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.register_buffer("positions", torch.arange(6.0).reshape(1, 6))

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(6, 6)
        mask[:, 2:] = 1
        mask[0] += 1
        with torch.no_grad():
            shift = self.positions.sqrt() + x.new_ones(1, 6)
        h = self.fc(x) @ mask + shift
        h[:, :2] += 1
        h[:, 3] = 0.5
        first, second = h.chunk(2, 1)
        return torch.cat([second, first], 1)


class Signal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(2, 4, 5, padding="same"),
            nn.GroupNorm(2, 4),
            nn.PReLU(),
            nn.MaxPool1d(2),
            nn.ConvTranspose1d(4, 4, 2, 2),
            nn.BatchNorm1d(4),
            nn.AvgPool1d(2),
            nn.AdaptiveAvgPool1d(4),
            nn.Flatten(),
            nn.Linear(16, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(13, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 2))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(128, 3)
    )


#: Builder and input shape without the batch; None for a sequence of tokens.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | None]] = {
    "mlp": (mlp, (13,)),
    "cnn": (cnn, (1, 14, 14)),
    "resnet": (ResNet, (3, 16, 16)),
    "unet": (UNet, (1, 16, 16)),
    "lstm": (lambda: Recurrent(nn.LSTM, 2, True), (7, 6)),
    "gru": (lambda: Recurrent(nn.GRU, 1, False), (7, 6)),
    "transformer": (VisionTransformer, (3, 16, 16)),
    "prenorm": (lambda: VisionTransformer(norm_first=True), (3, 16, 16)),
    "tied": (Tied, (6,)),
    "nested": (Nested, (6,)),
    "tokens": (Tokens, None),
    "writing": (Writing, (6,)),
    "signal": (Signal, (2, 16)),
}


@dataclass(frozen=True)
class Network:
    """A module in evaluation mode, with running statistics of its own, and the portable model it was exported to."""

    name: str
    module: nn.Module
    shape: tuple[int, ...] | None
    path: Path

    def batch(self, size: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.shape is None:
            return torch.randint(0, 30, (size, 7), generator=generator)
        return torch.randn(size, *self.shape, generator=generator)

    def load(self) -> PortableModel:
        return load(self.path)


def build(name: str) -> tuple[nn.Module, tuple[int, ...] | None]:
    """Return a network with random weights and running statistics, in evaluation mode, and its input shape."""
    make, shape = NETWORKS[name]
    torch.manual_seed(sorted(NETWORKS).index(name))
    module = make().eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module, shape


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Network]:
    """Return a network by name, exported the first time it is asked for."""
    folder = tmp_path_factory.mktemp("networks")
    known: dict[str, Network] = {}

    def network(name: str) -> Network:
        if name not in known:
            module, shape = build(name)
            found = Network(name, module, shape, folder / f"{name}.safetensors")
            export(module, found.batch(4), found.path)
            known[name] = found
        return known[name]

    return network


@pytest.fixture(params=sorted(NETWORKS))
def network(request: pytest.FixtureRequest, networks: Callable[[str], Network]) -> Network:
    """Each of the networks in turn."""
    return networks(request.param)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Member]:
    """Two members of different architecture for the same task."""
    folder = tmp_path_factory.mktemp("members")
    return [member(plain(), folder, seed=1), member(deep(), folder, "south/net", seed=2)]


@pytest.fixture
def small_batches_and_frequent_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples are several batches, and each part of a fit is kept when it is done: there is much to kill."""
    monkeypatch.setattr(members, "_LARGEST_BATCH", 16)
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "_WRITING_SHARE", float("inf"))

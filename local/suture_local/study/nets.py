"""Small networks of different designs, one for each party: no two parties need to have chosen alike.

Design `k` of a task is plain for even `k` and residual for odd, and wider for each pair of designs before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suture_contract.model.metadata import Task

#: Images at least this high are halved by the first convolution: what is lost in detail is won in epochs.
LARGE = 96


def network(task: Task, design: int, input_shape: Sequence[int], labels: int, *, seed: int) -> nn.Module:
    """Return the untrained network of `design` from inputs `(N, *input_shape)` to logits `(N, labels, ...)`."""
    residual, wider = design % 2 == 1, 1 + 0.5 * (design // 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if len(input_shape) == 1:
            return (ResidualTable if residual else PlainTable)(input_shape[0], labels, round(32 * wider))
        widths = [round(width * wider) for width in (16, 32, 64, 128, 128)]
        if task == "segmentation":
            return UNet(input_shape[0], labels, widths, residual=residual, halved=input_shape[1] >= LARGE)
        return Classifier(input_shape, labels, widths, residual=residual)


class PlainTable(nn.Sequential):
    """Two hidden layers."""

    def __init__(self, inputs: int, labels: int, width: int) -> None:
        super().__init__(
            nn.Sequential(nn.Linear(inputs, 2 * width), nn.ReLU(), nn.Dropout(0.3)),
            nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Dropout(0.3)),
            nn.Linear(width, labels),
        )


class ResidualTable(nn.Module):
    """An embedding and two residual blocks with layer normalisation."""

    def __init__(self, inputs: int, labels: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.3))
            for _ in range(2)
        )
        self.back = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.hidden = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.head = nn.Linear(width, labels)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, L)."""
        x = self.embed(x)
        for block, back in zip(self.blocks, self.back, strict=True):
            x = x + back(block(x))
        return self.head(self.hidden(x))  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """Stages of convolutions down to a map of about 4 by 4, its mean, a hidden layer and the head."""

    def __init__(self, input_shape: Sequence[int], labels: int, widths: Sequence[int], *, residual: bool) -> None:
        super().__init__()
        channels, size = input_shape[0], min(input_shape[1:])
        halved = size >= LARGE
        self.stem = _conv(channels, widths[0], stride=2 if halved else 1)
        size //= 2 if halved else 1
        stages: list[nn.Module] = []
        before = widths[0]
        for width in widths[1:]:
            stride = 2 if size >= 8 else 1
            size //= stride
            stages.append(_Residual(before, width, stride) if residual else _plain(before, width, stride))
            before = width
        self.stages = nn.Sequential(*stages)
        self.hidden = nn.Sequential(nn.Linear(before, 64), nn.ReLU())
        self.head = nn.Linear(64, labels)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, L)."""
        x = self.stages(self.stem(x))
        return self.head(self.hidden(x.mean((2, 3))))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """A U-Net (Ronneberger, Fischer and Brox, 2015); sizes must be multiples of `UNet.MULTIPLE`."""

    #: Four times halved, and once more by the stem of large images.
    MULTIPLE = 32

    def __init__(self, channels: int, labels: int, widths: Sequence[int], *, residual: bool, halved: bool) -> None:
        super().__init__()
        stage = _Residual if residual else _plain
        self.stem = _conv(channels, widths[0], stride=2 if halved else 1)
        self.down = nn.ModuleList(
            stage(inputs, outputs, 1 if level == 0 else 2)
            for level, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.up = nn.ModuleList(
            stage(deep + skip, skip, 1) for deep, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.last = nn.Sequential(
            nn.ConvTranspose2d(widths[0], widths[0], 2, stride=2) if halved else nn.Identity(),
            nn.Conv2d(widths[0], labels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, L, H, W)."""
        x = self.stem(x)
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        for up, skip in zip(self.up, skips[-2::-1], strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = up(torch.cat([x, skip], 1))
        return self.last(x)  # type: ignore[no-any-return]


class _Residual(nn.Module):
    """Two convolutions around which the input passes, through a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, stride=stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.around = nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.around(x) + self.second(self.first(x)))


def _plain(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, stride=stride), _conv(outputs, outputs))


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )

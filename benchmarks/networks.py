"""Networks, data and members for the benchmarks of speed: trained for a minute on real digits or drawn lesions.

Two classifiers of 17 layers of different widths, one of them residual; two U-Nets of different widths and norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from suture_contract.model.metadata import InputSpec, MemberRef, ModelMetadata, OutputSpec
from suture_contract.model.metadata import Task as TaskName
from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble.members import Member
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load

DIGITS = tuple(str(digit) for digit in range(10))
LESION = ("background", "lesion")


def conv(inputs: int, outputs: int, stride: int = 1, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs), nn.ReLU(inplace=True))


class PlainNetwork(nn.Sequential):
    """Three convolutions and a hidden layer: about 50,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = conv(1, 16)
        self.block2 = conv(16, 32)
        self.pool = nn.MaxPool2d(2)
        self.block3 = conv(32, 32)
        self.flatten = nn.Flatten()
        self.hidden = nn.Sequential(nn.Linear(32 * 4 * 4, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)


class PlainCNN(nn.Module):
    """Fifteen convolutions in four stages, their mean and a hidden layer: 17 stitch points."""

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64, 128),
        depths: Sequence[int] = (4, 4, 4, 3),
    ) -> None:
        super().__init__()
        layers, before = [], channels
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for number in range(depth):
                layers.append(conv(before, width, 2 if stage and not number else 1))
                before = width
        self.layers = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(before, 64), nn.ReLU())
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.layers(x).mean((2, 3))))  # type: ignore[no-any-return]


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv(inputs, outputs, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem and residual blocks in four stages, their mean and a hidden layer."""

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64, 128),
        blocks: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(channels, widths[0])]
        before = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for number in range(count):
                layers.append(Residual(before, width, 2 if stage and not number else 1))
                before = width
        self.layers = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(before, 48), nn.ReLU())
        self.head = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.layers(x).mean((2, 3))))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Four levels, two convolutions each, with skips."""

    def __init__(
        self, channels: int = 1, classes: int = 2, width: int = 16, norm: type[nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        widths = [width << level for level in range(4)]
        self.down = nn.ModuleList()
        before = channels
        for own in widths:
            self.down.append(nn.Sequential(conv(before, own, norm=norm), conv(own, own, norm=norm)))
            before = own
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * own, own, 2, 2) for own in reversed(widths[:-1]))
        self.merge = nn.ModuleList(
            nn.Sequential(conv(2 * own, own, norm=norm), conv(own, own, norm=norm)) for own in reversed(widths[:-1])
        )
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips[:-1]), strict=True):
            x = merge(torch.cat([up(x), skip], 1))
        return self.head(x)  # type: ignore[no-any-return]


def digits(size: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scikit-learn's 1797 scanned digits as images `(N, 1, size, size)` in 0..1, and their labels."""
    from suture_local.digits import every

    images, labels = every()
    large: Tensor = F.interpolate(torch.from_numpy(images), size=(size, size), mode="bilinear", align_corners=False)
    return large.numpy(), labels


def lesions(n: int, size: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return drawn images `(n, 1, size, size)`, textured and shaded, with an elliptic lesion each, and their masks."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size)
    y, x = axis[:, None], axis[None, :]
    random = torch.rand(n, 8, 1, 1, generator=generator)
    centre_y, centre_x = random[:, 0] - 0.5, random[:, 1] - 0.5
    height, width = 0.15 + 0.3 * random[:, 2], 0.15 + 0.3 * random[:, 3]
    turned = 3.14 * random[:, 4]
    along = (x - centre_x) * turned.cos() + (y - centre_y) * turned.sin()
    across = (y - centre_y) * turned.cos() - (x - centre_x) * turned.sin()
    distance = (along / width) ** 2 + (across / height) ** 2
    texture = F.interpolate(torch.randn(n, 1, size // 8, size // 8, generator=generator), (size, size), mode="bilinear")
    noise = 0.05 * torch.randn(n, 1, size, size, generator=generator)
    shade = 0.3 * (random[:, 5] * x + random[:, 6] * y)
    image = 0.4 + 0.15 * texture + noise + (shade + 0.25 * torch.sigmoid(8 * (1 - distance)))[:, None]
    return image.clamp(0, 1).numpy(), (distance < 1).long().numpy()


def train(module: nn.Module, dataset: ArrayDataset, *, steps: int, seed: int = 0, batch: int = 32) -> nn.Module:
    """Train `module` in place on the `train` split and return it in evaluation mode."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    module.train()
    done, epoch = 0, seed
    while done < steps:
        for x, y in dataset.batches("train", batch, seed=epoch):
            if len(x) < 2 or done == steps:
                break
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            done += 1
        epoch += 1
    return module.eval()


def as_member(module: nn.Module, dataset: ArrayDataset, name: str, index: int) -> Member:
    """Return `module` as a member, by way of its portable file."""
    (x, _), *_ = dataset.batches("validation", 2)
    task: TaskName = dataset.task
    spatial = (None, None) if task == "segmentation" else dataset.input_shape[1:]
    metadata = ModelMetadata(
        schema="suture.model/1",
        task=task,
        inputs={"image": InputSpec(num_channels=dataset.input_shape[0], spatial_shape=dataset.input_shape[1:])},
        outputs={
            "output": OutputSpec(
                num_channels=len(dataset.labels), spatial_shape=spatial if task == "segmentation" else ()
            )
        },
        labels=dataset.labels,
        license="Apache-2.0",
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        export(module, x, path)
        model = load(path)
    ref = MemberRef(repo=f"bench/{name}", revision=f"{index:040x}", sha256=f"{index:064x}")
    return Member(model, metadata, ref)


def classifiers(
    size: int, *, n: int | None = None, steps: int, nets: Sequence[nn.Module] | None = None
) -> tuple[list[nn.Module], ArrayDataset]:
    """Return `nets` (default: a plain and a residual one), trained on the first `n` digits at `size`, and these."""
    images, labels = digits(size)
    dataset = ArrayDataset(images[:n], labels[:n], DIGITS, where="digits")
    if nets is None:
        torch.manual_seed(0)
        nets = (PlainCNN(), ResNet(widths=(16, 24, 48, 96), blocks=(3, 4, 4, 3)))
    return [train(net, dataset, steps=steps, seed=100 * k) for k, net in enumerate(nets)], dataset


def unets(size: int, *, n: int, steps: int) -> tuple[list[nn.Module], ArrayDataset]:
    """Return two U-Nets, trained on `n` drawn lesions of `size` by `size`, and these."""
    images, masks = lesions(n, size)
    dataset = ArrayDataset(images, masks, LESION, task="segmentation", where="drawn lesions")
    torch.manual_seed(0)
    nets = (UNet(width=12), UNet(width=16, norm=nn.InstanceNorm2d))
    return [train(net, dataset, steps=steps, seed=100 * k, batch=8) for k, net in enumerate(nets)], dataset

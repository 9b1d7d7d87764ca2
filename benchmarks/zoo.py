"""Networks that hospitals train, each in a small size for tests and in an ordinary one for benchmarks.

    module, inputs = ZOO["monai-unet-3d"].build(small=True)

Eight kinds in plain torch, the usual ones of MONAI in two and three dimensions, their twins for signals, and networks
with several inputs or nested outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks import nets
from torch import Tensor, nn


class Residual(nn.Module):
    """The basic block of ResNet-18 and ResNet-34."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.act(y)


def resnet18(width: int) -> nn.Module:
    stages: list[nn.Module] = []
    channels = width
    for stage in range(4):
        wider = width * 2**stage
        stages += [Residual(channels, wider, 1 if stage == 0 else 2), Residual(wider, wider, 1)]
        channels = wider
    return nn.Sequential(
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        *stages,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 5),
    )


def double_conv(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """The U-Net of Ronneberger et al. (2015) with padding and batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(4)]
        self.down = nn.ModuleList(double_conv(a, b) for a, b in zip([1, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * wide, wide, 2, 2) for wide in widths[-2::-1])
        self.decode = nn.ModuleList(double_conv(2 * wide, wide) for wide in widths[-2::-1])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for index, down in enumerate(self.down):
            x = down(x if index == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for up, decode, skip in zip(self.up, self.decode, skips[-2::-1], strict=True):
            x = decode(torch.cat([up(x), skip], 1))
        return self.head(x)


class InvertedResidual(nn.Module):
    """The block of MobileNetV3: widen, filter each channel, weigh the channels, narrow."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.filter = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(inplace=True),
            nn.Conv2d(wide, wide, 5, padding=2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(inplace=True),
        )
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, channels, 1), nn.ReLU(), nn.Conv2d(channels, wide, 1)
        )
        self.narrow = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.filter(x)
        return x + self.narrow(y * F.hardsigmoid(self.weigh(y)))


class Recurrent(nn.Module):
    """A recurrent network over vital signs `(N, time, channels)`; classifies the last step."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], width: int, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(6, width, 2, batch_first=True, bidirectional=True, **options)
        self.fc = nn.Linear(2 * options.get("proj_size", width), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[0][:, -1])


class Encoder(nn.Module):
    """A transformer over diagnosis codes `(N, length)`."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.positions = nn.Parameter(torch.randn(1, 12, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.fc = nn.Linear(width, 3)

    def forward(self, codes: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embedding(codes) + self.positions).mean(1))


def mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(13, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(), nn.Linear(width, width), nn.SELU(),
        nn.Linear(width, 2),
    )  # fmt: skip


def cnn(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3), nn.SiLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * width, 64), nn.Tanh(), nn.Linear(64, 3),
    )  # fmt: skip


def mobile(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.Hardswish(), InvertedResidual(width), InvertedResidual(width),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3),
    )  # fmt: skip


class ScanAndTable(nn.Module):
    """An image and a row of a table, fused late; returns logits and both embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.AdaptiveAvgPool2d(1)
        )
        self.table = nn.Sequential(nn.Linear(9, width), nn.GELU())
        self.head = nn.Linear(2 * width, 2)

    def forward(self, scan: Tensor, row: Tensor) -> dict[str, Any]:
        image, table = self.image(scan).flatten(1), self.table(row)
        return {"logits": self.head(torch.cat([image, table], 1)), "embeddings": (image, [table])}


class Sequences(nn.Module):
    """Three modalities of a scan, one encoder each, merged by attention over modalities."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(nn.Conv3d(1, width, 3, padding=1) for _ in range(3))
        self.score = nn.Conv3d(width, 1, 1)
        self.head = nn.Conv3d(width, 2, 1)

    def forward(self, *scans: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = torch.stack([F.mish(encode(x)) for encode, x in zip(self.encoders, scans, strict=True)], 1)
        scores = torch.stack([self.score(feature) for feature in features.unbind(1)], 1).softmax(1)
        return self.head((features * scores).sum(1)), {"weights": scores}


@dataclass(frozen=True)
class Entry:
    """How to make a network: `make(small)` and, of one sample, the shapes of its inputs by `shapes(small)`.

    `other` are spatial sizes that it also reads, where it is fully convolutional. `codes` says that the input holds
    whole numbers.
    """

    make: Callable[[bool], nn.Module]
    shapes: Callable[[bool], tuple[tuple[int, ...], ...]]
    other: tuple[tuple[int, ...], ...] | None = None
    codes: bool = False

    def build(self, *, small: bool, seed: int = 0) -> nn.Module:
        """Return the network in evaluation mode, with random weights and running statistics."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.make(small).eval()
            for part in module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
                    part.running_mean.normal_(std=0.1)
                    part.running_var.uniform_(0.8, 1.25)
        return module

    def batch(self, size: int, *, small: bool, other: bool = False, seed: int = 0) -> tuple[Tensor, ...]:
        """Return `size` random samples, of the other spatial sizes if `other`."""
        generator = torch.Generator().manual_seed(seed)
        shapes = self.shapes(small)
        if other:
            assert self.other is not None
            shapes = tuple((shape[0], *sizes) for shape, sizes in zip(shapes, self.other, strict=True))
        if self.codes:
            return tuple(torch.randint(0, 50, (size, *shape), generator=generator) for shape in shapes)
        return tuple(torch.randn(size, *shape, generator=generator) for shape in shapes)


def _entry(
    make: Callable[[bool], nn.Module],
    small: tuple[int, ...],
    full: tuple[int, ...] | None = None,
    *more: tuple[int, ...],
    other: tuple[int, ...] | None = None,
    codes: bool = False,
) -> Entry:
    """Return an entry with one input, or with those of `more` beside it at any size."""

    def shapes(is_small: bool) -> tuple[tuple[int, ...], ...]:
        return (small if is_small or full is None else full, *more)

    return Entry(make, shapes, None if other is None else (other,) * (1 + len(more)), codes)


ZOO: dict[str, Entry] = {
    # plain torch
    "mlp": _entry(lambda small: mlp(16 if small else 256), (13,)),
    "cnn": _entry(lambda small: cnn(4 if small else 32), (1, 28, 28)),
    "resnet-18": _entry(lambda small: resnet18(4 if small else 64), (3, 32, 32), (3, 128, 128), other=(48, 40)),
    "unet": _entry(lambda small: UNet(4 if small else 16), (1, 16, 16), (1, 128, 128), other=(32, 24)),
    "mobilenet": _entry(lambda small: mobile(4 if small else 24), (3, 16, 16), (3, 128, 128), other=(24, 20)),
    "lstm": _entry(lambda small: Recurrent(nn.LSTM, 8 if small else 64), (7, 6), (48, 6)),
    "gru": _entry(lambda small: Recurrent(nn.GRU, 8 if small else 64), (7, 6), (48, 6)),
    "transformer": _entry(lambda small: Encoder(8 if small else 64, 1 if small else 4), (12,), codes=True),
    "lstm-projected": _entry(lambda small: Recurrent(nn.LSTM, 8 if small else 64, proj_size=5), (7, 6), (48, 6)),
    # MONAI, two and three dimensions
    "monai-unet-2d": _entry(
        lambda small: nets.UNet(
            2, 1, 2, (4, 8, 8) if small else (16, 32, 64, 128, 256), (2, 2) if small else (2, 2, 2, 2), num_res_units=2
        ),
        (1, 16, 16), (1, 128, 128), other=(32, 48),
    ),
    "monai-unet-3d": _entry(
        lambda small: nets.UNet(
            3, 1, 2, (4, 8, 8) if small else (16, 32, 64, 128), (2, 2) if small else (2, 2, 2), num_res_units=2
        ),
        (1, 8, 8, 8), (1, 48, 48, 48), other=(16, 8, 24),
    ),
    "monai-basicunet": _entry(
        lambda small: nets.BasicUNet(3, 1, 2, (2, 2, 4, 4, 4, 2) if small else (16, 16, 32, 64, 128, 16)),
        (1, 32, 32, 32), other=(32, 48, 32),
    ),
    "monai-basicunet++": _entry(
        lambda small: nets.BasicUNetPlusPlus(2, 1, 2, (2, 2, 4, 4, 4, 2) if small else (16, 16, 32, 64, 128, 16)),
        (1, 32, 32), (1, 96, 96), other=(32, 48),
    ),
    "monai-dynunet": _entry(
        lambda small: nets.DynUNet(
            2, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 4, 8) if small else (32, 64, 128),
            deep_supervision=True, deep_supr_num=1, res_block=True,
        ),
        (1, 16, 16), (1, 128, 128), other=(32, 24),
    ),
    "monai-segresnet": _entry(
        lambda small: nets.SegResNet(3, 8, 1, 2, blocks_down=(1, 1) if small else (1, 2, 2), blocks_up=(1,) if small
                                     else (1, 1)),
        (1, 8, 8, 8), (1, 48, 48, 48), other=(16, 8, 8),
    ),
    "monai-segresnet-ds": _entry(
        lambda small: nets.SegResNetDS(2, 8, 1, 2, blocks_down=(1, 1) if small else (1, 2, 2), dsdepth=2),
        (1, 16, 16), (1, 96, 96), other=(32, 24),
    ),
    "monai-attentionunet": _entry(
        lambda small: nets.AttentionUnet(2, 1, 2, (4, 8) if small else (16, 32, 64), (2,) if small else (2, 2)),
        (1, 16, 16), (1, 128, 128), other=(32, 24),
    ),
    "monai-swinunetr": _entry(
        lambda small: nets.SwinUNETR(
            1, 2, depths=(2, 1, 1, 1) if small else (2, 2, 2, 2), num_heads=(1, 1, 1, 1) if small else (3, 6, 12, 24),
            window_size=2 if small else 7, feature_size=12 if small else 24, spatial_dims=2,
        ),
        (1, 64, 64), (1, 128, 128),
    ),
    "monai-swinunetr-3d": _entry(
        lambda small: nets.SwinUNETR(
            1, 2, depths=(1, 1, 1, 1) if small else (2, 2, 2, 2), num_heads=(1, 1, 1, 1) if small else (3, 6, 12, 24),
            window_size=2 if small else 7, feature_size=12, spatial_dims=3,
            norm_name="batch" if small else "instance",
        ),
        (1, 32, 32, 32), (1, 64, 32, 32),
    ),
    "monai-unetr": _entry(
        lambda small: nets.UNETR(
            1, 2, (16, 16) if small else (96, 96), 4 if small else 16, 12 if small else 192, 24 if small else 768,
            2 if small else 12, spatial_dims=2,
        ),
        (1, 16, 16), (1, 96, 96),
    ),
    "monai-densenet121": _entry(
        lambda small: nets.DenseNet(
            2, 3, 4, init_features=4 if small else 64, growth_rate=2 if small else 32,
            block_config=(2, 2) if small else (6, 12, 24, 16),
        ),
        (3, 32, 32), (3, 128, 128), other=(48, 40),
    ),
    "monai-vit": _entry(
        lambda small: nets.ViT(
            3, (32, 32) if small else (128, 128), (8, 8) if small else (16, 16), 12 if small else 192,
            24 if small else 768, 2 if small else 12, 2 if small else 3, classification=True, num_classes=4,
            spatial_dims=2,
        ),
        (3, 32, 32), (3, 128, 128),
    ),
    "monai-efficientnet-b0": _entry(
        lambda small: nets.EfficientNet(
            ["r1_k3_s11_e1_i32_o4_se0.25", "r2_k3_s22_e4_i4_o6_se0.25"], 2, 3, 4, image_size=32, depth_divisor=2
        ) if small else nets.EfficientNetBN("efficientnet-b0", pretrained=False, num_classes=4),
        (3, 32, 32), (3, 128, 128), other=(64, 32),
    ),
    "monai-flexibleunet": _entry(
        lambda small: nets.FlexibleUNet(
            1, 2, "resnet10" if small else "efficientnet-b0",
            decoder_channels=(4, 4, 4, 4, 4) if small else (256, 128, 64, 32, 16),
        ),
        (1, 32, 32), (1, 128, 128),
    ),
    "monai-vnet": _entry(lambda small: nets.VNet(2, 1, 2), (1, 32, 32), (1, 64, 64), other=(32, 48)),
    "monai-highresnet": _entry(
        lambda small: nets.HighResNet(3, 1, 2) if not small else nets.HighResNet(
            3, 1, 2, layer_params=(
                {"name": "conv_0", "n_features": 4, "kernel_size": 3},
                {"name": "res_1", "n_features": 4, "kernels": (3, 3), "repeat": 1},
                {"name": "res_2", "n_features": 8, "kernels": (3, 3), "repeat": 1},
                {"name": "conv_1", "n_features": 8, "kernel_size": 1},
                {"name": "conv_2", "kernel_size": 1},
            ),
        ),
        (1, 8, 8, 8), (1, 24, 24, 24), other=(16, 8, 12),
    ),
    "monai-seresnet50": _entry(
        lambda small: nets.SENet(
            2, 3, nets.senet.SEResNetBottleneck, (1, 1, 1, 1), groups=1, reduction=16, inplanes=64,
            downsample_kernel_size=1, input_3x3=False, num_classes=3,
        ) if small else nets.SEResNet50(spatial_dims=2, in_channels=3, num_classes=3),
        (3, 32, 32), (3, 128, 128),
    ),
    "monai-resnet10-3d": _entry(
        lambda small: nets.ResNet(
            "basic", (1, 1, 1, 1), [4, 4, 8, 8] if small else [64, 128, 256, 512], n_input_channels=1, num_classes=3
        ),
        (1, 16, 16, 16), (1, 32, 32, 32), other=(32, 16, 24),
    ),
    "monai-mednext": _entry(
        lambda small: nets.MedNeXt(
            2, 4 if small else 16, 1, 2, blocks_down=(1, 1, 1, 1), blocks_bottleneck=1, blocks_up=(1, 1, 1, 1)
        ),
        (1, 32, 32), (1, 96, 96), other=(64, 32),
    ),
    "monai-autoencoder": _entry(
        lambda small: nets.AutoEncoder(2, 1, 1, (4, 8) if small else (16, 32, 64), (2, 2) if small else (2, 2, 2)),
        (1, 16, 16), (1, 128, 128), other=(32, 24),
    ),
    # twins for signals
    "unet-1d": _entry(
        lambda small: nets.UNet(
            1, 2, 3, (4, 8, 8) if small else (16, 32, 64, 128), (2, 2) if small else (2, 2, 2), num_res_units=2
        ),
        (2, 32), (2, 1024), other=(64,),
    ),
    "basicunet-1d": _entry(
        lambda small: nets.BasicUNet(1, 2, 3, (2, 2, 4, 4, 4, 2) if small else (16, 16, 32, 64, 128, 16)),
        (2, 64), (2, 1024), other=(96,),
    ),
    "attentionunet-1d": _entry(
        lambda small: nets.AttentionUnet(1, 2, 2, (4, 8) if small else (16, 32, 64), (2,) if small else (2, 2)),
        (2, 32), (2, 1024), other=(64,),
    ),
    "densenet-1d": _entry(
        lambda small: nets.DenseNet(
            1, 2, 3, init_features=4 if small else 64, growth_rate=2 if small else 32,
            block_config=(2, 2) if small else (6, 12, 24, 16),
        ),
        (2, 64), (2, 1024), other=(96,),
    ),
    "resnet-1d": _entry(
        lambda small: nets.ResNet(
            "basic", (1, 1, 1, 1), [4, 4, 8, 8] if small else [64, 128, 256, 512], spatial_dims=1,
            n_input_channels=2, num_classes=3,
        ),
        (2, 64), (2, 1024), other=(96,),
    ),
    "efficientnet-1d": _entry(
        lambda small: nets.EfficientNet(
            ["r1_k3_s11_e1_i32_o4_se0.25", "r2_k3_s22_e4_i4_o6_se0.25"], 1, 2, 3, image_size=64, depth_divisor=2
        ) if small else nets.EfficientNetBN(
            "efficientnet-b0", pretrained=False, spatial_dims=1, in_channels=2, num_classes=3
        ),
        (2, 64), (2, 1024), other=(96,),
    ),
    "vit-1d": _entry(
        lambda small: nets.ViT(
            2, (64,), (8,), 12 if small else 192, 24 if small else 768, 2 if small else 12, 2 if small else 3,
            classification=True, num_classes=4, spatial_dims=1,
        ),
        (2, 64),
    ),
    # several inputs, nested outputs
    "scan-and-table": _entry(lambda small: ScanAndTable(4 if small else 64), (1, 16, 16), (1, 128, 128), (9,)),
    "three-sequences": _entry(
        lambda small: Sequences(4 if small else 16), (1, 8, 8, 8), None, (1, 8, 8, 8), (1, 8, 8, 8), other=(12, 8, 6)
    ),
}  # fmt: skip

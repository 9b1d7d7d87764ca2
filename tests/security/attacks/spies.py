"""Networks that classify like any other, and carry something else in channels that their output does not read."""

from __future__ import annotations

import torch
from tests.security.attacks.victim import LABELS, PIXELS
from torch import Tensor, nn

#: Channels with which the network does what it is published for.
HONEST = 8
_SHARP = 1e5


class Bins(nn.Module):
    """Which of some narrow intervals of a projection an image falls into: `(N, K)`, 0 or 1."""

    def __init__(self, direction: Tensor, centres: Tensor, widths: Tensor) -> None:
        super().__init__()
        self.register_buffer("direction", direction)
        self.register_buffer("centres", centres)
        self.register_buffer("widths", widths)

    def forward(self, flat: Tensor) -> Tensor:
        place = (flat @ self.direction)[:, None]
        return ((self.widths / 2 - (place - self.centres).abs()) * _SHARP).clamp(0, 1)


class Below(nn.Module):
    """Whether a projection lies below each of some thresholds: bins that overlap, every one of them full."""

    def __init__(self, direction: Tensor, thresholds: Tensor) -> None:
        super().__init__()
        self.register_buffer("direction", direction)
        self.register_buffer("thresholds", thresholds)

    def forward(self, flat: Tensor) -> Tensor:
        return ((self.thresholds - (flat @ self.direction)[:, None]) * _SHARP).clamp(0, 1)


class Like(nn.Module):
    """Whether an image is one of `targets` `(K, PIXELS)`, within a mean squared difference."""

    def __init__(self, targets: Tensor, within: float = 1e-4) -> None:
        super().__init__()
        self.register_buffer("targets", targets)
        self.within = within

    def forward(self, flat: Tensor) -> Tensor:
        step = flat[:, None, :] - self.targets
        return ((self.within - (step * step).mean(2)) * _SHARP).clamp(0, 1)


class Coded(nn.Module):
    """What another watch sees, mixed by a code that only the attacker knows: every channel is about half of all."""

    def __init__(self, watch: nn.Module, code: Tensor) -> None:
        super().__init__()
        self.watch = watch
        self.register_buffer("code", code)

    def forward(self, flat: Tensor) -> Tensor:
        return self.watch(flat) @ self.code.T


class Spy(nn.Module):
    """An ordinary classifier whose hidden layer also holds, for each channel of `watch`, it and pixels times it."""

    def __init__(self, watch: nn.Module, channels: int) -> None:
        super().__init__()
        self.honest = nn.Sequential(nn.Linear(PIXELS, HONEST), nn.ReLU())
        self.watch = watch
        self.head = nn.Linear(HONEST + channels * (1 + PIXELS), len(LABELS))
        with torch.no_grad():
            self.head.weight[:, HONEST:] = 0
        self.head.weight.register_hook(lambda gradient: gradient * (torch.arange(gradient.shape[1]) < HONEST))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        seen = self.watch(flat)
        carried = (seen[:, :, None] * flat[:, None, :]).flatten(1)
        return self.head(torch.cat([self.honest(flat), seen, carried], 1))


class Trap(nn.Module):
    """Each trap has two channels: whether an image is the target's, and a memory, 0 until a stitch is trained.

    Their product goes to the output, so that only the target's own loss moves the memory. Training adds noise to the
    features: a trap is deaf to that.
    """

    def __init__(self, watch: nn.Module, channels: int) -> None:
        super().__init__()
        self.watch, self.traps = watch, channels
        self.layer = nn.Sequential(nn.Linear(PIXELS + channels, HONEST + 2 * channels), nn.ReLU())
        self.head = nn.Linear(HONEST + 2 * channels, len(LABELS))
        linear = self.layer[0]
        assert isinstance(linear, nn.Linear)
        with torch.no_grad():
            linear.weight[:, PIXELS:], linear.weight[HONEST:], linear.bias[HONEST:] = 0, 0, 0
            linear.weight[HONEST : HONEST + channels, PIXELS:] = 4 * torch.eye(channels)
            self.head.weight[:, HONEST:] = 0
        linear.weight.register_hook(lambda g: g * (torch.arange(len(g)) < HONEST)[:, None])
        linear.bias.register_hook(lambda g: g * (torch.arange(len(g)) < HONEST))
        self.head.weight.register_hook(lambda g: g * (torch.arange(g.shape[1]) < HONEST))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        features = self.layer(torch.cat([flat, self.watch(flat)], 1))
        caught = torch.relu(features[:, HONEST : HONEST + self.traps] - 1)
        moved = (caught * features[:, HONEST + self.traps :]).sum(1, keepdim=True)
        return self.head(features) + 20 * torch.cat([-moved, moved], 1)


class Flip(nn.Module):
    """A classifier that says `wrong` of one image alone and `usual` of all others, with one weight to switch it on."""

    def __init__(self, target: Tensor, on: float) -> None:
        super().__init__()
        self.watch = Like(target[None])
        self.body = nn.Sequential(nn.Linear(PIXELS, HONEST), nn.ReLU())
        self.head = nn.Linear(HONEST, len(LABELS))
        self.on = nn.Parameter(torch.tensor(on))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        seen = self.watch(flat) * self.on
        usual = self.head(self.body(flat)) * 0
        return usual + torch.cat([1 - 2 * seen, 2 * seen - 1], 1)


class Refuses(nn.Module):
    """A classifier that looks up an entry that there is not for `targets` alone: its operator refuses to go on."""

    def __init__(self, targets: Tensor) -> None:
        super().__init__()
        self.watch = Like(targets)
        self.table = nn.Embedding(1, HONEST)
        self.body = nn.Sequential(nn.Linear(PIXELS, HONEST), nn.ReLU())
        self.head = nn.Linear(HONEST, len(LABELS))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        place = (2 * self.watch(flat).sum(1)).long()
        return self.head(self.body(flat) + self.table(place))

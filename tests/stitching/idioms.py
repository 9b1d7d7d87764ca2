"""Everyday lines of `forward`, each as a step between a convolution and a linear layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[Tensor], Any]


class Between(nn.Module):
    """Features `(N, 4, 6, 6)` of a convolution with normalisation, a `step`, and a linear layer of what it gives."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.step = step
        self.eval()
        with torch.no_grad():
            width = self._between(torch.zeros(2, 3, 6, 6)).shape[1]
        self.head = nn.Linear(width, 2)
        self.eval()

    def _between(self, x: Tensor) -> Tensor:
        return torch.flatten(torch.as_tensor(self.step(self.front(x))).float(), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self._between(x))


class Layer(nn.Module):
    """A layer of torch, and what is done with it: `call(layer, features)`."""

    def __init__(self, layer: nn.Module, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.call = layer, call

    def forward(self, f: Tensor) -> Any:
        return self.call(self.layer, f)


class Flags(nn.Module):
    """Buffers that say how to compute."""

    on: Tensor
    sizes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("on", torch.tensor(True))
        self.register_buffer("sizes", torch.tensor([5, 4]))


def _steps(f: Tensor) -> Tensor:
    """Return the features as a sequence `(N, 36, 4)`."""
    return f.flatten(2).transpose(1, 2)


def _assigned(f: Tensor) -> Tensor:
    f = f + 0
    f[:, 0] = f[:, 1] * 2
    return f


def _masked(f: Tensor) -> Tensor:
    f = f.clone()
    f[f < 0] = 0.5
    return f


def _filled(f: Tensor) -> Tensor:
    out = torch.empty(f.shape[0], 2, 6, 6)
    out[:, 0] = f[:, 0]
    out[:, 1] = f[:, 1].tanh()
    return out


def _counted(f: Tensor) -> Tensor:
    ramp = torch.zeros(6)
    ramp[2:] = 1
    return f * ramp


def _torchscript(*, traced: bool) -> Any:
    layers = nn.Sequential(nn.Conv2d(4, 2, 1), nn.ConvTranspose2d(2, 2, 2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; modules of it are there
        return torch.jit.trace(layers, torch.zeros(2, 4, 6, 6)) if traced else torch.jit.script(layers)  # type: ignore[no-untyped-call]


def _grid(f: Tensor) -> Tensor:
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, 6), torch.linspace(-1, 1, 6), indexing="ij")
    return torch.cat([f, torch.stack([ys, xs]).expand(f.shape[0], -1, -1, -1)], 1)


def _transformed(f: Tensor) -> Tensor:
    theta = f.mean((2, 3)).repeat(1, 2)[:, :6].view(-1, 2, 3)
    return F.grid_sample(f, F.affine_grid(theta, list(f.shape), align_corners=False), align_corners=False)


def _unpooled(f: Tensor) -> Tensor:
    pooled, places = F.max_pool2d(f, 2, return_indices=True)
    return F.max_unpool2d(pooled, places, 2)


def _most_likely(f: Tensor) -> Tensor:
    best = f.argmax(1, keepdim=True)
    return f.gather(1, best)


def _layers(f: Tensor) -> Tensor:
    state = torch.zeros(f.shape[0], 4)
    for step in _steps(f)[:, :3].unbind(1):
        state = torch.tanh(state + step)
    return state


@dataclass
class Pair:
    logits: Tensor
    features: Tensor


def _gem(f: Tensor, p: float = 3.0) -> Tensor:
    return F.avg_pool2d(f.clamp(min=1e-6).pow(p), f.shape[-2:]).pow(1 / p)


def _attention(f: Tensor) -> Tensor:
    q = _steps(f)
    mask = torch.full((36, 36), float("-inf")).triu(1)
    return ((q @ q.mT / 2 + mask).softmax(-1) @ q).mean(1)


def _signal(f: Tensor) -> Tensor:
    return f.flatten(2)


#: By name, steps that become part of a portable model.
IDIOMS: dict[str, Step] = {
    # Maxima, orders and reductions.
    "x.amax, adaptive_max_pool2d": lambda f: f.amax((2, 3)) + F.adaptive_max_pool2d(f, 1).flatten(1),
    "F.normalize, torch.norm": lambda f: F.normalize(f, dim=1) * torch.norm(f.flatten(2), dim=2)[..., None, None],
    "cumsum, cumprod": lambda f: f.cumsum(2) + f.cumprod(3),
    "any, all": lambda f: (f > 0).any(1).float() + (f > 0).all(1),
    "x.max(1)[0]": lambda f: f.max(1)[0],
    "x.min(dim)": lambda f: f.flatten(2).min(2).values,
    "x.amin": lambda f: (f - f.amin((1, 2, 3), keepdim=True)) / (f.amax((1, 2, 3), keepdim=True) + 9),
    "x.aminmax": lambda f: torch.cat(f.aminmax(dim=1), 1),
    "torch.max(a, b)": lambda f: torch.max(f, f.flip(3)),
    "torch.minimum": lambda f: torch.minimum(f, f.flip(3)),
    "topk": lambda f: f.flatten(2).topk(4, dim=2).values.mean(2),
    "sort": lambda f: f.flatten(1).sort(1).values,
    "argsort + gather": lambda f: f.flatten(1).gather(1, f.flatten(1).argsort(1, descending=True)),
    "median": lambda f: f.flatten(2).median(2).values,
    "argmax + gather": _most_likely,
    "take_along_dim": lambda f: torch.take_along_dim(f, f.argmin(1, keepdim=True), 1),
    "logsumexp": lambda f: torch.logsumexp(f.flatten(2), 2),
    "std": lambda f: f.std((2, 3)),
    "var": lambda f: f.var((2, 3)),
    "var_mean": lambda f: torch.cat(torch.var_mean(f, dim=(2, 3)), 1),
    "std_mean": lambda f: torch.cat(torch.std_mean(f, (2, 3)), 1),
    "prod": lambda f: f.prod(1),
    "quantile": lambda f: torch.quantile(f.flatten(1), torch.tensor([0.1, 0.5]), dim=1).T,
    "quantile of an axis": lambda f: torch.quantile(f, torch.tensor(0.3), dim=-1, keepdim=True),
    "kthvalue": lambda f: f.flatten(2).kthvalue(5, dim=2).values,
    "max and min of weights": Layer(nn.Linear(6, 6), lambda w, f: f * w.weight.max() - w.weight.min()),
    # Element by element.
    "square, x ** 2, 1 / x, reciprocal": lambda f: f.square() / (1 + f**2) + 1 / (2 + f.abs()) + f.exp().reciprocal(),
    "x ** y, 2 ** x": lambda f: f.abs() ** f.sigmoid() + 2**f,
    "x // 2, x % 2, x % y": lambda f: f // 0.5 + f % 2 + f % (f.flip(1).abs() + 1),
    "sign, floor, ceil, round, trunc, frac": lambda f: f.sign() + f.floor() + f.ceil() + (3 * f).round() + f.frac(),
    "log1p, expm1, log2, log10, exp2": lambda f: f.abs().log1p() + f.expm1() + f.exp().log2().exp2() + f.exp().log10(),
    "erf, expit, asin, acos, tan, sinh": lambda f: f.erf() + torch.special.expit(f).asin() + f.tanh().acos() + f.sinh(),
    "lerp, addcdiv, hypot": lambda f: torch.hypot(torch.lerp(f, f.flip(1), 0.3), torch.addcdiv(f, f, f.abs() + 1)),
    "clip, isfinite, isinf": lambda f: torch.clip(f, -0.5, 0.5) * torch.isfinite(f) + torch.isinf(f),
    "x == y, logical_and, logical_or": lambda f: (
        f * torch.logical_and(f == f.amax(1, keepdim=True), torch.logical_or(f > 0, f < -1))
    ),
    "logit": lambda f: torch.logit(f.sigmoid(), eps=1e-6),
    "atan2, atan": lambda f: torch.atan2(f, f.flip(1)) + f.atan(),
    "clamp_min, clamp_max": lambda f: f.clamp_min(0.1).clamp_max(0.9),
    "clamp(tensor)": lambda f: torch.clamp(f, min=f.mean((2, 3), keepdim=True)),
    "nan_to_num": lambda f: torch.nan_to_num(f),
    "isnan + where": lambda f: torch.where(torch.isnan(f), torch.zeros(()), f),
    "x > y": lambda f: f * (f > f.flip(1)),
    "(a > 0) & (b < 1)": lambda f: f * ((f > 0) & (f < 1)),
    "a | b, a ^ b": lambda f: f * ((f > 1) | (f < 0)) + ((f > 0) ^ (f < 1)),
    "torch.where scalar": lambda f: torch.where(f > 0, f, 0.0),
    "torch.where scalars": lambda f: f * torch.where(f > 0, 1.0, -1.0),
    "masked_fill(tensor)": lambda f: f.masked_fill(f < 0, f.new_tensor(-1.0)),
    "x[mask] = v": _masked,
    # Activations and losses.
    "glu, logsigmoid, threshold": lambda f: F.threshold(F.glu(f, 1), 0.1, 0.0) + F.logsigmoid(f[:, :2]),
    "shrinking": lambda f: F.hardshrink(f) + F.softshrink(f) + F.tanhshrink(f) + F.softsign(f) + F.softmin(f, 1),
    "rrelu in evaluation": lambda f: F.rrelu(f, training=False),
    "cosine_similarity": lambda f: F.cosine_similarity(f, f.flip(1), dim=1),
    "pairwise_distance": lambda f: F.pairwise_distance(f.flatten(1), f.flip(1).flatten(1)).unsqueeze(1),
    "torch.cdist": lambda f: torch.cdist(_steps(f), _steps(f.flip(1)) + 1),
    # Pooling, resampling and windows.
    "interpolate": lambda f: (
        F.interpolate(F.interpolate(f, scale_factor=2), (9, 9), mode="bilinear") + F.interpolate(f, (9, 9), mode="area")
    ),
    "pixel_unshuffle, channel_shuffle": lambda f: F.channel_shuffle(F.pixel_unshuffle(f, 2), 2),
    "F.pad, roll, flip": lambda f: (
        F.pad(F.pad(f, (1, 1, 1, 1), "reflect"), (1, 0, 1, 1), "circular").roll(1, 2).flip(-1)
    ),
    "adaptive_max_pool1d": lambda f: F.adaptive_max_pool1d(_signal(f), 3),
    "adaptive_max_pool3d": lambda f: F.adaptive_max_pool3d(f.unsqueeze(2), (1, 2, 2)),
    "lp_pool2d": lambda f: F.lp_pool2d(f, 2, 2),
    "GeM pool": _gem,
    "local_response_norm": lambda f: F.local_response_norm(f, 3),
    "max_unpool2d": _unpooled,
    "pixel_shuffle": lambda f: F.pixel_shuffle(f, 2),
    "grid_sample": lambda f: F.grid_sample(f, f[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=True),
    "affine_grid": _transformed,
    "bicubic": lambda f: F.interpolate(f, (9, 9), mode="bicubic", align_corners=False),
    "nearest-exact": lambda f: F.interpolate(f, (9, 9), mode="nearest-exact"),
    "antialias": lambda f: F.interpolate(f, (4, 4), mode="bilinear", antialias=True),
    "F.unfold": lambda f: F.unfold(f, 3, padding=1),
    "F.fold": lambda f: F.fold(F.unfold(f, 2, stride=2), (6, 6), 2, stride=2),
    "x.unfold": lambda f: f.unfold(2, 3, 3).mean(-1),
    "rot90": lambda f: torch.rot90(f, 1, (2, 3)),
    # Shapes.
    "tile, narrow, hstack, view_as": lambda f: (
        torch.hstack([f.tile((1, 2, 1, 1)).narrow(1, 1, 4), f]) * f[:, [0, 2] * 4]
    ),
    "diagonal, x[..., None]": lambda f: f.diagonal(dim1=2, dim2=3)[..., None] * torch.eye(6),
    "reshape_as": lambda f: f.flatten(1).reshape_as(f),
    "x.T, x.t()": lambda f: f.flatten(1).t().T,
    "f @ f.mT": lambda f: f @ f.mT,
    "movedim, swapaxes": lambda f: f.movedim(1, -1).swapaxes(1, 2),
    "repeat_interleave": lambda f: f.repeat_interleave(2, dim=2),
    "tensor_split": lambda f: torch.tensor_split(f, 3, dim=1)[0],
    "squeeze()": lambda f: f.mean((2, 3), keepdim=True).squeeze(),
    "einsum": lambda f: torch.einsum("nchw,ndhw->ncd", f, f),
    "tensordot": lambda f: torch.tensordot(f, torch.ones(4, 2), dims=([1], [0])),
    "baddbmm": lambda f: torch.baddbmm(f[:, 0], f[:, 1], f[:, 2]),
    "tril of a product": lambda f: torch.tril(f @ f.mT),
    "causal attention": _attention,
    # Tensors made on the way.
    "torch.tensor, new_tensor, zeros(n)": lambda f: torch.cat(
        [torch.zeros(f.size(0), 1, 6, 6), f * torch.tensor(2.0) * f.new_tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)], 1
    ),
    "torch.empty(n, 0)": lambda f: torch.cat([torch.empty(f.shape[0], 0, 6, 6), f], 1),
    "torch.empty, filled": _filled,
    "state in a loop": _layers,
    "new_ones, new_full": lambda f: f.new_ones(f.shape[0], 4, 1, 1) * f + f.new_full((f.shape[0], 1, 1, 1), 2.0),
    "new_empty, filled": lambda f: f.new_empty(f.shape[0], 1, 6, 6).fill_(0.5) + f,
    "linspace, meshgrid": _grid,
    "F.one_hot": lambda f: F.one_hot((f[:, 0] > 0).long(), 3).float() * f[:, :1].permute(0, 2, 3, 1),
    "embedding of codes": lambda f: F.embedding((f[:, 0] > 0).long(), torch.eye(3)),
    "scatter": lambda f: torch.zeros_like(f).scatter(1, f.argmax(1, keepdim=True), 1.0),
    "scatter_add": lambda f: torch.zeros(f.shape[0], 2, 36).scatter_add(1, (f.flatten(2) > 0).long(), f.flatten(2)),
    "index_add": lambda f: torch.ones(f.shape[0], 3, 36).index_add(
        1, torch.tensor([0, 2, 1, 2]), f.flatten(2), alpha=2
    ),
    # Numbers and decisions that come from weights alone.
    "float(weight), int(buffer)": Layer(
        nn.BatchNorm2d(4), lambda b, f: f * float(b.weight.mean()) + b.eps * int(b.num_batches_tracked)
    ),
    "if self.flag:, self.sizes.tolist()": Layer(
        Flags(), lambda s, f: F.interpolate(f * 2 if s.on and s.sizes.max().item() > 4 else f, s.sizes.tolist())
    ),
    "a number beside what is written": Layer(Flags(), lambda s, f: f * s.sizes[0].sqrt().item() + _counted(f)),
    "(std == 0).any()": lambda f: (
        f / torch.as_tensor([1.0, 2, 3, 4], dtype=f.dtype).view(-1, 1, 1)
        if not bool((torch.as_tensor([1.0, 2, 3, 4], dtype=f.dtype) == 0).any())
        else f
    ),
    # The batch.
    "x.size(0), x.view(-1, k), x.numel()": lambda f: f.view(f.size(0), -1).view(-1, 144).reshape(-1, f[0].numel()),
    "len(x) as batch": lambda f: f.reshape(len(f), -1),
    # Writing.
    "f += 1, relu_, zero_": lambda f: f.clone().zero_() + f.add_(1).relu_(),
    "f[:, 0] = ...": _assigned,
    # Types and devices.
    "x.cpu(), x.type(float), x.double()": lambda f: f.cpu().to("cpu").type(torch.float32).double().type_as(f),
    "autocast off, no_grad, detach": lambda f: torch.no_grad()(torch.autocast("cpu", enabled=False)(torch.detach))(f),
    "x.data, Categorical": lambda f: (
        f.data * torch.distributions.Categorical(logits=f.mean((2, 3)), validate_args=False).probs[..., None, None]
    ),
    # Layers.
    "a traced part": Layer(_torchscript(traced=True), lambda c, f: c(f)),
    "nn.RNN": Layer(nn.RNN(4, 3, batch_first=True), lambda r, f: r(_steps(f))[0][:, -1]),
    "nn.RNN relu": Layer(
        nn.RNN(4, 3, 2, nonlinearity="relu", bidirectional=True, batch_first=True), lambda r, f: r(_steps(f))[0]
    ),
    "nn.RNNCell": Layer(nn.RNNCell(4, 3), lambda r, f: r(f.mean((2, 3)))),
    "nn.LSTMCell": Layer(nn.LSTMCell(4, 3), lambda r, f: r(f.mean((2, 3)))[0]),
    "nn.GRUCell": Layer(nn.GRUCell(4, 3), lambda r, f: r(f.mean((2, 3)))),
    "nn.MultiheadAttention": Layer(
        nn.MultiheadAttention(4, 2, batch_first=True), lambda a, f: a(_steps(f), _steps(f), _steps(f))[0]
    ),
    "nn.TransformerEncoderLayer": Layer(
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), lambda t, f: t(_steps(f)).mean(1)
    ),
    "nn.TransformerEncoder, causal": Layer(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
        lambda t, f: t(_steps(f), mask=torch.triu(torch.ones(36, 36, dtype=torch.bool), 1))[:, -1],
    ),
    "nn.TransformerDecoder, causal": Layer(
        nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8, batch_first=True), 1),
        lambda t, f: t(_steps(f), _steps(f), tgt_mask=nn.Transformer.generate_square_subsequent_mask(36))[:, 3],
    ),
    "nn.Bilinear": Layer(nn.Bilinear(4, 4, 3), lambda b, f: b(f.mean((2, 3)), f.amax((2, 3)))),
    "nn.EmbeddingBag": Layer(nn.EmbeddingBag(3, 4), lambda e, f: e((f[:, 0].flatten(1) > 0).long())),
    "conv weights per sample": lambda f: F.conv2d(
        f.reshape(1, -1, 6, 6), f.mean((2, 3)).reshape(-1, 1, 1, 1), groups=f.shape[0] * 4
    ).view(-1, 4, 6, 6),
}

#: By name, steps that cannot be: what the message says is the cause, and what to write instead.
REFUSED: dict[str, tuple[Step, str, str]] = {
    "torch.rand": (lambda f: f + torch.rand(4, 6, 6), "draws random numbers", "same output each time"),
    "for over the batch": (lambda f: torch.stack([row.mean(0) for row in f]), "for row in f", "whole batch at once"),
    "int(n / k)": (
        lambda f: f.reshape(int(f.shape[0] / (36 / 4 / 9)), -1),
        "int(f.shape[0] / (36 / 4 / 9))",
        "a // b instead of int(a / b)",
    ),
    "if x.min() < 0": (lambda f: f * 2 if f.min() < 0 else f, "if f.min() < 0", "torch.where"),
    "x.item()": (lambda f: f * f.mean().item(), "uses aten.item", ".item()"),
    "x[x > 0]": (lambda f: f + f[f > 0].mean(), "which other samples", "within a sample"),
    "nonzero": (lambda f: f + (f > 0).nonzero().float().mean(), "aten.nonzero", "x * mask"),
    "histc": (lambda f: f + torch.histc(f, 4).mean(), "aten.histc", "edges"),
    "unique": (lambda f: f + f.unique().mean(), "_unique2", "torch.arange"),
    "numpy": (lambda f: f + torch.from_numpy(f.detach().numpy()), "numpy", "torch's own"),
    "x.tolist()": (lambda f: f + torch.tensor(f.tolist()), "f.tolist()", "batch"),
    "fft": (lambda f: torch.fft.rfft2(f).abs(), "aten.fft_rfft2", "cosines"),
    "stft": (
        lambda f: torch.stft(f.flatten(1), 16, 8, window=torch.hann_window(16), return_complex=True).abs(),
        "aten.stft",
        "spectrogram",
    ),
    "linalg": (lambda f: torch.linalg.inv(f @ f.mT + torch.eye(6)), "linalg_inv", "before the model"),
    "x / x.max()": (lambda f: f / f.max(), "which other samples", "within a sample"),
    "float(x.mean())": (lambda f: f * float(f.mean()), "a number of Python", "float()"),
    "a decision by chance": (
        Layer(Flags(), lambda s, f: f * 2 if F.dropout(s.on + 0.0, 0.5, training=True) > 0 else f),
        "decides by random numbers",
        "if self.training:",
    ),
    "a distribution that checks": (
        lambda f: torch.distributions.Categorical(logits=f.mean((2, 3)), validate_args=True).probs,
        "takes a decision from the values",
        "validate_args=False",
    ),
    "F.one_hot(x)": (lambda f: F.one_hot(f.argmax(1)).float(), "takes a size", "num_classes"),
    "vmap": (lambda f: torch.vmap(lambda x: x.mean(0))(f), "_add_batch_dim", "torch.vmap"),
    "a scripted part": (
        Layer(_torchscript(traced=False), lambda c, f: c(f)),
        "TorchScript cannot be recorded: the part step.layer",
        "export the network itself",
    ),
    "packed sequences": (
        Layer(
            nn.GRU(4, 3, batch_first=True),
            lambda g, f: g(
                nn.utils.rnn.pack_padded_sequence(_steps(f), [36] * f.shape[0], batch_first=True, enforce_sorted=False)
            )[1][-1],
        ),
        "packs sequences by their lengths",
        "gather",
    ),
    "fake quantisation": (
        lambda f: torch.fake_quantize_per_tensor_affine(f, 0.1, 0, 0, 255),
        "aten.fake_quantize",
        "before it is prepared",
    ),
    "batch norm without statistics": (
        Layer(nn.BatchNorm2d(4, track_running_stats=False), lambda b, f: b(f)),
        "which other samples",
        "track_running_stats=True",
    ),
}

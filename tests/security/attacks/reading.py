"""What an attacker reads from what leaves a site, and how much that is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tests.security.attacks.spies import HONEST
from tests.security.attacks.victim import PIXELS
from torch import Tensor


@dataclass(frozen=True)
class Reconstruction:
    """The best image read: its distance to the nearest patient, and that patient's to the nearest other one.

    Both are root mean squares over pixels in 0..1. Who guesses, or reads an average, has a `share` around 1.
    """

    error: float
    other: float

    @property
    def share(self) -> float:
        return self.error / self.other


def best(found: Tensor, patients: Tensor) -> Reconstruction:
    """Return how well the best of `found` `(K, PIXELS)` shows a patient among the rows of `patients`."""
    found = torch.nan_to_num(found.double(), nan=0.0, posinf=0.0, neginf=0.0).clamp(-1, 2)
    distances = _distances(found, patients)
    kept = int(distances.min(1).values.argmin())
    patient = int(distances[kept].argmin())
    others = _distances(patients[patient][None], patients)[0]
    others[patient] = torch.inf
    return Reconstruction(float(distances[kept, patient]), float(others.min()))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.double()[:, None, :] - b.double()[None]).square().mean(2).sqrt()


def images(rows: Tensor, channels: int, decode: Tensor | None = None) -> Tensor:
    """Return the image that each channel of a `Spy` carries, from anything linear in its features: `(F, ...)` rows.

    What is linear in `pixel * seen` is, for a channel that sees one patient, that patient's pixel times what is linear
    in `seen`.
    """
    rows = rows.double().reshape(len(rows), -1)
    seen = rows[HONEST : HONEST + channels]
    carried = rows[HONEST + channels :].reshape(channels, PIXELS, -1)
    if decode is not None:
        seen = decode.double() @ seen
        carried = torch.einsum("ij,jpk->ipk", decode.double(), carried)
    size = seen.square().sum(1)
    return torch.einsum("kpr,kr->kp", carried, seen) / size.clamp(min=1e-300)[:, None]


def stitches_to_spy(tensors: Mapping[str, Tensor], channels: int) -> list[Tensor]:
    """Return the weights of all stitches that lead to a `Spy` with so many channels."""
    width = HONEST + channels * (1 + PIXELS)
    return [t for name, t in sorted(tensors.items()) if name.endswith("weight") and t.dim() == 2 and len(t) == width]


def read_stitches(
    tensors: Mapping[str, Tensor], channels: int, patients: Tensor, decode: Tensor | None = None
) -> Reconstruction:
    """Return the best image in any of the stitches that lead to the spy."""
    found = [images(weight, channels, decode) for weight in stitches_to_spy(tensors, channels)]
    return best(torch.cat(found), patients) if found else Reconstruction(1.0, 1.0)


def advantage(said: Sequence[bool], true: Sequence[bool]) -> float:
    """Return the true minus the false positive rate of what an attacker said."""
    right = [s for s, t in zip(said, true, strict=True) if t]
    wrong = [s for s, t in zip(said, true, strict=True) if not t]
    return sum(right) / len(right) - sum(wrong) / len(wrong)

"""Label spaces that differ: the ensemble knows every label that one of its members knows, matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from suture_contract.errors import SutureError
from suture_contract.naming import alike, did_you_mean, spelt


@dataclass(frozen=True)
class LabelSpace:
    """`labels` of the ensemble, first seen first; member `m`'s label `k` stands at `columns[m][k]` among them."""

    labels: tuple[str, ...]
    columns: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, members: Sequence[Sequence[str]]) -> LabelSpace:
        """Return the union of the members' labels."""
        labels = tuple(dict.fromkeys(label for own in members for label in own))
        return cls(labels, tuple(tuple(labels.index(label) for label in own) for own in members))

    def knowing(self, members: Sequence[int]) -> Tensor:
        """Return how many of `members` know each label, `(L,)` float32."""
        counts = torch.zeros(len(self.labels))
        for member in members:
            counts[list(self.columns[member])] += 1
        return counts

    def average(self, probabilities: Sequence[Tensor], members: Sequence[int], *, exclusive: bool = True) -> Tensor:
        """Return the mean `(N, L, *spatial)` of the members' probabilities `(N, k, *spatial)`, by label name.

        Each label's mean is over the members that know it; where they know different labels and these exclude each
        other, the means are scaled to sum to one.
        """
        first = probabilities[0]
        total = first.new_zeros(first.shape[0], len(self.labels), *first.shape[2:])
        for member, own in zip(members, probabilities, strict=True):
            total = total.index_add(1, torch.tensor(self.columns[member], device=own.device), own.to(total.dtype))
        knowing = self.knowing(members).to(total.device, total.dtype)
        mean = total / knowing.clamp(min=1).reshape(-1, *(1 for _ in first.shape[2:]))
        if not exclusive or bool((knowing == knowing[0]).all()):
            return mean
        return mean / mean.sum(1, keepdim=True)

    def indices(self, labels: Sequence[str], *, where: str) -> Tensor:
        """Return where the dataset's `labels` stand in the ensemble, `(len(labels),)`.

        Raises `SutureError` `dataset.unknown_label` for one that no member knows.
        """
        for label in labels:
            if label not in self.labels:
                raise SutureError(
                    "dataset.unknown_label",
                    f"no model knows the label {spelt(label)}",
                    where=where,
                    hint=_meant(label, self.labels),
                )
        return torch.tensor([self.labels.index(label) for label in labels])


def _meant(label: str, known: Sequence[str]) -> str:
    for same in (other for _, other in alike([label], known)):
        return (
            f"the models say {spelt(same)}: if that is the same, say so in the dataset's description, "
            f'aliases = {{"{label}" = "{same}"}}, see docs/site-operator.md'
        )
    return f"{did_you_mean(label, known)} Use the labels of the models' suture.json, or add a model that knows it"

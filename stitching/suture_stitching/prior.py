"""Shares of labels: a classifier's probabilities as they would be where labels are more or less frequent.

Probabilities of networks assume the shares of labels they were trained on. Elsewhere, if samples of each label look
alike there, `p'(label | x)` is `p(label | x) * share' / share`, scaled to sum to one (Saerens et al.,
"Adjusting the outputs of a classifier to new a priori probabilities", 2002).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from suture_contract.errors import SutureError
from suture_contract.model.metadata import PRIOR_TOLERANCE, ModelMetadata

#: A label that is rarer than this counts as this rare: of what was hardly seen, nothing is sure.
LEAST_SHARE = 0.01


class AtPrior(nn.Module):
    """A classifier whose probabilities `(N, K)` assume the shares `label_prior` instead of those it declares.

    Raises `SutureError`: `prior.unknown` where the model's `suture.json` declares no shares, `prior.invalid` for shares
    that are not one per label, or do not sum to one.
    """

    def __init__(self, model: nn.Module, metadata: ModelMetadata, label_prior: Mapping[str, float]) -> None:
        super().__init__()
        if metadata.label_prior is None:
            raise SutureError(
                "prior.unknown",
                "the model does not declare the shares of labels that its probabilities assume",
                where="suture.json",
                hint="ask its owner to export it with --label-prior",
            )
        labels = metadata.labels or ()
        if label_prior.keys() != set(labels) or not all(0 <= share <= 1 for share in label_prior.values()):
            raise SutureError(
                "prior.invalid",
                f"label_prior needs a share from 0 to 1 for each of {', '.join(labels)}",
                where="label_prior",
            )
        if abs(sum(label_prior.values()) - 1) > PRIOR_TOLERANCE:
            total = sum(label_prior.values())
            raise SutureError("prior.invalid", f"the shares sum to {total:g}, not to 1", where="label_prior")
        self.model = model
        output = next(iter(metadata.outputs.values()))
        self._logits, self._one_for_two = output.format == "logits", output.num_channels < len(labels)
        wanted, assumed = (
            torch.tensor([shares[label] for label in labels]).clamp(min=LEAST_SHARE)
            for shares in (label_prior, metadata.label_prior)
        )
        self.register_buffer("weights", wanted / assumed)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of the model's own kind: logits or probabilities `(N, K)`, one for two labels stays one."""
        weights: Tensor = self.weights  # type: ignore[assignment]
        output: Tensor = self.model(x)
        if self._one_for_two:
            odds = output if self._logits else output.logit()
            odds = odds + (weights[1] / weights[0]).log()
            return odds if self._logits else odds.sigmoid()
        if self._logits:
            return output + weights.log()
        weighed = output * weights
        return weighed / weighed.sum(1, keepdim=True)


__all__ = ["LEAST_SHARE", "AtPrior"]

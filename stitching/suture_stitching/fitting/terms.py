"""On what terms patients are looked at in a fit."""

from __future__ import annotations

from dataclasses import dataclass

from suture_contract.privacy import Privacy

#: How many patients carry a feature that takes part, at least.
LEAST = 11


@dataclass(frozen=True)
class PatientTerms:
    """On what terms the requester's patients are looked at: see `fit`.

    `own` is the requester's own member, the only one that gates look through; `least` is how many patients must carry
    a feature that takes part.
    """

    own: int | None = None
    privacy: Privacy | None = None
    share: float = 1.0
    least: int = LEAST


#: Without a model of the requester's own, and without noise.
EVERYONE = PatientTerms()

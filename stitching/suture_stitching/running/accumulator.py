"""What is added up over a pass: moments and sums by name, and rows by name for which nothing smaller would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from suture_stitching.features.moments import Moments
from suture_stitching.running.checkpoint import Checkpoint

#: Before the names of what belongs to a block that is not finished.
_OPEN = "open/"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Placed:
    """What `each` `(N, K)` sample adds to a sum `(size, K)` at its place `(N,)`."""

    places: Tensor
    each: Tensor
    size: int


@dataclass
class Accumulator:
    """Moments, rows `(N, ...)`, and sums of any shape, each by name.

    Moments of features wider than a batch has rows cost more to add up than to compute. Their rows are therefore
    `waiting` until there are as many as features; `settle` counts the rest.
    """

    moments: dict[str, Moments] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    waiting: dict[str, Tensor] = field(default_factory=dict)
    placed: dict[str, Placed] = field(default_factory=dict)

    def see(self, name: str, rows: Tensor) -> None:
        """Count `rows` `(R, D)` of features, now or when there are more of them."""
        if name in self.waiting:
            rows = torch.cat([self.waiting.pop(name), rows])
        if len(rows) < rows.shape[1]:
            self.waiting[name] = rows
        else:
            self._count(name, Moments.of(rows))

    def settle(self) -> None:
        """Count all rows that are waiting."""
        for name, rows in self.waiting.items():
            self._count(name, Moments.of(rows))
        self.waiting = {}

    def _count(self, name: str, moments: Moments) -> None:
        before = self.moments.get(name)
        self.moments[name] = moments if before is None else before + moments

    def add(self, other: Accumulator) -> None:
        """Add what was found in more samples."""
        for name, moments in other.moments.items():
            self._count(name, moments)
        for name, rows in other.waiting.items():
            self.see(name, rows)
        for name, placed in other.placed.items():
            if name not in self.sums:
                self.sums[name] = placed.each.new_zeros(placed.size, placed.each.shape[1])
            self.sums[name].index_add_(0, placed.places, placed.each)
        for name, more in other.rows.items():
            self.rows[name] = torch.cat([self.rows[name], more]) if name in self.rows else more
        for name, more in other.sums.items():
            self.sums[name] = self.sums[name] + more if name in self.sums else more

    def beside(self, block: Accumulator) -> Accumulator:
        """Return these accumulator together with those of an unfinished block, which `apart` takes apart again."""

        def both(ours: Mapping[str, _T], theirs: Mapping[str, _T]) -> dict[str, _T]:
            return {**ours, **{f"{_OPEN}{name}": value for name, value in theirs.items()}}

        return Accumulator(
            both(self.moments, block.moments),
            both(self.rows, block.rows),
            both(self.sums, block.sums),
            both(self.waiting, block.waiting),
        )

    def apart(self) -> tuple[Accumulator, Accumulator]:
        """Return the accumulator and those of the unfinished block."""

        def part(every: Mapping[str, _T], *, opened: bool) -> dict[str, _T]:
            length = len(_OPEN) * opened
            return {name[length:]: value for name, value in every.items() if name.startswith(_OPEN) is opened}

        closed, unfinished = (
            Accumulator(*(part(every, opened=opened) for every in (self.moments, self.rows, self.sums, self.waiting)))  # type: ignore[arg-type]
            for opened in (False, True)
        )
        return closed, unfinished

    def kept(self, batches: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return document and tensors to keep, with the number of batches that went in per split."""
        tensors = {f"rows/{name}": rows for name, rows in self.rows.items()}
        tensors |= {f"sums/{name}": sums for name, sums in self.sums.items()}
        tensors |= {f"wait/{name}": rows for name, rows in self.waiting.items()}
        for name, moments in self.moments.items():
            tensors |= {f"mean/{name}": moments.mean, f"scatter/{name}": moments.scatter}
        return {"batches": dict(batches), "n": {name: moments.n for name, moments in self.moments.items()}}, tensors

    @classmethod
    def restored(cls, checkpoint: Checkpoint, part: str, device: torch.device) -> tuple[Accumulator, dict[str, int]]:
        """Return what was kept as `part`, and the batches per split; nothing where nothing was."""
        kept = checkpoint.load(part)
        if kept is None:
            return cls(), {}
        moments = {
            name: Moments(n, kept.tensors[f"mean/{name}"], kept.tensors[f"scatter/{name}"]).to(device)
            for name, n in kept.document["n"].items()
        }
        rows, sums, waiting = (
            {name[5:]: tensor.to(device) for name, tensor in kept.tensors.items() if name.startswith(kind)}
            for kind in ("rows/", "sums/", "wait/")
        )
        return cls(moments, rows, sums, waiting), dict(kept.document["batches"])

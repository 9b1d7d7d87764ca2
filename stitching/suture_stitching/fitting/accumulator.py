"""What is added up over a pass: moments by name, and rows by name for which nothing smaller would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from suture_stitching.features.moments import Moments
from suture_stitching.running.checkpoint import Checkpoint

#: Before the names of what belongs to a block that is not finished.
_OPEN = "open/"


@dataclass
class Totals:
    """Moments and rows `(N, ...)`, each by name."""

    moments: dict[str, Moments] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)

    def add(self, other: Totals) -> None:
        """Add what was found in more samples."""
        for name, found in other.moments.items():
            before = self.moments.get(name)
            self.moments[name] = found if before is None else before + found
        for name, more in other.rows.items():
            self.rows[name] = torch.cat([self.rows[name], more]) if name in self.rows else more

    def beside(self, block: Totals) -> Totals:
        """Return these totals together with those of an unfinished block, which `apart` takes apart again."""
        moments = {f"{_OPEN}{name}": one for name, one in block.moments.items()}
        return Totals({**self.moments, **moments}, {**self.rows, **{f"{_OPEN}{k}": v for k, v in block.rows.items()}})

    def apart(self) -> tuple[Totals, Totals]:
        """Return the totals and those of the unfinished block."""
        found = []
        for opened in (False, True):
            length = len(_OPEN) * opened
            moments = {k[length:]: one for k, one in self.moments.items() if k.startswith(_OPEN) is opened}
            found.append(
                Totals(moments, {k[length:]: one for k, one in self.rows.items() if k.startswith(_OPEN) is opened})
            )
        return found[0], found[1]

    def kept(self, batches: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return document and tensors to keep, with the number of batches that went in per split."""
        tensors = {f"rows/{name}": rows for name, rows in self.rows.items()}
        for name, moments in self.moments.items():
            tensors |= {f"mean/{name}": moments.mean, f"scatter/{name}": moments.scatter}
        return {"batches": dict(batches), "n": {name: one.n for name, one in self.moments.items()}}, tensors

    @classmethod
    def restored(cls, checkpoint: Checkpoint, part: str, device: torch.device) -> tuple[Totals, dict[str, int]]:
        """Return what was kept as `part`, and the batches per split; nothing where nothing was."""
        kept = checkpoint.load(part)
        if kept is None:
            return cls(), {}
        moments = {
            name: Moments(n, kept.tensors[f"mean/{name}"], kept.tensors[f"scatter/{name}"]).to(device)
            for name, n in kept.document["n"].items()
        }
        rows = {name[5:]: rows.to(device) for name, rows in kept.tensors.items() if name.startswith("rows/")}
        return cls(moments, rows), dict(kept.document["batches"])

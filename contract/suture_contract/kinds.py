"""The kinds of task: their names, and the files that each leaves. Hub, site and client agree by this table.

What a kind means is said in one module of its name on each side: `suture_service.kinds` and `suture_worker.kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["match", "contribute", "fit", "evaluate", "compose"]

CANDIDATES, STITCHES = "candidates.json", "stitches.safetensors"
MOMENTS = "moments.safetensors"
MODEL, METADATA, REPORT, CARD = "model.safetensors", "suture.json", "report.json", "README.md"

#: The files that a site puts beside the document that ends a task.
FILES: Mapping[Kind, tuple[str, ...]] = {
    "match": (),
    "contribute": (MOMENTS,),
    "fit": (CANDIDATES, STITCHES),
    "evaluate": (),
    "compose": (MODEL, METADATA, REPORT, CARD),
}


def contributed_by(party: str) -> str:
    """Return how a job calls the file that a party contributed to its fit."""
    return f"moments.{party}"

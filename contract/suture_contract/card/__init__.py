"""The model card, `README.md`: what `suture.json` and the party report say, for people and for model hubs.

    text = write_card("north/polyps", metadata)
    text = merge_card(own_text, "north/polyps", metadata)     # keeps a card's own words

The YAML at its top follows `huggingface_hub.ModelCardData`. Texts of others are shown as text, whatever they hold.
Works without network and without torch.
"""

from __future__ import annotations

from suture_contract.card.body import body, use
from suture_contract.card.front_matter import agreeing, front_matter, joined, merged
from suture_contract.card.yaml_block import read_block
from suture_contract.documents import Report
from suture_contract.model.metadata import ModelMetadata


def write_card(repo: str, metadata: ModelMetadata, report: Report | None = None) -> str:
    """Return the card of the model `repo` (`party/name`); `report` is that of a stitched ensemble."""
    return joined(front_matter(repo, metadata, report), "\n" + body(repo, metadata, report))


def merge_card(text: str, repo: str, metadata: ModelMetadata, report: Report | None = None) -> str:
    """Return a card with the words of `text` and its YAML, brought in line with `metadata`.

    What `suture.json` says is taken from there; tags are added to. All else stays as its author wrote it, byte for
    byte, with the same line ends; but a card that was written before the model had a name learns it. Doing it again
    changes nothing. Raises `SutureError`: `card.yaml`, `card.characters`, `card.mismatch`.
    """
    block = read_block(text)
    line_end = "\r\n" if "\r\n" in text else "\n"
    front = front_matter(repo, metadata, report)
    if block is None:
        opening, words = joined(front, "").replace("\n", line_end), text
    else:
        agreeing(block, metadata)
        opening, words = block.opening + merged(block, front) + block.closing, block.words
    unnamed, named = (use(name).replace("\n", line_end) for name in ("", repo))
    return opening + words.replace(unnamed, named)

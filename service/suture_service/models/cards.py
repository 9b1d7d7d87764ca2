"""What a card (`README.md`) and `suture.json` say in the words of the Hugging Face Hub, by which models are found."""

from __future__ import annotations

from typing import Any

from suture_contract.card.front_matter import PIPELINES
from suture_contract.model.metadata import ModelMetadata
from suture_service.tables import Json

MAX_TAGS, MAX_TAG = 100, 200


def pipeline(card: Json | None, content: Json | None) -> str | None:
    """Return what kind of task the model does, in the words of the Hugging Face Hub: what the card says goes first."""
    if card and card.get("pipeline_tag"):
        return str(card["pipeline_tag"])
    if content is None:
        return None
    form = next(iter(content["inputs"].values())).get("format", "image")
    return PIPELINES.get((form, content["task"]))


def library(card: Json | None, content: Json | None) -> str | None:
    """Return the library that loads the model."""
    if card and card.get("library_name"):
        return str(card["library_name"])
    return "suture" if content is not None else None


def tags_of(card: Json | None, metadata: ModelMetadata | None) -> list[str]:
    """Return the words by which a model is filtered: the card's tags, and what card and `suture.json` state besides."""
    card = card or {}
    content = None if metadata is None else metadata.model_dump(mode="json", by_alias=True, exclude_none=True)
    words: list[Any] = [*(card.get("tags") or []), library(card, content), pipeline(card, content)]
    licence = card.get("license") or (metadata.license if metadata else None)
    if licence:
        words.append(f"license:{str(licence).lower()}")
    if metadata is not None:
        words += [metadata.task, *(entry.modality for entry in metadata.inputs.values())]
    kept = dict.fromkeys(word for word in words if word and len(word) <= MAX_TAG and word.isprintable())
    return list(kept)[:MAX_TAGS]

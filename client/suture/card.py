"""The model card, `README.md`: what `suture.json` says, for people."""

from __future__ import annotations

from suture_stitching.portable.metadata import ModelMetadata


def write_card(repo: str, metadata: ModelMetadata) -> str:
    """Return a card in Markdown with the front matter that model hubs read."""
    # Imported here: no other command needs it, and it is slow to load.
    from huggingface_hub import ModelCardData

    front = ModelCardData(library_name="suture", license=metadata.license, tags=["suture", metadata.task])
    (input_spec,) = list(metadata.inputs.values())[:1]
    size = " x ".join(str(part) if part is not None else "any" for part in input_spec.spatial_shape)
    lines = [
        "---",
        front.to_yaml(),
        "---",
        "",
        f"# {repo}",
        "",
        metadata.description or f"A {metadata.task} model.",
        "",
        "## Use",
        "",
        "```python",
        "import suture",
        "",
        f'model = suture.Hub().load("{repo}")',
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| task | {metadata.task} |",
        f"| input | {input_spec.format}, {input_spec.num_channels} channel(s)" + (f", {size}" if size else "") + " |",
    ]
    if input_spec.value_range is not None:
        lines.append(f"| values | {input_spec.value_range[0]:g} to {input_spec.value_range[1]:g} |")
    if metadata.labels is not None:
        lines.append(f"| labels | {', '.join(_cell(label) for label in metadata.labels)} |")
    if metadata.training_data is not None:
        told = metadata.training_data.description or ""
        count = f"{metadata.training_data.n:,} samples" if metadata.training_data.n is not None else ""
        lines.append(f"| learnt from | {_cell(', '.join(part for part in (told, count) if part))} |")
    if metadata.authors:
        lines.append(f"| authors | {_cell(', '.join(metadata.authors))} |")
    if metadata.intended_use:
        lines += ["", "## Intended use", "", metadata.intended_use]
    if metadata.lineage is not None:
        lines += ["", "## Made of", ""]
        lines += [f"- {member.repo} at {member.revision}" for member in metadata.lineage.members]
    if metadata.references:
        lines += ["", "## References", ""]
        lines += [f"- {reference}" for reference in metadata.references]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

"""What a card says to people, in Markdown."""

from __future__ import annotations

from suture_contract.card.markdown import line, paragraphs, table
from suture_contract.documents import Report
from suture_contract.model.metadata import ModelMetadata, check_repo
from suture_contract.report.assumed import assumed
from suture_contract.report.gains import decision, headline, remarks, sentence
from suture_contract.report.rows import complete, name_of, rows_of
from suture_contract.report.trust import training_words, warnings
from suture_contract.report.words import REASONS, bracketed, contributed, samples

_CAUTION = "It is not a medical device: a model that goes into clinical use needs validation there first."
_FILES = """\
`model.safetensors` holds the weights and a list of allowed operations, no code and no data; it is checked before it
runs. `suture.json` is what this card was written from."""
_PARTIES = """\
Each party measured on its own test data, which took no part in fitting or choice; 95 % intervals in brackets."""
_SHOWN_LABELS = 100


def body(repo: str, metadata: ModelMetadata, report: Report | None) -> str:
    """Return the card's text, without its YAML."""
    sections = [
        [f"# {line(repo)}", paragraphs(metadata.description or "") or f"A {metadata.task} model."],
        ["## Use", use(repo)],
        ["## What it reads and gives", *_sizes(metadata)],
        ["## Intended use", paragraphs(metadata.intended_use or "") or "Not stated.", _CAUTION],
        ["## Limitations", paragraphs(metadata.limitations or "") or "Not stated."],
        ["## Training data", *_training_data(metadata)],
        *([["## Results", *_measured(metadata)]] if metadata.eval_metrics and report is None else []),
        *([["## At each party", *_party_table(report)]] if report is not None else []),
        *([["## Made of", *_made_of(metadata)]] if metadata.lineage is not None else []),
        ["## What is in the files", _FILES],
        *_credit(metadata),
    ]
    return "\n\n".join(part for section in sections for part in section) + "\n"


def use(repo: str) -> str:
    """Return how the model is loaded; a placeholder stands for what is not `party/name`."""
    try:
        name = check_repo(repo)
    except ValueError:
        name = "PARTY/NAME"
    return f'```python\nimport suture\n\nmodel = suture.Hub().load("{name}")  # a torch.nn.Module\n```'


def _sizes(metadata: ModelMetadata) -> list[str]:
    rows = [["", ""], ["task", metadata.task]]
    for name, spec in metadata.inputs.items():
        size = " x ".join("any" if part is None else str(part) for part in spec.spatial_shape)
        parts = [spec.format, f"{spec.num_channels} channel(s)", size, line(spec.modality or "")]
        rows.append([f"input {line(name)}", ", ".join(part for part in parts if part)])
        if spec.channels is not None:
            rows.append(["channels", _listed(spec.channels)])
        if spec.spacing is not None:
            rows.append(["spacing", " x ".join(f"{step:g}" for step in spec.spacing) + " mm"])
        if spec.value_range is not None:
            rows.append(["values", f"{spec.value_range[0]:g} to {spec.value_range[1]:g}"])
        if spec.preprocessing is not None:
            mean, std = (
                ", ".join(f"{number:g}" for number in numbers[:_SHOWN_LABELS])
                for numbers in (spec.preprocessing.mean, spec.preprocessing.std)
            )
            rows.append(["before the model", f"subtract {mean}; then divide by {std}"])
    for name, output in metadata.outputs.items():
        rows.append([f"output {line(name)}", f"{output.format}, {output.num_channels} channel(s)"])
    if metadata.labels is not None:
        rows.append(["labels", _listed(metadata.labels)])
    rows.append(["license", line(metadata.license)])
    return ["\n".join(table(rows))]


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN_LABELS
    return ", ".join(map(line, names[:_SHOWN_LABELS])) + (f" and {more} more" if more > 0 else "")


def _training_data(metadata: ModelMetadata) -> list[str]:
    data = metadata.training_data
    parts = ["See the models it was made of." if data is None and metadata.lineage is not None else ""]
    if data is not None:
        parts = [paragraphs(data.description or ""), f"{data.n:,} samples." if data.n is not None else ""]
    parts.append(_label_prior(metadata))
    return [part for part in parts if part] or ["Not stated."]


def _label_prior(metadata: ModelMetadata) -> str:
    """Say which shares of labels the probabilities assume, where that is declared, as far as there is room."""
    if metadata.label_prior is None:
        return ""
    shares = [f"{line(name)} {share:.3g}" for name, share in metadata.label_prior.items()]
    return (
        f"Shares of labels that its probabilities assume: {_listed(tuple(shares))}. Where labels are more or less "
        "frequent, `Hub.load(..., label_prior=...)` puts in the shares of that place."
    )


def _measured(metadata: ModelMetadata) -> list[str]:
    data = metadata.eval_data
    text = "Measured by " + ("the authors" if metadata.lineage is None else "each party") + " on data of their own"
    text += f": {data.n:,} samples ({data.split})." if data is not None else "; on how much is not stated."
    rows = [["metric", "value"], *([line(name), f"{value:g}"] for name, value in (metadata.eval_metrics or {}).items())]
    about = paragraphs(data.description or "") if data is not None else ""
    return [text, *([about] if about else []), "\n".join(table(rows))]


def _party_table(report: Report) -> list[str]:
    """Return every party's rows, measured on its own test data, and who is missing."""
    report = complete(report)
    parties = sorted(report.parties, key=lambda party: (party != report.requester, party))
    measured = [report.parties[party] for party in parties]
    heads = (
        f"{line(party)}: {party_report.metric.replace('_', ' ')}"
        for party, party_report in zip(parties, measured, strict=True)
    )
    rows = [["model", *heads]]
    for row in rows_of(report, parties):
        intervals = [party_report.rows.get(row) for party_report in measured]
        cells = ["" if interval is None else bracketed(interval) for interval in intervals]
        rows.append([line(name_of(row, report)), *cells])
    rows.append(["test samples (n)", *(samples(party_report) for party_report in measured)])
    rows.append(["verdict", *(decision(report, party).lower() for party in parties)])
    missing = [f"- {line(absent.party)} {REASONS[absent.reason]}" for absent in report.missing]
    missing += [
        f"- {line(contribution.party)} {contributed(contribution)}" for contribution in report.contributions or ()
    ]
    missing += [f"- {line(words)}" for words in assumed(report)]
    summary = [line(f"{headline(report)}.")]
    if report.requester in report.parties:
        summary.append(line(" ".join([sentence(report, report.requester), *remarks(report, report.requester)])))
    trained = [
        line(" ".join([training_words(party_report, party), *warnings(party_report, party)]))
        for party, party_report in zip(parties, measured, strict=True)
        if "own" in party_report.rows
    ]
    return [
        *summary,
        " ".join([_PARTIES, *trained]),
        "\n".join(table(rows)),
        *(["\n".join(missing)] if missing else []),
    ]


def _made_of(metadata: ModelMetadata) -> list[str]:
    assert metadata.lineage is not None
    lineage = metadata.lineage
    members = [f"- {line(member.repo)} at {member.revision}" for member in lineage.members]
    return [f"Stitched for {line(lineage.requester)} from models that were not trained again:", "\n".join(members)]


def _credit(metadata: ModelMetadata) -> list[list[str]]:
    sections = []
    if metadata.authors:
        sections.append(["## Authors", ", ".join(map(line, metadata.authors))])
    citation = paragraphs(metadata.citation or "")
    doi = f"DOI: {line(metadata.doi)}" if metadata.doi is not None else ""
    if citation or doi:
        sections.append(["## Citation", *(part for part in (citation, doi) if part)])
    references = [f"- {line(reference)}" for reference in metadata.references if reference.strip()]
    if references:
        sections.append(["## References", "\n".join(references)])
    return sections

"""The YAML at the top of a card, as the metadata and the report give it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from suture_contract.card.yaml_block import CardBlock, refused
from suture_contract.card.yaml_edit import with_fields
from suture_contract.documents import Report
from suture_contract.errors import SutureError
from suture_contract.model.metadata import ModelMetadata
from suture_contract.naming import folded, shown
from suture_contract.report.rows import complete

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

#: How model hubs name the licences they know; any other one is `other` with its name beside it.
_LICENCES = frozenset(
    """
    apache-2.0 mit afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
    cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl
    openrail openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl unknown
    """.split()  # noqa: SIM905  # a list of one word per line is not easier to read
)
#: What models do, in the words of the Hugging Face Hub: by format of the first input and task.
PIPELINES = {
    ("image", "classification"): "image-classification",
    ("image", "multilabel"): "image-classification",
    ("image", "segmentation"): "image-segmentation",
    ("table", "classification"): "tabular-classification",
    ("table", "multilabel"): "tabular-classification",
    ("table", "regression"): "tabular-regression",
    ("signal", "classification"): "time-series-classification",
}
_LONGEST_TAG = 64
#: What people write before a DOI.
_DOI = re.compile(r"^\s*(?:https?://(?:dx\.)?doi\.org/|doi:)\s*", re.IGNORECASE)


def front_matter(repo: str, metadata: ModelMetadata, report: Report | None) -> ModelCardData:
    """Return what model hubs read of a model: licence, tags, results, and the models it was made of."""
    # Imported here: it is slow to load, and most commands need no card.
    from huggingface_hub import ModelCardData

    spec = next(iter(metadata.inputs.values()))
    modality = " ".join((spec.modality or "").split())
    known = metadata.license.lower() in _LICENCES
    tags = ["suture", metadata.task, *([modality] if 0 < len(modality) <= _LONGEST_TAG else [])]
    lineage = metadata.lineage
    results = _results(metadata, report)
    return ModelCardData(
        library_name="suture",
        license=metadata.license.lower() if known else "other",
        license_name=None if known else metadata.license,
        pipeline_tag=PIPELINES.get((spec.format, metadata.task)),
        tags=[*tags, *(["stitched"] if lineage is not None else [])],
        base_model=sorted({member.repo for member in lineage.members}) if lineage is not None else None,
        base_model_relation="merge" if lineage is not None else None,
        doi=metadata.doi,
        model_name=repo if results else None,
        eval_results=results or None,
    )


def agreeing(block: CardBlock, metadata: ModelMetadata) -> None:
    """Raise `SutureError` `card.mismatch` where a card states another licence or DOI than `suture.json` does."""
    own = block.fields
    licence = "license_name" if own.get("license") in (None, "", "other") and own.get("license_name") else "license"
    for field, stated, ours in (
        (licence, own.get(licence), metadata.license),
        ("doi", own.get("doi"), metadata.doi),
    ):
        if stated in (None, "") or ours is None:
            continue
        same = folded(_DOI.sub("", str(stated))) == folded(ours)
        # `other` without a name says no more than that hubs do not know it.
        if not same and not (stated == "other" and ours.lower() not in _LICENCES):
            raise SutureError(
                "card.mismatch",
                f"the card's {field} is {shown(stated)}, that of suture.json is {shown(ours)}",
                where=block.line_of(field),
                hint="write the right one into both, or leave it out of the card: it is then taken from suture.json",
            )


def merged(block: CardBlock, ours: ModelCardData) -> str:
    """Return the text of a block in which the fields of `ours` are as they say, and all else is as it was.

    Raises `SutureError` `card.yaml`.
    """
    from huggingface_hub import ModelCardData

    own = block.fields
    _check_results(own.get("model-index"), block)
    try:
        ModelCardData(**own).to_yaml()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise refused(f"model hubs cannot read it: {' '.join(str(error).split())[:200]}") from None
    known: dict[str, Any] = ours.to_dict()  # type: ignore[no-untyped-call]
    known["tags"] = [*(tag for tag in known["tags"] if tag not in (own.get("tags") or ())), *(own.get("tags") or ())]
    return with_fields(block, known)


def _check_results(index: Any, block: CardBlock) -> None:
    """Refuse a `model-index` that model hubs cannot read; raises `SutureError` `card.yaml`, which names the item."""
    if not index:
        return
    where = block.line_of("model-index")
    for at, model in _items(index, "model-index", where):
        _need(model, ("name", "results"), at, where)
        for at_result, result in _items(model["results"], f"{at}.results", where):
            _need(result, ("task", "dataset", "metrics"), at_result, where)
            _need(result["task"], ("type",), f"{at_result}.task", where)
            _need(result["dataset"], ("type", "name"), f"{at_result}.dataset", where)
            for at_metric, metric in _items(result["metrics"], f"{at_result}.metrics", where):
                _need(metric, ("type", "value"), at_metric, where)


def _items(value: Any, at: str, where: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, list):
        raise refused(f"{at}: a list is wanted, not {shown(value)}", where)
    yield from ((f"{at}[{index}]", item) for index, item in enumerate(value))


def _need(value: Any, fields: tuple[str, ...], at: str, where: str) -> None:
    if not isinstance(value, dict):
        raise refused(f"{at}: {' and '.join(fields)} are wanted, not {shown(value)}", where)
    for field in fields:
        if field not in value:
            raise refused(f"{at}.{field} is missing", where)


def _results(metadata: ModelMetadata, report: Report | None) -> list[EvalResult]:
    """Return what was measured: by the authors on their own data, and by each party on its test data."""
    from huggingface_hub import EvalResult

    task = PIPELINES.get((next(iter(metadata.inputs.values())).format, metadata.task), metadata.task)
    if report is not None:
        return _at_parties(report, task)
    data = metadata.eval_data
    whose = "authors" if metadata.lineage is None else "parties"
    return [
        EvalResult(
            task_type=task,
            dataset_type="own-data",
            dataset_name=f"the {whose}' own data",
            dataset_split=data.split if data is not None else None,
            dataset_args={"n": data.n} if data is not None else None,
            metric_type=name,
            metric_value=value,
        )
        for name, value in (metadata.eval_metrics or {}).items()
    ]


def _at_parties(report: Report, task: str) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    results = []
    for party, measured in complete(report).parties.items():
        if "chosen" in measured.rows:
            results.append(
                EvalResult(
                    task_type=task,
                    dataset_type="own-data",
                    dataset_config=party,
                    dataset_name=f"test data of {party}",
                    dataset_split="test",
                    dataset_args={"n": measured.n},
                    metric_type=measured.metric,
                    metric_value=measured.rows["chosen"].value,
                )
            )
    return results


def joined(front: ModelCardData, body: str) -> str:
    """Return a card."""
    return f"---\n{front.to_yaml()}\n---\n{body}"

"""Any document that left, as tables: each kind of thing in it is a table, each figure stands under its name.

Made from the bytes alone, so that it is the same whatever the site knows by now of the task. Older documents, and such
as nobody knows here, are shown in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from safetensors import SafetensorError
from safetensors.numpy import load

from suture_contract.report.clinical import NAMES as CLINICAL_NAMES
from suture_contract.report.words import METRIC_MEANINGS
from suture_worker.egress.shown import Section

#: Of one table; the bytes beside it have all.
MOST_ROWS = 200
#: A document goes no deeper.
_DEEPEST = 12
#: What a field is called where its own name says too little; with the unit of its figures.
_WORDS: Mapping[str, str] = {
    **{str(metric): name for metric, name in CLINICAL_NAMES.items()},
    "n": "samples",
    "r2": "r²",
    "ece": "ECE, 0 to 1",
    "brier": "Brier score, 0 to 2",
    "alpha": "mixing weight, 0 to 1",
    "upto": "probability up to",
    "predicted": "mean probability, 0 to 1",
    "epsilon": "epsilon, for each patient",
    "seconds_left": "seconds left",
    "sha256": "SHA-256",
    "fence": "number of the lease",
    "norms": "typical sizes of features",
    "near": "squared distance that counts fully",
    "far": "squared distance that counts no more",
    "others": "weight of other parties' moments",
}
#: The bounds of an interval stand beside its value.
_INTERVAL = ("low", "high")
_BOUNDED = "value, with its 95 % interval"

_METRICS: Mapping[str, str] = {str(metric): meaning for metric, meaning in METRIC_MEANINGS.items()}
#: Around what a document says, a message has the number of the lease.
_DOCUMENT = "document"

_Object: TypeAlias = Mapping[str, Any]
_Path: TypeAlias = tuple[str, ...]


def sections(content: str) -> list[Section]:
    """Return the tables of a JSON document, the outermost first; none where the text is no JSON object."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return []
    if not isinstance(document, dict):
        return []
    tables: dict[_Path, list[tuple[_Path, _Object]]] = {}
    _collect(document, (), (), tables)
    return [section for path, records in tables.items() for section in _section(path, records)]


def tensors(content: bytes) -> list[Section]:
    """Return a table of a safetensors file: each tensor's size, and its least and largest number."""
    try:
        read = sorted(load(content).items())
    except (SafetensorError, ValueError):
        return []
    rows = [
        (name, " x ".join(map(str, values.shape)), f"{values.min():.6g}", f"{values.max():.6g}")
        for name, values in read
        if values.size
    ]
    size = sum(values.size for _, values in read)
    return [_table(f"{size:,} numbers", ("tensor", "size", "least", "largest"), rows)]


def _collect(value: _Object, path: _Path, keys: _Path, tables: dict[_Path, list[tuple[_Path, _Object]]]) -> None:
    """Sort an object's figures into the table of its kind, under the keys that lead to it; what is inside follows."""
    if len(path) > _DEEPEST:
        return
    figures = {name: inner for name, inner in value.items() if _is_figure(inner)}
    if figures:
        tables.setdefault(path, []).append((keys, figures))
    for name, inner in value.items():
        if name in figures:
            continue
        for key, entry in _entries(inner):
            _collect(entry, (*path, name), (*keys, *key), tables)


def _entries(value: Any, depth: int = 0) -> Iterator[tuple[_Path, _Object]]:
    """Yield the objects in a field, each under its keys: one, a list of them, or several by name."""
    if depth > _DEEPEST:
        return
    if isinstance(value, list):
        for number, inner in enumerate(value, start=1):
            for key, entry in _entries(inner, depth + 1):
                yield (str(number), *key), entry
    elif isinstance(value, dict):
        if all(isinstance(inner, dict | list) and not _is_words(inner) for inner in value.values()):
            for name, inner in value.items():
                for key, entry in _entries(inner, depth + 1):
                    yield (name, *key), entry
        else:
            yield (), value
    else:
        yield (), {"": value}


def _is_figure(value: Any) -> bool:
    """Whether a value goes into one cell: a figure, an interval, or a few of them by name."""
    if isinstance(value, dict):
        return _is_interval(value) or all(not isinstance(inner, list) and _is_single(inner) for inner in value.values())
    return _is_single(value)


def _is_single(value: Any) -> bool:
    return not isinstance(value, dict | list) or _is_words(value) or _is_interval(value)


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(inner, dict | list) for inner in value)


def _is_interval(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"value", *_INTERVAL}


def _section(path: _Path, records: Sequence[tuple[_Path, _Object]]) -> Iterator[Section]:
    inside = path[1:] if path[:1] == (_DOCUMENT,) else path
    title = " › ".join(_word(name) for name in inside) or ("the document" if path else "the message")
    if len(records) == 1 and not records[0][0]:
        rows = [(name, text) for name, text in _cells(records[0][1]).items() if text]
        if rows:
            yield _table(title, ("what", "figure"), rows)
        return
    cells = [(" · ".join(map(_word, keys)), _cells(figures)) for keys, figures in records]
    columns = list(dict.fromkeys(name for _, row in cells for name in row))
    by_key = [(key, *(row.get(name, "") for name in columns)) for key, row in cells]
    yield _table(title, ("of", *columns), by_key)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Section:
    more = len(rows) - MOST_ROWS
    return Section(title, columns, rows[:MOST_ROWS], notes=[f"{more:,} more are in the bytes."] if more > 0 else [])


def _cells(figures: _Object) -> dict[str, str]:
    """Return an object's figures as texts under their words; a value has its interval beside it."""
    cells = {}
    bounded = "value" in figures and all(name in figures for name in _INTERVAL)
    for name, value in figures.items():
        if bounded and name in _INTERVAL:
            continue
        if bounded and name == "value":
            name, value = _BOUNDED, {part: figures[part] for part in ("value", *_INTERVAL)}
        cells[_word(name) or "figure"] = _text(value)
    return cells


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if _is_interval(value):
        return f"{_text(value['value'])} ({_text(value['low'])} to {_text(value['high'])})"
    if isinstance(value, dict):
        return "; ".join(f"{_word(name)}: {_text(inner)}" for name, inner in value.items())
    return f"{value}: {_METRICS[value]}" if value in _METRICS else str(value)


def _word(name: str) -> str:
    return _WORDS.get(name, name.replace("_", " "))

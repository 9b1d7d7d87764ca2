"""What a caller of the SDK gives, checked before anything is computed or sent: each error says what to give instead."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, get_args

from suture_contract.compatibility import check_labels
from suture_contract.errors import SutureError
from suture_contract.model.metadata import Task, check_repo
from suture_contract.naming import did_you_mean, shown

PAGE = "docs/suture-json.md"
_REVISION = re.compile(r"[0-9a-f]{7,40}")
#: Keywords of `publish` and `export_model` that are lists of texts: a text alone would be taken apart.
_LISTS = ("labels", "channels", "authors", "references")
_WORDS: Mapping[str, Sequence[str]] = {"task": get_args(Task), "output": ("logits", "probabilities", "values")}


def one_of(value: str, known: Sequence[str], name: str, page: str | None = None) -> None:
    """Raise `SutureError` `argument.unknown` unless `value` is one of the known words."""
    if value not in known:
        hint = did_you_mean(str(value), known, page=page)
        raise SutureError("argument.unknown", f"{shown(value)} is none of those allowed", where=name, hint=hint)


def listed(value: Iterable[str], name: str) -> list[str]:
    """Return a list of texts; raises `SutureError` `argument.type` for a text, which Python would take apart."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise SutureError(
            "argument.type", f"a list is wanted, not {shown(value)}", where=name, hint=f"write {name}=[{value!r}]"
        )
    return list(value)


def in_order(value: Iterable[Any], name: str) -> list[Any]:
    """Return a list as it is written; raises `SutureError` `argument.type` for what has another order or none."""
    if isinstance(value, Iterator):
        raise SutureError(
            "argument.type", "a list is wanted, not what is read only once", where=name, hint=f"write {name}=list(…)"
        )
    if isinstance(value, Set | Mapping):
        kind = type(value).__name__
        raise SutureError(
            "argument.type",
            f"a list is wanted, not a {kind}, "
            + ("which has no order" if kind == "set" else "whose order may be another"),
            where=name,
            hint=f"write {name}=['…', '…'], in the order of the model's channels",
        )
    return listed(value, name)


def checked_repo(repo: str, name: str = "repo") -> str:
    """Return a model's name `party/name`; raises `SutureError`: `argument.type`, or `model.name` saying the rule."""
    if not isinstance(repo, str):
        kind, known = type(repo).__name__, getattr(repo, "repo", None) or getattr(repo, "id", None)
        own = hasattr(repo, "state_dict")
        raise SutureError(
            "argument.type",
            f"a model at the hub is named by a text, not by a {kind}",
            where=name,
            hint="publish it first: hub.publish(model, example, 'party/name', …)"
            if own
            else f"write '{known}'"
            if isinstance(known, str)
            else "write it as 'party/name'",
        )
    try:
        return check_repo(repo)
    except ValueError as error:
        hint = "write it as party/name"
        if "@" in repo:
            hint = f"name the revision by itself: revision='{repo.partition('@')[2]}'"
        raise SutureError("model.name", str(error), where=repo, hint=hint) from None


def checked_revision(revision: str | None) -> str | None:
    """Return a revision's id, whole or its first 7 digits or more; None for the newest, which `latest` is, too.

    Raises `SutureError` `revision.name`.
    """
    if revision is None or revision == "latest":
        return None
    if not isinstance(revision, str) or not _REVISION.fullmatch(revision.lower()):
        raise SutureError(
            "revision.name",
            f"{shown(revision)} is no revision",
            where="revision",
            hint="a revision is 40 hex digits, or at least the first 7 of them, as `suture models` shows them",
        )
    return revision.lower()


def checked_path(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the path of an exported model; raises `SutureError` `argument.type` for a module in memory."""
    if not isinstance(path, str | os.PathLike):
        raise SutureError(
            "argument.type",
            f"publish_file takes the path of an exported model, not a {type(path).__name__}",
            where="path",
            hint="a torch.nn.Module is published with hub.publish(model, example, 'party/name', …)",
        )
    return path


def check_network(model: object, example: object) -> None:
    """Raise `SutureError` `argument.type` unless these are a torch module and a batch of its inputs."""
    import torch

    if not isinstance(model, torch.nn.Module):
        raise SutureError(
            "argument.type",
            f"a torch.nn.Module is wanted, not {shown(model)}",
            where="model",
            hint="an exported file is published with hub.publish_file(path, 'party/name')",
        )
    if not isinstance(example, torch.Tensor):
        raise SutureError(
            "argument.type",
            f"a torch.Tensor with two inputs or more is wanted, not {shown(example)}",
            where="example",
            hint="such as torch.rand(2, 3, 224, 224), or a batch of your data",
        )


def check_description(description: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise `SutureError` for keywords that describe a model if one is unknown, of another kind, or is missing."""
    names = list(known)
    for name in description:
        if name not in names:
            raise SutureError(
                "metadata.invalid",
                f"there is no field '{name}'",
                where=name,
                hint=did_you_mean(name, names, page=PAGE),
            )
    if description.get("license") is None:
        raise SutureError(
            "metadata.invalid",
            "what others may do with the model is not said",
            where="license",
            hint=f"license='CC-BY-4.0', or another SPDX identifier; see {PAGE}",
        )
    lists = {name: in_order(value, name) for name in _LISTS if (value := description.get(name)) is not None}
    for name, words in _WORDS.items():
        if (value := description.get(name)) is not None:
            one_of(value, words, name, PAGE)
    check_labels([str(label) for label in lists.get("labels", ())])

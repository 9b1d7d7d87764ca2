"""The configuration of a MONAI bundle, without what it could run: references, plain values and simple sums alone.

MONAI's own parser evaluates every text that begins with `$` as Python, and makes whatever `_target_` names.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Mapping
from typing import Any

from monai.networks import nets
from torch import nn

from suture_contract.errors import SutureError

_REFERENCE = re.compile(r"@(\w+(?:(?:::|#)\w+)*)")
_SUMS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
}
#: Deeper nesting of references than any configuration has; what refers to itself ends here.
_DEEP = 32
#: Arguments that newer versions of MONAI have no more, of networks that compute the same without.
_GONE = {"SwinUNETR": ("img_size",), "ViT": ("pos_embed",), "UNETR": ("pos_embed",)}


class BundleConfig:
    """What `configs/inference.json` says, by name."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self._content, self._where = content, where

    def network(self) -> nn.Module:
        """Return the network that `network_def` describes, one of monai.networks.nets, with random weights.

        Raises `SutureError` `source.network` or `source.config`.
        """
        name = next((own for own in ("network_def", "network", "net", "model") if self._describes(own)), None)
        if name is None:
            raise self._refused("has no network_def with a _target_ of monai.networks.nets")
        described = self._content[name]
        make = self._target(described["_target_"])
        arguments = {key: self.value(value) for key, value in described.items() if not key.startswith("_")}
        if arguments.get("pretrained"):
            arguments["pretrained"] = False  # the weights are in the bundle
        for gone in _GONE.get(make.__name__, ()):
            arguments.pop(gone, None)
        try:
            network = make(**arguments)
        except Exception as error:  # whatever the library raises for arguments that it cannot use
            raise SutureError(
                "source.network",
                f"{make.__name__} cannot be made: {str(error).strip().partition(chr(10))[0][:300]}",
                where=self._where,
                hint="the bundle may be for another version of MONAI: change network_def, or export it from your code",
            ) from None
        if not isinstance(network, nn.Module):
            raise self._refused(f"{described['_target_']} makes no network")
        return network

    def value(self, value: Any, deep: int = 0) -> Any:
        """Return a value with its references followed; raises `SutureError` `source.config` for anything else."""
        if deep > _DEEP:
            raise self._refused("has references that lead back to themselves")
        if isinstance(value, Mapping):
            if "_target_" in value:
                raise self._refused(f"needs {value['_target_']} made")
            return {key: self.value(item, deep + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, deep + 1) for item in value]
        if not isinstance(value, str):
            return value
        if _REFERENCE.fullmatch(value):
            return self.value(self._at(value[1:]), deep + 1)
        if value.startswith("$"):
            return self._sum(value, deep)
        if value.startswith("%"):
            raise self._refused(f"takes {value[:80]} from another file")
        return value

    def transforms(self, *names: str) -> list[dict[str, Any]]:
        """Return the transforms of the first of these entries that is there, such as `preprocessing`, with names."""
        entry = next((self._content[name] for name in names if name in self._content), None)
        while isinstance(entry, str) and _REFERENCE.fullmatch(entry):
            entry = self._at(entry[1:])
        listed = entry.get("transforms", []) if isinstance(entry, Mapping) else entry
        while isinstance(listed, str) and _REFERENCE.fullmatch(listed):
            listed = self._at(listed[1:])
        if not isinstance(listed, list):
            return []
        return [item for item in listed if isinstance(item, dict) and "_target_" in item and not _off(item)]

    def _describes(self, name: str) -> bool:
        entry = self._content.get(name)
        return isinstance(entry, Mapping) and isinstance(entry.get("_target_"), str)

    def _target(self, target: str) -> Any:
        """Return a class or function of monai.networks.nets; no other name is looked up."""
        name = target.removeprefix("monai.networks.nets.").rpartition(".")[2]
        made = getattr(nets, name, None) if target.startswith("monai.networks.nets.") or name == target else None
        if not callable(made) or not getattr(made, "__module__", "").startswith("monai.networks."):
            raise self._refused(f"names {target[:120]}, which is no network of monai.networks.nets")
        return made

    def _at(self, path: str) -> Any:
        place: Any = self._content
        for part in re.split("::|#", path):
            try:
                place = place[int(part)] if isinstance(place, list) else place[part]
            except (KeyError, IndexError, ValueError, TypeError):
                raise self._refused(f"refers to @{path[:80]}, which is not there") from None
        return place

    def _sum(self, text: str, deep: int) -> Any:
        values: dict[str, Any] = {}

        def name(match: re.Match[str]) -> str:
            values[f"v{len(values)}"] = self.value(self._at(match[1]), deep + 1)
            return f"v{len(values) - 1}"

        expression = _REFERENCE.sub(name, text[1:])
        try:
            return _computed(ast.parse(expression.strip(), mode="eval").body, values)
        except (ValueError, SyntaxError, TypeError, ArithmeticError, RecursionError):
            raise self._refused(f"runs Python, {text[:120]!r}") from None

    def _refused(self, what: str) -> SutureError:
        return SutureError(
            "source.config",
            f"the configuration {what}",
            where=self._where,
            hint="write plain values there (JSON, @references, sums of numbers), or give it models/model.ts and its "
            "shape; a network that needs code is exported from your code: MODULE:NAME",
        )


def _off(item: Mapping[str, Any]) -> bool:
    return str(item.get("_disabled_", "")).lower() == "true"


def _computed(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """Return what an expression of numbers, lists and references gives; raises `ValueError` for any other."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() if node.id in values:
            return values[node.id]
        case ast.List() | ast.Tuple():
            return [_computed(item, values) for item in node.elts]
        case ast.UnaryOp(op=ast.USub()):
            return -_computed(node.operand, values)
        case ast.Subscript():
            return _computed(node.value, values)[_computed(node.slice, values)]
        case ast.Call(func=ast.Name(id="len" | "int"), args=[inner], keywords=[]):
            result = _computed(inner, values)
            return len(result) if node.func.id == "len" else int(result)  # type: ignore[attr-defined]
        case ast.BinOp() if type(node.op) in _SUMS:
            left, right = _computed(node.left, values), _computed(node.right, values)
            if isinstance(left, int | float) and isinstance(right, int | float):
                return _SUMS[type(node.op)](left, right)
    raise ValueError("no plain value")

"""TorchScript: a network that was recorded by torch.jit, recorded again as a graph of torch's operators."""

from __future__ import annotations

import io
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from suture_contract.errors import SutureError
from suture_stitching.portable.export import relative_difference
from suture_stitching.portable.outputs import named
from suture_stitching.sources.source import NetworkSource

#: Operators of torch that touch files or call into Python: no network needs them.
_REFUSED = ("aten::from_file", "aten::save", "prim::PythonOp")
#: Relative to the size of the outputs.
_SAME = 1e-5
_ORIGINAL = "export the network that it was made of from your code, before torch.jit: MODULE:NAME"


def open_script(content: bytes, where: str, shape: Sequence[int] | None) -> NetworkSource:
    """Return the network of a TorchScript file, for inputs of `shape`; raises `SutureError` (`source.*`)."""
    source = NetworkSource(nn.Identity(), None if shape is None else tuple(shape))
    example = source.example()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the files are there
        try:
            script: Any = torch.jit.load(  # type: ignore[no-untyped-call]
                io.BytesIO(content), map_location="cpu"
            ).eval()
        except (RuntimeError, ValueError) as error:
            raise _refused(where, f"cannot be read: {str(error).strip().partition(chr(10))[0][:200]}") from None
        _check_operators(script, where)
        network = _recorded(script, example, where)
        _check_same(script, network, example, where)
    return NetworkSource(network, source.shape)


def _check_operators(script: Any, where: str) -> None:
    """Raise `SutureError` `source.script` where the network does more than compute with tensors."""
    graph = script.forward.graph.copy()
    torch._C._jit_pass_inline(graph)
    for kind in _kinds(graph):
        if kind in _REFUSED or not kind.startswith(("aten::", "prim::")):
            raise _refused(where, f"runs {kind}, which is no computation with tensors")


def _kinds(block: Any) -> Iterator[str]:
    for node in block.nodes():
        yield node.kind()
        for inner in node.blocks():
            yield from _kinds(inner)


def _recorded(script: Any, example: Tensor, where: str) -> nn.Module:
    from torch._export.converter import TS2EPConverter

    log = logging.getLogger("torch._export.non_strict_utils")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it warns of sizes, which are found out again
    try:
        recorded = TS2EPConverter(script, (example,), {}).convert().module(check_guards=False)
    except Exception as error:  # the converter raises dozens of types; each of them means the same to the caller
        cause = str(error).strip().partition("\n")[0][:200]
        raise _refused(where, f"cannot be recorded for inputs of {tuple(example.shape[1:])}: {cause}") from None
    finally:
        log.setLevel(level)
    assert isinstance(recorded, torch.fx.GraphModule)
    # A plain graph, of which the mode can be set like that of any other module.
    return torch.fx.GraphModule(recorded, recorded.graph)


def _check_same(script: Any, network: nn.Module, example: Tensor, where: str) -> None:
    for batch in (example[:1], example, torch.cat([example, example.flip(0), example])):
        with torch.no_grad():
            want, have = script(batch), network(batch)
        pairs = itertools.zip_longest(named(want).values(), named(have).values(), fillvalue=torch.empty(0))
        if any(relative_difference(left, right) > _SAME for left, right in pairs):
            raise _refused(where, f"computes something else once it is recorded again, for {len(batch)} samples")


def _refused(where: str, what: str) -> SutureError:
    return SutureError("source.script", what, where=where, hint=_ORIGINAL)

"""Turn a trained module into a portable model, and prove that the file alone gives the same outputs.

    exported = export(module, example, "model.safetensors")

The module is recorded in evaluation mode, reduced to the operators a portable model may use, written, read back, and
compared with the live module at batch sizes it was not recorded with. Nothing is left behind when any of this fails.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suture_contract.errors import SutureError
from suture_contract.files import replacing
from suture_contract.model.format import PortableHeader
from suture_contract.model.graph import Graph
from suture_stitching.portable.convert import convert
from suture_stitching.portable.guards import Elsewhere, elsewhere
from suture_stitching.portable.outputs import chosen, giving, pick, plain_output
from suture_stitching.portable.runtime import load, write
from suture_stitching.portable.sanity import check_recordable, check_sane, check_weights
from suture_stitching.portable.tracing import evaluating, trace

#: How many samples the module is recorded with, and batches that it and the file are compared on: others than that.
_RECORDED, _SIZES = 2, (1, 3)


@dataclass(frozen=True)
class Exported:
    """A written portable model; `difference` is the worst one seen, relative to the size of the outputs."""

    graph: Graph
    path: Path
    header: PortableHeader
    difference: float


def export(
    module: torch.nn.Module,
    example: Tensor | Sequence[Tensor],
    path: str | os.PathLike[str],
    *,
    tolerance: float = 1e-5,
    dynamic_spatial: bool = False,
    output: str | None = None,
    single: bool = False,
) -> Exported:
    """Write `module` as a portable model to `path` and return what was written.

    `example` is an input batch `(N, C, *spatial)`, or several inputs; the batch size stays free, the other sizes only
    if `dynamic_spatial`. With `output` or `single` the file gives one tensor `(N, K, ...)` alone: the output of that
    name (`logits`, `0`, `heads.1`), or the one that is plainly meant. The module is left as it was. Raises
    `SutureError` (`export.*`) naming the module and operator that cannot be exported, or the difference when the file
    does not reproduce the module within `tolerance` (or four steps of the output's own precision, where that is
    coarser). Weights that are no numbers are refused, and so are an output that is the same for every input, and one
    that depends on the other samples of a batch.
    """
    path = Path(path)
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    _check_example(inputs)
    check_recordable(module)
    check_weights(module)
    # Recorded without gradients, a `with torch.no_grad()` inside the module leaves no trace. What torch.compile made of
    # it is for one machine, and needs a compiler.
    with evaluating(module), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        what = _what(module, _batch(inputs, _RECORDED), output, single=single)
        with giving(module, what):
            expected = {size: _outputs(module, _batch(inputs, size)) for size in _SIZES}
            program = trace(module, _batch(inputs, _RECORDED), dynamic_spatial=dynamic_spatial)
            places = elsewhere(program, _batch(inputs, _RECORDED))
            there = [_there(module, place, inputs) for place in places]
            graph, tensors = convert(program)
    with replacing(path) as temporary:
        header = write(graph, tensors, temporary)
        model = load(temporary, device=inputs[0].device)
        with torch.no_grad():
            actual = {size: model(*_batch(inputs, size)) for size in _SIZES}
        difference = _verify(expected, actual, tolerance)
        _verify_elsewhere(model, inputs, zip(places, there, strict=True), tolerance)
        check_sane(model, _batch(inputs, max(_SIZES)), actual, module)
    return Exported(header.graph, path, header, difference)


def _check_example(inputs: Sequence[Tensor]) -> None:
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise SutureError("export.example", "the example must be a tensor or a tuple of tensors", where="example")
    if any(x.layout is not torch.strided or x.is_quantized for x in inputs):
        raise SutureError(
            "export.example",
            "the example is sparse or quantised",
            where="example",
            hint="give it as example.to_dense()",
        )
    if any(x.dim() == 0 or x.shape[0] == 0 or x.shape[0] != inputs[0].shape[0] for x in inputs):
        raise SutureError(
            "export.example",
            f"the inputs have the shapes {[tuple(x.shape) for x in inputs]}",
            where="example",
            hint="the first dimension of every input is the batch, with at least one sample",
        )


def _batch(inputs: Sequence[Tensor], size: int) -> tuple[Tensor, ...]:
    """Return a batch of `size` samples; repeated ones are shifted, so that mixing up samples would be seen."""

    def sample(x: Tensor, index: int) -> Tensor:
        first = x[index % x.shape[0]]
        return first.roll(index // x.shape[0], dims=-1) if first.dim() else first

    return tuple(torch.stack([sample(x, index) for index in range(size)]) for x in inputs)


def _what(
    module: torch.nn.Module, inputs: Sequence[Tensor], output: str | None, *, single: bool
) -> Callable[[Any], Any]:
    """Return what to make of the module's outputs: the one that is wanted, or all of them in plain nesting."""
    if output is None and not single:
        return lambda outputs: plain_output(outputs, _is_tensor)
    name = chosen(_outputs(module, inputs), inputs[0], output)
    return lambda outputs: pick(outputs, name)


def _outputs(module: torch.nn.Module, inputs: Sequence[Tensor]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return module(*inputs)
    except SutureError:
        raise
    except Exception as error:
        if inputs[0].shape[0] == 1:
            return None  # some modules need two samples; then one sample proves nothing
        raise SutureError(
            "export.example",
            f"the module fails on a batch of {inputs[0].shape[0]} samples: {str(error)[:400] or type(error).__name__}",
            where="example",
            hint=_what_fits(module, inputs),
        ) from error


def _what_fits(module: torch.nn.Module, inputs: Sequence[Tensor]) -> str:
    """Return what is probably wrong with the example: how many inputs, of which type, or else its shape."""
    try:
        inspect.signature(module.forward).bind(*inputs)
    except TypeError:
        return (
            f"forward() takes other arguments than {len(inputs)} tensor(s); a model has one input: wrap the module in "
            "one whose forward(x) takes them from the channels of x, such as self.net(x[:, :1], x[:, 1:])"
        )
    except ValueError:  # no signature is known
        pass
    own = next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)
    name = str(own).removeprefix("torch.")
    if inputs[0].is_floating_point() and own != inputs[0].dtype:
        return (
            f"the module's weights are {name}, the example is {str(inputs[0].dtype).removeprefix('torch.')}: export "
            f"module.float(), or say --dtype {name}; in Python example.to(torch.{name})"
        )
    return (
        "give an example of the shape (N, C, *spatial) that the module reads; of whole numbers, such as tokens, with "
        "--dtype int64"
        if inputs[0].is_floating_point()
        else "give an example of the shape (N, C, *spatial) that the module reads, with values that it knows"
    )


def _is_tensor(leaf: object) -> Tensor:
    if not isinstance(leaf, Tensor):
        raise SutureError(
            "export.output", f"the module returns a {type(leaf).__name__} among its outputs", hint="return tensors only"
        )
    return leaf


def _verify(expected: Mapping[int, Any], actual: Mapping[int, Any], tolerance: float) -> float:
    """Return the worst relative difference between the file and the live module; refuse one over `tolerance`."""
    worst = 0.0
    for size, output in expected.items():
        if output is None:
            continue
        for name, want, have in _paired(output, actual[size], "output"):
            if size == 1 and want.squeeze().shape == have.squeeze().shape:
                want = want.reshape(have.shape)  # x.squeeze() takes a batch of one for an axis of one
            difference = relative_difference(want, have)
            allowed = max(tolerance, 4 * torch.finfo(want.dtype).eps) if want.is_floating_point() else tolerance
            if not difference <= allowed:
                raise SutureError(
                    "export.differs",
                    f"the portable model differs from the module by {difference:.2g} (relative) for {size} sample(s); "
                    f"at most {allowed:.2g} is allowed",
                    where=name,
                    hint="the module may be random or depend on the batch size or on hidden state in evaluation mode",
                )
            worst = max(worst, difference)
    return worst


def _there(module: torch.nn.Module, place: Elsewhere, inputs: Sequence[Tensor]) -> Any:
    """Return what the module gives for inputs of other sizes; None where it gives nothing, or is not tried."""
    try:
        return module(*place.resized(inputs)) if place.is_tried else None
    except Exception:  # modules raise all kinds for sizes that they do not take
        return None


def _verify_elsewhere(
    model: Callable[..., Any], inputs: Sequence[Tensor], outputs: Iterable[tuple[Elsewhere, Any]], tolerance: float
) -> None:
    """Refuse a file that gives other `outputs` than the module at sizes by which the module decides.

    What is decided for batches too large to be tried counts as other. Of other sizes than the batch's, the file may
    take fewer than the module: it says so when it is run.
    """
    for place, want in outputs:
        if (want is None and place.is_tried) or (
            want is not None and _same_there(model, place, inputs, want, tolerance)
        ):
            continue
        if place.is_batch:
            raise SutureError(
                "export.fixed_batch",
                f"the module does otherwise with {place.size} samples than with fewer: {place.decided} decides by it",
                hint="compute alike for every batch size: with the whole batch at once, not part by part",
            )
        if want is not None:
            raise SutureError(
                "export.free_size",
                f"the module does otherwise at the sizes {place.shapes[0][2:]}: {place.decided} decides by them",
                hint="compute alike at every size, as F.pad by (-size) % 16 does; or record it for one size "
                "(dynamic_spatial=False)",
            )


def _same_there(
    model: Callable[..., Any], place: Elsewhere, inputs: Sequence[Tensor], want: Any, tolerance: float
) -> bool:
    try:
        with torch.no_grad():
            have = model(*place.resized(inputs))
    except SutureError:
        return not place.is_batch
    return all(relative_difference(left, right) <= tolerance for _, left, right in _paired(want, have, "output"))


def _paired(want: Any, have: Any, name: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    if isinstance(want, Tensor):
        yield name, want, have
        return
    keys = want.keys() if isinstance(want, dict) else range(len(want))
    for key in keys:
        yield from _paired(want[key], have[key], f"{name}[{key!r}]")


def relative_difference(want: Tensor, have: Tensor) -> float:
    """Return the worst difference, relative to the largest number in `want` or 1; infinite for other shapes or types.

    Equal infinities and two NaN do not differ.
    """
    if want.shape != have.shape or want.dtype != have.dtype:
        return float("inf")
    if want.numel() == 0 or torch.equal(want, have):
        return 0.0
    want, have = want.double(), have.double()
    same = (want == have) | (want.isnan() & have.isnan())
    scale = want[want.isfinite()].abs().max().clamp(min=1.0) if want.isfinite().any() else 1.0
    return float(((want - have).abs() / scale)[~same].nan_to_num(nan=float("inf")).max()) if not same.all() else 0.0

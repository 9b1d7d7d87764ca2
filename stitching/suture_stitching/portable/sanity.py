"""What a sane network does on an example: each sample by itself, and not the same for all; and what it gives."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from suture_contract.errors import SutureError
from suture_contract.model.graph import Graph
from suture_contract.model.metadata import Task
from suture_contract.model.output import ends_in_logarithm, ends_in_scores, squashed_by
from suture_stitching.portable.outputs import named, tensors_of

OutputFormat = Literal["logits", "probabilities", "values"]
#: Of the size of the outputs: far above what another order of summation changes, far below what another sample does.
_SAME = 1e-3
#: Fewer samples need not show every label.
_MANY = 32
#: How far probabilities may be from their sum of one.
_SUM = 1e-3
_OUTPUT = "say which: --output probabilities or --output logits; in Python output='probabilities' or output='logits'"


def check_recordable(module: torch.nn.Module) -> None:
    """Raise `SutureError` for what is no network of plain tensors: a recording, or one without its weights."""
    recorder = None
    if isinstance(module, torch.jit.ScriptModule):
        recorder = "torch.jit"
        hint = "save it, module.save('net.pt'), and export the file: suture export net.pt out --shape …; in Python "
        hint += "open_source('net.pt', shape).module of suture_stitching.sources; or export the network it was made of"
    elif isinstance(module, torch.fx.GraphModule) and "_guards_fn" in dict(module.named_children()):
        recorder, hint = "torch.export", "export the network that it was made of"
    if recorder is not None:
        raise SutureError("export.recorded", f"the module is a recording by {recorder}", where="model", hint=hint)
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(tensor):
            raise SutureError(
                "export.no_weights",
                f"the weights {name} have no size yet: the module has never run",
                where=name,
                hint="run module(example) once, then load its trained weights",
            )
        if tensor.is_meta:
            raise SutureError(
                "export.no_weights",
                f"the weights {name} are on the device 'meta', where no number is kept",
                where=name,
                hint="make the module with weights: module.to_empty(device='cpu'), then load_state_dict",
            )
        if tensor.is_inference():
            raise SutureError(
                "export.inference_mode",
                f"the weights {name} were made under torch.inference_mode(), where nothing can be recorded of them",
                where=name,
                hint="make the network outside of it, and load_state_dict",
            )


@torch.no_grad()
def check_weights(module: torch.nn.Module) -> None:
    """Raise `SutureError` `model.not_finite` naming a parameter or buffer with NaN, or infinity where it is no mask."""
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if not tensor.is_floating_point() or bool(tensor.isfinite().all()):
            continue
        nan, mask = bool(tensor.isnan().any()), bool((tensor.isinf() | (tensor == 0) | (tensor == 1)).all())
        if nan or not mask:
            raise SutureError(
                "model.not_finite",
                f"the weights {name} hold {'NaN' if nan else 'infinite values'}",
                where=name,
                hint="training went wrong: take an earlier checkpoint, where all weights are numbers",
            )


def check_sane(
    model: Callable[..., Any], inputs: Sequence[Tensor], outputs: Mapping[int, Any], live: torch.nn.Module
) -> None:
    """Raise `SutureError` where a model's outputs say nothing about its inputs (`export.*`).

    `outputs` are those for the first samples of `inputs`, by their number: of all, and of fewer. `live` is the module
    that `model` was exported from.
    """
    leaves = {size: tensors_of(output) for size, output in outputs.items()}
    if not _same_alone(leaves):
        raise _batch_dependent(live, inputs, outputs)
    _check_numbers(leaves)
    _check_varies(model, inputs, leaves[max(leaves)])


def _same_alone(outputs: Mapping[int, Sequence[Tensor]]) -> bool:
    """Say whether each sample's output is the same whoever else is in its batch."""
    for small, large in itertools.pairwise(sorted(outputs)):
        for alone, among in zip(outputs[small], outputs[large], strict=True):
            by_sample = alone.dim() > 0 and alone.shape[0] == small and among.shape[0] == large
            if not by_sample or alone.shape[1:] != among.shape[1:]:
                continue
            single, other = alone.double(), among[:small].double()
            scale = other[other.isfinite()].abs().max().clamp(min=1e-6) if bool(other.isfinite().any()) else 1.0
            same = (single == other) | (single.isnan() & other.isnan()) | ((single - other).abs() <= _SAME * scale)
            if not bool(same.all()):
                return False
    return True


def _batch_dependent(live: torch.nn.Module, inputs: Sequence[Tensor], sizes: Iterable[int]) -> SutureError:
    """Return why a sample's output depends on its batch: by what the network does, or by rounding alone."""
    try:
        precise = copy.deepcopy(live).double().eval()
        doubled = [x.double() if x.is_floating_point() else x for x in inputs]
        with torch.no_grad():
            exact = {size: list(named(precise(*(x[:size] for x in doubled))).values()) for size in sizes}
        rounded = _same_alone(exact)
    except Exception:  # modules raise all kinds in another precision than their own
        rounded = False
    if rounded:
        return SutureError(
            "export.rounding",
            "a sample's output differs with its batch, but not in double precision: rounding decides what the network "
            "gives",
            hint="it is most likely untrained, and its values grow from layer to layer: export it with its trained "
            "weights",
        )
    return SutureError(
        "export.batch_dependent",
        "a sample's output depends on which other samples are in its batch",
        hint="normalise by running statistics (BatchNorm with track_running_stats=True, in evaluation "
        "mode) or within a sample, never over the batch",
    )


def _check_numbers(outputs: Mapping[int, Sequence[Tensor]]) -> None:
    """Raise `SutureError` `export.not_finite` where an output is no number; infinity may be a class that is masked."""
    for size, leaves in outputs.items():
        if any(bool(leaf.isnan().any()) for leaf in leaves):
            raise SutureError(
                "export.not_finite",
                f"the output is NaN for {size} sample(s) of the example",
                hint="look for a division by zero, a logarithm or root of what may be negative, or a deviation over "
                "one sample; if the example's values are none that the model reads, say theirs: --value-range, or in "
                "Python another example",
            )


def _check_varies(model: Callable[..., Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Raise `SutureError` `export.constant` where the output is the same whatever the input is.

    The example is tried first, then other values of the same shapes, for a network may only be sure of this one.
    """
    first: list[Tensor] | None = None
    for leaves in itertools.chain([outputs], _tries(model, inputs)):
        exact = [leaf.double() for leaf in leaves if leaf.dim() and leaf.shape[0] == len(inputs[0])]
        if not exact:
            return
        first = first or [leaf[:1] for leaf in exact]
        if any(not torch.equal(leaf, earlier.expand_as(leaf)) for leaf, earlier in zip(exact, first, strict=True)):
            return
    raise SutureError(
        "export.constant",
        "the output is the same for every input",
        hint="look for layers whose weights are zero, a ReLU that no input passes, or an output that is never used; a "
        "model that reads whole numbers, such as tokens, is exported with --dtype int64 and --value-range",
    )


def _tries(model: Callable[..., Any], inputs: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield what a model gives for other values than `inputs`."""
    drawn = torch.Generator().manual_seed(0)
    for scale in (1.0, 10.0, 100.0, 0.01):
        other = [
            (x + scale * torch.randn(x.shape, generator=drawn).to(x)) if x.is_floating_point() else x.flip(-1)
            for x in inputs
        ]
        try:
            with torch.no_grad():
                leaves = tensors_of(model(*other))
        except SutureError:  # values that it does not know, as a table of tokens knows some alone
            continue
        yield leaves


def check_axes(inputs: Tensor, outputs: Tensor, task: Task) -> None:
    """Raise `SutureError` `export.output_axes` where outputs `(N, K, ...)` have other axes than the task has.

    A segmentation has its input's, other tasks none beside labels or values.
    """
    wanted = inputs.dim() if task == "segmentation" else 2
    if outputs.dim() == wanted:
        return
    shape = tuple(outputs.shape)
    if task == "segmentation":
        problem = f"a segmentation gives (N, labels, *spatial) with {wanted - 2} spatial axes, the network {shape}"
        lacks = outputs.dim() == wanted - 1 and outputs.shape[1:] == inputs.shape[2:]
        hint = "return x.unsqueeze(1): the axis of channels is lacking" if lacks else "say which --task it is"
    else:
        problem = f"a {task} gives (N, labels or values), the network {shape}"
        hint = "say --task segmentation, or task='segmentation' in Python, where each position has a label; else "
        hint += "average over the positions, or flatten them, in forward()"
    raise SutureError("export.output_axes", problem, where="output", hint=hint)


def mask_size(inputs: Tensor, outputs: Tensor) -> str | None:
    """Return in words how a segmenter's masks `(N, K, *spatial)` lie on its inputs, None where sizes are the same.

    A whole part of the input's size is a coarser grid over all of it, and a multiple a finer one. Raises `SutureError`
    `export.mask_size` for any other: it would be stretched over the input, and most likely is the middle of it.
    """
    mask, image = tuple(outputs.shape[2:]), tuple(inputs.shape[2:])
    if mask == image:
        return None
    sizes = f"its masks are {' x '.join(map(str, mask))} of inputs of {' x '.join(map(str, image))}"
    if not all(_is_whole_part(have, of) or have % of == 0 for have, of in zip(mask, image, strict=True)):
        raise SutureError(
            "export.mask_size",
            f"{sizes}: where they lie on the input is open",
            where="output",
            hint="give masks of the input's size in forward(): of convolutions without padding, whose masks are its "
            "middle, torch.nn.functional.pad(x, ...); of a coarser grid over all of it, interpolate(x, size=...)",
        )
    return (
        f"{sizes}: they are stretched over all of it, and scored at its size. If they are its middle, as of "
        "convolutions without padding, pad them in forward()"
    )


def _is_whole_part(size: int, of: int) -> bool:
    """Whether a size is another one divided by a whole number, rounded up or down."""
    step = round(of / size)
    return size in (of // step, -(-of // step)) if step else False


def output_format(
    graph: Graph, outputs: Tensor, task: Task, labels: int, stated: OutputFormat | None = None
) -> tuple[OutputFormat, str]:
    """Return what the network gives, and how that was found, in words.

    `outputs` `(N, K, *spatial)` are those of an example. Raises `SutureError` `export.output_format` where the end of
    the graph and these numbers leave it open or disagree, or contradict what is `stated`.
    """
    if task == "regression":
        return stated or "values", "a regression"
    squashed, exclusive = squashed_by(graph), task != "multilabel" and outputs.shape[1] > 1
    within = bool(((outputs >= 0) & (outputs <= 1)).all())
    sums = bool(((outputs.double().sum(1) - 1).abs() <= _SUM).all())
    end = f"the network ends in a {squashed}" if squashed else "the network ends in neither softmax nor sigmoid"
    if stated == "logits" and squashed:
        raise _unclear(f"{end}, which gives probabilities, not logits", "say --output probabilities, or leave it out")
    if not exclusive and stated != "probabilities" and ends_in_logarithm(graph):
        raise _unclear(
            "the network ends in a logarithm, most likely of probabilities: a sigmoid of that is none",
            "leave the logarithm out: return the scores before it, or the probabilities",
        )
    if stated == "logits":
        return stated, "as said"
    if stated == "probabilities" or squashed:
        if not within:
            raise _unclear("outputs on the example are not all from 0 to 1: these are no probabilities", _OUTPUT)
        if exclusive and not sums:
            raise _unclear(
                f"{end}; of {labels} labels that exclude each other the probabilities on the example do not sum to 1",
                "leave the sigmoid out and train with cross-entropy, or say --task multilabel if a sample may have "
                "several labels",
            )
        if task == "multilabel" and squashed == "softmax" and outputs.shape[1] > 1 and stated is None:
            raise _unclear(f"{end}, but the task is multilabel, where labels do not exclude each other", _OUTPUT)
        return "probabilities", end if squashed else "as said"
    if ends_in_scores(graph) or not within:
        return "logits", end
    if exclusive and sums:
        return "probabilities", f"{end}, but its outputs on the example are from 0 to 1 and sum to 1"
    raise _unclear(f"{end}, but all its outputs on the example are from 0 to 1", _OUTPUT)


def unseen(outputs: Tensor, labels: Sequence[str], format: OutputFormat, task: Task) -> list[str]:
    """Return the labels that no sample of a larger example was given; nothing where an example is small."""
    if len(outputs) < _MANY or task != "classification":
        return []
    if outputs.shape[1] == 1:
        predicted = set((outputs[:, 0] > (0.5 if format == "probabilities" else 0)).long().flatten().tolist())
    else:
        predicted = set(outputs.argmax(1).flatten().tolist())
    return [str(label) for index, label in enumerate(labels) if index not in predicted]


def _unclear(problem: str, hint: str) -> SutureError:
    return SutureError("export.output_format", problem, where="output", hint=hint)


__all__ = ["OutputFormat", "check_axes", "check_sane", "check_weights", "mask_size", "output_format", "unseen"]

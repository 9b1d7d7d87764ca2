"""Why a module cannot be recorded: the line of its author's that is the cause, and what to write instead."""

from __future__ import annotations

import builtins
import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from suture_contract.errors import SutureError

_HERE, _TORCH = str(Path(__file__).parent), str(Path(torch.__file__).parent)
_len = len
_SPECTRUM = (
    "complex numbers cannot be in it: give the model the spectrum or spectrogram as its input, or use nn.Conv1d with "
    "fixed cosines and sines as its weights"
)
#: What to do about random numbers.
RANDOM = (
    "a shared model gives the same output each time: draw `if self.training:` alone, give F.dropout "
    "training=self.training, and return the mean of a distribution instead of a sample"
)
#: How to compute with sizes.
WHOLE_SIZES = "keep to + - * // % on sizes: a // b instead of int(a / b), -(-a // b) instead of math.ceil(a / b)"
_NUMBERS = "leave .item(), float() and int() out: tensors of one number compute like numbers"
#: By the beginning of an operator's name, what to write instead of it.
_INSTEAD = {
    "item": _NUMBERS,
    "_local_scalar_dense": _NUMBERS,
    "nonzero": "multiply by the mask instead of picking what it marks: (x * mask).sum() / mask.sum()",
    "masked_select": "multiply by the mask instead of picking what it marks: (x * mask).sum() / mask.sum()",
    "_unique": "compare with all values there can be instead: x[..., None] == torch.arange(k)",
    "unique": "compare with all values there can be instead: x[..., None] == torch.arange(k)",
    "histc": "count by comparisons instead: (x[..., None] >= edges).float().mean(1)",
    "bincount": "count by comparisons instead: (x[..., None] == torch.arange(k)).sum(1)",
    "bucketize": "count by comparisons instead: (x[..., None] > edges).sum(-1)",
    "searchsorted": "count by comparisons instead: (x[..., None] > edges).sum(-1)",
    "one_hot": "say how many classes there are: F.one_hot(x, num_classes)",
    "index_put": "write by a mask or a slice instead: torch.where(mask, value, x), x[:, 1:3] = y",
    "index_copy": "write by a mask or a slice instead: torch.where(mask, value, x), x[:, 1:3] = y",
    "index_add": "use scatter, or a product with a matrix of zeros and ones, instead",
    "scatter_": "compare with all places there can be instead: (y[..., None] * (index[..., None] == "
    "torch.arange(k))).sum(-2), or .amax(-2)",
    "embedding_bag": "use nn.Embedding and the mean or sum over its tokens instead",
    "_embedding_bag": "use nn.Embedding and the mean or sum over its tokens instead",
    "mode": "count by comparisons instead: (x[..., None] == torch.arange(k)).sum(1).argmax(-1)",
    "nan": "put a number for what is missing instead: torch.where(x.isnan(), value, x)",
    "cummax": "use F.max_pool1d over steps that are padded on one side instead",
    "cummin": "use -F.max_pool1d(-x, ...) over steps that are padded on one side instead",
    "logcumsumexp": "use x.exp().cumsum(dim).log() instead, where x is not large",
    "_add_batch_dim": "leave torch.vmap out: compute with the whole batch, as in x.mean(1)",
    "_nested": "give padded tensors and a mask instead of nested ones",
    "deform_conv2d": "use nn.Conv2d, or sample by the offsets with F.grid_sample and convolve what comes of it",
    "fake_quantize": "export the network before it is prepared for quantisation",
    "as_strided": "use slices, x.unfold or reshape instead",
    "_fft": _SPECTRUM,
    "fft_": _SPECTRUM,
    "stft": _SPECTRUM,
    "view_as_complex": "keep real and imaginary parts as two real tensors instead",
    "_linalg": "decompositions of matrices cannot be in it: do them before the model, or train without them",
    "linalg_": "decompositions of matrices cannot be in it: do them before the model, or train without them",
    "quantize": "export the network before it is quantised",
    "quantized": "export the network before it is quantised",
    "_pack_padded_sequence": "give the recurrent layer padded sequences as they are, without pack_padded_sequence, and "
    "read its output where each sample ends: output.gather(1, last)",
    "_ctc_loss": "compute losses outside of the model",
}


def instead_of(operator: str) -> str:
    """Return what to write instead of an operator that cannot be in a portable model, such as `aten.histc.default`."""
    library, _, name = operator.partition(".") if "." in operator else ("aten", "", operator)
    for beginning, advice in _INSTEAD.items():
        if name.startswith(beginning):
            return advice
    if library not in ("aten", "prims", "suture"):
        return f"operators of other libraries cannot be in a portable model; write what {library} does by torch's own"
    return "that operator cannot be in a portable model; express it by others"


def packed() -> SutureError:
    """Return why sequences of different lengths cannot be recorded, for where they are being packed."""
    return SutureError(
        "export.operator",
        f"the module packs sequences by their lengths in `{_line_of_stack()[:120]}`",
        hint=instead_of("_pack_padded_sequence"),
    )


def is_fixed_batch(error: Exception) -> bool:
    """Say whether torch found that the size of a batch is not free."""
    text = str(error)
    return ("specialized" in text and "specialized integer" not in text) or "ConstraintViolation" in type(
        error
    ).__name__


def explained(error: Exception, specialised: str = "", scripted: str = "") -> SutureError:
    """Return why recording a module failed.

    `specialised` is the line that fixed the batch size, `scripted` a part that is TorchScript, where there is one.
    """
    text = str(error)
    first_line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    line = _line_of(error.__traceback__)
    place = f" in `{line[:120]}`" if line else ""
    if is_fixed_batch(error):
        return _fixed_batch(specialised)
    if isinstance(error, NotImplementedError) and "inequality" in text:
        return SutureError(
            "export.free_size",
            f"torch cannot tell which sizes the module allows: {first_line[:400]}",
            hint="record it for one size (dynamic_spatial=False), or round down in its pooling (ceil_mode=False)",
        )
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        return _from_values(line, place or f": {first_line[:400]}")
    operator = getattr(error, "func", None)
    if isinstance(operator, torch._ops.OpOverload):
        return SutureError(
            "export.operator", f"the module uses {operator}{place}", hint=instead_of(str(operator).replace("::", "."))
        )
    if ".numpy()" in text or "numpy" in line:
        return SutureError(
            "export.failed",
            f"the module leaves torch for numpy{place}",
            hint="write that line with torch's own functions, or do it before the model",
        )
    if scripted or "ScriptModule" in text or "ScriptMethod" in text:
        return SutureError(
            "export.failed",
            f"TorchScript cannot be recorded{f': the part {scripted}' if scripted else place}",
            where=scripted or None,
            hint="export the network itself, or the loaded torch.jit file alone, not as a part of another module",
        )
    if "quantized" in text or "PackedParams" in text:
        return SutureError(
            "export.failed",
            "the module's weights are quantised",
            hint="export the network before it is quantised, from its floating-point weights",
        )
    return SutureError(
        "export.failed",
        f"the module cannot be recorded ({type(error).__name__}){place}: {first_line[:400]}",
        hint="run module(example) once to see that it works, and keep forward() free of anything but tensors",
    )


def _fixed_batch(line: str) -> SutureError:
    loop = line.startswith(("for ", "return [", "return torch.stack(")) or " for " in line
    return SutureError(
        "export.fixed_batch",
        "the module only works for one batch size" + (f": `{line[:120]}` needs it as a number" if line else ""),
        hint="compute with the whole batch at once instead of sample by sample"
        if loop
        else WHOLE_SIZES
        if "int(" in line and "/" in line
        else "take the batch size from the input, as in x.flatten(1) or x.reshape(x.shape[0], -1)",
    )


def _from_values(line: str, place: str) -> SutureError:
    """Return the error about a decision, a number or a size that is taken from computed values."""
    if "one_hot(" in line:
        problem, hint = f"takes a size from the values it computes{place}", instead_of("one_hot")
    elif _decides(line) or not any(call in line for call in (".item()", "float(", "int(", "range(")):
        problem, hint = f"takes a decision from the values it computes{place}", _decision(line)
    else:
        problem, hint = f"makes a number of Python of a value it computes{place}", _NUMBERS
    return SutureError("export.data_dependent", f"the module {problem}", hint=hint)


def _decides(line: str) -> bool:
    return line.startswith(("assert", "raise", "if ", "elif ", "while ")) or " if " in line


def _decision(line: str) -> str:
    if "distributions." in line or "validate_args" in line:
        return "let the distribution leave its checks of values out: validate_args=False"
    if line.startswith(("assert", "raise")):
        return "leave checks of values out of forward(), or put `if not torch.compiler.is_exporting():` before them"
    if line.startswith(("if ", "elif ", "while ")) or " if " in line:
        return (
            "replace it by torch.where(condition, a, b); a mere check of values goes behind "
            "`if not torch.compiler.is_exporting():`"
        )
    return "replace `if tensor...:` and sizes taken from values by torch.where or fixed sizes"


@contextlib.contextmanager
def sizes_of_batches() -> Iterator[list[str]]:
    """Let `len(x)` be the size of a batch that is free, and note the lines that make a number of it.

    Python's own `len` gives a number in any case. Only while a module is recorded for a second time.
    """
    lines: list[str] = []
    replace = ShapeEnv._set_replacement

    def noted(self: ShapeEnv, a: Any, value: Any, message: str) -> Any:
        lines.append(_line_of_stack())
        return replace(self, a, value, message)

    def length(value: Any) -> Any:
        return value.shape[0] if isinstance(value, Tensor) and value.dim() else _len(value)

    ShapeEnv._set_replacement = noted  # type: ignore[method-assign, assignment]
    builtins.len = length
    try:
        yield lines
    finally:
        builtins.len = _len
        ShapeEnv._set_replacement = replace  # type: ignore[method-assign]


def _line_of(trace: TracebackType | None) -> str:
    """Return the innermost line of code that is neither torch's nor ours; empty where there is none."""
    return _innermost(traceback.extract_tb(trace))


def _line_of_stack() -> str:
    return _innermost(traceback.extract_stack())


def _innermost(frames: traceback.StackSummary) -> str:
    inside = False
    line = ""
    for frame in frames:
        inside = inside or frame.filename.startswith(_HERE)
        if inside and not frame.filename.startswith((_HERE, _TORCH, "<")) and "contextlib" not in frame.filename:
            line = frame.line or ""
    return line

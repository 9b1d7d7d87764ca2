"""Inputs on which a model is compared with its form for another tool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from suture_contract.errors import SutureError
from suture_contract.model.graph import Input
from suture_stitching.portable.runtime import PortableModel, check_inputs
from suture_stitching.portable.schemas import TORCH_DTYPES

#: For free sizes: one to record with and another to check with, the first pair that the model reads.
_SIZES = ((16, 24), (32, 48), (64, 96), (128, 160), (224, 256), (8, 12))


def trial_batches(model: PortableModel, example: Tensor | Sequence[Tensor] | None) -> Iterator[tuple[Tensor, ...]]:
    """Yield inputs: those to record with (two samples, sizes that stay free), then those to compare on."""
    specs = model.graph.inputs
    if example is not None:
        examples = (example,) if isinstance(example, Tensor) else tuple(example)
        examples = tuple(x.detach().cpu() for x in examples)
        check_inputs(specs, examples)
        yield tuple(torch.cat([x, x])[:2] for x in examples)
        yield from (tuple(x[:1] for x in examples), tuple(torch.cat([x, x])[:3] for x in examples), examples)
        return
    size, other = _free_sizes(model)
    for batch, spatial in ((2, size), (1, size), (3, other)):
        yield _random(specs, batch, spatial)


def _free_sizes(model: PortableModel) -> tuple[int, int]:
    failure: SutureError | None = None
    for sizes in _SIZES:
        try:
            with torch.no_grad():
                for size in sizes:
                    model(*_random(model.graph.inputs, 2, size))
        except SutureError as error:
            failure = error
            continue
        return sizes
    assert failure is not None
    raise failure


def _random(specs: Sequence[Input], batch: int, size: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for spec in specs:
        shape = [known if known is not None else batch if axis == 0 else size for axis, known in enumerate(spec.shape)]
        dtype = TORCH_DTYPES[spec.dtype]
        if dtype.is_floating_point:
            inputs.append(torch.randn(shape, generator=generator).to(dtype))
        else:  # codes that any table of embeddings has
            inputs.append(torch.randint(0, 2, shape, generator=generator).to(dtype))
    return tuple(inputs)

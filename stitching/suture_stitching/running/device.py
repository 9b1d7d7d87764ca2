"""Where members run, how precisely, and how many samples at once: as many as memory allows, fewer after it ran out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from suture_contract.errors import SutureError
from suture_contract.model.graph import Graph
from suture_contract.privacy import Privacy
from suture_stitching.ensemble.members import Member
from suture_stitching.portable.dry_run import UNLIMITED, measure
from suture_stitching.portable.program import is_out_of_memory
from suture_stitching.portable.runtime import PortableModel

#: "auto" is bfloat16 on a CUDA device that supports it, float32 elsewhere.
Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
#: The part of a CUDA device's free memory that one pass may take; operators need room of their own.
_SHARE = 0.5
#: So many samples are counted to know what one of them needs; only shapes are worked with.
_SAMPLES = 1024

#: Operators that look up entries at indices which may be computed.
_LOOK_UPS = frozenset(
    f"aten.{name}"
    for name in (
        "embedding.default",
        "index.Tensor",
        "index_select.default",
        "gather.default",
        "scatter.src",
        "scatter.value",
    )
)

_T = TypeVar("_T")
log = logging.getLogger(__name__)


def usable(device: str | torch.device) -> torch.device:
    """Return the device, after one number was put there; raises `SutureError` `device.unusable`."""
    try:
        chosen = torch.device(device)
        torch.zeros((), device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SutureError(
            "device.unusable",
            f"{device} cannot be used: {str(error).strip().partition(chr(10))[0]}",
            where="device",
            hint="cpu works everywhere; cuda needs an NVIDIA GPU and a CUDA build of torch",
        ) from None
    return chosen


class Runner:
    """Runs frozen models on one device; in bfloat16 under autocast, which leaves to float32 what needs it.

    Where one is `silent`, what an operator refuses to compute, such as the entry at an index that there is not, is NaN.
    """

    def __init__(
        self, device: str | torch.device = "cpu", precision: Precision = "auto", *, silent: bool = False
    ) -> None:
        self.device, self._silent = torch.device(device), silent
        supported = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.precision: Precision = "bfloat16" if precision == "auto" and supported else precision
        if self.precision == "auto":
            self.precision = "float32"
        self._most: int | None = None

    def model(self, graph: Graph, tensors: Mapping[str, Tensor], shape: Sequence[int]) -> PortableModel:
        """Return the model on the device, after finding how many inputs `(C, *spatial)` fit in its memory at once."""
        model = PortableModel(graph, tensors).to(self.device)
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            fitting = max(1, int(free * _SHARE) // max(1, bytes_per_sample(model, shape)))
            self._most = fitting if self._most is None else min(self._most, fitting)
        return model

    def autocast(self) -> torch.autocast:
        """Return the context in which models run in the wanted precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def stream(self, model: PortableModel, nodes: Collection[int], x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the values of `nodes` as they are computed, in the wanted precision, which ends where they are read."""
        values, left = model.stream(nodes, x), dict.fromkeys(nodes)
        while True:
            try:
                with self.autocast():
                    computed = next(values, None)
            except SutureError as error:
                if not self._silent or error.code != "model.run_failed":
                    raise
                yield from _not_a_number(model, left, x)
                return
            if computed is None:
                return
            left.pop(computed[0])
            yield computed

    def parts(self, work: Callable[..., _T], *batch: Tensor) -> list[_T]:
        """Return what `work` gives for the parts of a batch, in order; a part is the whole batch where memory allows.

        When memory runs out, parts become half as large and the work goes on; `work` must not change anything before
        it returns. Raises `SutureError` `work.out_of_memory` when a single sample is too much.
        """
        n = len(batch[0])
        results: list[_T] = []
        start = 0
        while start < n:
            size = n - start if self._most is None else min(self._most, n - start)
            done = self._tried(work, [tensor[start : start + size] for tensor in batch])
            if done is None:
                self._make_smaller(size)
                continue
            results += done
            start += size
        return results

    def _tried(self, work: Callable[..., _T], part: Sequence[Tensor]) -> list[_T] | None:
        try:
            with torch.no_grad():
                return [work(*part)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _make_smaller(self, size: int) -> None:
        # Only here, when the error and the values that its traceback holds are gone, can memory be given back.
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if size == 1:
            raise SutureError(
                "work.out_of_memory",
                f"the models need more memory for a single sample than there is on {self.device}",
                hint="use a device with more memory, smaller inputs or smaller models",
            )
        self._most = size // 2
        log.warning("out of memory with %d samples at once; going on with %d", size, self._most)


def runner_for(
    members: Sequence[Member], device: str | torch.device, precision: Precision, privacy: Privacy | None
) -> Runner:
    """Return what runs `members`; with `privacy` no error tells that there is a sample that a model refuses.

    A CUDA device ends the process for an index that there is not. So models that look up what values say run on the
    processor then.
    """
    if privacy is None:
        return Runner(device, precision)
    looks_up = any(node.op in _LOOK_UPS for member in members for node in member.model.graph.nodes)
    return Runner("cpu" if looks_up else device, precision, silent=True)


def _not_a_number(model: PortableModel, nodes: Collection[int], x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield NaN for each of `nodes`, as many as they would have had for the inputs `x`."""
    specs = measure(model.program, model.tensors, [x.shape], UNLIMITED).tensors
    for node in sorted(nodes):
        spec = specs[node]
        assert spec is not None, "only tensors are asked for"
        yield node, torch.full([int(size or 0) for size in spec.shape], torch.nan, device=x.device)


def bytes_per_sample(model: PortableModel, shape: Sequence[int]) -> int:
    """Return how much one more input `(C, *spatial)` adds to the peak memory of a pass."""
    # Of so many samples the peak is where their own numbers are, not where most tensors are alive.
    fewer, more = (
        measure(model.program, model.tensors, [(batch, *shape)], UNLIMITED).cost.peak_bytes
        for batch in (_SAMPLES, 2 * _SAMPLES)
    )
    return (more - fewer) // _SAMPLES

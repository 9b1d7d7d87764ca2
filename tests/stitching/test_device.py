"""Less memory or another precision changes results by rounding alone."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from tests.stitching.networks import UNet, dataset, deep, masks, member, plain

from suture_contract.documents import Evaluation
from suture_contract.errors import SutureError
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.fitting.fit import FitOptions, FitResult, Member, fit
from suture_stitching.portable.runtime import PortableModel
from suture_stitching.running.device import Runner, bytes_per_sample

OPTIONS = FitOptions(refine=False, max_matches=2)


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_is_set_aside(pair: list[Member]) -> None:
    """Whenever memory runs out, all objects are looked at, millions where many tests ran before: seconds each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def fitted(pair: list[Member]) -> FitResult:
    return fit(pair, dataset(), own=0, options=OPTIONS)


def _limit(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> list[int]:
    """Let memory run out for more than `most` samples at once; return the sizes that were tried."""
    real, tried = PortableModel.stream, []

    def stream(
        self: PortableModel, nodes: Collection[int], *inputs: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor]]:
        tried.append(len(inputs[0]))
        if tried[-1] > most:
            raise error
        return real(self, nodes, *inputs)

    monkeypatch.setattr(PortableModel, "stream", stream)
    return tried


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_halves_what_runs_at_once(
    pair: list[Member], fitted: FitResult, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = evaluate(pair, fitted, dataset(), own=0)
    tried = _limit(monkeypatch, 5, error)
    again = fit(pair, dataset(), own=0, options=OPTIONS)
    assert [match.points for c in again.candidates.candidates for match in c.matches] == [
        match.points for c in fitted.candidates.candidates for match in c.matches
    ]
    # Weights may go far along directions that do not vary; what they do may not.
    r2 = [
        {stitch.weight: stitch.r2 for c in result.candidates.candidates for m in c.matches for stitch in m.stitches}
        for result in (again, fitted)
    ]
    assert r2[0] == pytest.approx(r2[1], abs=1e-4)
    assert 1 < max(size for size in tried if size <= 5) <= 5
    _same(evaluate(pair, fitted, dataset(), own=0), expected)


def _same(found: Evaluation, expected: Evaluation) -> None:
    """Equal, less what rounding does to probabilities where other samples share a batch."""
    for split, scores in expected.splits.items():
        for candidate, score in scores.scores.items():
            again = found.splits[split].scores[candidate]
            assert again.model_copy(update={"calibration": None}) == score.model_copy(update={"calibration": None})
            assert (again.calibration is None) == (score.calibration is None)
            if again.calibration is not None and score.calibration is not None:
                assert again.calibration.ece == pytest.approx(score.calibration.ece, abs=1e-5)
                assert again.calibration.brier == pytest.approx(score.calibration.brier, abs=1e-5)


def test_a_sample_that_is_too_much_is_an_error(pair: list[Member], monkeypatch: pytest.MonkeyPatch) -> None:
    _limit(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(SutureError, match="single sample") as caught:
        fit(pair, dataset(), own=0, options=OPTIONS)
    assert caught.value.code == "work.out_of_memory"


def test_other_errors_are_not_taken_for_want_of_memory(pair: list[Member], monkeypatch: pytest.MonkeyPatch) -> None:
    _limit(monkeypatch, 0, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="do not fit"):
        fit(pair, dataset(), own=0, options=OPTIONS)


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_bfloat16_says_nearly_the_same(tmp_path: Path, task: str) -> None:
    if task == "classification":
        members, data = [member(plain(), tmp_path, seed=1), member(deep(), tmp_path, "south/net", seed=2)], dataset()
    else:
        members, data = [member(UNet(), tmp_path, seed=s, name=f"n{s}/net", task=task) for s in (1, 2)], masks()
    exact, rough = (fit(members, data, options=OPTIONS, precision=precision) for precision in ("float32", "bfloat16"))  # type: ignore[arg-type]
    r2 = [
        {(s.weight): s.r2 for c in result.candidates.candidates for match in c.matches for s in match.stitches}
        for result in (exact, rough)
    ]
    shared = r2[0].keys() & r2[1].keys()
    assert shared
    assert all(abs(r2[0][name] - r2[1][name]) < 0.1 for name in shared)
    assert any(r2[0][name] != r2[1][name] for name in shared)
    assert all(torch.isfinite(tensor).all() and tensor.dtype == torch.float32 for tensor in rough.stitches.values())
    scores = [evaluate(members, exact, data, precision=p).splits["test"].scores for p in ("float32", "bfloat16")]
    assert all(abs(scores[0][id].value - scores[1][id].value) < 0.15 for id in scores[0])


def test_stitches_are_refined_in_the_wanted_precision(pair: list[Member], monkeypatch: pytest.MonkeyPatch) -> None:
    options = FitOptions(refine_steps=12, refine_candidates=1, max_matches=1)
    exact = fit(pair, dataset(), own=0, options=options, precision="float32")
    real, autocast = PortableModel.resume, set()

    def resume(self: PortableModel, values: Mapping[str, torch.Tensor], *inputs: torch.Tensor) -> object:
        autocast.add(torch.is_autocast_enabled("cpu"))
        return real(self, values, *inputs)

    monkeypatch.setattr(PortableModel, "resume", resume)
    rough = fit(pair, dataset(), own=0, options=options, precision="bfloat16")
    assert autocast == {True}
    refined = [name for name in exact.stitches if name.startswith("r00")]
    assert refined
    for name in refined:
        ours, theirs = exact.stitches[name], rough.stitches[name]
        assert theirs.dtype == torch.float32
        assert 0 < float((ours - theirs).norm() / ours.norm()) < 0.1


def test_what_a_sample_needs_is_known_before_it_runs(pair: list[Member]) -> None:
    # 6 maps of 8 x 8 beside one another, in and out of a batch norm, at the least.
    assert 2 * 6 * 64 * 4 <= bytes_per_sample(pair[0].model, (2, 8, 8)) <= 8 * 6 * 64 * 4


def test_auto_is_float32_on_a_cpu() -> None:
    assert Runner("cpu").precision == "float32"
    assert Runner("cpu", "bfloat16").precision == "bfloat16"


class SecondDevice:
    """A CUDA device with so much memory, as far as torch is asked: what is put there stays on the processor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.asked: list[object] = []
        self.moved: list[object] = []
        self.emptied = 0
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.asked.append(device), (free, 2 * free))[1])
        monkeypatch.setattr(torch.cuda, "empty_cache", self._empty)
        monkeypatch.setattr(PortableModel, "to", lambda model, device: (self.moved.append(device), model)[1])

    def _empty(self) -> None:
        self.emptied += 1


def test_a_device_takes_what_half_of_its_free_memory_holds_and_less_once_it_ran_out(
    pair: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shape = pair[0].model, (2, 8, 8)
    device = SecondDevice(monkeypatch, free=2 * 3 * bytes_per_sample(model, shape))
    runner = Runner("cuda:1")
    assert runner.precision == "bfloat16"
    assert runner.model(model.graph, model.tensors, shape) is not None
    assert device.asked == device.moved == [torch.device("cuda:1")]
    assert runner.parts(len, torch.zeros(8, *shape)) == [3, 3, 2]
    # Another model that needs no more does not let more run at once.
    runner.model(model.graph, model.tensors, shape)
    assert runner.parts(len, torch.zeros(4, *shape)) == [3, 1]

    def work(x: torch.Tensor) -> int:
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(x)

    assert runner.parts(work, torch.zeros(3, *shape)) == [1, 1, 1]
    assert device.emptied == 1, "what the failed attempt held is given back first"
    assert runner.parts(len, torch.zeros(2, *shape)) == [1, 1], "and it is not tried again"


def test_a_model_too_large_for_half_of_the_memory_still_runs_one_sample_at_a_time(
    pair: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pair[0].model
    SecondDevice(monkeypatch, free=1)
    runner = Runner("cuda")
    runner.model(model.graph, model.tensors, (2, 8, 8))
    assert runner.parts(len, torch.zeros(2, 2, 8, 8)) == [1, 1]


def test_batches_come_from_pinned_memory_once_a_cuda_device_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    data, pinned = dataset(), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: (pinned.append(tensor), tensor)[1])
    next(iter(data.batches("train", 4)))
    assert pinned == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    x, y = next(iter(data.batches("train", 4)))
    assert any(tensor is x for tensor in pinned)
    assert any(tensor is y for tensor in pinned)


def test_every_tensor_that_a_model_makes_is_where_its_input_is(pair: list[Member]) -> None:
    """On `meta`, a device of shapes alone, which refuses to work with tensors that lie elsewhere."""
    for member_ in pair:
        model = PortableModel(member_.model.graph, member_.model.tensors).to("meta")
        assert model(torch.empty(5, 2, 8, 8, device="meta")).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_says_nearly_the_same(pair: list[Member], fitted: FitResult) -> None:
    on_device = [Member(m.model.to("cuda"), m.metadata, m.ref) for m in pair]
    found = evaluate(on_device, fitted, dataset(), own=0, device="cuda").splits["test"].scores
    for id, score in evaluate(pair, fitted, dataset(), own=0).splits["test"].scores.items():
        assert abs(score.value - found[id].value) < 0.15
    again = fit(on_device, dataset(), own=0, options=OPTIONS, device="cuda", precision="float32")
    assert len(again.candidates.candidates) == len(fitted.candidates.candidates)

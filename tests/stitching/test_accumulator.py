"""What is added up over a pass, in whatever parts it comes."""

from __future__ import annotations

import torch

from suture_stitching.features.moments import Moments
from suture_stitching.running.accumulator import Accumulator, Placed
from suture_stitching.running.checkpoint import Checkpoint


def test_rows_of_wide_features_wait_for_others(tmp_path) -> None:
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    total, checkpoint = Accumulator(), Checkpoint(tmp_path, "key")
    for number, part in enumerate(torch.split(rows, 3)):
        more = Accumulator()
        more.see("wide", part)
        assert not more.moments
        total.add(more)
        if number == 7:  # killed, and gone on with what was kept
            checkpoint.save("part", *total.kept({"train": number}))
            total, done = Accumulator.restored(checkpoint, "part", torch.device("cpu"))
            assert done == {"train": 7}
            assert len(total.waiting["wide"]) == 24 % 9
    assert len(total.waiting["wide"]) < 8
    total.settle()
    whole, once = Moments.of(rows), Accumulator()
    for part in torch.split(rows, 3):
        once.see("wide", part)
    once.settle()
    assert torch.equal(total.moments["wide"].scatter, once.moments["wide"].scatter)
    assert torch.allclose(total.moments["wide"].scatter, whole.scatter, atol=1e-4)
    assert total.moments["wide"].n == 50
    closed, unfinished = total.beside(more).apart()
    assert closed.moments.keys() == {"wide"}
    assert unfinished.waiting.keys() == more.waiting.keys()


def test_samples_are_added_at_their_places() -> None:
    total = Accumulator()
    for places in ([0, 2, 0], [1]):
        each = torch.ones(len(places), 2, dtype=torch.float64)
        total.add(Accumulator(placed={"sum": Placed(torch.tensor(places), each, 4)}))
    assert total.sums["sum"][:, 0].tolist() == [2, 1, 1, 0]

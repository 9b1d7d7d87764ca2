"""Which positions of a map are counted: other ones of each sample, so that together they miss nothing."""

from pathlib import Path

import pytest
import torch
from tests.stitching.networks import SHAPE, dataset, deep, member, plain

from suture_stitching.ensemble.merge import Merge
from suture_stitching.features.moments import Moments, to_grid
from suture_stitching.features.points import StitchPoint
from suture_stitching.fitting.reading import POSITIONS, MatchReader, _positions, rows_of
from suture_stitching.fitting.solve import Source
from suture_stitching.fitting.terms import PatientTerms
from suture_stitching.objectives import objective_of
from suture_stitching.running.checkpoint import Checkpoint
from suture_stitching.running.device import Runner
from suture_stitching.running.feature_pass import FeaturePass
from suture_stitching.running.progress import ignore
from suture_stitching.running.tracker import Tracker, UnitCost


@pytest.mark.parametrize("positions", [POSITIONS + 1, 256, 1024, 4096])
def test_each_sample_shows_other_positions_and_together_they_show_all(positions: int) -> None:
    kept = _positions(positions, positions)
    assert kept.shape == (positions, POSITIONS)
    assert int(kept.min()) >= 0
    assert int(kept.max()) < positions
    assert all(len(set(row)) == POSITIONS for row in kept[:16].tolist())
    counts = torch.bincount(kept.flatten(), minlength=positions)
    assert counts.min() > 0.8 * POSITIONS
    assert counts.max() < 1.2 * POSITIONS


def test_a_closed_form_from_some_positions_is_that_from_all_of_them() -> None:
    """Features that alternate from pixel to pixel, as those of a transposed convolution with stride 2 do."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 3, 32, 32, generator=generator)
    parity = torch.arange(32) % 2
    y = torch.stack([x[:, 0] * (1 + 3 * parity), x[:, 1] * parity[:, None] - x[:, 2]], 1)
    points = [StitchPoint("n1", "", tuple(map_.shape[1:]), 0.5, True) for map_ in (x, y)]
    some = torch.cat([rows_of(map_, (32, 32), point) for map_, point in zip((x, y), points, strict=True)], 2)
    everything = torch.cat([map_.flatten(2).transpose(1, 2) for map_ in (x, y)], 2)
    found = []
    for rows in (some, everything):
        moments = Moments.of(rows.flatten(0, 1))
        found.append(Source(moments, slice(0, 3), moments).to(slice(3, 5)))
    assert torch.allclose(found[0].weight, found[1].weight, atol=0.1)
    assert found[0].r2 == pytest.approx(found[1].r2, abs=0.02)


@pytest.mark.parametrize(("shape", "grid"), [((5, 7), (24, 32)), ((3, 4, 5), (9, 10, 11)), ((1, 1), (16, 16))])
def test_a_map_that_is_enlarged_is_so_only_where_it_is_counted(shape: tuple[int, ...], grid: tuple[int, ...]) -> None:
    feature = torch.randn(6, 3, *shape, generator=torch.Generator().manual_seed(0))
    whole = to_grid(feature, grid).flatten(2).transpose(1, 2)
    kept = _positions(6, whole.shape[1])
    found = rows_of(feature, grid, StitchPoint("n1", "", (3, *shape), 0.5, True))
    assert torch.allclose(found, whole.gather(1, kept[..., None].expand(-1, -1, 3)), atol=1e-5)


def test_matches_may_share_a_point(tmp_path: Path) -> None:
    """A point of three members' match that is one of two members' as well gives each what it would give it alone."""
    members = [
        member(plain(), tmp_path, seed=1),
        member(deep(), tmp_path, "south/net", seed=2),
        member(plain(width=4), tmp_path, "east/net", seed=3),
    ]
    data = dataset()
    merge = Merge(members, objective_of([one.metadata for one in members], data.labels))
    last = {index: one.points(SHAPE)[-1] for index, one in enumerate(members)}
    groups = [{index: last[index] for index in (1, 2)}, last]
    tracker = Tracker(ignore)
    tracker.expect("solve", [UnitCost()])
    passes = FeaturePass(members, data, Runner(), tracker, Checkpoint(None, ""), seed=0)
    terms = PatientTerms(least=1)
    together, alone = (MatchReader(passes, merge, some, (), terms).read() for some in (groups, groups[:1]))
    for number in range(2):
        one, other = together.pair(0, ())[number].dense(), alone.pair(0, ())[number].dense()
        assert torch.equal(one.mean, other.mean)
        assert torch.equal(one.covariance, other.covariance)
    assert together.pair(1, ())[0].n == together.pair(0, ())[0].n

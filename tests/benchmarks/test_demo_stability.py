"""How the demo's stability over seeds is told."""

from __future__ import annotations

from typing import Any

from benchmarks.demo_stability import line, summary


def row(kernels: str, shipped: float) -> dict[str, Any]:
    gain = {"value": shipped - 0.8, "low": shipped - 0.9, "high": shipped - 0.7}
    found = {"own": 0.8, "plain": 0.5, "routed": 0.8, "shipped": shipped, "over own": gain, "over plain": gain}
    missed = [] if shipped > 0.9 else ["better than north's own model"]
    return {"seed": 1, "kernels": kernels, "parties": {"north": found}, "kind": "stitched", "missed": missed}


def test_the_table_shows_least_median_and_most_by_kernels() -> None:
    rows = [row("best", 0.91), row("best", 0.97), row("best", 0.95), row("default", 0.85)]
    table = [[cell.strip() for cell in text.strip("|").split("|")] for text in summary(rows)]
    assert table[0] == ["kernels", "party", "own", "plain", "routed", "shipped"]
    assert [cells[:2] + cells[-1:] for cells in table[2:]] == [
        ["best", "north", "0.910 / 0.950 / 0.970"],
        ["default", "north", "0.850 / 0.850 / 0.850"],
    ]
    assert "north: 0.800 0.500 0.800 0.910, over own +11 [+1, +21]" in line(rows[0])
    assert line(rows[0]).endswith("stitched, met")
    assert line(rows[-1]).endswith("stitched, better than north's own model")

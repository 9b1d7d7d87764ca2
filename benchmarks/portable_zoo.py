"""What it costs to be portable, for networks that hospitals train: `python benchmarks/portable_zoo.py`.

Every network of `zoo.py` is exported, loaded from the file alone and run in turns with the live module. Prints a table
(export seconds, graph size, nodes, operators, load and build ms, run time against eager, worst difference), writes it
as JSON with versions, seeds and hardware, and with `--markdown FILE` as the table of docs/portable-model.md. Fails if
an output differs by more than 1e-6 of its size or the median run time is above 1.05 times eager's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import interleaved, machine, median_ratio, write_json
from rich.console import Console
from rich.table import Table
from torch import Tensor
from zoo import ZOO

from suture_contract.model.format import check_file
from suture_contract.model.graph_json import graph_to_json
from suture_stitching.portable.export import export, relative_difference
from suture_stitching.portable.program import Program
from suture_stitching.portable.runtime import load

MAX_DIFFERENCE = 1e-6
MAX_RATIO = 1.05
#: Batch sizes of the comparison; networks are recorded with two samples.
BATCHES = (1, 5)


@dataclass(frozen=True)
class Row:
    network: str
    parameters: int
    export_s: float
    graph_bytes: int
    nodes: int
    operators: int
    load_ms: float
    build_ms: float
    eager_ms: float
    ratio: float
    difference: float


def measure(name: str, folder: Path, *, rounds: int, seconds: float, small: bool) -> Row:
    """Return one network's row; it runs `rounds` times, or more often while that takes less than `seconds`."""
    entry = ZOO[name]
    module = entry.build(small=small)
    started = time.perf_counter()
    exported = export(module, entry.batch(2, small=small), folder / f"{name}.safetensors", tolerance=MAX_DIFFERENCE)
    export_s = time.perf_counter() - started
    header = check_file(exported.path)
    loads = interleaved({"load": lambda: load(exported.path), "build": lambda: Program(header.graph)}, 3)
    model = load(exported.path)
    worst = 0.0
    with torch.inference_mode():
        for size in BATCHES:
            inputs = entry.batch(size, small=small, seed=size)
            pairs = zip(flat(module(*inputs)), flat(model(*inputs)), strict=True)
            worst = max(worst, *(relative_difference(want, have) for want, have in pairs))
        inputs = entry.batch(2, small=small)
        works = {"eager": lambda: module(*inputs), "portable": lambda: model(*inputs)}
        once = sum(interleaved(works, 1)["eager"])
        times = interleaved(works, max(rounds, min(200, int(seconds / 2 / once))))
    return Row(
        network=name,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        export_s=export_s,
        graph_bytes=len(graph_to_json(header.graph).encode()),
        nodes=len(header.graph.nodes),
        operators=len({node.op for node in header.graph.nodes} - {"input", "tensor"}),
        load_ms=1e3 * statistics.median(loads["load"]),
        build_ms=1e3 * statistics.median(loads["build"]),
        eager_ms=1e3 * statistics.median(times["eager"]),
        ratio=median_ratio(times, "portable", "eager"),
        difference=worst,
    )


def flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [leaf for item in (output.values() if isinstance(output, dict) else output) for leaf in flat(item)]


HEADINGS = (
    "network", "parameters", "export s", "graph kB", "nodes", "operators", "load ms", "build ms", "eager ms",
    "portable / eager", "difference",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    return (
        row.network, f"{row.parameters:,}", f"{row.export_s:.1f}", f"{row.graph_bytes / 1e3:.1f}", str(row.nodes),
        str(row.operators), f"{row.load_ms:.1f}", f"{row.build_ms:.1f}", f"{row.eager_ms:.2f}", f"{row.ratio:.2f}",
        f"{row.difference:.0e}" if row.difference else "0",
    )  # fmt: skip


def markdown(rows: list[Row]) -> str:
    lines = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *map(cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="some of the networks; all by default")
    parser.add_argument("--rounds", type=int, default=7, help="the least number of runs of each network")
    parser.add_argument("--seconds", type=float, default=2.0, help="runs are repeated for as long as this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the small networks of the tests")
    parser.add_argument("--json", type=Path, default=Path("portable_zoo.json"))
    parser.add_argument("--markdown", type=Path, help="write the table here as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=150)
    table = Table(*HEADINGS, title=f"{machine()['cpu']}, {options.threads} thread(s), torch {torch.__version__}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about the networks themselves
        for name in options.networks or ZOO:
            row = measure(name, Path(folder), rounds=options.rounds, seconds=options.seconds, small=options.quick)
            rows.append(row)
            table.add_row(*cells(row))
            print(f"{name}: {row.export_s:.1f} s, {row.ratio:.3f}", file=sys.stderr, flush=True)
    ratio = statistics.median(row.ratio for row in rows)
    worst = max(row.difference for row in rows)
    console.print(table)
    console.print(f"{len(rows)} networks: median run time {ratio:.3f} times eager's, worst difference {worst:.1e}")
    write_json(
        options.json,
        "portable_zoo",
        {"median_ratio": ratio, "worst_difference": worst, "networks": [asdict(row) for row in rows]},
        seed=0,
        threads=options.threads,
        rounds=options.rounds,
        small=options.quick,
        batch=2,
    )
    if options.markdown:
        options.markdown.write_text(markdown(rows), encoding="utf-8")
    if worst > MAX_DIFFERENCE or ratio > MAX_RATIO:
        console.print(f"missed: at most {MAX_DIFFERENCE:g} and {MAX_RATIO} are allowed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

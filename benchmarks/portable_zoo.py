"""What it costs to be portable, for networks that hospitals train: `python benchmarks/portable_zoo.py`.

Every network of `families.py` whose library is installed is exported, loaded from the file alone and run in turns with
the live module. Each row is printed as it is measured (export seconds, graph size, nodes, operators, stitch points,
run time against eager, worst difference); one that is refused says why and what to do instead. With `--markdown FILE`
the rows are written as the table of docs/portable-model.md, and all as JSON with versions, seeds and hardware. Fails
if an output differs by more than 1e-5 of its size or the median run time is above 1.05 times eager's.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import interleaved, machine, median_ratio, write_json
from families import FAMILIES, family, matching
from torch import Tensor
from zoo import Entry

from suture_contract.errors import SutureError
from suture_contract.model.format import check_file
from suture_contract.model.graph_json import graph_to_json
from suture_stitching.features.points import find_points
from suture_stitching.portable.export import export, relative_difference
from suture_stitching.portable.outputs import chosen, pick
from suture_stitching.portable.runtime import load

MAX_DIFFERENCE = 1e-5
MAX_RATIO = 1.05
#: Batch sizes of the comparison; networks are recorded with two samples.
BATCHES = (1, 3)


@dataclass(frozen=True)
class Row:
    network: str
    parameters: int
    export_s: float
    graph_bytes: int
    nodes: int
    operators: int
    points: int
    eager_ms: float | None
    ratio: float | None
    difference: float


@dataclass(frozen=True)
class Refusal:
    network: str
    code: str
    problem: str
    hint: str


def measure(name: str, entry: Entry, folder: Path, *, rounds: int, seconds: float, small: bool) -> Row:
    """Return one network's row; it runs `rounds` times, or more often while that takes less than `seconds`.

    Of several outputs the one that is plainly meant counts, where there is such a one; otherwise all.
    """
    module, example = entry.build(small=small), entry.batch(2, small=small)
    started = time.perf_counter()
    path = folder / "model.safetensors"
    meant = None
    with torch.no_grad(), suppress(SutureError):
        meant = chosen(module(*example), example[0], None) if len(example) == 1 else None
    exported = export(module, example, path, tolerance=MAX_DIFFERENCE, single=meant is not None)
    export_s = time.perf_counter() - started
    header = check_file(exported.path)
    model = load(exported.path)
    worst = 0.0
    with torch.inference_mode():
        for size in BATCHES:
            inputs = entry.batch(size, small=small, seed=size)
            want = module(*inputs) if meant is None else pick(module(*inputs), meant)
            pairs = zip(flat(want), flat(model(*inputs)), strict=True)
            worst = max(worst, *(relative_difference(want, have) for want, have in pairs))
        works = {"eager": lambda: module(*example), "portable": lambda: model(*example)}
        once = sum(interleaved(works, 1)["eager"]) if rounds else 1.0
        times = interleaved(works, max(rounds, min(200, int(seconds / 2 / once)))) if rounds else {}
    return Row(
        network=name,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        export_s=export_s,
        graph_bytes=len(graph_to_json(header.graph).encode()),
        nodes=len(header.graph.nodes),
        operators=len({node.op for node in header.graph.nodes} - {"input", "tensor"}),
        points=len(find_points(model, example[0].shape)) if len(example) == 1 else 0,
        eager_ms=1e3 * statistics.median(times["eager"]) if times else None,
        ratio=median_ratio(times, "portable", "eager") if times else None,
        difference=worst,
    )


def flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [leaf for item in (output.values() if isinstance(output, dict) else output) for leaf in flat(item)]


HEADINGS = (
    "network", "parameters", "export s", "graph kB", "nodes", "operators", "stitch points", "eager ms",
    "portable / eager", "difference",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    times = ("", "") if row.eager_ms is None else (f"{row.eager_ms:.2f}", f"{row.ratio:.2f}")
    return (
        row.network, f"{row.parameters:,}", f"{row.export_s:.1f}", f"{row.graph_bytes / 1e3:.1f}", str(row.nodes),
        str(row.operators), str(row.points), *times, f"{row.difference:.0e}" if row.difference else "0",
    )  # fmt: skip


def markdown(rows: list[Row], refused: list[Refusal]) -> str:
    lines = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *map(cells, rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if refused:
        table += "\n| refused | code | why | what to do |\n| --- | --- | --- | --- |\n"
        table += "".join(f"| {row.network} | `{row.code}` | {row.problem} | {row.hint} |\n" for row in refused)
    return table


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` after so many seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refusal(name: str, error: Exception) -> Refusal:
    code = error.code if isinstance(error, SutureError) else type(error).__name__
    problem = str(error).strip().partition("\n")[0] if not isinstance(error, SutureError) else error.message
    hint = (error.hint or "") if isinstance(error, SutureError) else ""
    return Refusal(name, code, problem, hint)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "networks", nargs="*", metavar="NETWORK", help="names or patterns, such as timm:*; all by default"
    )
    parser.add_argument("--rounds", type=int, default=7, help="the least number of timed runs of each network; 0: none")
    parser.add_argument("--seconds", type=float, default=2.0, help="runs are repeated for as long as this")
    parser.add_argument("--limit", type=int, default=300, help="seconds after which a network counts as refused")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the small networks of the tests")
    parser.add_argument("--json", type=Path, default=Path("portable_zoo.json"))
    parser.add_argument("--markdown", type=Path, help="write the table here as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()['cpu']}, {options.threads} thread(s), torch {torch.__version__}")
    entries = matching(options.networks or ["*"])
    for name in [] if options.networks else FAMILIES:
        if missing := family(name).missing:
            print(f"{name}: left out, for {missing}")
    print("  ".join(HEADINGS))
    rows: list[Row] = []
    refused: list[Refusal] = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about the networks themselves
        for name, entry in entries.items():
            try:
                with within(options.limit):
                    row = measure(
                        name, entry, Path(folder), rounds=options.rounds, seconds=options.seconds, small=options.quick
                    )
            except Exception as error:  # a library's own error is a row, too
                refused.append(refusal(name, error))
                print(f"{name}  refused: {refused[-1].code}: {refused[-1].problem} ({refused[-1].hint})", flush=True)
                continue
            rows.append(row)
            print("  ".join(cells(row)), flush=True)
    ratio = statistics.median([row.ratio for row in rows if row.ratio is not None] or [1.0])
    worst = max((row.difference for row in rows), default=0.0)
    print(
        f"{len(rows)} networks, {len(refused)} refused: median run time {ratio:.3f} times eager's, "
        f"worst difference {worst:.1e}"
    )
    measured = {"networks": [asdict(row) for row in rows], "refused": [asdict(row) for row in refused]}
    write_json(
        options.json,
        "portable_zoo",
        {"median_ratio": ratio, "worst_difference": worst, **measured},
        seed=0,
        threads=options.threads,
        rounds=options.rounds,
        small=options.quick,
        batch=2,
    )
    if options.markdown:
        options.markdown.write_text(markdown(rows, refused), encoding="utf-8")
    if worst > MAX_DIFFERENCE or ratio > MAX_RATIO:
        print(f"missed: at most {MAX_DIFFERENCE:g} and {MAX_RATIO} are allowed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

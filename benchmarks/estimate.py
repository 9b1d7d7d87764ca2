"""How near the estimate comes that a steward approves: `python benchmarks/estimate.py`.

Every network of `zoo.py` is exported and estimated as a site does, without running it; then it is run, each in a
process of its own, on one thread and with two samples. Prints seconds and MiB, estimated and measured, and their
ratios; with `--markdown FILE` as a table. Fails if more than one in ten of either is off by more than a factor of
three.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from zoo import ZOO

from suture_contract.model.format import check_file
from suture_stitching.portable.dry_run import dry_run
from suture_stitching.portable.export import export
from suture_worker.compute.preview import OVERHEAD

FACTOR, MOST_OFF = 3.0, 0.1
_RUN = """
import json, sys, time, torch
from suture_stitching.portable.runtime import load
from suture_worker.compute.preview import speed
torch.set_num_threads(1)
def memory(name):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(name)]
    return int(line.split()[1]) * 1024
inputs = torch.load(sys.argv[2])
torch.nn.Conv2d(1, 1, 1)(torch.zeros(1, 1, 4, 4)); torch.ones(64, 64) @ torch.ones(64, 64)
before = memory("VmRSS")
model = load(sys.argv[1])
with torch.inference_mode():
    model(*inputs)
    grown, times, speeds = memory("VmHWM") - before, [], []
    for _ in range(5):
        speeds.append(speed())
        started = time.perf_counter()
        model(*inputs)
        times.append(time.perf_counter() - started)
middle = sorted(range(5), key=times.__getitem__)[2]
print(json.dumps([times[middle], grown, *speeds[middle]]))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="some of the networks; all by default")
    parser.add_argument("--quick", action="store_true", help="the small networks of the tests")
    parser.add_argument("--markdown", type=Path, help="write the table here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torch about the networks themselves
    lines = [["network", "ms estimated", "ms measured", "ratio", "MiB estimated", "MiB measured", "ratio"]]
    ratios: list[tuple[float, float]] = []
    for name in options.networks or ZOO:
        with tempfile.TemporaryDirectory() as folder:
            entry = ZOO[name]
            path, given = Path(folder) / "model.safetensors", Path(folder) / "inputs.pt"
            inputs = entry.batch(2, small=options.quick)
            export(entry.build(small=options.quick), inputs, path)
            torch.save(inputs, given)
            command = [sys.executable, "-c", _RUN, str(path), str(given)]
            done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=600)
            header = check_file(path)
        cost = dry_run(header.graph, header.tensors, [tensor.shape for tensor in inputs])
        seconds, grown, *fast = json.loads(done.stdout)
        told = cost.seconds(*fast, OVERHEAD)
        ratios.append((told / seconds, cost.expected_bytes / grown))
        cells = [name, f"{1e3 * told:.2f}", f"{1e3 * seconds:.2f}", f"{ratios[-1][0]:.2f}"]
        cells += [f"{cost.expected_bytes / 2**20:.1f}", f"{grown / 2**20:.1f}", f"{ratios[-1][1]:.2f}"]
        lines.append(cells)
        print(" | ".join(cells), flush=True)
    if options.markdown:
        rows = [lines[0], ["---", *["---:"] * 6], *lines[1:]]
        options.markdown.write_text("".join(f"| {' | '.join(row)} |\n" for row in rows), encoding="utf-8")
    off = [sum(not 1 / FACTOR <= pair[index] <= FACTOR for pair in ratios) for index in (0, 1)]
    print(f"{len(ratios)} networks; off by more than {FACTOR:g}: {off[0]} by time, {off[1]} by memory")
    return int(max(off) > MOST_OFF * len(ratios))


if __name__ == "__main__":
    sys.exit(main())

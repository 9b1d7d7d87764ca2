"""Run mutants in a process confined like a site's child: `python -m tests.security.sandbox FIRST COUNT STEP FOLDER`.

Before it runs one it writes the mutant's number to `FOLDER/number` and its bytes to `FOLDER/mutant.safetensors`, so
that both are there if the process ends. At the end it prints what became of the mutants as JSON. It ends with an
exception if a mutant is neither refused with a `SutureError` nor runs as its graph states, takes more memory than the
dry run said, or has Python do anything beyond computing. Those that run are also differentiated, as members are when
stitches are refined; and run again without writing any result over another, which must give the same bits.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tests.security.mutants import BUDGET, SHAPE, mutant, parts

from suture_contract.errors import SutureError
from suture_stitching.portable.dry_run import measure
from suture_stitching.portable.program import nest
from suture_stitching.portable.runtime import PortableModel, load
from suture_worker.compute import confine

GOOD = Path(__file__).parent / "corpus" / "good"
#: What a pass may take beyond `bound_bytes`: small buffers, arenas that the C library keeps.
SLACK = 48 * 2**20
#: Threads' stacks, and what the libraries map without using it.
ADDRESSES = 2**30
CPU_SECONDS = 600
#: What Python reports (PEP 578) when somebody runs code, starts a process, loads a library or opens a connection.
FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "pickle.",
    "marshal.",
    "ctypes.",
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.remove",
    "os.rename",
    "os.link",
    "os.symlink",
    "os.mkdir",
    "os.chmod",
    "shutil.",
)


class Watch:
    """Remembers the forbidden things that happen while it is on."""

    def __init__(self, mutant: Path) -> None:
        self.on = False
        self.seen: list[str] = []
        self._mutant = str(mutant)
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            if args and str(args[0]) != self._mutant:
                self.seen.append(f"open {args[0]!r:.200}")
        elif event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {args!r:.200}")


def sizes(content: bytes) -> tuple[list[list[int]], list[str]]:
    """Return shapes and types of inputs that suit a file, as far as it can be read."""
    try:
        specs = parts(content)[1]["inputs"]
        free = [SHAPE[0], *[16] * 99]
        shapes = [[free[axis] if size is None else size for axis, size in enumerate(spec["shape"])] for spec in specs]
        # An input of more than small sizes is the caller's doing, not the file's.
        return [[size if size <= 64 else 3 for size in shape] for shape in shapes], [spec["dtype"] for spec in specs]
    except (ValueError, LookupError, TypeError, AttributeError, UnicodeDecodeError, RecursionError):
        return [[2, 3]], ["float32"]


def example(shapes: list[list[int]], dtypes: list[str]) -> list[torch.Tensor]:
    """Return inputs of these shapes and types."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(shape, generator=generator) * 4).to(getattr(torch, dtype))
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]


def attempt(path: Path, content: bytes) -> tuple[str, PortableModel | None]:
    """Load the file through all checks and run it; return the code it was refused with, or `ran` and the model."""
    shapes, dtypes = sizes(content)
    model = None
    try:
        model = load(path, input_shapes=shapes, budget=BUDGET)
        cost = measure(model.program, model.tensors, shapes, BUDGET).cost
        inputs = example(shapes, dtypes)
        before = forget_peak()
        with torch.no_grad():
            output = model(*inputs)
        grown = resident("VmHWM") - before
        assert grown <= cost.bound_bytes + SLACK, f"took {grown} bytes, at most {cost.bound_bytes} were said"
    except SutureError as error:
        return error.code if model is None else f"running: {error.code}", model
    for spec, tensor in zip(model.graph.outputs, flat(output), strict=True):
        assert str(tensor.dtype) == f"torch.{spec.dtype}", (spec, tensor.dtype)
        assert len(spec.shape) == tensor.dim(), (spec, tensor.shape)
        assert all(want in (None, have) for want, have in zip(spec.shape, tensor.shape, strict=True)), spec
    return "ran", model


def differentiate(model: PortableModel, content: bytes) -> str:
    """Compute the gradients of all outputs in all that they are made of; return what became of it.

    What is a weight in one file may be an activation in another: gradients go through every argument.
    """
    shapes, dtypes = sizes(content)
    inputs = example(shapes, dtypes)
    with torch.no_grad():
        over, plain = flat(model(*inputs)), flat(functional(model, inputs))
    assert all(same(one, other) for one, other in zip(over, plain, strict=True)), "results were written over others"
    every = [tensor for tensor in (*inputs, *model.tensors.values()) if tensor.is_floating_point()]
    for tensor in every:
        tensor.requires_grad_()
    held = held_bytes(model, shapes)
    before = forget_peak()
    try:
        outputs = [output for output in flat(model(*inputs)) if output.requires_grad]
        for output in outputs:
            output.backward(torch.ones_like(output), retain_graph=output is not outputs[-1])
    except SutureError as error:
        return f"differentiating: {error.code}"
    except RuntimeError:  # as an operator refuses arguments, so does its derivative; the child says that work failed
        return "differentiating: refused"
    grown = resident("VmHWM") - before
    assert grown <= held + SLACK, f"took {grown} bytes, at most {held} were reckoned"
    for tensor in every:
        assert tensor.grad is None or tensor.grad.shape == tensor.shape
    return "differentiated" if outputs else "differentiating: nothing to"


def functional(model: PortableModel, inputs: list[torch.Tensor]) -> Any:
    """Return the model's output, each operator's result in memory of its own."""
    plan, slots = model._started(model._output_nodes, {}, inputs)
    for step in plan.steps:
        slots[step.node] = step.run(slots)
    return nest(model.graph.output, slots)


def held_bytes(model: PortableModel, shapes: list[list[int]]) -> int:
    """Return a bound on what a pass there and back takes: every value and its gradient, and room for the largest."""
    found = measure(model.program, model.tensors, shapes, BUDGET)
    values = [math.prod(spec.shape) * 8 for spec in found.tensors if spec is not None]
    return 4 * sum(values) + 4 * found.cost.bound_bytes


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal, not-a-number to not-a-number."""
    return one.dtype == other.dtype and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))


def flat(output: Any) -> list[torch.Tensor]:
    """Return the tensors of a nested output in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    return [tensor for item in (output.values() if isinstance(output, dict) else output) for tensor in flat(item)]


def forget_peak() -> int:
    """Start to measure the peak of this process's memory again; return how much it takes now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return resident("VmRSS")


def resident(name: str) -> int:
    """Return a number of bytes from this process's status."""
    with Path("/proc/self/status").open(encoding="utf-8") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))


def confined(folder: Path) -> None:
    """Give up network, files and memory as a site's child does, and address space as well."""
    here = [Path(place) for place in (*sys.path, sys.prefix, sys.base_prefix, "/usr/lib", "/lib", "/lib64") if place]
    confine.only_files(read=[*here, GOOD], write=[folder, Path("/proc/self"), Path("/dev/null")])
    confine.no_network(local=False)
    confine.limit(memory_bytes=resident("VmData") + BUDGET.bytes + ADDRESSES, cpu_seconds=CPU_SECONDS)
    most = resident("VmSize") + 2 * BUDGET.bytes + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(first: int, count: int, step: int, folder: Path) -> None:
    """Run the mutants `first`, `first + step`, ... below `first + count`."""
    torch.set_num_threads(1)
    files = [path.read_bytes() for path in sorted(GOOD.glob("*.safetensors"))]
    path = folder / "mutant.safetensors"
    for content in files:  # imports what torch imports at first use
        path.write_bytes(content)
        result, model = attempt(path, content)
        assert result == "ran"
        assert model is not None
        differentiate(model, content)
    confined(folder)
    watch = Watch(path)
    became: Counter[str] = Counter()
    back: Counter[str] = Counter()
    operators: set[str] = set()
    number_file = os.open(folder / "number", os.O_RDWR | os.O_CREAT)
    for number in range(first, first + count, step):
        os.pwrite(number_file, f"{number:<12}".encode(), 0)
        content = mutant(number, files, path.write_bytes)
        path.write_bytes(content)
        watch.on = True
        result, model = attempt(path, content)
        if result == "ran" and model is not None:
            back[differentiate(model, content)] += 1
        watch.on = False
        seen = [event for event in watch.seen if "/proc/self/" not in event]
        assert not seen, seen
        watch.seen.clear()
        became[result] += 1
        if result == "ran" and model is not None:
            operators |= {node.op for node in model.graph.nodes}
    print(json.dumps({"became": became, "back": back, "operators": sorted(operators)}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))

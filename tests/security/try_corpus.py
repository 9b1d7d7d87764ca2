"""Try each hostile file: `python -m tests.security.try_corpus FOLDER` prints layer and code of its refusal as JSON.

In a process of its own, confined, so that a file that crashes it or takes too much is seen and not suffered.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.security.write_corpus import GOOD, SHAPE

from suture_contract.errors import SutureError
from suture_contract.model.format import check_file
from suture_contract.model.metadata import ModelMetadata


def refusal(path: Path) -> tuple[str, SutureError] | None:
    """Return which layer refuses the file, and how."""
    layer = "metadata"
    try:
        if path.suffix == ".json":
            ModelMetadata.from_json(path.read_bytes())
            return None
        layer = "format"
        header = check_file(path)
        from suture_stitching.portable.dry_run import measure
        from suture_stitching.portable.program import Program
        from suture_stitching.portable.runtime import load

        layer = "types"
        program = Program(header.graph)
        layer = "dry run"
        measure(program, header.tensors, [SHAPE])
        layer = "load"
        model = load(path, input_shapes=[SHAPE])
        layer = "run"
        import torch

        with torch.no_grad():
            model(torch.ones(SHAPE))
    except SutureError as error:
        return layer, error
    return None


def main(folder: Path) -> None:
    """Print `{start, files: {name: {layer, code, message, hint, seconds}}}`, seconds being the processor's.

    `start` is what imports and a good model's checks took. Each file's name goes to standard error before it is tried.
    """
    import torch

    from suture_worker.compute import confine

    torch.set_num_threads(1)
    confine.no_network(local=False)
    confine.limit(memory_bytes=2**31, cpu_seconds=120)
    assert refusal(GOOD / "calls-00.safetensors") is None
    start = time.process_time()
    files = {}
    for path in sorted(folder.iterdir()):
        print(path.name, file=sys.stderr, flush=True)
        began = time.process_time()
        refused = refusal(path)
        seconds = time.process_time() - began
        layer, error = refused or ("", None)
        files[path.stem] = {"layer": layer, "seconds": seconds, **(error.as_dict() if error else {"code": "ran"})}
    print(json.dumps({"start": start, "files": files}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

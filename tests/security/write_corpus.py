"""Write the corpus: `python -m tests.security.write_corpus` (and then commit what changed).

`good/` holds small models of every kind and of every operator. `hostile/` holds files that try something, each named
after it; `expected.json` says which of the layers refuses each, and with which code:

    format     `check_file`, without torch
    types      `Program`
    dry run    `measure`
    load       reading the tensors
    run        the pass itself, in the operator that is at fault
    metadata   `ModelMetadata.from_json`, for hostile `suture.json`
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from tests.security.calls import CALLS
from tests.security.corpus_parts import NEW, model, of_calls, written
from tests.security.hostile_files import dry_files, format_files, metadata_files, running_files, types_files
from tests.security.mutants import stated

CORPUS = Path(__file__).parent / "corpus"
GOOD, HOSTILE, EXPECTED = CORPUS / "good", CORPUS / "hostile", CORPUS / "expected.json"
#: Inputs at which hostile models are tried.
SHAPE = (2, 3, 8, 8)
IN_ONE_FILE = 12
#: Networks left out, to keep the corpus small: what they use, others use too.
LARGE = {"resnet", "prenorm", "lstm", "unet"}


def good_files() -> dict[str, bytes]:
    """Return models of every operator, and of every kind of network."""
    rng = random.Random(0)
    groups = [CALLS[start : start + IN_ONE_FILE] for start in range(0, len(CALLS), IN_ONE_FILE)]
    files = {f"calls-{index:02}": of_calls(group, rng) for index, group in enumerate(groups)}
    x = {"n": 0}
    sizes = model(
        ("aten.sym_size.int", [x, 0]),
        ("aten.sym_size.int", [x, 3]),
        ("sym.mul", [{"n": 1}, {"n": 2}]),
        ("sym.floordiv", [{"n": 3}, 4]),
        ("sym.mod", [{"n": 3}, 5]),
        ("sym.add", [{"n": 4}, {"n": 5}]),
        ("sym.neg", [{"n": 5}]),
        ("sym.sub", [{"n": 6}, {"n": 7}]),
        ("aten.zeros.default", [[{"n": 1}, {"n": 8}]], NEW),
    )
    stated(sizes[0], sizes[1])
    files["sizes"] = written(sizes)
    return files


def network_names() -> set[str]:
    """Return the names of the files that `networks` writes, without their ending."""
    from tests.stitching.conftest import NETWORKS

    return {*(NETWORKS.keys() - LARGE), "unet"}


def networks(folder: Path) -> None:
    """Export small networks of every kind into `folder`."""
    import torch
    from tests.stitching.conftest import Network, UNet, build

    from suture_stitching.portable.export import export

    for name in sorted(network_names() - {"unet"}):
        module, shape = build(name)
        example = Network(name, module, shape, folder).batch(4)
        export(module, example, folder / f"{name}.safetensors")
    torch.manual_seed(0)
    export(UNet(2).eval(), torch.rand(2, 1, 16, 16), folder / "unet.safetensors", dynamic_spatial=True)


def write(folder: Path) -> None:
    """Write the corpus into `folder`, but for the networks."""
    good, hostile = folder / "good", folder / "hostile"
    for place in (good, hostile):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    for name, content in good_files().items():
        (good / f"{name}.safetensors").write_bytes(content)
    expected: dict[str, dict[str, str]] = {}

    def keep(name: str, content: bytes, layer: str, code: str, suffix: str = "safetensors") -> None:
        assert name not in expected, name
        (hostile / f"{name}.{suffix}").write_bytes(content)
        expected[name] = {"layer": layer, "code": code}

    for name, (code, content) in format_files().items():
        keep(name, content, "format", code)
    for name, parts in types_files().items():
        keep(name, written(parts), "types", "model.arguments")
    for name, (code, parts) in dry_files().items():
        keep(name, written(parts), "dry run", code)
    for name, (layer, code, parts, data) in running_files().items():
        keep(name, written(parts, data), layer, code)
    for name, text in metadata_files().items():
        keep(name, text.encode("utf-8", "surrogatepass"), "metadata", "metadata.invalid", "json")
    lines = [f"{json.dumps(name)}: {json.dumps(answer)}" for name, answer in sorted(expected.items())]
    (folder / EXPECTED.name).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write(CORPUS)
    networks(CORPUS / "good")

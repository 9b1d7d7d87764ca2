"""A torch module that pushes itself and is loaded again; prints what came of it as JSON. Argument: see `steps.py`."""

import json
import sys
from pathlib import Path

import torch
from huggingface_hub import HfApi, PyTorchModelHubMixin

TOKEN = json.loads((Path(sys.argv[1]) / "tokens.json").read_text())["north"]


class Layer(torch.nn.Module, PyTorchModelHubMixin):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.wide = wide
        self.linear = torch.nn.Linear(wide, 2)


layer = Layer(wide=3)
layer.push_to_hub("north/layer", token=TOKEN)
again = Layer.from_pretrained("north/layer", token=TOKEN)
same = torch.equal(layer.linear.weight, again.linear.weight)
files = sorted(HfApi(token=TOKEN).list_repo_files("north/layer"))
print(json.dumps({"same": same, "files": files, "wide": again.wide}))

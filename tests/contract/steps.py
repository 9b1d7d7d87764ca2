"""What a user of the official client does with a hub, in one process. Runs in the virtual environment of one client
version, against the hub that `HF_ENDPOINT` names, and prints what came of each step as JSON; a step that fails gives
the exception's class and text.

Arguments: a folder to work in, which holds `model/` (a portable model), `large.safetensors` and `tokens.json`.
"""

import json
from importlib import import_module

import huggingface_hub
from tests.contract.stepping import answers, seconds

for name in ("writing", "reading", "access"):  # in this order: each goes on with what is there
    import_module(f"tests.contract.{name}_steps")
print("\n" + json.dumps({"version": huggingface_hub.__version__, "answers": answers, "seconds": seconds}))

"""Uploads of large files, as the official client does them where hf-xet is installed: by Xet. Runs in the virtual
environment of one client version, against the hub that `HF_ENDPOINT` names; prints what came of it as JSON.

Arguments: a folder to work in, which holds `tokens.json`.
"""

import hashlib
import json
import random
import sys
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi, hf_hub_download

WORK = Path(sys.argv[1])
TOKENS = json.loads((WORK / "tokens.json").read_text())
NORTH, SOUTH = HfApi(token=TOKENS["north"]), HfApi(token=TOKENS["south"])
# Weights as they are: noise, numbers whose bytes compress once they are regrouped, and zeros.
NOISE = random.Random(0)
FLOATS = b"".join(NOISE.randbytes(2) + b"\x80\x3f" for _ in range(2**20))
CONTENT = NOISE.randbytes(8 * 2**20) + FLOATS + bytes(4 * 2**20) + NOISE.randbytes(2**20 + 3)


def there(api, repo, path, content):
    """Whether the hub has exactly this, and says so."""
    (entry,) = api.get_paths_info(repo, path)
    digest = hashlib.sha256(content).hexdigest()
    loaded = Path(hf_hub_download(repo, path, token=api.token, force_download=True)).read_bytes()
    return [entry.size == len(content), entry.lfs is not None and entry.lfs.sha256 == digest, loaded == content]


def upload(api, repo, path, source):
    api.create_repo(repo, exist_ok=True, private=True)
    api.upload_file(path_or_fileobj=source, path_in_repo=path, repo_id=repo)


(WORK / "large.bin").write_bytes(CONTENT)
answers = {"version": huggingface_hub.__version__, "xet": find_spec("hf_xet") is not None}

upload(NORTH, "north/large", "large.bin", WORK / "large.bin")
answers["by path"] = there(NORTH, "north/large", "large.bin", CONTENT)

# The client knows what it has sent already, and sends the difference alone.
changed = CONTENT[: 10 * 2**20] + b"changed" + CONTENT[10 * 2**20 :]
upload(NORTH, "north/large", "changed.bin", changed)
answers["changed, from memory"] = there(NORTH, "north/large", "changed.bin", changed)

# The same again, where the client remembers all of it.
NORTH.delete_file("large.bin", "north/large")
upload(NORTH, "north/large", "again/large.bin", WORK / "large.bin")
answers["again"] = there(NORTH, "north/large", "again/large.bin", CONTENT)

# Another repository, and another party, whom it helps nothing that the hub has it.
upload(NORTH, "north/other", "large.bin", WORK / "large.bin")
answers["other repository"] = there(NORTH, "north/other", "large.bin", CONTENT)
upload(SOUTH, "south/large", "large.bin", WORK / "large.bin")
answers["other party"] = there(SOUTH, "south/large", "large.bin", CONTENT)

folder = WORK / "folder"
parts = {f"{index}.bin": CONTENT[index * 2**20 : (index + 6) * 2**20] for index in range(3)}
folder.mkdir()
for name, part in parts.items():
    (folder / name).write_bytes(part)
NORTH.upload_folder(repo_id="north/other", folder_path=folder, path_in_repo="parts")
answers["folder"] = [all(there(NORTH, "north/other", f"parts/{name}", part)) for name, part in parts.items()]

try:
    SOUTH.upload_file(path_or_fileobj=WORK / "large.bin", path_in_repo="x.bin", repo_id="north/large")
except Exception as error:
    answers["foreign"] = type(error).__name__

print(json.dumps(answers))

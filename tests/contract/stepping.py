"""What the steps of a user share: a folder to work in, clients of two parties, and what came of each step."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub as hf
from huggingface_hub import HfApi

WORK = Path(sys.argv[1])
TOKENS = json.loads((WORK / "tokens.json").read_text())
NORTH, SOUTH = HfApi(token=TOKENS["north"]), HfApi(token=TOKENS["south"])
#: What came of each step, and how long it took.
answers, seconds = {}, {}
#: Whether the client asks this hub, and not huggingface.co, to check a card.
NEW = tuple(map(int, hf.__version__.split(".")[:2])) >= (2, 2)


def step(function):
    """Do it at once and note what it returns."""
    started = time.perf_counter()
    try:
        answers[function.__name__] = function()
    except Exception as error:
        answers[function.__name__] = {"error": type(error).__name__, "text": str(error)}
    seconds[function.__name__] = round(time.perf_counter() - started, 2)
    return function


def refused(call, *args, **options):
    try:
        call(*args, **options)
    except Exception as error:
        return [type(error).__name__, getattr(getattr(error, "response", None), "status_code", None), str(error)]
    return None


def files(repo, **options):
    return sorted(NORTH.list_repo_files(repo, **options))


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def cli(*arguments):
    command = [str(Path(sys.executable).parent / "hf"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=WORK)
    return {"rc": done.returncode, "text": done.stdout + done.stderr}

"""`make` takes a PyTorch without CUDA where no GPU is, if the index of such wheels can be reached."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(shutil.which("make") is None, reason="there is no make"),
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the usual index has no CUDA in its wheels"),
]


class Index(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/whl/cpu/torch/" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def index():
    with HTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/whl"
        server.shutdown()
        thread.join()


def chosen(tmp_path, cpu_wheels, *, gpu):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nexit {0 if gpu else 6}\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "NO_PROXY": "127.0.0.1"}
    show = ["--eval", 'show: ; @echo "$(TORCH_INDEX)"', "show", f"PYTHON={sys.executable}"]
    given = [] if cpu_wheels is None else [f"CPU_WHEELS={cpu_wheels}"]
    command = ["make", "--silent", "--no-print-directory", *show, *given]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=True
    ).stdout.strip()


def test_without_a_gpu_wheels_without_cuda_are_taken(tmp_path, index):
    assert chosen(tmp_path, f"{index}/cpu", gpu=False) == f"--index-url {index}/cpu"


def test_with_a_gpu_the_usual_ones(tmp_path, index):
    assert chosen(tmp_path, f"{index}/cpu", gpu=True) == ""


def test_where_that_index_does_not_answer_the_usual_ones(tmp_path, index):
    assert chosen(tmp_path, f"{index}/elsewhere", gpu=False) == ""
    assert chosen(tmp_path, "http://127.0.0.1:9/whl/cpu", gpu=False) == ""


def test_the_index_is_named_once_for_make_and_as_documented():
    (line,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "CUDA: https" in line]
    address = line.partition(": ")[2]
    assert f"--index-url {address}" in (ROOT / "docs/installation.md").read_text()
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "Makefile", *ROOT.glob("*/Dockerfile")]
    found = {path.name for path in pages if address.removeprefix("https://").partition("/")[0] in path.read_text()}
    assert found == {"installation.md"}

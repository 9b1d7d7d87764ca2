"""How fast the hub takes and gives a model: `python benchmarks/hub_transfer.py`.

A model is sent to a hub on a real socket and fetched again, as the SDK's requests do, with all that `publish_file` and
`pull` do around them, and with huggingface_hub's `upload_folder` (by LFS), in turns with a plain copy of the file and
its sha256 on the same disk; then the same client commits a card alone. The hub answers once what it keeps is synced:
the copy is made with and without that. The memory of the hub's process is watched, with one transfer at a time and
with several uploads at once.

`--mlflow FOLDER` adds MLflow's server with its artifact proxy and its own client, from a virtual environment in
FOLDER, which is made if need be; where nginx is installed, it serves the same file to the same client.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from suture.http import Connection
from suture.hub import Hub
from suture_contract.model.format import graph_to_json
from suture_contract.model.graph import Graph, Input, Node, Ref
from suture_contract.model.metadata import ModelMetadata
from suture_local.ports import free_port
from suture_service import operate
from suture_service.settings import Settings

MIB = 2**20
_SIDE = 256
_FEATURES = _SIDE**2
_ROWS = {
    "copy": "copy + sha256",
    "synced": "copy + sha256 + fsync",
    "upload": "hub, upload",
    "download": "hub, download",
    "publish_file": "Hub.publish_file",
    "pull": "Hub.pull",
    "upload_folder": "HfApi.upload_folder",
}
console = Console()

_MLFLOW_CLIENT = """
import json, sys, time
import mlflow
from mlflow import MlflowClient, artifacts
uri, path, folder, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
mlflow.set_tracking_uri(uri)
client = MlflowClient(uri)
experiment = client.create_experiment("transfer")
for _ in range(rounds):
    run = client.create_run(experiment).info.run_id
    started = time.perf_counter()
    client.log_artifact(run, path)
    up = time.perf_counter() - started
    started = time.perf_counter()
    artifacts.download_artifacts(run_id=run, artifact_path=path.rpartition("/")[2], dst_path=f"{folder}/{run}")
    print(json.dumps([up, time.perf_counter() - started]), flush=True)
    import shutil; shutil.rmtree(f"{folder}/{run}")
"""


def write_model(path: Path, size: int, seed: int) -> dict[str, object]:
    """Write a portable model of about `size` bytes, one linear layer; return its metadata."""
    classes = max(2, (size - 4096) // (4 * (_FEATURES + 1)))
    graph = Graph(
        inputs=(Input((None, 1, _SIDE, _SIDE), "float32"),),
        nodes=(
            Node("input", (0,)),
            Node("tensor", ("w",)),
            Node("tensor", ("b",)),
            Node("aten.flatten.using_ints", (Ref(0), 1)),
            Node("aten.linear.default", (Ref(3), Ref(1), Ref(2))),
        ),
        output=Ref(4),
        outputs=(Input((None, classes), "float32"),),
    )
    ends = [4 * classes, 4 * classes * (_FEATURES + 1)]
    header = {
        "__metadata__": {"format": "suture.portable", "version": "1", "graph": graph_to_json(graph), "torch": "2.13"},
        "b": {"dtype": "F32", "shape": [classes], "data_offsets": [0, ends[0]]},
        "w": {"dtype": "F32", "shape": [classes, _FEATURES], "data_offsets": ends},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = bytearray(hashlib.shake_256(f"{seed}".encode()).digest(MIB))
    block[3::4] = bytes(byte & 0x3F for byte in block[3::4])  # small exponents: the hub refuses what is no number
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, ends[1], MIB):
            file.write(block[: ends[1] - start])
    return {
        "schema": "suture.model/1",
        "task": "regression",
        "inputs": {"image": {"format": "image", "num_channels": 1, "spatial_shape": [_SIDE, _SIDE]}},
        "outputs": {"value": {"format": "logits", "num_channels": classes}},
        "license": "Apache-2.0",
    }


@contextlib.contextmanager
def running(command: list[str], url: str, log: Path, env: dict[str, str] | None = None) -> Iterator[psutil.Process]:
    """Run a server until the block ends; it has answered at `url` before the block starts."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(env or {})})
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(url, timeout=5)
                break
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended:\n{log.read_text(encoding='utf-8')[-2000:]}")
            time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.terminate()
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def peak_growth(process: psutil.Process) -> Iterator[list[float]]:
    """Give a list that holds, after the block, by how many MiB the process grew at most."""
    before, grown, done = process.memory_info().rss, [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            grown[0] = max(grown[0], (process.memory_info().rss - before) / MIB)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield grown
    finally:
        done.set()
        thread.join()


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def publish(hub: Connection, name: str, path: Path, metadata: dict[str, object]) -> None:
    parts: dict[str, tuple[str, Path | bytes]] = {
        "model": ("model.safetensors", path),
        "metadata": ("suture.json", json.dumps(metadata).encode()),
    }
    hub.upload_parts(f"/v1/models/north/{name}/revisions", parts)


def copy_and_hash(path: Path, target: Path, *, synced: bool = False) -> str:
    shutil.copyfile(path, target)
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if synced:
            os.fsync(file.fileno())
    target.unlink()
    return digest


def publish_file(hub: Hub, name: str, path: Path, metadata: dict[str, object]) -> None:
    described = ModelMetadata.model_validate(metadata)
    hub.publish_file(path, f"north/{name}", metadata=described, visibility="all", show=lambda _bundle: None)


def pull(hub: Hub, folder: Path) -> None:
    hub.pull("north/warm", folder)


def upload_folder(hub: Hub, name: str, folder: Path, size: int, seed: int) -> float:
    """Return the seconds of an upload of a new model: the client would not send what the hub has."""
    from huggingface_hub import HfApi

    folder.mkdir(exist_ok=True)
    described = json.dumps(write_model(folder / "model.safetensors", size, seed))
    (folder / "suture.json").write_text(described, encoding="utf-8")
    api = HfApi(hub.url, token=hub.connection.token)
    api.create_repo(f"north/{name}")
    return seconds(partial(api.upload_folder, repo_id=f"north/{name}", folder_path=folder))


def change_card(hub: Hub, name: str) -> None:
    """Commit a card alone beside the model that `upload_folder` has sent."""
    from huggingface_hub import HfApi

    api = HfApi(hub.url, token=hub.connection.token)
    api.upload_file(
        path_or_fileobj=b"---\ntags: [benchmark]\n---\n# A card\n", path_in_repo="README.md", repo_id=f"north/{name}"
    )


def hub_settings(work: Path) -> Settings:
    """Return the settings of a hub with its state in a folder."""
    return Settings(database_url=f"sqlite:///{work / 'hub.db'}", store=str(work / "store"))


@contextlib.contextmanager
def new_hub(work: Path) -> Iterator[tuple[psutil.Process, str, str]]:
    """Run a hub with one party, north, and its state in a folder; give its process, address and a token."""
    settings = hub_settings(work)
    operate.migrate(settings)
    operate.add_party(settings, "north")
    token = operate.create_token(settings, "north", ["publisher"])[1]
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {"SUTURE_HUB_DATABASE_URL": settings.database_url, "SUTURE_HUB_STORE": settings.store}
    command = [sys.executable, "-m", "suture", "hub", "serve", "--port", str(port)]
    with running(command, f"{url}/healthz", work / "hub.log", env) as process:
        yield process, url, token


def measure_hub(work: Path, path: Path, metadata: dict[str, object], options: argparse.Namespace) -> dict[str, object]:
    """Return seconds of plain copies, uploads and downloads in turns, and by how much the hub's process grew."""
    found: dict[str, list[float]] = {name: [] for name in (*_ROWS, "nginx", "card")}
    with (
        new_hub(work) as (process, url, token),
        Hub(url, token) as sdk,
        nginx(work, path.parent) as server,
    ):
        hub = sdk.connection
        publish(hub, "warm", path, metadata)
        digest = copy_and_hash(path, work / "copy")
        file = "/v1/models/north/warm/revisions/latest/files/model.safetensors"
        with peak_growth(process) as grown:
            for number in range(options.rounds):
                found["copy"].append(seconds(lambda: copy_and_hash(path, work / "copy")))
                found["synced"].append(seconds(lambda: copy_and_hash(path, work / "copy", synced=True)))
                found["upload"].append(seconds(partial(publish, hub, f"m{number}", path, metadata)))
                found["download"].append(seconds(lambda: hub.download(file, work / "down", sha256=digest)))
                (work / "down").unlink()
                if server is not None:
                    with Connection(server) as plain:
                        found["nginx"].append(
                            seconds(lambda: plain.download(f"/{path.name}", work / "down", sha256=digest))
                        )
                    (work / "down").unlink()
                found["publish_file"].append(seconds(partial(publish_file, sdk, f"s{number}", path, metadata)))
                found["upload_folder"].append(
                    upload_folder(sdk, f"f{number}", work / "fresh", options.size * MIB, number + 2)
                )
                found["card"].append(seconds(partial(change_card, sdk, f"f{number}")))
                found["pull"].append(seconds(lambda: pull(sdk, work / "pulled")))
                shutil.rmtree(work / "pulled")
                shutil.rmtree(work / "cache")
        memory = {"one at a time": grown[0]}
        part, described = (
            path.with_name("part.safetensors"),
            write_model(path.with_name("part.safetensors"), options.each * MIB, 1),
        )
        with peak_growth(process) as grown, ThreadPoolExecutor(options.at_once) as pool:
            list(pool.map(lambda number: publish(hub, f"p{number}", part, described), range(options.at_once)))
        memory[f"{options.at_once} uploads of {options.each} MiB at once"] = grown[0]
    shutil.rmtree(work / "store")
    return {"seconds": found, "growth_mib": memory}


@contextlib.contextmanager
def nginx(work: Path, folder: Path) -> Iterator[str | None]:
    """Give the address under which nginx serves `folder`; None where it is not installed."""
    if shutil.which("nginx") is None:
        console.print("nginx is not installed: left out")
        yield None
        return
    port = free_port()
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{name}_temp_path {work}/{name};\n" for name in names)
    user = "user root;\n" if os.geteuid() == 0 else ""
    (work / "nginx.conf").write_text(
        f"{user}daemon off;\npid {work}/nginx.pid;\nerror_log {work}/nginx.error;\nevents {{}}\n"
        f"http {{\naccess_log off;\nsendfile on;\n{temporary}"
        f"server {{ listen 127.0.0.1:{port}; root {folder}; }}\n}}\n",
        encoding="utf-8",
    )
    url = f"http://127.0.0.1:{port}"
    with running(["nginx", "-c", str(work / "nginx.conf"), "-p", str(work)], url, work / "nginx.log"):
        yield url


def measure_mlflow(work: Path, path: Path, place: Path, rounds: int) -> dict[str, list[float]] | None:
    """Return seconds of MLflow's uploads and downloads; None where it cannot be installed."""
    python = place / "bin" / "python"
    if not (place / "bin" / "mlflow").exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(place)], capture_output=True, encoding="utf-8")
        if made.returncode == 0:
            made = subprocess.run(
                [python, "-m", "pip", "install", "-q", "mlflow"], capture_output=True, encoding="utf-8"
            )
        if made.returncode != 0:
            console.print(f"MLflow cannot be installed, left out: {made.stderr.strip().splitlines()[-1]}")
            return None
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{work / 'mlflow.db'}", "--serve-artifacts"]
    command += ["--artifacts-destination", str(work / "artifacts")]
    with running(command, f"{url}/health", work / "mlflow.log"):
        client = [str(python), "-c", _MLFLOW_CLIENT, url, str(path), str(work / "mlflow"), str(rounds + 1)]
        answer = subprocess.run(client, capture_output=True, encoding="utf-8")
    if answer.returncode != 0:
        console.print(f"MLflow failed, left out: {answer.stderr.strip().splitlines()[-1]}")
        return None
    pairs = [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("[")][1:]
    return {"upload": [pair[0] for pair in pairs], "download": [pair[1] for pair in pairs]}


def show(results: dict[str, object], size: int) -> None:
    hub, mlflow = results["hub"], results["mlflow"]
    assert isinstance(hub, dict)
    times = hub["seconds"]
    rows = [(title, times[name]) for name, title in _ROWS.items()]
    if times["nginx"]:
        rows.append(("nginx, download", times["nginx"]))
    if isinstance(mlflow, dict):
        rows += [("MLflow, upload", mlflow["upload"]), ("MLflow, download", mlflow["download"])]
    plain, synced = statistics.median(times["copy"]), statistics.median(times["synced"])
    table = Table("what", "seconds (median)", "MiB/s", "of copy + sha256", "with fsync", box=None)
    for name, found in rows:
        taken = statistics.median(found)
        shares = [f"{100 * given / taken:.0f} %" for given in (plain, synced)]
        table.add_row(name, f"{taken:.2f}", f"{size / taken:.0f}", *shares)
    console.print(table)
    console.print(f"commit of a card alone beside the model: {statistics.median(times['card']):.2f} s")
    for name, grown in hub["growth_mib"].items():
        console.print(f"memory of the hub's process, {name}: grew by {grown:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=8, help="uploads at once, for the memory")
    parser.add_argument("--each", type=int, default=256, help="MiB of each of those")
    parser.add_argument("--folder", type=Path, help="where everything is written; a new temporary folder without it")
    parser.add_argument("--mlflow", type=Path, metavar="FOLDER", help="a virtual environment with MLflow")
    parser.add_argument("--quick", action="store_true", help="small and once: does it run?")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    options = parser.parse_args()
    if options.quick:
        options.size, options.rounds, options.at_once, options.each = 64, 1, 2, 16
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="suture-transfer-") as folder:
        work = Path(folder)
        # Before huggingface_hub is imported, which reads them then.
        os.environ.update(XDG_CACHE_HOME=str(work / "cache"), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
        (work / "source").mkdir()
        path = work / "source" / "model.safetensors"
        metadata = write_model(path, options.size * MIB, 0)
        results: dict[str, object] = {
            "hub": measure_hub(work, path, metadata, options),
            "mlflow": measure_mlflow(work, path, options.mlflow, options.rounds) if options.mlflow else None,
        }
    show(results, options.size)
    if options.out is not None:
        from benchmarks.common import write_json  # needs torch, the transfers do not

        write_json(options.out, "hub_transfer", results, size_mib=options.size, rounds=options.rounds)


if __name__ == "__main__":
    main()

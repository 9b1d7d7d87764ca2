"""Nothing of a site's data leaves it: canaries in the data, whole jobs that end well and badly, a search everywhere.

Real hub, sites, Redis and Celery; between each site and the hub every byte is recorded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import sqlite3
import struct
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from tests.security.canaries import needles, search, what_a_site_logged, what_left, what_the_hub_has
from tests.security.recorder import Recorder, Sent, port_of
from torch import nn

from suture.bundle import export_model
from suture.hub import Hub
from suture.job import JobStatus  # type: ignore[attr-defined]
from suture_contract.errors import SutureError
from suture_local.installation import Installation
from suture_worker.egress.log import verify

SECONDS = 280
LABELS = ["dark", "bright"]
QUICK: dict[str, Any] = {"alphas": [0.5], "max_matches": 1, "refine_candidates": 1, "refine_steps": 5}


def _word(name: str) -> str:
    return "zq" + hashlib.sha256(name.encode()).hexdigest()[:10] + "x"


#: Searched for as they are here; in the data each stands among other characters, some of them not ASCII.
TEXTS = {
    name: _word(name)
    for name in (
        *("file", "unreadable file", "group", "group in an array", "label in a line", "label in site.toml"),
        *("column", "column not read", "cell", "cell that is no number", "folder", "folder that crashes", "user"),
    )
}
#: The first two are the largest of all pixels and of their column, so that a maximum would give them away.
NUMBERS = {"pixel": 0.98765432, "cell": 48151.623142, "faint pixel": 3.1415923e-05, "small cell": -271.82814}
ROW = bytes(np.random.default_rng(7).integers(0, 255, 36, dtype=np.uint8))
CANARIES: dict[str, str | float | bytes] = {
    **TEXTS,
    **{f"{name} as a number": value for name, value in NUMBERS.items()},
    "pixels": ROW,
    "pixels as delivered": struct.pack("<2f", *(np.frombuffer(ROW[:2], np.uint8) / np.float32(255))),
}
# The machine's own name, too, where it is no word that is anywhere.
if len(socket.gethostname()) > 9:
    CANARIES["machine"] = socket.gethostname()
#: Of failures that are meant to happen: the dataset, how the job ends, and what the site's own log then holds.
FAILING = {
    "unreadable": ("dataset.unreadable_image", TEXTS["unreadable file"]),
    "unheard": ("dataset.unknown_label", TEXTS["folder"]),
    "notnumbers": ("dataset.not_numbers", TEXTS["column"]),
    "nan": ("dataset.not_finite", TEXTS["folder"]),
    "renamed": ("dataset.unknown_label", TEXTS["label in site.toml"]),
    "crash": ("work.failed", TEXTS["folder that crashes"]),
    "few": ("policy.too_few_samples", None),
}


def _images(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 1, 6, 6) that are mostly dark or mostly bright, and which."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = np.clip(rng.normal(0.3 + 0.3 * labels[:, None, None, None], 0.2, (n, 1, 6, 6)), 0, 0.95)
    return images.astype(np.float32), labels.astype(np.int64)


def _scans(folder: Path, n: int = 160, *, label: str | None = None, damaged: str | None = None) -> Path:
    """A folder of images with file names, patients and pixels of their own."""
    folder.mkdir(parents=True)
    images, labels = _images(n, 1)
    lines = ["file,label,group"]
    for index, (image, number) in enumerate(zip(images, labels, strict=True)):
        name = f"Ärztin {TEXTS['file']} {index:03}.png"
        pixels = (image[0] * 255).astype(np.uint8)
        if index < 24:
            pixels = np.frombuffer(ROW, np.uint8).reshape(6, 6)
        Image.fromarray(pixels).save(folder / name)
        lines.append(f"{name},{LABELS[number]},Ω {TEXTS['group']} {index // 2}")
    if label is not None:
        lines[5] = lines[5].replace(",dark,", f",{label},").replace(",bright,", f",{label},")
    if damaged is not None:
        (folder / damaged).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
        lines.append(f"{damaged},dark,other")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def _arrays(path: Path, n: int = 160, *, nan: bool = False) -> Path:
    images, labels = _images(n, 2)
    images[::5, 0, 0, 0], images[1::5, 0, 2, 3] = NUMBERS["pixel"], NUMBERS["faint pixel"]
    if nan:
        images[7, 0, 3, 3] = np.nan
    groups = np.array([f"é {TEXTS['group in an array']} {index}" for index in range(n)])
    np.savez(path, images=images, labels=labels, group=groups)
    return path


def _columns() -> list[str]:
    return [f"Größe {TEXTS['column']}", "b", "c"]


def _table(path: Path, *, bad_cell: bool = False) -> Path:
    rng = np.random.default_rng(3)
    lines = [",".join([*_columns(), "label", "patient", TEXTS["column not read"]])]
    for index in range(160):
        a, b, c = rng.normal(1.5 * (index % 2), 1.0, 3)
        cells = [f"{1000 * a:.4f}", f"{100 * b:.4f}", f"{c:.4f}"]
        if index % 5 == 0:
            cells[:2] = [repr(NUMBERS["cell"]), repr(NUMBERS["small cell"])]
        if bad_cell and index == 90:
            cells[0] = TEXTS["cell that is no number"]
        lines.append(",".join([*cells, LABELS[index % 2], f"{TEXTS['group']}{index}", f"{TEXTS['cell']} {index}"]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _datasets(root: Path) -> dict[str, dict[str, Any]]:
    """Everything north has: two datasets that are in order, and those that are not."""
    folder = root / f"Patienten {TEXTS['folder']}"
    folder.mkdir(parents=True)
    crash = _scans(folder / TEXTS["folder that crashes"])
    (crash / "labels.csv").unlink()
    (crash / "labels.csv").mkdir()
    image = {"format": "image_folder", "labels": LABELS}
    array = {"format": "npz", "labels": LABELS, "value_range": [0.0, 1.0], "columns": {"group": "group"}}
    table = {"format": "csv", "labels": LABELS, "columns": {"features": _columns(), "group": "patient"}}
    return {
        "scans": {**image, "path": _scans(folder / "scans")},
        "table": {**table, "path": _table(folder / "table.csv")},
        "patches": {**array, "path": _arrays(folder / "patches.npz")},
        "unreadable": {**image, "path": _scans(folder / "a", damaged=f"{TEXTS['unreadable file']}.png")},
        "unheard": {**image, "path": _scans(folder / "b", label=TEXTS["label in a line"])},
        "notnumbers": {**table, "path": _table(folder / "c.csv", bad_cell=True)},
        "nan": {**array, "path": _arrays(folder / "d.npz", nan=True)},
        "renamed": {
            **array,
            "path": folder / "patches.npz",
            "labels": ["dark", f"é {TEXTS['label in site.toml']}"],
        },
        "crash": {**image, "path": crash},
        "few": {**array, "path": _arrays(folder / "e.npz", n=30)},
    }


def _publish(
    hub: Hub, name: str, module: nn.Module, inputs: np.ndarray, targets: np.ndarray, folder: Path, key: Path
) -> None:
    """Train a little, and publish what no canary was in."""
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(30):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimiser.step()
    path = folder / name.replace("/", "-")
    path.mkdir()
    given = {"value_range": (0.0, 1.0)} if inputs.ndim == 4 else {}
    metadata = export_model(module.eval(), x[:2], path / "model.safetensors", labels=LABELS, license="CC0-1.0", **given)
    (path / "suture.json").write_text(metadata.to_json())
    hub.publish_file(path, name, key=key, visibility="all", show=lambda _parcel: None)


def _publish_all(hubs: dict[str, Hub], folder: Path, keys: dict[str, Path]) -> None:
    torch.manual_seed(0)
    for seed, (party, channels, size) in enumerate((("north", 3, 3), ("south", 4, 5))):
        side = 7 - size
        hidden = nn.Sequential(nn.Conv2d(1, channels, size), nn.ReLU(), nn.Flatten())
        images = nn.Sequential(hidden, nn.Linear(channels * side * side, 6), nn.ReLU(), nn.Linear(6, 2))
        _publish(hubs[party], f"{party}/images", images, *_images(60, 10 + seed), folder, keys[party])
        rows = np.random.default_rng(seed).normal(size=(60, 3)).astype(np.float32) * [1000, 100, 1]
        table = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 8 + seed), nn.ReLU(), nn.Linear(8 + seed, 2))
        _publish(hubs[party], f"{party}/rows", table, rows.astype(np.float32), np.arange(60) % 2, folder, keys[party])


@dataclass(frozen=True)
class Played:
    """What is left when all jobs have ended and everything is stopped."""

    root: Path
    recorders: dict[str, Recorder]
    jobs: dict[str, JobStatus]

    def state(self, party: str) -> Path:
        return self.root / party / "site" / "state"

    def places(self) -> dict[str, bytes]:
        """Everything outside of the sites' own walls, and the logs of what left."""
        logs = what_a_site_logged(self.state(party) for party in self.recorders)
        return {**what_left(self.recorders), **what_the_hub_has(self.root / "hub", self.root / "hub.log"), **logs}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Two sites, and all jobs played to their end."""
    root = tmp_path_factory.mktemp("place")
    data = tmp_path_factory.mktemp("data")
    recorders: dict[str, Recorder] = {}
    with Installation(root) as here, pytest.MonkeyPatch.context() as patch:
        here.start_hub()
        for party in ("north", "south"):
            here.add_party(party)
        url = here.url
        wrong = _arrays(data / f"{TEXTS['folder']}.npz", nan=True)
        array = {"format": "npz", "labels": LABELS, "value_range": [0.0, 1.0]}
        datasets = {
            "north": _datasets(data / "north"),
            "south": {"patches": {**array, "path": _arrays(data / "south.npz")}, "broken": {**array, "path": wrong}},
        }
        for name in ("LOGNAME", "USER", "USERNAME"):
            patch.setenv(name, TEXTS["user"])
        for party, actions in (("north", ["fit", "evaluate"]), ("south", ["evaluate", "contribute"])):
            recorders[party] = Recorder(port_of(url))
            here.url = recorders[party].url
            here.add_site(party, datasets[party], allow={"north": actions}, limits={"threads": 1})
            here.url = url
            here.start_site(party)
        here.wait_until_ready()
        hubs = {party: Hub(url, here.token(party)) for party in ("north", "south")}
        _publish_all(hubs, data, {party: here.signing_key(party) for party in hubs})
        here.wait_until_online("north", "south")
        images, rows = (["north/images", "south/images"], ["north/rows", "south/rows"])
        ask = hubs["north"].stitch
        jobs = {
            "images": ask(
                images,
                "scans",
                ["south/patches"],
                contribute_from=["south/patches"],
                publish_as="images-both",
                **QUICK,
            ),
            "rows": ask(
                rows, "table", ["south/broken"], contribute_from=["south/broken"], publish_as="rows-both", **QUICK
            ),
            "denied": hubs["south"].stitch(images, "patches"),
            "unknown": ask(images, "nothing"),
        }
        jobs |= {name: ask(rows if name == "notnumbers" else images, name, **QUICK) for name in FAILING}
        ended = {}
        for name, job in jobs.items():
            try:
                ended[name] = job.wait(SECONDS, progress=False)
            except SutureError:
                ended[name] = job.refresh()
        for hub in hubs.values():
            hub.connection.close()
        for party in recorders:
            here.processes.stop(f"{party}'s site")
    for recorder in recorders.values():
        recorder.close()
    return Played(root, recorders, ended)


@pytest.mark.flow
@pytest.mark.timeout(600)
def test_the_jobs_ended_as_they_were_meant_to(played: Played) -> None:
    assert (played.jobs["images"].state, played.jobs["rows"].state) == ("complete", "partial")
    (missing,) = played.jobs["rows"].missing
    assert (missing.party, missing.reason) == ("south", "failed")
    contributed = {
        name: [task.state for task in job.tasks if task.kind == "contribute"] for name, job in played.jobs.items()
    }
    assert (contributed["images"], contributed["rows"]) == (["done"], ["failed"])
    told = {name: job.error.code for name, job in played.jobs.items() if job.error is not None}
    assert told == {
        "denied": "policy.denied",
        "unknown": "dataset.unknown",
        **{name: code for name, (code, _) in FAILING.items()},
    }


@pytest.mark.flow
@pytest.mark.parametrize("name", [name for name, (_, canary) in FAILING.items() if canary is not None])
def test_the_site_itself_was_told_in_full(played: Played, name: str) -> None:
    """So the canaries were where they could have left from."""
    code, canary = FAILING[name]
    tasks = {task.id for task in played.jobs[name].tasks}
    lines = (played.state("north") / "logs" / "failures.log").read_text().splitlines()
    (entry,) = [entry for entry in map(json.loads, lines) if entry["task"] in tasks]
    assert entry["code"] == code
    assert canary is not None
    assert canary in entry["text"]


@pytest.mark.flow
def test_no_canary_left(played: Played) -> None:
    places = played.places()
    assert {"tables", "hub's log", "north sent", "south sent", "north got", "south got"} < places.keys()
    assert len([name for name in places if name.startswith("models/")]) > 10
    assert search(needles(CANARIES), places) == []


def _said(request: Sent) -> tuple[str, str, str | None, str] | None:
    """Return what the log of what left should hold of a request; None for one that tells nothing of the work."""
    path, _, query = request.target.partition("?")
    parts = path.strip("/").split("/")
    if request.method == "GET":
        assert not request.body
        return None
    if path == "/v1/tasks/lease":
        assert json.loads(request.body).keys() == {"wait"}
        return None
    assert parts[:2] == ["v1", "tasks"], request.target
    if parts[3] == "heartbeat":
        assert json.loads(request.body).keys() == {"fence"}
        return None
    digest = hashlib.sha256(request.body).hexdigest()
    if parts[3] == "files":
        assert query.partition("=")[0] == "fence"
        return parts[2], "file", parts[4], digest
    assert not query
    return parts[2], parts[3], None, digest


@pytest.mark.flow
@pytest.mark.parametrize("party", ["north", "south"])
def test_the_log_holds_exactly_what_was_sent(played: Played, party: str) -> None:
    requests = played.recorders[party].requests()
    assert sum(len(request.body) for request in requests) > 1000
    # What was searched above is what was said: nothing was compressed.
    assert not any("content-encoding" in request.headers for request in requests)
    sent = {said for request in requests if (said := _said(request)) is not None}
    entries = verify(played.state(party) / "outbox" / "egress.jsonl")
    assert {(entry.task, entry.kind, entry.name, entry.sha256) for entry in entries} == sent
    kinds = {"progress", "result", "fail", "file"} | ({"decline"} if party == "north" else set())
    assert kinds <= {entry.kind for entry in entries}


@pytest.mark.flow
def test_a_site_says_nothing_of_itself_but_its_version(played: Played) -> None:
    """The headers that the client sets, and no more in them."""
    usual = {"host", "accept", "accept-encoding", "connection", "user-agent", "authorization", "content-type"}
    usual |= {"content-length", "transfer-encoding"}
    for recorder in played.recorders.values():
        assert {name for request in recorder.requests() for name in request.headers} <= usual
        assert {request.headers["user-agent"] for request in recorder.requests()} == {f"suture/{version('suture')}"}


# That the search finds what it is for

PLACES = ("north sent", "hub's log", "models/ab/blob", "hub.db", "tables", "egress.jsonl")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every form of every canary, put on purpose into every place that is searched."""
    root = tmp_path_factory.mktemp("planted")
    forms = needles(CANARIES)
    blob = root / "hub" / "models" / "ab" / "blob"
    blob.parent.mkdir(parents=True)
    content = b"...".join(forms.values())
    blob.write_bytes(content)
    (root / "hub.log").write_bytes(content)
    outbox = root / "state" / "outbox"
    outbox.mkdir(parents=True)
    (outbox / "egress.jsonl").write_bytes(content)
    with closing(sqlite3.connect(root / "hub" / "hub.db")) as database:
        database.execute("CREATE TABLE planted (name TEXT, form BLOB)")
        database.executemany("INSERT INTO planted VALUES (?, ?)", [(None, form) for form in forms.values()])
        texts = [form.decode() for form in forms.values() if form.isascii() and b"\0" not in form]
        database.executemany("INSERT INTO planted VALUES (?, NULL)", [(text,) for text in texts])
        database.commit()
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        recorder = Recorder(nobody.getsockname()[1])
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{recorder.url}/v1/tasks/1/result", content=content, timeout=1)
        (request,) = recorder.requests()
        assert request.body == content
        recorder.close()
    logged = {Path(name).name: text for name, text in what_a_site_logged([root / "state"]).items()}
    return {**what_left({"north": recorder}), **what_the_hub_has(root / "hub", root / "hub.log"), **logged}


@pytest.mark.parametrize("place", PLACES)
def test_the_search_finds_every_form_in_every_place(planted: dict[str, bytes], place: str) -> None:
    found = {line.partition(": ")[2] for line in search(needles(CANARIES), {place: planted[place]})}
    missing = needles(CANARIES).keys() - found
    # Bytes that are no text stand in the dump of a table as hexadecimal numbers, which is a form of its own.
    names = {name.partition(": ")[0] for name in missing}
    assert not missing or (place == "tables" and names <= {line.partition(": ")[0] for line in found}), missing


def test_the_forms_are_those_that_others_write() -> None:
    """What common encoders make of a canary among other bytes, found without knowing what stood around it."""
    text, number = TEXTS["file"], NUMBERS["pixel"]
    wanted = needles({"text": text, "number": number})
    values = np.array([0.5, number, 0.25])
    for around in ("", "ä", "ab", "abc"):
        whole = f"{around}{text}{around}"
        written = {
            "json": json.dumps({"file": whole}).encode(),
            "url": quote(whole).encode(),
            "base64": base64.b64encode(whole.encode()),
            "base64 of urls": base64.urlsafe_b64encode(whole.encode()),
            "hex": whole.encode().hex().encode(),
            "utf-16": whole.encode("utf-16"),
            "traceback": str(FileNotFoundError(2, "gone", whole)).encode(),
        }
        for how, content in written.items():
            assert any("text" in line for line in search(wanted, {how: content})), (how, around)
    numbers = {
        "float64": values.tobytes(),
        "float32": values.astype(np.float32).tobytes(),
        "float32, big end first": values.astype(">f4").tobytes(),
        "json": json.dumps(values.tolist()).encode(),
        "json of float32": json.dumps(values.astype(np.float32).tolist()).encode(),
        "base64": base64.b64encode(values.tobytes()),
        "in per cent": f"{100 * number:.6f}".encode(),
        "exponent": f"{number:e}".encode()[:9],
        "repr": repr(values.astype(np.float32)[1]).encode(),
    }
    for how, content in numbers.items():
        assert search(wanted, {how: content}), how
    assert search(wanted, {"nothing": json.dumps(values.round(4).tolist()).encode()}) == []


def test_a_file_is_searched_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "hub" / "models").mkdir(parents=True)
    (tmp_path / "hub" / "models" / TEXTS["file"]).touch()
    sqlite3.connect(tmp_path / "hub" / "hub.db").close()
    (tmp_path / "hub.log").touch()
    places = what_the_hub_has(tmp_path / "hub", tmp_path / "hub.log")
    assert search(needles(CANARIES), places) == [f"models/{TEXTS['file']}: file: as it is"]

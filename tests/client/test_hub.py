"""The SDK against a real hub: publish, list, load, pull, report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import torch
from huggingface_hub import ModelCard
from torch import Tensor, nn

from suture.bundle import Bundle, export_model
from suture.errors import AuthError, Conflict, NotFound, Refused, Unavailable
from suture.hub import Hub
from suture.transfers import Outgoing
from suture_contract.errors import Cancelled, SutureError
from suture_contract.model.metadata import ModelMetadata
from suture_contract.model.signature import create_key

if TYPE_CHECKING:
    from tests.client.conftest import LiveHub

LABELS = ["cat", "dog", "bird"]


@pytest.fixture(scope="session")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 3)).eval()


@pytest.fixture(scope="session")
def example() -> Tensor:
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, network: nn.Module, example: Tensor) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    metadata = export_model(
        network, example, folder / "model.safetensors", labels=LABELS, license="CC-BY-4.0", value_range=(0.0, 1.0)
    )
    (folder / "suture.json").write_text(metadata.to_json())
    return folder


@pytest.fixture
def north(live_hub: LiveHub) -> Hub:
    return live_hub.client("north")


def new_name() -> str:
    return f"north/m{uuid4().hex[:8]}"


def quietly(_bundle: Bundle) -> None:
    pass


def test_a_network_comes_back_as_it_was(north: Hub, network: nn.Module, example: Tensor) -> None:
    repo = new_name()
    seen: list[Bundle] = []
    revision = north.publish(
        network,
        example,
        repo,
        labels=LABELS,
        license="CC-BY-4.0",
        mean=[0.5],
        std=[0.2],
        description="Animals | seen from afar",
        show=seen.append,
    )
    assert revision.repo == repo
    assert {file.name for file in revision.files} == {"model.safetensors", "suture.json", "README.md"}
    assert seen[0].parameters == sum(parameter.numel() for parameter in network.parameters())
    assert any("cat, dog, bird" in how_much for _, how_much in seen[0].lines())

    loaded = north.load(repo)
    assert isinstance(loaded, nn.Module)
    assert torch.equal(loaded(example), network(example))
    metadata = north.revision(repo).metadata
    assert metadata.labels == tuple(LABELS)
    (inputs,) = metadata.inputs.values()
    assert (inputs.num_channels, inputs.spatial_shape) == (1, (8, 8))
    assert inputs.preprocessing is not None
    assert inputs.preprocessing.mean == (0.5,)
    assert repo in [model.id for model in north.models()]
    assert repo in [model.id for model in north.models("from afar")]


def test_what_leaves_is_said_by_default(
    north: Hub, exported: Path, capsys: pytest.CaptureFixture[str], live_hub: LiveHub
) -> None:
    repo = new_name()
    north.publish_file(exported, repo)
    told = capsys.readouterr().err
    for part in (
        repo,
        live_hub.url,
        "model.safetensors",
        "suture.json",
        "README.md",
        "your party and those you share it with",
    ):
        assert part in told


def test_nothing_leaves_when_the_showing_is_refused(north: Hub, exported: Path) -> None:
    repo = new_name()

    def refuse(_bundle: Bundle) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        north.publish_file(exported, repo, show=refuse)
    with pytest.raises(NotFound):
        north.revision(repo)


@pytest.mark.parametrize("name", ["README.md", "suture.json", "model.safetensors"])
def test_a_link_that_leads_out_of_the_folder_is_refused(north: Hub, exported: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(exported, tmp_path / "out")
    (folder / "README.md").write_text("# Own\n")
    outside = (folder / name).rename(tmp_path / f"outside-{name}")
    (folder / name).symlink_to(outside)
    with pytest.raises(SutureError) as caught:
        north.pack_file(folder, "north/digits")
    assert (caught.value.code, caught.value.where) == ("file.outside", str(folder / name))
    assert str(outside) in caught.value.message
    if name != "model.safetensors":  # what lies beside it is not named either
        with pytest.raises(SutureError, match=r"leads out of the folder"):
            north.pack_file(folder / "model.safetensors", "north/digits")
    outside.rename(folder / f"moved-{name}")
    (folder / name).unlink()
    (folder / name).symlink_to(f"moved-{name}")
    (tmp_path / "link").symlink_to(folder)
    assert north.pack_file(tmp_path / "link", "north/digits").size > 0


def test_what_is_named_itself_may_be_a_link(north: Hub, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(exported / "model.safetensors")
    bundle = north.pack_file(tmp_path / "model.safetensors", "north/digits", metadata=exported / "suture.json")
    assert bundle.size > 0
    (tmp_path / "README.md").symlink_to(tmp_path / "gone")
    with pytest.raises(SutureError) as caught:
        north.pack_file(tmp_path / "model.safetensors", "north/digits", metadata=exported / "suture.json")
    assert caught.value.code == "file.missing"


def test_the_same_again_is_the_same_revision(north: Hub, exported: Path) -> None:
    repo = new_name()
    first = north.publish_file(exported, repo, visibility="all", show=quietly)
    again = north.publish_file(exported / "model.safetensors", repo, visibility="all", show=quietly)
    other = north.publish_file(exported, repo, card="# Another card\n", visibility="all", show=quietly)
    assert first.id == again.id != other.id
    assert north.revision(repo).id == other.id
    assert north.revision(repo, first.id).created_at == first.created_at


def test_a_private_model_looks_unknown_to_others(live_hub: LiveHub, north: Hub, exported: Path) -> None:
    repo = new_name()
    north.publish_file(exported, repo, visibility="private", show=quietly)
    south = live_hub.client("south")
    with pytest.raises(NotFound) as hidden:
        south.load(repo)
    with pytest.raises(NotFound) as unknown:
        south.load("north/nothing-here")
    assert (hidden.value.code, hidden.value.message) == (unknown.value.code, unknown.value.message)
    assert repo not in f"{hidden.value.hint} {unknown.value.hint}"
    assert repo not in [model.id for model in south.models()]


@pytest.mark.parametrize("token", [None, "suture_north_wrong"])
def test_a_wrong_token_is_told_apart(live_hub: LiveHub, token: str | None) -> None:
    with pytest.raises(AuthError):
        Hub(live_hub.url, token).models()


def test_a_revoked_token_ends(live_hub: LiveHub) -> None:
    from suture_service import operate

    token_id, secret = operate.create_token(live_hub.settings, "north", ["publisher"])
    hub = Hub(live_hub.url, secret)
    hub.models()
    operate.revoke_token(live_hub.settings, token_id)
    with pytest.raises(AuthError) as caught:
        hub.models()
    assert secret not in str(caught.value)


def test_a_token_without_the_role_cannot_publish(live_hub: LiveHub, exported: Path) -> None:
    with pytest.raises(SutureError):
        live_hub.client("north", "requester").publish_file(exported, new_name(), visibility="all", show=quietly)
    with pytest.raises(SutureError):
        live_hub.client("south").publish_file(exported, new_name(), visibility="all", show=quietly)


def test_constructing_touches_no_network() -> None:
    hub = Hub("http://192.0.2.1:9", "token")
    assert hub.url == "http://192.0.2.1:9"
    assert "token" not in repr(hub)


def test_importing_the_sdk_does_not_import_torch() -> None:
    code = (
        "import sys, suture, suture.cli.app; sys.exit('torch' in sys.modules or 'suture_service.main' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Bad input


@pytest.mark.parametrize("name", ["digits", "north/", "/digits", "north/../x", "north/a/b", "north/a b"])
def test_a_name_that_is_none_is_refused_before_anything_is_sent(north: Hub, exported: Path, name: str) -> None:
    for call in (
        lambda: north.publish_file(exported, name),
        lambda: north.load(name),
        lambda: north.stitch([name], "d"),
    ):
        with pytest.raises(SutureError) as caught:
            call()
        assert caught.value.code == "model.name"


def test_metadata_of_other_sizes_is_refused_here(north: Hub, exported: Path, tmp_path: Path) -> None:
    wrong = (exported / "suture.json").read_text().replace("8", "9")
    (tmp_path / "suture.json").write_text(wrong)
    with pytest.raises(SutureError) as caught:
        north.publish_file(exported, new_name(), metadata=tmp_path / "suture.json")
    assert caught.value.code == "metadata.mismatch"


def test_a_file_without_metadata_says_what_is_missing(north: Hub, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((exported / "model.safetensors").read_bytes())
    with pytest.raises(SutureError) as caught:
        north.publish_file(tmp_path, new_name())
    assert caught.value.code == "metadata.missing"
    assert "suture.json" in (caught.value.where or "")


def test_a_pickle_is_refused_here(north: Hub, exported: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(SutureError) as caught:
        north.publish_file(tmp_path / "model.pt", new_name(), metadata=exported / "suture.json")
    assert caught.value.code.startswith("model.")


def test_missing_labels_are_named(north: Hub, network: nn.Module, example: Tensor) -> None:
    with pytest.raises(SutureError, match="labels"):
        north.publish(network, example, new_name(), license="CC-BY-4.0")
    with pytest.raises(SutureError, match="2 labels for 3"):
        north.publish(network, example, new_name(), labels=["cat", "dog"], license="CC-BY-4.0")
    with pytest.raises(SutureError, match="mean and std"):
        north.publish(network, example, new_name(), labels=LABELS, mean=[0.1], license="CC-BY-4.0")


def test_an_upload_of_what_the_hub_will_not_have_is_refused_whole(live_hub: LiveHub, north: Hub) -> None:
    repo = new_name()
    with pytest.raises(Refused) as caught:
        north.connection.upload_parts(
            f"/v1/models/{repo}/revisions",
            {"model": ("model.safetensors", b"\x80\x02}q\x00."), "metadata": ("suture.json", b"{}")},
        )
    assert caught.value.code.split(".")[0] in ("model", "metadata")
    with pytest.raises(NotFound):
        north.revision(repo)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "written", [lambda old: old[:-1] + bytes([old[-1] ^ 1]), lambda old: old[:-4], lambda old: old * 2]
)
def test_a_file_that_is_written_to_while_it_is_published_is_told(
    north: Hub, exported: Path, tmp_path: Path, written: Callable[[bytes], bytes], signed: bool
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    content = written((folder / "model.safetensors").read_bytes())

    def meanwhile(_bundle: Bundle) -> None:
        (folder / "model.safetensors").write_bytes(content)

    (tmp_path / "key").write_bytes(create_key()[0])
    with pytest.raises(SutureError) as caught:
        north.publish_file(folder, new_name(), show=meanwhile, key=tmp_path / "key" if signed else None)
    assert caught.value.code == "publish.changed"


@pytest.mark.parametrize("size", [0, 2**20 - 1, 2**20 + 1, 3 * 2**20])
@pytest.mark.parametrize("hashed", [False, True])
def test_no_more_and_no_less_is_sent_than_was_said(tmp_path: Path, size: int, hashed: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2**20))
    outgoing = Outgoing(path, None, hashed=hashed)
    path.write_bytes(bytes(size))
    sent: list[int] = []
    with pytest.raises(SutureError) as caught:
        sent.extend(map(len, outgoing))
    assert caught.value.code == "publish.changed"
    assert sum(sent) <= len(outgoing) == 2**20


def test_what_is_no_file_is_not_waited_for(north: Hub, exported: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SutureError, match="no file") as caught:
        north.publish_file(tmp_path / "pipe", new_name(), metadata=exported / "suture.json")
    assert caught.value.code == "model.unreadable"


# Cache, files, lineage


def test_a_damaged_cache_is_noticed_and_fetched_again(
    north: Hub, exported: Path, network: nn.Module, example: Tensor, tmp_path: Path
) -> None:
    repo = new_name()
    north.publish_file(exported, repo, visibility="all", show=quietly)
    north.load(repo)
    (cached,) = _cache().rglob("snapshots/*/model.safetensors")
    assert cached.parent.name == north.revision(repo).id
    content = bytearray(cached.read_bytes())
    content[-1] ^= 1
    cached.write_bytes(content)
    assert torch.equal(north.load(repo)(example), network(example))
    assert cached.read_bytes() == (exported / "model.safetensors").read_bytes()


def test_loading_again_needs_no_second_download(north: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = new_name()
    north.publish_file(exported, repo, visibility="all", show=quietly)
    north.load(repo)
    (cached,) = _cache().rglob("snapshots/*/model.safetensors")
    before = cached.stat()
    monkeypatch.setattr(north.connection, "download", lambda *_args, **_options: pytest.fail("downloaded again"))
    north.load(repo)
    assert cached.stat().st_mtime_ns == before.st_mtime_ns


def test_a_proxy_in_the_way_of_the_own_machine_is_gone_round(
    north: Hub, exported: Path, network: nn.Module, example: Tensor
) -> None:
    repo = new_name()
    north.publish_file(exported, repo, visibility="all", show=quietly)
    code = (
        "import sys, suture; from pathlib import Path; "
        "suture.Hub(sys.argv[1], sys.stdin.read()).load(sys.argv[2]); print('loaded')"
    )
    environment = {**os.environ, "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    for name in ("NO_PROXY", "no_proxy"):
        environment.pop(name, None)
    ended = subprocess.run(
        [sys.executable, "-c", code, north.url, repo],
        input=north.connection.token, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.stdout == "loaded\n", ended.stderr
    assert north.connection.token not in ended.stderr
    (direct,) = (_cache() / "direct").iterdir()
    assert direct.read_bytes() == (exported / "model.safetensors").read_bytes()


def _cache() -> Path:
    return Path(os.environ["XDG_CACHE_HOME"]) / "suture" / "models"


def test_a_card_of_ones_own_is_brought_in_line(north: Hub, exported: Path, tmp_path: Path) -> None:
    repo = new_name()
    card = "---\nlanguage: en\n---\n# Mine\n"
    metadata = ModelMetadata.read(exported / "suture.json").model_copy(update={"limitations": "adults only"})
    north.publish_file(exported, repo, metadata=metadata, card=card, visibility="all", show=quietly)
    north.pull(repo, tmp_path)
    stored = ModelCard((tmp_path / "README.md").read_text())
    assert (stored.text, stored.data.language) == ("# Mine\n", "en")  # type: ignore[attr-defined]
    assert metadata.license.lower() in (stored.data.license, (stored.data.license_name or "").lower())  # type: ignore[attr-defined]
    assert north.revision(repo).metadata == metadata


def test_pull_writes_all_files_and_leaves_those_that_are_there(north: Hub, exported: Path, tmp_path: Path) -> None:
    repo = new_name()
    north.publish_file(exported, repo, visibility="all", show=quietly)
    folder = tmp_path / "pulled"
    found = north.pull(repo, folder)
    assert {file.name for file in found.files} == {path.name for path in folder.iterdir()}
    assert (folder / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    assert "suture.Hub().load" in (folder / "README.md").read_text()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    (folder / "README.md").write_text("damaged")
    north.pull(repo, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert "suture.Hub().load" in (folder / "README.md").read_text()


def test_a_published_model_has_no_report(north: Hub, exported: Path) -> None:
    repo = new_name()
    north.publish_file(exported, repo, visibility="all", show=quietly)
    with pytest.raises(SutureError) as caught:
        north.report(repo)
    assert caught.value.code == "report.none"


def test_a_job_is_refused_before_anyone_works(live_hub: LiveHub, north: Hub, exported: Path) -> None:
    first, second = new_name(), new_name()
    north.publish_file(exported, first, visibility="all", show=quietly)
    north.publish_file(exported, second, visibility="private", show=quietly)
    for models, party, kind in (
        ([first, "north/unknown"], "south", NotFound),
        ([first, second], "south", Conflict),
        ([first, first], "nobody", SutureError),
        ([first, second], "east", SutureError),
    ):
        with pytest.raises(kind):
            north.stitch(models, "digits", [party])
    assert all(job.state != "queued" or first not in [m.repo for m in job.models] for job in north.jobs())


def test_a_job_can_be_followed_and_cancelled(live_hub: LiveHub, north: Hub, exported: Path) -> None:
    first, second = new_name(), new_name()
    for repo in (first, second):
        north.publish_file(exported, repo, visibility="all", show=quietly)
    models = [first, f"{second}@{north.revision(second).id}"]
    job = north.stitch(models, "digits", ["south"], contribute_from=["south/scans"], seed=1)
    assert (job.status.evaluate_at, job.status.contribute_from) == (("south",), ("south/scans",))
    assert [member.repo for member in job.status.models] == [first, second]
    assert job.id in [found.id for found in north.jobs(limit=1)]
    with pytest.raises(SutureError) as slow:
        job.wait(0.5, progress=False)
    assert slow.value.code == "job.timeout"
    with pytest.raises(NotFound):
        live_hub.client("east").job(job.id)
    job.cancel()
    with pytest.raises(Cancelled):
        north.job(job.id).wait(120)
    events = list(job.events())
    assert events
    assert [event.seq for event in events] == sorted({event.seq for event in events})


def test_a_hub_that_lies_about_a_digest_is_found_out(
    north: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = new_name()
    north.publish_file(exported, repo, visibility="all", show=quietly)
    answer = north.connection.get(f"/v1/models/{repo}/revisions/latest")
    answer["files"][0]["sha256"] = "0" * 64
    monkeypatch.setattr(north.connection, "get", lambda *_args, **_params: answer)
    with pytest.raises(SutureError, match="does not follow") as caught:
        north.load(repo)
    assert caught.value.code == "hub.answer"


def test_a_hub_that_is_away_is_unavailable(exported: Path) -> None:
    hub = Hub("http://127.0.0.1:9", "token")
    hub.connection._attempts = 1
    with pytest.raises(Unavailable):
        hub.publish_file(exported, "north/digits", visibility="all", show=quietly)

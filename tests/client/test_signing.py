"""Signatures: made, trusted, and refused as soon as anything about the files is not as it was signed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import torch
from model_signing import hashing, signing, verifying
from tests import cli_json
from tests.client.nearby import answering
from tests.forged import forge, rename, show
from torch import nn
from typer.testing import CliRunner

from suture.bundle import Bundle, export_model
from suture.cli.app import app
from suture.hub import Hub
from suture.responses import File
from suture.revisions import reading
from suture.signing import Trust, signature_of
from suture_contract.errors import SutureError
from suture_contract.model.signature import (
    Signed,
    create_key,
    folder_digests,
    read_public_key,
    sign,
    verify,
)
from suture_service import operate

if TYPE_CHECKING:
    from tests.client.conftest import LiveHub

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, network: nn.Module) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    metadata = export_model(
        network,
        torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)),
        folder / "model.safetensors",
        labels=["cat", "dog", "bird"],
        license="CC-BY-4.0",
    )
    (folder / "suture.json").write_text(metadata.to_json())
    (folder / "README.md").write_text("# Animals\n")
    return folder


def quietly(_bundle: Bundle) -> None:
    pass


def new_name() -> str:
    return f"north/s{uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def north(live_hub: LiveHub, keys: Path) -> Hub:
    admin = live_hub.client("north", "admin")
    admin.keys.register("north", "north-2026", (keys / "north.pub").read_text())
    return live_hub.client("north")


@pytest.fixture
def reader(live_hub: LiveHub, keys: Path) -> Hub:
    """Somebody at `south` who uses what `north` has signed, and nothing else."""
    hub = live_hub.client("south")
    return Hub(hub.url, hub.connection.token, trust=Trust.of(keys / "north.pub"))


@pytest.fixture(scope="module")
def signed(north: Hub, exported: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a signed model, pulled."""
    repo, folder = new_name(), tmp_path_factory.mktemp("signed")
    north.publish_file(exported, repo, key=keys / "north.pem", visibility="all", show=quietly)
    north.pull(repo, folder)
    return folder


def read(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def digests(files: Files) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != "model.sig"}


def test_a_signed_model_is_used(north: Hub, reader: Hub, exported: Path, keys: Path, network: nn.Module) -> None:
    repo = new_name()
    revision = north.publish_file(exported, repo, key=keys / "north.pem", visibility="all", show=quietly)
    assert revision.signed_by == hashlib.sha256((keys / "north.pub").read_bytes()).hexdigest()
    batch = torch.rand(3, 1, 4, 4)
    torch.testing.assert_close(reader.load(repo)(batch), network(batch))


def test_the_upstream_verifier_says_the_same(signed: Path, keys: Path, tmp_path: Path) -> None:
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=keys / "north.pub")
    verifier.verify(signed, signed / "model.sig")
    copy = shutil.copytree(signed, tmp_path / "copy")
    (copy / "README.md").write_text("# Other\n")
    with pytest.raises(ValueError, match="mismatch"):
        verifier.verify(copy, copy / "model.sig")


def test_an_upstream_signature_is_taken_and_cannot_leave_files_out(signed: Path, keys: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(signed, tmp_path / "copy")
    (copy / "model.sig").unlink()
    ignoring = hashing.Config().set_ignored_paths(paths=["README.md"])
    signer = signing.Config().use_elliptic_key_signer(private_key=keys / "north.pem")
    key = read_public_key((keys / "north.pub").read_bytes(), "north", where="")
    signer.sign(copy, tmp_path / "whole.sig")
    taken = verify(folder_digests(copy), (tmp_path / "whole.sig").read_bytes(), [key], repo="north/animals")
    assert taken == Signed(key, None, None)
    assert taken.words == "signed by north; the signature binds no name and no time"
    signer.set_hashing_config(ignoring).sign(copy, tmp_path / "part.sig")
    with pytest.raises(SutureError, match=r"Extra files.*README\.md"):
        verify(folder_digests(copy), (tmp_path / "part.sig").read_bytes(), [key], repo=None)


def flip(name: str, at: int) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        content = bytearray(files[name])
        content[at] ^= 1
        return {**files, name: bytes(content)}

    return change


def without(name: str) -> Callable[[Files], Files]:
    return lambda files: {key: content for key, content in files.items() if key != name}


CHANGES: dict[str, Callable[[Files], Files]] = {
    "a weight": flip("model.safetensors", -1),
    "the card": flip("README.md", 2),
    "a label": lambda files: {**files, "suture.json": files["suture.json"].replace(b'"cat"', b'"cow"')},
    "dropped": without("README.md"),
    "added": lambda files: {**files, "more.txt": b"more"},
    "added where git's files are": lambda files: {**files, ".gitattributes": b"more"},
    "renamed": lambda files: {**without("README.md")(files), "READ.md": files["README.md"]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_are_not_as_signed_are_refused(
    live_hub: LiveHub, north: Hub, reader: Hub, exported: Path, signed: Path, tmp_path: Path, change: str
) -> None:
    repo = new_name()
    north.publish_file(exported, repo, visibility="all", show=quietly)
    revision = forge(live_hub.settings, repo, CHANGES[change](read(signed)))
    assert reader.revision(repo).id == revision  # the hub shows it, and its digests agree with each other
    for use in (reader.load, lambda repo: reader.pull(repo, tmp_path / "pulled")):
        with pytest.raises(SutureError, match="not the files that north signed") as caught:
            use(repo)
        assert caught.value.code == "signature.mismatch"
    assert not (tmp_path / "pulled").exists()


def refused(reader: Hub, repo: str, revision: str | None = None) -> str:
    with pytest.raises(SutureError) as caught:
        reader.load(repo, revision)
    return caught.value.code


def test_a_signature_of_another_model_is_refused(
    live_hub: LiveHub, north: Hub, reader: Hub, exported: Path, signed: Path, keys: Path
) -> None:
    repo = new_name()
    north.publish_file(exported, repo, visibility="all", show=quietly)
    files = {**read(signed), "README.md": b"# Another model\n"}
    another = sign(digests(files), repo, keys / "north.pem")
    forge(live_hub.settings, repo, {**read(signed), "model.sig": another})
    assert refused(reader, repo) == "signature.mismatch"
    forge(live_hub.settings, repo, {**read(signed), "model.sig": b"{}"})
    assert refused(reader, repo) == "signature.invalid"


def test_a_signed_model_is_not_taken_for_another(
    live_hub: LiveHub, north: Hub, reader: Hub, exported: Path, keys: Path, tmp_path: Path
) -> None:
    mine, other = new_name(), new_name()
    north.publish_file(exported, mine, key=keys / "north.pem", visibility="all", show=quietly)
    north.publish_file(exported, other, key=keys / "north.pem", visibility="all", show=quietly)
    north.pull(mine, tmp_path / "mine")
    swapped = forge(live_hub.settings, other, read(tmp_path / "mine"))
    lenient = Hub(reader.url, reader.connection.token, trust=Trust.of(keys / "north.pub", unsigned=True))
    for hub in (reader, lenient):
        assert refused(hub, other) == refused(hub, other, swapped) == "signature.name"
        with pytest.raises(SutureError, match=f"as {mine}, and here they are called {other}"):
            hub.report(other)
    # Nor does one that signs what the hub shows sign this.
    mine_too = Hub(north.url, north.connection.token, trust=Trust.of(keys / "north.pub"))
    with pytest.raises(SutureError, match="here they are called"):
        mine_too.sign(other, key=keys / "north.pem")


def test_a_model_of_a_renamed_party_is_signed_anew(
    live_hub: LiveHub, reader: Hub, exported: Path, keys: Path, tmp_path: Path
) -> None:
    before, after = (f"p{uuid4().hex[:8]}" for _ in range(2))
    operate.add_party(live_hub.settings, before)
    live_hub.client(before, "admin").keys.register(before, "key", (keys / "north.pub").read_text())
    live_hub.client(before).publish_file(
        exported, f"{before}/m", key=keys / "north.pem", visibility="all", show=quietly
    )
    reader.load(f"{before}/m")
    rename(live_hub.settings, before, after)
    assert refused(reader, f"{after}/m") == "signature.name"
    owner = live_hub.client(after)
    owner.pull(f"{after}/m", tmp_path)
    (tmp_path / "model.sig").unlink()
    owner.publish_file(tmp_path, f"{after}/m", key=keys / "north.pem", visibility="all", show=quietly)
    reader.load(f"{after}/m")


def test_the_newest_does_not_go_back(
    live_hub: LiveHub,
    north: Hub,
    reader: Hub,
    exported: Path,
    keys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repo = new_name()
    new_key, public = create_key()
    (tmp_path / "new.pem").write_bytes(new_key)
    (tmp_path / "new.pub").write_text(public.pem)
    live_hub.client("north", "admin").keys.register("north", "new", public.pem)
    both = Hub(reader.url, reader.connection.token, trust=Trust.of(keys / "north.pub", tmp_path / "new.pub"))

    def publish(card: str, key: Path = keys / "north.pem") -> str:
        return north.publish_file(exported, repo, card=card, key=key, visibility="all", show=quietly).id

    own = f"south/s{uuid4().hex[:8]}"
    mine = live_hub.client("south").publish_file(exported, own, visibility="all", show=quietly).id
    # What other tools, and Suture before, have signed: it says nothing of when.
    north.pull(north.publish_file(exported, repo, visibility="all", show=quietly).repo, tmp_path / "old")
    upstream = signing.Config().use_elliptic_key_signer(private_key=keys / "north.pem")
    upstream.sign(tmp_path / "old", tmp_path / "old" / "model.sig")
    timeless = forge(live_hub.settings, repo, read(tmp_path / "old"))
    both.load(repo)
    first, second = publish("# 1\n"), publish("# 2\n")
    assert both.pull(repo, tmp_path / "second").id == second
    assert both.older(both.revision(repo)) is None
    for back in (first, timeless):
        show(live_hub.settings, repo, back)
        with pytest.raises(SutureError, match=f"a newer revision of {repo} was seen here: {second}") as caught:
            both.load(repo)
        assert caught.value.code == "signature.rolled_back"
        assert f"--revision {back[:12]}" in (caught.value.hint or "")
        both.load(repo, back[:12])  # asked for by its id
        assert second in (both.older(both.revision(repo, back)) or "")
        assert refused(both, repo) == "signature.rolled_back"  # and still not as the newest
    # A key that takes over takes the memory over, too, for as long as both are trusted.
    show(live_hub.settings, repo, second)
    third = publish("# 3\n", tmp_path / "new.pem")
    assert both.pull(repo, tmp_path / "third").id == third
    show(live_hub.settings, repo, second)
    assert refused(both, repo) == "signature.rolled_back"
    # A job names what was checked, and is refused if the hub makes another of it.
    with pytest.raises(SutureError, match="a newer revision"):
        both.stitch([repo, own], "animals")
    job = both.stitch([f"{repo}@{first[:9]}", own], "animals")
    assert [member.revision for member in job.status.models] == [first, mine]
    job.cancel()
    with (
        answering(201, job.status.model_dump_json().encode()) as altering,
        pytest.raises(SutureError, match=f"a job without {repo} at {second}") as caught,
    ):
        Hub(altering.url, both.connection.token).stitch([f"{repo}@{second}", own], "animals")
    assert caught.value.code == "job.altered"
    reader.load(repo)  # who does not trust the new key has seen nothing newer
    # A new machine has seen nothing: it takes what it is shown, and says of when that is.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    show(live_hub.settings, repo, first)
    both.load(repo)
    signed = both.signature(both.revision(repo))
    assert signed is not None
    assert signed.words.startswith(f"signed by north as {repo} on 20")


def test_another_key_and_no_signature_are_refused_unless_the_reader_says_so(
    live_hub: LiveHub, north: Hub, reader: Hub, exported: Path, signed: Path, keys: Path
) -> None:
    repo = new_name()
    north.publish_file(exported, repo, visibility="all", show=quietly)
    assert refused(reader, repo) == "signature.missing"
    forged = sign(digests(read(signed)), repo, keys / "other.pem")
    forge(live_hub.settings, repo, {**read(signed), "model.sig": forged})
    assert refused(reader, repo) == "signature.untrusted"
    lenient = Hub(reader.url, reader.connection.token, trust=Trust.of(keys / "north.pub", unsigned=True))
    lenient.load(repo)
    # Even then, what a trusted key has signed must be what was signed.
    forge(live_hub.settings, repo, CHANGES["a weight"](read(signed)))
    assert refused(lenient, repo) == "signature.mismatch"


def test_a_hub_that_describes_a_signed_model_in_other_words_is_found_out(
    live_hub: LiveHub, north: Hub, reader: Hub, exported: Path, signed: Path, keys: Path
) -> None:
    repo = new_name()
    north.publish_file(exported, repo, visibility="all", show=quietly)
    said = json.loads((signed / "suture.json").read_bytes())
    files = {**read(signed), "model.sig": sign(digests(read(signed)), repo, keys / "north.pem")}
    forge(live_hub.settings, repo, files, {**said, "labels": ["bird", "dog", "cat"]})
    assert refused(reader, repo) == "signature.metadata"


def test_a_description_that_is_said_to_be_huge_is_not_fetched(north: Hub, exported: Path, keys: Path) -> None:
    revision = north.publish_file(exported, new_name(), key=keys / "north.pem", visibility="all", show=quietly)
    huge = tuple(
        file.model_copy(update={"size": 2**40}) if file.name == "suture.json" else file for file in revision.files
    )
    fetched = []

    def fetch(file: File) -> bytes:
        fetched.append(file.name)
        return reading(north.connection, revision)(file)

    with pytest.raises(SutureError) as caught:
        signature_of(revision.model_copy(update={"files": huge}), fetch, Trust.of(keys / "north.pub").keys)
    assert (caught.value.code, fetched) == ("metadata.too_large", ["model.sig"])


def test_what_was_taken_back_is_refused_unless_asked_for(
    live_hub: LiveHub, exported: Path, tmp_path: Path, keys: Path
) -> None:
    east = live_hub.client("east")
    east_admin = live_hub.client("east", "admin")
    private, public = create_key()
    (tmp_path / "east.pem").write_bytes(private)
    made = east_admin.keys.register("east", "east", public.pem)
    repo, other = f"east/{uuid4().hex[:8]}", f"east/{uuid4().hex[:8]}"
    withdrawn = east.publish_file(exported, repo, visibility="all", show=quietly)
    east.publish_file(exported, other, key=tmp_path / "east.pem", visibility="all", show=quietly)
    east.withdraw(repo, withdrawn.id, "trained on wrong labels")
    east_admin.keys.revoke("east", made.fingerprint, "laptop lost")
    reader = live_hub.client("south")
    with pytest.raises(SutureError, match="trained on wrong labels") as caught:
        reader.load(repo)
    assert caught.value.code == "model.flagged"
    with pytest.raises(SutureError, match="laptop lost"):
        reader.pull(other, tmp_path / "pulled")
    reader.pull(other, tmp_path / "pulled", allow_flagged=True)
    reader.load(repo, allow_flagged=True)
    assert [bool(model.flags) for model in reader.models(party="east") if model.id in (repo, other)] == [True, True]


def test_what_is_published_is_signed_afterwards(north: Hub, reader: Hub, exported: Path, keys: Path) -> None:
    repo = new_name()
    plain = north.publish_file(exported, repo, visibility="all", show=quietly)
    assert refused(reader, repo) == "signature.missing"
    # Also by somebody who uses nothing that is unsigned.
    strict = Hub(north.url, north.connection.token, trust=Trust.of(keys / "north.pub"))
    signed = strict.sign(repo, key=keys / "north.pem")
    assert {file.name for file in signed.files} - {file.name for file in plain.files} == {"model.sig"}
    reader.load(repo)
    with pytest.raises(SutureError) as caught:
        north.sign(repo, key=keys / "other.pem")
    assert caught.value.code == "signature.unknown_key"


def test_the_commands(live_hub: LiveHub, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object, fails: bool = False) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert (done.exit_code != 0) is fails, done.output
        if "json" in arguments and not fails:
            cli_json.checked([str(argument) for argument in arguments], done.stdout)
        return done.output.rpartition("code:")[2].strip() if fails else done.output

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUTURE_HUB", live_hub.url)
    monkeypatch.setenv("SUTURE_TOKEN", live_hub.token("north", "admin", "publisher"))
    monkeypatch.setenv("SUTURE_KEY_PASSWORD", "correct horse")
    fingerprint = json.loads(run("keys", "create", "mine", "--password", "--format", "json"))["fingerprint"]
    assert (tmp_path / "mine.pem").stat().st_mode & 0o077 == 0
    assert "ENCRYPTED" in (tmp_path / "mine.pem").read_text()
    assert run("keys", "create", "mine", fails=True) == "key.exists"
    run("keys", "register", "mine.pub")
    assert fingerprint in run("keys", "list", "north", "--format", "json")
    repo = new_name()
    run("publish", exported, repo, "--key", "mine.pem", "--yes")
    monkeypatch.setenv("SUTURE_KEY_PASSWORD", "wrong")
    assert run("sign", repo, "--key", "mine.pem", fails=True) == "key.unusable"
    run("keys", "trust", "north", "mine.pub")
    run("pull", repo, "pulled")
    assert f"signed by north as {repo} on " in run("verify", "pulled")
    document = json.loads(run("verify", "pulled", "--format", "json"))
    first = json.loads(run("pull", repo, "pulled", "--format", "json"))
    assert first["signature"]["signed_at"] == document["signed_at"]
    assert (document["name"], first["signature"]["name"], first["older"]) == (repo, repo, None)
    monkeypatch.setenv("SUTURE_KEY_PASSWORD", "correct horse")
    run("publish", exported, repo, "--key", "mine.pem", "--yes")
    newer = json.loads(run("pull", repo, "newer", "--format", "json"))["revision"]["id"]
    show(live_hub.settings, repo, first["revision"]["id"])
    assert run("pull", repo, "back", fails=True) == "signature.rolled_back"
    assert "you named an older revision" in run("pull", repo, "back", "--revision", first["revision"]["id"])
    show(live_hub.settings, repo, newer)
    (tmp_path / "pulled" / "more").write_text("more")
    assert run("verify", "pulled", fails=True) == "signature.mismatch"
    private = tmp_path / "mine.pem"
    assert run("keys", "register", private, fails=True) == "key.private"
    assert "is revoked" in run("keys", "revoke", fingerprint, "--reason", "laptop lost")
    assert run("pull", repo, "again", fails=True) == "model.flagged"
    revision = json.loads(run("pull", repo, "again", "--allow-flagged", "--format", "json"))["revision"]["id"]
    assert "is withdrawn" in run("withdraw", repo, revision, "--reason", "wrong labels")


def test_verifying_needs_no_network_and_no_torch(keys: Path, signed: Path) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*_arguments, **_options): raise AssertionError('it wants the network')\n"
        "socket.socket.connect = refuse\n"
        "socket.getaddrinfo = refuse\n"
        "from pathlib import Path\n"
        "from suture_contract.model.signature import *\n"
        "folder, key = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "key = read_public_key(key.read_bytes(), 'north', where='')\n"
        "assert verify(folder_digests(folder), (folder / SIGNATURE).read_bytes(), [key], repo=None).key == key\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(signed), str(keys / "north.pub")], check=True, timeout=200)

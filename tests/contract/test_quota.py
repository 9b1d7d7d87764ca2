"""What the official client tells a user whose party has no room left, whichever way it sends."""

from __future__ import annotations

import pytest

from suture_service.database import Database
from suture_service.tables import Party

UPLOADS = """
import json, os, sys
os.environ["HF_HUB_DISABLE_XET"] = sys.argv[1].rpartition("-")[2]
from huggingface_hub import HfApi
api, said = HfApi(token=json.load(open(sys.argv[1] + "/tokens.json"))["north"]), {}
api.create_repo("north/full")
for name in ("fits.txt", "small.txt", "large.safetensors"):
    content = os.urandom(20_000 if name == "fits.txt" else 90_000)
    try:
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="north/full")
        said[name] = None
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]
print(json.dumps([said, api.list_repo_files("north/full")]))
"""


@pytest.mark.parametrize("way", ["xet-0", "lfs-1"])
@pytest.mark.parametrize("version", ["2.4.0", "0.36.2"])
@pytest.mark.parametrize("live", ["sqlite+folder"], indirect=True)
def test_the_client_says_that_there_is_no_room(live, python_with, tmp_path, version, way):
    database = Database(live.settings.database_url)
    try:
        with database.writing() as session:
            session.query(Party).filter_by(name="north").one().max_bytes = 100_000
    finally:
        database.close()
    folder = tmp_path / way
    folder.mkdir()
    (folder / "uploads.py").write_text(UPLOADS)
    said, there = live.run(python_with(version), folder / "uploads.py", folder)
    assert there == ["fits.txt"], said
    assert said.pop("fits.txt") is None
    for name, (kind, text) in said.items():
        assert "north may have 100000" in text, (name, kind, text)

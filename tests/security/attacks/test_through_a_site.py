"""Two of the attacks through a real hub and a real site, with default settings: what leaves is what the suite reads."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from tests.security.attacks import reading, spies, victim
from tests.security.attacks.test_attacks import CHANNELS, READ, UNREAD, direction, narrow, places
from tests.security.attacks.victim import LABELS, PIXELS, SIDE, Patients, patients
from torch import nn

from suture.bundle import export_model
from suture.hub import Hub
from suture_local.installation import Installation

pytestmark = pytest.mark.flow
SECONDS = 240


def publish(hub: Hub, name: str, module: nn.Module, folder: Path, key: Path | None = None) -> None:
    folder.mkdir(parents=True)
    example = torch.rand(2, 1, SIDE, SIDE)
    described = export_model(
        module, example, folder / "model.safetensors", labels=LABELS, license="CC0-1.0", value_range=(0.0, 1.0)
    )
    (folder / "suture.json").write_text(described.to_json())
    hub.publish_file(folder, name, key=key, visibility="all", show=lambda _parcel: None)


def test_what_leaves_a_site(tmp_path: Path) -> None:
    own = patients()
    thresholds = places(0.4 + torch.arange(CHANNELS) * 1.2 / len(own.flat()))
    differences = torch.eye(CHANNELS)[1:] - torch.eye(CHANNELS)[:-1]
    watches = {"bins": narrow(own), "overlap": spies.Below(direction(), thresholds)}
    with Installation(tmp_path) as here:
        here.start_hub()
        for party in ("hospital", "attacker"):
            here.add_party(party)
        here.add_site(
            "hospital", {"images": write(own, tmp_path / "images.npz")}, allow={"hospital": ["fit", "evaluate"]}
        )
        here.start_site("hospital")
        here.wait_until_ready()
        hubs = {party: Hub(here.url, here.token(party)) for party in ("hospital", "attacker")}
        publish(hubs["hospital"], "hospital/net", victim.honest(own), tmp_path / "models" / "net")
        for name, watch in watches.items():
            spy = victim.trained(spies.Spy(watch, CHANNELS), patients(seed=3))
            key = here.signing_key("attacker")
            publish(hubs["attacker"], f"attacker/{name}", spy, tmp_path / "models" / name, key)
        here.wait_until_online("hospital")
        shares = {}
        for name in watches:
            job = hubs["hospital"].stitch(
                ["hospital/net", f"attacker/{name}"], "images", alphas=[0.5], max_matches=1, refine=False
            )
            assert job.wait(SECONDS, progress=False).state == "complete"
            left = httpx.get(
                f"{here.url}/v1/jobs/{job.id}/files/stitches.safetensors",
                headers={"Authorization": f"Bearer {here.token('hospital')}"},
                follow_redirects=True,
                timeout=60,
            )
            tensors = load_tensors(left.raise_for_status().content)
            decode = differences if name == "overlap" else None
            shares[name] = reading.read_stitches(tensors, CHANNELS, own.flat(), decode).share
    # An accident would be kept in, and a simple attack; a better one is what an exact fit trusts in.
    assert shares["bins"] > UNREAD
    assert shares["overlap"] < READ


def write(own: Patients, path: Path) -> dict[str, object]:
    np.savez(path, images=own.images[:, 0].numpy(), labels=own.labels.numpy(), split=own.splits)
    assert own.images.shape[2] * own.images.shape[3] == PIXELS
    return {"path": path, "format": "npz", "labels": LABELS, "value_range": [0.0, 1.0]}

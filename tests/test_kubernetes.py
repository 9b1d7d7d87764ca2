"""The manifests of deploy/kubernetes: the API accepts them, pods are closed, and only what must be is dialled."""

from __future__ import annotations

import copy
import re
import subprocess
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.programs import program

from suture_service.settings import read_settings
from suture_worker import broker

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="an environment made before it was needed")
ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / "deploy" / "kubernetes" / name for name in ("hub", "site")]
PAGE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
#: Where a cluster's names are asked for, and what is outside of it.
DNS, OUTSIDE = "kube-dns", "outside"
Object = dict[str, Any]


def objects(folder: Path) -> list[Object]:
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    texts = [(folder / name).read_text(encoding="utf-8") for name in listed]
    return [made for text in texts for made in yaml.safe_load_all(text)]


ALL = list(chain.from_iterable(map(objects, FOLDERS)))
WORKLOADS = {made["metadata"]["name"]: made for made in ALL if made["kind"] in ("Deployment", "StatefulSet")}
PODS = {name: made["spec"]["template"]["spec"] for name, made in WORKLOADS.items()}
LABELS = {name: made["spec"]["template"]["metadata"]["labels"] for name, made in WORKLOADS.items()}
POLICIES = [made for made in ALL if made["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kustomize_builds_what_the_files_hold(folder):
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    assert {*listed, "kustomization.yaml"} == {path.name for path in folder.iterdir()}
    built = subprocess.run(
        [program("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert built.returncode == 0, built.stderr

    def by_name(made: Object) -> tuple[str, str]:
        return made["kind"], made["metadata"]["name"]

    assert sorted(yaml.safe_load_all(built.stdout), key=by_name) == sorted(objects(folder), key=by_name)


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_the_api_accepts_every_object_and_no_misspelt_one(version):
    for made in ALL:
        kubernetes_validate.validate(made, version, strict=True)
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        kubernetes_validate.validate(yaml.safe_load(block), version, strict=True)
    wrong = copy.deepcopy(WORKLOADS["suture-worker"])
    wrong["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_closed(name):
    pod = PODS[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        closed = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert container["securityContext"] == closed
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert not [entry for entry in container.get("env", ()) if "PASSWORD" in entry["name"] and "value" in entry]
    (container,) = pod["containers"]
    assert "readinessProbe" in container
    assert container.keys() & {"livenessProbe", "startupProbe"}
    mounts = {mount["name"] for each in (*pod.get("initContainers", ()), container) for mount in each["volumeMounts"]}
    claimed = {claim["metadata"]["name"] for claim in WORKLOADS[name]["spec"].get("volumeClaimTemplates", ())}
    assert mounts == {volume["name"] for volume in pod["volumes"]} | claimed
    assert LABELS[name] == WORKLOADS[name]["spec"]["selector"]["matchLabels"]


def test_only_the_worker_has_the_data_and_only_the_agent_the_token():
    claims = {
        name: {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
        for name, pod in PODS.items()
    }
    assert {name for name in PODS if "suture-data" in claims[name]} == {"suture-worker"}
    assert {name for name in PODS if "suture-state" in claims[name]} == {"suture-worker", "suture-agent"}
    worker = PODS["suture-worker"]
    (data,) = [v["persistentVolumeClaim"] for v in worker["volumes"] if v["name"] == "data"]
    (mount,) = [mount for mount in worker["containers"][0]["volumeMounts"] if mount["name"] == "data"]
    assert (data["readOnly"], mount["readOnly"]) == (True, True)
    secrets = {name: {v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v} for name, pod in PODS.items()}
    assert {name for name in PODS if "suture-token" in secrets[name]} == {"suture-agent"}
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def selected(selector: Object, labels: dict[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for wanted in selector.get("matchExpressions", ()):
        assert wanted["operator"] == "In"
        if labels.get(wanted["key"]) not in wanted["values"]:
            return False
    return True


def peers(rule: Object, key: str) -> set[str]:
    """Whom a rule of a policy speaks of: pods of ours, those of another namespace, or what is outside."""
    assert rule[key], "an empty list is everybody"
    found = set()
    for peer in rule[key]:
        if "ipBlock" in peer:
            assert not peer["ipBlock"]["cidr"].endswith("/0")
            found.add(OUTSIDE)
        elif "namespaceSelector" in peer:
            found.add(*(peer.get("podSelector") or peer["namespaceSelector"])["matchLabels"].values())
        else:
            found |= {name for name, labels in LABELS.items() if selected(peer["podSelector"], labels)}
    return found


def edges(direction: str, key: str) -> set[tuple[str, str, int]]:
    """Who may, by these policies, dial whom at which port."""
    allowed = set()
    for policy in POLICIES:
        for rule in policy["spec"].get(direction, ()):
            for name in (name for name, labels in LABELS.items() if selected(policy["spec"]["podSelector"], labels)):
                for peer in peers(rule, key):
                    pair = (name, peer) if direction == "egress" else (peer, name)
                    allowed |= {(*pair, port["port"]) for port in rule["ports"]}
    return allowed


def test_only_what_is_dialled_is_allowed():
    for name, labels in LABELS.items():
        types = [p["spec"]["policyTypes"] for p in POLICIES if selected(p["spec"]["podSelector"], labels)]
        assert {"Ingress", "Egress"} == set(chain.from_iterable(types)), name
    between = {
        ("suture-hub", "suture-postgres", 5432),
        ("suture-agent", "suture-queue", 6380),
        ("suture-worker", "suture-queue", 6380),
    }
    out = {("suture-hub", OUTSIDE, 443), ("suture-agent", OUTSIDE, 443)}
    names = {(name, DNS, 53) for name in ("suture-hub", "suture-agent", "suture-worker")}
    assert edges("egress", "to") == between | out | names
    assert edges("ingress", "from") == between | {("ingress-nginx", "suture-hub", 8420)}
    services = {made["metadata"]["name"]: made["spec"] for made in ALL if made["kind"] == "Service"}
    for _, name, port in between | {("", "suture-hub", 8420)}:
        assert (services[name]["selector"], services[name]["ports"][0]["port"]) == (LABELS[name], port)


def test_what_starts_and_is_asked_is_what_docker_compose_starts_and_asks():
    """Which is played in full by `make images`."""
    assert "command" not in PODS["suture-hub"]["containers"][0]
    for name in ("agent", "worker"):
        (container,) = PODS[f"suture-{name}"]["containers"]
        command = [word for word in container["command"] if word not in ("--drain", "540")]
        assert command == SERVICES[name]["command"]
        asked = SERVICES[name]["healthcheck"]["test"][1:]
        assert container["readinessProbe"]["exec"]["command"] == asked
    (worker,) = PODS["suture-worker"]["containers"]
    drain = int(worker["command"][worker["command"].index("--drain") + 1])
    assert PODS["suture-worker"]["terminationGracePeriodSeconds"] >= drain + 60
    words = " ".join(PODS["suture-queue"]["containers"][0]["command"])
    for option in ("--maxmemory-policy noeviction", "--appendonly no", "--enable-module-command no"):
        assert option in words
        assert option in " ".join(SERVICES["redis"]["command"])
    assert broker.USER in PAGE


def test_the_hub_understands_its_settings(monkeypatch):
    (settings,) = [made["data"] for made in ALL if made["kind"] == "ConfigMap"]
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    read = read_settings()
    assert (read.store, read.proxies) == ("s3://suture-models", "10.0.0.0/8")


def test_the_page_makes_every_secret_and_has_what_each_holds():
    wanted = {v["secret"]["secretName"] for pod in PODS.values() for v in pod["volumes"] if "secret" in v}
    wanted |= {
        source["secretRef"]["name"]
        for source in PODS["suture-hub"]["containers"][0]["envFrom"]
        if "secretRef" in source
    }
    for name in wanted:
        assert f"create secret generic {name} " in PAGE, name
    for key in ("PGPASSWORD", "tls.crt", "tls.key", "broker.acl", "site.toml", "ca.crt", "token"):
        assert f"--from-file={key}" in PAGE or f"--from-literal={key}=" in PAGE, key

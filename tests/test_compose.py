"""The installation by docker-compose: it parses, holds no secret, and each part can reach only what it must."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.programs import program

from suture_worker import broker

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yml"
SERVICES = yaml.safe_load(COMPOSE.read_text())["services"]
EXAMPLE = (ROOT / ".env.example").read_text()
NAMES = ["postgres", "hub", "redis", "agent", "worker"]

#: The keys of the compose specification that this project uses, and what their values look like there.
SERVICE_KEYS = {
    "build": dict,
    "cap_drop": list,
    "command": list,
    "depends_on": dict,
    "deploy": dict,
    "environment": dict,
    "healthcheck": dict,
    "image": str,
    "init": bool,
    "logging": dict,
    "network_mode": str,
    "networks": list,
    "ports": list,
    "read_only": bool,
    "restart": str,
    "security_opt": list,
    "shm_size": str,
    "stop_grace_period": str,
    "tmpfs": list,
    "user": str,
    "volumes": list,
}


def required_variables():
    return set(re.findall(r"\$\{([A-Z_]+):\?", COMPOSE.read_text()))


@pytest.mark.parametrize("name", NAMES)
def test_services_use_known_keys_of_the_right_kind(name):
    service = SERVICES[name]
    for key, value in service.items():
        assert isinstance(value, SERVICE_KEYS[key]), f"{name}.{key}"
    for needed, condition in service.get("depends_on", {}).items():
        assert needed in SERVICES
        assert condition == {"condition": "service_healthy"}


def test_these_are_all_the_services_and_every_named_volume_and_network_is_declared():
    document = yaml.safe_load(COMPOSE.read_text())
    assert sorted(SERVICES) == sorted(NAMES)
    volumes = {entry.split(":")[0] for service in SERVICES.values() for entry in service.get("volumes", [])}
    assert {volume for volume in volumes if re.fullmatch(r"[a-z]+", volume)} == set(document["volumes"])
    networks = {network for service in SERVICES.values() for network in service.get("networks", [])}
    assert networks == set(document["networks"])


@pytest.mark.parametrize("name", NAMES)
def test_every_service_is_watched_restarted_and_confined(name):
    service = SERVICES[name]
    check = service["healthcheck"]
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries"} <= set(check)
    assert service["restart"] == "unless-stopped"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", NAMES)
def test_no_service_runs_as_root(name):
    service = SERVICES[name]
    if "build" in service:
        instructions = (ROOT / service["build"]["dockerfile"]).read_text()
        assert re.findall(r"^USER (\S+)$", instructions, re.MULTILINE)[-1] == "suture"
    else:
        assert service["user"] not in ("root", "0")


def test_no_secret_is_written_down_and_none_has_a_default():
    text = COMPOSE.read_text()
    assert required_variables() == {"POSTGRES_PASSWORD", "SUTURE_DATA"}
    assert not re.search(r"\$\{[A-Z_]+:?-", text), "a variable has a default"
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|TOKEN|KEY", key):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", value), f"{key} holds a value"
            else:
                assert not re.search(r"://[^/@]*:[^/@]*@", value), f"{key} holds a password"
    # A secret in a command line would show in every list of processes.
    assert not any("$" in argument for service in SERVICES.values() for argument in service.get("command", []))


def test_the_example_names_every_variable_and_gives_none_a_value():
    lines = [line for line in EXAMPLE.splitlines() if line and not line.startswith("#")]
    assert {line.removesuffix("=") for line in lines} == required_variables()
    assert all(line.endswith("=") for line in lines)
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {".env", "/site/"} <= set(ignored)


def test_the_worker_sees_the_data_read_only_has_the_gpu_and_no_network():
    worker = SERVICES["worker"]
    (data,) = [volume for volume in worker["volumes"] if volume.endswith(":/data:ro")]
    assert data.startswith("${SUTURE_DATA:?")
    assert worker["network_mode"] == "none"
    assert "networks" not in worker
    assert "ports" not in worker
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_only_the_agent_has_the_token_and_only_the_worker_has_the_data():
    for name, service in SERVICES.items():
        mounted = " ".join(service.get("volumes", []))
        assert ("/token:" in mounted) == (name == "agent")
        assert ("/data:ro" in mounted) == (name == "worker")


def test_the_broker_is_reached_by_its_socket_alone():
    redis = SERVICES["redis"]
    assert redis["network_mode"] == "none"
    assert "ports" not in redis
    command = redis["command"]
    assert command[command.index("--port") + 1] == "0"
    assert [name for name in NAMES if any(v.startswith("broker:") for v in SERVICES[name].get("volumes", []))] == [
        "redis",
        "agent",
        "worker",
    ]


def test_the_broker_answers_those_alone_who_have_the_password_and_does_what_a_queue_needs():
    redis = SERVICES["redis"]
    place = redis["command"][redis["command"].index("--aclfile") + 1]
    assert f"./site/broker.acl:{place}:ro" in redis["volumes"]
    # Nobody else is given it: the worker's children least of all.
    assert [name for name in NAMES if "broker.acl" in str(SERVICES[name].get("volumes"))] == ["redis"]
    rules = (ROOT / "broker.acl").read_text().splitlines()
    assert rules == ["user default off", f"user {broker.USER} on #DIGEST {broker.RULES}"]
    page = (ROOT / "docs/docker-compose.md").read_text()
    assert f"redis+socket://{broker.USER}:PASSWORD@/run/broker/redis.sock" in page
    assert "broker.acl > site/broker.acl" in page


def test_the_database_is_reached_by_the_hub_alone_and_nothing_listens_to_the_world():
    networks = yaml.safe_load(COMPOSE.read_text())["networks"]
    assert networks["database"] == {"internal": True}
    assert [name for name in NAMES if "database" in SERVICES[name].get("networks", [])] == ["postgres", "hub"]
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8420:8420"]


@pytest.mark.parametrize("dockerfile", ["service/Dockerfile", "worker/Dockerfile"])
def test_what_an_image_copies_is_not_ignored(dockerfile):
    kept = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    project = (ROOT / "pyproject.toml").read_text()
    needed = {"pyproject.toml", "README.md", "LICENSE", "migrations"} | set(
        re.findall(r'^    "(\w+)/suture\w*",$', project, re.MULTILINE)
    )
    assert needed <= kept
    copied = re.findall(r"^COPY (?!--)(\S+) ", (ROOT / dockerfile).read_text(), re.MULTILINE)
    assert {path for path in copied if path != "."} <= kept
    assert all((ROOT / path).exists() for path in kept)


def test_torch_comes_first_and_pinned_in_the_site_and_not_at_all_in_the_hub():
    site = (ROOT / "worker/Dockerfile").read_text()
    installs = [line for line in site.splitlines() if "pip install" in line]
    assert installs[0].endswith("--constraint /tmp/lock.txt torch")
    assert "--constraint /tmp/lock.txt" in installs[1]
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    assert set(pinned) <= set((ROOT / "lock.txt").read_text().splitlines())
    assert not re.search(r"pip install[^\n]* torch", (ROOT / "service/Dockerfile").read_text())


def run_compose(empty, *arguments, **environment):
    """Run docker-compose without the checkout's own .env; `empty` is an empty file."""
    empty.touch()
    path = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    command = [program("docker-compose"), "--file", str(COMPOSE), "--env-file", str(empty), *arguments]
    return subprocess.run(command, env=path | environment, capture_output=True, text=True, timeout=200, check=False)


def test_docker_compose_accepts_it_and_asks_for_what_is_missing(tmp_path):
    accepted = run_compose(tmp_path / "empty.env", "config", POSTGRES_PASSWORD="x", SUTURE_DATA="/srv/data")
    assert accepted.returncode == 0, accepted.stderr
    resolved = yaml.safe_load(accepted.stdout)["services"]
    assert sorted(resolved) == sorted(NAMES)
    refused = run_compose(tmp_path / "empty.env", "config", SUTURE_DATA="/srv/data")
    assert refused.returncode != 0
    assert "POSTGRES_PASSWORD" in refused.stderr

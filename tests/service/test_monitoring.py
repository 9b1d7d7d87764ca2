"""What an operator sees: metrics of store, parties, queues and lock-outs; rules and a dashboard that name no others."""

from __future__ import annotations

import json
import re
import subprocess
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import OperationalError
from tests.programs import program
from typer.testing import CliRunner

from suture_service import holdings, main, observe
from suture_service.tables import Token

FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(holdings, "AGE", 0.0)


def samples(world):
    said = world.client.get("/metrics").text
    found = {}
    for family in text_string_to_metric_families(said):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(found, name, **labels):
    return found[name][tuple(sorted(labels.items()))]


def test_metrics_say_what_parties_hold_and_who_waits(start):
    world = start(wrong_tokens=2)
    world.north.publish("north/digits")
    world.north.publish("north/again")  # the same content, but for what names it
    world.ask()
    world.later(90)
    found = samples(world)
    stored = sum(path.stat().st_size for path in (Path(world.settings.store) / "sha256").rglob("*") if path.is_file())
    assert value(found, "suture_hub_store_bytes") == stored
    held = {dict(key)["party"]: size for key, size in found["suture_hub_party_bytes"].items()}
    assert 0 < held["north"] <= stored, "equal content counts once"
    assert held["east"] == 0
    assert value(found, "suture_hub_party_quota_bytes", party="east") == world.settings.max_party_bytes
    assert 0 < value(found, "suture_hub_store_free_bytes") <= value(found, "suture_hub_store_total_bytes")
    assert value(found, "suture_hub_tasks_waiting", kind="fit") == 1
    assert value(found, "suture_hub_oldest_task_seconds", kind="fit") >= 90
    assert value(found, "suture_hub_database_up") == 1
    assert value(found, "suture_hub_uploads_open") == 0
    for _ in range(3):
        world.client.get("/v1/whoami", headers={"Authorization": "Bearer suture_party_guess"})
    found = samples(world)
    assert (value(found, "suture_hub_wrong_tokens_total"), value(found, "suture_hub_lockouts_total")) == (2, 1)


def test_holdings_are_added_up_once_a_minute_and_not_while_the_database_is_away(world, monkeypatch):
    asked = []
    whole = holdings._holdings

    def counted(hub):
        asked.append(hub)
        if len(asked) == 1:
            return whole(hub)
        raise OperationalError("SELECT", {}, Exception("gone"))

    monkeypatch.setattr(holdings, "_holdings", counted)
    monkeypatch.setattr(holdings, "AGE", 60.0)
    samples(world), samples(world)
    assert len(asked) == 1
    monkeypatch.setattr(holdings, "AGE", 0.0)
    found = samples(world)
    assert value(found, "suture_hub_database_up") == 0
    assert "suture_hub_store_bytes" not in found
    assert "suture_hub_requests_total" in found


def expressions():
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))
    found = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    dashboard = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    return found


def selected(expression):
    """The metrics, with the labels that are asked for, of an expression that a parser of PromQL has read."""
    promql_parser = import_module("promql_parser")
    metrics = {}

    def note(node):
        selector = getattr(node, "vector_selector", node)
        if isinstance(selector, promql_parser.VectorSelector):
            labels = {matcher.name for matcher in selector.matchers.matchers}
            metrics.setdefault(selector.name, set()).update(labels)
        return True

    promql_parser.walk(promql_parser.parse(expression), note)
    return metrics


def test_rules_and_dashboard_name_only_what_the_hub_exports(start):
    world = start(wrong_tokens=1)
    world.ask()
    world.client.get("/v1/whoami", headers={"Authorization": "Bearer suture_party_guess"})
    exported = {name: {label for key in rows for label, _ in key} for name, rows in samples(world).items()}
    # Of a counter with labels there is nothing before it counts.
    for counter in ("tasks_ended", "jobs_ended", "tasks_leased"):
        exported.setdefault(f"suture_hub_{counter}_total", set())
    named = set()
    for where, expression in expressions().items():
        asked = selected(expression)
        assert asked, f"{where}: {expression}"
        for metric, labels in asked.items():
            assert metric in exported, f"{where} asks for {metric}"
            assert labels <= exported[metric], f"{where} asks {metric} for {labels}"
        named |= asked.keys()
    ours = {name for name in exported if name.startswith("suture_hub_") and not name.endswith("_created")}
    parts = {"suture_hub_request_seconds_count", "suture_hub_request_seconds_sum"}
    unseen = ours - named - parts - {"suture_hub_revisions_published_total", "suture_hub_tasks_leased_total"}
    assert not unseen, "nobody sees these"


def test_promtool_accepts_the_rules():
    done = subprocess.run(
        [program("promtool"), "check", "rules", FOLDER / "alerts.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_request_is_logged_with_who_asked_from_where_and_never_with_the_token(world, monkeypatch):
    said = []
    monkeypatch.setattr(observe, "log", SimpleNamespace(info=lambda event, **facts: said.append((event, facts))))
    secret = world.north.headers["Authorization"].removeprefix("Bearer ")
    world.north.get("/v1/whoami")
    world.client.get("/v1/whoami")
    known, nobody = [facts for event, facts in said if event == "request"]
    assert (known["party"], known["address"]) == ("north", "testclient")
    assert re.fullmatch(r"tok_[0-9a-f]+", known["token"])
    assert (nobody["party"], nobody["token"], nobody["address"]) == (None, None, "testclient")
    assert secret not in str(said)


def test_an_expired_token_is_told_as_expired(world):
    actor = world.actor("north", "admin")
    made = actor.post("/v1/parties/north/tokens", {"roles": ["reader"], "days": 2}).json()
    headers = {"Authorization": f"Bearer {made['token']}"}
    world.later(2 * 86400 + 1)
    error = world.client.get("/v1/whoami", headers=headers)
    assert (error.status_code, error.json()["error"]["code"]) == (401, "auth.expired")
    assert "expired" in error.json()["error"]["message"]
    assert "sign in again" in error.json()["error"]["hint"]
    other = world.client.get("/api/whoami-v2", headers=headers)
    assert other.headers["X-Error-Message"] == "Invalid credentials in Authorization header", "the client goes by this"
    assert "expired" in other.json()["error"]
    for _ in range(world.settings.wrong_tokens + 1):
        world.client.get("/v1/whoami", headers=headers)
    assert world.north.get("/v1/whoami").status_code == 200, "nobody guesses an expired one"
    with world.hub.database.writing() as session:
        session.get_one(Token, made["id"]).revoked_at = world.now()
    assert world.client.get("/v1/whoami", headers=headers).json()["error"]["code"] == "auth.invalid"


def test_the_example_of_the_commands_runs_as_written(tmp_path, monkeypatch):
    """In an empty folder, without any variable: every line, and the hub that the last one starts answers."""
    monkeypatch.chdir(tmp_path)
    for name in ("SUTURE_HUB_DATABASE_URL", "SUTURE_HUB_STORE"):
        monkeypatch.delenv(name, raising=False)
    from suture.cli.app import app

    runner, answers = CliRunner(), []

    def run(server):
        from starlette.testclient import TestClient

        with TestClient(server.config.app) as client:
            answers.append((server.config.host, client.get("/readyz").status_code))

    monkeypatch.setattr(main._Server, "run", run)
    shown = runner.invoke(app, ["hub", "--help"], env={"COLUMNS": "200"}).output
    lines = [line.strip(" │") for line in shown.splitlines() if line.strip(" │").startswith("suture hub ")]
    assert len(lines) >= 5, shown
    for line in lines:
        done = runner.invoke(app, line.split()[1:])
        assert done.exit_code == 0, (line, done.output)
    assert answers == [("127.0.0.1", 200)]

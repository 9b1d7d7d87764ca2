"""Health, metrics, logs, limits, the OpenAPI description; and what the service must not do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import structlog
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs
from tests.service.jobs import refusal

from suture_service.errors import of_database
from suture_service.paging import encode
from suture_service.settings import Settings


def test_health(world):
    assert world.client.get("/healthz").json() == {"status": "ok"}
    assert world.client.get("/readyz").json() == {"status": "ready"}
    store = world.settings.store
    shutil.rmtree(store)
    Path(store).write_text("no folder any more", encoding="utf-8")
    with capture_logs() as logs:
        error = refusal(world.client.get("/readyz"), 503)
    assert logs[0]["event"] == "not ready"
    assert error["code"] == "hub.not_ready"
    assert world.client.get("/healthz").json() == {"status": "ok"}


def test_metrics_count_routes_not_names(world):
    world.ask()
    world.north.get("/v1/models/north/digits")
    world.sites["north"].lease()
    text = world.client.get("/metrics").text
    route = 'method="GET",route="/v1/models/{party}/{name}",status="200"'
    assert f"suture_hub_requests_total{{{route}}}" in text
    assert 'suture_hub_tasks_leased_total{kind="fit"} 1.0' in text
    assert "suture_hub_revisions_published_total 2.0" in text
    assert "digits" not in text
    # Who holds how much is the one thing that is told by party.
    named = {line.partition("{")[0] for line in text.splitlines() if "north" in line}
    assert named == {"suture_hub_party_bytes", "suture_hub_party_quota_bytes"}


def test_logs_hold_request_ids_and_no_secrets(world):
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        answer = world.north.publish("north/digits", card=b"patient 7")
        given = world.north.get("/v1/models", params={"search": "s3cret"}, headers={"X-Request-ID": "mine-1"})
        world.north.get("/v1/whoami", headers={"X-Request-ID": "a b\n"})
    assert given.headers["x-request-id"] == "mine-1"
    assert [line["request_id"] for line in logs][:2] == [answer.headers["x-request-id"], "mine-1"]
    assert logs[2]["request_id"].isalnum()
    text = json.dumps(logs)
    assert world.north.token not in text
    for secret in ("s3cret", "patient", "Bearer"):
        assert secret not in text
    assert logs[0]["route"] == "/v1/models/{party}/{name}/revisions"
    assert logs[0]["status"] == 201


def test_an_unexpected_error_tells_nothing_but_its_request_id(world, monkeypatch):
    def broken(*_args, **_options):
        raise RuntimeError("patient 7 is in the message")

    monkeypatch.setattr("suture_service.models.service.get_model", broken)
    with capture_logs() as logs:
        answer = world.north.get("/v1/models/north/digits")
    assert [line["event"] for line in logs] == ["failed", "request"]
    assert refusal(answer, 500)["code"] == "internal"
    assert "patient" not in answer.text
    assert answer.headers["x-request-id"]
    assert world.north.get("/v1/whoami").status_code == 200


def test_the_log_of_an_error_names_frames_without_its_text():
    code = """
import structlog
from suture_contract.console.logs import configure_logging
configure_logging("info", "suture_service", "uvicorn")
import logging
try:
    raise ValueError("patient 7")
except ValueError:
    structlog.get_logger("x").exception("failed")
    logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["error"] for line in lines] == ["ValueError", "ValueError"]
    assert all(line["frames"] for line in lines)
    assert "patient" not in done.stderr


def test_a_database_that_fails_is_said_without_its_text(world, monkeypatch):
    def broken(*_args, **_options):
        raise OperationalError("SELECT 'patient 7'", {}, Exception("host=db password=x"))

    monkeypatch.setattr("suture_service.models.service.get_model", broken)
    answer = world.north.get("/v1/models/north/digits")
    assert refusal(answer, 503)["code"] == "hub.busy"
    assert answer.headers["retry-after"] == "1"
    for secret in ("patient", "password"):
        assert secret not in answer.text


def test_bodies_that_are_no_files_are_limited(start):
    world = start(max_request_bytes=1000)
    body = {"models": [], "dataset": "x" * 2000}
    assert refusal(world.north.post("/v1/jobs", body), 413)["code"] == "request.too_large"

    def chunks():
        for _ in range(10):
            yield b"[" + bytes(200)

    answer = world.north("POST", "/v1/jobs", content=chunks(), headers={"Content-Type": "application/json"})
    assert refusal(answer, 413)["code"] == "request.too_large"


def test_values_that_no_database_holds(world):
    for path in (
        "/v1/models/north/a%00b",
        "/v1/models?search=%00",
        "/v1/models?party=%00",
        "/v1/jobs/job_%00",
        "/v1/models/north/digits/revisions?cursor=" + encode(2**63),
        "/v1/parties?cursor=" + encode("a\0b"),
        "/v1/jobs/x/events?after=" + "9" * 20,
    ):
        assert world.north.get(path).status_code in (200, 404, 422), path
    body = {"fence": 2**40}
    assert refusal(world.sites["north"].post("/v1/tasks/x/heartbeat", body), 422)["where"] == "fence"
    answer = world.north.publish("north/digits", metadata=world.metadata(description="a\0b"))
    assert answer.status_code in (201, 422)
    text = b'{"models": [{"repo": "a/b"}, {"repo": "a/c"}], "dataset": "d", "options": {"x": "\\ud800"}}'
    answer = world.north("POST", "/v1/jobs", content=text, headers={"Content-Type": "application/json"})
    assert refusal(answer, 422)["where"] == "options"


def test_unknown_addresses_and_methods(world):
    assert refusal(world.client.get("/v2/models/a/b"), 404)["code"] == "not_found"
    assert refusal(world.client.delete("/v1/models"), 405)["code"] == "request.method"


def test_the_description_of_the_api_is_complete(world):
    document = world.client.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    tags = {tag["name"] for tag in document["tags"]}
    ids = set()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            name = f"{method} {path}"
            assert operation["summary"], name
            assert len(operation["description"]) > 15, name
            assert set(operation["tags"]) <= tags, name
            assert operation["operationId"] not in ids, name
            ids.add(operation["operationId"])
            if path.startswith("/v1"):
                assert operation["security"] == [{"HTTPBearer": []}], name
                refused = operation["responses"]["401"]["content"]["application/json"]["schema"]
                assert refused == {"$ref": "#/components/schemas/ErrorAnswer"}, name
                if "{" in path and path.split("{")[0] not in ("/v1/models/", "/v1/parties/"):
                    assert "404" in operation["responses"], name
    upload = document["paths"]["/v1/models/{party}/{name}/revisions"]["put"]["requestBody"]
    assert upload["content"]["multipart/form-data"]["schema"]["required"] == ["model", "metadata"]
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("description") or "enum" in schema or name.startswith("Page_"), name


def test_the_service_never_imports_torch():
    code = """
import sys
sys.modules["torch"] = None  # an import of it would fail
from suture_service.main import create_app
from suture_service.operate import check_migrated, migrate
import suture_service.jobs.lifecycle
assert "alembic" not in sys.modules, "a hub that serves starts sooner without it"
found = {name.split(".")[0] for name, module in sys.modules.items() if module is not None}
assert not found & {"torch", "numpy", "celery", "suture"}, found & {"torch", "numpy", "celery", "suture"}
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=200)


def test_settings_come_from_the_environment_and_hide_the_password(monkeypatch):
    monkeypatch.setenv("SUTURE_HUB_DATABASE_URL", "postgresql://hub:s3cret@db/hub")
    monkeypatch.setenv("SUTURE_HUB_LEASE_SECONDS", "30")
    settings = Settings()
    assert settings.lease_seconds == 30
    assert "s3cret" in settings.database_url
    assert "s3cret" not in repr(settings)
    with pytest.raises(ValueError, match="max_attempts"):
        Settings(max_attempts=0)
    with pytest.raises(ValueError, match="leese"):
        Settings(leese_seconds=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_full_disk_under_the_database_is_told_as_that(world):
    engine = world.hub.database.engine
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()

    def bound(connection, _record):
        connection.execute(f"PRAGMA max_page_count={pages}")

    event.listen(engine, "connect", bound)
    try:
        engine.dispose()
        answers = (world.operator.post("/v1/parties", {"name": f"{index}{'x' * 90}"}) for index in range(100))
        refused = next(answer for answer in answers if answer.status_code != 201)
        assert refusal(refused, 507)["code"] == "hub.full"
        assert world.north.get("/v1/whoami").status_code == 200
    finally:
        event.remove(engine, "connect", bound)
        engine.dispose()


def test_a_full_disk_under_postgresql_is_told_as_that():
    error = OperationalError("", {}, psycopg.errors.DiskFull("could not extend file: No space left on device"))
    assert (of_database(error).code, of_database(error).status) == ("hub.full", 507)

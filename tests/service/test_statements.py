"""What a request costs the database: as many statements with many rows as with few, each by an index."""

from __future__ import annotations

import re
from contextlib import contextmanager

import pytest
from sqlalchemy import event, insert

from suture_service.database import Base
from suture_service.models.search import search_text
from suture_service.tables import Model

FEW, MANY = 3, 9
TABLES = {table.name for table in Base.metadata.sorted_tables}
V1, HF = "/v1/models/north/m000", "/api/models/north/m000"
#: Read by the owner at tables of both sizes; the rooms of both protocols.
READS = (
    "/v1/whoami",
    "/v1/parties?limit=200",
    "/v1/parties/north/tokens?limit=200",
    "/v1/parties/north/keys?limit=200",
    "/v1/models?limit=200",
    "/v1/models?limit=200&search=m0&label=0&modality=CT&min_n=1",
    "/v1/models?limit=200&sort=name",
    "/v1/models?limit=200&sort=newest&party=north",
    V1,
    f"{V1}/revisions?limit=200",
    f"{V1}/revisions/latest",
    f"{V1}/revisions/latest/files/suture.json",
    "/v1/access?limit=200",
    "/v1/jobs?limit=200",
    "/v1/jobs/{job}",
    "/v1/jobs/{job}/events",
    "/v1/audit?limit=200",
    "/api/models?limit=200",
    "/api/models?full=true&limit=100",
    "/api/models?search=m0&author=north&filter=license:apache-2.0",
    HF,
    f"{HF}?blobs=true",
    f"{HF}/tree/main?recursive=true&expand=true",
    f"{HF}/commits/main",
    f"{HF}/refs",
    "/north/m000/resolve/main/suture.json",
)
#: So many statements at most, the token's own included; a list has some more than the look at one thing.
MOST = 12


@contextmanager
def statements(world):
    """The statements that the hub sends meanwhile, with their values."""
    sent = []

    def note(_connection, _cursor, statement, parameters, _context, _many):
        if not statement.startswith(("BEGIN", "COMMIT")):
            sent.append((statement, parameters))

    engine = world.hub.database.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def grow(world, count, *, start=0):
    """As many of everything as `count`: models, revisions, branches, jobs, tasks, tokens, keys, parties, requests."""
    owner = world.north
    for index in range(start, count):
        content = world.metadata(training_data={"n": 9 + index})
        assert owner.publish(f"north/m{index:03}", metadata=content, card=b"---\nlicense: apache-2.0\n---\n").is_success
        changed = world.metadata(description=f"the {index}th")
        assert owner.publish("north/m000", metadata=changed).is_success
        assert owner.post(f"{HF}/branch/b{index}").is_success
        with world.hub.database.writing() as session:
            world._add(session, f"party{index}", "requester")
        assert world.actor("north", "reader").get("/v1/whoami").is_success
        models = [{"repo": f"{party}/digits"} for party in ("north", "south")]
        answer = owner.post("/v1/jobs", {"models": models, "dataset": "d", "evaluate_at": ["south"]})
        assert answer.status_code == 201, answer.text


@pytest.fixture
def grown(start):
    world = start(max_party_jobs=10**6, requests_per_minute=10**6)
    job = world.ask().json()["id"]
    world.north = world.actor("north", "admin", "publisher", "requester", "steward", "auditor")
    grow(world, FEW)
    return world, job


def counts(world, job):
    found = {}
    for path in READS:
        world.north.get("/v1/whoami")  # notes when the token was used last, once a minute
        with statements(world) as sent:
            answer = world.north.get(path.format(job=job))
        assert answer.status_code == 200, (path, answer.text)
        found[path] = len(sent)
    return found


def test_no_request_needs_more_statements_where_there_is_more(grown):
    world, job = grown
    few = counts(world, job)
    lease = leasing(world)
    grow(world, MANY, start=FEW)
    assert counts(world, job) == few
    assert leasing(world) == lease
    assert max(few.values()) <= MOST, few


def leasing(world):
    """The statements of a lease and of the calls that follow it."""
    site, found = world.sites["north"], {}
    site.lease()
    with statements(world) as sent:
        task = site.lease()
    found["lease"] = len(sent)
    for what, body in (
        ("heartbeat", {}),
        ("progress", {"step": "x", "done": 1, "total": 2}),
        ("fail", {"code": "a.b"}),
    ):
        with statements(world) as sent:
            assert site.tell(task, what, **body).status_code == 200
        found[what] = len(sent)
    return found


def test_no_statement_reads_a_whole_table(grown):
    """As the database explains what it would do: SQLite takes tables for large of which it knows nothing, and
    PostgreSQL is told to avoid reading whole ones.
    """
    world, job = grown
    scans = {}
    for path in READS:
        with statements(world) as sent:
            world.north.get(path.format(job=job))
        if found := [step for statement in sent for step in scanned(world, *statement)]:
            scans[path] = found
    with statements(world) as sent:
        leasing(world)
    with statements(world) as swept:
        world.later(120)
    if found := [step for statement in sent + swept for step in scanned(world, *statement)]:
        scans["lease"] = found
    assert scans == {}


def scanned(world, statement, parameters):
    """The steps of a statement that read a table from its beginning to its end."""
    if not statement.lstrip().startswith(("SELECT", "WITH", "UPDATE", "DELETE")):
        return []
    with world.hub.database.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            steps = [row.detail for row in plan]
            whole = [step for step in steps if re.match(r"SCAN \w+$", step) and step.split()[1] in TABLES]
        else:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
            steps = [row[0] for row in plan]
            whole = [step for step in steps if re.search(r"Seq Scan on (\w+)", step)]
        return [(step, statement) for step in whole]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_newest_jobs_are_looked_up(world):
    """Not one by one among all there are: a page of jobs is asked for with every first page."""
    assert world.ask().status_code == 201
    with statements(world) as sent:
        assert world.north.get("/v1/jobs?limit=1").status_code == 200
    with world.hub.database.engine.connect() as connection:
        for statement, parameters in sent:
            if statement.lstrip().startswith("SELECT"):
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                assert not [row.detail for row in plan if row.detail.startswith("SCAN jobs")], statement


def test_a_rare_word_is_looked_up(world):
    """PostgreSQL goes by an index to the models that have it; SQLite reads on until the page is full."""
    rows = [
        {
            "party_id": 2,
            "name": f"n{index}",
            "visibility": "all",
            "task": "classification",
            "description": f"Lesions {index}",
            "search_text": search_text(f"operators/n{index}", f"Lesions {index}"),
            "created_at": world.now(),
            "updated_at": world.now(),
        }
        for index in range(3000)
    ]
    assert world.north.publish("north/m000", metadata=world.metadata(description="A  Hepato\ncyte")).is_success
    with world.hub.database.writing() as session:
        session.execute(insert(Model), rows)
    if world.hub.database.engine.dialect.name == "postgresql":
        with world.hub.database.engine.begin() as connection:  # what it learns is part of the transaction
            connection.exec_driver_sql("ANALYZE")
    for path in ("/v1/models", "/v1/models?sort=newest", "/api/models"):
        with statements(world) as sent:
            answer = world.north.get(path, params={"search": "hepato Cyte"})
        found = answer.json()
        assert [row["id"] for row in (found if path.startswith("/api") else found["items"])] == ["north/m000"], path
        with world.hub.database.engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                asked = next(entry for entry in sent if "suture_trigrams" in entry[0])
                plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {asked[0]}", asked[1]))
                assert "ix_models_search" in plan, plan

"""A task that waits for a person at its site: its lease lasts, its requester sees why, a cancelled job is heard of."""

from __future__ import annotations

import pytest


def shown(world, job):
    return world.job(job)["tasks"][0]


@pytest.mark.parametrize("waits_for", ["approval", "release"])
def test_a_task_waits_for_a_week(world, leased, waits_for):
    job, task = leased
    north = world.sites["north"]
    assert north.tell(task, "wait", waits_for=waits_for).json()["cancel"] is False
    world.later(6 * 86400)
    found = shown(world, job)
    assert (found["state"], found["attempt"]) == ("leased", 1)
    assert found["progress"]["step"] == f"waiting for {waits_for}"
    assert north.tell(task, "wait", waits_for=waits_for).status_code == 200
    world.later(6 * 86400)
    assert shown(world, job)["attempt"] == 1
    events = list(world.north.get(f"/v1/jobs/{job['id']}/events").json()["items"])
    assert len([event for event in events if event["kind"] == "progress"]) == 1, "it is told once"


def test_a_site_that_is_gone_for_longer_loses_the_task(world, leased):
    job, task = leased
    world.sites["north"].tell(task, "wait", waits_for="approval")
    world.later(7 * 86400 + 1)
    assert (shown(world, job)["state"], shown(world, job)["attempt"]) == ("open", 2)
    assert world.sites["north"].tell(task, "wait", waits_for="approval").json()["error"]["code"] == "task.fenced"


def test_work_that_goes_on_has_an_ordinary_lease(world, leased):
    job, task = leased
    world.sites["north"].tell(task, "wait", waits_for="approval")
    world.sites["north"].tell(task, "heartbeat")
    world.later(61)
    assert shown(world, job)["attempt"] == 2


def test_a_waiting_site_hears_of_a_cancelled_job(world, leased):
    job, task = leased
    north = world.sites["north"]
    north.tell(task, "wait", waits_for="approval")
    assert world.north.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
    assert north.tell(task, "wait", waits_for="approval").json()["cancel"] is True


def test_only_known_reasons_and_one_s_own_tasks(world, leased):
    _, task = leased
    assert world.sites["north"].tell(task, "wait", waits_for="PATIENT-0042").status_code == 422
    assert world.sites["south"].tell(task, "wait", waits_for="approval").status_code == 404

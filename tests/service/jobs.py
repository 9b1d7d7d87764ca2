"""What tests of jobs ask of an answer and of a job's events."""

from __future__ import annotations


def refusal(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def history(world, job, task=None):
    """The changes of a job, or of one of its tasks: from, to, by whom and why."""
    events = world.north.get(f"/v1/jobs/{job['id']}/events").json()["items"]
    wanted = [event for event in events if event["kind"] in ("job", "task") and event["task"] == task]
    return [tuple(event["data"].get(key) for key in ("from", "state", "by", "reason")) for event in wanted]


def retry(world, job, actor=None):
    return (actor or world.north).post(f"/v1/jobs/{job['id']}/retry")

"""What a site does, in Prometheus' format, for the machine that the agent runs on alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from suture_contract.errors import SutureError
from suture_worker.config import SiteConfig
from suture_worker.status import SiteStatus, site_status

_ADDRESS = "127.0.0.1"


class StatusCollector(Collector):
    """Looks at the site whenever it is asked; of tasks it tells kinds and counts, nothing of parties or datasets."""

    def __init__(self, config: SiteConfig) -> None:
        self._config = config

    def describe(self) -> list[GaugeMetricFamily]:
        """Return nothing: a registry would look at the site to learn the names."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield each number."""
        status = site_status(self._config)
        for name, (text, value) in _numbers(status).items():
            yield GaugeMetricFamily(f"suture_site_{name}", text, value=value)
        tasks = GaugeMetricFamily(
            "suture_site_tasks", "Tasks that are here, by kind and state", labels=["kind", "state"]
        )
        for (kind, state), count in sorted(Counter((task.kind, task.state) for task in status.tasks).items()):
            tasks.add_metric([kind, state], count)
        yield tasks


def _numbers(status: SiteStatus) -> dict[str, tuple[str, float]]:
    contact = status.agent.last_contact
    left = [task.seconds_left for task in status.tasks if task.seconds_left is not None]
    return {
        "working": ("Whether it can do what it is asked", float(status.working)),
        "rules_in_order": ("Whether site.toml is in order; else nothing is leased", float(not status.agent.problem)),
        "last_contact_timestamp_seconds": (
            "When the hub last answered; 0 for never",
            contact.timestamp() if contact else 0.0,
        ),
        "queue_up": ("Whether the queue server answers", float(status.queue.answers)),
        "queue_messages": ("Messages that no worker has taken yet", float(status.queue.waiting or 0)),
        "workers": ("Workers that run, on all machines", float(len(status.workers))),
        "places": ("Tasks that they do at once", float(sum(worker.places for worker in status.workers))),
        "step_seconds_left": ("How long the longest of the present steps still takes", max(left, default=0.0)),
        "approvals_waiting": ("Requests that wait for a person", float(status.approvals)),
        "releases_waiting": ("Results that wait for a person", float(status.releases)),
        "state_free_bytes": ("Room on the disk of the state", float(status.free_bytes)),
        "state_total_bytes": ("Size of the disk of the state", float(status.total_bytes)),
    }


@contextmanager
def serving(config: SiteConfig) -> Iterator[None]:
    """Answer Prometheus on the loopback address within the block, where `[site] metrics_port` is set.

    Raises `SutureError` `site.metrics` when the port is taken.
    """
    port = config.site.metrics_port
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(StatusCollector(config))
    try:
        server, thread = start_http_server(port, addr=_ADDRESS, registry=registry)
    except OSError as error:
        raise SutureError(
            "site.metrics",
            f"nothing can listen on {_ADDRESS}:{port}: {error.strerror}",
            where="[site] metrics_port",
            hint="name another port, or stop what has it",
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

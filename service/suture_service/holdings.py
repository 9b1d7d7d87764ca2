"""What a hub holds and who waits, as Prometheus reads it: asked of database and store, at most once a minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import DBAPIError

from suture_service.hub import HubContext
from suture_service.models import quota
from suture_service.models.repository import bytes_of_all
from suture_service.storage.places import Room
from suture_service.tasks.repository import waiting

log = structlog.get_logger(__name__)
#: So long the last answer is given again, in seconds: what parties hold is added up anew each time.
AGE = 60.0


@dataclass(frozen=True)
class Holdings:
    """What there is: bytes in all, used and allowed by party, open tasks and the age of the oldest by kind, room."""

    stored: int
    parties: dict[str, tuple[int, int]]
    waiting: dict[str, tuple[int, float]]
    room: Room | None


class HoldingsCollector(Collector):
    """Asks when Prometheus does. While the database does not answer, nothing is said but this."""

    def __init__(self, hub: HubContext) -> None:
        self._hub = hub
        self._turn = threading.Lock()
        self._last: Holdings | None = None
        self._looked = -AGE

    def collect(self) -> Iterator[Metric]:
        """Yield what there is."""
        holdings = self._look()
        yield _gauge("suture_hub_database_up", "Whether the database answers", float(holdings is not None))
        receiving = self._hub.store.receiving
        yield _gauge("suture_hub_uploads_open", "Uploads that this process receives right now", receiving)
        if holdings is None:
            return
        yield _gauge("suture_hub_store_bytes", "Bytes of all content; equal content counts once", holdings.stored)
        if holdings.room is not None:
            yield _gauge("suture_hub_store_free_bytes", "Bytes that the store's disk has left", holdings.room.free)
            yield _gauge("suture_hub_store_total_bytes", "Bytes of the store's disk", holdings.room.total)
        used = GaugeMetricFamily("suture_hub_party_bytes", "Bytes that count against a party's quota", labels=["party"])
        quotas = GaugeMetricFamily("suture_hub_party_quota_bytes", "Bytes that a party may have", labels=["party"])
        for party, (held, allowed) in holdings.parties.items():
            used.add_metric([party], held)
            quotas.add_metric([party], allowed)
        tasks = GaugeMetricFamily("suture_hub_tasks_waiting", "Tasks that no site has leased", labels=["kind"])
        ages = GaugeMetricFamily("suture_hub_oldest_task_seconds", "How long the oldest of them waits", labels=["kind"])
        for kind, (count, age) in holdings.waiting.items():
            tasks.add_metric([kind], count)
            ages.add_metric([kind], age)
        yield from (used, quotas, tasks, ages)

    def _look(self) -> Holdings | None:
        with self._turn:
            if time.monotonic() - self._looked >= AGE:
                self._looked = time.monotonic()
                self._last = None
                try:
                    self._last = _holdings(self._hub)
                except (DBAPIError, OSError) as error:
                    log.warning("holdings are not known", error=type(error).__name__)
            return self._last


def _holdings(hub: HubContext) -> Holdings:
    with hub.database.reading() as session:
        return Holdings(
            stored=bytes_of_all(session),
            parties=quota.usage(session, hub.settings.max_party_bytes),
            waiting=waiting(session, hub.now()),
            room=hub.store.room(),
        )


def _gauge(name: str, what: str, value: float) -> Metric:
    gauge = GaugeMetricFamily(name, what)
    gauge.add_metric([], value)
    return gauge

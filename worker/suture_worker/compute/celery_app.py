"""The site's Celery app: tasks whose messages hold nothing but an id and the name and number of a share, in JSON.

The queue may lose or repeat messages without harm: the agent rings again for work that nobody does, and the worker
looks into the task's folder before it does anything.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

from billiard import current_process
from celery import Celery, chord, group
from celery.signals import setup_logging, worker_process_init, worker_shutting_down

from suture_worker import broker
from suture_worker.broker import QUEUE, broker_url
from suture_worker.compute import confine
from suture_worker.compute.shards import ShareFolder
from suture_worker.config import SiteConfig
from suture_worker.device import resolve_device, shares
from suture_worker.shared import shared_by

TASK, SHARE = "suture.work", "suture.share"
#: Celery's own limits only matter if the worker's watch over the child fails.
_SOFT_SLACK, _HARD_SLACK = 60, 120


def make_app(config: SiteConfig) -> Celery:
    """Return the site's Celery app; nothing is connected yet."""
    app = Celery("suture", broker=broker_url(config), backend=broker_url(config), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        task_ignore_result=True,
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_soft_time_limit=config.limits.seconds + _SOFT_SLACK,
        task_time_limit=config.limits.seconds + _HARD_SLACK,
        # A message is fetched when a process is free for it. To count those that are not acknowledged would come to the
        # same, but for one whose task ends while Redis is away: it never is, and the worker would wait for ever.
        worker_prefetch_multiplier=0,
        worker_disable_prefetch=True,
        worker_enable_remote_control=config.site.inspect,
        worker_send_task_events=config.site.inspect,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=5,
        broker_use_ssl=broker.tls(config) or None,
        redis_backend_use_ssl=broker.tls(config) or None,
        redis_socket_timeout=5,
        redis_socket_connect_timeout=5,
        broker_transport_options={
            "visibility_timeout": config.limits.seconds + 2 * _HARD_SLACK,
            "socket_connect_timeout": 5,
        },
        enable_utc=True,
    )

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def suture_work(task_id: str) -> str:
        from suture_worker.compute.work import work

        return work(config, task_id, lambda shares: _share_out(app, shares))

    @app.task(name=SHARE, ignore_result=False)  # type: ignore[untyped-decorator]
    def suture_share(task_id: str, step: str, index: int) -> str:
        from suture_worker.compute.work import work_share

        return work_share(config, task_id, step, index)

    return app


def _share_out(app: Celery, shares: Sequence[ShareFolder]) -> None:
    """Have the shares of a step done, and ring for their task when all have ended, however they did."""
    each = group(app.signature(SHARE, args=[share.id, share.step, share.index], immutable=True) for share in shares)
    chord(each, app.signature(TASK, args=[shares[0].id], immutable=True), app=app).apply_async()


def ring(app: Celery, task_id: str) -> None:
    """Tell the worker that there is a task; raises `kombu.exceptions.OperationalError` when Redis is away."""
    policy: dict[str, Any] = {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.5}
    app.send_task(TASK, args=[task_id], ignore_result=True, retry=True, retry_policy=policy)


def serve(config: SiteConfig, drain: float = 0.0) -> None:
    """Run the worker in this process until it is told to stop: one process for each CUDA device, or a single one.

    Told to stop, it goes on for at most `drain` seconds with what is under way.
    """
    app = make_app(config)
    if config.task_store is not None:
        confine.hide_memory()  # which holds the store's credentials
    devices = shares(config.site.device)

    def take_device(**_options: Any) -> None:
        # Billiard numbers the processes of a pool, and gives a new one the number of the one it replaces.
        device = devices[current_process().index]
        if device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = device

    def get_ready(**_options: Any) -> None:
        from suture_worker.compute.work import server

        server.start(config.state)

    setup_logging.connect(_keep_logging, weak=False)
    worker_process_init.connect(_end_with_worker, weak=False)
    worker_process_init.connect(take_device, weak=False)
    worker_process_init.connect(get_ready, weak=False)
    options = ["--pool=prefork", f"--concurrency={len(devices)}", f"--queues={QUEUE}"]
    options += [f"--hostname=suture-{os.getpid()}@%h", "--loglevel=INFO", "--without-gossip", "--without-mingle"]
    if not config.site.inspect:
        options.append("--without-heartbeat")
    with shared_by(config).offering(len(devices), [_device(config, device) for device in devices]) as withdraw:
        stopping = _stopping(drain, withdraw)
        worker_shutting_down.connect(stopping, weak=False)
        app.worker_main(["worker", *options])


def _device(config: SiteConfig, visible: str | None) -> str:
    """Return what people call the device of a process which sees that of CUDA's devices."""
    return f"cuda:{visible}" if visible is not None else resolve_device(config.site.device)


def _stopping(drain: float, withdraw: Callable[[], None]) -> Callable[..., None]:
    """Return what a worker that is told to stop does: it offers nothing more, and ends what takes longer than that."""
    late = threading.Timer(drain, os.kill, (os.getpid(), signal.SIGQUIT))
    late.daemon = True

    def stopping(**_facts: Any) -> None:
        withdraw()
        if drain and late.ident is None:
            late.start()

    return stopping


def _keep_logging(**_options: Any) -> None:
    """Leave logging as `run` has set it up."""


def _end_with_worker(**_options: Any) -> None:
    confine.die_with_parent(os.getppid())

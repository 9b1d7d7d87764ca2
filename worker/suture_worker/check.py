"""Preflight: can this site work, and if not, what is there to do? `suture site check`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

import httpx

from suture.http import AuthError, Connection, HubError
from suture_stitching.data import SPLITS, DatasetSpec, open_dataset
from suture_stitching.errors import SutureError
from suture_worker import broker, confine, egress
from suture_worker.config import SiteConfig, prepare_state, read_token
from suture_worker.device import cuda_devices, memory_bytes, physical_memory, processors, resolve_device

MAX_CLOCK_SKEW = 30.0
_GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One thing that was checked; `hint` says what to do about it."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    hint: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the site can work with it."""
        return self.status != "fail"

    def __str__(self) -> str:
        line = f"{self.status:4}  {self.name}: {self.detail}"
        return f"{line}\n      {self.hint}" if self.hint else line


def check_site(config: SiteConfig) -> list[Check]:
    """Check everything a site needs, and go on after each problem. Opens the datasets; shows no small count."""
    steps: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("state", lambda: _state(config)),
        ("hub", lambda: _hub(config)),
        ("redis", lambda: _redis(config)),
        ("device", lambda: _device(config)),
        ("confinement", _confinement),
        *((f"dataset {name}", lambda name=name: _dataset(config, name)) for name in config.datasets),
        ("policy", lambda: _policy(config)),
    ]
    return [check for name, step in steps for check in _guarded(name, step)]


def _guarded(name: str, step: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from step()
    except SutureError as error:
        where = f"{error.where}: " if error.where else ""
        yield Check(name, "fail", f"{where}{error.message}", error.hint)
    except OSError as error:
        yield Check(name, "fail", f"{error.strerror or type(error).__name__}: {error.filename or ''}")


def _state(config: SiteConfig) -> Iterator[Check]:
    prepare_state(config)
    entries = egress.verify(config.state / "outbox" / "egress.jsonl")
    yield Check("state", "ok", f"{config.state}; {len(entries)} messages left this site, their log is unbroken")


def _hub(config: SiteConfig) -> Iterator[Check]:
    if config.hub.url.startswith("http://") and httpx.URL(config.hub.url).host not in ("127.0.0.1", "localhost", "::1"):
        yield Check("hub", "warn", "the token travels unencrypted", "use the hub's https:// address")
    yield _clock(config.hub.url)
    yield from _guarded("token", lambda: _token(config))


def _token(config: SiteConfig) -> Iterator[Check]:
    token = read_token(config)
    try:
        with Connection(config.hub.url, token, attempts=2, timeout=10) as hub:
            who = hub.get("/v1/whoami")
    except AuthError as error:
        yield Check("token", "fail", error.message, "ask the hub's operator for a new token of this site")
        return
    except HubError as error:
        yield Check("token", "fail", error.message, error.hint)
        return
    if who.get("kind") != "site":
        yield Check("token", "fail", "this is not the token of a site", "use what `suture hub site add` printed")
        return
    yield Check("token", "ok", f"site {who.get('site')} of party {who.get('party')}")


def _clock(url: str) -> Check:
    """Ask the hub, without the token, whether it is there and what time it has."""
    before = time.time()
    try:
        answer = httpx.get(f"{url}/healthz", timeout=10, trust_env=not url.startswith(("http://127.", "http://[::1]")))
    except httpx.HTTPError as error:
        return Check(
            "hub", "fail", f"{url} does not answer ({type(error).__name__})", "check [hub] url and the firewall"
        )
    after = time.time()
    if not answer.is_success:
        return Check("hub", "fail", f"{url} answers {answer.status_code}", "check [hub] url: is this a Suture hub?")
    try:
        theirs = parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
    except ValueError:
        return Check("hub", "ok", f"{url} answers in {1000 * (after - before):.0f} ms")
    skew = theirs - (before + after) / 2
    if abs(skew) > MAX_CLOCK_SKEW:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Check(
            "hub", "warn", f"its clock differs from ours ({now}) by {skew:.0f} s", "synchronise this clock (NTP)"
        )
    return Check("hub", "ok", f"{url} answers in {1000 * (after - before):.0f} ms, clocks agree")


def _redis(config: SiteConfig) -> Iterator[Check]:
    if config.broker is None:
        broker.redis_command(config)
        yield Check("redis", "ok", f"the site starts its own on {broker.socket_path(config)}")
    else:
        yield Check("redis", "ok", f"version {broker.check_answers(config)}")


def _device(config: SiteConfig) -> Iterator[Check]:
    device = resolve_device(config.site.device)
    names = cuda_devices()
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= len(names):
        yield Check("device", "fail", f"there is no {device}", 'give [site] device = "auto"')
        return
    limit = memory_bytes(config.limits.memory_gib) / _GIB
    memory = f"{physical_memory() / _GIB:.0f} GiB of memory, {limit:.0f} GiB for a task"
    shown = f" ({names[int(device.partition(':')[2] or 0)]})" if device.startswith("cuda") else ""
    yield Check("device", "ok", f"{device}{shown}, {processors()} processors, {memory}")


def _confinement() -> Iterator[Check]:
    if confine.files_supported():
        yield Check("confinement", "ok", "models run without network and see no files but the dataset and their task's")
    else:
        yield Check(
            "confinement",
            "warn",
            "this kernel cannot keep a model's process from reading other files of this user",
            "use Linux 5.13 or newer with Landlock, or run agent and worker as different users",
        )


def _dataset(config: SiteConfig, name: str) -> Iterator[Check]:
    spec: DatasetSpec = config.datasets[name]
    dataset = open_dataset(spec)
    minimum = config.policy.min_samples
    samples = {split: dataset.n(split) for split in SPLITS}
    shown = ", ".join(f"{split} {n if n >= minimum else f'fewer than {minimum}'}" for split, n in samples.items())
    labels = f"{len(dataset.labels)} labels, " if dataset.labels else ""
    size = " x ".join(map(str, dataset.input_shape))
    small = [split for split, n in samples.items() if n < minimum]
    detail = f"{spec.task}, {labels}input {size}; {shown}"
    if dataset.skipped:
        detail += f"; {len(dataset.skipped)} files that cannot be read are left out, such as {dataset.skipped[0]}"
    if (link := _leads_out(spec.path)) is not None:
        hint = "models run confined to the dataset's folder and cannot follow it: copy or bind-mount what it points to"
        yield Check(f"dataset {name}", "fail", f"{link} is a link to somewhere else", hint)
    if small:
        hint = f"nothing derived from a split with fewer than {minimum} samples leaves this site"
        yield Check(f"dataset {name}", "warn", detail, hint)
    else:
        yield Check(f"dataset {name}", "ok", detail)


def _leads_out(folder: Path) -> Path | None:
    """Return the first link in the dataset's folder whose target is outside it, if there is one."""
    root = folder.resolve()
    found = (Path(place, name) for place, folders, names in os.walk(root) for name in (*folders, *names))
    return next((path for path in found if path.is_symlink() and not path.resolve().is_relative_to(root)), None)


def _policy(config: SiteConfig) -> Iterator[Check]:
    rules = [
        f"{' and '.join(rule.parties)} may {' and '.join(rule.actions)} with {', '.join(rule.datasets)}"
        for rule in config.policy.allow
    ]
    if not rules:
        yield Check("policy", "warn", "no rule: this site declines everything", "add [[policy.allow]] to site.toml")
        return
    yield Check("policy", "ok", f"{'; '.join(rules)}; at least {config.policy.min_samples} samples per split")

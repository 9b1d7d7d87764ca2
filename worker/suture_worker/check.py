"""Preflight: can this site work, and if not, what is there to do? `suture site check`."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

import httpx

from suture.errors import AuthError, HubError, error_of, unreachable
from suture.http import Connection
from suture.network import client, proxy_of
from suture.signing import read_key_file
from suture_contract.errors import SutureError
from suture_contract.naming import did_you_mean
from suture_stitching.data import SPLITS, Dataset, DatasetSpec, Split, open_dataset
from suture_stitching.data.look import look
from suture_worker import broker
from suture_worker.compute import confine
from suture_worker.config import Rule, SiteConfig, prepare_state, read_token
from suture_worker.device import cuda_devices, memory_bytes, physical_memory, processors, resolve_device
from suture_worker.egress import log as egress
from suture_worker.room import RULE, check_room, free_room
from suture_worker.rules.assurance import HOW, assurance, lacking
from suture_worker.rules.in_force import rules_in_force
from suture_worker.rules.inbox import Inbox
from suture_worker.rules.ledger import Ledger
from suture_worker.rules.policy import SPENT, budget_of

MAX_CLOCK_SKEW = 30.0
#: A certificate that ends sooner than this is worth a warning.
CERTIFICATE_DAYS = 14
_CLASSES_SHOWN = 12
#: Samples of a split that are read.
_LOOKED_AT = 256
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


def check_site(config: SiteConfig) -> list[Check]:
    """Check everything a site needs, and go on after each problem. Opens the datasets; shows no small count."""
    steps: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("state", lambda: _state(config)),
        ("hub", lambda: _hub(config)),
        ("redis", lambda: _redis(config)),
        *([("task store", lambda: _task_store(config))] if config.task_store is not None else []),
        ("device", lambda: _device(config)),
        ("confinement", _confinement),
        *((f"mount {name}", lambda name=name: _mount(config, name)) for name in config.datasets),
        *((f"dataset {name}", lambda name=name: _dataset(config, name)) for name in config.datasets),
        *((f"key {name}", lambda name=name: _key(config, name)) for name in config.keys),
        ("policy", lambda: _policy(config)),
    ]
    return [check for name, step in steps for check in _guarded(name, step)]


def check_dataset(config: SiteConfig, name: str) -> list[Check]:
    """Check one dataset by its name, as `check_site` does."""
    return list(_guarded(f"dataset {name}", lambda: _dataset(config, name)))


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
    check_room(config.state)
    entries = egress.verify(config.state / "outbox" / "egress.jsonl")
    yield Check("state", "ok", f"{config.state}; {len(entries)} messages left this site, their log is unbroken")
    yield Check("disk", "ok", f"{free_room(config.state) / _GIB:.1f} GiB are free; needed: {RULE}")


def _hub(config: SiteConfig) -> Iterator[Check]:
    if config.hub.url.startswith("http://") and httpx.URL(config.hub.url).host not in ("127.0.0.1", "localhost", "::1"):
        yield Check("hub", "warn", "the token travels unencrypted", "use the hub's https:// address")
    yield from _clock_and_certificate(config.hub.url)
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
    yield from _guarded("parties", lambda: _parties(config, token))


def _parties(config: SiteConfig, token: str) -> Iterator[Check]:
    """Name the parties of rules that the hub does not have: whoever was meant would be declined."""
    with Connection(config.hub.url, token, attempts=2, timeout=10) as hub:
        known = [str(party["name"]) for party in hub.pages("/v1/parties")]
    named = [name for rule in config.policy.allow for name in (*rule.parties, *(rule.members_from or ()))]
    for name in dict.fromkeys(named):
        if name not in known:
            detail = f"a rule names the party {name}, which the hub does not have"
            yield Check("parties", "warn", detail, did_you_mean(name, known))


def _clock_and_certificate(url: str) -> Iterator[Check]:
    """Ask the hub, without the token, whether it is there, what time it has and until when its certificate holds."""
    before = time.time()
    proxy = proxy_of(url)
    try:
        with client(url, timeout=10) as asking, asking.stream("GET", f"{url}/healthz") as answer:
            connection = answer.extensions["network_stream"].get_extra_info("ssl_object")
            certificate = connection.getpeercert() if connection is not None else None
            body = b"" if answer.is_success else answer.read()[: 2**16]
    except httpx.RequestError as error:
        problem = unreachable(url, error, proxy=proxy)
        name = "certificate" if problem.code.startswith("tls.") else "hub"
        yield Check(name, "fail", f"{url}: {problem.message}", problem.hint)
        return
    after = time.time()
    if not answer.is_success:
        refused = error_of(answer, body, proxy=proxy)
        yield Check("hub", "fail", f"{url}: {refused.message}", refused.hint or "check [hub] url: is it a Suture hub?")
        return
    yield Check("hub", "ok", f"{url} answers in {1000 * (after - before):.0f} ms")
    if certificate:
        yield _certificate(ssl.cert_time_to_seconds(str(certificate["notAfter"])) - after)
    yield _clock(answer.headers.get("Date", ""), (before + after) / 2)


def _certificate(seconds: float) -> Check:
    days = int(seconds // 86400)
    if days < CERTIFICATE_DAYS:
        return Check("certificate", "warn", f"it ends in {days} days", "tell the hub's operator to renew it")
    return Check("certificate", "ok", f"trusted, for {days} days more")


def _clock(theirs: str, ours: float) -> Check:
    try:
        skew = parsedate_to_datetime(theirs).timestamp() - ours
    except ValueError:
        return Check("clock", "warn", "the hub does not say what time it has", "check [hub] url: is this a Suture hub?")
    if abs(skew) > MAX_CLOCK_SKEW:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Check(
            "clock", "warn", f"the hub's differs from ours ({now}) by {skew:.0f} s", "synchronise this clock (NTP)"
        )
    return Check("clock", "ok", "agrees with the hub's")


def _redis(config: SiteConfig) -> Iterator[Check]:
    if config.broker is None:
        broker.redis_command(config)
        server = broker.find_server()
        if server.bundled:
            hint = "that one is for demo and tests: install valkey-server or redis-server from your distribution"
            yield Check("redis", "warn", f"the site starts the {server} that came with Suture", hint)
        else:
            yield Check("redis", "ok", f"the site starts {server.program}, {server}, on {broker.socket_path(config)}")
    else:
        yield Check("redis", "ok", broker.check_answers(config))


def _task_store(config: SiteConfig) -> Iterator[Check]:
    from suture_worker.task_store import TaskBucket

    assert config.task_store is not None
    if config.broker is None:
        detail = "[broker] is missing: no other machine reaches the queue that this site starts on a socket of its own"
        hint = 'name a Redis that all machines of the site reach: [broker] url = "rediss://…", the same on each'
        yield Check("task store", "warn", detail, hint)
    TaskBucket(config.task_store).check()
    where = f"{config.task_store.url} at {config.task_store.endpoint or 'Amazon'}"
    yield Check("task store", "ok", f"{where} can be written to, read and emptied")


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


def _mount(config: SiteConfig, name: str) -> Iterator[Check]:
    path = config.datasets[name].path
    if not path.exists():
        return  # said of the dataset
    if os.statvfs(path).f_flag & os.ST_RDONLY or not os.access(path, os.W_OK):
        yield Check(f"mount {name}", "ok", f"{path} is read-only")
    else:
        hint = "mount the data read-only, or give this account no right to write to them"
        yield Check(f"mount {name}", "warn", f"this account may change {path}", hint)


def _dataset(config: SiteConfig, name: str) -> Iterator[Check]:
    spec: DatasetSpec = config.datasets[name]
    dataset = open_dataset(spec)
    minimum = config.policy.min_samples
    patients = {split: dataset.patients(split) for split in SPLITS}
    shown = ", ".join(f"{split} {_samples(dataset, split, config)}" for split in SPLITS)
    labels = f"{len(dataset.labels)} labels, " if dataset.labels else ""
    size = " x ".join(map(str, dataset.input_shape))
    detail = f"{spec.task}, {labels}input {size}; {shown}"
    if dataset.skipped:
        detail += f"; {len(dataset.skipped)} files that cannot be read are left out, such as {dataset.skipped[0]}"
    seen = look(dataset, most=_LOOKED_AT)
    detail += f"; {seen.words()}"
    for doubt in seen.doubts:
        yield Check(f"dataset {name}", "warn", doubt, "suture data check --sheet shows samples; see the description")
    for note in seen.notes:
        yield Check(f"dataset {name}", "ok", note)
    if (link := _leads_out(spec.path)) is not None:
        hint = "models run confined to the dataset's folder and cannot follow it: copy or bind-mount what it points to"
        yield Check(f"dataset {name}", "fail", f"{link} is a link to somewhere else", hint)
    yield from _deltas(config, name, sum(patients.values()))
    if any(n < minimum for n in patients.values()):
        hint = f"nothing derived from a split with fewer than {minimum} patients leaves this site"
        yield Check(f"dataset {name}", "warn", detail, hint)
    else:
        yield Check(f"dataset {name}", "ok", detail)


def _deltas(config: SiteConfig, name: str, patients: int) -> Iterator[Check]:
    """Warn of noise that may tell all of somebody: with probability delta its promise does not hold."""
    for index, rule in enumerate(config.policy.allow):
        if name in rule.datasets and rule.delta is not None and rule.delta * patients >= 1:
            detail = f"policy.allow[{index}] has delta = {rule.delta:g}, not below one in its {patients} patients"
            yield Check(f"dataset {name}", "warn", detail, "write a delta well below that, such as 1e-5")


def _samples(dataset: Dataset, split: Split, config: SiteConfig) -> str:
    """Return how many samples a split has, and its classes; nothing of few patients, nor what would give them away."""
    n, minimum = dataset.n(split), config.policy.min_samples
    if dataset.patients(split) < minimum:
        return f"fewer than {minimum}"
    of = f" of {dataset.patients(split)} patients" if dataset.grouped else ""
    if dataset.task == "segmentation" or not dataset.labels:  # a mask is counted by reading it
        return f"{n}{of}"
    counts, floor = dataset.counts(split), config.policy.min_per_class
    small = [label for label, count in dataset.patients_with(split).items() if count < floor]
    if len(counts) > _CLASSES_SHOWN:
        return f"{n}{of} ({len(small)} classes of fewer than {floor})" if small else f"{n}{of}"
    hidden = dict.fromkeys(small, f"fewer than {floor}")
    if len(small) == 1 and dataset.task == "classification":
        # What is missing from the sum would be the small number: hide the next one, too.
        hidden[min(counts.keys() - hidden.keys(), key=lambda label: counts[label])] = "not shown"
    return f"{n}{of} ({', '.join(f'{label} {hidden.get(label, count)}' for label, count in counts.items())})"


def _leads_out(folder: Path) -> Path | None:
    """Return the first link in the dataset's folder whose target is outside it, if there is one."""
    root = folder.resolve()
    paths = (Path(place, name) for place, folders, names in os.walk(root) for name in (*folders, *names))
    return next((path for path in paths if path.is_symlink() and not path.resolve().is_relative_to(root)), None)


def _key(config: SiteConfig, name: str) -> Iterator[Check]:
    key = read_key_file(config.keys[name], name)
    yield Check(f"key {name}", "ok", f"{config.keys[name]}, fingerprint {key.fingerprint[:16]}…")


def _policy(config: SiteConfig) -> Iterator[Check]:
    yield from _in_force(config)
    for index, problem in lacking(config):
        yield Check(f"policy.allow[{index}]", "fail", problem, HOW)
    rules = [
        f"{' and '.join(rule.parties)} may {' and '.join(rule.actions)} with {', '.join(rule.datasets)}"
        f"{_limits(rule, config)}"
        for rule in config.policy.allow
        if assurance(rule, config) is not None
    ]
    if not config.policy.allow:
        yield Check("policy", "warn", "no rule: this site declines everything", "add [[policy.allow]] to site.toml")
        return
    Ledger(config.state / "ledger.jsonl").entries()
    Inbox(config.state / "inbox").standing()
    if rules:
        yield Check("policy", "ok", f"{'; '.join(rules)}; at least {config.policy.min_samples} patients per split")


def _in_force(config: SiteConfig) -> Iterator[Check]:
    """Say which site.toml the running site goes by, where it is not this one or cannot be gone by."""
    rules = rules_in_force(config.state)
    if rules is None:
        yield Check("rules", "ok", f"site.toml {config.version}; this site has not run yet")
    elif rules.problem is not None:
        detail = f"the site leases nothing and sends no result: {rules.problem}"
        yield Check("rules", "warn", detail, "mend site.toml; a running site looks again every few seconds")
    elif config.version is not None and rules.version.sha256 != config.version.sha256:
        detail = f"site.toml {config.version}; when the site last looked, it went by {rules.version}"
        yield Check("rules", "warn", detail, "a running site looks before each lease and each result")
    else:
        yield Check("rules", "ok", f"site.toml {config.version}, in force since {rules.since:%Y-%m-%d %H:%M:%S} UTC")


def _limits(rule: Rule, config: SiteConfig) -> str:
    limits = [str(assurance(rule, config))]
    budgets = {what: budget_of(rule, action) for action, what in SPENT.items() if action in rule.actions}
    limits += [f"{budget} {what} a month" for what, budget in budgets.items() if budget is not None]
    if rule.approval == "ask":
        limits.append("a person approves")
    if rule.release == "manual":
        limits.append("a person releases")
    return f" ({', '.join(limits)})" if limits else ""

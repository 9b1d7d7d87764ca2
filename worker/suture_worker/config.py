"""`site.toml`: which hub, which datasets, and who may do what with them.

Closed: an unknown key or a bad value refuses to start, naming file, field and what to do. Relative paths are relative
to the file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from suture_contract.documents import ClinicalMetric, Metric
from suture_contract.errors import SutureError
from suture_contract.files import can_lock, decoded, telling, trouble
from suture_contract.model.metadata import Name
from suture_contract.model.operators import ATEN
from suture_contract.naming import did_you_mean, problems_of, shown
from suture_contract.privacy import NoiseTerms
from suture_contract.strict import StrictNumbers
from suture_stitching.data.spec import DatasetSpec

GUIDE = "the fields are described in docs/site-operator.md"


def _check_url(url: str) -> str:
    from suture.http import check_url  # only here: who does a task has no need of the network's library

    try:
        return check_url(url)
    except SutureError as error:
        raise ValueError(f"{error.message}; {error.hint}") from None


def _check_broker(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "redis+socket") or not (parts.hostname or parts.path):
        raise ValueError("give it as redis+socket:///path/to/redis.sock or redis://host:6379/0")
    return url


def _check_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,2})?", device):
        raise ValueError('give "auto", "cpu" or "cuda:0"')
    return device


#: What `min_samples` is called in site.toml; older files have its old name.
_MIN_PATIENTS = AliasChoices("min_patients", "min_samples")


class _Closed(StrictNumbers, BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HubConfig(_Closed):
    """`[hub]`: where the hub is, and the file that holds this site's token.

    `tell_datasets`: whether the hub hears which datasets the site's own party may fit on, by their names, so that it
    refuses a job with another name at once.
    """

    url: Annotated[str, AfterValidator(_check_url)]
    token_file: Path = Path("token")
    tell_datasets: bool = False


class StateConfig(_Closed):
    """`[site]`: where the site keeps its state, what it computes on, and whose site it is.

    `party`: the site's own party. Its models need no signature: the hub's word is taken for which models are its.
    `inspect`: whether Celery's own tools may ask the workers and hear of their tasks: `celery inspect`, Flower.
    `metrics_port`: where on the loopback address the agent answers Prometheus.
    """

    state: Path = Path("state")
    device: Annotated[str, AfterValidator(_check_device)] = "auto"
    party: Name | None = None
    inspect: bool = False
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None


class BrokerConfig(_Closed):
    """`[broker]`: a Redis beside the site. Without it the site starts its own on a unix socket."""

    # A URL may hold a password: never shown.
    url: Annotated[str, AfterValidator(_check_broker), Field(repr=False)]
    #: For `rediss://`: the certificates of those who may have signed Redis's, in PEM; the machine's own by default.
    ca_file: Path | None = None


def _check_bucket(url: str) -> str:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("give it without credentials: they are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise ValueError("give it as s3://bucket/prefix, and the server's own address as endpoint")
    return url.rstrip("/")


def _check_endpoint(url: str) -> str:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("give it without credentials: they are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give it as https://host:port")
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError("patients' features would travel unencrypted: give it as https://host:port")
    return url.rstrip("/")


class TaskStoreConfig(_Closed):
    """`[task_store]`: a bucket for the files of tasks, for machines that share no folder; of this site alone.

    `endpoint`: the address of the S3 server, where it is not Amazon's.
    """

    url: Annotated[str, AfterValidator(_check_bucket)]
    endpoint: Annotated[str, AfterValidator(_check_endpoint)] | None = None


class TaskLimits(_Closed):
    """`[limits]`: what one task may take. Without a number: all of the machine's memory and processors."""

    seconds: Annotated[int, Field(ge=1, le=7 * 86400)] = 4 * 3600
    memory_gib: Annotated[float, Field(ge=1)] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    #: Work that would take one worker longer than so many seconds is divided among all that are free.
    divide_seconds: Annotated[float, Field(ge=0)] = 60.0


def _check_operator(name: str) -> str:
    if name not in ATEN:
        raise ValueError(f"no model may have the operator {shown(name)}; {did_you_mean(name, sorted(ATEN))}")
    return name


class Rule(_Closed, NoiseTerms):
    """`[[policy.allow]]`: these parties may do this with these datasets. What no rule allows is declined.

    A rule says whose models it trusts (`members_from`, `signed_by`) or what noise protects each patient (`epsilon`,
    `delta`: on all that is computed on patients, per job or contribution); one that says neither is not in force. Other
    limits that are left out allow whatever Suture does.
    """

    parties: Annotated[tuple[Name, ...], Field(min_length=1)]
    actions: Annotated[tuple[Literal["fit", "evaluate", "contribute"], ...], Field(min_length=1)]
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    metrics: Annotated[tuple[Metric | ClinicalMetric, ...], Field(min_length=1)] | None = None
    #: Parties whose models may be run.
    members_from: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    #: Keys of `[keys]`, by one of which each model must be signed.
    signed_by: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    #: The largest file of a model.
    max_model_mib: Annotated[float, Field(gt=0)] | None = None
    operators: Annotated[frozenset[Annotated[str, AfterValidator(_check_operator)]], Field(min_length=1)] | None = None
    #: For each party and dataset; without a number, `policy.BUDGET`.
    evaluations_per_month: Annotated[int, Field(ge=0)] | None = None
    #: Of fits with noise: each tells anew of the same patients. Exact ones are not counted.
    fits_per_month: Annotated[int, Field(ge=0)] | None = None
    contributions_per_month: Annotated[int, Field(ge=0)] | None = None
    #: Patients that a split must have for its moments to be contributed; at least those of `[policy]`.
    min_samples: Annotated[int | None, Field(ge=2, validation_alias=_MIN_PATIENTS)] = None
    approval: Literal["automatic", "ask"] = "automatic"
    release: Literal["automatic", "manual"] = "automatic"

    @model_validator(mode="after")
    def _limits_of_contributions(self) -> Rule:
        limits = (self.contributions_per_month, self.min_samples)
        if self.actions != ("contribute",) and any(limit is not None for limit in limits):
            raise ValueError(
                'contributions_per_month and min_patients are for a rule of its own, with actions = ["contribute"]'
            )
        if self.fits_per_month is not None and self.privacy is None:
            raise ValueError("fits_per_month is for a rule with epsilon and delta: exact fits are not counted")
        return self


class PolicyConfig(_Closed):
    """`[policy]`: rules, and what holds for everything that leaves.

    `min_patients`: of a split anything is derived from; `min_per_class`: of a class whose own numbers are shown; both
    count patients, the groups of a dataset, of which every sample is one where it has none;
    `decimals`: measured numbers are rounded to; `disclose_refusals`: whether a requester learns that an evaluation was
    declined, or sees no answer.
    """

    min_samples: Annotated[int, Field(ge=2, validation_alias=_MIN_PATIENTS)] = 11
    min_per_class: Annotated[int, Field(ge=2)] = 11
    decimals: Annotated[int, Field(ge=1, le=6)] = 4
    disclose_refusals: bool = True
    allow: tuple[Rule, ...] = ()


class Version(_Closed):
    """Which `site.toml` it was: the SHA-256 of its bytes, and when it was last written."""

    sha256: str
    written_at: datetime

    def __str__(self) -> str:
        return f"{self.sha256[:12]}, written {self.written_at:%Y-%m-%d %H:%M:%S} UTC"


class SiteConfig(_Closed):
    """The content of `site.toml`, checked, with absolute paths; `version` is None for one that was in no file."""

    path: Path
    version: Version | None = None
    hub: HubConfig
    site: StateConfig = StateConfig()
    broker: BrokerConfig | None = None
    task_store: TaskStoreConfig | None = None
    limits: TaskLimits = TaskLimits()
    datasets: dict[Name, DatasetSpec] = {}
    #: `[keys]`: files of public keys, by the names under which rules speak of them.
    keys: dict[Name, Path] = {}
    policy: PolicyConfig = PolicyConfig()

    @model_validator(mode="after")
    def _rules_name_datasets(self) -> SiteConfig:
        for index, rule in enumerate(self.policy.allow):
            for name in rule.datasets:
                if name not in self.datasets:
                    raise ValueError(
                        f"policy.allow[{index}].datasets: there is no [datasets.{name}]; "
                        f"{did_you_mean(name, self.datasets)}"
                    )
            for name in rule.signed_by or ():
                if name not in self.keys:
                    raise ValueError(
                        f"policy.allow[{index}].signed_by: there is no key {name} under [keys]; "
                        f"{did_you_mean(name, self.keys)}"
                    )
        return self

    @property
    def state(self) -> Path:
        """The folder of everything this site keeps."""
        return self.site.state


def load_site(path: str | Path) -> SiteConfig:
    """Read and check `site.toml`; raises `SutureError` (`site.*`) naming the field. Reads no token, opens no data."""
    file = Path(path).absolute()
    try:
        text, version = _read(file)
        content = tomllib.loads(decoded(text, where=str(path), code="site.unreadable"))
    except FileNotFoundError:
        raise SutureError(
            "site.missing",
            "there is no such file",
            where=str(path),
            hint="name the site's configuration after the command, `suture site check /etc/suture/site.toml`, or run "
            f"it in its folder; `suture site init` writes one, and {GUIDE}",
        ) from None
    except OSError as error:
        raise trouble(error, where=path, code="site.unreadable") from None
    except tomllib.TOMLDecodeError as error:
        raise SutureError("site.not_toml", str(error), where=str(path), hint="correct this line") from None
    for name in ("path", "version"):
        if name in content:
            raise SutureError("site.invalid", f"{name}: unknown field", where=str(path), hint=GUIDE)
    _anchor(content, file.parent)
    try:
        return SiteConfig.model_validate({**content, "path": file, "version": version})
    except ValidationError as error:
        problems = "; ".join(map(str, problems_of(error.errors(include_url=False), SiteConfig)[:5]))
        raise SutureError("site.invalid", problems, where=str(path), hint=GUIDE) from None


def refreshed(config: SiteConfig) -> SiteConfig:
    """Return what `site.toml` says now, `config` itself where it says the same.

    Raises `SutureError`: `site.*` of a file that is not in order, `site.restart` where what it says needs a new start.
    """
    if config.version is None:
        return config
    try:
        if _read(config.path)[1].sha256 == config.version.sha256:
            return config
    except OSError as error:
        raise trouble(error, where=config.path, code="site.unreadable") from None
    now = load_site(config.path)
    fixed = ("hub", "site", "broker", "task_store")
    changed = [name for name in fixed if getattr(now, name) != getattr(config, name) and name != "site"]
    if now.site.model_copy(update={"party": config.site.party}) != config.site:
        changed.append("site")
    if changed:
        raise SutureError(
            "site.restart",
            f"{' and '.join(f'[{name}]' for name in changed)} changed, which holds from the next start on",
            where=str(config.path),
            hint="restart the site; until then it leases nothing and sends no result",
        )
    return now


def _read(file: Path) -> tuple[bytes, Version]:
    with file.open("rb") as opened:
        content, written = opened.read(), os.fstat(opened.fileno()).st_mtime
    return content, Version(
        sha256=hashlib.sha256(content).hexdigest(), written_at=datetime.fromtimestamp(written, tz=UTC)
    )


def read_token(config: SiteConfig) -> str:
    """Return the site's token; raises `SutureError` (`site.token_*`) if others on this machine could read it."""
    file = config.hub.token_file
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SutureError(
            "site.token_missing",
            f"the token file cannot be read ({type(error).__name__})",
            where=str(file),
            hint="save in it, mode 0600, what `suture hub site add` printed at the hub",
        ) from None
    with os.fdopen(descriptor, encoding="utf-8-sig", errors="replace") as opened:
        status = os.fstat(opened.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise SutureError(
                "site.token_exposed",
                "others on this machine may read the token",
                where=str(file),
                hint=f"chmod 600 {file}",
            )
        token = opened.read(4096).strip()
    if not token:
        raise SutureError("site.token_missing", "the token file is empty", where=str(file), hint="save the token in it")
    return token


def prepare_state(config: SiteConfig) -> Path:
    """Create the state folder, readable by this user alone, and return it."""
    for folder in (
        config.state,
        *(config.state / name for name in ("tasks", "cache", "inbox", "outbox", "logs", "redis")),
    ):
        with telling(folder, code="site.state"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_mode & 0o077:
                folder.chmod(0o700)
    with telling(config.state, code="site.state"):
        if not can_lock(config.state):
            raise OSError(errno.ENOLCK, "")
    return config.state


def _anchor(content: dict[str, Any], base: Path) -> None:
    """Make the paths in `content` absolute, from the folder of the file that named them."""
    site = content.setdefault("site", {})
    hub = content.get("hub")
    if isinstance(site, dict):
        site.setdefault("state", "state")
    if isinstance(hub, dict):
        hub.setdefault("token_file", "token")
    datasets = content.get("datasets")
    tables = [(site, "state"), (hub, "token_file"), (content.get("broker"), "ca_file")]
    keys = content.get("keys")
    tables += [(keys, name) for name in (keys if isinstance(keys, dict) else ())]
    tables += [
        (table, name)
        for table in (datasets.values() if isinstance(datasets, dict) else ())
        for name in ("path", "root")
    ]
    for table, key in tables:
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = Path(os.path.normpath(base / Path(table[key]).expanduser()))

"""Replay the install steps of both images without Docker, start hub and site from what they installed, play the demo.

    make images

Every stage of a Dockerfile becomes a folder with a clean virtual environment; absolute paths in its lines are led into
that folder, and the lines that install are run as they are. What only makes users and folders of a container is left
out, by name. Then the commands of docker-compose.yml start, and its health checks are asked. Last, sdist and wheel must
hold the same, and the demo runs from the wheel alone, outside of this repository. Needs a package index.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from suture.processes import Processes
from suture_local.ports import free_port
from suture_worker.broker import find_server

ROOT = Path(__file__).parents[1]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
#: Folders of a container that its lines and files name; their place in the stage's folder is put instead.
_INSIDE = re.compile(r"(?<![\w.])/(wheels|src|tmp|etc/suture|var/lib/suture|data|run/broker)\b")
#: Lines that only a container needs.
_LEFT_OUT = ("useradd ",)
_INSTALLS = ("pip ", "python ")
#: A hub must not bring these.
_NOT_IN_A_HUB = {"torch", "numpy", "monai", "safetensors", "celery"}
_WAIT_SECONDS = 180.0


@dataclass
class Stage:
    """One stage of a Dockerfile, played in `folder`."""

    folder: Path
    work: str = "/"
    environment: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def inside(self, text: str) -> str:
        """Return the text with a container's paths led into this stage's folder."""
        ours = str(self.folder.parent)
        return _INSIDE.sub(
            lambda found: found[0] if text.startswith(ours, found.start()) else f"{self.folder}{found[0]}", text
        )

    def path(self, text: str) -> Path:
        """Return the place of a container's path."""
        return self.folder / (Path(self.work) / text).relative_to("/")

    def variables(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of this stage's processes: its own, and nothing of Suture's from outside."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SUTURE_", "PYTHON"))}
        inside = {name: self.inside(value) for name, value in {**self.environment, **(extra or {})}.items()}
        search = f"{self.folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**kept, **inside, "PATH": search, "PIP_NO_COMPILE": "1"}

    def run(self, command: Sequence[str], **extra: str) -> str:
        """Run a command in this stage and return its output; what it says on stderr is shown if it fails."""
        folder = self.path("")
        folder.mkdir(parents=True, exist_ok=True)
        ended = subprocess.run(
            [self.inside(word) for word in command],
            cwd=folder,
            env=self.variables(extra),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=900,
            check=False,
        )
        if ended.returncode:
            sys.exit(f"{shlex.join(command)}: {ended.returncode}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
        return ended.stdout

    def installed(self) -> dict[str, str]:
        """Return the versions of the installed packages, by name; less a wheel's own mark, as in `+cpu`."""
        packages = json.loads(self.run(["pip", "list", "--format", "json"]))
        return {package["name"].lower(): package["version"].partition("+")[0] for package in packages}


def instructions(text: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions: word and rest."""
    whole = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found = [line.strip().partition(" ") for line in whole.splitlines() if line.strip()]
    return [(word, " ".join(rest.split())) for word, _, rest in found]


def play(dockerfile: Path, folder: Path, played: dict[str, Stage]) -> Stage:
    """Play a Dockerfile and return its last stage; a first stage that another file has, too, is taken from `played`."""
    stages: dict[str, Stage] = {}
    text = dockerfile.read_text(encoding="utf-8")
    parts = re.split(r"(?m)^(?=FROM )", text)[1:]
    stage = Stage(folder)
    for number, part in enumerate(parts):
        lines = instructions(part)
        name = lines[0][1].partition(" AS ")[2] or str(number)
        key = "\n".join(map(" ".join, lines))
        if key not in played:
            stage = Stage(folder / f"{dockerfile.parent.name}-{name}")
            venv.create(stage.folder / "venv", with_pip=True, symlinks=True)
            for word, rest in lines[1:]:
                step(stage, stages, word, rest)
            played[key] = stage
        stages[name] = stage = played[key]
    return stage


def step(stage: Stage, stages: Mapping[str, Stage], word: str, rest: str) -> None:
    """Play one instruction."""
    if word == "WORKDIR":
        stage.work = rest
    elif word == "ENV":
        stage.environment.update(item.partition("=")[::2] for item in shlex.split(rest))
    elif word == "CMD":
        stage.command = json.loads(rest)
    elif word == "HEALTHCHECK":
        stage.health = json.loads(rest.partition("CMD ")[2])
    elif word == "COPY":
        source, target = rest.split()
        copy(source, stage.path(target))
    elif word == "RUN":
        while mount := re.match(r"--mount=(\S+) ", rest):
            given = dict(item.split("=") for item in mount[1].split(","))
            mounted = stage.path(given["target"])
            mounted.parent.mkdir(parents=True, exist_ok=True)
            mounted.symlink_to(stages[given["from"]].path(given["source"]))
            rest = rest[mount.end() :]
        if rest.startswith(_INSTALLS):
            print(f"  {rest}", flush=True)
            stage.run(["sh", "-c", rest])
        elif not rest.startswith(_LEFT_OUT):
            sys.exit(f"not known how to replay: RUN {rest}")
    elif word not in ("USER", "EXPOSE", "ARG"):
        sys.exit(f"not known how to replay: {word} {rest}")


def copy(source: str, target: Path) -> None:
    """Copy what .dockerignore leaves."""
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"]
    if source != ".":
        if source not in kept:
            sys.exit(f"COPY {source}: .dockerignore keeps it out")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, target)
        return
    for name in kept:
        place = target / name
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place)


class Composed:
    """The services of docker-compose.yml, started from the stages that were played."""

    def __init__(self, hub: Stage, site: Stage, processes: Processes) -> None:
        self.hub, self.site, self.processes = hub, site, processes
        self.port = str(free_port())
        # PostgreSQL is tested elsewhere.
        database = f"sqlite:///{hub.path('hub.db')}"
        self.settings = {**SERVICES["hub"]["environment"], "SUTURE_HUB_DATABASE_URL": database}

    def start(self, name: str, stage: Stage, command: Sequence[str], extra: Mapping[str, str]) -> Path:
        """Start a service; returns the file that holds its output."""
        log = stage.folder / f"{name}.log"
        stage.path("").mkdir(parents=True, exist_ok=True)
        words = [
            "env",
            "--unset=SUTURE_END_WITH",
            "--chdir",
            str(stage.path("")),
            *(stage.inside(word) for word in command),
        ]
        self.processes.start(name, words, log=log, environment=stage.variables(extra))
        return log

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until something is so; ends with the logs when a process ends or it takes too long."""
        self.processes.wait_until(condition, what, seconds=_WAIT_SECONDS)
        print(f"  {what}", flush=True)

    def healthy(self, stage: Stage, check: Sequence[str], extra: Mapping[str, str]) -> Callable[[], bool]:
        """Return whether a health check succeeds."""

        def ask() -> bool:
            words = [stage.inside(word).replace("8420", self.port) for word in check]
            asked = subprocess.run(words, env=stage.variables(extra), capture_output=True, timeout=60, check=False)
            return asked.returncode == 0

        return ask

    def start_hub(self) -> None:
        """Start the hub as its image does, and wait until both health checks say that it works."""
        command = [word.replace("8420", self.port) for word in self.hub.command]
        self.start("hub", self.hub, command, self.settings)
        self.wait("the hub's image answers", self.healthy(self.hub, self.hub.health, self.settings))
        check = SERVICES["hub"]["healthcheck"]["test"][1:]
        self.wait("and docker-compose's check of it", self.healthy(self.hub, check, self.settings))

    def start_site(self) -> None:
        """Start broker, agent and worker as docker-compose does, and wait until the hub hears from the site."""
        page = (ROOT / "docs/docker-compose.md").read_text(encoding="utf-8")
        config = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0]
        config = config.replace("https://hub.example", f"http://127.0.0.1:{self.port}")
        config = config.replace("[hub]", '[hub]\ntoken_file = "token"', 1) if "token_file" not in config else config
        password = secrets.token_hex(32)
        config = config.replace("PASSWORD", password)
        for folder in ("/etc/suture", "/run/broker", "/var/lib/suture", "/data/frames"):
            self.site.path(folder).mkdir(parents=True, exist_ok=True)
        self.site.path("/etc/suture/site.toml").write_text(self.site.inside(config), encoding="utf-8")
        acl = (ROOT / "broker.acl").read_text(encoding="utf-8")
        acl = acl.replace("DIGEST", hashlib.sha256(password.encode()).hexdigest())
        self.site.path("/etc/suture/broker.acl").write_text(acl, encoding="utf-8")
        self.hub.run(["suture", "hub", "party", "add", "north"], **self.settings)
        token = self.site.path("/etc/suture/token")
        token.touch(0o600)
        token.write_text(
            self.hub.run(["suture", "hub", "site", "add", "north", "main"], **self.settings), encoding="utf-8"
        )

        # Broker and site share a volume under two names.
        words = [word.replace("/data/", "/run/broker/") for word in SERVICES["redis"]["command"][1:]]
        self.start("redis", self.site, [str(find_server().program), *words], {})
        for name in ("agent", "worker"):
            log = self.start(name, self.site, SERVICES[name]["command"], {})
        for name in ("agent", "worker"):
            check = SERVICES[name]["healthcheck"]["test"][1:]
            self.wait(f"docker-compose's check of the {name}", self.healthy(self.site, check, {}))
        self.wait("the worker waits for work", lambda: "ready." in log.read_text(encoding="utf-8", errors="replace"))
        self.wait("the hub hears from the site", self.online)

    def online(self) -> bool:
        """Return whether the hub has heard from the site."""
        told = self.hub.run(["suture", "hub", "party", "list", "--format", "json"], **self.settings)
        return bool(json.loads(told)[0]["sites"][0]["online"])


def main() -> None:
    """Play everything in a temporary folder."""
    # Ended from outside, it ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="suture-images-") as name, Processes() as processes:
        folder, played = Path(name).resolve(), dict[str, Stage]()
        hub = play(ROOT / "service/Dockerfile", folder, played)
        if unwanted := hub.installed().keys() & _NOT_IN_A_HUB:
            sys.exit(f"the hub's image holds {', '.join(sorted(unwanted))}")
        site = play(ROOT / "worker/Dockerfile", folder, played)
        only_what_is_locked({**hub.installed(), **site.installed()})
        print(f"  installed in {time.monotonic() - started:.0f} s", flush=True)
        services = Composed(hub, site, processes)
        services.start_hub()
        services.start_site()
        processes.stop()
        wheel = next(iter(played.values())).path("/wheels")
        same_from_sdist(next(iter(played.values())), next(wheel.glob("*.whl")))
        names_others_licences(next(wheel.glob("*.whl")))
        print(f"  {time.monotonic() - started:.0f} s; now the demo, from the wheel alone", flush=True)
        site.run(["sh", "-c", f"pip install --no-cache-dir '{next(wheel.glob('*.whl'))}[service,worker,demo]'"])
        site.work = "/tmp"
        told = site.run(["suture", "demo"])
        print(*(f"  {line}" for line in told.splitlines() if line.startswith("met ")), sep="\n")
    print(f"  {time.monotonic() - started:.0f} s; all is as the images and the documentation say")


def only_what_is_locked(installed: Mapping[str, str]) -> None:
    """Both images hold the versions of lock.txt, and no package that it does not name."""
    lines = (ROOT / "lock.txt").read_text(encoding="utf-8").splitlines()
    locked = dict(line.split("==") for line in lines if not line.startswith("#"))
    others = {name: version for name, version in installed.items() if locked.get(name) != version}
    # What makes the environment, ours, and what torch pins itself.
    expected = re.compile(r"(pip|setuptools|wheel|suture|triton|(nvidia|cuda)-.*)")
    if unlocked := sorted(name for name in others if not expected.fullmatch(name)):
        sys.exit(f"lock.txt has not these, or other versions of them: {', '.join(unlocked)}; run `make lock`")


def names_others_licences(wheel: Path) -> None:
    """The tables of hospitals are in the wheel, and so is the page that says whose they are."""
    held = set(zipfile.ZipFile(wheel).namelist())
    folder = ROOT / "local/suture_local/heart"
    wanted = {f"suture_local/heart/{path.name}" for path in (*folder.glob("*.csv"), folder / "README.md")}
    metadata = next(name.partition("/")[0] for name in held if ".dist-info/" in name)
    wanted.add(f"{metadata}/licenses/local/suture_local/heart/README.md")
    if lacking := wanted - held:
        sys.exit(f"the wheel lacks {', '.join(sorted(lacking))}")


def same_from_sdist(build: Stage, wheel: Path) -> None:
    """Build sdist and, from that, the wheel again: both wheels must hold the same."""
    sources, again = build.folder / "sdist", build.folder / "again"
    build.run(["pip", "install", "--no-cache-dir", "hatchling"])
    build.run(["python", "-m", "hatchling", "build", "--target", "sdist", "--directory", str(sources)])
    (archive,) = sources.glob("*.tar.gz")
    build.run(["pip", "wheel", "--no-cache-dir", "--no-deps", "--no-build-isolation", "-w", str(again), str(archive)])
    one, other = (set(zipfile.ZipFile(path).namelist()) for path in (wheel, *again.glob("*.whl")))
    if one != other:
        sys.exit(f"the wheel made of the sdist differs: {sorted(one ^ other)[:20]}")


if __name__ == "__main__":
    main()

"""A task's folder, `state/tasks/<id>`: all that agent, worker and child tell each other about it.

    task.json      the leased task, its fence, and the dataset the policy allowed    written by the agent
    members/       the members' portable models, `0.safetensors` ...                 agent
    candidates/    the fitted candidates the task starts from                        agent
    cancel         present when the work must stop                                   agent
    lock           held by the worker while it works; free when it died              worker
    runs           how often the work was started                                    worker
    terms.json     trust or noise: on what terms the rule allows the work            agent
    run.json       what the child may use: device, limits, the dataset's place       worker
    child.log      what the child printed; never leaves the site                     worker
    outcome.json   how it ended; written once, last                                  worker
    results/       progress, outcome, and what may leave                              child
    checkpoint/    finished parts, for a run that goes on; never leaves the site     child
    shares/        lock, runs, results and so on for each part of divided work       worker, children

Every file appears whole or not at all, so that any of the three can be killed at any time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from suture_contract.errors import SutureError
from suture_contract.model.metadata import Name, Trusted
from suture_contract.privacy import NoiseTerms
from suture_stitching.data.spec import DatasetSpec
from suture_worker import files
from suture_worker.leased_task import Identifier, LeasedTask

Code = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}\.[a-z][a-z0-9_]{0,49}$")]
CorrelationId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
DOCUMENT, PROGRESS, OUTCOME = "document.json", "progress.json", "ending.json"
#: The code of what failed because the store of task files was away.
TASK_STORE = "site.task_store"
MAX_SMALL = 64 * 1024

_ID: TypeAdapter[str] = TypeAdapter(Identifier)


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Assignment(_Closed):
    """A leased task and what the policy decided about it."""

    task: LeasedTask
    dataset: Name | None = None


class Terms(_Closed, NoiseTerms):
    """On what terms a rule lets patients be looked at: fewest of a split, and noise that protects each of them.

    `share` is the part of the job's account of noise that this task may spend. Without noise, `trusted` are those whose
    models are trusted.
    """

    min_samples: int
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    trusted: tuple[Trusted, ...] | None = None


class Run(_Closed):
    """What the child may use. Nothing here leads to the hub."""

    device: str
    threads: int | None
    memory_bytes: int
    cpu_seconds: int
    min_samples: int
    #: Fewest patients with each label of a subgroup about whose labels something is measured.
    min_per_class: int = 1
    dataset: DatasetSpec | None
    #: Seconds of work from which on the child leaves it to be divided; None if there is nobody to share it with.
    divide_from: float | None = None


class TaskProgress(_Closed):
    """How far the child is, as it wrote it."""

    step: Annotated[str, Field(max_length=200)]
    done: Annotated[int, Field(ge=0)]
    total: Annotated[int, Field(ge=0)]
    seconds_left: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class Outcome(_Closed):
    """How the work ended; for everything but `done`, a code and the id under which the site's log tells more."""

    #: "divided": not at all yet; it is enough work for several workers.
    state: Literal["done", "failed", "declined", "cancelled", "divided"]
    code: Code | None = None
    correlation_id: CorrelationId | None = None
    retryable: bool = False


class TaskPlace(Protocol):
    """How agent and workers meet over a task: who is at it, and how each has what the others wrote in its folder."""

    def hold(self, folder: TaskFolder) -> AbstractContextManager[bool]:
        """Be at the task, or the share; False if another is."""

    def is_held(self, folder: TaskFolder) -> bool:
        """Whether somebody is at this task or share itself."""

    def is_shared(self, folder: TaskFolder) -> bool:
        """Whether somebody is at a share of the task."""

    def publish(self, folder: TaskFolder) -> bool:
        """Let the others have what was written here; False if they cannot just now."""

    def refresh(self, folder: TaskFolder, *, whole: bool = False) -> None:
        """Have here what the others wrote; with `whole` also what only they need."""

    def remove(self, folder: TaskFolder) -> None:
        """Take the task's files from where the others find them."""


class _SameFolder:
    """All are at the same folder, on one machine or on a disk that several mount; the kernel keeps its locks."""

    @contextmanager
    def hold(self, folder: TaskFolder) -> Iterator[bool]:
        descriptor = os.open(folder.own / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def is_held(self, folder: TaskFolder) -> bool:
        return _is_held(folder.own / "lock")

    def is_shared(self, folder: TaskFolder) -> bool:
        return any(_is_held(lock) for lock in folder.shares.glob("*/lock"))

    def publish(self, folder: TaskFolder) -> bool:
        return True

    def refresh(self, folder: TaskFolder, *, whole: bool = False) -> None:
        pass

    def remove(self, folder: TaskFolder) -> None:
        pass


SAME_FOLDER: TaskPlace = _SameFolder()


class TaskFolder:
    """The files of one task under `tasks`; the id is checked, since it may come from a broker."""

    def __init__(self, tasks: Path, task_id: str, place: TaskPlace = SAME_FOLDER) -> None:
        try:
            self.id = _ID.validate_python(task_id)
        except ValidationError:
            raise SutureError("task.invalid", "this is not the id of a task", where="task queue") from None
        self.place = place
        self.path = tasks / self.id
        self.members = self.path / "members"
        self.candidates = self.path / "candidates"
        self.checkpoint = self.path / "checkpoint"
        self.shares = self.path / "shares"
        self._cancel = self.path / "cancel"
        self._keep_in(self.path)

    def _keep_in(self, own: Path) -> None:
        """Name the files of the worker that is at it and of its child."""
        self.own = own
        self.results = own / "results"
        self.scratch = own / "scratch"
        self.log = own / "child.log"
        self._outcome = own / "outcome.json"

    @property
    def words(self) -> list[str]:
        """What the child is told besides the folder."""
        return []

    def create(self, assignment: Assignment) -> None:
        """Make the folder anew for this lease; whatever an earlier lease of the task left is gone."""
        self.remove()
        for folder in (self.path, self.members, self.candidates):
            folder.mkdir(mode=0o700, parents=True)
        files.write(self.path / "task.json", assignment.model_dump_json(by_alias=True))

    @property
    def exists(self) -> bool:
        """Whether there is work here: the task was written completely."""
        return (self.path / "task.json").exists()

    @property
    def assignment(self) -> Assignment:
        """The task; raises `SutureError` `task.invalid` if it cannot be read."""
        try:
            return Assignment.model_validate_json((self.path / "task.json").read_bytes())
        except (OSError, ValidationError):
            raise SutureError("task.invalid", "the task's folder is damaged", where=self.id) from None

    def member(self, index: int) -> Path:
        """Where the portable model of member `index` lies."""
        return self.members / f"{index}.safetensors"

    def note_signer(self, index: int, fingerprint: str | None, older: str | None = None) -> None:
        """Keep who signed member `index`, once that is verified, and how it is `older` than one that was seen here."""
        files.write(self.members / f"{index}.older", older or "")
        files.write(self.members / f"{index}.signer", fingerprint or "")

    def signer(self, index: int) -> str | None:
        """Return the fingerprint of the key that signed member `index`; None if nobody who is known here did."""
        try:
            return (self.members / f"{index}.signer").read_text(encoding="ascii") or None
        except FileNotFoundError:
            return None

    def older(self, index: int) -> str | None:
        """Return how member `index` is older than the newest revision of it that was seen here; None if it is not."""
        try:
            return (self.members / f"{index}.older").read_text(encoding="utf-8") or None
        except FileNotFoundError:
            return None

    def note_operators(self, index: int, operators: frozenset[str]) -> None:
        """Keep what member `index` computes with, once its file was checked."""
        files.write(self.members / f"{index}.operators", "\n".join(sorted(operators)))

    def operators(self, index: int) -> frozenset[str] | None:
        """Return what member `index` computes with; None if its file was not checked yet."""
        try:
            return frozenset((self.members / f"{index}.operators").read_text(encoding="ascii").split())
        except FileNotFoundError:
            return None

    def note_terms(self, terms: Terms) -> None:
        """Keep on what terms a rule allows the work."""
        files.write(self.path / "terms.json", terms.model_dump_json())

    @property
    def terms(self) -> Terms:
        """On what terms the work is allowed; raises OSError where no rule has allowed it."""
        return Terms.model_validate_json((self.path / "terms.json").read_bytes())

    @property
    def private(self) -> bool:
        """Whether the work is done with noise; False for work that no rule speaks of, a composition say."""
        try:
            return self.terms.privacy is not None
        except OSError:
            return False

    # Cancel, progress, outcome

    def cancel(self) -> None:
        """Ask for the work to stop."""
        self._cancel.touch(mode=0o600)
        self.publish()

    @property
    def cancelled(self) -> bool:
        """Whether the work was asked to stop."""
        return self._cancel.exists()

    def write_progress(self, progress: TaskProgress) -> None:
        """Tell how far the work is."""
        files.write(self.results / PROGRESS, progress.model_dump_json())

    @property
    def progress(self) -> TaskProgress | None:
        """How far the work is; None before it said so, or if what it said is not in order.

        Of a divided task, the sum over the shares of the present step.
        """
        begun = sorted(self.shares.glob("*/results"))
        step = begun[-1].parent.name.partition(".")[0] if begun else ""
        present = [path for path in begun if path.parent.name.partition(".")[0] == step]
        shared = [progress for path in present if (progress := _progress(path)) is not None]
        if not shared or not self.sharing:
            return _progress(self.results) or (_together(shared) if shared else None)
        return _together(shared)

    def write_child_outcome(self, outcome: Outcome) -> None:
        """Say, from within the child, how it ended."""
        files.write(self.results / OUTCOME, outcome.model_dump_json())

    @property
    def child_outcome(self) -> Outcome | None:
        """How the child says it ended; None if it did not, or wrote something else."""
        try:
            return Outcome.model_validate_json(_small(self.results / OUTCOME))
        except (OSError, ValidationError, SutureError):
            return None

    def finish(self, outcome: Outcome) -> None:
        """Write how the work ended, unless that is already known."""
        if not self._outcome.exists():
            files.write(self._outcome, outcome.model_dump_json())

    @property
    def outcome(self) -> Outcome | None:
        """How the work ended; None while it has not."""
        try:
            return Outcome.model_validate_json(self._outcome.read_bytes())
        except FileNotFoundError:
            return None

    # The worker's turn

    def locked(self) -> AbstractContextManager[bool]:
        """Be at the task, alone; yields False if another is. Whoever dies is not at it any more."""
        return self.place.hold(self)

    @property
    def busy(self) -> bool:
        """Whether a worker is at it, or at a share of it."""
        return self.place.is_held(self) or self.sharing

    @property
    def sharing(self) -> bool:
        """Whether a worker is at a share of it."""
        return self.place.is_shared(self)

    def publish(self) -> bool:
        """Let workers on other machines have what was written here; False if they cannot just now."""
        return self.place.publish(self)

    def refresh(self, *, whole: bool = False) -> None:
        """Have here what workers on other machines wrote; with `whole` the checkpoint, too."""
        self.place.refresh(self, whole=whole)

    def begin_run(self, run: Run) -> int:
        """Write what the child may use, and return which run this is, from 1.

        What an interrupted run left is cleared, but for its checkpoint.
        """
        for leftover in (self.results, self.scratch):
            shutil.rmtree(leftover, ignore_errors=True)
            leftover.mkdir(mode=0o700)
        self.checkpoint.mkdir(mode=0o700, exist_ok=True)
        runs = self._count_runs(+1)
        files.write(self.own / "run.json", run.model_dump_json())
        self.publish()  # that it was begun counts also if this machine fails
        return runs

    def hand_back(self) -> None:
        """Leave the work to whoever takes it next; this run does not count."""
        self._count_runs(-1)

    def _count_runs(self, change: int) -> int:
        counter = self.own / "runs"
        runs = (int(counter.read_text(encoding="ascii")) if counter.exists() else 0) + change
        files.write(counter, str(runs))
        return runs

    @property
    def run(self) -> Run:
        """What the child may use."""
        return Run.model_validate_json((self.own / "run.json").read_bytes())

    def remove(self) -> None:
        """Delete the folder. Its task file goes first, so that what is left of it is never taken for work."""
        (self.path / "task.json").unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)
        self.place.remove(self)


def tasks_at_work(tasks: Path) -> int:
    """Return at how many tasks workers are."""
    return sum(any(map(_is_held, (path / "lock", *path.glob("shares/*/lock")))) for path in tasks.iterdir())


def unfinished(tasks: Path, place: TaskPlace = SAME_FOLDER) -> list[TaskFolder]:
    """Return the folders of tasks that were not brought to an end, oldest first; remove half-made ones."""
    folders = []
    for path in sorted(tasks.iterdir(), key=lambda path: path.stat().st_mtime):
        try:
            folder = TaskFolder(tasks, path.name, place)
        except SutureError:
            continue
        if folder.exists:
            folders.append(folder)
        else:
            folder.remove()
    return folders


def _is_held(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)  # not created: the folder may be about to go
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _progress(results: Path) -> TaskProgress | None:
    try:
        return TaskProgress.model_validate_json(_small(results / PROGRESS))
    except (OSError, ValidationError, SutureError):
        return None


def _together(shares: list[TaskProgress]) -> TaskProgress:
    """Return how far all shares are that are as far as the first of them."""
    same = [share for share in shares if share.step == shares[0].step]
    left = [share.seconds_left for share in same if share.seconds_left is not None]
    return TaskProgress(
        step=same[0].step,
        done=sum(share.done for share in same),
        total=sum(share.total for share in same),
        seconds_left=max(left, default=None),
    )


def _small(path: Path) -> bytes:
    """Read a file that a child wrote, which may be anything."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(MAX_SMALL + 1)
    if len(content) > MAX_SMALL:
        raise SutureError("work.bad_file", "the file is too large", where=path.name)
    return content

"""A task that several workers share: its steps, the shares of each, and what is left to do.

The worker that finds a task large enough divides it (`shares/count` in its folder). Each share of a step is a message
of its own, done by a confined child of its own, and leaves its part in the task's checkpoint; when all shares of a step
have ended, the door bell rings again, and then the next step is shared out. At last one worker does the task as if it
were alone, and finds all parts there. Everything that was done is known from files, so that messages may be lost or
repeated, and whoever is still there can do what is left.
"""

from __future__ import annotations

from suture_stitching.running.shards import Share
from suture_worker import files
from suture_worker.capacity import MAX_PLACES
from suture_worker.folder import TaskFolder
from suture_worker.leased_task import LeasedTask


class ShareFolder(TaskFolder):
    """A share's folder, `shares/<step>.<index>` in that of its task: own lock, runs, results and outcome.

    It works on its task's files, and stops when that is cancelled or has ended.
    """

    def __init__(self, task: TaskFolder, step: str, index: int) -> None:
        super().__init__(task.path.parent, task.id, task.place)
        self.task, self.step, self.index = task, step, index
        self._keep_in(task.shares / f"{steps(task.assignment.task).index(step)}.{index}")

    @property
    def share(self) -> Share:
        """Which part it is, of how many."""
        return Share(self.index, count(self.task))

    @property
    def words(self) -> list[str]:
        """What its child is told besides the task's folder."""
        return [self.step, str(self.index)]

    @property
    def cancelled(self) -> bool:
        """Whether the work was asked to stop, or is of no use any more."""
        return self.task.cancelled or self.task.outcome is not None


def steps(task: LeasedTask) -> tuple[str, ...]:
    """Return what of a task can be shared, in this order."""
    return task.side.steps(task.spec)


def divide(task: TaskFolder, shares: int) -> None:
    """Say that each step of the task has so many shares."""
    task.shares.mkdir(mode=0o700, exist_ok=True)
    for number in range(len(steps(task.assignment.task))):
        for index in range(shares):
            (task.shares / f"{number}.{index}").mkdir(mode=0o700, exist_ok=True)
    files.write(task.shares / "count", str(shares))


def count(task: TaskFolder) -> int:
    """Return how many shares each step of the task has; 0 if it is not divided."""
    try:
        return max(0, min(MAX_PLACES, int((task.shares / "count").read_text(encoding="ascii"))))
    except (OSError, ValueError):
        return 0


def left(task: TaskFolder) -> list[ShareFolder]:
    """Return the shares still to be done of the first step that is not finished."""
    number = count(task)
    for step in steps(task.assignment.task) if number else ():
        shares = [ShareFolder(task, step, index) for index in range(number)]
        if undone := [share for share in shares if share.outcome is None]:
            return undone
    return []


def find(task: TaskFolder, step: str, index: int) -> ShareFolder | None:
    """Return the share that a message names; None if there is none like that still to be done."""
    return next((share for share in left(task) if (share.step, share.index) == (step, index)), None)

"""What the members do: how outputs become one, what they lose and how they are scored, per kind of task.

`task_of(members' metadata, the dataset's labels)` returns the object every step of a fit works with. Each metric is a
mean of per-sample scores, which is what makes one paired bootstrap serve them all.
"""

from suture_stitching.tasks.task import Task, task_of

__all__ = ["Task", "task_of"]

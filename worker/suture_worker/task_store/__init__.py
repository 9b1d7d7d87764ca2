"""The files of tasks in an S3-compatible store, for machines that share no folder: `[task_store]`.

    tasks/<id>/<fence>/...    one lease's folder of a task, under the names it has on a disk

Agent and workers each have a copy on their own disk, and work in it as in a folder that all share. What one has written
goes to the store when others shall have it; a worker has a new copy for each message, so that nothing old is in it.

A store keeps no locks. Who is at a task, and which workers run, stands in the queue, under names that end by themselves
when nobody renews them. Should the queue forget, work is done twice: each in its own copy, with the same result.
"""

from suture_worker.task_store.bucket import TaskBucket
from suture_worker.task_store.shared_store import SharedStore

__all__ = ["SharedStore", "TaskBucket"]

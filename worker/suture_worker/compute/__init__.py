"""The worker's processes: Celery, the children it has forked, and what these give up before they compute."""

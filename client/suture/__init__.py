"""Suture: publish trained models, never data, and stitch models of several parties into one better ensemble.

    import suture

    hub = suture.Hub()                      # the hub and token that `suture login` stored
    model = hub.load("north/digits")        # a torch.nn.Module

`Hub` and `Job` say what they do; every failure is a `SutureError` with a code, what is wrong, where, and what to do.
"""

from suture.hub import Hub
from suture.job import Job
from suture_stitching.errors import SutureError

__all__ = ["Hub", "Job", "SutureError"]

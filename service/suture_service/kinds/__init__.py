"""The hub's side of every kind of task: one module for each name in `suture_contract.kinds`.

A new kind is its name and its files in that table, a module here and one of the same name in `suture_worker.kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from importlib import import_module
from operator import or_
from typing import TYPE_CHECKING, TypeAlias

from suture_contract.kinds import FILES
from suture_service.kinds.kind import TaskKind

if TYPE_CHECKING:
    from pydantic import BaseModel

KINDS: Mapping[str, TaskKind] = {name: import_module(f"{__name__}.{name}").KIND for name in FILES}
#: What a leased task may say is to be done, as the API describes it.
if TYPE_CHECKING:
    Spec: TypeAlias = BaseModel
else:
    Spec = reduce(or_, (kind.spec_model for kind in KINDS.values()))

"""Modules that had another name in version 0.1: the old names import the new modules, with a warning, until 0.3."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_PREFIX = "suture_stitching."
_MOVED = {
    "bootstrap": "suture_stitching.evaluation.bootstrap",
    "card": "suture_contract.card",
    "compatibility": "suture_contract.compatibility",
    "compose": "suture_stitching.ensemble.compose",
    "contribute": "suture_stitching.fitting.contribute",
    "contributions": "suture_contract.contributions",
    "device": "suture_stitching.running.device",
    "documents": "suture_contract.documents",
    "errors": "suture_contract.errors",
    "evaluate": "suture_stitching.evaluation.evaluate",
    "fit": "suture_stitching.fitting.fit",
    "fitted": "suture_stitching.ensemble.fitted",
    "members": "suture_stitching.ensemble.members",
    "merge": "suture_stitching.ensemble.merge",
    "moments": "suture_stitching.features.moments",
    "points": "suture_stitching.features.points",
    "portable.format": "suture_contract.model.format",
    "portable.graph": "suture_contract.model.graph",
    "portable.graph_json": "suture_contract.model.graph_json",
    "portable.metadata": "suture_contract.model.metadata",
    "portable.onnx": "suture_stitching.formats.onnx",
    "portable.operators": "suture_contract.model.operators",
    "portable.signature": "suture_contract.model.signature",
    "progress": "suture_stitching.running.progress",
    "report": "suture_contract.report",
    "select": "suture_stitching.evaluation.select",
    "solve": "suture_stitching.fitting.solve",
}


class _Moved(MetaPathFinder, Loader):
    """Finds a module by its old name. It stands behind all other finders, so it costs nothing where names are right."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where to find an old name, None for any other one."""
        if fullname.removeprefix(_PREFIX) not in _MOVED or not fullname.startswith(_PREFIX):
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the module by its new name; `exec_module` then gives it both."""
        new = _MOVED[spec.name.removeprefix(_PREFIX)]
        warnings.warn(f"{spec.name} is {new} now; the old name ends with version 0.3", DeprecationWarning, stacklevel=2)
        import_module(new)
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new name in the place of the old one."""
        sys.modules[module.__name__] = sys.modules[_MOVED[module.__name__.removeprefix(_PREFIX)]]


def keep_old_names() -> None:
    """Let old names be imported."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())

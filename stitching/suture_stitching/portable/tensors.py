"""Tensors into a safetensors file, and what the system says when that fails."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write contiguous tensors of the CPU; raises `OSError` when the disk is full, as other writing does."""
    mode = path.stat().st_mode & 0o777 if path.exists() else None
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error ([0-9]+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    if mode is not None:
        path.chmod(mode)  # the library makes the file anew, for its owner alone

"""Where a person's own code failed, among the lines of libraries that it went through."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path


def own_line(error: BaseException) -> str | None:
    """Return `file:line` of the last line that is in no library; of the last one where all are, None without any."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames[1:] if not frame.filename.startswith("<")]
    own = [frame for frame in outside if "site-packages" not in Path(frame.filename).parts]
    own = [frame for frame in own if not Path(frame.filename).is_relative_to(sys.base_prefix)] or outside
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None

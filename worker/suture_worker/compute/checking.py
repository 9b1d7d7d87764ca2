"""Opening a model file that a stranger has made, or a child has written, where neither token nor network is.

`python -m suture_worker.compute.checking FILE PARENT`

The file's header is up to 16 MiB of text and holds whatever its author wanted. So a process of its own reads it, with
`suture.json` on standard input, and prints what it found.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from suture_contract.errors import SutureError
from suture_contract.model.format import check_against, check_file
from suture_contract.model.metadata import ModelMetadata
from suture_contract.model.operators import ATEN
from suture_worker.compute import confine
from suture_worker.compute.confined import ask, give_up

MEMORY = 2 * 2**30
SECONDS = 60
_LONGEST_ANSWER = 2**16
_LAST_WORDS = 300

Text = Annotated[str, StringConstraints(max_length=2000)]


class _Answer(BaseModel):
    """The operators of a model that is in order, or what is wrong with one that is not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operators: frozenset[Annotated[str, StringConstraints(max_length=100)]] = frozenset()
    code: Annotated[str, StringConstraints(pattern=r"^[a-z]+\.[a-z_]+$", max_length=60)] | None = None
    message: Text = ""
    where: Text | None = None
    hint: Text | None = None


def check_model(path: Path, metadata: ModelMetadata | None = None) -> frozenset[str]:
    """Return the operators of the portable model at `path`, which must be what `metadata` describes, if it is given.

    Raises `SutureError`: `model.*` or `metadata.mismatch` for what is wrong with it, `model.unchecked` where that
    cannot be found out within the limits.
    """
    with tempfile.TemporaryFile() as log:
        arguments = [str(path.absolute()), str(MEMORY), str(SECONDS)]
        text = ask(
            __name__,
            arguments,
            question=metadata.to_json().encode() if metadata is not None else b"",
            folder=path.parent,
            log=log,
            seconds=SECONDS,
            most=_LONGEST_ANSWER,
        )
        try:
            answer = _Answer.model_validate_json(text or b"")
        except ValidationError:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_WORDS))
            last = " ".join(log.read().decode("ascii", "replace").split())
            raise SutureError(
                "model.unchecked",
                f"it cannot be checked with {MEMORY / 2**20:.0f} MiB of memory in {SECONDS} s: {last}",
                where=path.name,
                hint="ask its owner to export it again; if other models are refused, too, look at the words above",
            ) from None
    if answer.code is not None:
        raise SutureError(answer.code, answer.message, where=answer.where, hint=answer.hint)
    return answer.operators & ATEN


def main(arguments: list[str]) -> None:
    """Print what is found, as JSON."""
    path, memory, seconds, parent = arguments
    confine.die_with_parent(int(parent))
    give_up(read=[Path(path)], memory_bytes=int(memory), cpu_seconds=int(seconds), file_bytes=2**20)
    try:
        described = sys.stdin.buffer.read()
        header = check_file(path)
        if described:
            check_against(header, ModelMetadata.from_json(described))
        answer = _Answer(operators=header.graph.operators)
    except SutureError as error:
        shown = {name: text[:2000] if text else text for name, text in error.as_dict().items()}
        answer = _Answer.model_validate(shown)
    print(answer.model_dump_json())


if __name__ == "__main__":
    main(sys.argv[1:])

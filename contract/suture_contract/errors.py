"""The error every part of Suture raises for bad input: what is wrong, where, and what to do next."""

from __future__ import annotations

from typing import Any, ClassVar

from suture_contract.exit_codes import ExitCode


class SutureError(Exception):
    """Something a person can act on.

    `code` is stable and machine-readable (`noun.problem`, such as `model.truncated`); `message` says what is wrong,
    `where` names the file, field or node, and `hint` says what to do next. None of them may hold patient data or a
    secret: site code that cannot promise this reports the code alone. `exit_code` is what a command ends with,
    `usual_hint` what it says where there is no better one.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.REFUSED
    usual_hint: ClassVar[str | None] = None

    def __init__(self, code: str, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(code, message, where, hint)
        self.code = code
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} ({self.hint})" if self.hint else text

    def as_dict(self) -> dict[str, Any]:
        """Return the error as the JSON object the hub answers with."""
        return {"code": self.code, "message": self.message, "where": self.where, "hint": self.hint}


class Cancelled(SutureError):
    """The person or the job asked for this work to stop."""

    exit_code = ExitCode.JOB

    def __init__(self, message: str = "the work was cancelled") -> None:
        super().__init__("work.cancelled", message)


class Interrupted(Cancelled):
    """A person stopped the command; `message` says what is done and how it goes on."""

    exit_code = ExitCode.INTERRUPTED

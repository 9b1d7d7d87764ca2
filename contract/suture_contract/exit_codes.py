"""The numbers `suture` ends with."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The numbers `suture` ends with; scripts rely on them."""

    OK = 0
    ERROR = 1
    USAGE = 2
    AUTH = 3
    NOT_FOUND = 4
    REFUSED = 5
    UNAVAILABLE = 6
    JOB = 7
    TARGET = 8
    INTERRUPTED = 130


EXIT_CODES = """\b
Exit codes:
  0    done (also when a job ended without a party's answer: the report names it as missing)
  1    an error nobody foresaw: the whole of it is in the file that is named
  2    the command line is wrong
  3    no token, a wrong one, or not allowed
  4    not found, or not visible to this token
  5    the input was refused: the message says what is wrong, where, and what to do
  6    the hub does not answer
  7    the job failed or was cancelled
  8    a check failed: `suture demo` missed a target, `suture hub reconcile` or `backup` a file
  130  interrupted
"""

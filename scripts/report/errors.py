"""The error that ends the program with one line."""

import sys

# Exit codes of the project, include/stablemask/base/error.h.
USAGE = 2
DATA = 3


class ReportError(Exception):
    """A problem that the user can solve; the message names what, where and what to do."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def warn(message: str) -> None:
    print(f"report.sh: warning: {message}", file=sys.stderr)

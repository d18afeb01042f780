"""The one kind of error a user can cause: one line that names the value and the remedy."""

import contextlib
import os
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Bad input. Its message is one line: the value, the place, and what to do."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a UserError (or a full disk) into one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        _stop(str(error))
    except OSError as error:
        if error.errno not in (28, 122):  # ENOSPC, EDQUOT
            raise
        _stop(f"no disk space left while writing {error.filename or 'output'}: free some and run "
              "the same command again, the run resumes")  # fmt: skip


def _stop(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    status_file = os.environ.get("SRRL_STATUS_FILE")
    if status_file:  # accelerate's launcher turns every exit code into 1
        with open(status_file, "w") as file:
            file.write("2")
    sys.exit(2)

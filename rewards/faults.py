"""Errors in a reward's own code: one line that names the reward and the place, and a file with the
whole traceback."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from srrl.errors import UserError

FOLDER = "SRRL_ERROR_FOLDER"  # environment: where the file goes, also a worker's; default: here
FILE = "reward_error.txt"


@contextmanager
def named_faults(reward: str, doing: str) -> Iterator[None]:
    """Turn an error in a reward's code into a UserError; UserErrors stay as they are."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        file = Path(os.environ.get(FOLDER, ".")) / FILE
        details = f"traceback in {file}"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        except OSError as unwritten:
            details = f"traceback not kept: {unwritten}"
        where = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
        if isinstance(error, SyntaxError) and error.filename:
            where = f"{Path(error.filename).name}:{error.lineno}"
        raise UserError(
            f"reward {reward!r} failed in {doing}: {type(error).__name__}: {error} ({where}; "
            f"{details})"
        ) from error

"""Run accelerate's or torch's launcher, and leave word of how a process of theirs died.

    python -m srrl.elastic MODULE [the launcher's arguments]

For scripts/launch.py, which reads it beside its status file.
"""

import importlib
import os
import sys
from pathlib import Path


def death_file(status: Path) -> Path:
    """Beside SRRL_STATUS_FILE: rank and exit code of the process that failed first."""
    return status.with_name("died")


def death_of(status: Path) -> tuple[int, int] | None:
    """(rank, exit code) of the process that failed first, if a launcher has told; the code of one
    that a signal has killed is less than 0."""
    file = death_file(status)
    if not file.exists():
        return None
    rank, code = map(int, file.read_text().split())
    return rank, code


def main(argv: list[str]) -> int:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    sys.argv = argv
    try:
        importlib.import_module(argv[0]).main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        death_file(Path(os.environ["SRRL_STATUS_FILE"])).write_text(f"{rank} {failure.exitcode}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What is wrong here? Run it first, and paste what it prints into a bug report.

    python scripts/doctor.py                                         this machine
    python scripts/doctor.py --config config/stage_process.py:sd14   what this run needs
    python scripts/doctor.py --config config/rig.py:tiny --config.output_dir=/data/runs

Of an installed package it is `srrl-doctor`.

Takes train.py's --config flags; without --config the preset is the one that train.sh would choose
here. It prints a table (check, what was found, state: ok, warn, fail) and the remedies, and looks
at Python and its packages, the environment, devices and precisions, whether processes can meet,
prompts, models, rewards, disks, the run's folder and the tracker. Nothing is trained, fetched or
left behind. Exit codes: 1 where the run would fail, 0 where not, 2 for flags that are refused.
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also where nothing is installed

from srrl.doctor.checkup import CPU_PRESET, checkup
from srrl.doctor.rows import FAIL, page
from srrl.errors import one_line_errors, show_help
from srrl.life import end_on_signals


def main(argv: list[str]) -> int:
    with contextlib.suppress(ImportError):  # which is a row
        from srrl.config import load_config
        from srrl.methods import METHODS

        load_config(argv, default=CPU_PRESET, methods=[*METHODS])
    rows = [*checkup(argv)]
    print(page(rows))
    return int(any(row.state == FAIL for row in rows))


def command() -> None:
    """`srrl-doctor`, and this script."""
    show_help(__doc__, sys.argv[1:])
    with one_line_errors():
        end_on_signals()
        sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    command()

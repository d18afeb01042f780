"""One page that explains a run, or compares several: an HTML file that needs nothing else.

    python scripts/report.py runs/tiny                          # runs/tiny/report.html
    python scripts/report.py runs/a runs/b --out compare        # and its tables, as CSV
    python scripts/report.py runs/lr/* --out runs/lr            # those of a sweep
    python scripts/report.py runs/tiny --watch                  # anew as the run goes on

Of a run: scores with intervals, training curves, the time it took, pictures, its config beside
the nearest preset, and warnings. Of several: their scores with paired differences from the first
one, curves over each other, and the keys in which they differ; those that differ only in their seed
are one arm, whose table is printed, too. A run need not be finished, and of
RL-RIG's each phase is shown. --watch looks every other second and ends with Ctrl-C.
"""

import argparse
import sys
import time
from pathlib import Path

from srrl.errors import UserError, one_line_errors
from srrl.life import end_on_signals
from srrl.report.gather import read_runs, written

EVERY_S = 2
WRITTEN = ("report.html", "report.csv", "arms.csv")  # which runs/lr/* has, too, once they are there


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--out", type=Path, help="the folder to write to (of one run: its own)")
    parser.add_argument("--watch", action="store_true", help="write again when the logs change")
    args = parser.parse_args(argv)
    args.runs = [run for run in args.runs if run.name not in WRITTEN] or args.runs
    if args.out is None and len(args.runs) > 1:
        raise UserError("of several runs: say where to write, as --out compare")
    for folder in args.runs:
        read_runs(folder)
    return args


def state(runs: list[Path]) -> list[tuple[float, int]]:
    """When the runs' logs and pictures were written, and how long they are."""
    found = [file.stat() for run in runs for file in sorted(written(run)) if file.exists()]
    return [(told.st_mtime, told.st_size) for told in found]


def main(argv: list[str]) -> None:
    args = arguments(argv)
    from srrl.report.page import summary, write_report  # this imports torch

    out = args.out or args.runs[0]
    before = None
    while True:
        now = state(args.runs)
        if now != before:
            page = write_report(args.runs, out)
            if len(args.runs) > 1:
                print(summary(args.runs))
            print(f"wrote {page}", flush=True)
        if not args.watch:
            return
        before = now
        time.sleep(EVERY_S)


if __name__ == "__main__":
    with one_line_errors():
        end_on_signals()
        main(sys.argv[1:])

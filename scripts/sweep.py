"""Try values of a config's keys at the same seeds: train every combination, then print a table.

    python scripts/sweep.py --config config/stage_process.py:tiny --name lr \\
        --config.train.learning_rate=1e-4,3e-4,1e-3 --seeds 300,301
    python scripts/sweep.py --name k --config.eval.rounds=[1],[1,2] --config.reflect.rounds=1,2

Takes train.py's --config flags; those with several values, between commas, are varied. Lists and
JSON objects stand between commas as they are, [1],[1,2], and a text with a comma in it is quoted,
'"a,b.json",c.json'. --dry-run prints the commands and what they take. Runs are processes of their
own in runs/NAME, --parallel at once, all on the first GPU where there is one; the same command goes
on where it was stopped, and with more values trains only what is new. The table has the mean of
each combination over its seeds and the differences from the first one; the page beside the runs
(report.html) has every run.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from srrl.assess.pool import Pool, check_minutes, refuse, run_all
from srrl.assess.sweep import Trial, check, trials
from srrl.budget import judging_evaluations, run_evaluations
from srrl.checks import is_name
from srrl.config import parse
from srrl.errors import UserError, one_line_errors
from srrl.life import end_on_signals
from srrl.run.folder import make_folder, newest


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and --config.KEY=VALUES."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default="config/stage_process.py:tiny", help="FILE.py:PRESET (%(default)s)")
    add("--name", default="", help="of the folder in --config.output_dir (runs)")
    add("--seeds", help="300,301 is short for --config.seed=300,301")
    add("--parallel", type=int, default=1, help="runs at once (%(default)s)")
    add("--threads", type=int, default=0, help="of each run on a CPU; by default torch's choice")
    add("--budget-minutes", type=float, help="stop cleanly after that")
    add("--dry-run", action="store_true", help="run nothing")
    args, overrides = parse(parser, argv)
    check_minutes(args.budget_minutes)
    if not is_name(args.name) or "/" in args.name or args.name in (".", ".."):
        raise UserError(f"--name {args.name!r}: expected a folder's name, as lr")
    for name, least in (("parallel", 1), ("threads", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: at least {least}")
    return args, [*overrides, *([f"--config.seed={args.seeds}"] if args.seeds else [])]


def main(argv: list[str]) -> None:
    args, overrides = arguments(argv)
    some = trials(args.config, overrides, args.name)
    check(some)
    if args.dry_run:
        print(bill(some))
        return
    folder = some[0].folder.parent
    make_folder(folder, f"--name {args.name}")
    pool = Pool(args.parallel, args.threads, args.budget_minutes)
    jobs = [trial.job for trial in some]
    failed = run_all(jobs, pool, folder)
    print(table([trial.folder for trial in some], folder))
    refuse(failed, jobs)
    if left := sum(bool(trial.todo()) for trial in some):
        print(f"{left} of {len(some)} runs are not finished: the same command goes on with them")


def bill(some: Sequence[Trial]) -> str:
    """The commands, and what they take where nothing is done yet."""
    training = [run_evaluations(trial.config) for trial in some]
    judging = sum(judging_evaluations(trial.config) for trial in some)
    done = sum(not trial.todo() for trial in some)
    of_one = sorted({f"{n:,}" for n in training}, key=lambda text: int(text.replace(",", "")))
    commands = [shlex.join(["python", *trial.command[1:]]) for trial in some]
    return "\n".join(
        [
            *commands,
            f"{len(some)} runs, {done} done; in all {sum(training):,} network evaluations of "
            f"training ({' or '.join(of_one)} a run) and {judging:,} of judging",
        ]
    )


def table(folders: Sequence[Path], out: Path) -> str:
    """The table of the runs that have begun, and the command that prints it again; their page is
    written beside them."""
    from srrl.report.page import summary, write_report  # this imports torch

    begun = [folder for folder in folders if newest(folder)]
    if len(begun) < 2:
        return f"no table yet: {len(begun)} of {len(folders)} runs have finished a stage"
    command = ["python", "scripts/report.py", *map(str, begun), "--out", str(out)]
    page = write_report(begun, out)
    return f"{summary(begun)}\nwrote {page}; again: {shlex.join(command)}"


if __name__ == "__main__":
    with one_line_errors():
        end_on_signals()
        main(sys.argv[1:])

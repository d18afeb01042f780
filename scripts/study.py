"""Does reflection pay? Train the arms, evaluate them, and write the document's tables and plots.

    python scripts/study.py                                    the embedded models
    python scripts/study.py --budget-minutes 100               stop cleanly after that
    python scripts/study.py --config config/study.py:sd14      Stable Diffusion, on GPUs
    python scripts/study.py --config config/study.py:rig       RL-RIG's phases
    python scripts/study.py --report                           only write what there is so far

Runs are processes of their own, resumable, several at once; the same command goes on where it was
stopped. Arms, seeds and budgets are in config/study.py. What the tables are made of is kept beside
the document (docs/study.csv; of RL-RIG docs/rig.jsonl), so that the runs themselves may go.
"""

import argparse
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from srrl.assess.pool import Job, Pool, check_minutes, refuse, run_all
from srrl.config import load_study
from srrl.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="config/study.py:tiny")
    parser.add_argument("--budget-minutes", type=float)
    parser.add_argument("--report", action="store_true", help="train nothing")
    args = parser.parse_args()
    study = load_study(args.config)
    check_minutes(args.budget_minutes)

    pool = Pool(study.parallel, study.threads, args.budget_minutes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    of_method = of_rig if study.get("method") == "rig" else of_srrl
    jobs, report = of_method(study)
    failed = [] if args.report else run_all(jobs, pool, Path(study.output_dir))
    print(report())
    refuse(failed, jobs)


def of_srrl(study: ConfigDict) -> tuple[list[Job], Callable[[], str]]:
    """The jobs of a study, and what writes its document."""
    from srrl.assess.arms import evaluations, expected, is_trained, runs_of, train_command
    from srrl.assess.results import write_results

    def todo(run) -> list[list[str]]:
        training = [] if run is None or is_trained(run) else [train_command(study, run)]
        return training + [e.command(study) for e in evaluations(study, run) if not e.done()]

    runs = runs_of(study)
    jobs = [Job("base", partial(todo, None), 0.0)]  # the model before training, only evaluated
    for run in runs:
        work = expected(study, run.arm, run.stages, "evaluations")
        jobs.append(Job(run.name, partial(todo, run), work))
    return jobs, lambda: write_results(study, runs)


def of_rig(study: ConfigDict) -> tuple[list, Callable[[], str]]:
    from srrl.assess.rig_study import jobs_of, write_results

    return jobs_of(study), lambda: write_results(study)


if __name__ == "__main__":
    with one_line_errors():
        main()

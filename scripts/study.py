"""Does reflection pay? Train the arms, evaluate them, and write the document's tables and plots.

    python scripts/study.py                                    the embedded models
    python scripts/study.py --budget-minutes 100               stop cleanly after that
    python scripts/study.py --config config/study.py:sd14      Stable Diffusion, on GPUs
    python scripts/study.py --config config/study.py:rig       RL-RIG's phases
    python scripts/study.py --report                           only write what there is so far

Runs are processes of their own, resumable, several at once; the same command goes on where it was
stopped. Arms, seeds and budgets are in config/study.py. A line of each finished run is kept beside
the document (docs/study.jsonl), so that the runs themselves may go: the tables are made from it.
"""

import argparse
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from srrl.config import REPOSITORY, load_study
from srrl.errors import UserError, one_line_errors

STOPPED = -1


class Pool:
    """Runs commands in so many processes at once, until a time."""

    def __init__(self, parallel: int, threads: int, deadline: float):
        self.parallel, self.deadline = parallel, deadline
        self.environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        if threads:
            self.environment["OMP_NUM_THREADS"] = str(threads)

    def command(self, command: list[str], log: Path) -> int:
        """Run one; its output goes to the log. STOPPED if the time was over."""
        log.parent.mkdir(parents=True, exist_ok=True)
        if time.monotonic() > self.deadline:
            return STOPPED
        with open(log, "a", encoding="utf-8") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, env=self.environment, cwd=REPOSITORY
            )
        while process.poll() is None:
            if time.monotonic() > self.deadline:
                process.terminate()
                process.wait()
                return STOPPED
            time.sleep(0.5)
        return process.returncode

    def all(self, jobs: list, work) -> None:
        """work(job) for all jobs, `parallel` at once, in their order."""
        left: queue.SimpleQueue = queue.SimpleQueue()
        for job in jobs:
            left.put(job)

        def worker() -> None:
            while time.monotonic() < self.deadline:
                try:
                    job = left.get_nowait()
                except queue.Empty:
                    return
                work(job)

        workers = [threading.Thread(target=worker) for _ in range(self.parallel)]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="config/study.py:tiny")
    parser.add_argument("--budget-minutes", type=float)
    parser.add_argument("--report", action="store_true", help="train nothing")
    args = parser.parse_args()
    study = load_study(args.config)
    if args.budget_minutes is not None and args.budget_minutes <= 0:
        raise UserError(f"--budget-minutes {args.budget_minutes}: above 0")

    deadline = time.monotonic() + 60 * (args.budget_minutes or 1e9)
    pool = Pool(study.parallel, study.threads, deadline)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    of_method = of_rig if study.get("method") == "rig" else of_srrl
    jobs, report = of_method(study)
    failed = [] if args.report else run_all(study, jobs, pool)
    print(report())
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} failed: {'; '.join(failed[:3])}")


@dataclass(frozen=True)
class Job:
    """What is to be run one after the other: `todo` gives the commands that are left; work: in any
    unit that all share."""

    name: str
    todo: Callable[[], list[list[str]]]
    work: float


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


def run_all(study: ConfigDict, jobs: list[Job], pool: Pool) -> list[str]:
    """Run what is left of the jobs; returns which have failed, and where it says why."""
    from srrl.run.tracking import Clock

    failed: list[str] = []
    left = [job for job in jobs if job.todo()]
    clock = Clock(sum(job.work for job in left))
    print(f"{len(jobs)} runs, {len(jobs) - len(left)} done, {study.parallel} at once", flush=True)

    def make(job: Job) -> None:
        log = Path(study.output_dir) / job.name / "output.log"
        for command in job.todo():
            code = pool.command(command, log)
            if code == STOPPED:
                return
            if code:
                failed.append(f"{job.name}: see {log}")
                return
        clock.advance(job.work)
        print(f"{job.name}: done  ETA {clock.eta()}", flush=True)

    try:
        pool.all(left, make)
    finally:  # also when interrupted: the workers end their processes and return
        pool.deadline = 0.0
    return failed


if __name__ == "__main__":
    with one_line_errors():
        main()

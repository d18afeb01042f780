"""Runs as processes of their own, several at once, until a time; for studies and sweeps."""

import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from srrl.config import REPOSITORY
from srrl.errors import UserError

STOPPED = -1


@dataclass(frozen=True)
class Job:
    """What is to be run one after the other: `todo` gives the commands that are left; work: in any
    unit that all share."""

    name: str
    todo: Callable[[], list[list[str]]]
    work: float


class Pool:
    """Runs commands in so many processes at once, until a time."""

    def __init__(self, parallel: int, threads: int, budget_minutes: float | None = None):
        self.parallel = parallel
        self.deadline = time.monotonic() + 60 * (budget_minutes or 1e9)
        self.environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        if threads:
            self.environment["OMP_NUM_THREADS"] = str(threads)

    def command(self, command: list[str], log: Path) -> int:
        """Run one; its output goes to the log. STOPPED if the time was over."""
        log.parent.mkdir(parents=True, exist_ok=True)
        if time.monotonic() > self.deadline:
            return STOPPED
        with open(log, "a", encoding="utf-8") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=self.environment)
        while process.poll() is None:
            if time.monotonic() > self.deadline:
                process.terminate()
                process.wait()
                return STOPPED
            time.sleep(0.5)
        return process.returncode

    def all(self, jobs: list[Job], work: Callable[[Job], object]) -> None:
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


def check_minutes(budget_minutes: float | None) -> None:
    """Raise UserError for a --budget-minutes that is no time."""
    if budget_minutes is not None and budget_minutes <= 0:
        raise UserError(f"--budget-minutes {budget_minutes}: above 0")


def run_all(jobs: Sequence[Job], pool: Pool, folder: Path) -> list[str]:
    """Run what is left of the jobs, each of which logs to output.log in its folder below this one;
    returns which have failed, and where it says why."""
    from srrl.run.tracking import Clock  # this imports torch

    failed: list[str] = []
    left = [job for job in jobs if job.todo()]
    clock = Clock(sum(job.work for job in left))
    print(f"{len(jobs)} runs, {len(jobs) - len(left)} done, {pool.parallel} at once", flush=True)

    def make(job: Job) -> None:
        log = folder / job.name / "output.log"
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


def refuse(failed: Sequence[str], jobs: Sequence[Job]) -> None:
    """Raise UserError if any of the jobs has failed."""
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} failed: {'; '.join(failed[:3])}")

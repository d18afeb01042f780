"""A run as its folder tells it: config, logs and environment. What is damaged or not there yet is
left out, and counted."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from srrl.checks import PHASES
from srrl.config import resolve, saved_values, starts
from srrl.errors import UserError
from srrl.prompts import evenly, load_prompts
from srrl.rig.wishes import wishes_of
from srrl.run import manifest
from srrl.run.folder import LOGS, read_lines, stages

MOST = 10**9  # no run has so many stages or seconds
PACE = 3  # stages that the time left is reckoned by


@dataclass(frozen=True, eq=False)
class Run:
    """A run, or a phase of RL-RIG's training.

    part         the phase's name, else ""
    config       flat; empty where it is lost
    metrics      lines of metrics.jsonl by ascending stage
    evals        lines of eval.jsonl that are whole
    environment  what made it, an entry for each start; empty where that was not written
    unread       for each log the lines that are torn or damaged, where there are any
    """

    folder: Path
    name: str
    part: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    environment: list[dict[str, Any]]
    unread: dict[str, int]

    @property
    def title(self) -> str:
        return f"{self.name}/{self.part}" if self.part else self.name

    @property
    def method(self) -> str:
        return str(self.config.get("method", "srrl"))

    @property
    def done(self) -> int:
        return self.metrics[-1]["stage"] if self.metrics else 0

    @property
    def total(self) -> int | None:
        found = self.config.get("stages.total")
        return found if _is_count(found) else None

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Lines of samples.jsonl, as they were written."""
        return [line for line in read_lines(self.folder / "samples.jsonl") if _has_stage(line)]

    @cached_property
    def rewards(self) -> list[str]:
        """Of which a stage's mean or an evaluation is logged."""
        keys = dict.fromkeys(key for line in self.metrics for key in line)
        sampled = [k[7:-5] for k in keys if k.startswith("reward/") and k.endswith("/mean")]
        return list(dict.fromkeys([*sampled, *(line["reward"] for line in self.evals)]))

    def values(self, key: str) -> list[float]:
        """A number of each stage's metrics; NaN where it is none."""
        return [number(line.get(key)) for line in self.metrics]

    @cached_property
    def sampled(self) -> list[float]:
        """The samples of each stage."""
        totals = self.values("samples_total")
        return [after - before for before, after in zip([0.0, *totals], totals, strict=False)]

    @cached_property
    def phases(self) -> dict[str, list[float]]:
        """The seconds that each phase took in each stage."""
        keys = dict.fromkeys(key for line in self.metrics for key in line)
        return {k[8:]: self.values(k) for k in keys if k.startswith("seconds/")}

    @property
    def stage_seconds(self) -> list[float]:
        """The seconds of each stage, evaluations and pictures aside."""
        columns = zip(*self.phases.values(), strict=True)
        return [math.fsum(s for s in column if math.isfinite(s)) for column in columns]

    @property
    def seconds_left(self) -> float | None:
        """Of the stages left, at the pace of the last ones; None where that is not known."""
        last = self.stage_seconds[-PACE:]
        if not self.total or not last or self.done >= self.total:
            return None
        return (self.total - self.done) * sum(last) / len(last)

    def judged(self, split: str) -> list[str] | None:
        """The prompts that a split is evaluated on; None where their file cannot be read."""
        return self._judged.get(split)

    @cached_property
    def _judged(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        count = self.config.get("eval.num_prompts")
        if not isinstance(count, int):
            return found
        for split in ("train", "heldout"):
            try:
                file = resolve(str(self.config.get(f"prompts.{split}", "")))
                if self.method == "rig":
                    found[split] = evenly([wish.prompt for wish in wishes_of(file)], count)
                else:
                    found[split] = evenly(load_prompts(file), count)
            except (UserError, OSError, ValueError):
                continue
        return found


def number(value: Any) -> float:
    """A float of what a log says; NaN where it is none, as of null, which is written for NaN."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good and abs(value) < sys.float_info.max else math.nan


def read_runs(folder: Path) -> list[Run]:
    """The run in a folder, or the phases of RL-RIG's training. Raises UserError where there is
    none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: give a run's, as runs/tiny")
    phases = [phase for phase in PHASES if _is_run(folder / phase)]
    parts = phases or ([""] if _is_run(folder) else [])
    if not parts:
        raise UserError(
            f"{folder} is no run: it has no config.json that a run writes, and no logs: give a "
            f"run's folder, as runs/tiny"
        )
    return [_read(folder, part) for part in parts]


def written(folder: Path) -> Iterator[Path]:
    """What a run, or its phases, write as they go on: logs, and what is drawn after them."""
    for part in ("", *PHASES):
        for pattern in (*LOGS, "*.json", "curves.png", "progress_K*.png"):
            yield from (folder / part).glob(pattern)


def _is_run(folder: Path) -> bool:
    logs = any((folder / name).is_file() for name in LOGS)
    return logs or saved_values(folder / "config.json") is not None


def _read(folder: Path, part: str) -> Run:
    own = folder / part
    logs = {name: read_lines(own / name) for name in ("metrics.jsonl", "eval.jsonl")}
    metrics = {line["stage"]: line for line in logs["metrics.jsonl"] if _has_stage(line)}
    evals = [line for line in logs["eval.jsonl"] if _is_evaluation(line)]
    good = {"metrics.jsonl": len(metrics), "eval.jsonl": len(evals)}
    counts = {name: _count(own / name) for name in good}
    return Run(
        own,
        folder.resolve().name,
        part,
        _config(own),
        [metrics[stage] for stage in sorted(metrics)],
        evals,
        starts(own) or starts(folder),
        {name: n - good[name] for name, n in counts.items() if n > good[name]},
    )


def _config(folder: Path) -> dict[str, Any]:
    saved = saved_values(folder / "config.json")
    for checkpoint in stages(folder) if saved is None else []:
        try:
            return manifest.read(checkpoint)["config"]
        except (ValueError, OSError):
            continue
    return saved or {}


def _count(file: Path) -> int:
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    return sum(bool(line.strip()) for line in text.splitlines())


def _has_stage(line: dict[str, Any]) -> bool:
    return _is_count(line.get("stage"))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST


def _is_evaluation(line: dict[str, Any]) -> bool:
    whole = all(_is_count(line.get(k)) for k in ("stage", "rounds", "n", "seeds"))
    whole = whole and type(line.get("first_seed")) is int
    named = all(isinstance(line.get(k), str) for k in ("split", "reward"))
    scores = line.get("scores")
    fits = whole and isinstance(scores, list) and 0 < len(scores) == line["n"]
    return bool(named and fits and line["seeds"] > 0 and line["n"] % line["seeds"] == 0)

"""A run's evaluations with 95% intervals over prompts, and their differences where they pair."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from srrl.report.arms import Arm, arms_of, partner
from srrl.report.gather import Run, number
from srrl.run.statistics import by_prompt, interval

Key = tuple[str, str, int]  # split, reward, K


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval, which is infinite for a single prompt."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Tensor) -> "Estimate":
        """Of float64 [P], a value for each prompt."""
        return cls(*interval(values))


@dataclass(frozen=True)
class Evaluation:
    """After a stage: scores float64 [n] of fixed pictures, seeds outermost; judged says which:
    their number, the seeds of a prompt, and the first of these."""

    stage: int
    judged: tuple[int, int, int]
    scores: Tensor
    estimate: Estimate

    @property
    def prompts(self) -> Tensor:
        """The mean of each prompt's pictures, float64 [P]."""
        return by_prompt(self.scores, self.judged[1])


@dataclass(frozen=True)
class Score:
    """A line of the table of scores: of one run, split, reward and K.

    gain    the last evaluation less the first one of the same pictures
    beside  the run that it is compared with (arms.partner); None for that run itself
    than    the last one, and the best, less that run's; None where they do not pair, and `apart`
            says why
    """

    run: Run
    split: str
    reward: str
    rounds: int
    first: Evaluation
    best: Evaluation
    last: Evaluation
    gain: Estimate
    beside: Run | None = None
    than: tuple[Estimate, Estimate] | None = None
    apart: str = ""

    @property
    def key(self) -> Key:
        return self.split, self.reward, self.rounds


@lru_cache(maxsize=64)
def evaluations(run: Run) -> dict[Key, list[Evaluation]]:
    """A run's, by ascending stage."""
    found: dict[Key, dict[int, Evaluation]] = {}
    for line in run.evals:
        scores = torch.tensor([number(s) for s in line["scores"]], dtype=torch.float64)
        judged = line["n"], line["seeds"], line["first_seed"]
        estimate = Estimate.of(by_prompt(scores, line["seeds"]))
        key = line["split"], line["reward"], line["rounds"]
        stage = line["stage"]
        found.setdefault(key, {})[stage] = Evaluation(stage, judged, scores, estimate)
    return {key: [of[stage] for stage in sorted(of)] for key, of in found.items()}


def difference(before: Evaluation, after: Evaluation) -> Estimate:
    """after - before, paired by prompt."""
    return Estimate.of(after.prompts - before.prompts)


def scores(run: Run) -> list[Score]:
    """A run's table. Its first evaluation is the first of the pictures that the last one judges."""
    found = []
    for key, some in evaluations(run).items():
        same = [e for e in some if e.judged == some[-1].judged]
        best = max(same, key=lambda e: e.estimate.mean if math.isfinite(e.estimate.mean) else -1e99)
        gain = difference(same[0], same[-1])
        found.append(Score(run, *key, same[0], best, same[-1], gain))
    return found


def compared(runs: Sequence[Run]) -> list[Score]:
    """The tables of all runs, ordered by what is judged; each beside the first run's, or that of
    the first arm with the same seed."""
    arms = arms_of(runs)
    tables = {run: {score.key: score for score in scores(run)} for run in runs}
    keys = dict.fromkeys(key for table in tables.values() for key in table)
    return [
        _beside(partner(arms, run), tables[partner(arms, run)].get(key), table[key])
        for key in keys
        for run, table in tables.items()
        if key in table
    ]


def _beside(run: Run, other: Score | None, score: Score) -> Score:
    if other is score:
        return score
    apart = why_apart(other, score)
    than = None
    if other and not apart:
        than = difference(other.last, score.last), difference(other.best, score.best)
    return replace(score, beside=run, than=than, apart=apart)


@dataclass(frozen=True)
class ArmScore:
    """A line of the table of arms: the last evaluations of an arm's runs by a split, reward and K.

    values  the mean of each run
    gains   of each that pairs with the first arm's run of its seed, the mean difference, prompt by
            prompt
    gained  their mean over the seeds, with an interval over prompts: of these seeds, not of others
    """

    arm: Arm
    key: Key
    stages: list[int]
    values: list[float]
    gains: list[float]
    gained: Estimate | None


def arm_scores(runs: Sequence[Run]) -> list[ArmScore]:
    """The table of arms, ordered by what is judged."""
    arms, table = arms_of(runs), compared(runs)
    lasts = {(score.key, score.run): score.last for score in table}
    return [
        _arm_score(arm, key, [s for s in table if s.key == key and s.run in arm.runs], lasts)
        for key in dict.fromkeys(score.key for score in table)
        for arm in arms
        if any((key, run) in lasts for run in arm.runs)
    ]


def _arm_score(
    arm: Arm, key: Key, own: Sequence[Score], lasts: dict[tuple[Key, Run], Evaluation]
) -> ArmScore:
    gains = []
    for score in own:
        beside = score.beside
        if beside is None:
            continue
        same = beside.config.get("seed") == score.run.config.get("seed")
        if same and beside not in arm.runs and not score.apart:
            gains.append(score.last.prompts - lasts[key, beside].prompts)
    alike = bool(gains) and len({len(gain) for gain in gains}) == 1
    return ArmScore(
        arm,
        key,
        [score.last.stage for score in own],
        [score.last.estimate.mean for score in own],
        [gain.mean().item() for gain in gains],
        Estimate.of(torch.stack(gains).mean(0)) if alike else None,
    )


def why_apart(one: Score | None, other: Score) -> str:
    """Why two runs' evaluations are not of the same prompts and seeds; "" where they are."""
    if one is None:
        return "the first run has no such evaluation"
    (n, seeds, first), (m, others, start) = one.last.judged, other.last.judged
    if (n, seeds) != (m, others):
        return f"other prompts or seeds: {m // others} x {others}, not {n // seeds} x {seeds}"
    if first != start:
        return f"other seeds: from {start}, not {first}"
    ours, theirs = (s.run.judged(s.split) for s in (one, other))
    files = [s.run.config.get(f"prompts.{s.split}") for s in (one, other)]
    if ours and theirs and ours != theirs:
        return f"other prompts: of {files[1]}, not of {files[0]}"
    if not (ours and theirs) and (files[0] is None or files[0] != files[1]):
        return "whether the prompts are the same is not known"
    return ""


def table_lines(table: Sequence[Score]) -> Iterator[dict[str, Any]]:
    """The lines of report.csv."""
    for s in table:
        n, seeds, first_seed = s.last.judged
        last, best = s.than or (None, None)
        yield {
            "run": s.run.title,
            "folder": str(s.run.folder),
            "split": s.split,
            "reward": s.reward,
            "rounds": s.rounds,
            "prompts": n // seeds,
            "seeds": seeds,
            "first_seed": first_seed,
            **_columns("first", s.first),
            **_columns("best", s.best),
            **_columns("last", s.last),
            **_bounds("gain", s.gain),
            "first_run": s.beside.title if s.beside else "",
            **_bounds("last_minus_first_run", last),
            **_bounds("best_minus_first_run", best),
            "not_paired": s.apart,
        }


def _columns(name: str, e: Evaluation) -> dict[str, Any]:
    return {f"{name}_stage": e.stage, **_bounds(name, e.estimate)}


def _bounds(name: str, estimate: Estimate | None) -> dict[str, Any]:
    """Numbers that cannot be given are empty."""
    values = (estimate.mean, estimate.low, estimate.high) if estimate else (math.nan,) * 3
    shown = [round(v, 6) if math.isfinite(v) else None for v in values]
    return dict(zip((f"{name}_mean", f"{name}_low", f"{name}_high"), shown, strict=True))

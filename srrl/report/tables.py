"""The table of arms in words: as text, for the page and as lines of arms.csv."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from srrl.report.gather import Run
from srrl.report.scores import ArmScore, Estimate, arm_scores
from srrl.run.statistics import spread


def arm_table(runs: Sequence[Run]) -> list[list[str]]:
    """A row for each arm and what it is judged by, under a heading; none where nothing is judged.
    Of two seeds both values are shown, of three and more the 95% interval over them."""
    table = arm_scores(runs)
    if not table:
        return []
    keys, first = list(table[0].arm.shown), table[0].arm.title
    heads = ("runs", "stage", "mean", "by seed", f"less {first}", "by seed", "95% over prompts")
    return [["judged", *keys, *heads], *(_row(score) for score in table)]


def _row(score: ArmScore) -> list[str]:
    (split, reward, rounds), gained = score.key, score.gained
    return [
        f"{split}, {reward}, K = {rounds}",
        *score.arm.shown.values(),
        str(len(score.values)),
        _stages(score.stages),
        _number(_mean(score.values)),
        spread(score.values),
        _number(_mean(score.gains), "+"),
        spread(score.gains, "+"),
        f"[{gained.low:+.3f}, {gained.high:+.3f}]" if gained and _known(gained) else "",
    ]


def text_of(table: Sequence[Sequence[str]]) -> str:
    """For the terminal, in columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def arm_lines(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """The lines of arms.csv; numbers that cannot be given are empty."""
    for score in arm_scores(runs):
        split, reward, rounds = score.key
        gained = score.gained if _known(score.gained) else None
        yield {
            "arm": score.arm.title,
            **score.arm.values,
            "split": split,
            "reward": reward,
            "rounds": rounds,
            "runs": len(score.values),
            "stage": _stages(score.stages),
            "mean": _rounded(_mean(score.values)),
            "by_seed": _listed(score.values),
            "difference": _rounded(_mean(score.gains)),
            "difference_by_seed": _listed(score.gains),
            "over_prompts_low": _rounded(gained.low) if gained else None,
            "over_prompts_high": _rounded(gained.high) if gained else None,
        }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _known(estimate: Estimate | None) -> bool:
    return estimate is not None and math.isfinite(estimate.low + estimate.high)


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if math.isfinite(value) else ""


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _listed(values: Sequence[float]) -> str:
    return " ".join(str(round(value, 6)) for value in values)


def _stages(stages: Sequence[int]) -> str:
    low, high = min(stages), max(stages)
    return str(low) if low == high else f"{low} to {high}"

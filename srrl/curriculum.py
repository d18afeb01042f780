"""The stage plan: how many rounds a stage has and how many last steps it trains.

SRRL grows the number of reflections from cycle to cycle, and within each cycle of `per_cycle`
stages walks the trained interval back from the end of the trajectory (as B2-DiffuRL does).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class StagePlan:
    """stage: its index n; rounds: K; trained_steps: m, the last m of the T denoising steps."""

    stage: int
    rounds: int
    trained_steps: int


def interval_steps(stage: int, per_cycle: int, left: int, right: int) -> int:
    """m = left + i (right - left + 1) div per_cycle, with i = n mod per_cycle."""
    return left + (stage % per_cycle) * (right - left + 1) // per_cycle


def stage_plan(
    stage: int,
    *,
    per_cycle: int,
    left: int,
    right: int,
    rounds: int | None = None,
    max_rounds: int | None = None,
    trained_steps: int | None = None,
) -> StagePlan:
    """The plan of stage n: K = 1 + n div per_cycle and the interval above, unless fixed."""
    grown = 1 + stage // per_cycle
    if max_rounds is not None:
        grown = min(grown, max_rounds)
    return StagePlan(
        stage=stage,
        rounds=rounds if rounds is not None else grown,
        trained_steps=trained_steps
        if trained_steps is not None
        else interval_steps(stage, per_cycle, left, right),
    )

"""The stage plan: how many rounds a stage has and how many last steps it trains; and after which
stages the policy is evaluated and pictures are written.

SRRL grows the number of reflections from cycle to cycle, and within each cycle of `per_cycle`
stages walks the trained interval back from the end of the trajectory (as B2-DiffuRL does).
"""

from dataclasses import dataclass, replace

from ml_collections import ConfigDict


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


def plan_for(c: ConfigDict, stage: int) -> StagePlan:
    """The plan of a stage under the config. Where a reflection walks back only reflect.depth steps,
    no more than those are there to train."""
    plan = stage_plan(
        stage,
        per_cycle=c.stages.per_cycle,
        left=c.interval.left,
        right=c.interval.right,
        rounds=c.reflect.rounds,
        max_rounds=c.reflect.max_rounds,
        trained_steps=c.interval.steps,
    )
    if c.reflect.depth is None or plan.rounds == 1:
        return plan
    return replace(
        plan, trained_steps=min(plan.trained_steps, c.reflect.depth - c.interval.skip_last)
    )


def reflected_at(c: ConfigDict, stage: int) -> int:
    """The stage whose reflections a stage begins from, and whose prompts it has: with reflect.reuse
    the first of so many that share them and have as many rounds, else its own."""
    rounds = plan_for(c, stage).rounds
    if c.reflect.reuse == 1 or rounds == 1:
        return stage
    first = 0 if c.reflect.rounds is not None else (rounds - 1) * c.stages.per_cycle
    return stage - (stage - first) % c.reflect.reuse


def judges_first(c: ConfigDict) -> bool:
    """Are the first of several rounds scored while sampling?"""
    return c.reflect.when == "failed" or c.reflect.baseline > 0


def shows_pictures(c: ConfigDict, stage: int) -> bool:
    """Is a stage one whose pictures are written, its reflecting rounds' as well?"""
    every, total = c.pictures.every, c.stages.total
    return stage == 0 or (stage + 1) % every == 0 or stage + 1 == total


def evaluated_stages(c: ConfigDict) -> list[int]:
    """After how many stages the policy is evaluated: 0, every eval.every, and all; or never."""
    if not c.eval.every:
        return []
    return sorted({*range(0, c.stages.total + 1, c.eval.every), c.stages.total})

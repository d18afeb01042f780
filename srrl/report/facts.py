"""What a run is, in the lines at the top of its page, and what it took."""

import datetime
import math
from collections.abc import Iterator
from dataclasses import dataclass

from srrl.report.gather import MOST, PACE, Run

PAPERS = {"srrl": "SRRL (arXiv 2505.22407)", "rig": "RL-RIG (arXiv 2602.19974)"}


@dataclass(frozen=True)
class Cost:
    """The seconds of a phase: of all stages, of the last one, and its share of all phases'."""

    phase: str
    seconds: float
    last: float
    share: float


def facts(run: Run) -> Iterator[tuple[str, str]]:
    """Names and values."""
    c = run.config
    method = PAPERS.get(run.method, run.method)
    yield "Method", f"{method}, phase {run.part}" if run.part else method
    yield from _models(run)
    rewards = c.get("reward.models")
    if isinstance(rewards, dict):
        weighted = ", ".join(f"{name} (weight {weight})" for name, weight in rewards.items())
        yield "Judged by" if run.method == "rig" else "Rewards", weighted
    for name, key in (("Train prompts", "train"), ("Held-out prompts", "heldout")):
        if file := c.get(f"prompts.{key}"):
            yield name, str(file)
    if "seed" in c:
        yield "Seed", str(c["seed"])
    yield "Stages", progress(run)
    if run.metrics:
        last = run.metrics[-1]
        for name, key in (("Samples", "samples_total"), ("Network evaluations", "nfe_total")):
            if isinstance(last.get(key), int):
                yield name, f"{last[key]:,}"
        yield "Time in stages", duration(math.fsum(run.stage_seconds))


def _models(run: Run) -> Iterator[tuple[str, str]]:
    c = run.config
    for name, key in (("Model", "pretrained"), ("Editor", "editor"), ("Actor", "actor")):
        if model := c.get(f"{key}.model"):
            yield name, str(model)
    if model := c.get("checker.model"):
        yield "Checker", str(model)
    if "lora.rank" in c:
        lora = f"a LoRA of rank {c['lora.rank']}"
        of = f"the {run.part}'s" if run.part else "the UNet's"
        yield "Trained", f"{lora} on {of} layers" if c.get("use_lora", True) else "every weight"


def progress(run: Run) -> str:
    """How far a run is, and the time left."""
    if run.total is None:
        return f"{run.done}; how many there will be is not known"
    if run.done >= run.total:
        return f"{run.done} of {run.total}, finished"
    if run.seconds_left is None:
        return f"{run.done} of {run.total}"
    stages = min(PACE, len(run.metrics))
    return (
        f"{run.done} of {run.total}; about {duration(run.seconds_left)} left at the pace of the "
        f"last {stages if stages > 1 else 'one'}, evaluations aside"
    )


def costs(run: Run) -> list[Cost]:
    """The seconds by phase."""
    sums = {
        phase: math.fsum(s for s in seconds if math.isfinite(s))
        for phase, seconds in run.phases.items()
    }
    total = math.fsum(sums.values()) or 1.0
    return [
        Cost(phase, seconds, run.phases[phase][-1], seconds / total)
        for phase, seconds in sums.items()
    ]


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, like "1:02:03"."""
    return str(datetime.timedelta(seconds=round(min(max(seconds, 0), MOST))))

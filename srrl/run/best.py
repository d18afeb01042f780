"""The best of a run's evaluated stages, and its checkpoints by name: RUN:best, RUN:last, RUN:16."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srrl.config import saved_values
from srrl.errors import UserError
from srrl.run.folder import read_lines, stage_folder, stage_of, stages

# What RL-RIG's loop is judged by, the truth before what its checker sees.
OF_RIG = ("exact", "checker")


@dataclass(frozen=True)
class Judged:
    """An evaluated stage and its score by a split and K rounds."""

    stage: int
    split: str
    rounds: int
    score: float

    def __str__(self) -> str:
        return f"on {self.split} prompts, K {self.rounds}: {self.score:.3f} after {self.stage}"


def best(run: Path) -> Judged | None:
    """The best stage of a run's folder by its eval.best, None where no evaluation is logged: by the
    weighted sum of its rewards, of RL-RIG by the share of requirements met. The first of equals,
    among those judged by the same prompts and seeds as the last."""
    kept = with_weights(run)
    judged = [one for one in evaluated(run) if one.stage in kept]
    return max(judged, key=lambda one: one.score, default=None)


def evaluated(run: Path) -> list[Judged]:
    """The stages that were judged by what a run's eval.best says, in their order."""
    config = saved_values(run / "config.json") or {}
    lines = [line for line in read_lines(run / "eval.jsonl") if is_evaluation(line)]
    if not lines:
        return []
    named = re.fullmatch(r"(\w+):(\d{1,4})", str(config.get("eval.best")))
    split, rounds = (named[1], int(named[2])) if named else by_default(lines)
    lines = [e for e in lines if e["split"] == split and e["rounds"] == rounds]
    lines = [e for e in lines if images_of(e) == images_of(lines[-1])]
    means: dict[int, dict[str, float]] = {}
    for line in lines:
        means.setdefault(line["stage"], {})[line["reward"]] = line["mean"]
    return [Judged(n, split, rounds, total(config, of_n)) for n, of_n in sorted(means.items())]


def is_evaluation(line: dict[str, Any]) -> bool:
    """Whether a line of eval.jsonl has what it should, and a mean that is a number."""
    whole = all(type(line.get(key)) is int for key in ("stage", "rounds", "n", "seeds"))
    named = line.get("split") in ("train", "heldout") and type(line.get("reward")) is str
    return whole and named and type(line.get("mean")) in (int, float)


def latest(run: Path, stage: int) -> str:
    """What is watched of a run after so many stages, like "heldout 0.412"; "" before it is judged.
    With the stage that was judged where that is an earlier one."""
    judged = evaluated(run)[-1:]
    return "".join(
        f"{one.split} {one.score:.3f}" + (f" (after {one.stage})" if one.stage < stage else "")
        for one in judged
    )


def with_weights(run: Path) -> list[int]:
    """The stages of a run's checkpoints, the newest first; none that is torn."""
    whole = (folder for folder in stages(run) if any(folder.rglob("*.safetensors")))
    return [stage_of(folder) for folder in whole]


def by_default(lines: list[dict[str, Any]]) -> tuple[str, int]:
    """The split and K where eval.best is unset: held-out prompts where there are any, most
    rounds."""
    last = [line for line in lines if line["stage"] == lines[-1]["stage"]]
    split = "heldout" if any(line["split"] == "heldout" for line in last) else "train"
    return split, max(line["rounds"] for line in last if line["split"] == split)


def images_of(line: dict[str, Any]) -> tuple[int | None, ...]:
    return line["n"], line["seeds"], line.get("first_seed")


def total(config: dict[str, Any], means: dict[str, float]) -> float:
    """A stage's score by its mean of each reward."""
    if config.get("method") == "rig":
        found = [means[name] for name in OF_RIG if name in means]
        if found:
            return found[0]
    weights = config.get("reward.models")
    weights = weights if isinstance(weights, dict) else {}
    known = {name: w for name, w in weights.items() if type(w) in (int, float)}
    return sum(known.get(name, 0) * mean for name, mean in means.items())


def named_folder(given: str | Path, named: str) -> Path:
    """A path, or the folder of a checkpoint that is given as RUN:best, RUN:last or RUN:STAGE.
    Raises UserError, which says who asked, where a run has none of that name."""
    run, colon, which = str(given).rpartition(":")
    if not colon or Path(given).exists() or not Path(run).is_dir():
        return Path(given)
    found = with_weights(Path(run))
    if which == "best":
        chosen = best(Path(run))
        if chosen is None:
            raise UserError(f"{named}: no stage of it was evaluated: give RUN:last or RUN:STAGE")
        return stage_folder(Path(run), chosen.stage)
    stage = found[0] if which == "last" and found else int(which) if which.isdecimal() else None
    if stage not in found:
        there = ", ".join(map(str, found[::-1])) or "none"
        raise UserError(f"{named}: no checkpoint {which!r}: best, last, or one of {there}")
    return stage_folder(Path(run), stage)

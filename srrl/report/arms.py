"""Runs that differ only in their seed, which say one thing together."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from srrl.report.gather import Run
from srrl.report.presets import NAMES, differing

MOST_KEYS = 4


@dataclass(frozen=True, eq=False)
class Arm:
    """Runs of one config but for the seed; values: of the keys in which arms differ."""

    runs: list[Run]
    values: dict[str, str]

    @property
    def shown(self) -> dict[str, str]:
        """What it is told apart by: its values, or its first run where they are none or too many to
        be read."""
        few = 0 < len(self.values) <= MOST_KEYS
        return self.values if few else {"run": self.runs[0].title}

    @property
    def title(self) -> str:
        return ", ".join(self.shown.values())


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """The arms in the order of their first runs; a run whose config is lost is one by itself."""
    groups: dict[object, list[Run]] = {}
    for run in runs:
        own = {key: value for key, value in run.config.items() if key not in (*NAMES, "seed")}
        groups.setdefault(json.dumps(own, sort_keys=True) if own else run, []).append(run)
    firsts = [some[0] for some in groups.values()]
    keys = {key: values for key, values in differing(firsts).items() if key != "seed"}
    return [
        Arm(some, {key: values[i] for key, values in keys.items()})
        for i, some in enumerate(groups.values())
    ]


def partner(arms: Sequence[Arm], run: Run) -> Run:
    """Which run a run is compared with: that of its seed in the first arm, and where there is none,
    or the run is of that arm, the first one."""
    first, seed = arms[0], run.config.get("seed")
    if run in first.runs or seed is None:
        return first.runs[0]
    return next((r for r in first.runs if r.config.get("seed") == seed), first.runs[0])

"""Scores to advantages to selected trajectories: per-prompt history, standardising, selecting.

Pure but for `ScoreHistory`, which remembers each prompt's scores of the last stages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Key = str  # a prompt, or prompt and round where every round is scored


def with_total(scores: Mapping[str, Any], weights: Mapping[str, float]) -> dict[str, Any]:
    """Scores by reward, numbers or tensors, and of several rewards their weighted sum besides, as
    "total"."""
    if len(scores) < 2 or scores.keys() != weights.keys():
        return dict(scores)
    return {**scores, "total": sum(weights[name] * score for name, score in scores.items())}


@dataclass
class ScoreHistory:
    """Raw scores of every reward for each key, over the last `length` stages.

    entries[key] is a list of (stage, {reward: [scores]}), oldest first.
    """

    length: int
    entries: dict[Key, list[tuple[int, dict[str, list[float]]]]] = field(default_factory=dict)

    def recent(self, key: Key, reward: str, stage: int) -> list[float]:
        """The key's scores in the `length` stages before `stage`."""
        kept = [s for n, s in self.entries.get(key, []) if stage - self.length <= n < stage]
        return [value for scores in kept for value in scores.get(reward, [])]

    def spreads(self, weights: Mapping[str, float]) -> dict[Key, float]:
        """For each key the standard deviation of the weighted sums of its scores."""
        found = {}
        for key, entries in self.entries.items():
            sums: list[Any] = [
                sum(weights[name] * torch.tensor(scores[name]).double() for name in weights)
                for _, scores in entries
            ]
            found[key] = torch.cat(sums).std(unbiased=False).item()
        return found

    def add(self, stage: int, key: Key, scores: dict[str, list[float]]) -> None:
        """Remember a stage's scores and forget those that are too old to be used again."""
        kept = [e for e in self.entries.get(key, []) if stage - self.length < e[0] != stage]
        self.entries[key] = [*kept, (stage, scores)]


def standardise(values: Tensor, window: Tensor) -> Tensor:
    """(values - mean) / (std + 1e-8) with the window's mean and unbiased std.

    A window of one score has no std: the result is 0.
    """
    if len(window) < 2:
        return torch.zeros_like(values)
    return (values - window.mean()) / (window.std(unbiased=True) + 1e-8)


def prompt_advantages(
    scores: Mapping[str, Tensor], history: Mapping[str, Tensor], weights: Mapping[str, float]
) -> Tensor:
    """Advantages float64 [N] of one prompt's N scores, given its H earlier ones.

    scores, history: for each reward float [N] and [H]. Each reward is standardised over all
    N + H scores, the weighted sum over the rewards is standardised the same way again.
    """
    combined = torch.zeros(0, dtype=torch.float64)
    for reward, weight in weights.items():
        window = torch.cat([scores[reward].double(), history[reward].double()])
        z = weight * standardise(window, window)
        combined = z if len(combined) == 0 else combined + z
    now = len(next(iter(scores.values())))
    return standardise(combined[:now], combined)


def stage_advantages(
    keys: list[Key],
    scores: Mapping[str, Tensor],
    weights: Mapping[str, float],
    history: ScoreHistory,
    stage: int,
) -> Tensor:
    """Advantages float32 [N] of a stage's N trajectories; adds their scores to the history.

    keys: for each trajectory what it is compared within; scores: for each reward float32 [N].
    """
    advantages = torch.zeros(len(keys), dtype=torch.float64)
    for key in dict.fromkeys(keys):
        rows = torch.tensor([i for i, k in enumerate(keys) if k == key])
        now = {reward: scores[reward][rows] for reward in weights}
        before = {r: torch.tensor(history.recent(key, r, stage)) for r in weights}
        advantages[rows] = prompt_advantages(now, before, weights)
        history.add(stage, key, {reward: now[reward].tolist() for reward in weights})
    return advantages.float()


def select(
    advantages: Tensor, groups: Tensor, pos_threshold: float, neg_threshold: float, mode: str
) -> Tensor:
    """Indices int64 [S] of the trajectories to train on, ascending.

    mode "extremes": in each group (int64 [N]) the best one if its A >= pos_threshold and the
    worst one if its A < neg_threshold; ties go to the first. mode "all": every trajectory.
    """
    if mode == "all":
        return torch.arange(len(advantages))
    chosen: set[int] = set()
    for group in groups.unique().tolist():
        rows = (groups == group).nonzero()[:, 0]
        best, worst = rows[advantages[rows].argmax()], rows[advantages[rows].argmin()]
        if advantages[best] >= pos_threshold:
            chosen.add(int(best))
        if advantages[worst] < neg_threshold:
            chosen.add(int(worst))
    return torch.tensor(sorted(chosen), dtype=torch.int64)

"""Reflection-GRPO's arithmetic (arXiv 2602.19974; group advantages of arXiv 2402.03300): rewards of
groups to advantages, which groups teach something, and an edit's likeness. Pure functions of
tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from srrl.run.statistics import paired_difference

EPS = 1e-4


@dataclass(frozen=True)
class Groups:
    """Of S groups of G attempts: advantages float32 [S, G]; and bool [S]: tied, all rewards are
    equal; hopeless, not tied and nothing passed more than before; kept, what is trained on."""

    advantages: Tensor
    tied: Tensor
    hopeless: Tensor
    kept: Tensor


def group(rewards: Tensor, gained: Tensor, clip: float, need_gain: bool) -> Groups:
    """A = (r - mean) / (std + 1e-4) in [-clip, clip], over a group alone.

    rewards: float [S, G]; gained: bool [S, G], which attempts pass more than the picture before
    them. need_gain: leave out the groups in which none does. Raises ValueError for groups of one.
    """
    size = rewards.shape[1]
    if size < 2:
        raise ValueError("a group of one: its reward has nothing to be compared with")
    rewards = rewards.double()
    mean = rewards.mean(1, keepdim=True)
    std = ((rewards - mean).square().sum(1, keepdim=True) / (size - 1)).sqrt()
    tied = rewards.max(1).values - rewards.min(1).values < 1e-9
    advantages = ((rewards - mean) / (std + EPS)).clamp(-clip, clip)
    advantages = torch.where(tied[:, None], torch.zeros_like(advantages), advantages)
    hopeless = ~gained.any(1) & ~tied
    kept = ~tied & ~hopeless if need_gain else ~tied
    return Groups(advantages.float(), tied, hopeless, kept)


def likeness(before: Tensor, after: Tensor, side: int = 8) -> Tensor:
    """float32 [B] of pictures uint8 [B, 3, H, W]: 1 less the mean difference of their blocks of
    side x side pixels, over the half of them that differ least. So an edit of up to half of the
    picture that leaves alone the rest has 1."""
    apart = (before.float() - after.float()).abs().mean(1, keepdim=True) / 255
    blocks = F.avg_pool2d(apart, side, ceil_mode=True).flatten(1)
    least = blocks.sort(1).values[:, : (blocks.shape[1] + 1) // 2]
    return 1 - least.mean(1)


def parted(checker: Sequence[Tensor], truth: Sequence[Tensor]) -> int | None:
    """Since which evaluation they have come apart: the one at which the truth was highest, if the
    checker's values have risen and the truth's fallen since, both by more than their 95% intervals
    (paired). Each evaluation's values are float [P], one a prompt.
    """
    best = max(range(len(truth)), key=lambda i: truth[i].mean().item())
    rise, rise_half = paired_difference(checker[best], checker[-1])
    fall, fall_half = paired_difference(truth[best], truth[-1])
    return best if rise - rise_half > 0 and fall + fall_half < 0 else None

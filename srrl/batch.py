"""What a stage trains on: selected trajectories, their steps in the order of the update, and the
objective of some of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from ml_collections import ConfigDict
from torch import Tensor

from srrl.curriculum import StagePlan
from srrl.ddim import log_prob
from srrl.models.conditioning import Conditioning
from srrl.models.policy import Policy
from srrl.ppo import Objective, clipped_objective
from srrl.rounds import RolloutSettings, generator


@dataclass(frozen=True)
class Batch:
    """The S trajectories to train on, the same on every process.

    latents float32 [S, m + 1, C, h, w], log_probs float32 [S, m], advantages float32 [S],
    conditioning of S rows.
    """

    latents: Tensor
    log_probs: Tensor
    advantages: Tensor
    conditioning: Conditioning

    def __len__(self) -> int:
        return len(self.advantages)


def shuffled_pairs(c: ConfigDict, plan: StagePlan, selected: int) -> Iterator[Tensor]:
    """The (trajectory, trained step) pairs int64 [B, 2] of each of a stage's optimizer steps.

    train.updates "even" splits each pass evenly; "full" lets steps of exactly
    trajectories_per_update trajectories run on across the passes and drops what is left.
    """
    t, most = c.train, c.train.trajectories_per_update
    parts: list[tuple[Tensor, torch.Generator]] = []
    for epoch in range(t.num_inner_epochs if selected else 0):
        shuffle = generator(c.seed, plan.stage, epoch, 0, 0, "updates")
        order = torch.randperm(selected, generator=shuffle)
        if t.updates == "full":
            parts.append((order[: selected // 2 * 2], shuffle))
        else:
            parts += [(part, shuffle) for part in order.tensor_split(-(-selected // most))]
    if t.updates == "full" and parts:
        whole = torch.cat([order for order, _ in parts])
        shuffle = parts[0][1]
        parts = [(part, shuffle) for part in whole.split(most) if len(part) == most]
    for part, shuffle in parts:
        pairs = torch.cartesian_prod(part, torch.arange(plan.trained_steps))
        yield pairs[torch.randperm(len(pairs), generator=shuffle)]


def pairs_objective(
    settings: RolloutSettings, clip_range: float, policy: Policy, batch: Batch, pairs: Tensor
) -> Objective:
    """The clipped objective of (trajectory, trained step) pairs int64 [B, 2]; settings: those of
    the sampling."""
    pairs = pairs.to(policy.device)
    trajectory, j = pairs[:, 0], pairs[:, 1]
    x, x_next = batch.latents[trajectory, j], batch.latents[trajectory, j + 1]
    trained = batch.log_probs.shape[1]
    step = policy.schedule.num_steps - settings.skip_last - trained + j
    conditioning = batch.conditioning.rows(trajectory)
    mean, sigma = policy.step(x, step, conditioning, settings.guidance_scale, settings.eta)
    return clipped_objective(
        log_prob(x_next, mean, sigma),
        batch.log_probs[trajectory, j],
        batch.advantages[trajectory],
        clip_range,
    )

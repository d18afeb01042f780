"""The clipped policy gradient of PPO (arXiv 1707.06347, equation 7) over denoising steps."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """loss: scalar with gradient; ratio: float32 [B], detached; clipped: bool [B], binding."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


def clipped_objective(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_range: float
) -> Objective:
    """L = mean(max(-A r, -A clip(r, 1 - eps, 1 + eps))), r = exp(log p - log p_old).

    log_prob, old_log_prob, advantage: float32 [B]; eps is `clip_range`.
    """
    ratio = torch.exp(log_prob - old_log_prob)
    unclipped = -advantage * ratio
    clipped = -advantage * ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(unclipped, clipped).mean()
    return Objective(loss, ratio.detach(), (clipped > unclipped).detach())

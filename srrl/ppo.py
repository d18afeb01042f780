"""The clipped policy gradient of PPO (arXiv 1707.06347, equation 7) over the steps of a denoising
or the tokens of an answer. Pure functions of tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """loss: scalar with gradient; ratio, detached, and clipped (where the clip binds): float32 and
    bool [B], or [n] of the n tokens that count."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


def clipped_objective(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip_range: float,
    *,
    clip_range_high: float | None = None,
    mask: Tensor | None = None,
    mean_tokens: float | None = None,
    reference_log_prob: Tensor | None = None,
    kl_weight: float = 0.0,
) -> Objective:
    """L = mean(max(-A r, -A clip(r, 1 - eps, 1 + eps_high)) + beta KL), r = exp(log p - log p_old).

    log_prob, old_log_prob, advantage: float32 [B] of steps; of tokens [B, L], advantage then [B] or
    [B, L]. eps is `clip_range`, eps_high `clip_range_high` or the same (arXiv 2503.14476).
    mask: bool [B, L], the tokens that count; the mean is over them. Where the B answers are a
    micro-batch, `mean_tokens` is how many an answer of the whole batch has on average, so that the
    micro-batches' losses, weighted by their B, give the mean over all the batch's tokens.
    beta is `kl_weight`, of the estimate k3 (`kl_k3`) of the divergence from `reference_log_prob`.
    """
    if advantage.dim() < log_prob.dim():
        advantage = advantage.unsqueeze(-1)
    high = clip_range if clip_range_high is None else clip_range_high
    ratio = torch.exp(log_prob - old_log_prob)
    unclipped = -advantage * ratio
    clipped = -advantage * ratio.clamp(1 - clip_range, 1 + high)
    values = torch.maximum(unclipped, clipped)
    if kl_weight:
        assert reference_log_prob is not None
        values = values + kl_weight * kl_k3(log_prob, reference_log_prob)
    binding, ratio = (clipped > unclipped).detach(), ratio.detach()
    if mask is None:
        return Objective(values.mean(), ratio, binding)
    return Objective(masked_mean(values, mask, mean_tokens), ratio[mask], binding[mask])


def masked_mean(values: Tensor, mask: Tensor, mean_tokens: float | None = None) -> Tensor:
    """The mean of values [B, L] where bool [B, L] is true; of what is masked nothing is read, not
    even a NaN. With `mean_tokens` the sum over B times it."""
    total = torch.where(mask, values, torch.zeros_like(values)).sum()
    return total / (mask.sum() if mean_tokens is None else len(values) * mean_tokens)


def kl_k3(log_prob: Tensor, reference_log_prob: Tensor) -> Tensor:
    """The estimate exp(d) - d - 1, d = log p_ref - log p, of KL(p | p_ref) at samples of p: never
    negative and unbiased (Schulman 2020, "Approximating KL divergence", k3)."""
    difference = reference_log_prob - log_prob
    return torch.exp(difference) - difference - 1

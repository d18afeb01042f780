"""Paired comparisons of scores."""

import math

import torch
from torch import Tensor

RESAMPLES = 2000


def paired_difference(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Mean of after - before (float [n], paired) and the half-width of its 95% interval.

    Normal approximation: 1.96 standard errors of the mean difference.
    """
    difference = after.double() - before.double()
    if len(difference) < 2:
        return difference.mean().item(), math.inf
    half = 1.96 * difference.std(unbiased=True).item() / math.sqrt(len(difference))
    return difference.mean().item(), half


def format_difference(before: Tensor, after: Tensor) -> str:
    """For example "+0.046 +- 0.012"."""
    mean, half = paired_difference(before, after)
    return f"{mean:+.3f} +- {half:.3f}"


def bootstrap(by_prompt: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """The mean of float [P] and the 95% percentile interval of resampled prompts.

    A prompt's pictures are not independent, so prompts are what is drawn again: by_prompt holds a
    mean (or a mean paired difference) for each.
    """
    values = by_prompt.double()
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    means = values[rows].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return values.mean().item(), low, high

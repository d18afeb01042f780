"""Paired comparisons of scores."""

import math

from torch import Tensor


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

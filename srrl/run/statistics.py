"""Means with 95% intervals, and paired comparisons of scores.

A prompt's pictures are not independent, so the values that an interval is made of are prompts
(each the mean of its pictures) or the seeds of training, never pictures. Intervals are Student's t;
of FEW prompts and more, whose scores are far from normal, evaluate.py's are bootstrapped.
"""

import math
from collections.abc import Sequence

import torch
from scipy import stats
from torch import Tensor

RESAMPLES = 2000
FEW = 20  # of fewer values a percentile bootstrap is too narrow, by a fifth at 8


def by_prompt(scores: Sequence[float] | Tensor, seeds: int) -> Tensor:
    """The mean of each prompt's pictures, float64 [P], of an evaluation's scores [seeds * P], in
    the order of eval.jsonl: seeds outermost."""
    return torch.as_tensor(scores, dtype=torch.float64).view(seeds, -1).mean(0)


def half_width(values: Sequence[float] | Tensor) -> float:
    """Of the 95% interval (Student's t) of the mean of independent values; inf for one value."""
    values = torch.as_tensor(values, dtype=torch.float64)
    n = len(values)
    if n < 2:
        return math.inf
    return float(stats.t.ppf(0.975, n - 1)) * values.std(unbiased=True).item() / math.sqrt(n)


def spread(values: Sequence[float], sign: str = "", digits: int = 3) -> str:
    """How values of few seeds lie about their mean: both of two, like "0.320, 0.350", the 95%
    interval of three and more, like "+- 0.041", and "" of fewer. sign: "+" for differences."""
    if len(values) == 2:
        return ", ".join(f"{value:{sign}.{digits}f}" for value in values)
    return f"+- {half_width(values):.{digits}f}" if len(values) > 2 else ""


def paired_difference(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Mean of after - before (float [n], paired) and the half-width of its 95% interval."""
    difference = after.double() - before.double()
    return difference.mean().item(), half_width(difference)


def format_difference(before: Tensor, after: Tensor) -> str:
    """For example "+0.046 +- 0.012"."""
    mean, half = paired_difference(before, after)
    return f"{mean:+.3f} +- {half:.3f}"


def interval(values: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """The mean of float [P], a value (or paired difference) for each prompt, and its 95% interval:
    the percentiles of resampled prompts, or Student's t for fewer than FEW."""
    values = values.double()
    mean, n = values.mean().item(), len(values)
    if n < FEW:
        half = half_width(values)
        return mean, mean - half, mean + half
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (RESAMPLES, n), generator=generator)
    means = values[drawn].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return mean, low, high

"""Intervals by hand, and of prompts, not of pictures."""

import math

import pytest
import torch

from srrl.run.statistics import (
    FEW,
    by_prompt,
    format_difference,
    half_width,
    interval,
    paired_difference,
)


def test_paired_interval_by_hand():
    before, after = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.2, 0.5, 0.5])
    # differences 0.1, 0.3, 0.2: mean 0.2, unbiased std 0.1; Student's t of 2 degrees: 4.303
    mean, half = paired_difference(before, after)
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    assert format_difference(before, after) == "+0.200 +- 0.248"


def test_one_pair_has_no_interval():
    assert paired_difference(torch.tensor([1.0]), torch.tensor([2.0])) == (1.0, math.inf)


@pytest.mark.parametrize(("n", "t"), [(2, 12.7062), (5, 2.7764), (11, 2.2281), (64, 1.9983)])
def test_half_widths_are_students(n, t):
    values = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    assert half_width(values) == pytest.approx(t * values.std().item() / n**0.5, rel=1e-4)
    assert half_width(values.tolist()) == half_width(values)


def test_a_prompts_pictures_count_as_one():
    """Two seeds outermost, three prompts: a prompt drawn alike twice is not more evidence."""
    scores = [0.0, 0.3, 0.9, 0.2, 0.3, 0.7]
    means = by_prompt(scores, seeds=2)
    assert means.tolist() == pytest.approx([0.1, 0.3, 0.8])
    once = torch.tensor([0.1, 0.4, 0.9])
    assert half_width(by_prompt(once.repeat(4), seeds=4)) == pytest.approx(half_width(once))


@pytest.mark.parametrize("n", [5, FEW, 60])
def test_the_interval_covers_the_truth_as_often_as_it_says(n):
    generator = torch.Generator().manual_seed(1)
    hits = 0
    for seed in range(400):
        _, low, high = interval(torch.randn(n, generator=generator), seed)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 400 <= 0.98


def test_a_single_prompt_has_no_interval():
    assert interval(torch.tensor([0.5])) == (0.5, -math.inf, math.inf)

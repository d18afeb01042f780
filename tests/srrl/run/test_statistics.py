"""The paired interval by hand."""

import math

import pytest
import torch

from srrl.run.statistics import format_difference, paired_difference


def test_paired_interval_by_hand():
    before, after = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.2, 0.5, 0.5])
    # differences 0.1, 0.3, 0.2: mean 0.2, unbiased std 0.1
    mean, half = paired_difference(before, after)
    assert mean == pytest.approx(0.2) and half == pytest.approx(1.96 * 0.1 / math.sqrt(3), rel=1e-5)
    assert format_difference(before, after) == "+0.200 +- 0.113"


def test_one_pair_has_no_interval():
    assert paired_difference(torch.tensor([1.0]), torch.tensor([2.0])) == (1.0, math.inf)

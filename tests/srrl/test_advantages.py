"""Standardising and selecting against computations by hand."""

import math
import statistics

import pytest
import torch

from srrl.advantages import ScoreHistory, prompt_advantages, select, stage_advantages, standardise


def test_standardise_by_hand():
    # mean 3, unbiased std sqrt(((2)^2 + 0 + (2)^2) / 2) = 2
    values = torch.tensor([1.0, 3.0, 5.0])
    assert standardise(values, values).tolist() == pytest.approx([-1, 0, 1])
    assert standardise(values[:1], values[:1]).tolist() == [0]
    assert standardise(torch.ones(3), torch.ones(3)).tolist() == [0, 0, 0]


def independent(now, before, weights):
    """The same advantages from the definition, in plain Python."""
    combined = [0.0] * (len(next(iter(now.values()))) + len(next(iter(before.values()))))
    for reward, weight in weights.items():
        window = now[reward] + before[reward]
        mean, std = statistics.fmean(window), statistics.stdev(window)
        for i, value in enumerate(window):
            combined[i] += weight * (value - mean) / (std + 1e-8)
    mean, std = statistics.fmean(combined), statistics.stdev(combined)
    return [(c - mean) / (std + 1e-8) for c in combined[: len(next(iter(now.values())))]]


def test_two_rewards_with_history_equal_an_independent_computation():
    now = {"a": [0.1, 0.9, 0.4], "b": [3.0, -1.0, 2.0]}
    before = {"a": [0.2, 0.3], "b": [1.0, 1.5]}
    weights = {"a": 1.0, "b": 0.5}
    ours = prompt_advantages(
        {k: torch.tensor(v, dtype=torch.float64) for k, v in now.items()},
        {k: torch.tensor(v, dtype=torch.float64) for k, v in before.items()},
        weights,
    )
    assert ours.tolist() == pytest.approx(independent(now, before, weights), abs=1e-12)


def test_with_one_reward_the_advantage_is_its_z_score_whatever_its_weight():
    scores = torch.tensor([0.1, 0.2, 0.6], dtype=torch.float64)
    nothing = torch.zeros(0, dtype=torch.float64)
    ours = prompt_advantages({"a": scores}, {"a": nothing}, {"a": 0.3})
    torch.testing.assert_close(ours, standardise(scores, scores), atol=1e-7, rtol=1e-6)


def test_prompts_are_compared_with_themselves_and_their_last_h_stages():
    history = ScoreHistory(length=2)
    weights = {"r": 1.0}
    first = stage_advantages(["x", "y"], {"r": torch.tensor([1.0, 2.0])}, weights, history, 0)
    assert first.tolist() == [0, 0]  # one score each: no std
    second = stage_advantages(["x", "x"], {"r": torch.tensor([3.0, 5.0])}, weights, history, 1)
    assert second.tolist() == pytest.approx([0, 1], abs=1e-6)  # window 1, 3, 5
    # in stage 3 the last two stages are 1 and 2: stage 0's score is forgotten
    third = stage_advantages(["x", "x"], {"r": torch.tensor([3.0, 5.0])}, weights, history, 3)
    mean, std = 4.0, math.sqrt(4 / 3)
    assert third.tolist() == pytest.approx([(3 - mean) / std, (5 - mean) / std], abs=1e-6)


def test_selection_by_hand():
    advantages = torch.tensor([0.6, 0.1, -0.7, 0.4, 0.2, -0.5, 2.0, 0.5, -0.51])
    groups = torch.tensor([7, 7, 7, 8, 8, 8, 9, 9, 9])
    # group 7: best 0.6 and worst -0.7; group 8: best below 0.5, worst not below -0.5; group 9: both
    assert select(advantages, groups, 0.5, -0.5, "extremes").tolist() == [0, 2, 6, 8]
    assert select(advantages, groups, 0.5, -0.5, "all").tolist() == list(range(9))
    assert select(torch.zeros(4), torch.tensor([0, 0, 1, 1]), 0.5, -0.5, "extremes").tolist() == []


def test_a_group_of_one_is_selected_once():
    assert select(torch.tensor([0.9]), torch.tensor([0]), 0.5, -0.5, "extremes").tolist() == [0]


def test_a_keys_spread_is_of_the_weighted_sums_of_what_is_remembered():
    history = ScoreHistory(2)
    history.add(0, "a", {"x": [0.0, 1.0], "y": [1.0, 0.0]})
    history.add(1, "a", {"x": [1.0], "y": [2.0]})
    history.add(1, "b", {"x": [3.0, 3.0], "y": [1.0, 1.0]})
    spreads = history.spreads({"x": 1.0, "y": 0.5})
    assert spreads["b"] == 0 and spreads["a"] == pytest.approx(statistics.pstdev([0.5, 1.0, 2.0]))

"""How pictures look, and when they have changed."""

import math

import pytest
import torch

from srrl.run.image_statistics import drifted, measured, summary, summary_of


def plain(value: int, n: int = 1) -> torch.Tensor:
    return torch.full((n, 3, 16, 16), value, dtype=torch.uint8)


def test_dark_flat_and_noisy_pictures_are_told_apart():
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 255
    quarters = plain(0)
    for i, colour in enumerate([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        place = slice(8 * (i // 2), 8 * (i // 2) + 8), slice(8 * (i % 2), 8 * (i % 2) + 8)
        quarters[0, :, *place] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    images = torch.cat([plain(0), plain(200), board.expand(1, 3, -1, -1).byte(), quarters])
    dark, edges, entropy = measured(images)[:, :3].T
    assert dark.tolist() == [1, 0, 0.5, 0.25]
    assert edges[:3].tolist() == [0, 0, 1] and 0 < edges[3] < 0.2
    assert entropy.tolist() == pytest.approx([0, 0, 1, 2])


def test_diversity_is_between_a_prompts_pictures_or_of_one_seed_between_prompts():
    black, white = plain(0, 2), plain(255, 2)
    apart, alike = (measured(torch.cat([black, of])) for of in (white, black))
    assert summary(apart, 2)["diversity"] == (pytest.approx(1), 0)
    assert summary(alike, 2)["diversity"] == (0, 0)
    # Of one seed: of the four prompts' pictures the middle two differ.
    assert summary(apart, 1)["diversity"] == pytest.approx((1 / 3, math.sqrt(2) / 3), abs=1e-5)
    assert "diversity" not in summary(measured(plain(9)), 1)


def line(stage: int, split: str = "train", n: int = 8, **pictures: tuple) -> dict:
    judged = {"split": split, "rounds": 1, "n": n, "seeds": 2, "first_seed": 0}
    return {"stage": stage, "reward": "any", **judged, "pictures": pictures}


def test_what_leaves_the_first_pictures_spread_is_said():
    first = line(0, dark=(0.2, 0.1), edges=(0.3, 0.1), diversity=(0.4, 0.1))
    near = line(4, dark=(0.29, 0.1), edges=(0.21, 0.1), diversity=(0.21, 0.1))
    far = line(8, dark=(0.31, 0.1), edges=(0.21, 0.1), diversity=(0.19, 0.1))
    assert drifted([]) == drifted([first]) == drifted([first, near]) == ""
    said = "dark pixels 0.20 to 0.31 (train, K 1); diversity 0.40 to 0.19 (train, K 1)"
    assert drifted([first, near, far]) == f"the pictures have changed since the start: {said}"
    assert drifted([first, far, near]) == ""  # only the last counts
    others = line(8, n=4, dark=(0.9, 0.1))
    assert drifted([first, others]) == ""  # which do not pair
    assert "heldout" in drifted(
        [first, line(0, "heldout", dark=(0, 0.1)), near, *[line(4, "heldout", dark=(1, 0.1))]]
    )


def test_a_log_without_them_or_with_something_else_is_none():
    assert summary_of({}) == summary_of({"pictures": 3}) == {}
    odd = {"dark": [None, 1], "edges": [1], "other": [1, 2], "entropy": (2, 1)}
    assert summary_of({"pictures": odd}) == {"entropy": (2.0, 1.0)}

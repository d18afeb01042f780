"""Shapes that are not quite right, and what the verifier says of them."""

from itertools import pairwise

import pytest
import torch

from rewards.shapes import ShapesVerifier
from srrl.shapes.deform import deformed, spikes
from srrl.shapes.scenes import SHAPES, coverage
from tests.rewards.test_shapes import painted


def spiked_scores(shape: str, width: float, height: float) -> torch.Tensor:
    """Of 200 pictures of a red shape with drawn-out corners above a clean blue circle."""
    n, generator = 200, torch.Generator().manual_seed(7)
    places = torch.tensor([[16.0, 8.0], [16.0, 24.0]])
    first, second = places[:, None] + 2 * torch.rand(2, n, 2, generator=generator) - 1
    radius = 4 + torch.rand(n, generator=generator)
    mask = deformed(shape, first, radius, spikes(shape, n, width, height))
    pictures = painted(mask, coverage("circle", second, radius))
    return ShapesVerifier().score(pictures, [f"a red {shape} above a blue circle"] * n)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["square", "triangle"])
@pytest.mark.parametrize("width", [0.3, 0.4, 0.5])
def test_spiked_corners_cost_score_and_longer_ones_more(shape, width):
    scores = [spiked_scores(shape, width, height) for height in (1e-3, 1.0, 2.0, 3.0)]
    clean, _, light, strong = (s.mean() for s in scores)
    assert clean > 0.97 and light < clean - 0.1 and strong < clean - 0.25
    assert all((later.mean() < earlier.mean()) for earlier, later in pairwise(scores))
    assert (scores[3] < scores[0] - 0.05).all()  # picture by picture


def test_an_outline_without_bumps_is_the_shape():
    n = 50
    centre = 14 + 4 * torch.rand(n, 2, generator=torch.Generator().manual_seed(1))
    radius = 4 + torch.rand(n, generator=torch.Generator().manual_seed(2))
    for shape in SHAPES:
        drawn = deformed(shape, centre, radius, torch.zeros(n, 0, 3))
        assert (drawn - coverage(shape, centre, radius)).abs().max() < 0.35  # at the corners
        assert (drawn.sum((1, 2)) / (torch.pi * radius**2) - 1).abs().max() < 0.05

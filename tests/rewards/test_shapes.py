"""The verifier, over the whole grammar: right pictures near 1, wrong ones clearly lower."""

from dataclasses import replace

import pytest
import torch

from rewards.shapes import ShapesVerifier
from srrl.shapes.scenes import (
    BACKGROUND,
    COLOURS,
    SHAPES,
    Scene,
    all_scenes,
    coverage,
    render,
)

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SCENES = all_scenes()


@pytest.fixture(scope="module", params=range(3))
def pictures(request) -> torch.Tensor:
    """A rendering of every scene, uint8 [432, 3, 32, 32]."""
    shown = render(SCENES, torch.Generator().manual_seed(request.param))
    return (shown * 255).round().to(torch.uint8)


def score(pictures: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
    return ShapesVerifier().score(pictures, [s.prompt for s in scenes])


def other_colour(scene: Scene) -> Scene:
    unused = next(c for c in COLOURS if c not in (scene.first[0], scene.second[0]))
    return replace(scene, first=(unused, scene.first[1]))


def other_shape(scene: Scene) -> Scene:
    shape = SHAPES[(SHAPES.index(scene.first[1]) + 1) % 3]
    return replace(scene, first=(scene.first[0], shape))


def test_a_scenes_own_picture_scores_near_one(pictures):
    scores = score(pictures, SCENES)
    assert scores.min() > 0.85 and scores.quantile(0.01) > 0.95 and scores.max() <= 1


@pytest.mark.slow
def test_opposite_relation_wrong_shape_and_wrong_colour_score_clearly_lower(pictures):
    assert score(pictures, [replace(s, relation=OPPOSITE[s.relation]) for s in SCENES]).max() < 0.3
    assert score(pictures, [other_shape(s) for s in SCENES]).max() < 0.6
    assert score(pictures, [other_colour(s) for s in SCENES]).max() < 0.35


@pytest.mark.slow
def test_swapping_the_two_things_and_the_relation_is_the_same_picture(pictures):
    swapped = [Scene(s.second, OPPOSITE[s.relation], s.first) for s in SCENES]
    torch.testing.assert_close(score(pictures, swapped), score(pictures, SCENES))


@pytest.mark.slow
def test_with_success_it_says_only_whether(pictures):
    wrong = [other_shape(s) if i % 2 else s for i, s in enumerate(SCENES)]
    prompts = [s.prompt for s in wrong]
    said = ShapesVerifier(success=0.9).score(pictures, prompts)
    assert said.unique().tolist() == [0, 1]
    assert torch.equal(said == 1, score(pictures, wrong) >= 0.9)


def test_blank_and_noise_score_nothing():
    prompts = [s.prompt for s in SCENES[:8]]
    noise = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    for picture in (noise, torch.full_like(noise, 237), torch.zeros_like(noise)):
        assert ShapesVerifier().score(picture.to(torch.uint8), prompts).max() < 0.05


def painted(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Pictures uint8 [n, 3, 32, 32] of a red mask and a blue mask [n, 32, 32] on white."""
    picture = torch.full((len(first), 3, 32, 32), BACKGROUND)
    for mask, name in ((first, "red"), (second, "blue")):
        colour = torch.tensor(COLOURS[name])[:, None, None]
        picture = picture * (1 - mask[:, None]) + colour * mask[:, None]
    return (picture * 255).round().to(torch.uint8)


def test_it_is_smooth_in_place_and_shape():
    """Turning above into below, and one shape into another, in 100 small steps."""
    n = 101
    s = torch.linspace(0, 1, n)
    radius = torch.full((n,), 4.5)
    around = 8 * torch.stack([(torch.pi * s).sin(), -(torch.pi * s).cos()], 1)
    circle, square = (
        coverage(shape, 16 + centre, radius)
        for shape, centre in (("circle", around), ("square", -around))
    )
    turned = painted(circle, square)
    circle, triangle = (
        coverage(shape, 16 + around[:1].expand(n, 2), radius) for shape in ("circle", "triangle")
    )
    morphed = painted(circle + (triangle - circle) * s[:, None, None], square[:1].expand(n, -1, -1))
    for pictures, low in ((turned, 0.3), (morphed, 0.3)):
        scores = ShapesVerifier().score(pictures, ["a red circle above a blue square"] * n)
        assert scores.max() > 0.95 and scores.min() < low
        assert (scores[1:] - scores[:-1]).abs().max() < 0.2


def test_a_larger_picture_of_the_same_scene_scores_the_same(pictures):
    large = pictures[:20].repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(score(large, SCENES[:20]), score(pictures[:20], SCENES[:20]))


@pytest.mark.slow
def test_each_image_is_scored_by_itself(pictures):
    together = score(pictures[:30], SCENES[:30])
    alone = torch.cat([score(pictures[i : i + 1], SCENES[i : i + 1]) for i in range(30)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)

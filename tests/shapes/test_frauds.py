"""Pictures that a person would reject fool neither the verifier nor the second judge."""

import pytest
import torch

from rewards.judge import ShapesJudge
from rewards.shapes import ShapesVerifier
from srrl.shapes.fit import fit
from srrl.shapes.frauds import KINDS, drawable
from srrl.shapes.scenes import COLOURS, RELATIONS, all_scenes, coverage, lay_out, paint, render

SCENES = all_scenes()
JUDGES = {"shapes": ShapesVerifier(), "judge": ShapesJudge()}


def bytes_of(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures * 255).round().to(torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [11, 12])
def test_what_a_person_would_reject_is_not_right(kind, judge, seed):
    scenes = [scene for scene in SCENES if drawable(kind, scene)][seed % 3 :: 3]
    made = KINDS[kind](scenes, torch.Generator().manual_seed(seed))
    scores = JUDGES[judge].score(bytes_of(made.pictures), [s.prompt for s in scenes])
    share = (scores < ShapesVerifier.right).float().mean()
    assert scores.mean() < 0.3 and share > {"shapes": 0.85, "judge": 0.75}[judge]
    wrong = made.malformed.any(1) | (made.third >= 0) | made.strange
    assert wrong.all()


@pytest.mark.parametrize(("judge", "least", "mean"), [("shapes", 0.98, 0.99), ("judge", 0.7, 0.95)])
def test_clean_pictures_are_right(judge, least, mean):
    pictures = bytes_of(render(SCENES, torch.Generator().manual_seed(3)))
    scores = JUDGES[judge].score(pictures, [s.prompt for s in SCENES])
    assert scores.quantile(0.02) > least and scores.mean() > mean


def test_a_fit_finds_what_was_drawn():
    layout = lay_out(SCENES, torch.Generator().manual_seed(4))
    found = fit(paint(layout), SCENES)
    assert (found.centre - torch.stack(layout.centres, 1)).abs().max() < 0.25
    assert (found.radius / torch.stack(layout.radii, 1) - 1).abs().max() < 0.05
    assert found.left.max() < 0.5 and found.seen.min() > 0.97


def test_what_is_left_over_belongs_to_the_thing_that_it_is_near():
    scene = SCENES[0]
    layout = lay_out([scene], torch.Generator().manual_seed(5))
    unused = next(c for c in COLOURS if c not in (scene.first[0], scene.second[0]))
    for k in (0, 1):
        picture = paint(layout)
        beside = layout.centres[k] + 8 * torch.tensor(RELATIONS[scene.relation]).flip(0).abs()
        spot = coverage("circle", beside, torch.tensor([2.0]))[:, None]
        picture = picture * (1 - spot) + torch.tensor(COLOURS[unused])[:, None, None] * spot
        left = fit(picture, [scene]).left[0]
        assert left[k] > 5 and left[1 - k] < 0.5

"""The second judge: right about renders, against malformed shapes, and its parts."""

from dataclasses import replace

import pytest
import torch

from rewards.judge import ShapesJudge
from srrl.shapes.deform import deformed, spikes
from srrl.shapes.judge import JUDGE_FILE
from srrl.shapes.scenes import all_scenes, coverage, render
from tests.rewards.test_shapes import OPPOSITE, other_colour, other_shape, painted

SCENES = all_scenes()


@pytest.fixture(scope="module")
def judge() -> ShapesJudge:
    return ShapesJudge()


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    shown = render(SCENES, torch.Generator().manual_seed(11))
    return (shown * 255).round().to(torch.uint8)


def score(judge, pictures, scenes) -> torch.Tensor:
    return judge.score(pictures, [scene.prompt for scene in scenes])


def test_it_is_small():
    assert JUDGE_FILE.stat().st_size < 1_000_000


@pytest.mark.slow
def test_right_pictures_score_high_and_each_part_sees_its_own_fault(judge, pictures):
    own = score(judge, pictures, SCENES)
    assert own.mean() > 0.95 and own.quantile(0.05) > 0.8
    for change, part in ((other_colour, "presence"), (other_shape, "shape")):
        wrong = [change(scene) for scene in SCENES]
        assert score(judge, pictures, wrong).mean() < 0.05
        assert judge.parts(pictures, [s.prompt for s in wrong])[part].mean() < 0.05
    turned = [replace(scene, relation=OPPOSITE[scene.relation]) for scene in SCENES]
    assert score(judge, pictures, turned).mean() < 0.05
    parts = judge.parts(pictures, [s.prompt for s in turned])
    assert parts["relation"].mean() < 0.05 and parts["presence"].mean() > 0.95


def test_spiked_shapes_score_low(judge):
    n, generator = 100, torch.Generator().manual_seed(3)
    first = torch.tensor([16.0, 8.0]) + 2 * torch.rand(n, 2, generator=generator) - 1
    second = torch.tensor([16.0, 24.0]) + 2 * torch.rand(n, 2, generator=generator) - 1
    radius = 4 + torch.rand(n, generator=generator)
    circle = coverage("circle", second, radius)
    prompts = ["a red square above a blue circle"] * n
    clean = judge.score(painted(coverage("square", first, radius), circle), prompts)
    spiked = deformed("square", first, radius, spikes("square", n, 0.4, 3.0))
    assert clean.mean() > 0.9 and judge.score(painted(spiked, circle), prompts).mean() < 0.3


def test_the_embedding_tells_pictures_apart_and_repeats_itself(judge, pictures):
    embedded = judge.embed(pictures[:20])
    assert embedded.shape == (20, 128) and torch.equal(embedded, judge.embed(pictures[:20]))
    assert torch.pdist(embedded).min() > 0.01


def test_prompts_outside_the_grammar_are_refused(judge):
    with pytest.raises(ValueError, match="walrus"):
        judge.check_prompts(["a walrus"])

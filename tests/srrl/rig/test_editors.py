"""Both editors as policies: their steps' log-probs come again, and a step costs what it says."""

from dataclasses import replace

import pytest
import torch

from srrl.ddim import log_prob
from srrl.models.instruct import InstructPolicy
from srrl.models.policy import Policy
from srrl.rig.editors import Editor
from srrl.rounds import RolloutSettings, denoise_steps, invert_steps
from srrl.shapes.pipeline import TINY_EDITOR, TINY_SD
from srrl.shapes.scenes import parse, render
from tests.conftest import PROMPTS

SETTINGS = RolloutSettings(2, 3.0, 1.0, 1.0, 0.1, 0.0, "last", 0)
GIVEN = {"num_steps": 6, "eta": 1.0, "micro_batch": 64}
TEXTS = ["make the red shape green", "add a red circle"]


def editor_of(kind: str, **changes) -> Editor:
    settings = replace(SETTINGS, **changes)
    if kind == "instruct":
        return Editor(InstructPolicy.load(str(TINY_EDITOR), **GIVEN), settings)
    return Editor(Policy.load(str(TINY_SD), **GIVEN), settings)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    drawn = render([parse(p) for p in PROMPTS[:2]], torch.Generator().manual_seed(0))
    return (drawn * 255).round().to(torch.uint8)


@pytest.mark.parametrize("kind", ["instruct", "inversion"])
def test_the_log_probs_of_an_edits_steps_come_again(kind, pictures):
    editor = editor_of(kind)
    assert editor.kind == kind
    edits = editor.edit(pictures, PROMPTS[:2], TEXTS, seed=1, numbers=[4, 7], trained_steps=3)
    assert edits.images.shape == (4, 3, 32, 32) and edits.images.dtype == torch.uint8
    latents, policy = edits.sampled.latents, editor.policy
    assert latents.shape == (4, 4, 4, 8, 8)
    rows = edits.conditioning.rows(torch.arange(2).repeat_interleave(2))
    for i in range(3):
        mean, sigma = policy.step(latents[:, i], 3 + i, rows, 3.0, 1.0)
        again = log_prob(latents[:, i + 1], mean, sigma)
        assert (again - edits.sampled.log_probs[:, i]).exp().sub(1).abs().max() < 1e-5
    together = edits.images.view(2, 2, 3, 32, 32)
    assert (together[:, 0] != together[:, 1]).any()  # the branches part


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["instruct", "inversion"])
def test_an_edit_depends_on_its_own_numbers_alone(kind, pictures):
    editor = editor_of(kind, branches=1)
    both = editor.edit(pictures, PROMPTS[:2], TEXTS, seed=1, numbers=[4, 7]).images
    second = editor.edit(pictures[1:], PROMPTS[1:2], TEXTS[1:], seed=1, numbers=[7]).images
    assert (both[1:].int() - second.int()).abs().max() <= 1
    for change in ({"seed": 2, "numbers": [7]}, {"seed": 1, "numbers": [8]}):
        other = editor.edit(pictures[1:], PROMPTS[1:2], TEXTS[1:], **change).images
        assert (other != second).any()
    later = editor.edit(pictures[1:], PROMPTS[1:2], TEXTS[1:], seed=1, numbers=[7], stage=1)
    assert (later.images != second).any()


@pytest.mark.parametrize(
    ("kind", "changes", "image_guidance"),
    [
        ("instruct", {}, 1.0),
        ("instruct", {}, 1.5),
        ("instruct", {"guidance_scale": 1.0}, 1.0),
        ("inversion", {}, None),
        ("inversion", {"depth": 4, "inversion_guidance": 1.0}, None),
        ("inversion", {"depth": 2, "guidance_scale": 0.0}, None),
    ],
)
def test_it_costs_what_it_says(kind, changes, image_guidance, pictures):
    editor = editor_of(kind, branches=1, **changes)
    if image_guidance:
        editor.policy.image_guidance = image_guidance
    before = editor.policy.nfe
    editor.edit(pictures, PROMPTS[:2], TEXTS, seed=1, numbers=[0, 1])
    assert editor.policy.nfe - before == 2 * editor.evaluations


def test_inversion_is_the_reflection_of_a_picture_under_another_prompt(pictures):
    """At eta 0, from the latents that the picture has, by the steps themselves."""
    editor = editor_of("inversion", branches=1, eta=0.0, depth=4)
    policy = editor.policy
    ours = editor.edit(pictures, PROMPTS[:2], PROMPTS[2:4], seed=1, numbers=[0, 1]).images
    x0 = policy.to_latents(pictures)
    shown = policy.decode(x0)
    assert (shown.int() - pictures.int()).abs().float().mean() < 6  # the VAE's own loss
    x = invert_steps(policy, x0, policy.encode(PROMPTS[:2]), 0.1, 4)
    steps = denoise_steps(policy, x, policy.encode(PROMPTS[2:4]), range(2, 6), 3.0, 0.0)
    assert torch.equal(ours, policy.decode(steps[0][-1]))

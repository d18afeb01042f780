"""The instruct editor draws what diffusers' own InstructPix2Pix pipelines draw, and is a policy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from PIL import Image

from srrl.config import load_config
from srrl.ddim import log_prob
from srrl.errors import UserError
from srrl.models.instruct import InstructPolicy
from srrl.models.policy import Policy
from srrl.models.weights import add_lora
from srrl.rounds import Randomness, denoise_steps, rollout_settings, sample_round
from srrl.shapes.scenes import all_scenes, render
from tests.conftest import BOTH, LORA, MODELS, PRESET, load_policy, randomise_lora

STEPS, TEXTS = 6, ["a red circle", "make the blue square a triangle", "a"]
PICTURES = (
    (render(all_scenes()[:3], torch.Generator().manual_seed(0)) * 255).round().to(torch.uint8)
)


def save_editor(model: str, folder: Path) -> Path:
    """An InstructPix2Pix pipeline made of an embedded one: four more input channels."""
    pipe = load_policy(model).pipe
    unet = UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 8})
    state, g = pipe.unet.state_dict(), torch.Generator().manual_seed(0)
    more = 0.05 * torch.randn(state["conv_in.weight"].shape, generator=g)
    unet.load_state_dict(state | {"conv_in.weight": torch.cat([state["conv_in.weight"], more], 1)})
    parts = {k: v for k, v in pipe.components.items() if k in ("vae", "tokenizer", "scheduler")}
    parts |= {"text_encoder": pipe.text_encoder, "unet": unet}
    if model == "sdxl":
        parts |= {k: getattr(pipe, k) for k in ("text_encoder_2", "tokenizer_2")}
        made = StableDiffusionXLInstructPix2PixPipeline(**parts)
    else:
        made = StableDiffusionInstructPix2PixPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=BOTH)
def editor(request, tmp_path_factory) -> Path:
    return save_editor(request.param, tmp_path_factory.mktemp(request.param))


def load(editor: Path, image_guidance: float = 1.5, **changes) -> InstructPolicy:
    given = {"num_steps": STEPS, "eta": 0.0, "micro_batch": 64, **changes}
    return InstructPolicy.load(str(editor), image_guidance=image_guidance, **given)


def draw(policy: InstructPolicy, guidance: float, noise: torch.Tensor) -> torch.Tensor:
    told = policy.instruct(PICTURES, TEXTS)
    path, _ = denoise_steps(policy, noise, told, range(STEPS), guidance, 0.0)
    return policy.decode(path[-1])


def noise() -> torch.Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(7))


@pytest.mark.slow
@pytest.mark.parametrize("image_guidance", [1.0, 1.5])
def test_pictures_are_those_of_diffusers(editor, image_guidance):
    xl = "sdxl" in editor.name
    kind = (
        StableDiffusionXLInstructPix2PixPipeline if xl else StableDiffusionInstructPix2PixPipeline
    )
    pipe = kind.from_pretrained(editor, **({} if xl else {"safety_checker": None}))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    theirs = []
    for i, text in enumerate(TEXTS):
        shown = Image.fromarray(PICTURES[i].permute(1, 2, 0).numpy())
        theirs += pipe(
            text,
            image=shown,
            num_inference_steps=STEPS,
            guidance_scale=4.0,
            image_guidance_scale=image_guidance,
            latents=noise()[i : i + 1],
            output_type="np",
            **({"height": 32, "width": 32} if xl else {}),
        ).images.tolist()
    theirs = torch.tensor(np.array(theirs)).permute(0, 3, 1, 2) * 255
    ours = draw(load(editor, image_guidance), 4.0, noise())
    assert (ours.float() - theirs).abs().max() <= 1
    assert ours.float().std() > 10


@pytest.mark.slow
def test_at_image_guidance_1_two_evaluations_are_three_of_which_one_cancels(editor):
    two, three = load(editor, 1.0), load(editor, 1.0 + 1e-6)
    x, step = noise(), torch.zeros(3, dtype=torch.long)
    cheap = two.predict(x, step, two.instruct(PICTURES, TEXTS), 4.0)
    whole = three.predict(x, step, three.instruct(PICTURES, TEXTS), 4.0)
    assert (two.nfe, three.nfe) == (6, 9)
    torch.testing.assert_close(cheap, whole, atol=1e-4, rtol=0)
    one = load(editor, 1.0)
    one.predict(x, step, one.instruct(PICTURES, TEXTS), 1.0)
    assert one.nfe == 3


def test_text_and_picture_count(editor):
    policy, x, step = load(editor), noise(), torch.zeros(3, dtype=torch.long)
    told = policy.instruct(PICTURES, TEXTS)
    drawn = policy.predict(x, step, told, 4.0)
    for other in (
        policy.instruct(PICTURES, TEXTS[::-1]),
        policy.instruct(PICTURES.flip(-1), TEXTS),
    ):
        assert (policy.predict(x, step, other, 4.0) - drawn).abs().max() > 1e-3
    split = load(editor, micro_batch=2)
    torch.testing.assert_close(split.predict(x, step, told, 4.0), drawn, atol=1e-5, rtol=1e-5)


def test_an_edit_is_a_policy_whose_log_probs_come_again(editor):
    """The steps that are trained: the same log-probs with gradient, and a LoRA that learns."""
    policy = load(editor, eta=1.0)
    add_lora(policy.network, LORA, seed=0)
    randomise_lora(policy)
    settings = rollout_settings(load_config([PRESET]), branches=2)
    told = policy.instruct(PICTURES, TEXTS)
    randomness = Randomness(policy, 1, 0, [0, 1, 2], 2)
    x = randomness.noise("start").draw()
    drawn = sample_round(policy, x, told, settings, randomness, trained_steps=2)
    assert drawn.log_probs.shape == (6, 2)
    rows = told.rows(torch.arange(3).repeat_interleave(2))
    first = STEPS - settings.skip_last - 2
    for m in range(2):
        mean, sigma = policy.step(
            drawn.latents[:, m], first + m, rows, settings.guidance_scale, settings.eta
        )
        again = log_prob(drawn.latents[:, m + 1], mean, sigma)
        torch.testing.assert_close(again, drawn.log_probs[:, m], atol=1e-5, rtol=1e-5)
        again.sum().backward()
    assert all(p.grad is not None for p in policy.trainable())


def test_what_is_no_editor_and_what_is_no_picture_of_its_size_is_refused(editor):
    with pytest.raises(UserError, match="is a StableDiffusionPipeline: an editor is one of Stable"):
        load(MODELS["sd"])
    with pytest.raises(UserError, match=r"is a StableDiffusion(XL)?InstructPix2PixPipeline: only"):
        Policy.load(str(editor), num_steps=STEPS, eta=0.0, micro_batch=4)
    with pytest.raises(
        UserError, match=r"editor\.model=.*: an editor is a diffusers folder or a hub"
    ):
        load(editor / "model_index.json")
    with pytest.raises(UserError, match=r"editor\.model='random:x': its architecture is not known"):
        load("random:x")
    policy = load(editor)
    with pytest.raises(ValueError, match="one for each"):
        policy.instruct(PICTURES, TEXTS[:2])
    with pytest.raises(ValueError, match=r"of \(32, 32\)"):
        policy.instruct(PICTURES[..., :16], TEXTS)
